"""The walk over a model's nodes: each becomes a `Constant`, the `RawInput` before its Quant, or an `Activation`.

Constants are folded here; every operator has a handler in one of the modules beside this one, which extends an
activation's float chain, starts a new accumulator or, a quantizer, ends one. What has no handler is refused by name.
Activations are NCHW.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeGuard, TypeVar

import numpy as np
import onnx

from sentei.host.arithmetic.float_chain import Chain, Operation, start_of_sum
from sentei.host.errors import MissingScale, UnsupportedAttribute, UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.builder import Builder
from sentei.host.frontend.model_file import STANDARD_DOMAINS, Node, evaluate
from sentei.host.frontend.values import Activation
from sentei.host.network.ir import ACCUMULATOR_LIMIT, Conv, Pads, Pool, Shape, accumulator_range, kernel_of
from sentei.overlay.geometry import WIDE_BITS

T = TypeVar("T")
QUANT_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
QUANTIZED_CONSTANTS = ("QuantizeLinear", "DequantizeLinear")  # not folded, so that errors name them
PREPROCESSING = ("Add", "BatchNormalization", "Clip", "Div", "Mul", "Neg", "Relu", "Sub")
BEFORE_QUANT = ("Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze", *PREPROCESSING)
KEEP_QUANTIZATION = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
CONVERT = "convert the model with qonnx.transformation.qcdq_to_qonnx.QCDQToQuant"
REMEDIES = {
    "ArgMax": "leave it out and take the index on the host",
    "Concat": "use residual additions instead",
    "ConvTranspose": "use Conv with strides",
    "DequantizeLinear": CONVERT,
    "FloatQuant": "use integer Quant nodes",
    "HardSigmoid": "use Relu or Clip",
    "LeakyRelu": "use Relu or Clip",
    "PRelu": "use Relu or Clip",
    "QuantizeLinear": CONVERT,
    "Sigmoid": "use Relu or Clip, and leave it out after the last layer",
    "Softmax": "leave it out: the largest output is the same without it",
    "Tanh": "use Relu or Clip",
    "Transpose": "export activations as NCHW",
    "Trunc": "put a Quant node after the pool (brevitas: QuantIdentity, not TruncAvgPool)",
}


@dataclass(frozen=True)
class Constant:
    """A value known when compiling; a quantized one also as integer `levels` times float32 `scale`, broadcast."""

    values: np.ndarray
    levels: np.ndarray | None = None
    scale: np.ndarray | None = None
    bits: int = 0


@dataclass(frozen=True)
class RawInput:
    """The graph's input before its Quant node, and the float operations on it so far: its preprocessing."""

    name: str
    shape: Shape
    flat: bool
    batch: int
    operations: tuple[Operation, ...] = ()

    def then(self, *operations: Operation) -> RawInput:
        return replace(self, operations=self.operations + operations)


Value: TypeAlias = Constant | RawInput | Activation


def is_constant(value: Value | None) -> TypeGuard[Constant | None]:
    """Whether an input is known when compiling, or left out."""
    return value is None or isinstance(value, Constant)


def required(value: T | None, what: str) -> T:
    """An input that is not left out; of the LookupError, `frontend.load` makes one that names the node."""
    if value is None:
        raise LookupError(f"{what} is left out")
    return value


