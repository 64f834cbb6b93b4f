"""The reference against a deliberately naive loop over every pixel, slot and threshold, on random operators."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.random_layers import even_thresholds
from helpers.tiers import seeds

from sentei.host.errors import InvalidImages
from sentei.host.network import reference
from sentei.host.network.ir import (
    WIDE,
    Conv,
    IRError,
    Network,
    Pads,
    Pool,
    Requantize,
    Shape,
    Tensor,
    kernel_of,
    output_extent,
)


def naive_accumulator(op: Conv | Pool, tensors: dict[str, np.ndarray], channel: int, y: int, x: int) -> int:
    """One accumulator of one picture's tensors (C, H, W), in Python integers."""
    values = []
    for term in op.terms if isinstance(op, Conv) else (op,):
        picture = tensors[term.input]
        rows, columns = kernel_of(term)
        for c in range(picture.shape[0]) if isinstance(op, Conv) else [channel]:
            for dy in range(rows):
                for dx in range(columns):
                    row, column = y * term.stride[0] + dy - term.pads.top, x * term.stride[1] + dx - term.pads.left
                    if 0 <= row < picture.shape[1] and 0 <= column < picture.shape[2]:
                        weight = int(term.weights[channel, c, dy, dx]) if isinstance(op, Conv) else 1
                        values.append(weight * int(picture[c, row, column]))
    return max(values) if isinstance(op, Pool) and op.kind == "max" else sum(values)


def naive_level(spec: Requantize, accumulator: int, residual: int, channel: int, bias: int) -> int:
    """The IR's definition of `Requantize`, word for word."""
    reached = sum(accumulator >= int(threshold) for threshold in spec.thresholds[channel])
    level = (15 - reached if spec.descending[channel] else reached - 16) + residual
    return int(spec.low[channel]) - bias + min(max(level, 0), int(spec.span[channel]))


