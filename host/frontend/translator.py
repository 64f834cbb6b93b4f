"""The walk over a model's nodes: each becomes a value of the network that is being made (see `values.py`).

Constants are folded here; every operator has a handler in one of the modules of `operators/`, which extends an
activation's float chain, starts a new accumulator or, a quantizer, ends one. What has no handler is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeGuard

import numpy as np
import onnx

from sentei.host.arithmetic.float_chain import Chain, start_of_sum
from sentei.host.arithmetic.halves import NIBBLE
from sentei.host.errors import MissingScale, UnsupportedAttribute, UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.axes import Axes, channels_first, from_model, is_map, sizes, tidy
from sentei.host.frontend.builder import Builder, required
from sentei.host.frontend.model_file import STANDARD_DOMAINS, Node, evaluate
from sentei.host.frontend.values import Activation, Constant, Joined, Levels, RawInput, Tail, Value
from sentei.host.network.ir import ACCUMULATOR_LIMIT, Conv, Pads, Pool, Term, accumulator_range, kernel_of
from sentei.overlay.geometry import WIDE_BITS

QUANT_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
NO_PADS = Pads()
NOT_FOLDED = ("QuantizeLinear", "DequantizeLinear")  # they make levels of constants
PREPROCESSING = ("Add", "BatchNormalization", "Clip", "Div", "LeakyRelu", "Mul", "Neg", "PRelu", "Relu", "Sub")
MOVES = ("Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze")
BEFORE_QUANT = (*MOVES, *PREPROCESSING, "Cast", "DequantizeLinear", "QuantizeLinear")
KEEP_QUANTIZATION = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
REMEDIES = {
    "FloatQuant": "use integer Quant nodes",
}


Handler: TypeAlias = "Callable[[Translator, Node], Value | dict[str, Value]]"


def is_constant(value: Value | None) -> TypeGuard[Constant | None]:
    """Whether an input is known when compiling, or left out."""
    return value is None or isinstance(value, Constant)


@dataclass
class Translator:
    """Walks nodes in order; `values` holds the result of each, `builder` the network."""

    opsets: tuple[onnx.OperatorSetIdProto, ...]
    values: dict[str, Value]
    handlers: dict[str, Handler]  # of ONNX's own operators
    quantizers: dict[str, Handler]  # of QUANT_DOMAINS
    tails: dict[str, Handler]  # of a `Tail`
    of_joined: Handler  # of a `Joined`
    batch: int = 1
    builder: Builder = field(default_factory=Builder)

    def translate(self, node: Node) -> None:
        """Compute the node's outputs; raises an `UnsupportedModel` that names the node."""
        inputs = [self.value(node, name) if name else None for name in node.inputs]
        constants = [value for value in inputs if is_constant(value)]
        standard = node.domain in STANDARD_DOMAINS
        if any(isinstance(value, Joined) for value in inputs) and node.op_type != "Shape":
            result = self.of_joined(self, node)
        elif node.domain in QUANT_DOMAINS and node.op_type in self.quantizers:
            result = self.quantizers[node.op_type](self, node)
        elif standard and node.op_type not in NOT_FOLDED and len(constants) == len(inputs):
            result = self.fold(node, constants)
        elif node.op_type in self.tails and any(isinstance(value, Tail) and not value.stored for value in inputs):
            result = self.tails[node.op_type](self, node)
        elif standard and node.op_type in self.handlers:
            self.require_quantized(node, inputs)
            result = self.handlers[node.op_type](self, node)
        else:
            of_domain = "" if standard else f" of domain {node.domain!r}"
            raise UnsupportedOperator(
                f"{node}: operator {node.op_type}{of_domain} is not supported: "
                f"{REMEDIES.get(node.op_type, 'docs/models.md lists those that are')}"
            )
        self.values |= result if isinstance(result, dict) else {node.outputs[0]: result}

    def value(self, node: Node, name: str) -> Value:
        """What an earlier node computed."""
        if name not in self.values:
            raise UnsupportedOperator(f"{node}: reads {name!r}, a secondary output: only first outputs are supported")
        return self.values[name]

    def require_quantized(self, node: Node, inputs: list[Value | None]) -> None:
        """Refuse arithmetic on the graph's input before it is known which integers that holds."""
        raw = next((value for value in inputs if isinstance(value, RawInput)), None)
        if raw is not None and node.op_type not in BEFORE_QUANT:
            raise MissingScale(
                f"{node}: reads the graph's input {raw.name!r}, and the model does not say which integers that holds: "
                "say it, as --input uint8, or --input int8:1/128 with what one step means, or put a Quant node of at "
                "most 8 bits before this node"
            )

    # Constants

    def fold(self, node: Node, inputs: list[Constant | None]) -> Constant:
        """Evaluate a node of constants; moves of elements keep a constant's quantization."""
        arrays = [None if value is None else value.values for value in inputs]
        if node.op_type in KEEP_QUANTIZATION:
            source = required(inputs[0], "input 0")
            if source.levels is not None:
                parts = (source.values, source.levels.astype(np.float32), source.scale)
                moved = [evaluate(node, [part, *arrays[1:]], self.opsets) for part in parts]
                return Constant(moved[0], moved[1].astype(np.int64), moved[2], source.bits)
        return Constant(evaluate(node, arrays, self.opsets))

    def array(self, node: Node, index: int, what: str) -> np.ndarray | None:
        """The constant at an input; None if it is left out."""
        if index >= len(node.inputs) or not node.inputs[index]:
            return None
        value = self.values[node.inputs[index]]
        if not isinstance(value, Constant):
            raise UnsupportedAttribute(
                f"{node}: {what} must be constant, not computed from the input: make it constant"
            )
        return value.values

    def activation(self, node: Node, index: int = 0) -> Activation:
        """The activations at an input."""
        return self.activations_in(node, self.values[node.inputs[index]])

    def activations_in(self, node: Node, value: Value) -> Activation:
        """The activations that a value must be."""
        if isinstance(value, Tail):
            if value.stored is None:
                raise value.refusal
            return value.stored()
        if isinstance(value, Levels):
            raise UnsupportedOperator(f"{node}: reads integers of a QuantizeLinear: put a DequantizeLinear before it")
        if not isinstance(value, Activation):
            raise UnsupportedOperator(f"{node}: must read activations, not a constant: swap the operands")
        return value

    def operand(self, node: Node, index: int = 0) -> RawInput | Activation:
        """What an elementwise operator works on: activations, or the graph's input while it is preprocessed."""
        value = self.values[node.inputs[index]]
        return value if isinstance(value, RawInput) else self.bare_activation(node, index)

    def bare_activation(self, node: Node, index: int = 0) -> Activation:
        """The activations at an input of a node into which padding cannot be merged."""
        return self.bare(node, self.values[node.inputs[index]])

    def bare(self, node: Node, value: Value) -> Activation:
        """The activations that a value must be, without padding."""
        activation = self.activations_in(node, value)
        if any(activation.pads):
            raise UnsupportedOperator(
                f"{node}: follows {activation.label}: a Pad can only be merged into a convolution or an average pool: "
                "give the padding to that operator"
            )
        return activation

    def map_of(self, node: Node, activation: Activation) -> Activation:
        """The activation of an operator that reads a map, (N, C, H, W) or (N, C, L)."""
        if is_map(activation.axes, activation.shape):
            return activation
        parts = channels_first(activation.axes)
        if parts is not None and activation.plain and self.builder.is_fresh_input(activation):
            return self.builder.turn_input(activation, parts, self.values)
        found = ", ".join(map(str, sizes(activation.axes, activation.shape)))
        raise UnsupportedAttribute(
            f"{node}: must read a map (N, C, H, W) or (N, C, L), not (N, {found}) made from channels, rows and columns "
            f"{tuple(activation.shape)}: pool and convolve before flattening, with the channels first"
        )

    # What handlers share

    def accumulate(
        self,
        node: Node,
        activation: Activation,
        op: Conv | Pool,
        scale: np.ndarray,
        axes: Axes,
        bias: np.ndarray | None = None,
    ) -> Activation:
        """The activation of an accumulator whose products have `scale` (C,) times the scale of its input; the model has
        it with `axes`."""
        source = activation.stored_wide.whole if activation.stored_wide else self.builder.tensors[activation.source]
        shape = self.builder.extent_of(op)
        if min(shape) < 1:
            raise UnsupportedAttribute(
                f"{node}: window {tuple(kernel_of(op))} does not fit its input {activation.shape}"
            )
        low, high = accumulator_range(op, self.builder.tensors)
        if (reach := int(max(-low.min(), high.max()))) >= ACCUMULATOR_LIMIT:
            raise UnsupportedBitWidth(
                f"{node}: accumulator must stay below {ACCUMULATOR_LIMIT} ({WIDE_BITS} bits), not reach {reach}: "
                "use fewer weight or activation bits, or prune"
            )
        if isinstance(op, Conv):
            weights = op.addends[0].weights if activation.stored_wide else op.weights
            flat = np.abs(weights.reshape(len(weights), -1).astype(np.int64))
            total, terms = flat.sum(1), np.count_nonzero(flat, 1)
        else:
            total = terms = np.full(shape.channels, math.prod(op.kernel))
        magnitude = total * max(-source.low, source.high)
        start = start_of_sum(source.scale, scale, magnitude, terms, bias)
        return Activation(activation.source, shape, Chain(start), str(node), op, tidy(axes, shape))

    def weighted(
        self,
        name: str,
        activation: Activation,
        weights: np.ndarray,
        stride: tuple[int, int] = (1, 1),
        pads: Pads = NO_PADS,
        groups: int = 1,
        zoom: tuple[int, int] = (1, 1),
    ) -> Conv:
        """The convolution of a quantized tensor; of one of two nibbles, both in one sum."""
        wide = activation.stored_wide
        if wide is None:
            return Conv.of_terms(name, [Term(activation.source, weights, stride, pads, groups, zoom)])
        low = Term(wide.low, weights, stride, pads, groups, zoom)
        return Conv.of_terms(name, [replace(low, input=wide.high, weights=weights * NIBBLE), low])

    def per_channel(self, node: Node, index: int, activation: RawInput | Activation) -> np.ndarray:
        """The constant operand of an elementwise operation as float32 (C,), or one for each element of a `RawInput`."""
        what = f"operand {index}"
        return channels_of(node, required(self.array(node, index, what), what), activation)

    def may_be_residual(self, activation: Activation) -> bool:
        """Whether the float value is a function of a stored tensor of at most 4 bits."""
        small = self.builder.tensors[activation.source].bits <= 4
        return activation.op is None and activation.maximum is None and activation.chain.residual is None and small


