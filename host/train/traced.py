"""Networks traced with torch.fx: what a node is, what is before and behind it, and what can be quantized."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import cast

import torch
from brevitas.nn import QuantConv2d
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sentei.host.train.quantizers import ActivationQuantizer, UnsupportedNetworkError


class ChannelBias(nn.Module):
    """Adds a bias to each channel of (N, C, ...), behind the exact sums of a convolution or a linear layer."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(-1, *[1] * (x.dim() - 2))


FLATTEN = (torch.flatten, "flatten", "view", "reshape")
SHAPE = (getattr, operator.getitem, "size", "dim")
ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
RELU = (F.relu, F.relu6, torch.relu, "relu", "relu_")
MEAN_POOL = (F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean")
MAX_POOL = (F.max_pool2d,)


def module_of(node: object) -> nn.Module | None:
    """The module that a node of a traced network calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return cast(fx.GraphModule, node.graph.owning_module).get_submodule(str(node.target))
    return None


def operand(node: fx.Node) -> fx.Node:
    return cast(fx.Node, node.args[0])


def norm_behind(node: fx.Node) -> nn.BatchNorm2d | None:
    """The batch norm that alone reads a convolution's output."""
    users = list(node.users)
    module = module_of(users[0]) if len(users) == 1 else None
    return module if isinstance(module, nn.BatchNorm2d) else None


def insert_behind(node: fx.Node, module: nn.Module, name: str) -> fx.Node:
    """Insert a call of a new module behind a node; all that read the node read the call instead."""
    graph = node.graph
    cast(fx.GraphModule, graph.owning_module).add_submodule(name, module)
    with graph.inserting_after(node):
        inserted = graph.call_module(name, (node,))
    node.replace_all_uses_with(inserted, delete_user_cb=lambda user: user is not inserted)
    return inserted


def check_layers(traced: fx.GraphModule) -> None:
    seen = set()
    for node in traced.graph.nodes:
        layer = module_of(node)
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and layer in seen:
            raise UnsupportedNetworkError(f"{node.name}: {node.target} is called twice; each call needs its own layer")
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is None:
            raise UnsupportedNetworkError(f"{node.name}: a batch norm must track its running statistics")
        seen.add(layer)


@torch.no_grad()
def separate_biases(traced: fx.GraphModule) -> None:
    """Take the biases out of convolutions and linear layers: into the batch norm behind, or into an addition."""
    for node in list(traced.graph.nodes):
        layer = module_of(node)
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.bias is None:
            continue
        norm = norm_behind(node)
        if norm is not None:
            cast(Tensor, norm.running_mean).sub_(layer.bias)
        else:
            insert_behind(node, ChannelBias(layer.bias), f"{node.name}_bias")
        layer.bias = None


@dataclass(frozen=True)
class ResidualAdd:
    """An addition in a quantized network: a convolution's sum, behind its norm, plus a quantized tensor."""

    norm: str  # name of the module behind the convolution
    sum_scale: float  # of the convolution's integer sums
    residual_scale: float
    output_scale: float  # of a quantizer that reads the sum: one that differs from the residual's, if any


def residual_adds(network: fx.GraphModule) -> list[ResidualAdd]:
    """The additions of a network that :func:`quantize` made. UnsupportedNetworkError if one is not quantized."""
    found = []
    for node in network.graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in ADD:
            sources = [_quantizer_before(value) for value in node.args]
            index = 0 if sources[1] is not None else 1
            norm, residual = node.args[index], cast(ActivationQuantizer, sources[1 - index])
            layer = operand(norm)
            weight = cast(QuantConv2d, module_of(layer)).quant_weight()
            before = cast(ActivationQuantizer, _quantizer_before(operand(layer)))
            behind = [module for user in node.users if isinstance(module := module_of(user), ActivationQuantizer)]
            if not behind:
                raise UnsupportedNetworkError(
                    f"{node.name}: a ReLU, a pooling, a convolution or another addition must read the sum, at once"
                )
            different = [quantizer.scale for quantizer in behind if quantizer.scale != residual.scale]
            found.append(
                ResidualAdd(
                    str(norm.target),
                    float(weight.scale) * before.scale,
                    residual.scale,
                    different[0] if different else residual.scale,
                )
            )
    return found


def _quantizer_before(node: fx.Node) -> ActivationQuantizer | None:
    """The quantizer whose integers a node hands on, if it does."""
    module = module_of(node)
    if isinstance(module, ActivationQuantizer):
        return module
    passes = isinstance(module, nn.Flatten | nn.Identity | nn.Dropout | nn.MaxPool2d)
    return _quantizer_before(operand(node)) if passes or node.target in (*FLATTEN, *MAX_POOL) else None
