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
import math
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from brevitas.nn import QuantConv2d, QuantLinear
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sentei.host.train.kernel_size import fit_kernels_to_grid
from sentei.host.train.quantizers import (
    ActivationQuantizer,
    Precision,
    UnsupportedNetworkError,
    best_power_of_two,
    weight_quantizer,
)
from sentei.host.train.traced import (
    ADD,
    FLATTEN,
    MAX_POOL,
    MEAN_POOL,
    RELU,
    SHAPE,
    ChannelBias,
    check_layers,
    insert_behind,
    module_of,
    norm_behind,
    operand,
    residual_adds,
    separate_biases,
)


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
    check_layers(traced)
    separate_biases(traced)
    precision = precision or Precision()
    trial = _Quantization(copy.deepcopy(traced), calibration, precision, {})
    trial.run()
    return _Quantization(traced, calibration, precision, trial.median_scales()).run()


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
        elif isinstance(module, nn.ReLU | nn.ReLU6) or called in RELU:
            self._relu(node)
        elif called in ADD:
            self._add(node)
        elif isinstance(module, nn.MaxPool2d) or called in MAX_POOL:
            self._quantize_operand(node)
            self._execute(node)
            self._pass_on(node)
        elif isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d) or called in MEAN_POOL:
            self._quantize_operand(node)
            self._execute(node)
        elif isinstance(module, nn.Flatten | nn.Identity | nn.Dropout) or called in FLATTEN:
            self._execute(node)
            self._pass_on(node)
        elif node.op == "get_attr" or called in SHAPE:
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
        inserted = insert_behind(node, quantizer, name)
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
            scale = fit_kernels_to_grid(layer.weight, norm, bits)
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            raise UnsupportedNetworkError(
                f"{node.name}: padding must be numbers of zeros, not {layer.padding_mode} {layer.padding}"
            )
        quantized = quantized_layer(layer, bits, scale).to(self.calibration.device).eval()
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


@torch.no_grad()
def quantized_layer(layer: nn.Conv2d | nn.Linear, bits: int, scale: float) -> QuantConv2d | QuantLinear:
    """A layer with the same weights, which are rounded to a grid of that scale, and no bias."""
    quantizer = weight_quantizer(bits, scale)
    quantized: QuantConv2d | QuantLinear
    if isinstance(layer, nn.Linear):
        quantized = QuantLinear(layer.in_features, layer.out_features, False, weight_quant=quantizer)
    else:
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
    cast(nn.Parameter, quantized.weight).copy_(layer.weight)
    return quantized.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _kernel_size(norm: fx.Node) -> int:
    layer = module_of(operand(norm))
    return math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 0
