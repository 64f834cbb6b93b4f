"""Operators that only move elements: flattening, transposing, and what exporters wrap around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import onnx

from sentei.host.arithmetic.float_chain import Quantizer
from sentei.host.errors import UnsupportedAttribute
from sentei.host.frontend.axes import regroup, sizes
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.operators import joins
from sentei.host.frontend.operators.quantizers import quantize_input
from sentei.host.frontend.translator import Handler, Translator
from sentei.host.frontend.values import Activation, Constant, Joined, RawInput, Tail, Value
from sentei.overlay.tail import TailStep

Movable: TypeAlias = RawInput | Activation | Tail


def flatten(translator: Translator, node: Node) -> Value:
    value = movable(translator, node)
    axis = node.attributes.get("axis", 1) % (1 + len(model_sizes(value)))
    if axis != 1:
        raise UnsupportedAttribute(f"{node}: axis must be 1, not {axis}: flatten each picture by itself")
    return reshaped(node, value, [math.prod(model_sizes(value))])


def reshape(translator: Translator, node: Node) -> Value:
    value = movable(translator, node)
    target = translator.array(node, 1, "shape").tolist()
    own = (translator.batch, *model_sizes(value))
    keeps_zeros = node.attributes.get("allowzero", 0)
    wanted = [own[n] if size == 0 and not keeps_zeros else size for n, size in enumerate(target)]
    if wanted.count(-1) == 1:
        known = math.prod(size for size in wanted if size != -1)
        wanted = [math.prod(own) // max(known, 1) if size == -1 else size for size in wanted]
    if not wanted or wanted[0] != own[0]:
        raise UnsupportedAttribute(f"{node}: shape must keep the {own[0]} of the batch, not be {target}")
    return reshaped(node, value, wanted[1:])


def squeeze(translator: Translator, node: Node) -> Value:
    value = movable(translator, node)
    axes, own = axes_of(translator, node), model_sizes(value)
    gone = [
        n for n, size in enumerate(own) if (size == 1 if axes is None else n + 1 in {a % (1 + len(own)) for a in axes})
    ]
    if any(own[n] != 1 for n in gone):
        raise UnsupportedAttribute(f"{node}: axes must have size 1, not {axes} of {(1, *own)}")
    return reshaped(node, value, [size for n, size in enumerate(own) if n not in gone])


def unsqueeze(translator: Translator, node: Node) -> Value:
    value = movable(translator, node)
    wanted: list[int] = [translator.batch, *model_sizes(value)]
    axes = axes_of(translator, node) or []
    rank = len(wanted) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        wanted.insert(axis, 1)
    if 0 in (axis % rank for axis in axes):
        raise UnsupportedAttribute(f"{node}: axes must leave the batch first, not be {axes}")
    return reshaped(node, value, wanted[1:])


def transpose(translator: Translator, node: Node) -> Value:
    value = translator.values[node.inputs[0]]
    value = value if isinstance(value, RawInput | Tail) else translator.activation(node)
    own = model_sizes(value)
    order = node.attributes.get("perm", list(range(len(own), -1, -1)))
    if sorted(order) != list(range(1 + len(own))) or order[0] != 0:
        raise UnsupportedAttribute(f"{node}: perm must leave the batch first, not be {list(order)}")
    if isinstance(value, RawInput):
        return replace(value, elements=value.elements.transpose([axis - 1 for axis in order[1:]]))
    if isinstance(value, Tail):
        return moved(value, TailStep("transpose", {"order": list(order)}), lambda stored: transposed(stored, order))
    return transposed(value, order)


def transposed(activation: Activation, order: list[int]) -> Activation:
    return replace(activation, axes=tuple(activation.axes[axis - 1] for axis in order[1:]))


def moved(tail: Tail, step: TailStep, move: Callable[[Activation], Activation]) -> Tail:
    """A tail whose elements move, whoever computes it."""
    stored = tail.stored
    return replace(tail.then(step), stored=stored and (lambda: move(stored())))


def reshaped(node: Node, value: Movable, wanted: list[int]) -> Value:
    """The value with other sizes, its elements in the same order."""
    own = model_sizes(value)
    if math.prod(wanted) != math.prod(own) or min(wanted, default=1) < 1:
        raise UnsupportedAttribute(f"{node}: shape must have {math.prod(own)} elements, not be (N, {wanted})")
    if isinstance(value, RawInput):
        return replace(value, elements=value.elements.reshape(wanted))
    if isinstance(value, Tail):
        return moved(value, TailStep("reshape", {"sizes": wanted}), lambda stored: reshaped(node, stored, wanted))
    axes = regroup(value.axes, value.shape, wanted)
    if axes is None:
        raise UnsupportedAttribute(
            f"{node}: shape (N, {', '.join(map(str, wanted))}) cuts through channels, rows or columns of (N, "
            f"{', '.join(map(str, own))}), which the array cannot rearrange: only flatten, or add and drop axes "
            "of size 1"
        )
    return replace(value, axes=axes)


def model_sizes(value: Movable) -> tuple[int, ...]:
    """Sizes in the model, without the batch."""
    return sizes(value.axes, value.shape) if isinstance(value, Activation) else value.sizes


def axes_of(translator: Translator, node: Node) -> list[int] | None:
    axes = translator.array(node, 1, "axes")
    return node.attributes.get("axes") if axes is None else axes.tolist()


def shape(translator: Translator, node: Node) -> Constant:
    value = translator.values[node.inputs[0]]
    found = [translator.batch, *(joins.sizes_of(value) if isinstance(value, Joined) else model_sizes(value))]
    return Constant(np.array(found[node.attributes.get("start", 0) : node.attributes.get("end", len(found))], np.int64))


def identity(translator: Translator, node: Node) -> Value:
    return translator.values[node.inputs[0]]


def dropout(translator: Translator, node: Node) -> Value:
    training = translator.array(node, 2, "training_mode")
    if training is not None and training.any():
        raise UnsupportedAttribute(f"{node}: training_mode must be 0, not 1: export the model in evaluation mode")
    return translator.values[node.inputs[0]]


def cast(translator: Translator, node: Node) -> Value:
    """Cast to float; of an input of integers, from here on each of them is worth 1."""
    value = translator.values[node.inputs[0]]
    if node.attributes.get("to") != onnx.TensorProto.FLOAT:
        raise UnsupportedAttribute(f"{node}: must cast to float (1), not to {node.attributes.get('to')}")
    if isinstance(value, RawInput) and value.integers is not None:
        quantizer = Quantizer(np.float32(1), value.integers.bits, value.integers.signed, False, np.round)
        return quantize_input(translator, str(node), value, quantizer)
    return value


def movable(translator: Translator, node: Node) -> Movable:
    """The node's input, which may still wait for its Quant node."""
    value = translator.values[node.inputs[0]]
    return value if isinstance(value, RawInput | Tail) else translator.bare_activation(node)


HANDLERS: dict[str, Handler] = {
    "Cast": cast,
    "Dropout": dropout,
    "Flatten": flatten,
    "Identity": identity,
    "Reshape": reshape,
    "Shape": shape,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
