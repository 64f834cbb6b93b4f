"""Goes on from a finished model: a quantized network takes over the weights, scales and norms of a QONNX file.

The file must be of the same network, as :func:`sentei.host.train.export.export` writes it.  Its graph and the traced
network are walked together, from the output back to the image::

    ActivationQuantizer   BatchNorm2d   QuantConv2d   ActivationQuantizer
      Quant         <--     Add <- Mul <-- Conv  <--    Quant               <-- ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import onnx
import torch
from brevitas.nn import QuantConv2d, QuantLinear
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, fx, nn

from sentei.host.train.checkpoint import CheckpointError, first_line
from sentei.host.train.quantize import quantized_layer
from sentei.host.train.quantizers import ActivationQuantizer
from sentei.host.train.traced import ADD, ChannelBias, module_of, operand


def take_over(network: fx.GraphModule, path: Path, batches: Iterable[Tensor]) -> None:
    """Give a quantized network, before it is pruned, all that the model at `path` computes with.

    A model has no batch norms any more, only what they come to: their statistics are measured over `batches`, inputs
    (N, C, H, W), and their gains and offsets are such that the function stays.  CheckpointError if the file is of
    another network, or of other bits.
    """
    try:
        graph = onnx.load(path).graph
    except (OSError, ValueError, DecodeError) as error:
        raise CheckpointError(f"{path} is no ONNX file: {first_line(error)}") from error
    file = _File(path, graph)
    output = next(node for node in network.graph.nodes if node.op == "output")
    file.walk(operand(output), graph.output[0].name)
    network.recompile()
    _measure(network, batches)


class _File:
    """A model's tensors and the nodes that compute them."""

    def __init__(self, path: Path, graph: onnx.GraphProto):
        self.path = path
        self.constants = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
        }
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
        if tensor is None or tensor.numel() != math.prod(shape):
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
            layer = self.producer(node, value, "Conv", "MatMul", "Gemm")
            quant = self.producer(node, layer.input[1], "Quant")
            bits = int(module.weight_quant.bit_width())
            weight = self.constant(node, quant.input[0], module.weight.shape)
            if isinstance(module, QuantLinear) and weight.shape != module.weight.shape:
                weight = weight.T
            module.weight.copy_(weight)
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
