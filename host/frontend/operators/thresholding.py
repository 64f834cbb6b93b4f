"""Quantizers that are not Quant nodes: FINN's MultiThreshold, and Trunc."""

from __future__ import annotations

import numpy as np

from sentei.host.arithmetic.float_chain import Quantizer, Thresholds
from sentei.host.errors import MissingScale, UnsupportedAttribute, UnsupportedBitWidth
from sentei.host.frontend.builder import required
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.operators.quantizers import quantize, quantized, rounding_of
from sentei.host.frontend.translator import Handler, Translator
from sentei.host.frontend.values import Activation, RawInput, Value


def multi_threshold(translator: Translator, node: Node) -> Value:
    """out_scale * (how many thresholds of the channel are reached) + out_bias."""
    source = translator.values[node.inputs[0]]
    table = required(translator.array(node, 1, "thresholds"), "thresholds").astype(np.float32)
    scale, bias = (np.float32(node.attributes.get(name, value)) for name, value in (("out_scale", 1), ("out_bias", 0)))
    if table.ndim != 2 or not table.shape[1] or np.isnan(table).any() or (np.diff(table, axis=1) < 0).any():
        raise UnsupportedAttribute(f"{node}: thresholds must be a matrix of rising rows, not of shape {table.shape}")
    stride = next((stride for stride in (1, 2) if float(bias / scale * stride).is_integer()), None)
    if scale <= 0 or stride is None:
        raise UnsupportedAttribute(f"{node}: out_bias must be a multiple of out_scale / 2, not {bias} of {scale}")
    first = int(bias / scale * stride)
    low, high = min(first, 0), max(first + stride * table.shape[1], 0)
    bits = (high - low).bit_length()
    if isinstance(source, RawInput):
        raise MissingScale(
            f"{node}: reads the graph's input {source.name!r}, and the model does not say which integers that holds: "
            "say it, as --input uint8, or --input int8:1/128 with what one step means"
        )
    if isinstance(source, Activation) and source.axes and bits <= 4:
        channels = source.shape.channels
        if len(table) not in (1, channels) or (len(table) > 1 and channel_axis(node, source) != 0):
            raise UnsupportedAttribute(f"{node}: must have thresholds for 1 or {channels} channels, not {len(table)}")
        table = np.broadcast_to(table, (channels, table.shape[1]))
    elif bits > 4:
        raise UnsupportedBitWidth(f"{node}: activations must have at most 4 bits, not {bits}: quantize to 4")
    quantizer = Thresholds(
        scale / np.float32(stride), bits, False, False, np.round, -low, table=table, first=first, stride=stride
    )
    return quantize(translator, node, source, quantizer, "THRESHOLDS")


def channel_axis(node: Node, activation: Activation) -> int | None:
    """Which of channels (0), rows and columns the node takes for its channels; None if that is not one axis."""
    layout, rank = node.attributes.get("data_layout", ""), 1 + len(activation.axes)
    if len(layout) != rank:
        layout = {2: "NC", 3: "NWC", 4: "NCHW"}.get(rank, "NC")
    axis = activation.axes[(layout.index("C") if "C" in layout else 1) - 1]
    return axis[0] if len(axis) == 1 else 0 if activation.shape.channels == 1 or axis == () else None


def trunc(translator: Translator, node: Node) -> Value:
    """Trunc: integers of the input without their lowest bits."""
    values = [required(translator.array(node, index, "parameter"), "parameter") for index in range(1, len(node.inputs))]
    if len(values) not in (4, 5) or any(value.size != 1 for value in values):
        raise UnsupportedAttribute(f"{node}: must have scale, zero point and bit widths, one number each")
    numbers = [float(value.flat[0]) for value in values]
    scale, zero_point, bits_in, bits_out = numbers[0], numbers[1], int(numbers[2]), int(numbers[-1])
    second = len(values) == 5
    fraction = round(numbers[3] / scale if second else 2.0 ** (bits_in - bits_out))
    if zero_point or fraction < 1 or fraction & (fraction - 1):
        raise UnsupportedAttribute(f"{node}: zero point must be 0, and the scales a power of two apart")
    source = translator.values[node.inputs[0]]
    activation = source if isinstance(source, RawInput) else translator.bare_activation(node)
    negative = not isinstance(activation, RawInput) and translator.builder.tensors[activation.source].low < 0
    signed, narrow = bool(node.attributes.get("signed", negative)), bool(node.attributes.get("narrow", 0))
    mode = node.attributes.get("rounding_mode", "FLOOR")
    # The first version does not clip, and keeps the scale, so that what is left counts less.
    worth = numbers[3] if second else scale
    divisor, rounding = np.float32(scale * fraction), rounding_of(node, mode)
    quantizer = Quantizer(divisor, bits_out, signed, narrow, rounding, fraction=fraction, worth=worth)
    return quantized(translator, node, node.inputs[0], activation, quantizer, mode)


HANDLERS: dict[str, Handler] = {"MultiThreshold": multi_threshold, "Trunc": trunc}
