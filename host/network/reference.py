"""The integer reference: what a checked `Network` computes, in numpy, fast enough for whole data sets.

    images (N, C, H, W) --> run --> {tensor name: (N, C, H, W)}      int8 up to 4 bits, int32 above
                        --> predict --> float32 (N, C * H * W)

Inside, a chunk of pictures lives as (C, N, H, W), so that one matrix product serves all its pixels: a convolution
is `weights (O, slots) @ columns (slots, N * H * W)`, where a *slot* is an input channel at a kernel coordinate and
slots without a weight are skipped. All arithmetic runs in float32 (BLAS), and is exact: `ir.check` keeps the most
positive and the most negative sum below 2^23 each, so every partial sum is an integer below 2^24.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from sentei.host.errors import InvalidImages
from sentei.host.network.ir import (
    Conv,
    Network,
    Pads,
    Pool,
    Requantize,
    Tensor,
    Term,
    accumulator_range,
    kernel_of,
    operands,
)
from sentei.host.network.law import check
from sentei.host.network.lines import FINE, find
from sentei.overlay.instructions import NO_RESIDUAL, THRESHOLDS

COLUMN_BYTES = 4 << 20  # working set of one matrix product: fits a second-level cache, gives BLAS long rows
CHUNK_BYTES = 128 << 20  # activations of one chunk of pictures

Progress = Callable[[int, int], None]


def run(
    network: Network,
    images: np.ndarray,
    keep: str = "all",
    progress: Progress | None = None,
    given: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Every tensor of `network` (or with `keep="output"` only its output) for integer `images` (N, C, H, W).

    `progress(done, total)` is called with numbers of pictures. `given` has the values of `more_inputs`.
    """
    if keep not in ("all", "output"):
        raise ValueError(f"keep must be 'all' or 'output', not {keep!r}")
    check_images(network, images)
    check(network)
    kept = list(network.tensors) if keep == "all" else [network.output]
    results: dict[str, np.ndarray] = {
        name: np.empty((len(images), *network.tensors[name].shape), storage_type(network.tensors[name]))
        for name in kept
    }
    last_use = {name: index for index, op in enumerate(network.ops) for name in operands(op)}
    for part in chunks(network, len(images)):
        pixels = np.ascontiguousarray(images[part].transpose(1, 0, 2, 3))
        values: dict[str, np.ndarray] = {network.input: pixels.astype(storage_type(network.tensors[network.input]))}
        for name in network.more_inputs:
            values[name] = np.ascontiguousarray((given or {})[name][part].transpose(1, 0, 2, 3))
        for name in network.inputs:
            if name in results:
                results[name][part] = values[name].transpose(1, 0, 2, 3)
        for index, op in enumerate(network.ops):
            values[op.output] = execute(op, values, network.tensors)
            if op.output in results:
                results[op.output][part] = values[op.output].transpose(1, 0, 2, 3)
            for name in (*operands(op), op.output):
                if last_use.get(name, -1) <= index:
                    values.pop(name, None)
        if progress is not None:
            progress(part.stop, len(images))
    return results


def predict(network: Network, images: np.ndarray, progress: Progress | None = None) -> np.ndarray:
    """The model's own output, flat (N, elements), for integer `images` (N, C, H, W)."""
    values = run(network, images, keep="output", progress=progress)[network.output]
    output = network.model_output(values)
    return output.reshape(len(images), math.prod(output.shape[1:]))


def check_images(network: Network, images: np.ndarray) -> None:
    """Raise `InvalidImages` unless `images` are integers of the input tensor's shape and range."""
    tensor = network.tensors[network.input]
    if not isinstance(images, np.ndarray) or images.dtype.kind not in "iu":
        kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise InvalidImages(f"images must be an integer array, not {kind}: divide float pictures by {tensor.scale}")
    if images.ndim != 4 or images.shape[1:] != tuple(tensor.shape):
        raise InvalidImages(f"images must have shape (N, {', '.join(map(str, tensor.shape))}), not {images.shape}")
    if images.size and (images.min() < tensor.low or images.max() > tensor.high):
        raise InvalidImages(
            f"images must be in {tensor.low}..{tensor.high} ({tensor.bits}-bit input {tensor.name!r}), "
            f"not {images.min()}..{images.max()}"
        )


def storage_type(tensor: Tensor) -> type:
    """The numpy type in which a tensor is handed out."""
    return np.int8 if tensor.bits <= 4 else np.int32


