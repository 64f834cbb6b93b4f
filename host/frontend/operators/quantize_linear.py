"""ONNX's own quantization: QuantizeLinear, a Clip that may narrow its range, and DequantizeLinear."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from sentei.host.arithmetic.float_chain import Quantizer
from sentei.host.errors import MissingScale, UnsupportedAttribute, UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.inputs import InputType
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.operators.quantizers import quantize_input, quantized, scale_of
from sentei.host.frontend.translator import Handler, Translator
from sentei.host.frontend.values import Activation, Constant, Levels, RawInput, Tail, Value
from sentei.host.network.ir import Preprocessing


def quantize_linear(translator: Translator, node: Node) -> Value:
    source = translator.values[node.inputs[0]]
    scale, zero_point = parameters(translator, node)
    kind = integer_type(node, zero_point)
    if isinstance(source, Constant):
        spread_scale, spread_zero = along_axis(node, source.values, scale), along_axis(node, source.values, zero_point)
        limits = Quantizer(np.float32(1), kind.bits, kind.signed, False, np.round)
        levels = np.round(source.values / spread_scale) + spread_zero
        return Constant(np.clip(levels, limits.low, limits.high).astype(np.int64))
    if not isinstance(source, Activation | RawInput | Tail) or {*np.shape(zero_point)} - {1}:
        raise UnsupportedAttribute(f"{node}: activations must be quantized per tensor, not for each channel")
    zero = int(zero_point.flat[0])
    quantizer = Quantizer(scale_of(node, scale), kind.bits, kind.signed, False, np.round, zero, late=True)
    return Levels(node.inputs[0], source, quantizer)


def dequantize_linear(translator: Translator, node: Node) -> Value:
    source = translator.values[node.inputs[0]]
    scale, zero_point = parameters(translator, node)
    if isinstance(source, Constant):
        scales = along_axis(node, source.values, scale)
        levels = source.values.astype(np.int64) - along_axis(node, source.values, zero_point).astype(np.int64)
        bits = 1 + int(max(levels.max(initial=0), -1 - levels.min(initial=0))).bit_length()
        return Constant((levels.astype(np.float32) * scales).astype(np.float32), levels, scales, bits)
    if isinstance(source, RawInput) and source.integers is not None:
        return dequantized_input(translator, node, source, scale_of(node, scale), int(zero_point.flat[0]))
    if not isinstance(source, Levels):
        raise UnsupportedOperator(f"{node}: must read a QuantizeLinear, a Clip of one, or a constant")
    quantizer = source.quantizer
    own = quantizer.zero_point + source.moved
    if scale.size != 1 or np.float32(scale.flat[0]) != quantizer.scale or int(zero_point.flat[0]) != own:
        raise UnsupportedAttribute(
            f"{node}: scale and zero point must be those of its QuantizeLinear, {quantizer.scale} and "
            f"{own}, not {scale.flat[0]} and {zero_point.flat[0]}"
        )
    return quantized(translator, node, source.name, source.source, quantizer, "ROUND")


def dequantized_input(
    translator: Translator, node: Node, source: RawInput, scale: np.float32, zero_point: int
) -> Activation:
    """The input of a model that takes integers."""
    kind = source.integers or InputType(8, False, 1.0)
    quantizer = Quantizer(scale, kind.bits, kind.signed, False, np.round, zero_point, late=True)
    activation = quantize_input(translator, str(node), source, quantizer)
    ones = np.ones(activation.shape.channels)
    levels = translator.builder.tensors[activation.source].integers
    translator.builder.preprocessing = Preprocessing.of_steps(levels, ones, ones * zero_point)
    return activation


def narrowed(node: Node, levels: Levels, low: float, high: float) -> Levels:
    """A Clip of quantized integers: fewer bits, or a narrow range."""
    own = levels.quantizer
    low, high = max(low, own.low + own.zero_point), min(high, own.high + own.zero_point)
    for bits in range(1, 9):
        for signed in (False, True):
            for narrow in (False, True):
                found = replace(own, bits=bits, signed=signed, narrow=narrow)
                if (found.low + found.zero_point, found.high + found.zero_point) == (low, high):
                    return replace(levels, quantizer=found)
    bits = int(high - low).bit_length()
    if int(high - low) + 1 != 1 << bits:
        raise UnsupportedBitWidth(f"{node}: its range must be that of whole bits, not {low:g} to {high:g}")
    # As unsigned integers from 0 on.
    found = replace(own, bits=bits, signed=False, zero_point=own.zero_point - int(low))
    return replace(levels, quantizer=found, moved=int(low))


def parameters(translator: Translator, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """(scale as float32, zero point) of a node, checked."""
    scale = translator.array(node, 1, "scale")
    zero_point = translator.array(node, 2, "zero point")
    if scale is None or not scale.size or not (np.isfinite(scale) & (scale > 0)).all():
        raise MissingScale(f"{node}: scale must be positive: calibrate the quantizer")
    if node.attributes.get("block_size", 0):
        raise UnsupportedAttribute(f"{node}: block_size must be 0: quantize per tensor or per channel")
    return scale.astype(np.float32), np.zeros(1, np.uint8) if zero_point is None else zero_point


def integer_type(node: Node, zero_point: np.ndarray) -> InputType:
    """Which integers a QuantizeLinear makes: those of its zero point."""
    match = re.fullmatch(r"(u?)int(\d+)", zero_point.dtype.name)
    if match is None:
        raise UnsupportedBitWidth(f"{node}: must make integers, not {zero_point.dtype.name}")
    return InputType(int(match[2]), not match[1], 1.0)


def along_axis(node: Node, values: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    """One number, or one for each element of the node's axis, as an array of the shape of `values`."""
    if parameter.size == 1:
        return np.broadcast_to(parameter.reshape(()), values.shape)
    axis = node.attributes.get("axis", 1) % values.ndim
    return np.broadcast_to(parameter.reshape(-1, *(1,) * (values.ndim - 1 - axis)), values.shape)


HANDLERS: dict[str, Handler] = {"DequantizeLinear": dequantize_linear, "QuantizeLinear": quantize_linear}
