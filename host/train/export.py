"""From a trained network to a QONNX file that float32 execution and integer hardware agree on, bit for bit.

:func:`freeze` makes every constant final inside the torch model, which is therefore still the thing to measure;
:func:`export` has Brevitas write it::

    Quant(u8) -> [Conv(Quant(weight)) -> Mul m -> Add b -> (Add residual) -> Quant(u4)]... -> GlobalAveragePool
              -> Quant(u4) -> Flatten -> MatMul(Quant(weight)) -> Add bias

:func:`take_over` is the way back: a quantized network gets the weights, scales and norms of such a file. The file's
graph and the traced network are walked together, from the output back to the image::

    ActivationQuantizer   BatchNorm2d   QuantConv2d   ActivationQuantizer
      Quant         <--     Add <- Mul <-- Conv  <--    Quant               <-- ...
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import onnx
import torch
from brevitas.export import export_qonnx
from brevitas.nn import QuantConv2d, QuantLinear
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model
from torch import Tensor, fx, nn
from torch.onnx import OnnxExporterError

from sentei.host.compiler.compile import compile_network
from sentei.host.errors import InexactModel
from sentei.host.frontend.importer import load
from sentei.host.train.checkpoint import CheckpointError, first_line, load_onnx
from sentei.host.train.kernel_size import remove_parametrizations
from sentei.host.train.quantize import quantized_layer
from sentei.host.train.quantizers import ActivationQuantizer
from sentei.host.train.traced import ADD, ChannelBias, module_of, operand, residual_adds
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


def take_over(network: fx.GraphModule, path: Path, batches: Iterable[Tensor]) -> None:
    """Give a quantized network, before it is pruned, all that the model at `path` computes with.

    A model has no batch norms any more, only what they come to: their statistics are measured over `batches`, inputs
    (N, C, H, W), and their gains and offsets are such that the function stays.  CheckpointError if the file is of
    another network, or of other bits.
    """
    file = _File(path)
    output = next(node for node in network.graph.nodes if node.op == "output")
    file.walk(operand(output), file.output)
    network.recompile()
    _measure(network, batches)


class _File:
    """A model's tensors and the nodes that compute them."""

    def __init__(self, path: Path):
        self.path = path
        graph, self.constants = load_onnx(path)
        self.output = graph.output[0].name
        self.producers = {name: node for node in graph.node for name in node.output}
        self.done: set[fx.Node] = set()

    def producer(self, node: fx.Node, value: str, *operators: str) -> onnx.NodeProto:
        found = self.producers.get(value)
        if found is None or (operators and found.op_type not in operators):
            there = "nothing" if found is None else found.op_type
            raise CheckpointError(
                f"{self.path} is no model of this network: where it has {node.name}, the file has {there}"
            )
        return found

    def constant(self, node: fx.Node, value: str, shape: Iterable[int]) -> Tensor:
        tensor = self.constants.get(value)
        if tensor is None or tensor.squeeze().shape != torch.Size(size for size in shape if size != 1):
            there = "no constant" if tensor is None else f"{tuple(tensor.shape)}"
            raise CheckpointError(
                f"{self.path} is no model of this network: {node.name} has the shape {tuple(shape)}, not {there}"
            )
        return tensor

    def grid(self, node: fx.Node, quant: onnx.NodeProto, bits: int) -> float:
        """The scale of a Quant node. CheckpointError if its bits are others."""
        scale, there = (self.constant(node, quant.input[place], ()) for place in (1, 3))
        if int(there) != bits:
            raise CheckpointError(f"{self.path}: {node.name} has {int(there)} bits there and {bits} here")
        return float(scale)

    @torch.no_grad()
    def walk(self, node: fx.Node, value: str) -> None:
        """Have a node of the network, and all before it, take over what computes a value in the file."""
        module = module_of(node)
        if node.op == "placeholder" or node in self.done:
            return
        self.done.add(node)
        if isinstance(module, nn.Identity | nn.Dropout):
            self.walk(operand(node), value)
        elif isinstance(module, ActivationQuantizer):
            quant = self.producer(node, value, "Quant")
            scale = self.grid(node, quant, int(module.act_quant.bit_width()))
            signed = next(attribute.i for attribute in quant.attribute if attribute.name == "signed")
            self.replace(node, ActivationQuantizer(int(module.act_quant.bit_width()), bool(signed), scale))
            self.walk(operand(node), quant.input[0])
        elif isinstance(module, QuantConv2d | QuantLinear):
            layer = self.producer(node, value, "MatMul" if isinstance(module, QuantLinear) else "Conv")
            quant = self.producer(node, layer.input[1], "Quant")
            bits = int(module.weight_quant.bit_width())
            shape = module.weight.shape[::-1] if isinstance(module, QuantLinear) else module.weight.shape
            weight = self.constant(node, quant.input[0], shape)
            module.weight.copy_(weight.T if isinstance(module, QuantLinear) else weight)
            self.replace(node, quantized_layer(module, bits, self.grid(node, quant, bits)))
            self.walk(operand(node), layer.input[0])
        elif isinstance(module, nn.BatchNorm2d):
            add = self.producer(node, value, "Add")
            multiply = self.producer(node, add.input[0], "Mul")
            shape = (module.num_features,)
            gain, offset = (self.constant(node, part.input[1], shape).flatten() for part in (multiply, add))
            cast(Tensor, module.running_mean).zero_()
            cast(Tensor, module.running_var).fill_(1 - module.eps)
            module.weight.copy_(gain)
            module.bias.copy_(offset)
            self.walk(operand(node), multiply.input[0])
        elif isinstance(module, ChannelBias):
            add = self.producer(node, value, "Add")
            module.bias.copy_(self.constant(node, add.input[1], module.bias.shape).flatten())
            self.walk(operand(node), add.input[0])
        elif node.target in ADD:
            add = self.producer(node, value, "Add")
            for argument, tensor in zip(node.args, add.input, strict=True):
                self.walk(cast(fx.Node, argument), tensor)
        else:
            self.walk(operand(node), self.producer(node, value).input[0])

    def replace(self, node: fx.Node, module: nn.Module) -> None:
        network = cast(fx.GraphModule, node.graph.owning_module)
        device = next(network.parameters()).device
        network.set_submodule(str(node.target), module.to(device).eval())


@torch.no_grad()
def _measure(network: fx.GraphModule, batches: Iterable[Tensor]) -> None:
    """Batch norms that compute x * weight + bias get statistics, and weights and biases that undo them."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}
    count = dict.fromkeys(norms, 0)

    def look(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        count[norm] += values.shape[1]
        sums[norm] += torch.stack([values.sum(1), values.square().sum(1)]).to(sums[norm])

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    network.eval()
    for inputs in batches:
        network(inputs)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        mean, square = sums[norm] / count[norm]
        variance = (square - mean.square()).clamp_min(0.0)
        gain, offset = norm.weight.cpu().double(), norm.bias.cpu().double()
        cast(Tensor, norm.running_mean).copy_(mean)
        cast(Tensor, norm.running_var).copy_(variance)
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
        norm.bias.copy_(offset + gain * mean)
