"""Networks as frameworks export them: float scales for tensors and channels, biases, every rounding mode, zero points,
batch norms before or behind the activation, residuals; drawn by hypothesis.

`differences` compares a network with qonnx layer by layer, each fed with qonnx's own integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from helpers.random_networks import QUANT_DOMAIN, ModelWriter
from hypothesis import strategies as st
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes

from sentei.host.network import reference
from sentei.host.network.ir import WIDE, Network

MODES = ("ROUND", "HALF_EVEN", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN")


@dataclass(frozen=True)
class Layer:
    """What a layer of a `FloatModel` is."""

    kernel: int
    channels: int
    per_channel: bool
    bits: int
    bias: bool
    norm: str  # "", "before" the activation, "behind" it
    relu: bool
    mode: str
    zero_point: int
    residual: bool
    scale: float


@st.composite
def layers(draw) -> Layer:
    relu = draw(st.booleans())
    return Layer(
        kernel=draw(st.sampled_from([1, 3])),
        channels=draw(st.integers(1, 12)),
        per_channel=draw(st.booleans()),
        bits=draw(st.sampled_from([2, 3, 4, 8])),
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from(["", "before", "behind"])),
        relu=relu,
        mode=draw(st.sampled_from(MODES)),
        zero_point=draw(st.sampled_from([0, 0, 0, 1, 5, 8])),
        residual=draw(st.booleans()),
        scale=draw(st.sampled_from([0.5, 0.25, 0.1, 0.0371, 1 / 3])),
    )


@st.composite
def float_models(draw) -> onnx.ModelProto:
    """A model of one to four such layers on a small picture, and a fully connected head or none."""
    seed = draw(st.integers(0, 1 << 32))
    stack = draw(st.lists(layers(), min_size=1, max_size=4))
    head = draw(st.sampled_from(["", "MatMul", "Gemm"]))
    signed, scale = draw(st.booleans()), draw(st.sampled_from([1 / 255, 2.0**-7, 0.0123]))
    return build(np.random.default_rng(seed), stack, head, signed, scale)


def build(random: np.random.Generator, stack: list[Layer], head: str, signed: bool, scale: float) -> onnx.ModelProto:
    writer = ModelWriter()
    channels, height, width = 3, int(random.integers(3, 8)), int(random.integers(3, 8))
    shape = (2, channels, height, width)
    current, current_scale = writer.quant("input", scale, 8, signed), scale
    earlier: tuple[str, int] | None = None
    for layer in stack:
        outputs = earlier[1] if layer.residual and earlier is not None else layer.channels
        name, unit = weighted(writer, random, layer, current, (outputs, channels, layer.kernel, layer.kernel))
        spread = 3.0 * current_scale * unit * np.sqrt(channels) * layer.kernel * (1 << layer.bits)
        if layer.norm == "before":
            name = norm(writer, random, name, outputs, spread)
            spread = 2.0
        if layer.residual and earlier is not None:
            name = writer.node("Add", name, earlier[0])
        if layer.relu:
            name = writer.node("Relu", name)
        if layer.norm == "behind":
            name = norm(writer, random, name, outputs, spread)
            spread = 2.0
        step = float(np.float32(layer.scale * spread))
        current, current_scale = quant(writer, name, step, not layer.relu, layer), step
        earlier, channels = (current, outputs), outputs
    if head:
        flat = writer.node("Flatten", current)
        features = channels * height * width
        weights = writer.quant(writer.constant(random.normal(size=(features, 5))), 0.11, 4, True)
        bias = (writer.constant(random.normal(size=5)),) if head == "Gemm" else ()
        return writer.model(shape, writer.node(head, flat, weights, *bias), 2)
    return writer.model(shape, current, 4)


def weighted(writer, random, layer: Layer, source: str, shape: tuple[int, ...]) -> tuple[str, float]:
    """A convolution; (its name, the largest scale of its weights)."""
    limit = 1 << (layer.bits - 1)
    scales = random.uniform(0.02, 0.1, (shape[0], 1, 1, 1)) if layer.per_channel else random.uniform(0.02, 0.1)
    levels = random.integers(-limit, limit, shape) * (random.random(shape) < 0.7)
    weights = writer.quant(writer.constant(levels * scales), scales, layer.bits, True)
    bias = (writer.constant(random.normal(size=shape[0])),) if layer.bias else ()
    name = writer.node("Conv", source, weights, *bias, pads=[layer.kernel // 2] * 4)
    return name, float(np.max(scales))


def norm(writer, random, source: str, channels: int, spread: float) -> str:
    gamma = random.uniform(0.5, 1.5, channels) * random.choice([-1, 1, 1, 1], channels)
    statistics = (gamma, random.normal(size=channels), random.normal(size=channels) * spread / 4)
    variance = writer.constant(random.uniform(0.5, 1.5, channels) * spread**2)
    return writer.node("BatchNormalization", source, *map(writer.constant, statistics), variance)


def quant(writer: ModelWriter, source: str, scale: float, signed: bool, layer: Layer) -> str:
    zero_point = min(layer.zero_point, 7) * (-1 if signed else 1)
    parameters = (writer.constant(scale), writer.constant(float(zero_point)), writer.constant(4.0))
    attributes = {"signed": int(signed), "narrow": 0, "rounding_mode": layer.mode}
    return writer.node("Quant", source, *parameters, domain=QUANT_DOMAIN, **attributes)


def differences(model: onnx.ModelProto, network: Network, images: np.ndarray) -> dict[str, int]:
    """For each layer how many of its sums (channel, accumulator and residual) qonnx decides otherwise; for an output
    that is handed out whole, how many numbers differ."""
    source = model.graph.input[0].name
    wrapper = ModelWrapper(model).transform(InferShapes())
    context = execute_onnx(wrapper, {source: network.model_input(images)}, return_full_exec_context=True)
    values = {network.input: np.ascontiguousarray(images.transpose(1, 0, 2, 3))}
    found = {}
    for op in network.ops:
        tensor = network.tensors[op.output]
        ours = reference.execute(op, values, network.tensors)
        if tensor.bits == WIDE:
            numbers = network.model_output(ours.transpose(1, 0, 2, 3)).reshape(len(images), -1)
            theirs = context[model.graph.output[0].name].reshape(len(images), -1)
            near = np.isclose(numbers, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
            exact = not any(doubt.outputs for doubt in network.doubts)
            found[op.name] = int((numbers != theirs).sum() if exact else (~near).sum())
        elif op.output in context:
            levels = np.round(context[op.output] / np.float32(tensor.scale)).astype(np.int64)
            theirs = np.ascontiguousarray(levels.transpose(1, 0, 2, 3))
            wide = reference.execute(without_levels(op), values, network.tensors | {op.output: as_wide(tensor)})
            residual = op.requantize.residual
            added = values[residual] if residual else np.zeros_like(theirs)
            places = np.argwhere(ours != theirs)
            found[op.name] = len({(c, int(wide[c, n, y, x]), int(added[c, n, y, x])) for c, n, y, x in places})
            ours = theirs
        values[op.output] = ours.astype(np.int32)
    return found


def without_levels(op):
    return type(op)(**{**op.__dict__, "requantize": None})


def as_wide(tensor):
    return type(tensor)(tensor.name, tensor.shape, WIDE, True)
