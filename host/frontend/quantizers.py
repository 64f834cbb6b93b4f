"""Quant nodes: the one on the graph's input defines what the network is fed, those on constants make kernels, those on
activations end an accumulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from qonnx.custom_op.general.intquant import resolve_rounding_mode

from sentei.host.arithmetic.float_chain import Quantizer
from sentei.host.errors import MissingScale, UnsupportedAttribute, UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.inputs import preprocessing
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.translator import Constant, RawInput, Translator, Value, required
from sentei.host.frontend.values import Activation
from sentei.host.network.ir import Preprocessing


def quant(translator: Translator, node: Node) -> Value:
    """Quant: defines the input tensor, quantizes weights, or ends an accumulator."""
    source = translator.values[node.inputs[0]]
    scale, bits = quant_parameters(translator, node)
    signed, narrow = bool(node.attributes.get("signed", 1)), bool(node.attributes.get("narrow", 1))
    mode = node.attributes.get("rounding_mode", "ROUND")
    try:
        rounding = resolve_rounding_mode(mode)
    except ValueError:
        raise UnsupportedAttribute(f"{node}: rounding_mode {mode!r} is not known: use 'ROUND'") from None
    if isinstance(source, Constant):
        return quantized_constant(node, source.values, scale, bits, signed, narrow, rounding)
    if scale.size and (scale != scale.flat[0]).any():
        raise UnsupportedAttribute(
            f"{node}: an activation's scale must be one number, not {scale.size} of them: quantize per tensor"
        )
    quantizer = Quantizer(np.float32(scale.flat[0]), bits, signed, narrow, rounding)
    key = (node.inputs[0], quantizer.scale, bits, signed, narrow, mode.upper())
    if key not in translator.builder.quantized:
        translator.builder.quantized[key] = quantize(translator, node, source, quantizer)
    return translator.builder.quantized[key]


def quantize(translator: Translator, node: Node, source: RawInput | Activation, quantizer: Quantizer) -> Activation:
    if isinstance(source, RawInput):
        return quantize_input(translator, node, source, quantizer)
    activation = translator.bare_activation(node)
    tensor = translator.builder.tensors[activation.source]
    levels = np.arange(tensor.low, tensor.high + 1)
    if activation.plain:
        same_values = np.array_equal(quantizer(levels.astype(np.float32) * np.float32(tensor.scale)), levels)
        if same_values and quantizer.scale == np.float32(tensor.scale):
            return activation
    if renames_input(translator, activation, quantizer, levels):
        return translator.builder.activation_of(tensor.name, str(node), activation.flat)
    if quantizer.bits > 4:
        raise UnsupportedBitWidth(f"{node}: activations must have at most 4 bits, not {quantizer.bits}: quantize to 4")
    return translator.builder.quantize(activation, quantizer, node.outputs[0], node)


def renames_input(translator: Translator, activation: Activation, quantizer: Quantizer, levels: np.ndarray) -> bool:
    """Whether a Quant node gives the network's input, so far unused, another scale and nothing else; then it has it."""
    builder, name = translator.builder, activation.source
    tensor = builder.tensors[name]
    if builder.ops or activation.op is not None or activation.maximum is not None or activation.chain.residual:
        return False
    channels = np.broadcast_to(levels, (tensor.shape.channels, len(levels)))
    moved = quantizer(activation.chain(channels, np.zeros_like(channels)))
    if quantizer.bits > 8 or not np.array_equal(moved, channels):
        return False
    if builder.preprocessing is None:
        step = (tensor.scale,) * tensor.shape.channels
        builder.preprocessing = Preprocessing(step, (0.0,) * tensor.shape.channels)
    builder.tensors[name] = replace(tensor, scale=float(quantizer.scale))
    return True


