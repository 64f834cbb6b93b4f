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
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.translator import Constant, Translator, resolve_pads
from sentei.host.frontend.values import Activation
from sentei.host.network.ir import Conv, Pads


def conv(translator: Translator, node: Node) -> Activation:
    activation = translator.builder.as_plain(translator.activation(node), str(node))
    levels, scale = weights(translator, node, 1)
    if levels.ndim != 4 or activation.flat:
        raise UnsupportedAttribute(
            f"{node}: kernel must have 2 dimensions, not {levels.ndim - 2}: use 2-D convolutions"
        )
    levels = grouped(dilated(levels, node.attributes.get("dilations", [1, 1])), node.attributes.get("group", 1))
    if levels.shape[1] != activation.shape.channels:
        raise UnsupportedAttribute(f"{node}: weights read {levels.shape[1]} channels, not {activation.shape.channels}")
    strides = tuple(node.attributes.get("strides", [1, 1]))
    # A Pad before the convolution counts as part of the map when auto_pad resolves, and is merged afterwards.
    own = resolve_pads(node, activation.shape, levels.shape[2:], strides)
    pads = Pads(*(a + b for a, b in zip(own, activation.pads, strict=True)))
    op = Conv(node.name, activation.source, "", levels.astype(np.int16), strides, pads)
    result = translator.accumulate(node, activation, op, scale)
    bias = translator.array(node, 2, "bias")
    # onnxruntime adds a convolution's bias once, after the sum.
    return result if bias is None else result.then(Offset(bias.astype(np.float32)))


def matmul(translator: Translator, node: Node) -> Activation:
    return fully_connected(translator, node, transposed=False)


def gemm(translator: Translator, node: Node) -> Activation:
    for name, wanted in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        found = node.attributes.get(name, wanted)
        if found != wanted:
            raise UnsupportedAttribute(f"{node}: {name} must be {wanted}, not {found}: fold it into the weights' scale")
    return fully_connected(translator, node, transposed=bool(node.attributes.get("transB", 0)))


def fully_connected(translator: Translator, node: Node, transposed: bool) -> Activation:
    """A matrix product as a convolution whose kernel covers the map."""
    activation = translator.builder.as_plain(translator.activation(node), str(node))
    levels, scale = weights(translator, node, 1, 0 if transposed else 1)
    features = math.prod(activation.shape)
    matrix = levels if transposed else levels.T
    if not activation.flat or matrix.ndim != 2 or matrix.shape[1] != features:
        raise UnsupportedAttribute(
            f"{node}: must multiply (N, {features}) by ({features}, outputs), not weights {levels.shape} "
            f"and {'flat' if activation.flat else '4-D'} activations: put a Flatten before it"
        )
    op = Conv(node.name, activation.source, "", matrix.reshape(-1, *activation.shape).astype(np.int16))
    bias = translator.array(node, 2, "bias")
    if bias is None:
        return translator.accumulate(node, activation, op, scale)
    try:
        bias = np.broadcast_to(bias, (1, len(matrix))).reshape(-1).astype(np.float32)
    except ValueError:
        raise UnsupportedAttribute(f"{node}: bias must have {len(matrix)} elements, not shape {bias.shape}") from None
    result = translator.accumulate(node, activation, op, scale, bias)
    if not result.chain.known:
        return result
    return translator.accumulate(node, activation, op, scale).then(Offset(bias))


def weights(translator: Translator, node: Node, index: int, channel_axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(integer levels, float32 scale (C,)) of quantized weights whose output channels lie on `channel_axis`."""
    value = translator.values[node.inputs[index]]
    if not isinstance(value, Constant):
        raise UnsupportedOperator(f"{node}: weights must be constant, not computed from the input")
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


def dilated(levels: np.ndarray, dilations: list[int]) -> np.ndarray:
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


HANDLERS: dict[str, Callable[[Translator, Node], Activation]] = {"Conv": conv, "Gemm": gemm, "MatMul": matmul}
