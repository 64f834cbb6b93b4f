"""From a float network to the same network with Brevitas quantizers: what the array computes, still trainable.

    network = quantize(network, calibration)      # any nn.Module of convolutions, batch norms, ReLUs, additions...

The network is traced with torch.fx and rebuilt operation by operation:

==============================  =======================================================================================
in the network                  in the quantized network
==============================  =======================================================================================
input                           unsigned 8-bit quantizer of scale 2^-8: pixel / 256 is exact
Conv2d, Linear                  4-bit weights (the first and the last layer: 8); a bias is added after the exact sums
BatchNorm2d                     stays, and becomes a multiply and an add per channel when the network is exported
ReLU, ReLU6                     unsigned 4-bit quantizer, which clips at 0 and at its largest value
x + y                           one is a convolution's sum; the other, if not quantized yet, gets a signed quantizer;
                                the result has the scale of the other
pooling                         max: stays; mean: with a quantizer behind it
Flatten, Dropout, Identity      stay
==============================  =======================================================================================

Every scale is a power of two and every zero point 0.  With such scales, dividing and multiplying by them is exact in
float32: what the network computes between two quantizers is integer arithmetic, plus one rounded float operation for
each multiply and add behind a convolution.

A power of two costs no accuracy where a batch norm follows: the kernel of each channel is first multiplied by the
factor that makes it fit the layer's grid, which the batch norm undoes; :func:`hold_kernel_sizes` keeps it so.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import ScalingImplType
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from brevitas.quant.fixed_point import (
    Int8ActPerTensorFixedPoint,
    Int8WeightPerTensorFixedPoint,
    Uint8ActPerTensorFixedPoint,
)
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

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


class ChannelBias(nn.Module):
    """Adds a bias to each channel of (N, C, ...), behind the exact sums of a convolution or a linear layer."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(-1, *[1] * (x.dim() - 2))


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


class KernelSize(nn.Module):
    """Parametrization of a convolution's weight (O, I, kh, kw): each output channel's kernel, at a root mean square.

    Zeros do not count, so where kernels are pruned, what they keep has that size.  The batch norm behind the
    convolution undoes it (weight normalization: Salimans and Kingma 2016, arXiv:1602.07868).
    """

    def __init__(self, size: float):
        super().__init__()
        self.size = size

    def forward(self, weight: Tensor) -> Tensor:
        kernel = (1, 2, 3)
        energy = weight.square().sum(kernel, keepdim=True)
        mean = energy / weight.ne(0).sum(kernel, keepdim=True).clamp_min(1)
        return weight * (self.size * torch.where(energy > 0, mean, 1.0).rsqrt())


def hold_kernel_sizes(network: fx.GraphModule) -> None:
    """Have the kernels in front of batch norms fit their grids, however training and pruning change them.

    For a quantized network, with its masks if it has any; :func:`remove_parametrizations` ends it.  The fewer elements
    a kernel keeps, the larger they grow in training: left alone, nearly all weights of a deeply pruned network end up
    beyond the ends of their grids.
    """
    for node in network.graph.nodes:
        layer = module_of(node)
        if isinstance(layer, QuantConv2d) and norm_behind(node) is not None:
            grid = layer.weight_quant
            size = best_size(int(grid.bit_width())) * float(grid.scale())
            parametrize.register_parametrization(layer, "weight", KernelSize(size))


@torch.no_grad()
def remove_parametrizations(network: nn.Module) -> None:
    """Write masks and sizes into the weights, and leave plain layers behind.

    Copies of the network keep theirs: torch's remove_parametrizations would take them away from the class that a layer
    shares with its copies.
    """
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            weight = nn.Parameter(cast(Tensor, module.weight))
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            module.weight = weight


