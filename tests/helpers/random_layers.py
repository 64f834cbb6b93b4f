"""Random one-operator networks (IR), and running a program on a simulator without the driver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sentei.host.arithmetic.thresholds import identity
from sentei.host.compiler.compile import compile_network
from sentei.host.network.ir import (
    ACCUMULATOR_LIMIT,
    WIDE,
    Conv,
    IRError,
    Network,
    Pads,
    Pool,
    Requantize,
    Shape,
    Tensor,
    Term,
    accumulator_range,
    output_extent,
)
from sentei.host.network.law import check
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry


def random_weights(rng: np.random.Generator, shape: tuple[int, ...], bits: int, group: int) -> np.ndarray:
    """Weights of a density from 0 to 1, pruned by coordinates shared by `group` output channels, or unstructured."""
    weights = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)
    density = rng.choice([0.0, 1.0, 1 / 9, rng.random()])
    if rng.random() < 0.5:
        keep = rng.random((-(-shape[0] // group), *shape[1:])) < density
        keep = np.repeat(keep, group, axis=0)[: shape[0]]
    else:
        keep = rng.random(shape) < density
    return np.where(keep, weights, 0).astype(np.int16)


def even_thresholds(rng: np.random.Generator, reach: np.ndarray) -> np.ndarray:
    """int64 (C, 31): a random line for each channel, its middle within +-reach; some late at odd or even numbers.

    Distances are anything from 0 to far beyond the reach, whole ones as often as not.
    """
    channels = len(reach)
    slope = np.where(rng.random(channels) < 0.7, reach / 12, reach * 3) * rng.random(channels) ** 3
    slope[rng.random(channels) < 0.05] = 0
    middle = rng.uniform(-1.1, 1.1, channels) * reach
    whole = rng.random(channels) < 0.5
    slope, middle = np.where(whole, np.round(slope), slope), np.where(whole, np.round(middle), middle)
    number = np.arange(1, 32)
    line = middle[:, None] + (number - 16) * slope[:, None]
    late = np.where(whole & (slope >= 1), rng.integers(-1, 2, channels), 0)[:, None]
    behind = np.where(late > 0, number % 2 == 1, (late < 0) & (number % 2 == 0))
    return np.where(behind, np.floor(line) + 1, np.ceil(line)).astype(np.int64)


def random_requantize(rng, op, tensors: dict[str, Tensor], residual: str | None) -> Requantize:
    """Random even thresholds, most of them around the reachable range, and any range of results."""
    target = tensors[op.output]
    low, high = accumulator_range(op, tensors)
    channels = target.shape.channels
    thresholds = even_thresholds(rng, np.maximum(np.maximum(-low, high), 1))
    lowest = target.low + target.bias
    levels = target.high - target.low
    narrow = rng.random(channels) < 0.3
    first = np.where(narrow, rng.integers(0, levels + 1, channels), 0)
    span = np.where(narrow, rng.integers(0, levels + 1, channels), levels)
    return Requantize(
        thresholds, rng.random(channels) < 0.3, lowest + first, np.minimum(span, levels - first), residual
    )


def random_layer(seed: int, geometry: Geometry, large: bool = True) -> tuple[Network, np.ndarray]:
    """A network of one or two operators and two input pictures for it."""
    rng = np.random.default_rng(seed)
    biggest_map, most_channels = (40, 70) if large else (12, 20)
    while True:
        channels = int(rng.integers(1, most_channels + 1))
        height, width = (int(v) for v in rng.integers(1, biggest_map + 1, 2))
        kernel = tuple(int(v) for v in rng.integers(1, 8, 2)) if rng.random() < 0.3 else (int(rng.integers(1, 8)),) * 2
        stride = tuple(int(v) for v in rng.integers(1, 3, 2))
        pads = Pads(*(int(v) for v in rng.integers(0, 4, 4))) if rng.random() < 0.7 else Pads()
        kind = rng.choice(["conv", "conv", "conv", "conv", "max", "sum", "global", "full"])
        if kind in ("global", "full"):
            height, width = min(height, 10), min(width, 10)
            kernel, stride, pads = (height, width), (1, 1), Pads()
        out_height = output_extent(height, kernel[0], stride[0], pads.top, pads.bottom)
        out_width = output_extent(width, kernel[1], stride[1], pads.left, pads.right)
        is_conv = kind in ("conv", "full")
        out_channels = int(rng.integers(1, most_channels + 1)) if is_conv else channels
        if out_height < 1 or out_width < 1 or (kind == "max" and max(pads) >= min(kernel)):
            continue
        macs = out_channels * channels * kernel[0] * kernel[1] * out_height * out_width
        words = (channels + 2 * out_channels) * 40 * 41 // geometry.lanes
        if macs > 3e8 or words > geometry.activation_words:
            continue
        break
    bits = 8 if kind != "max" and rng.random() < 0.25 else int(rng.integers(2, 5))
    signed = bool(rng.random() < 0.5)
    more = np.random.default_rng([seed, 1])  # for what came later, so that a seed's layer remains what it is

    def zero_point(bits: int, signed: bool) -> int:
        return int(more.integers(0, 1 << bits)) - (signed << (bits - 1)) if more.random() < 0.3 else 0

    tensors = {"x": Tensor("x", Shape(channels, height, width), bits, signed, zero_point=zero_point(bits, signed))}
    out_shape = Shape(out_channels, out_height, out_width)
    name = f"{kind}{seed}"
    if is_conv:
        weights = random_weights(rng, (out_channels, channels, *kernel), 8 if rng.random() < 0.15 else 4, 8)
        op = Conv(name, "x", "y", weights, stride, pads)
    else:
        op = Pool(name, "x", "y", "max" if kind == "max" else "sum", kernel, stride, pads)
    ops: list = []
    wide = is_conv and rng.random() < 0.15
    residual = None
    if wide:
        tensors["y"] = Tensor("y", out_shape, WIDE, True)
    else:
        out_bits, out_signed = int(rng.integers(2, 5)) if rng.random() < 0.2 else 4, bool(rng.random() < 0.5)
        zero = zero_point(out_bits, out_signed)
        tensors["y"] = Tensor("y", out_shape, out_bits, out_signed, zero_point=zero)
        if kind != "global" and rng.random() < 0.35:
            # The residual is computed from the same input by an operator of the same shape.
            residual = "r"
            tensors["r"] = Tensor("r", out_shape, 4, bool(rng.random() < 0.5))
            small = random_weights(rng, (out_channels, channels, *kernel), 4, 8)
            first = Conv(f"residual{seed}", "x", "r", small, stride, pads)
            first = Conv(first.name, "x", "r", small, stride, pads, random_requantize(rng, first, tensors, None))
            ops.append(first)
            if is_conv and more.random() < 0.6:
                op = replace(op, addends=random_addends(more, op, tensors))
        op = replace(op, requantize=random_requantize(rng, op, tensors, residual))
    ops.append(op)
    output = "y"
    if not wide and more.random() < 0.2:
        # A tensor that repeats the output's pixels.
        zoom = (int(more.integers(1, 3)), int(more.integers(1, 4)))
        target = tensors["y"]
        larger = Shape(out_channels, out_height * zoom[0], out_width * zoom[1])
        if out_channels * larger.height * (larger.width + 8) < 16 * geometry.activation_words:
            output = "z"
            tensors["z"] = replace(target, name="z", shape=larger)
            ops.append(Pool(f"zoom{seed}", "y", "z", "sum", (1, 1), requantize=identity(target), zoom=zoom))
    network = Network(
        name, tensors, tuple(ops), "x", output, np.ones(out_channels, np.float32), np.zeros(out_channels, np.float32)
    )
    source = tensors["x"]
    images = rng.integers(source.low, source.high + 1, (2, *source.shape))
    if rng.random() < 0.2:
        images[0] = source.high
    return check(network), images


def fitting_layer(seed, geometry, large):
    """The first of the seed's layers that fits the geometry: (network, images, program)."""
    for attempt in range(20):
        try:
            network, images = random_layer(1000 * seed + attempt, geometry, large)
            return network, images, compile_network(network, geometry)
        except CapacityError:
            continue
        except IRError as error:
            assert "accumulator must stay below" in str(error)
    raise AssertionError(f"none of seed {seed}'s layers fits {geometry}")


