"""Operators that only move elements: flattening a map, and what exporters wrap around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sentei.host.errors import UnsupportedAttribute
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.translator import Constant, RawInput, Translator, Value
from sentei.host.frontend.values import Activation


def flatten(translator: Translator, node: Node) -> RawInput | Activation:
    axis = node.attributes.get("axis", 1)
    if axis != 1:
        raise UnsupportedAttribute(f"{node}: axis must be 1, not {axis}: flatten each picture by itself")
    return replace(movable(translator, node), flat=True)


def reshape(translator: Translator, node: Node) -> RawInput | Activation:
    activation = movable(translator, node)
    target = translator.array(node, 1, "shape").tolist()
    features = math.prod(activation.shape)
    rest = [activation.shape.channels if size == 0 and not activation.flat else size for size in target[1:]]
    if rest.count(-1) == 1:
        known = math.prod(size for size in rest if size != -1)
        rest = [features // max(known, 1) if size == -1 else size for size in rest]
    if rest == [features]:
        return replace(activation, flat=True)
    if rest == list(activation.shape):
        return replace(activation, flat=False)
    raise UnsupportedAttribute(
        f"{node}: shape must be (N, {features}) or (N, {', '.join(map(str, activation.shape))}), not {target}: "
        "only flattening is supported"
    )


def squeeze(translator: Translator, node: Node) -> Activation:
    activation = translator.bare_activation(node)
    axes = translator.array(node, 1, "axes")
    axes = node.attributes.get("axes") if axes is None else axes.tolist()
    if activation.flat or sorted(axis % 4 for axis in axes or ()) != [2, 3] or activation.shape[1:] != (1, 1):
        raise UnsupportedAttribute(f"{node}: axes must be [2, 3] of a 1x1 map, not {axes} of {tuple(activation.shape)}")
    return replace(activation, flat=True)


def unsqueeze(translator: Translator, node: Node) -> Activation:
    activation = translator.bare_activation(node)
    axes = translator.array(node, 1, "axes")
    axes = node.attributes.get("axes") if axes is None else axes.tolist()
    if not activation.flat or sorted(axis % 4 for axis in axes) != [2, 3] or activation.shape[1:] != (1, 1):
        raise UnsupportedAttribute(f"{node}: axes must be [2, 3] of (N, C), not {axes}: only 1x1 maps can be made")
    return replace(activation, flat=False)


def shape(translator: Translator, node: Node) -> Constant:
    value = translator.values[node.inputs[0]]
    batch = next((value.batch for value in translator.values.values() if isinstance(value, RawInput)), 1)
    sizes = (batch, math.prod(value.shape)) if value.flat else (batch, *value.shape)
    return Constant(np.array(sizes[node.attributes.get("start", 0) : node.attributes.get("end", 4)], np.int64))


def identity(translator: Translator, node: Node) -> Value:
    return translator.values[node.inputs[0]]


def dropout(translator: Translator, node: Node) -> Value:
    training = translator.array(node, 2, "training_mode")
    if training is not None and training.any():
        raise UnsupportedAttribute(f"{node}: training_mode must be 0, not 1: export the model in evaluation mode")
    return translator.values[node.inputs[0]]


def movable(translator: Translator, node: Node) -> RawInput | Activation:
    """The node's input, which may still wait for its Quant node."""
    value = translator.values[node.inputs[0]]
    return value if isinstance(value, RawInput) else translator.bare_activation(node)


HANDLERS: dict[str, Callable[[Translator, Node], Value]] = {
    "Dropout": dropout,
    "Flatten": flatten,
    "Identity": identity,
    "Reshape": reshape,
    "Shape": shape,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
}