def by_rows_and_columns(activation: Activation, values: list[int], absent: int = 1) -> tuple[int, int]:
    """What a node says of its one or two axes behind the channels, for rows and columns; `absent` of one that the model
    does not have."""
    if len(values) != len(activation.axes) - 1:
        raise ValueError(f"{list(values)} for a map of {len(activation.axes) - 1} dimensions")
    if len(values) == 2:
        return values[0], values[1]
    return (values[0], absent) if activation.axes[1] == (1,) else (absent, values[0])


def resolve_pads(node: Node, activation: Activation, kernel: tuple[int, int], strides: tuple[int, int]) -> Pads:
    """The pads of a window, from `pads` or `auto_pad`."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    rank = len(activation.axes) - 1
    if mode == "NOTSET":
        pads = node.attributes.get("pads", [0, 0] * rank)
        if len(pads) != 2 * rank or min(pads) < 0:
            raise UnsupportedAttribute(f"{node}: pads must be {2 * rank} numbers >= 0, not {list(pads)}")
        ends = (by_rows_and_columns(activation, pads[:rank], 0), by_rows_and_columns(activation, pads[rank:], 0))
        return Pads(*ends[0], *ends[1])
    if mode == "VALID":
        return Pads()
    before, after = [], []
    for size, extent, stride in zip(activation.shape[1:], kernel, strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
        half = total // 2
        before.append(half if mode == "SAME_UPPER" else total - half)
        after.append(total - before[-1])
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedAttribute(f"{node}: auto_pad {mode!r} is not known: use explicit pads")
    return Pads(*before, *after)


def channels_of(node: Node, array: np.ndarray, activation: RawInput | Activation) -> np.ndarray:
    """A constant that broadcasts against an activation, as float32 (C,); refuses one that varies over the map. Of a
    `RawInput` every element is a channel."""
    raw = isinstance(activation, RawInput)
    size = activation.sizes if raw else sizes(activation.axes, activation.shape)
    try:
        full = np.broadcast_to(array, (1, *size))[0]
    except ValueError:
        raise UnsupportedAttribute(
            f"{node}: constant of shape {array.shape} does not fit activations {(1, *size)}"
        ) from None
    if not np.isfinite(full).all():
        raise UnsupportedAttribute(f"{node}: constants must be finite, not {full[~np.isfinite(full)].flat[0]}")
    if raw:
        return activation.spread(full)
    full = from_model(full, activation.axes, activation.shape)
    if (full != full[:, :1, :1]).any():
        raise UnsupportedAttribute(
            f"{node}: constant of shape {array.shape} must not vary over the map: use one number for each channel"
        )
    return np.ascontiguousarray(full[:, 0, 0], np.float32)
