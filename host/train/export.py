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

from sentei.host.compiler.compile import compile_network
from sentei.host.errors import InexactModel
from sentei.host.frontend.importer import load
from sentei.host.train.checkpoint import first_line
from sentei.host.train.kernel_size import remove_parametrizations
from sentei.host.train.traced import residual_adds
from sentei.overlay.errors import SenteiError
from sentei.overlay.geometry import Geometry

OPSET = 13
MOST_LEVELS = 16  # of an activation
SMALLEST_STEP = 2.0**-10  # of a channel's sums that counts, in output steps


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
        offset = (norm.bias.double() if norm.affine else 0.0) - mean * gain
        return cls(gain.float(), offset.float())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.m + self.b


@torch.no_grad()
def freeze(network: fx.GraphModule) -> None:
    """Turn a trained quantized network, in place, into the one that is exported.

    Batch norms become m and b; those before a residual addition keep away from ties.  ExportError for an addition of
    tensors of different scales.
    """
    network.eval()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, Affine.from_batch_norm(child))
    for add in residual_adds(network):
        if add.output_scale != add.residual_scale:
            raise ExportError(
                f"{add.norm}: the scale behind a residual addition must be the residual's, "
                f"{add.residual_scale}, not {add.output_scale}; quantize the network again"
            )
        avoid_ties(cast(Affine, network.get_submodule(add.norm)), add.sum_scale, add.output_scale)


@torch.no_grad()
def avoid_ties(affine: Affine, sum_scale: float, output_scale: float) -> None:
    """Move b, by less than a step of the sums, to where no sum lies close to a rounding tie.

    A residual moves a sum by whole output steps.  Were a sum on a tie, half of the residuals would round it up, half
    down, and the sum would not decide alone how many steps it is worth.
    """
    step = (sum_scale * affine.m.double().abs()).clamp(min=output_scale * SMALLEST_STEP).flatten()[:, None]
    offset = affine.b.double().flatten()[:, None]
    ties = output_scale * (torch.arange(-2 * MOST_LEVELS, 2 * MOST_LEVELS, device=step.device) + 0.5)
    # Where b would put a sum on each of the ties, in steps on a circle.
    points = torch.remainder((ties - offset) / step, 1.0).sort(dim=1).values
    gaps = torch.diff(points, dim=1, append=points[:, :1] + 1)
    middles = torch.remainder(points + gaps / 2 + 0.5, 1.0) - 0.5
    middles[gaps < 0.5 / points.shape[1]] = 1.0
    nearest = middles.gather(1, middles.abs().argmin(dim=1, keepdim=True))
    affine.b.copy_((offset + nearest * step).float().view_as(affine.b))


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


def check_supported(network: fx.GraphModule, input_shape: tuple[int, ...], geometry: Geometry | None) -> None:
    """Refuse, while it is not trained yet, a quantized network that the compiler would refuse: its typed error.

    Without a geometry, its size is not looked at; whether arithmetic is exact depends on the trained numbers.
    """
    untrained = copy.deepcopy(network)
    remove_parametrizations(untrained)
    freeze(untrained)
    with TemporaryDirectory() as folder, suppress(InexactModel):
        export(untrained, path := Path(folder) / "untrained.onnx", input_shape)
        loaded = load(path)
        if geometry is not None:
            compile_network(loaded, geometry)