def chunks(network: Network, count: int) -> Iterator[slice]:
    """Slices of pictures whose activations together stay below `CHUNK_BYTES`."""
    per_image = sum(
        int(np.prod(tensor.shape)) * np.dtype(storage_type(tensor)).itemsize for tensor in network.tensors.values()
    )
    size = max(1, CHUNK_BYTES // per_image)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def execute(op: Conv | Pool, values: dict[str, np.ndarray], tensors: dict[str, Tensor]) -> np.ndarray:
    """One operator on a chunk: the output (C, N, H, W), in the type of `storage_type`."""
    source, target = tensors[op.input], tensors[op.output]
    activations = values[op.input]
    count = activations.shape[1]
    output: np.ndarray = np.empty((target.shape.channels, count, *target.shape[1:]), storage_type(target))
    products = [(Product(term), values[term.input]) for term in op.terms] if isinstance(op, Conv) else []
    rows = max([len(product.slots) for product, _ in products], default=target.shape.channels)
    if op.requantize is not None:
        low, high = accumulator_range(op, tensors)
        levels = Levels(op.requantize, low, high, target.bias)
    step = max(1, COLUMN_BYTES // max(1, rows * target.shape.height * target.shape.width * 4))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        if isinstance(op, Pool):
            accumulators = pool(op, activations[:, part], target.shape[1:], source.low)
        else:
            first, *others = (product(read[:, part], target.shape[1:]) for product, read in products)
            accumulators = sum(others, start=first)
        if op.requantize is None:
            output[:, part] = accumulators
        else:
            name = op.requantize.residual
            residual = values[name][:, part] if name else None
            bias = tensors[name].bias if name else 0
            output[:, part] = levels(accumulators, residual, bias)
    return output


class Product:
    """A convolution's term, its weights split into matrix products over the slots that carry one.

    Output channels that read the same input channels share a product where that saves at least half of the work
    (depthwise and grouped convolutions are dense matrices full of zeros); otherwise there is one product for all.
    """

    def __init__(self, term: Term) -> None:
        self.term = term
        weights = term.weights
        flat = weights.reshape(len(weights), -1)
        self.slots = np.flatnonzero(flat.any(0))
        matrix = flat[:, self.slots].astype(np.float32)
        families: dict[bytes, list[int]] = {}
        for output, channels in enumerate(weights.any((2, 3))):
            families.setdefault(channels.tobytes(), []).append(output)
        self.parts: list[tuple[np.ndarray | slice, np.ndarray | slice, np.ndarray]] = []
        for outputs in map(np.array, families.values()):
            rows = np.flatnonzero(matrix[outputs].any(0))
            self.parts.append((outputs, contiguous(rows), np.ascontiguousarray(matrix[np.ix_(outputs, rows)])))
        if 2 * sum(part.size for _, _, part in self.parts) > matrix.size:
            self.parts = [(slice(None), slice(None), matrix)]

    def __call__(self, activations: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
        """float32 sums (O, N, height, width) of activations (C, N, H, W)."""
        count = activations.shape[1]
        columns = np.empty((len(self.slots), count, *extent), np.float32)
        padded = pad(apart(activations, self.term.zoom), self.term.pads, 0)
        shape = self.term.weights.shape
        for row, (channel, y, x) in enumerate(zip(*np.unravel_index(self.slots, shape[1:]), strict=True)):
            columns[row] = shifted(padded[channel], y, x, self.term.stride, extent)
        columns = columns.reshape(len(self.slots), count * extent[0] * extent[1])
        accumulators = np.empty((shape[0], columns.shape[1]), np.float32)
        for outputs, rows, matrix in self.parts:
            accumulators[outputs] = matrix @ columns[rows]
        return accumulators.reshape(shape[0], count, *extent)


def contiguous(indices: np.ndarray) -> slice | np.ndarray:
    """`indices` as a slice where they are consecutive, so that numpy need not copy."""
    if len(indices) and indices[-1] - indices[0] + 1 == len(indices):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


def apart(activations: np.ndarray, zoom: tuple[int, int]) -> np.ndarray:
    """Activations (..., H, W) with zeros between their rows and columns: `zoom` from each to the next."""
    if zoom == (1, 1):
        return activations
    *rest, height, width = activations.shape
    result = np.zeros((*rest, (height - 1) * zoom[0] + 1, (width - 1) * zoom[1] + 1), activations.dtype)
    result[..., :: zoom[0], :: zoom[1]] = activations
    return result


def pad(activations: np.ndarray, pads: Pads, value: int) -> np.ndarray:
    """Activations (..., H, W) inside a border of `value`."""
    if not any(pads):
        return activations
    *rest, height, width = activations.shape
    padded = np.full((*rest, pads.top + height + pads.bottom, pads.left + width + pads.right), value, activations.dtype)
    padded[..., pads.top : pads.top + height, pads.left : pads.left + width] = activations
    return padded


def shifted(padded: np.ndarray, y: int, x: int, stride: tuple[int, int], extent: tuple[int, int]) -> np.ndarray:
    """The view of (..., H, W) that window coordinate (y, x) sees, one element for each of `extent` outputs."""
    bottom, right = y + (extent[0] - 1) * stride[0] + 1, x + (extent[1] - 1) * stride[1] + 1
    return padded[..., y : bottom : stride[0], x : right : stride[1]]


def pool(op: Pool, activations: np.ndarray, extent: tuple[int, int], low: int) -> np.ndarray:
    """Maximum or sum of each window of (C, N, H, W); padding neither adds to a sum nor wins a maximum."""
    combine = np.add if op.kind == "sum" else np.maximum
    padded = pad(activations, op.pads, 0 if op.kind == "sum" else low)
    rows, columns = kernel_of(op)
    if op.zoom != (1, 1):
        return activations.repeat(op.zoom[0], -2).repeat(op.zoom[1], -1).astype(np.float32)
    result = shifted(padded, 0, 0, op.stride, extent).astype(np.float32)
    for y, x in list(np.ndindex(rows, columns))[1:]:
        combine(result, shifted(padded, y, x, op.stride, extent), out=result)
    return result


class Levels:
    """`Requantize` as the IR defines it, for accumulators within a known range.

    Thresholds are even, so n is a rounded linear function of the accumulator: rint(a * scale + offset), in float32.
    Every step of it is monotone; hence it is right everywhere if it is on both sides of each threshold, where it is
    tried. Channels for which it fails there are counted by comparing.
    """

    def __init__(self, spec: Requantize, low: np.ndarray, high: np.ndarray, bias: int) -> None:
        self.spec = spec
        thresholds = spec.thresholds
        lines, _ = find(thresholds, thresholds)
        slope = np.maximum(lines.rise / (lines.run * FINE), 1 / FINE)
        numbers = np.arange(1, THRESHOLDS + 1) - 0.5
        # Let a threshold be a half: ties round to even, so late thresholds must be odd ones.
        shifted = (lines.late < 0).astype(np.int64)
        least = (numbers - thresholds / slope[:, None]).max(1)
        most = (numbers - (thresholds - 1) / slope[:, None]).min(1)
        scale, offset = (1 / slope).astype(np.float32), ((least + most) / 2 + shifted).astype(np.float32)
        ends = (low[:, None], high[:, None])
        points = np.concatenate([np.clip(thresholds - 1, *ends), np.clip(thresholds, *ends), *ends], axis=1)
        found = np.rint(points.astype(np.float32) * scale[:, None] + offset[:, None]) - shifted[:, None]
        expected = (points[:, None] >= thresholds[..., None]).sum(1)
        failing = (np.clip(found, 0, THRESHOLDS) != expected).any(1)
        self.compared = np.flatnonzero(failing)
        # i = sign * n + shift, where n is `shifted` too large.
        sign = np.where(spec.descending, -1, 1)
        shift = np.where(spec.descending, 15, -16) - sign * shifted * ~failing
        if spec.residual is None:
            shift = shift + NO_RESIDUAL
        self.scale, self.offset, self.sign, self.shift, self.span = (
            np.asarray(values, np.float32)[:, None, None, None] for values in (scale, offset, sign, shift, spec.span)
        )
        self.falling = bool(spec.descending.any())
        self.low = (spec.low - bias).astype(np.int8)[:, None, None, None]

    def __call__(self, accumulators: np.ndarray, residual: np.ndarray | None, bias: int) -> np.ndarray:
        """int8 levels of float32 accumulators (C, N, H, W); `residual` plus `bias` is its code."""
        exact = accumulators[self.compared]
        result = np.multiply(accumulators, self.scale, out=accumulators)
        result += self.offset
        np.rint(result, out=result)
        if len(exact):
            reached = np.zeros(exact.shape, np.float32)
            for thresholds in self.spec.thresholds[self.compared].astype(np.float32).T:
                reached += exact >= thresholds[:, None, None, None]
            result[self.compared] = reached
        if self.falling:
            result *= self.sign
        result += self.shift + np.float32(bias)
        if residual is not None:
            result += residual
        np.clip(result, np.float32(0), self.span, out=result)
        levels = result.astype(np.int8)
        levels += self.low
        return levels
