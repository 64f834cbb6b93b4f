"""The compiler's intermediate representation: integer tensors and four operators' worth of arithmetic.

A network is a list of operators in execution order. Every value is an integer; `Tensor.scale` says what one unit
of it means in the model. An operator accumulates (`Conv`, `Pool`), then either requantizes the accumulator to at
most four bits (`Requantize`) or, for the last operator only, hands it out whole (a *wide* tensor).

    input --> Conv --> Requantize --> Pool --> ... --> Conv --> wide accumulators --> Network.dequantize
                          ^
                          +-- residual: an earlier tensor of the output's shape

Arrays are CHW for activations (one picture), OIHW for weights. `host/network/law.py` has the rules that a network
obeys, and `host/network/reference.py` defines what it then computes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sentei.overlay.errors import SenteiError
from sentei.overlay.geometry import WIDE_BITS
from sentei.overlay.instructions import NO_RESIDUAL
from sentei.overlay.program import Doubt
from sentei.overlay.tail import OutputTail

ACCUMULATOR_LIMIT = (1 << WIDE_BITS - 1) - 1  # every accumulator is smaller


class IRError(SenteiError, ValueError):
    """A network breaks a rule of the intermediate representation; the text names the operator and the rule."""


class Shape(NamedTuple):
    """Extent of one picture's tensor: channels, height, width."""

    channels: int
    height: int
    width: int


class Pads(NamedTuple):
    """Rows and columns of zeros around a map."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


@dataclass(frozen=True)
class Tensor:
    """An integer tensor; the value it stands for is `scale` * integer. Its integers, plus the zero point, are `bits`
    wide, two's complement if `signed`.

    Inner tensors have 1 to 4 bits, the network's input 1 to 8. `bits = WIDE` marks an accumulator handed out whole.
    """

    name: str
    shape: Shape
    bits: int
    signed: bool
    scale: float = 1.0
    narrow: bool = False  # without the lowest (or, unsigned, the highest) of its integers
    zero_point: int = 0

    @property
    def low(self) -> int:
        return (-(1 << (self.bits - 1)) + self.narrow if self.signed else 0) - self.zero_point

    @property
    def high(self) -> int:
        return ((1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1 - self.narrow) - self.zero_point

    @property
    def integers(self) -> range:
        return range(self.low, self.high + 1)

    @property
    def bias(self) -> int:
        """What is added to an integer where it is stored."""
        return (1 << (4 * -(-self.bits // 4) - 1) if self.signed else 0) + self.zero_point


WIDE = 32


@dataclass(frozen=True)
class Requantize:
    """Maps an accumulator to at most four bits: exact, monotone, per channel.

        n   = number of k with accumulator >= thresholds[c, k]              (0 to 31)
        i   = n - 16, or 15 - n where descending[c]
        out = base + low[c] + clamp(i + r, 0, span[c])

    with base = -bias of the output (`Tensor.bias`: 8 if it is signed), and r = 8 without a residual, else the residual
    plus its bias. A residual is added in units of the output: both tensors have the same scale.

    A channel's thresholds are *even*: points of a line, rounded up (see host/network/lines.py). Those that no
    accumulator or residual can make count continue the line.
    """

    thresholds: np.ndarray  # int64 (C, 31), even
    descending: np.ndarray  # bool (C,)
    low: np.ndarray  # int64 (C,), 0 to 15
    span: np.ndarray  # int64 (C,); low + span is at most 15
    residual: str | None = None


@dataclass(frozen=True)
class Term:
    """A tensor's share of a convolution's sums. `zoom`: the window slides over so many rows and columns for each pixel,
    zeros but for one: a transposed convolution."""

    input: str
    weights: np.ndarray  # integers, OIHW
    stride: tuple[int, int] = (1, 1)
    pads: Pads = Pads()
    groups: int = 1  # of channels; between different ones all weights are 0, which count as no work
    zoom: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Conv:
    """2-D convolution (cross-correlation, as in ONNX) with zero padding. A fully connected layer is a Conv whose
    kernel covers the map, a transposed convolution one with a `zoom` (see `Term`) and its kernel turned around. Weights
    of more than 4 bits need more passes of the array.

    Its sums may have further terms, `addends`: convolutions of other tensors, or of the same one, that yield the same
    map. So tensors with different scales are added, and the results of two convolutions.
    """

    name: str
    input: str
    output: str
    weights: np.ndarray  # integers, OIHW
    stride: tuple[int, int] = (1, 1)
    pads: Pads = Pads()
    requantize: Requantize | None = None
    addends: tuple[Term, ...] = ()
    groups: int = 1
    zoom: tuple[int, int] = (1, 1)

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term(self.input, self.weights, self.stride, self.pads, self.groups, self.zoom), *self.addends)

    @staticmethod
    def of_terms(name: str, terms: Iterable[Term]) -> Conv:
        """The sum of these, before anybody says where it goes."""
        main, *addends = terms
        op = Conv(name, main.input, "", main.weights, main.stride, main.pads, groups=main.groups, zoom=main.zoom)
        return replace(op, addends=tuple(addends))


@dataclass(frozen=True)
class Pool:
    """Per channel maximum or sum over a window. Average pooling is a sum whose thresholds know the divisor;
    padding contributes nothing to either. A sum over a 1x1 window with a residual is a plain addition; with a `zoom`,
    each pixel is repeated in so many rows and columns."""

    name: str
    input: str
    output: str
    kind: str  # "max" or "sum"
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: Pads = Pads()
    requantize: Requantize | None = None
    zoom: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Which float of the model's own input each integer of the network's stands for.

    `table` float32 (C, L) has them for integers from `low` on. Those that are not `reached`, bool (C, L), the model
    makes of no input; their floats are a neighbour's.
    """

    low: int
    table: np.ndarray
    reached: np.ndarray

    @staticmethod
    def of_steps(levels: range, step: np.ndarray, first: np.ndarray) -> Preprocessing:
        """Level l of channel c is the float l * step[c] + first[c]."""
        floats = np.arange(levels.start, levels.stop) * step[:, None] + first[:, None]
        return Preprocessing(levels.start, floats.astype(np.float32), np.ones(floats.shape, bool))

    def floats(self, levels: np.ndarray) -> np.ndarray:
        """float32 of integers (C, ...)."""
        flat = levels.reshape(len(levels), -1) - self.low
        return np.take_along_axis(self.table, flat.astype(np.int64), 1).reshape(levels.shape)

    def then(self, levels: range, moved: np.ndarray) -> Preprocessing:
        """If each level becomes another one, `moved` (C, L), of `levels`."""
        reached = np.zeros((len(moved), len(levels)), bool)
        table = np.zeros(reached.shape, np.float32)
        for channel, (targets, own) in enumerate(zip(moved, self.reached, strict=True)):
            reached[channel, targets[own] - levels.start] = True
            table[channel, targets[own] - levels.start] = self.table[channel, own]
            known = np.flatnonzero(reached[channel])
            nearest = known[np.abs(np.arange(len(levels))[:, None] - known).argmin(1)]
            table[channel] = table[channel, nearest]
        return Preprocessing(levels.start, table, reached)


