"""Quant nodes: the one on the graph's input defines what the network is fed, those on constants make kernels, those on
activations end an accumulator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from qonnx.custom_op.general.intquant import resolve_rounding_mode

from sentei.host.arithmetic.float_chain import Clamp, Operation, Quantizer
from sentei.host.errors import MissingScale, UnsupportedAttribute, UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.axes import NCHW, NHWC, Axes, regroup, sizes
from sentei.host.frontend.builder import quantized_tensor, required
from sentei.host.frontend.inputs import preprocessing
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.translator import Translator
from sentei.host.frontend.values import Activation, Constant, RawInput, Tail, Value
from sentei.host.network.ir import InputOrder, Shape
from sentei.overlay.tail import TailStep


def quant(translator: Translator, node: Node) -> Value:
    """Quant: defines the input tensor, quantizes weights, or ends an accumulator."""
    source = translator.values[node.inputs[0]]
    scale, zero_point, bits = quant_parameters(translator, node)
    signed, narrow = bool(node.attributes.get("signed", 1)), bool(node.attributes.get("narrow", 1))
    mode = node.attributes.get("rounding_mode", "ROUND")
    rounding = rounding_of(node, mode)
    if bits == 1 and signed:
        bits, narrow, rounding = 2, True, bipolar  # as qonnx does
    whole = zero_point == np.round(zero_point)
    if isinstance(source, Constant):
        return quantized_constant(node, source.values, scale, zero_point, bits, signed, narrow, rounding)
    if not whole.all() or len({*zero_point.ravel().tolist()}) > 1:
        raise UnsupportedAttribute(
            f"{node}: an activation's zero point must be one whole number, not {zero_point.ravel().tolist()[:3]}"
        )
    zero = int(zero_point.flat[0])
    quantizer = Quantizer(scale_of(node, scale), bits, signed, narrow, rounding, zero)
    return quantized(translator, node, node.inputs[0], source, quantizer, mode.upper())


def rounding_of(node: Node, mode: str) -> Callable:
    try:
        return resolve_rounding_mode("DOWN" if mode.upper() == "ROUND_TO_ZERO" else mode)
    except ValueError:
        raise UnsupportedAttribute(f"{node}: rounding_mode {mode!r} is not known: use 'ROUND'") from None


def scale_of(node: Node, scale: np.ndarray) -> np.float32:
    """The one scale of an activation."""
    if (scale != scale.flat[0]).any():
        raise UnsupportedAttribute(
            f"{node}: an activation's scale must be one number, not {scale.size} of them: quantize per tensor"
        )
    return np.float32(scale.flat[0])


def quantized(translator: Translator, node: Node, name: str, source: Value, quantizer: Quantizer, mode: str) -> Value:
    """`quantize`, but once only for each value and quantizer."""
    limits = (quantizer.scale, quantizer.bits, quantizer.signed, quantizer.narrow, quantizer.zero_point, quantizer.late)
    key = (name, *limits, quantizer.fraction, mode)
    if key not in translator.builder.quantized:
        result = quantize(translator, node, source, quantizer, mode)
        if not isinstance(result, Activation):
            return result
        translator.builder.quantized[key] = result
    return translator.builder.quantized[key]


def quantize(translator: Translator, node: Node, source: Value, quantizer: Quantizer, mode: str) -> Value:
    if not quantizer.low <= 0 <= quantizer.high:
        raise UnsupportedAttribute(
            f"{node}: zero must be one of its values, which are {quantizer.low} to {quantizer.high} steps: use a zero "
            "point within the range"
        )
    if isinstance(source, RawInput):
        return quantize_input(translator, str(node), source, quantizer)
    refusal = UnsupportedBitWidth(f"{node}: activations must have at most 8 bits, not {quantizer.bits}: quantize to 4")
    if isinstance(source, Tail) and source.stored is None:
        return quantized_by_the_host(source, quantizer, mode)
    activation = translator.bare(node, source)
    if activation.stored_maximum and quantizer.bits > 4:
        activation = translator.builder.as_plain(activation, str(node))
    tensor = translator.builder.tensors[activation.source]
    levels = np.arange(tensor.low, tensor.high + 1)
    wide = activation.stored_wide
    if wide is not None and wide.whole == quantized_tensor(wide.whole.name, wide.whole.shape, quantizer):
        return activation
    if activation.plain:
        same_values = np.array_equal(quantizer(levels.astype(np.float32) * np.float32(tensor.scale)), levels)
        if same_values and quantizer.scale == np.float32(tensor.scale):
            return activation
    renamed = translator.builder.rename_input(activation, quantizer, str(node), translator.values)
    if renamed is not None:
        return renamed
    if quantizer.bits > 4:
        tail = Tail(activation, (), sizes(activation.axes, activation.shape), refusal)
        if quantizer.bits > 8:
            return quantized_by_the_host(tail, quantizer, mode)
        builder = translator.builder
        stored = cache(lambda: builder.quantize_wide(activation, quantizer, node.outputs[0], node))
        return replace(quantized_by_the_host(tail, quantizer, mode), stored=stored)
    return translator.builder.quantize(activation, quantizer, node.outputs[0], node)


def quantized_by_the_host(tail: Tail, quantizer: Quantizer, mode: str) -> Tail:
    """A Quant node behind which nothing follows that the array computes."""
    if quantizer.fraction > 1 or quantizer.rounding is bipolar:
        raise tail.refusal
    limits = {"low": quantizer.low + quantizer.shift, "high": quantizer.high + quantizer.shift}
    of_all = {"scale": [float(quantizer.scale)], "sizes": [1] * len(tail.sizes)}
    return tail.then(TailStep("quantize", {**of_all, **limits, "zero_point": quantizer.shift, "rounding": mode}))


def quantize_input(translator: Translator, node: str, source: RawInput, quantizer: Quantizer) -> Activation:
    """The network's input: from here on the model's input is integers."""
    if quantizer.bits > 8:
        raise UnsupportedBitWidth(f"{node}: the input must have at most 8 bits, not {quantizer.bits}: quantize to 8")
    if source.name in translator.builder.tensors:
        raise UnsupportedOperator(f"{node}: the graph's input is quantized in two ways: use one Quant node on it")
    elements, axes = map_of_input(node, source)
    one_each = [along_channels(node, operation, elements) for operation in source.operations]
    found = preprocessing(tuple(one_each), quantizer, len(elements), node)
    order = InputOrder(elements, source.dims)
    return translator.builder.add_input(source.name, order, quantizer, node, axes, found)


def map_of_input(node: str, source: RawInput) -> tuple[np.ndarray, Axes]:
    """The input's elements as a map (C, H, W), and how the model's axes run over it."""
    untouched = (np.diff(source.elements.ravel()) == 1).all()
    candidates = [np.arange(source.elements.size).reshape(source.dims)] if untouched else []
    axes: Axes
    for elements in (*candidates, source.elements):
        while elements.ndim > 3 and 1 in elements.shape:
            elements = elements.squeeze(elements.shape.index(1))
        if elements.ndim > 3:
            break
        if elements.ndim == 2:
            elements, axes = elements[:, None], ((0,), (2,))
        elif elements.ndim == 1:
            elements, axes = elements[:, None, None], ((0,),)
        else:
            axes = NCHW
            colours = elements.shape[2] in (1, 3) and elements.shape[0] not in (1, 3)
            last = colours and len(source.sizes) == 1  # a picture that the model flattens
            if last or not all(constant_over_map(operation, elements) for operation in source.operations):
                elements, axes = elements.transpose(2, 0, 1), NHWC
        found = regroup(axes, Shape(*elements.shape), list(source.sizes))
        if found is not None:
            return elements, found
    raise UnsupportedAttribute(
        f"{node}: quantizes an input of shape {(1, *source.sizes)}: it must be (N, C, H, W), (N, C, L) or (N, features)"
    )


def constant_over_map(operation: Operation, elements: np.ndarray) -> bool:
    """Whether an operation of a `RawInput` is the same for all pixels of a channel of `elements` (C, H, W)."""
    return all(
        (values[elements] == values[elements][:, :1, :1]).all()
        for values in operation.__dict__.values()
        if values.shape
    )


def along_channels(node: str, operation: Operation, elements: np.ndarray) -> Operation:
    """An operation of a `RawInput` with one number for each channel of `elements` (C, H, W)."""
    if not constant_over_map(operation, elements):
        raise UnsupportedAttribute(
            f"{node}: what is done to the input before must not vary over the map: use one number for each channel"
        )
    if isinstance(operation, Clamp):
        return operation
    return type(operation)(*(values[elements[:, 0, 0]] for values in operation.__dict__.values()))


def quant_parameters(translator: Translator, node: Node) -> tuple[np.ndarray, np.ndarray, int]:
    """(scale and zero point as float32 arrays, bits) of a Quant node, checked."""
    parameters: list[np.ndarray] = []
    for index, what in ((1, "scale"), (2, "zero point"), (3, "bit width")):
        value = translator.values.get(node.inputs[index]) if index < len(node.inputs) else None
        if not isinstance(value, Constant):
            raise MissingScale(f"{node}: {what} must be a constant, not computed by the model: export it as constant")
        parameters.append(value.values)
    scale, zero_point, bits = parameters
    if not scale.size or not (np.isfinite(scale) & (scale > 0)).all():
        raise MissingScale(f"{node}: scale must be positive, not {scale.min(initial=0)}: calibrate the quantizer")
    if not zero_point.size or not np.isfinite(zero_point).all():
        raise UnsupportedAttribute(f"{node}: zero point must be a finite number: calibrate the quantizer")
    if bits.size != 1 or bits.flat[0] != int(bits.flat[0]) or bits.flat[0] < 1:
        raise UnsupportedBitWidth(f"{node}: bit width must be one whole number from 1, not {bits.tolist()}")
    return scale.astype(np.float32), zero_point.astype(np.float32), int(bits.flat[0])


def quantized_constant(
    node: Node,
    values: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    bits: int,
    signed: bool,
    narrow: bool,
    rounding: Callable,
) -> Constant:
    """Quant of a constant: its levels, and the float32 values that the model computes from them."""
    try:
        scales = np.broadcast_to(scale, values.shape)
        zeros = np.broadcast_to(zero_point, values.shape)
    except ValueError:
        raise UnsupportedAttribute(
            f"{node}: scale {scale.shape} and zero point {zero_point.shape} do not fit weights {values.shape}"
        ) from None
    limits = Quantizer(np.float32(1), bits, signed, narrow, rounding)
    levels = rounding(np.clip(values / scales + zeros, np.float32(limits.low), np.float32(limits.high))) - zeros
    whole = np.array_equal(levels, np.round(levels))
    found = Constant((levels * scales).astype(np.float32), levels.astype(np.int64), scales, bits)
    return found if whole else Constant(found.values)


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
        return quantized_constant(node, source.values, scale, np.zeros(1, np.float32), 2, True, True, bipolar)
    quantizer = Quantizer(scale_of(node, scale), 2, True, True, bipolar)
    return quantized(translator, node, node.inputs[0], source, quantizer, "BIPOLAR")


HANDLERS: dict[str, Callable[[Translator, Node], Value]] = {
    "Quant": quant,
    "IntQuant": quant,
    "BipolarQuant": bipolar_quant,
}
