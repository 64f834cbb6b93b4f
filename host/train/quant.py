"""The quantizers, in Brevitas' terms: every scale is a power of two and every zero point 0.

With such scales, dividing and multiplying by them is exact in float32: what the network computes between two quantizers
is integer arithmetic, plus one rounded float operation for each multiply and add behind a convolution.

Weights:      signed 4 bits in [-7, 7] (narrow), a scale per output channel that follows the channel's largest weight.
Activations:  unsigned 4 bits, a scale per tensor, chosen once by :func:`calibrate`.
Input:        unsigned 8 bits, scale 2^-8: a pixel / 256 is exact.

A fixed-point quantizer's scale is 2^round(log2(statistic)) / 2^bits (signed: 2^(bits - 1)).  Brevitas rounds that
exponent up by default; with 4 bits that leaves up to half of the range unused, and clipping a few values costs less.
"""

from __future__ import annotations

import torch
from brevitas.core.function_wrapper import RoundSte
from brevitas.core.scaling import ParameterFromRuntimeStatsScaling
from brevitas.graph.calibrate import calibration_mode
from brevitas.inject.enum import ScalingImplType
from brevitas.quant.fixed_point import (
    Int8WeightPerChannelFixedPoint,
    Uint8ActPerTensorFixedPoint,
    Uint8ActPerTensorFixedPointMSE,
)
from torch import Tensor, nn


class Int4Weight(Int8WeightPerChannelFixedPoint):
    bit_width = 4
    restrict_value_float_to_int_impl = RoundSte


class Uint4Activation(Uint8ActPerTensorFixedPointMSE):
    bit_width = 4
    restrict_value_float_to_int_impl = RoundSte


class Uint8Pixel(Uint8ActPerTensorFixedPoint):
    scaling_impl_type = ScalingImplType.CONST
    scaling_init = 1.0


@torch.no_grad()
def calibrate(network: nn.Module, inputs: Tensor) -> None:
    """Fix each activation's scale at that of least squared error over the float network's activations on the inputs.

    Scales are not learned: a power of two that doubles during training undoes more than it gains.
    """
    with calibration_mode(network):
        network(inputs)
    for module in network.modules():
        if isinstance(module, ParameterFromRuntimeStatsScaling):
            module.requires_grad_(False)