@dataclass(frozen=True)
class InputOrder:
    """How the model has its input: `elements` (C, H, W) says which element of it each of the network's is."""

    elements: np.ndarray
    sizes: tuple[int, ...]  # of the model's input, without the batch

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(N, C, H, W) as the model has it, (N, *sizes)."""
        result = np.empty((len(values), self.elements.size), values.dtype)
        result[:, self.elements.ravel()] = values.reshape(len(values), -1)
        return result.reshape(len(values), *self.sizes)


@dataclass(frozen=True)
class Network:
    """A whole network. The model's float32 numbers behind its last layer are

        y = float32(float32(integer) * output_scale[c]) + output_offset[c]

    with `output_scale`, `output_offset` float32 of shape (C,), each step one float32 operation. What the model makes
    of these is `tail`.
    """

    name: str
    tensors: dict[str, Tensor]
    ops: tuple[Conv | Pool, ...]
    input: str
    output: str
    output_scale: np.ndarray
    output_offset: np.ndarray
    doubts: tuple[Doubt, ...] = ()
    preprocessing: Preprocessing | None = None
    input_order: InputOrder | None = None  # None: the model's input is (N, C, H, W)
    tail: OutputTail | None = None  # None: its output is (N, C, H, W), or flat
    # Of a part of a network (host/network/stages.py): what is given beside `input`, and handed out beside `output`.
    more_inputs: tuple[str, ...] = ()
    more_outputs: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.input, *self.more_inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.output, *self.more_outputs

    def model_input(self, images: np.ndarray) -> np.ndarray:
        """The model's own float32 input that integer images (N, C, H, W) stand for."""
        if self.preprocessing is None:
            floats = (images * np.float32(self.tensors[self.input].scale)).astype(np.float32)
        else:
            floats = self.preprocessing.floats(images.swapaxes(0, 1)).swapaxes(0, 1)
        return floats if self.input_order is None else self.input_order(floats)

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """Integers (..., C, H, W) of the output tensor to float32 numbers of the same shape."""
        scale = self.output_scale.astype(np.float32)[:, None, None]
        offset = self.output_offset.astype(np.float32)[:, None, None]
        return values.astype(np.float32) * scale + offset

    def model_output(self, values: np.ndarray) -> np.ndarray:
        """Integers (N, C, H, W) of the output tensor to the model's own output, (N, ...)."""
        numbers = self.dequantize(values)
        return numbers if self.tail is None else self.tail(numbers)


