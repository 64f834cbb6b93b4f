"""Elementwise operators: each appends one float32 operation to an activation's chain, or adds a second tensor to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sentei.host.arithmetic.float_chain import AddTensor, Clamp, Divide, Leak, Offset, Scale
from sentei.host.errors import UnsupportedAttribute, UnsupportedOperator
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.operators.quantize_linear import narrowed
from sentei.host.frontend.sums import add as add_sums
from sentei.host.frontend.translator import Handler, Translator, channels_of, is_constant
from sentei.host.frontend.values import QUANTIZE_IT, Activation, Levels, RawInput, Value


def add(translator: Translator, node: Node) -> RawInput | Activation:
    if any(is_constant(translator.values[name]) for name in node.inputs):
        index = int(is_constant(translator.values[node.inputs[0]]))
        activation = translator.operand(node, index)
        return activation.then(Offset(translator.per_channel(node, 1 - index, activation)))
    return add_residual(translator, node, translator.bare_activation(node, 0), translator.bare_activation(node, 1))


def add_residual(translator: Translator, node: Node, left: Activation, right: Activation) -> Activation:
    """One side becomes the operator's residual: a stored tensor of at most 4 bits. The other is the accumulator.
    Sides that are both accumulators become one."""
    if left.shape != right.shape or left.axes != right.axes:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise UnsupportedOperator(f"{node}: adds activations of shapes {shapes}, which must be equal: broadcast no map")
    sides = ((left, right), (right, left))
    pair = next((pair for pair in sides if translator.may_be_residual(pair[1])), None)
    if pair is None and (stored := next((pair for pair in sides if pair[1].stored_maximum), None)):
        pair = stored[0], translator.builder.as_plain(stored[1], str(node))
    place = str(node)
    if pair is None:
        sums = [one if one.chain.residual is None else translator.builder.absorb(place, one) for one in (left, right)]
        return add_sums(place, sums[0], sums[1], translator.builder.tensors)
    main, residual = pair
    if main.maximum is not None:
        raise UnsupportedOperator(f"{node}: adds to a MaxPool of unquantized values: {QUANTIZE_IT}")
    if main.chain.residual is not None:
        main = translator.builder.absorb(place, main)
    return replace(main.then(AddTensor(residual.source, residual.chain)), label=str(node))


def sub(translator: Translator, node: Node) -> RawInput | Activation:
    require_one_activation(translator, node)
    if not is_constant(translator.values[node.inputs[0]]):
        activation = translator.operand(node)
        return activation.then(Offset(-translator.per_channel(node, 1, activation)))
    activation = translator.operand(node, 1)
    # c - x and -x + c are the same float32 operation.
    constant = translator.per_channel(node, 0, activation)
    return activation.then(Scale(-ones(activation)), Offset(constant))


def mul(translator: Translator, node: Node) -> RawInput | Activation:
    require_one_activation(translator, node)
    index = int(is_constant(translator.values[node.inputs[0]]))
    activation = translator.operand(node, index)
    return activation.then(Scale(translator.per_channel(node, 1 - index, activation)))


def div(translator: Translator, node: Node) -> RawInput | Activation:
    require_one_activation(translator, node)
    if is_constant(translator.values[node.inputs[0]]):
        raise UnsupportedOperator(f"{node}: divides a constant by activations: only division by constants is supported")
    activation = translator.operand(node)
    divisor = translator.per_channel(node, 1, activation)
    if not divisor.all():
        raise UnsupportedAttribute(f"{node}: divides by zero: use finite constants")
    return activation.then(Divide(divisor))


def neg(translator: Translator, node: Node) -> RawInput | Activation:
    activation = translator.operand(node)
    return activation.then(Scale(-ones(activation)))


def ones(activation: RawInput | Activation) -> np.ndarray:
    """float32, one for each channel."""
    raw = isinstance(activation, RawInput)
    return np.ones(activation.elements.size if raw else activation.shape.channels, np.float32)


def require_one_activation(translator: Translator, node: Node) -> None:
    if not any(is_constant(translator.values[name]) for name in node.inputs):
        raise UnsupportedOperator(f"{node}: {node.op_type} of two activations is not supported: only Add is")


def batch_normalization(translator: Translator, node: Node) -> RawInput | Activation:
    """y = x * factor + offset, with onnxruntime's own float32 rounding of both (on x86-64, which fuses no addition)."""
    activation = translator.operand(node)
    if node.attributes.get("training_mode", 0):
        raise UnsupportedAttribute(f"{node}: training_mode must be 0, not 1: export the model in evaluation mode")
    gamma, beta, mean, variance = (
        translator.array(node, index, "statistics").astype(np.float32) for index in range(1, 5)
    )
    epsilon = np.float32(node.attributes.get("epsilon", 1e-5))
    factor = (np.float32(1) / np.sqrt(variance + epsilon)) * gamma
    rank = len(activation.sizes if isinstance(activation, RawInput) else activation.axes)
    trailing = (1,) * (rank - 1)
    parts = [channels_of(node, part.reshape(-1, *trailing), activation) for part in (factor, beta - mean * factor)]
    return activation.then(Scale(parts[0]), Offset(parts[1]))


def relu(translator: Translator, node: Node) -> RawInput | Activation:
    return translator.operand(node).then(Clamp(np.float32(0), np.float32(np.inf)))


def leaky_relu(translator: Translator, node: Node) -> RawInput | Activation:
    activation = translator.operand(node)
    return leaking(node, activation, ones(activation) * np.float32(node.attributes.get("alpha", 0.01)))


def p_relu(translator: Translator, node: Node) -> RawInput | Activation:
    activation = translator.operand(node)
    return leaking(node, activation, translator.per_channel(node, 1, activation))


def leaking(node: Node, activation: RawInput | Activation, slope: np.ndarray) -> RawInput | Activation:
    if not (np.isfinite(slope) & (slope >= 0)).all():
        raise UnsupportedAttribute(f"{node}: slopes must be 0 or more, not {slope.min()} ")
    return activation.then(Leak(slope.astype(np.float32)))


def clip(translator: Translator, node: Node) -> Value:
    limits = []
    for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        array = translator.array(node, index, name)
        limits.append(np.float32(node.attributes.get(name, default) if array is None else array.reshape(-1)[0]))
    if not limits[0] <= limits[1]:
        raise UnsupportedAttribute(f"{node}: min must not exceed max, not {limits[0]} and {limits[1]}")
    value = translator.values[node.inputs[0]]
    if isinstance(value, Levels):
        return narrowed(node, value, *limits)
    return translator.operand(node).then(Clamp(*limits))


HANDLERS: dict[str, Handler] = {
    "Add": add,
    "BatchNormalization": batch_normalization,
    "Clip": clip,
    "Div": div,
    "LeakyRelu": leaky_relu,
    "Mul": mul,
    "Neg": neg,
    "PRelu": p_relu,
    "Relu": relu,
    "Sub": sub,
}