_FLATTEN = (torch.flatten, "flatten", "view", "reshape")
_SHAPE = (getattr, operator.getitem, "size", "dim")
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU = (F.relu, F.relu6, torch.relu, "relu", "relu_")
_MEAN_POOL = (F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean")
_MAX_POOL = (F.max_pool2d,)


def quantize(network: nn.Module, calibration: Tensor, precision: Precision | None = None) -> fx.GraphModule:
    """A quantized copy of a float network, with the same weights and with activation scales that stay as they are.

    `calibration` are inputs (N, C, H, W) float32 in [0, 1): the scale of each activation is the power of two of least
    squared error over them.  UnsupportedNetworkError names the operation that cannot be quantized.
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network)).eval()
    except Exception as error:
        raise UnsupportedNetworkError(
            f"the network cannot be traced: {error}; its forward must not depend on the values of tensors"
        ) from error
    _check_layers(traced)
    _separate_biases(traced)
    precision = precision or Precision()
    trial = _Quantization(copy.deepcopy(traced), calibration, precision, {})
    trial.run()
    return _Quantization(traced, calibration, precision, trial.median_scales()).run()


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


def _insert_behind(node: fx.Node, module: nn.Module, name: str) -> fx.Node:
    """Insert a call of a new module behind a node; all that read the node read the call instead."""
    graph = node.graph
    cast(fx.GraphModule, graph.owning_module).add_submodule(name, module)
    with graph.inserting_after(node):
        inserted = graph.call_module(name, (node,))
    node.replace_all_uses_with(inserted, delete_user_cb=lambda user: user is not inserted)
    return inserted


def _check_layers(traced: fx.GraphModule) -> None:
    seen = set()
    for node in traced.graph.nodes:
        layer = module_of(node)
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and layer in seen:
            raise UnsupportedNetworkError(f"{node.name}: {node.target} is called twice; each call needs its own layer")
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is None:
            raise UnsupportedNetworkError(f"{node.name}: a batch norm must track its running statistics")
        seen.add(layer)


@torch.no_grad()
def _separate_biases(traced: fx.GraphModule) -> None:
    """Take the biases out of convolutions and linear layers: into the batch norm behind, or into an addition."""
    for node in list(traced.graph.nodes):
        layer = module_of(node)
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.bias is None:
            continue
        norm = norm_behind(node)
        if norm is not None:
            cast(Tensor, norm.running_mean).sub_(layer.bias)
        else:
            _insert_behind(node, ChannelBias(layer.bias), f"{node.name}_bias")
        layer.bias = None


class _Quantization:
    """Rebuilds a traced network operation by operation, and runs each on the calibration images.

    A value is *quantized* (integers times a power of two) or a *sum* (anything else, as a convolution's output).
    Values that are added to one another share a scale: they are one *stream*, called after its first quantizer.
    `stream_scales` gives the scales of streams; the others take that of their first value.
    """

    def __init__(
        self, traced: fx.GraphModule, calibration: Tensor, precision: Precision, stream_scales: dict[str, float]
    ):
        self.traced, self.calibration, self.precision = traced, calibration, precision
        self.stream_scales = dict(stream_scales)
        layers = [node for node in traced.graph.nodes if isinstance(module_of(node), nn.Conv2d | nn.Linear)]
        if not layers:
            raise UnsupportedNetworkError("the network has no convolution and no linear layer: nothing to quantize")
        self.first, self.last = layers[0], layers[-1]
        self.values: dict[fx.Node, Any] = {}
        self.streams: dict[fx.Node, str] = {}  # of quantized values, and of sums that a residual was added to
        self.quantized: set[fx.Node] = set()
        self.wanted: dict[str, list[float]] = {}  # the scales that the values of each stream would choose

    @torch.no_grad()
    def run(self) -> fx.GraphModule:
        for node in list(self.traced.graph.nodes):
            self._rebuild(node)
        residual_adds(self.traced)
        self.traced.delete_all_unused_submodules()
        self.traced.graph.lint()
        self.traced.recompile()
        return self.traced

    def median_scales(self) -> dict[str, float]:
        """The median of the scales that the values of each stream would choose, of two the larger."""
        return {name: sorted(scales)[len(scales) // 2] for name, scales in self.wanted.items()}

    def _rebuild(self, node: fx.Node) -> None:
        module = module_of(node)
        called = node.target if node.op in ("call_function", "call_method") else None
        if node.op == "placeholder":
            self._input(node)
        elif node.op == "output":
            pass
        elif isinstance(module, nn.Conv2d | nn.Linear):
            self._layer(node, module)
        elif isinstance(module, nn.BatchNorm2d | ChannelBias):
            self._execute(node)
        elif isinstance(module, nn.ReLU | nn.ReLU6) or called in _RELU:
            self._relu(node)
        elif called in _ADD:
            self._add(node)
        elif isinstance(module, nn.MaxPool2d) or called in _MAX_POOL:
            self._quantize_operand(node)
            self._execute(node)
            self._pass_on(node)
        elif isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d) or called in _MEAN_POOL:
            self._quantize_operand(node)
            self._execute(node)
        elif isinstance(module, nn.Flatten | nn.Identity | nn.Dropout) or called in _FLATTEN:
            self._execute(node)
            self._pass_on(node)
        elif node.op == "get_attr" or called in _SHAPE:
            self._execute(node)
        else:
            what = type(module).__name__ if module is not None else getattr(called, "__name__", str(called))
            raise UnsupportedNetworkError(
                f"{node.name}: {what} cannot be quantized; convolutions, batch norms, ReLU, "
                "additions, pooling and linear layers can"
            )

    def _execute(self, node: fx.Node) -> None:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda value: self.values[value])
        module = module_of(node)
        if module is not None:
            self.values[node] = module(*args, **kwargs)
        elif node.op == "call_method":
            self.values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "get_attr":
            self.values[node] = operator.attrgetter(str(node.target))(self.traced)
        else:
            self.values[node] = cast(Callable, node.target)(*args, **kwargs)

    def _pass_on(self, node: fx.Node) -> None:
        """A node's value is what its operand's is."""
        if operand(node) in self.streams:
            self.streams[node] = self.streams[operand(node)]
        if operand(node) in self.quantized:
            self.quantized.add(node)

    def _quantize(self, node: fx.Node, bits: int, signed: bool, scale: float | None = None) -> fx.Node:
        """Put a quantizer behind a node; of the given scale, or of its stream's."""
        name = f"{node.name}_quantizer"
        stream = self.streams.get(node, name)
        if scale is None:
            wanted = best_power_of_two(self.values[node], bits, signed)
            self.wanted.setdefault(stream, []).append(wanted)
            scale = self.stream_scales.setdefault(stream, wanted)
        quantizer = ActivationQuantizer(bits, signed, scale).to(self.calibration.device).eval()
        inserted = _insert_behind(node, quantizer, name)
        self._execute(inserted)
        self.streams[inserted] = stream
        self.quantized.add(inserted)
        return inserted

    def _quantize_operand(self, node: fx.Node) -> None:
        """Put a quantizer in front of a node if its operand is a sum."""
        value = operand(node)
        if value not in self.quantized:
            self._quantize(value, self.precision.activations, signed=bool(self.values[value].min() < 0))

    def _input(self, node: fx.Node) -> None:
        if self.values:
            raise UnsupportedNetworkError(f"{node.name}: a network has one input, an image")
        self.values[node] = self.calibration
        self._quantize(node, self.precision.image, signed=False, scale=2.0**-self.precision.image)

    def _layer(self, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> None:
        self._quantize_operand(node)
        bits = (
            self.precision.first
            if node is self.first
            else self.precision.last
            if node is self.last
            else self.precision.weights
        )
        norm = norm_behind(node)
        if norm is None:
            scale = best_power_of_two(layer.weight, bits, True, True)
        else:
            scale = _fit_kernels_to_grid(layer.weight, norm, bits)
        quantizer = weight_quantizer(bits, scale)
        if isinstance(layer, nn.Linear):
            quantized: nn.Module = QuantLinear(layer.in_features, layer.out_features, False, weight_quant=quantizer)
        elif layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            quantized = QuantConv2d(
                layer.in_channels,
                layer.out_channels,
                cast(Any, layer.kernel_size),
                cast(Any, layer.stride),
                cast(Any, layer.padding),
                cast(Any, layer.dilation),
                layer.groups,
                bias=False,
                weight_quant=quantizer,
            )
        else:
            raise UnsupportedNetworkError(
                f"{node.name}: padding must be numbers of zeros, not {layer.padding_mode} {layer.padding}"
            )
        cast(nn.Parameter, quantized.weight).copy_(layer.weight)
        quantized = quantized.to(self.calibration.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.traced.set_submodule(str(node.target), quantized)
        self._execute(node)

    def _relu(self, node: fx.Node) -> None:
        """A ReLU and the quantizer behind it are one: an unsigned quantizer."""
        value = operand(node)
        bounded = isinstance(module_of(node), nn.ReLU6) or node.target is F.relu6
        self.values[node] = (F.relu6 if bounded else F.relu)(self.values[value])
        if value in self.streams:
            self.streams[node] = self.streams[value]
        quantizer = self._quantize(node, self.precision.activations, signed=False)
        quantizer.args = (value,)
        node.graph.erase_node(node)

    def _add(self, node: fx.Node) -> None:
        operands = [value for value in node.args if isinstance(value, fx.Node)]
        sums = [value for value in operands if isinstance(module_of(value), nn.BatchNorm2d) and _kernel_size(value)]
        if len(operands) != 2 or not sums:
            raise UnsupportedNetworkError(
                f"{node.name}: one operand of an addition must be a convolution with a "
                "batch norm behind it, the other a tensor"
            )
        kept = max(sums, key=_kernel_size)
        other = operands[1] if operands[0] is kept else operands[0]
        if other not in self.quantized:
            other = self._quantize(other, self.precision.activations, signed=bool(self.values[other].min() < 0))
        self._execute(node)
        self.streams[node] = self.streams[other]


def _kernel_size(norm: fx.Node) -> int:
    layer = module_of(operand(norm))
    return math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 0


def _fit_kernels_to_grid(weight: Tensor, norm: nn.BatchNorm2d, bits: int) -> float:
    """Multiply the kernel of each output channel so that it fits its layer's grid, and have the batch norm undo it.

    Returns the scale of the layer's grid: the power of two nearest to the median of what the channels want, so that
    the weights stay about as large as they were.
    """
    scales = weight.flatten(1).square().mean(dim=1).sqrt().clamp_min(2.0**-20) / best_size(bits)
    scale = 2.0 ** round(math.log2(scales.median().item()))
    factors = scale / scales
    weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    if norm.affine:  # the norm's epsilon does not grow with the variance
        grown = variance * factors.square() + norm.eps
        norm.weight.mul_((grown / (variance + norm.eps)).sqrt() / factors)
    mean.mul_(factors)
    variance.mul_(factors.square())
    return scale


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
        if node.op in ("call_function", "call_method") and node.target in _ADD:
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
    return _quantizer_before(operand(node)) if passes or node.target in (*_FLATTEN, *_MAX_POOL) else None