def output_extent(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    """Rows (or columns) that a window yields; ONNX's floor convention."""
    return (size + before + after - kernel) // stride + 1


def terms_of(op: Conv | Pool) -> tuple[Term, ...] | tuple[Pool]:
    """What slides over an operator's tensors: a convolution's terms, or the pool itself."""
    return op.terms if isinstance(op, Conv) else (op,)


def inputs_of(op: Conv | Pool) -> tuple[str, ...]:
    """The tensors that an operator's accumulator reads."""
    return tuple(term.input for term in terms_of(op))


def operands(op: Conv | Pool) -> tuple[str, ...]:
    """The tensors that an operator reads, its residual the last."""
    residual = op.requantize.residual if op.requantize else None
    return inputs_of(op) if residual is None else (*inputs_of(op), residual)


def map_of(op: Conv | Pool | Term, source: Shape) -> tuple[int, int]:
    """(height, width) of what the operator yields."""
    before, after = op.pads[:2], op.pads[2:]
    rows, columns = (
        output_extent((size - 1) * zoom + 1 if isinstance(op, Conv | Term) else size, *of)
        for size, zoom, *of in zip(source[1:], op.zoom, kernel_of(op), op.stride, before, after, strict=True)
    )
    return (rows * op.zoom[0], columns * op.zoom[1]) if isinstance(op, Pool) else (rows, columns)


def kernel_of(op: Conv | Pool | Term) -> tuple[int, int]:
    """(rows, columns) of the operator's window."""
    if isinstance(op, Pool):
        return op.kernel
    _, _, rows, columns = op.weights.shape
    return rows, columns


def accumulator_range(op: Conv | Pool, tensors: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value, int64 (C,) each, that the accumulator of each output channel can reach.

    Includes padding: a padded slot contributes 0, which lies between the products' extremes or widens them.
    """
    if isinstance(op, Conv):
        ranges = [term_range(term, tensors[term.input]) for term in op.terms]
        return np.sum([low for low, _ in ranges], 0), np.sum([high for _, high in ranges], 0)
    source = tensors[op.input]
    count = op.kernel[0] * op.kernel[1] if op.kind == "sum" else 1
    ones = np.ones(source.shape.channels, np.int64)
    if op.kind == "max":
        return ones * source.low, ones * source.high
    return ones * min(source.low, 0) * count, ones * max(source.high, 0) * count


def term_range(term: Term, source: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`accumulator_range` of one term."""
    low, high = min(source.low, 0), max(source.high, 0)
    flat = term.weights.reshape(len(term.weights), -1).astype(np.int64)
    positive, negative = np.maximum(flat, 0).sum(1), np.minimum(flat, 0).sum(1)
    return positive * low + negative * high, positive * high + negative * low


def residual_codes(residual: Tensor | None) -> range:
    """The values of r in `Requantize`."""
    if residual is None:
        return range(NO_RESIDUAL, NO_RESIDUAL + 1)
    return range(residual.low + residual.bias, residual.high + residual.bias + 1)


def kept_density(network: Network, block: int) -> float:
    """The fraction of kernel elements that an array executes: those of every slot in which at least one of `block`
    consecutive output channels has a weight. Counts convolutions, not layers behind the last pooling to one pixel."""
    kept = total = 0
    for op in network.ops:
        if isinstance(op, Conv) and network.tensors[op.input].shape[1:] != (1, 1):
            used = op.weights != 0
            for start in range(0, len(used), block):
                part = used[start : start + block]
                kept += int(part.any(axis=0).sum()) * len(part)
            total += used.size
    return kept / total if total else 1.0
