"""Concat: tensors one behind the other along the channels stay separate tensors.

What follows is done to each of them by itself; a convolution or a matrix product of them is one sum with a term for
each.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from itertools import pairwise

import numpy as np

from sentei.host.arithmetic.float_chain import Offset
from sentei.host.errors import UnsupportedAttribute, UnsupportedOperator
from sentei.host.frontend.axes import part_of_each, sizes
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.operators.quantizers import HANDLERS as QUANTIZERS
from sentei.host.frontend.sums import add
from sentei.host.frontend.translator import Handler, Translator
from sentei.host.frontend.values import Activation, Constant, Joined, Value

ELEMENTWISE = ("Add", "Clip", "Div", "LeakyRelu", "Mul", "Neg", "PRelu", "Relu", "Sub", *QUANTIZERS)
BY_CHANNEL = ("BatchNormalization", "MultiThreshold")
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "ReduceMean", "Resize", "Upsample")
MOVES = ("Dropout", "Flatten", "Identity", "Squeeze", "Transpose", "Unsqueeze")
ALONE = (*ELEMENTWISE, *BY_CHANNEL, *POOLS, *MOVES, "Trunc")


def concat(translator: Translator, node: Node) -> Joined:
    parts: list[Activation] = []
    for name in node.inputs:
        value = translator.values[name]
        parts += value.parts if isinstance(value, Joined) else [translator.bare(node, value)]
    axes, rest = parts[0].axes, parts[0].shape[1:]
    places = part_of_each(axes) if len(axes) > 1 else [0]
    axis = node.attributes.get("axis", 1) % (1 + len(axes))
    if axis == 0 or places is None or places[axis - 1] != 0 or any(part.shape[1:] != rest for part in parts):
        found = " and ".join(str(tuple(part.shape)) for part in parts)
        raise UnsupportedAttribute(f"{node}: must join channels of equal maps, not axis {axis} of {found}")
    return Joined(tuple(parts), axis)


def distribute(translator: Translator, node: Node) -> Value:
    """What an operator makes of joined tensors."""
    values = [translator.values[name] if name else None for name in node.inputs]
    joined = next(value for value in values if isinstance(value, Joined))
    if any(isinstance(value, Joined) and value.channels != joined.channels for value in values):
        raise UnsupportedOperator(f"{node}: its operands are joined from different numbers of channels")
    if node.op_type == "Concat":
        return concat(translator, node)
    if node.op_type == "Reshape":
        return flattened(translator, node, joined)
    if node.op_type in ("Gemm", "MatMul") or (node.op_type == "Conv" and node.attributes.get("group", 1) == 1):
        return summed(translator, node, joined)
    if node.op_type not in (*ALONE, "Conv"):
        raise UnsupportedOperator(f"{node}: {node.op_type} of a Concat is not supported: put it before the Concat")
    total = sum(joined.channels)
    if node.op_type == "Conv" and node.attributes["group"] != total:
        raise UnsupportedAttribute(
            f"{node}: group must be 1 or {total} behind a Concat, not {node.attributes['group']}"
        )
    results = []
    for number, (first, last) in enumerate(pairwise(joined.starts)):
        inputs = [
            cut(value, part_axis(node, index, value, joined), first, last, total) for index, value in enumerate(values)
        ]
        attributes = node.attributes | ({"group": last - first} if node.op_type == "Conv" else {})
        results.append(translated(translator, node, number, inputs, attributes))
    if not all(isinstance(result, Activation) for result in results):
        raise UnsupportedOperator(f"{node}: follows a Concat and is computed by the host: put a convolution in between")
    moved = node.attributes.get("perm")
    axis = list(moved).index(joined.axis) if moved else 1 if node.op_type in MOVES else joined.axis
    return Joined(tuple(results), axis)


def part_axis(node: Node, index: int, value: Value | None, joined: Joined) -> int | None:
    """The axis of an operand's constant along which the channels lie, if it has them."""
    if not isinstance(value, Constant) or not value.values.ndim:
        return None
    if node.op_type in ("Conv", *BY_CHANNEL):
        return 0
    axis = value.values.ndim - (1 + len(joined.parts[0].axes)) + joined.axis
    return axis if node.op_type in ELEMENTWISE and axis >= 0 else None


def cut(value: Value | None, axis: int | None, first: int, last: int, total: int) -> Value | None:
    """A constant's elements for some of `total` channels; other values as they are."""
    if axis is None or not isinstance(value, Constant) or value.values.shape[axis] % total or total == 1:
        return value
    each = value.values.shape[axis] // total
    where = np.arange(first * each, last * each)
    levels, scale = (None if of is None else of.take(where, axis) for of in (value.levels, value.scale))
    return Constant(value.values.take(where, axis), levels, scale, value.bits)


def translated(translator: Translator, node: Node, number: int, inputs: list, attributes: dict) -> Value:
    """What the node makes of the part of that number."""
    names = []
    for name, value in zip(node.inputs, inputs, strict=True):
        part = name and f"{name} part {number + 1}"
        if part:
            translator.values[part] = value.parts[number] if isinstance(value, Joined) else value
        names.append(part)
    outputs = tuple(f"{name} part {number + 1}" for name in node.outputs)
    own = f"{node.name} part {number + 1}"
    translator.translate(replace(node, name=own, inputs=tuple(names), outputs=outputs, attributes=attributes))
    return translator.values[outputs[0]]


def summed(translator: Translator, node: Node, joined: Joined) -> Value:
    """A convolution or a matrix product: the sum of those of the parts."""
    weights = translator.values[node.inputs[1]]
    transposed = node.op_type == "Conv" or bool(node.attributes.get("transB", 0))
    axis = 1 if transposed else 0
    if not isinstance(weights, Constant) or weights.values.ndim < 2:
        raise UnsupportedOperator(f"{node}: weights must be constant, not computed from the input")
    total = sum(joined.channels)
    results = []
    for number, (first, last) in enumerate(pairwise(joined.starts)):
        inputs = [joined, cut(weights, axis, first, last, total)]
        without_bias = replace(node, inputs=node.inputs[:2])
        results.append(
            translator.activations_in(node, translated(translator, without_bias, number, inputs, node.attributes))
        )
    result = reduce(lambda left, right: add(str(node), left, right, translator.builder.tensors), results)
    if result.op is not None:
        result = replace(result, op=replace(result.op, name=node.name), label=str(node))
    bias = translator.array(node, 2, "bias")
    if bias is None:
        return result
    return result.then(Offset(np.broadcast_to(bias.reshape(-1), result.shape.channels).astype(np.float32)))


def flattened(translator: Translator, node: Node, joined: Joined) -> Joined:
    """Reshape, where it flattens."""
    target = translator.array(node, 1, "shape").tolist()
    features = sum(math.prod(part.shape) for part in joined.parts)
    if len(target) != 2 or target[1] not in (-1, features) or joined.axis != 1:
        raise UnsupportedAttribute(f"{node}: shape behind a Concat must be (N, {features}), not {target}")
    flatten = replace(node, op_type="Flatten", inputs=node.inputs[:1])
    parts = [translated(translator, flatten, number, [joined], {"axis": 1}) for number in range(len(joined.parts))]
    return Joined(tuple(translator.activations_in(node, part) for part in parts), 1)


def sizes_of(joined: Joined) -> tuple[int, ...]:
    """The model's sizes, without the batch."""
    found = [sizes(part.axes, part.shape) for part in joined.parts]
    return tuple(
        sum(of[axis] for of in found) if axis + 1 == joined.axis else size for axis, size in enumerate(found[0])
    )


HANDLERS: dict[str, Handler] = {"Concat": concat}