def random_addends(rng: np.random.Generator, op: Conv, tensors: dict[str, Tensor]) -> tuple[Term, ...]:
    """One or two further terms of a convolution: tensor "r" pixel by pixel with weights of many bits, and "x" again."""
    channels = len(op.weights)
    largest = int(rng.choice([7, 100, 3000]))
    pixels = np.diag(rng.integers(-largest, largest + 1, channels))[:, :, None, None]
    addends = [Term("r", pixels)]
    if rng.random() < 0.4:
        addends.append(Term("x", random_weights(rng, op.weights.shape, 4, 8), op.stride, op.pads))
    widened = replace(op, addends=tuple(addends))
    return tuple(addends) if np.max(np.abs(accumulator_range(widened, tensors))) < ACCUMULATOR_LIMIT else ()


def describe(network: Network) -> str:
    """One line for a test's failure message."""
    parts = []
    for op in network.ops:
        source, target = network.tensors[op.input], network.tensors[op.output]
        kernel = op.weights.shape[2:] if isinstance(op, Conv) else op.kernel
        parts.append(
            f"{op.name}: {tuple(source.shape)}/{source.bits}{'s' if source.signed else 'u'} k{tuple(kernel)} "
            f"s{op.stride} p{tuple(op.pads)} -> {tuple(target.shape)}/{target.bits}{'s' if target.signed else 'u'}"
            f"{'' if op.requantize is None or op.requantize.residual is None else ' +residual'}"
            f"{' +'.join(['', *(term.input for term in op.addends)]) if isinstance(op, Conv) else ''}"
        )
    return "; ".join(parts)
