"""A small QONNX classifier: pictures of 10x12 gray pixels, two convolutions, a residual, a pool, five classes."""

from __future__ import annotations

import numpy as np
import onnx
from helpers.random_networks import ModelWriter

CHANNELS, HEIGHT, WIDTH, CLASSES = 1, 10, 12, 5


def small_model(seed: int = 0) -> onnx.ModelProto:
    writer = ModelWriter()
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> str:
        levels = random.integers(-7, 8, shape) * (random.random(shape) < 0.7)
        return writer.quant(writer.constant(levels * 0.125), 0.125, 4, True)

    def conv(source: str, inputs: int) -> str:
        return writer.node("Conv", source, weights(6, inputs, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def quant(source: str, scale: float) -> str:
        return writer.quant(writer.node("Relu", source), scale, 4, False)

    picture = writer.quant("input", 2.0**-8, 8, False)
    first = quant(conv(picture, CHANNELS), 0.25)
    second = quant(conv(first, 6), 0.25)
    added = quant(writer.node("Add", first, second), 0.25)
    pooled = writer.node("MaxPool", added, kernel_shape=[2, 2], strides=[2, 2])
    flat = writer.node("Flatten", pooled, axis=1)
    logits = writer.node("MatMul", flat, weights(6 * HEIGHT * WIDTH // 4, CLASSES))
    logits = writer.node("Add", logits, writer.constant(random.normal(size=CLASSES)))
    return writer.model((1, CHANNELS, HEIGHT, WIDTH), logits, 2)


def small_pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, CHANNELS, HEIGHT, WIDTH))