def quantize_input(translator: Translator, node: Node, source: RawInput, quantizer: Quantizer) -> Activation:
    if quantizer.bits > 8:
        raise UnsupportedBitWidth(f"{node}: the input must have at most 8 bits, not {quantizer.bits}: quantize to 8")
    if source.name in translator.builder.tensors:
        raise UnsupportedOperator(f"{node}: the graph's input is quantized in two ways: use one Quant node on it")
    builder = translator.builder
    builder.preprocessing = preprocessing(source.operations, quantizer, source.shape.channels, str(node))
    return translator.builder.add_input(source.name, source.shape, quantizer, str(node), source.flat)


def quant_parameters(translator: Translator, node: Node) -> tuple[np.ndarray, int]:
    """(scale as float32 array, bits) of a Quant node, checked."""
    parameters: list[np.ndarray] = []
    for index, what in ((1, "scale"), (2, "zero point"), (3, "bit width")):
        value = translator.values.get(node.inputs[index]) if index < len(node.inputs) else None
        if not isinstance(value, Constant):
            raise MissingScale(f"{node}: {what} must be a constant, not computed by the model: export it as constant")
        parameters.append(value.values)
    scale, zero_point, bits = parameters
    if not scale.size or not (np.isfinite(scale) & (scale > 0)).all():
        raise MissingScale(f"{node}: scale must be positive, not {scale.min(initial=0)}: calibrate the quantizer")
    if zero_point.any():
        raise UnsupportedAttribute(
            f"{node}: zero point must be 0, not {zero_point[zero_point != 0].flat[0]}: quantize symmetrically"
        )
    if bits.size != 1 or bits.flat[0] != int(bits.flat[0]) or bits.flat[0] < 1:
        raise UnsupportedBitWidth(f"{node}: bit width must be one whole number from 1, not {bits.tolist()}")
    if bits.flat[0] == 1 and node.attributes.get("signed", 1):
        raise UnsupportedBitWidth(f"{node}: signed values must have at least 2 bits, not 1: bipolar is not supported")
    return scale.astype(np.float32), int(bits.flat[0])


def quantized_constant(
    node: Node, values: np.ndarray, scale: np.ndarray, bits: int, signed: bool, narrow: bool, rounding: Callable
) -> Constant:
    """Quant of a constant: its levels, and the float32 values that the model computes from them."""
    try:
        scales = np.broadcast_to(scale, values.shape)
    except ValueError:
        raise UnsupportedAttribute(f"{node}: scale {scale.shape} does not fit weights {values.shape}") from None
    limits = Quantizer(np.float32(1), bits, signed, narrow, rounding)
    levels = rounding(np.clip(values / scales, np.float32(limits.low), np.float32(limits.high)))
    return Constant((levels * scales).astype(np.float32), levels.astype(np.int64), scales, bits)


def bipolar(x: np.ndarray) -> np.ndarray:
    """-1 below 0, else 1."""
    return np.where(np.asarray(x) >= 0, 1.0, -1.0)


def bipolar_quant(translator: Translator, node: Node) -> Value:
    """BipolarQuant: a sign times a scale, which takes two signed bits here."""
    source = translator.values[node.inputs[0]]
    scale = required(translator.array(node, 1, "scale"), "scale").astype(np.float32)
    if not scale.size or not (np.isfinite(scale) & (scale > 0)).all():
        raise MissingScale(f"{node}: scale must be positive, not {scale.min(initial=0)}: calibrate the quantizer")
    if isinstance(source, Constant):
        return quantized_constant(node, source.values, scale, 2, True, True, bipolar)
    if (scale != scale.flat[0]).any():
        raise UnsupportedAttribute(
            f"{node}: an activation's scale must be one number, not {scale.size} of them: quantize per tensor"
        )
    return quantize(translator, node, source, Quantizer(np.float32(scale.flat[0]), 2, True, True, bipolar))


HANDLERS: dict[str, Callable[[Translator, Node], Value]] = {
    "Quant": quant,
    "IntQuant": quant,
    "BipolarQuant": bipolar_quant,
}