@dataclass
class Translator:
    """Walks nodes in order; `values` holds the result of each, `builder` the network."""

    opsets: tuple[onnx.OperatorSetIdProto, ...]
    values: dict[str, Value]
    handlers: dict[str, Callable[[Translator, Node], Value]]  # of ONNX's own operators
    quantizers: dict[str, Callable[[Translator, Node], Value]]  # of QUANT_DOMAINS
    builder: Builder = field(default_factory=Builder)

    def translate(self, node: Node) -> None:
        """Compute the node's first output; raises an `UnsupportedModel` that names the node."""
        inputs = [self.value(node, name) if name else None for name in node.inputs]
        constants = [value for value in inputs if is_constant(value)]
        standard = node.domain in STANDARD_DOMAINS
        if node.domain in QUANT_DOMAINS and node.op_type in self.quantizers:
            result = self.quantizers[node.op_type](self, node)
        elif standard and node.op_type not in QUANTIZED_CONSTANTS and len(constants) == len(inputs):
            result = self.fold(node, constants)
        elif standard and node.op_type in self.handlers:
            self.require_quantized(node, inputs)
            result = self.handlers[node.op_type](self, node)
        else:
            of_domain = "" if standard else f" of domain {node.domain!r}"
            known = f"use {', '.join(sorted([*self.handlers, 'Quant']))}"
            remedy = REMEDIES.get(node.op_type, known)
            raise UnsupportedOperator(f"{node}: operator {node.op_type}{of_domain} is not supported: {remedy}")
        self.values[node.outputs[0]] = result

    def value(self, node: Node, name: str) -> Value:
        """What an earlier node computed; only first outputs are."""
        if name not in self.values:
            raise UnsupportedOperator(f"{node}: reads {name!r}, a secondary output: only first outputs are supported")
        return self.values[name]

    def require_quantized(self, node: Node, inputs: list[Value | None]) -> None:
        """Refuse arithmetic on the graph's input before its Quant node."""
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
        value = self.values[node.inputs[index]]
        if not isinstance(value, Activation):
            raise UnsupportedOperator(f"{node}: input {index} must be activations, not a constant: swap the operands")
        return value

    def operand(self, node: Node, index: int = 0) -> RawInput | Activation:
        """What an elementwise operator works on: activations, or the graph's input while it is preprocessed."""
        value = self.values[node.inputs[index]]
        return value if isinstance(value, RawInput) else self.bare_activation(node, index)

    def bare_activation(self, node: Node, index: int = 0) -> Activation:
        """The activations at an input of a node into which padding cannot be merged."""
        activation = self.activation(node, index)
        if any(activation.pads):
            raise UnsupportedOperator(
                f"{node}: follows {activation.label}: a Pad can only be merged into a convolution or an average pool: "
                "give the padding to that operator"
            )
        return activation

    # What handlers share

    def accumulate(
        self, node: Node, activation: Activation, op: Conv | Pool, scale: np.ndarray, bias: np.ndarray | None = None
    ) -> Activation:
        """The activation of an accumulator whose products have `scale` (C,) times the scale of its input."""
        source = self.builder.tensors[activation.source]
        shape = self.builder.extent(op, source.shape)
        if min(shape) < 1:
            raise UnsupportedAttribute(
                f"{node}: window {tuple(kernel_of(op))} does not fit its input {activation.shape}"
            )
        low, high = accumulator_range(op, source)
        if (reach := int(max(-low.min(), high.max()))) >= ACCUMULATOR_LIMIT:
            raise UnsupportedBitWidth(
                f"{node}: accumulator must stay below {ACCUMULATOR_LIMIT} ({WIDE_BITS} bits), not reach {reach}: "
                "use fewer weight or activation bits, or prune"
            )
        if isinstance(op, Conv):
            flat = np.abs(op.weights.reshape(len(op.weights), -1).astype(np.int64))
            total, terms = flat.sum(1), np.count_nonzero(flat, 1)
        else:
            total = terms = np.full(shape.channels, math.prod(op.kernel))
        magnitude = total * max(-source.low, source.high)
        start = start_of_sum(source.scale, scale, magnitude, terms, bias)
        return Activation(activation.source, shape, Chain(start), str(node), op, flat=activation.flat)

    def per_channel(self, node: Node, index: int, activation: RawInput | Activation) -> np.ndarray:
        """The constant operand of an elementwise operation as float32 (C,)."""
        what = f"operand {index}"
        return channels_of(node, required(self.array(node, index, what), what), activation)

    def may_be_residual(self, activation: Activation) -> bool:
        """Whether the float value is a function of a stored tensor of at most 4 bits."""
        small = self.builder.tensors[activation.source].bits <= 4
        return activation.op is None and activation.maximum is None and activation.chain.residual is None and small


def resolve_pads(node: Node, shape: Shape, kernel: tuple[int, int], strides: tuple[int, int]) -> Pads:
    """The pads of a window, from `pads` or `auto_pad`."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = node.attributes.get("pads", [0, 0, 0, 0])
        if len(pads) != 4 or min(pads) < 0:
            raise UnsupportedAttribute(f"{node}: pads must be four numbers >= 0, not {list(pads)}")
        return Pads(*pads)
    if mode == "VALID":
        return Pads()
    before, after = [], []
    for size, extent, stride in zip(shape[1:], kernel, strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
        half = total // 2
        before.append(half if mode == "SAME_UPPER" else total - half)
        after.append(total - before[-1])
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedAttribute(f"{node}: auto_pad {mode!r} is not known: use explicit pads")
    return Pads(*before, *after)


def channels_of(node: Node, array: np.ndarray, activation: RawInput | Activation) -> np.ndarray:
    """A constant that broadcasts against an activation, as float32 (C,); refuses one that varies over the map."""
    size = (1, math.prod(activation.shape)) if activation.flat else (1, *activation.shape)
    try:
        full = np.broadcast_to(array, size).reshape(activation.shape)
    except ValueError:
        raise UnsupportedAttribute(f"{node}: constant of shape {array.shape} does not fit activations {size}") from None
    if (full != full[:, :1, :1]).any():
        raise UnsupportedAttribute(
            f"{node}: constant of shape {array.shape} must not vary over the map: use one number for each channel"
        )
    if not np.isfinite(full).all():
        raise UnsupportedAttribute(f"{node}: constants must be finite, not {full[~np.isfinite(full)].flat[0]}")
    return np.ascontiguousarray(full[:, 0, 0], np.float32)