def naive_run(network: Network, picture: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor (C, H, W) of one picture."""
    values = {network.input: picture}
    for op in network.ops:
        target = network.tensors[op.output]
        output = np.zeros(target.shape, np.int64)
        for channel, y, x in np.ndindex(*target.shape):
            value = naive_accumulator(op, values, channel, y, x)
            if op.requantize is not None:
                name = op.requantize.residual
                residual = 8
                if name:
                    residual = int(values[name][channel, y, x]) + network.tensors[name].bias
                value = naive_level(op.requantize, value, residual, channel, target.bias)
            output[channel, y, x] = value
        values[op.output] = output
    return values


class RandomNetwork:
    """Two to four random operators, the last one wide."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        bits, signed = [(8, False), (8, True), (4, False), (4, True), (1, False)][seed % 5]
        shape = Shape(*(int(self.random.integers(1, high)) for high in (5, 8, 8)))
        self.tensors = {"in": Tensor("in", shape, bits, signed)}
        self.ops: list[Conv | Pool] = []
        for index in range(int(self.random.integers(1, 4))):
            self.add(f"t{index}", requantized=True)
        self.add("out", requantized=False)
        channels = self.tensors["out"].shape.channels
        scale, offset = (self.random.normal(size=channels).astype(np.float32) for _ in range(2))
        self.network = Network(f"seed {seed}", self.tensors, tuple(self.ops), "in", "out", scale, offset)

    def add(self, name: str, requantized: bool) -> None:
        random = self.random
        source = self.tensors[str(random.choice(list(self.tensors)))]
        channels, height, width = source.shape
        kernel = [int(random.integers(1, min(size + 3, 6))) for size in (height, width)]
        pads = Pads(*(int(random.integers(0, k)) for k in (*kernel, *kernel)))
        missing = [
            max(0, k - size - pads[i] - pads[i + 2])
            for i, (k, size) in enumerate(zip(kernel, source.shape[1:], strict=True))
        ]
        kernel = [k - m for k, m in zip(kernel, missing, strict=True)]
        pads = Pads(*(min(p, k - 1) for p, k in zip(pads, (*kernel, *kernel), strict=True)))
        stride = tuple(int(random.integers(1, 4)) for _ in range(2))
        extents = [
            output_extent(size, kernel[i], stride[i], pads[i], pads[i + 2]) for i, size in enumerate((height, width))
        ]
        if min(extents) < 1:
            kernel, pads, extents = [1, 1], Pads(), [-(-size // stride[i]) for i, size in enumerate((height, width))]
        kinds = ["conv", "depthwise", "empty", "sum"] + ["max"] * (source.bits <= 4)
        kind = str(random.choice(kinds))
        outputs = int(random.integers(1, 7)) if kind in ("conv", "empty") else channels
        shape = Shape(outputs, *extents)
        bits = int(random.integers(1, 5)) if requantized else WIDE
        self.tensors[name] = Tensor(name, shape, bits, bool(random.integers(2)) or not requantized)
        spec = self.requantize(name) if requantized else None
        if kind in ("sum", "max"):
            self.ops.append(Pool(name, source.name, name, kind, tuple(kernel), stride, pads, spec))
            return
        weights = random.integers(-8, 8, (outputs, channels, *kernel)).astype(np.int16)
        if kind == "depthwise":
            weights *= np.eye(channels, dtype=np.int16)[:, :, None, None]
        weights *= random.random((1, channels, *kernel)) < (0.5 if kind != "empty" else 0)
        self.ops.append(Conv(name, source.name, name, weights, stride, pads, spec))

    def requantize(self, name: str) -> Requantize:
        random, target = self.random, self.tensors[name]
        channels = target.shape.channels
        thresholds = even_thresholds(random, random.integers(1, 400, channels))
        descending = random.random(channels) < 0.3
        levels = target.high - target.low
        first = random.integers(0, levels + 1, channels)
        span = random.integers(0, levels + 1 - first)
        lowest = target.low + (8 if target.signed else 0) + first
        matching = [t.name for t in self.tensors.values() if t.shape == target.shape and t.bits <= 4 and t.name != name]
        residual = str(random.choice(matching)) if matching else None
        return Requantize(thresholds, descending, lowest, span, residual)


def pictures(network: Network, count: int, seed: int) -> np.ndarray:
    tensor = network.tensors[network.input]
    return np.random.default_rng(seed).integers(tensor.low, tensor.high + 1, (count, *tensor.shape))


@pytest.mark.parametrize("seed", seeds(80, 2000))
def test_every_tensor_equals_the_naive_loops(seed):
    network = RandomNetwork(seed).network
    images = pictures(network, 2, seed)
    found = reference.run(network, images)
    assert set(found) == set(network.tensors)
    for index, picture in enumerate(images):
        for name, expected in naive_run(network, picture).items():
            assert np.array_equal(found[name][index], expected), f"seed {seed}, tensor {name}"
            assert found[name].dtype == (np.int8 if network.tensors[name].bits <= 4 else np.int32)


def simple_network(weight: int = 1, channels: int = 1, bits: int = 8) -> Network:
    """A 2x2 convolution of `channels` channels, wide."""
    tensors = {
        "in": Tensor("in", Shape(channels, 4, 4), bits, False, 0.5),
        "out": Tensor("out", Shape(1, 3, 3), WIDE, True),
    }
    op = Conv("conv", "in", "out", np.full((1, channels, 2, 2), weight, np.int16))
    return Network("simple", tensors, (op,), "in", "out", np.float32([0.5]), np.float32([1.0]))


@pytest.mark.parametrize("limit", ["COLUMN_BYTES", "CHUNK_BYTES"])
def test_chunks_do_not_change_the_result(monkeypatch, limit):
    network = RandomNetwork(3).network
    images = pictures(network, 7, 0)
    expected = reference.run(network, images)
    monkeypatch.setattr(reference, limit, 1)
    found = reference.run(network, images)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_largest_sums_that_the_ir_allows_are_exact():
    network = simple_network(weight=109, channels=150, bits=7)
    images = np.full((1, 150, 4, 4), 127)
    images[0, 0, 0, 0] = 126
    assert reference.run(network, images)["out"][0, 0, 0, 0] == 4 * 150 * 127 * 109 - 109


def test_output_alone_can_be_kept():
    network = RandomNetwork(4).network
    assert set(reference.run(network, pictures(network, 2, 0), keep="output")) == {"out"}
    with pytest.raises(ValueError, match="keep must be 'all' or 'output', not 'some'"):
        reference.run(network, pictures(network, 1, 0), keep="some")


def test_prediction_is_float32_and_flat():
    network = simple_network()
    found = reference.predict(network, np.ones((2, 1, 4, 4), np.uint8))
    assert found.dtype == np.float32
    assert np.array_equal(found, np.full((2, 9), 4 * 0.5 + 1))


def test_progress_counts_pictures(monkeypatch):
    monkeypatch.setattr(reference, "CHUNK_BYTES", 1)
    calls = []
    reference.predict(simple_network(), np.zeros((3, 1, 4, 4), int), progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_no_pictures_give_no_results():
    assert reference.predict(simple_network(), np.zeros((0, 1, 4, 4), int)).shape == (0, 9)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((1, 1, 4, 4)), r"images must be an integer array, not float64: divide float pictures by 0\.5"),
        ([[1]], "images must be an integer array, not list"),
        (np.zeros((1, 4, 4), int), r"images must have shape \(N, 1, 4, 4\), not \(1, 4, 4\)"),
        (np.zeros((1, 3, 4, 4), int), r"images must have shape \(N, 1, 4, 4\), not \(1, 3, 4, 4\)"),
        (np.full((1, 1, 4, 4), 256), r"images must be in 0\.\.255 \(8-bit input 'in'\), not 256\.\.256"),
        (np.full((1, 1, 4, 4), -1), r"images must be in 0\.\.255 \(8-bit input 'in'\), not -1\.\.-1"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, text):
    with pytest.raises(InvalidImages, match=text):
        reference.run(simple_network(), images)


def test_network_that_breaks_a_rule_is_refused():
    with pytest.raises(IRError, match="accumulator must stay below 8388607"):
        reference.run(simple_network(weight=128, channels=300), np.zeros((1, 300, 4, 4), int))
