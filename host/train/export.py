"""From a trained network to a QONNX file that float32 execution and integer hardware agree on, bit for bit.

:func:`freeze` makes every constant final inside the torch model, which is therefore still the thing to measure;
:func:`export` has Brevitas write it::

    Quant(u8) -> [Conv(Quant(weight)) -> Mul m -> Add b -> (Add residual) -> Quant(u4)]... -> GlobalAveragePool
              -> Quant(u4) -> Flatten -> MatMul(Quant(weight)) -> Add bias
"""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from brevitas.export import export_qonnx
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model
from torch import Tensor, fx, nn
from torch.onnx import OnnxExporterError

from sentei.host.errors import InexactModel
from sentei.host.frontend import load
from sentei.host.train.loop import first_line
from sentei.host.train.prune import remove_masks
from sentei.host.train.quantize import residual_adds
from sentei.overlay.errors import SenteiError

OPSET = 13
RESIDUAL_FRACTION_BITS = 4
RESIDUAL_LIMIT = 2**15 - 1
_TIE_DISTANCE = 0.25


class ExportError(SenteiError, ValueError):
    """A network cannot be exported bit for bit."""


class Affine(nn.Module):
    """x * m + b per channel of an NCHW tensor: what batch normalization is once training has ended.

    m and b are (1, C, 1, 1) and stay apart from the weights, so that the quantized weights keep their own scale.
    """

    m: Tensor
    b: Tensor

    def __init__(self, m: Tensor, b: Tensor):
        super().__init__()
        self.register_buffer("m", m.reshape(1, -1, 1, 1))
        self.register_buffer("b", b.reshape(1, -1, 1, 1))

    @classmethod
    @torch.no_grad()
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> Affine:
        """The affine map of a batch norm's running statistics, computed in float64, rounded once."""
        mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
        gain = (norm.weight.double() if norm.affine else 1.0) / torch.sqrt(variance + norm.eps)
        gain[gain.abs() < 2.0**-20] = 2.0**-20  # a dead channel keeps an invertible map
        offset = (norm.bias.double() if norm.affine else 0.0) - mean * gain
        return cls(gain.float(), offset.float())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.m + self.b


@torch.no_grad()
def freeze(network: fx.GraphModule) -> None:
    """Turn a trained quantized network, in place, into the one that is exported.

    Batch norms become m and b, residual additions are snapped.  ExportError if an addition cannot be.
    """
    network.eval()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, Affine.from_batch_norm(child))
    for add in residual_adds(network):
        if add.output_scale < add.residual_scale:
            raise ExportError(f"{add.norm}: the scale behind a residual addition must be at least the residual's, "
                              f"{add.residual_scale}, not {add.output_scale}")
        snap_residual(cast(Affine, network.get_submodule(add.norm)), add.sum_scale, add.residual_scale)


@torch.no_grad()
def snap_residual(affine: Affine, accumulator_scale: float, residual_scale: float) -> None:
    """Move m and b to where the residual addition is integer arithmetic with 4 fraction bits, away from ties.

    With the accumulator a, the residual r (both integers) and u = accumulator_scale * m / 16, the block computes
    ``a*accumulator_scale*m + b + r*residual_scale = u * (16*a + b/u + R*r)``.  m moves so that R is an integer of at
    most 15 bits and a sign, b by less than u so that b/u is an integer plus 0.25.  The thresholds of the
    requantization, (k + 1/2) output scales, are multiples of u/2 when the output's scale is at least the residual's, so
    no sum lies on one, where float32 and integers might round apart.
    """
    one = 2.0**RESIDUAL_FRACTION_BITS
    ratio = torch.round(residual_scale * one / (accumulator_scale * affine.m.double()))
    ratio = ratio.clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)
    ratio[ratio == 0] = 1
    m = (residual_scale * one / (accumulator_scale * ratio)).float()
    unit = accumulator_scale * m.double() / one
    b = (torch.round(affine.b.double() / unit - _TIE_DISTANCE) + _TIE_DISTANCE) * unit
    affine.m.copy_(m)
    affine.b.copy_(b.float())


def export(network: nn.Module, path: Path, input_shape: tuple[int, ...]) -> None:
    """Write a frozen network as QONNX (opset 13, static shapes, weights behind Quant nodes) for one input shape.

    ExportError if ONNX has no operator for something in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_cpu = copy.deepcopy(network).cpu()
        try:
            export_qonnx(on_cpu, torch.zeros(input_shape), str(path), opset_version=OPSET, dynamo=False)
        except OnnxExporterError as error:
            raise ExportError(f"the network cannot be written as ONNX: {first_line(error)}") from error
    cleanup_model(ModelWrapper(str(path))).save(str(path))


def check_supported(network: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Refuse, while it is not trained yet, a quantized network that the compiler would refuse: its typed error.

    Whether arithmetic is exact depends on the trained numbers, and is not looked at.
    """
    untrained = copy.deepcopy(network)
    remove_masks(untrained)
    freeze(untrained)
    with TemporaryDirectory() as folder, suppress(InexactModel):
        export(untrained, path := Path(folder) / "untrained.onnx", input_shape)
        load(path)
