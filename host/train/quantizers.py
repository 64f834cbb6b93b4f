"""Brevitas quantizers whose scale is a power of two and whose zero point is 0, and the scale that fits values best."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import ScalingImplType
from brevitas.nn import QuantIdentity
from brevitas.quant.fixed_point import (
    Int8ActPerTensorFixedPoint,
    Int8WeightPerTensorFixedPoint,
    Uint8ActPerTensorFixedPoint,
)
from torch import Tensor, nn

from sentei.overlay.errors import SenteiError


class UnsupportedNetworkError(SenteiError, ValueError):
    """A network has an operation that this quantization does not know."""


@dataclass(frozen=True)
class Precision:
    """Bits of weights and activations."""

    weights: int = 4
    activations: int = 4
    first: int = 8  # weights of the first layer
    last: int = 8  # weights of the last layer
    image: int = 8

    def __post_init__(self):
        for name, bits in vars(self).items():
            most = 4 if name == "activations" else 8
            if not 2 <= bits <= most:
                raise UnsupportedNetworkError(f"{name} must be quantized to between 2 and {most} bits, not {bits}")


class _Round(torch.autograd.Function):
    """Rounds to multiples of a power of two between two bounds; the gradient passes between the bounds."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low * scale, high * scale
        return (x * (1 / scale)).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        return torch.ops.aten.hardtanh_backward(gradients[0], x, low, high), None, None, None


class PowerOfTwoQuant(nn.Module):
    """Brevitas' integer quantizer for a constant power-of-two scale, in a third of the passes over the tensor."""

    def __init__(self, scaling_init: float, bit_width: int, signed: bool, narrow_range: bool):
        super().__init__()
        self.scale = scaling_init / 2 ** (bit_width - signed)
        self.low, self.high = smallest(bit_width, signed, narrow_range), largest(bit_width, signed)

    def forward(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        return _Round.apply(x, self.scale, self.low, self.high)


class _Constant(ExtendedInjector):
    scaling_impl_type = ScalingImplType.CONST
    int_quant = PowerOfTwoQuant


class Weight(_Constant, Int8WeightPerTensorFixedPoint):
    """Signed and narrow: as far below zero as above, [-7, 7] in 4 bits."""


class SignedActivation(_Constant, Int8ActPerTensorFixedPoint):
    pass


class UnsignedActivation(_Constant, Uint8ActPerTensorFixedPoint):
    pass


def largest(bits: int, signed: bool) -> int:
    """The largest integer of a quantizer."""
    return 2 ** (bits - signed) - 1


def smallest(bits: int, signed: bool, narrow: bool = False) -> int:
    """The smallest integer of a quantizer."""
    return (-(2 ** (bits - 1)) + narrow) if signed else 0


class ActivationQuantizer(QuantIdentity):
    """Quantizes a tensor to unsigned or signed integers times a power of two."""

    def __init__(self, bits: int, signed: bool, scale: float):
        super().__init__(
            act_quant=(SignedActivation if signed else UnsignedActivation).let(
                bit_width=bits, scaling_init=scale * 2 ** (bits - signed)
            )
        )
        self.scale = scale


def weight_quantizer(bits: int, scale: float):
    return Weight.let(bit_width=bits, scaling_init=scale * 2 ** (bits - 1))


def quantization_error(x: Tensor, scale: Tensor | float, bits: int, signed: bool, narrow: bool = False) -> Tensor:
    """The mean squared error of each row of x (R, N) after rounding and clipping; scale broadcasts against x."""
    rounded = (x / scale).round().clamp(smallest(bits, signed, narrow), largest(bits, signed)) * scale
    return (rounded - x).square().mean(dim=1)


def best_power_of_two(x: Tensor, bits: int, signed: bool, narrow: bool = False) -> float:
    """The power of two of least squared error as the scale of x, down to an eighth of the one that clips nothing."""
    span = max(x.abs().max().item(), 2.0**-20) / largest(bits, signed)
    candidates = [2.0 ** (math.ceil(math.log2(span)) - shift) for shift in range(4)]
    return min(candidates, key=lambda scale: quantization_error(x.reshape(1, -1), scale, bits, signed, narrow).item())


@functools.cache
def best_size(bits: int) -> float:
    """The root mean square, in steps of the grid, that normally distributed weights should have.

    So quantized, signed and narrow, they have the least squared error relative to their size: 2.8 steps for 4 bits, a
    little less than with both ends of the grid (Max 1960, "Quantizing for minimum distortion").
    """
    weights = torch.special.ndtri((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    sizes = largest(bits, signed=True) / torch.linspace(1.0, 6.0, 501, dtype=torch.float64)
    errors = quantization_error(weights * sizes[:, None], 1.0, bits, signed=True, narrow=True) / sizes.square()
    return sizes[errors.argmin()].item()
