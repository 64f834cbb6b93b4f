"""Pools and padding: maxima, averages as sums and a division, zeros merged into the operator that reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sentei.host.arithmetic.float_chain import Divide
from sentei.host.errors import UnsupportedAttribute, UnsupportedOperator
from sentei.host.frontend.axes import is_map, map_axes, part_of_each, sizes, tidy
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.translator import Translator, by_rows_and_columns, resolve_pads
from sentei.host.frontend.values import QUANTIZE_IT, Activation
from sentei.host.network.ir import Pads, Pool, Shape


def max_pool(translator: Translator, node: Node) -> Activation:
    activation = pooled_activation(translator, node)
    if len(node.outputs) > 1 and any(node.outputs[1:]):
        raise UnsupportedAttribute(f"{node}: output Indices is not supported: use the maximum only")
    kernel, strides = window(node, activation)
    return maximum(translator, node, activation, kernel, strides, resolve_pads(node, activation, kernel, strides))


def global_max_pool(translator: Translator, node: Node) -> Activation:
    activation = pooled_activation(translator, node)
    return maximum(translator, node, activation, activation.shape[1:], (1, 1), Pads())


def maximum(
    translator: Translator, node: Node, activation: Activation, kernel: tuple, strides: tuple, pads: Pads
) -> Activation:
    """A maximum of a tensor where order allows, otherwise one that waits until its values are quantized."""
    if activation.stored_maximum:
        activation = translator.builder.as_plain(activation, str(node))
    if max(pads.top, pads.bottom) >= kernel[0] or max(pads.left, pads.right) >= kernel[1]:
        raise UnsupportedAttribute(f"{node}: pads must be smaller than the window {tuple(kernel)}, not {list(pads)}")
    pool = Pool(node.name, activation.source, "", "max", kernel, strides, pads)
    shape = pooled_shape(translator, node, activation.shape, pool)
    if activation.stored_wide is not None:
        return translator.builder.wide_maximum(activation, pool, node)
    if translator.may_be_residual(activation) and all(
        operation.rises().all() for operation in activation.chain.operations
    ):
        return replace(activation, op=pool, shape=shape, axes=tidy(map_axes(activation.axes), shape), label=str(node))
    if activation.maximum is not None:
        raise UnsupportedOperator(f"{node}: two MaxPool nodes before a Quant node: {QUANTIZE_IT}")
    before, axes = len(activation.chain.operations), tidy(map_axes(activation.axes), shape)
    return replace(activation, maximum=pool, before=before, shape=shape, axes=axes, label=str(node))


def average_pool(translator: Translator, node: Node) -> Activation:
    activation = pooled_activation(translator, node, padded=True)
    kernel, strides = window(node, activation)
    pads = resolve_pads(node, activation, kernel, strides)
    if any(pads) and not node.attributes.get("count_include_pad", 0):
        raise UnsupportedAttribute(
            f"{node}: count_include_pad must be 1, not 0, with pads {list(pads)}: the divisor would depend on the place"
        )
    return average(translator, node, activation, kernel, strides, pads)


def global_average_pool(translator: Translator, node: Node) -> Activation:
    activation = pooled_activation(translator, node, padded=True)
    return average(translator, node, activation, activation.shape[1:], (1, 1), Pads())


def reduce_mean(translator: Translator, node: Node) -> Activation:
    activation = translator.activation(node)
    axes = translator.array(node, 1, "axes")
    axes = node.attributes.get("axes") if axes is None else axes.tolist()
    rank = 1 + len(activation.axes)
    named = sorted(axis % rank for axis in axes or range(rank))
    rest = [axis for number, axis in enumerate(activation.axes) if number + 1 not in named]
    if 0 in named or tidy(tuple(rest), activation.shape) not in (((0,),), ((),)):
        raise UnsupportedAttribute(f"{node}: axes must be those of the map, not {axes}: average over whole maps only")
    result = average(translator, node, activation, activation.shape[1:], (1, 1), Pads())
    keep = node.attributes.get("keepdims", 1)
    kept = tuple(() if n + 1 in named else axis for n, axis in enumerate(activation.axes) if keep or n + 1 not in named)
    return replace(result, axes=tidy(kept, result.shape))


def average(
    translator: Translator, node: Node, activation: Activation, kernel: tuple, strides: tuple, pads: Pads
) -> Activation:
    """A sum, then onnxruntime's division by the window's size."""
    activation = translator.builder.as_plain(activation, str(node))
    pads = Pads(*(a + b for a, b in zip(pads, activation.pads, strict=True)))
    pool = Pool(node.name, activation.source, "", "sum", kernel, strides, pads)
    pooled_shape(translator, node, translator.builder.tensors[activation.source].shape, pool)
    if activation.stored_wide is not None:
        channels = activation.shape.channels
        each = np.tile(np.eye(channels, dtype=np.int16)[:, :, None, None], (1, 1, *kernel))
        pool = translator.weighted(node.name, activation, each, strides, pads, channels)
    ones = np.ones(activation.shape.channels, np.float32)
    axes = map_axes(activation.axes) if is_map(activation.axes, activation.shape) else activation.axes
    result = translator.accumulate(node, activation, pool, ones, axes)
    return result.then(Divide(np.full(activation.shape.channels, math.prod(kernel), np.float32)))


def pooled_activation(translator: Translator, node: Node, padded: bool = False) -> Activation:
    return translator.map_of(node, translator.activation(node) if padded else translator.bare_activation(node))


def pooled_shape(translator: Translator, node: Node, source: Shape, pool: Pool) -> Shape:
    shape = translator.builder.extent(pool, source)
    if min(shape) < 1:
        raise UnsupportedAttribute(f"{node}: window {tuple(pool.kernel)} does not fit its input {tuple(source)}")
    if node.attributes.get("ceil_mode", 0):
        sizes = [
            (size + before + after - kernel) % stride
            for size, kernel, stride, before, after in zip(
                source[1:], pool.kernel, pool.stride, pool.pads[:2], pool.pads[2:], strict=True
            )
        ]
        if any(sizes):
            raise UnsupportedAttribute(f"{node}: ceil_mode must be 0, not 1: pad the map instead")
    return shape


def window(node: Node, activation: Activation) -> tuple[tuple[int, int], tuple[int, int]]:
    """(kernel, strides) of a pool, two dimensions each."""
    kernel = node.attributes.get("kernel_shape", ())
    dilations = node.attributes.get("dilations", [1] * len(kernel))
    if len(kernel) != len(activation.axes) - 1:
        raise UnsupportedAttribute(
            f"{node}: kernel_shape must have {len(activation.axes) - 1} dimensions, not {list(kernel)}"
        )
    if any(dilation != 1 for dilation in dilations):
        raise UnsupportedAttribute(f"{node}: dilations must be 1, not {list(dilations)}: use a plain window")
    strides = node.attributes.get("strides", [1] * len(kernel))
    return by_rows_and_columns(activation, kernel), by_rows_and_columns(activation, strides)


def pad(translator: Translator, node: Node) -> Activation:
    activation = translator.builder.as_plain(translator.activation(node), str(node))
    if translator.builder.is_fresh_input(activation):
        activation = translator.map_of(node, activation)
    mode = node.attributes.get("mode", "constant")
    amounts = translator.array(node, 1, "pads")
    amounts = node.attributes.get("pads") if amounts is None else amounts.tolist()
    value = translator.array(node, 2, "constant_value")
    value = node.attributes.get("value", 0.0) if value is None or not value.size else value.reshape(-1)[0]
    if mode != "constant" or value != 0:
        raise UnsupportedAttribute(f"{node}: must pad with zeros, not mode {mode!r} and value {value}: pad with zeros")
    axes = translator.array(node, 3, "axes")
    rank = 1 + len(activation.axes)
    axes = range(len(amounts) // 2) if axes is None else [axis % rank for axis in axes.tolist()]
    half = len(amounts) // 2
    parts = part_of_each(activation.axes)
    by_part = {}  # of rows and columns
    for number, axis in enumerate(axes):
        pair = (amounts[number], amounts[number + half])
        part = parts[axis - 1] if parts and axis else 0
        if pair != (0, 0) and part == 0:
            raise UnsupportedAttribute(f"{node}: pads must be on height and width only, not {amounts}")
        by_part[part] = pair
    if parts is None or min(amounts) < 0:
        raise UnsupportedAttribute(f"{node}: pads must be >= 0 and those of a map, not {amounts}")
    (top, bottom), (left, right) = by_part.get(1, (0, 0)), by_part.get(2, (0, 0))
    pads = Pads(*(a + b for a, b in zip(activation.pads, (top, left, bottom, right), strict=True)))
    channels, height, width = activation.shape
    shape = Shape(channels, height + top + bottom, width + left + right)
    axes = tidy(tuple((part,) for part in parts), shape)
    return replace(activation, pads=pads, shape=shape, axes=axes, label=str(node))


def resize(translator: Translator, node: Node) -> Activation:
    """Resize and Upsample, where each pixel is repeated in whole numbers of rows and columns."""
    activation = pooled_activation(translator, node)
    own = sizes(activation.axes, activation.shape)
    factors = enlargement(translator, node, (translator.batch, *own))
    if factors[:2] != (1, 1) or min(factors) < 1:
        raise UnsupportedAttribute(f"{node}: must enlarge rows and columns by whole numbers, not {factors}")
    zoom = by_rows_and_columns(activation, list(factors[2:]))
    mode = node.attributes.get("mode", "nearest")
    repeats = all(nearest(node, size, factor) for size, factor in zip(own[1:], factors[2:], strict=True))
    if mode != "nearest" or not repeats:
        raise UnsupportedAttribute(
            f"{node}: mode must be nearest, such that each pixel is repeated, not {mode}: use asymmetric and floor"
        )
    return translator.builder.enlarged(activation, zoom, node)


def enlargement(translator: Translator, node: Node, own: tuple[int, ...]) -> tuple[int, ...]:
    """By how much each axis grows; 0 where that is no whole number."""
    index = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
    scales = node.attributes.get("scales") if node.op_type == "Upsample" and len(node.inputs) < 2 else None
    given = translator.array(node, index, "scales") if scales is None else np.array(scales)
    wanted = translator.array(node, 3, "sizes") if given is None or not given.size else None
    if wanted is not None:
        given = wanted / np.array(own)
    if given is None or given.size != len(own) or node.attributes.get("axes"):
        raise UnsupportedAttribute(f"{node}: scales must be {len(own)} numbers: give them, or sizes, for all axes")
    return tuple(int(factor) if float(factor).is_integer() else 0 for factor in given)


def nearest(node: Node, size: int, factor: int) -> bool:
    """Whether the node's ways to compute coordinates and to round them repeat each pixel `factor` times."""
    here = np.arange(size * factor, dtype=np.float64)
    usual = "asymmetric" if node.op_type == "Upsample" else "half_pixel"
    way = node.attributes.get("coordinate_transformation_mode", usual)
    if way in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        at = (here + 0.5) / factor - 0.5
    elif way == "asymmetric":
        at = here / factor
    else:
        return False
    rounding = node.attributes.get("nearest_mode", "floor" if node.op_type == "Upsample" else "round_prefer_floor")
    modes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }
    return rounding in modes and np.array_equal(np.clip(modes[rounding](at), 0, size - 1), here // factor)


HANDLERS: dict[str, Callable[[Translator, Node], Activation]] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Resize": resize,
    "Upsample": resize,
}
