"""Convolutions and matrix products: the operators that start an accumulator of weights times activations.

Kernels are OIHW. Groups and dilations become dense kernels with zeros, which cost nothing on an array that skips
them; a matrix product becomes a convolution whose kernel covers the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sentei.host.arithmetic.float_chain import Offset
from sentei.host.errors import MissingScale, UnsupportedAttribute, UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.axes import from_model, map_axes, sizes
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.translator import Translator, by_rows_and_columns, resolve_pads
from sentei.host.frontend.values import Activation, Constant
from sentei.host.network.ir import Conv, Pads, Shape


def conv(translator: Translator, node: Node) -> Activation:
    activation = translator.map_of(node, translator.builder.as_plain(translator.activation(node), str(node)))
    levels, scale = weights(translator, node, 1)
    rank = len(activation.axes) - 1
    if levels.ndim != rank + 2:
        raise UnsupportedAttribute(
            f"{node}: kernel must have {rank} dimensions, not {levels.ndim - 2}: use 2-D convolutions"
        )
    levels = levels.reshape(*levels.shape[:2], *by_rows_and_columns(activation, list(levels.shape[2:])))
    dilations = by_rows_and_columns(activation, node.attributes.get("dilations", [1] * rank))
    groups = node.attributes.get("group", 1)
    levels = grouped(dilated(levels, dilations), groups)
    if levels.shape[1] != activation.shape.channels:
        raise UnsupportedAttribute(f"{node}: weights read {levels.shape[1]} channels, not {activation.shape.channels}")
    strides = by_rows_and_columns(activation, node.attributes.get("strides", [1] * rank))
    # A Pad before the convolution counts as part of the map when auto_pad resolves, and is merged afterwards.
    own = resolve_pads(node, activation, levels.shape[2:], strides)
    pads = Pads(*(a + b for a, b in zip(own, activation.pads, strict=True)))
    op = translator.weighted(node.name, activation, levels.astype(np.int16), strides, pads, groups)
    result = translator.accumulate(node, activation, op, scale, map_axes(activation.axes))
    bias = translator.array(node, 2, "bias")
    # onnxruntime adds a convolution's bias once, after the sum.
    return result if bias is None else result.then(Offset(bias.astype(np.float32)))


def conv_transpose(translator: Translator, node: Node) -> Activation:
    """As a convolution over the map with zeros between its rows and columns, of the kernels turned around."""
    activation = translator.map_of(node, translator.builder.as_plain(translator.activation(node), str(node)))
    rank = len(activation.axes) - 1

    def both(name: str, default: int) -> tuple[int, int]:
        return by_rows_and_columns(activation, node.attributes.get(name, [default] * rank), default)

    levels, scale = weights(translator, node, 1, channel_axis=1)
    groups = node.attributes.get("group", 1)
    channels, outputs = levels.shape[:2]
    if channels != activation.shape.channels or levels.ndim != rank + 2:
        raise UnsupportedAttribute(
            f"{node}: weights must be ({activation.shape.channels}, ..) of {rank} dimensions, not {levels.shape}"
        )
    levels = levels.reshape(channels, outputs, *by_rows_and_columns(activation, list(levels.shape[2:])))
    levels = levels.reshape(groups, channels // groups, *levels.shape[1:]).swapaxes(1, 2)
    levels = levels.reshape(groups * outputs, channels // groups, *levels.shape[3:])[:, :, ::-1, ::-1]
    kernels = grouped(dilated(levels, both("dilations", 1)), groups)
    zoom = both("strides", 1)
    pads = transposed_pads(node, activation, kernels.shape[2:], zoom, both("output_padding", 0))
    op = translator.weighted(node.name, activation, kernels.astype(np.int16), (1, 1), pads, groups, zoom)
    result = translator.accumulate(node, activation, op, np.tile(scale, groups), map_axes(activation.axes))
    bias = translator.array(node, 2, "bias")
    return result if bias is None else result.then(Offset(bias.astype(np.float32)))


def transposed_pads(
    node: Node, activation: Activation, kernel: tuple[int, ...], zoom: tuple[int, int], more: tuple[int, int]
) -> Pads:
    """What the window of a transposed convolution has around the map with its zeros."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    wanted = node.attributes.get("output_shape")
    extents = None
    if wanted is not None:
        extents = by_rows_and_columns(activation, list(wanted)[-(len(activation.axes) - 1) :])
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        extents = tuple(size * factor for size, factor in zip(activation.shape[1:], zoom, strict=True))
    if extents is None:
        own = resolve_pads(node, activation, kernel, (1, 1))
        cut = ((own.top, own.left), (own.bottom, own.right))
    else:
        total = [
            factor * (size - 1) + further + rows - extent
            for factor, size, further, rows, extent in zip(
                zoom, activation.shape[1:], more, kernel, extents, strict=True
            )
        ]
        halves = tuple(of // 2 for of in total)
        others = tuple(of - half for of, half in zip(total, halves, strict=True))
        cut = (halves, others) if mode == "SAME_UPPER" else (others, halves)
    waiting = activation.pads
    before = (
        rows - 1 - own + factor * zeros
        for rows, own, factor, zeros in zip(kernel, cut[0], zoom, waiting[:2], strict=True)
    )
    after = (
        rows - 1 - own + further + factor * zeros
        for rows, own, further, factor, zeros in zip(kernel, cut[1], more, zoom, waiting[2:], strict=True)
    )
    pads = Pads(*before, *after)
    if min(pads) < 0:
        raise UnsupportedAttribute(f"{node}: pads must be smaller than the kernel, not {cut}: cut the map by a Slice")
    return pads


def depth_to_space(translator: Translator, node: Node) -> Activation:
    """Each channel's pixels go to their places by a transposed convolution with a kernel of one 1."""
    plain, side, channels = blocks_of_pixels(translator, node)
    if channels % side**2:
        raise UnsupportedAttribute(f"{node}: {channels} channels make no blocks of {side} x {side} pixels")
    kernels = np.zeros((channels // side**2, channels, side, side), np.int16)
    for channel in range(channels):
        if node.attributes.get("mode", "DCR") == "DCR":
            place, target = divmod(channel, channels // side**2)
        else:
            target, place = divmod(channel, side**2)
        y, x = divmod(place, side)
        kernels[target, channel, side - 1 - y, side - 1 - x] = 1

    def spread(source: str) -> Conv:
        return Conv("", source, "", kernels, pads=Pads(*[side - 1] * 4), zoom=(side, side))

    return translator.builder.moved_pixels(plain, spread, node)


def space_to_depth(translator: Translator, node: Node) -> Activation:
    """A convolution whose kernels have one 1."""
    plain, side, channels = blocks_of_pixels(translator, node)
    if plain.shape.height % side or plain.shape.width % side:
        raise UnsupportedAttribute(f"{node}: {tuple(plain.shape)} has no whole number of blocks of {side} x {side}")
    kernels = np.zeros((channels * side**2, channels, side, side), np.int16)
    for target in range(len(kernels)):
        place, channel = divmod(target, channels)
        kernels[target, channel, place // side, place % side] = 1

    def gather(source: str) -> Conv:
        return Conv("", source, "", kernels, stride=(side, side))

    return translator.builder.moved_pixels(plain, gather, node)


def blocks_of_pixels(translator: Translator, node: Node) -> tuple[Activation, int, int]:
    """(quantized map, side of its blocks, channels) of a node that moves blocks of pixels to channels, or back."""
    activation = translator.map_of(node, translator.builder.as_plain(translator.activation(node), str(node)))
    if len(activation.axes) != 3 or any(activation.pads):
        raise UnsupportedAttribute(f"{node}: must read a map (N, C, H, W) without padding")
    return activation, node.attributes["blocksize"], activation.shape.channels


def matmul(translator: Translator, node: Node) -> Activation:
    return fully_connected(translator, node, transposed=False)


def gemm(translator: Translator, node: Node) -> Activation:
    for name, wanted in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        found = node.attributes.get(name, wanted)
        if found != wanted:
            raise UnsupportedAttribute(f"{node}: {name} must be {wanted}, not {found}: fold it into the weights' scale")
    return fully_connected(translator, node, transposed=bool(node.attributes.get("transB", 0)))


def fully_connected(translator: Translator, node: Node, transposed: bool) -> Activation:
    """A matrix product as a convolution: its kernel covers what the model's last axis runs over, the map or a pixel."""
    activation = translator.builder.as_plain(translator.activation(node), str(node))
    levels, scale = weights(translator, node, 1, 0 if transposed else 1)
    *others, last = activation.axes or ((),)
    shape = activation.shape
    matrix = levels if transposed else levels.T
    window = [shape[part] if part in last else 1 for part in range(3)]
    features = math.prod(window)
    whole = all(len(axis) == 0 for axis in others)
    by_pixel = last in ((0,), ()) and all(axis in ((), (1,), (2,)) for axis in others)
    if matrix.ndim != 2 or matrix.shape[1] != features or not (whole or by_pixel):
        raise UnsupportedAttribute(
            f"{node}: must multiply (N, {math.prod(shape)}) by ({math.prod(shape)}, outputs), not "
            f"({', '.join(map(str, ('N', *sizes(activation.axes, shape))))}) by {levels.shape}: put a Flatten before it"
        )
    kernel = from_model(matrix.reshape(len(matrix), -1), (last,), Shape(*window))
    op = translator.weighted(node.name, activation, kernel.astype(np.int16))
    axes = (*others, (0,))
    bias = translator.array(node, 2, "bias")
    if bias is None:
        return translator.accumulate(node, activation, op, scale, axes)
    try:
        bias = np.broadcast_to(bias, (1, len(matrix))).reshape(-1).astype(np.float32)
    except ValueError:
        raise UnsupportedAttribute(f"{node}: bias must have {len(matrix)} elements, not shape {bias.shape}") from None
    result = translator.accumulate(node, activation, op, scale, axes, bias)
    if not result.chain.known:
        return result
    return translator.accumulate(node, activation, op, scale, axes).then(Offset(bias))


def weights(translator: Translator, node: Node, index: int, channel_axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(integer levels, float32 scale (C,)) of quantized weights whose output channels lie on `channel_axis`."""
    value = translator.values[node.inputs[index]]
    if not isinstance(value, Constant):
        raise UnsupportedOperator(f"{node}: weights must be constant, not computed from the input")
    if value.levels is None and np.array_equal(value.values, np.round(value.values)) and value.values.any():
        ones = np.ones(value.values.shape, np.float32)  # whole numbers are levels, as FINN has them
        value = Constant(value.values, value.values.astype(np.int64), ones, bits_of(value.values))
    if value.levels is None:
        raise MissingScale(f"{node}: weights are not quantized: put a Quant node of at most 8 bits on them")
    if value.bits > 8 or value.levels.max(initial=0) > 127 or value.levels.min(initial=0) < -128:
        found = f"{value.bits}" if value.bits > 8 else f"{value.bits} unsigned"
        raise UnsupportedBitWidth(f"{node}: weights must have at most 8 signed bits, not {found}: quantize to 4 or 8")
    scale = np.moveaxis(value.scale, channel_axis, 0).reshape(value.scale.shape[channel_axis], -1)
    if (scale != scale[:, :1]).any():
        raise UnsupportedAttribute(
            f"{node}: weight scales must differ between output channels only: quantize per tensor or output channel"
        )
    return value.levels, scale[:, 0]


def bits_of(levels: np.ndarray) -> int:
    """Signed bits that whole numbers take."""
    return 1 + int(max(levels.max(initial=0), -1 - levels.min(initial=0))).bit_length()


def dilated(levels: np.ndarray, dilations: tuple[int, int]) -> np.ndarray:
    """OIHW kernels with zeros stuffed between their elements."""
    outputs, inputs, *kernel = levels.shape
    result = np.zeros(
        (outputs, inputs, *((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))), levels.dtype
    )
    result[:, :, :: dilations[0], :: dilations[1]] = levels
    return result


def grouped(levels: np.ndarray, groups: int) -> np.ndarray:
    """Grouped OIHW kernels as dense ones, zero outside each group's input channels."""
    outputs, inputs, *kernel = levels.shape
    result = np.zeros((outputs, inputs * groups, *kernel), levels.dtype)
    for group in range(groups):
        rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
        result[rows, group * inputs : (group + 1) * inputs] = levels[rows]
    return result


HANDLERS: dict[str, Callable[[Translator, Node], Activation]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "Gemm": gemm,
    "MatMul": matmul,
    "SpaceToDepth": space_to_depth,
}
