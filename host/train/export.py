"""From a trained network to a QONNX file that float32 execution and integer hardware agree on, bit for bit.

:func:`freeze` makes every constant final inside the torch model, which is therefore still the thing to measure;
:func:`export_qonnx` writes what it is, operator by operator::

    Quant(u8) -> [Conv(Quant(weight)) -> Mul m -> Add b -> (Add residual) -> Relu -> Quant(u4)]... -> GlobalAveragePool
              -> Quant(u4) -> Flatten -> MatMul(Quant(weight)) -> Add bias
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model
from torch import Tensor, nn

from sentei.host.train.model import ResidualAdd
from sentei.host.train.quant import (
    QONNX_DOMAIN,
    QONNX_DOMAIN_VERSION,
    Affine,
    QuantConv2d,
    QuantLinear,
    quantize_weight,
    set_quantized,
)

OPSET = 13
RESIDUAL_FRACTION_BITS = 4
RESIDUAL_LIMIT = 2**15 - 1
_TIE_DISTANCE = 0.25


class ExportError(ValueError):
    """A network cannot be exported bit for bit."""


@torch.no_grad()
def freeze(network: nn.Module, residual_adds: Iterable[ResidualAdd] = ()) -> None:
    """Turn a trained network, in place, into the one that is exported: quantized, batch norms as m and b, snapped."""
    network.eval()
    set_quantized(network, True)
    for module in list(network.modules()):
        if isinstance(module, (QuantConv2d, QuantLinear)):
            module.weight.copy_(quantize_weight(module.weight, module.weight_scale) + 0.0)  # -0.0 becomes 0.0
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, Affine.from_batch_norm(child))
    for add in residual_adds:
        if add.block.act.scale < add.residual.scale:
            raise ExportError(
                f"the scale behind a residual addition must be at least the residual's, {add.residual.scale.item()}, "
                f"not {add.block.act.scale.item()}; set it so before the quantized training"
            )
        accumulator_scale = (add.block.conv.weight_scale * add.input.scale).view(1, -1, 1, 1)
        snap_residual(add.block.norm, accumulator_scale, add.residual.scale)


@torch.no_grad()
def snap_residual(affine: Affine, accumulator_scale: Tensor, residual_scale: Tensor) -> None:
    """Move m and b to where the residual addition is integer arithmetic with 4 fraction bits, away from ties.

    With the accumulator a, the residual r (both integers) and u = accumulator_scale * m / 16, the block computes
    ``a*accumulator_scale*m + b + r*residual_scale = u * (16*a + b/u + R*r)``.  m moves so that R is an integer of at
    most 15 bits and a sign, b by less than u so that b/u is an integer plus 0.25.  The thresholds of the
    requantization, (k + 1/2) output scales, are multiples of u/2 when the output's scale is at least the residual's, so
    no sum lies on one, where float32 and integers might round apart.
    """
    one = 2.0**RESIDUAL_FRACTION_BITS
    scale, step = accumulator_scale.double(), residual_scale.double()
    ratio = torch.round(step * one / (scale * affine.m.double())).clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)
    ratio[ratio == 0] = 1
    m = (step * one / (scale * ratio)).float()
    unit = scale * m.double() / one
    b = (torch.round(affine.b.double() / unit - _TIE_DISTANCE) + _TIE_DISTANCE) * unit
    affine.m.copy_(m)
    affine.b.copy_(b.float())


def export_qonnx(network: nn.Module, path: Path, input_shape: tuple[int, ...]) -> None:
    """Write a frozen network as QONNX (opset 13, static shapes, weights behind their Quant nodes) for one input shape.

    torch's tracing exporter is used because it turns an autograd function's ``symbolic`` into a custom node.
    """
    network.eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(input_shape),), path, dynamo=False, opset_version=OPSET,
            custom_opsets={QONNX_DOMAIN: QONNX_DOMAIN_VERSION}, do_constant_folding=False,
        )
    cleanup_model(ModelWrapper(str(path))).save(str(path))
