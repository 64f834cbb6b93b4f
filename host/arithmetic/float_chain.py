"""The model's float32 arithmetic between an integer accumulator and a quantizer, one object for each float operation.

    accumulator --> Start --> operation --> operation --> ... --> Quantizer --> level
      integer       float32   float32                                 integer

The operations are what onnxruntime and qonnx execute, in graph order, each one correctly rounded in float32. Every one
is monotone (rounding keeps order), hence so is the whole chain: `host/arithmetic/thresholds.py` turns it into
thresholds by evaluating it, not by reasoning about it. The same chain in real numbers is what its author means.

Arrays inside a chain are (C, ...): channels first, then anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

FLOAT32_UNIT_ROUNDOFF = 2.0**-24
SMALLEST_NORMAL = 2.0**-126
NEAR = 1e-6  # much more than float64's rounding of sums below 2^24
EXACT_LIMIT = 1 << 24  # integers up to here, times a power of two, are float32 numbers


def per_channel(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(C,) reshaped to broadcast against `like` (C, ...)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def odd_part(values: np.ndarray) -> np.ndarray:
    """The odd integer m of each finite value m * 2**e, float64; 1 for powers of two and 0 for 0."""
    mantissa = np.abs(np.frexp(np.asarray(values, np.float64))[0]) * 2.0**53
    integers = mantissa.astype(np.int64)
    lowest_bit = np.where(integers == 0, 1, integers & -integers)
    return (integers // lowest_bit).astype(np.float64)


def is_power_of_two(values: np.ndarray) -> np.ndarray:
    """Whether each value is 0 or plus or minus a power of two: multiplying by it rounds nothing."""
    return odd_part(values) <= 1


@dataclass(frozen=True)
class Start:
    """Integer to float32: the product sum (or the tensor) that the model computes where the IR has an integer.

    The model's number lies within `error` of `unit * integer + offset`. Error 0 means: it is that number, rounded once.
    """

    unit: np.ndarray  # float64 (C,)
    offset: np.ndarray  # float64 (C,): a bias that the model may add before its sum is complete
    error: np.ndarray  # float64 (C,)

    def real(self, integers: np.ndarray) -> np.ndarray:
        """The number that is meant, float64."""
        return integers * per_channel(self.unit, integers) + per_channel(self.offset, integers)

    def exact(self, integer: int, channel: int) -> Fraction:
        return integer * Fraction(float(self.unit[channel])) + Fraction(float(self.offset[channel]))

    def __call__(self, integers: np.ndarray, side: int = 0) -> np.ndarray:
        """The smallest (side -1), nominal (0) or largest (1) number the model may have, float32."""
        nominal = self.real(integers)
        exact = nominal + side * per_channel(self.error, integers)
        rounded = exact.astype(np.float32)
        if not side:
            return rounded
        outward = np.nextafter(rounded, np.float32(side * np.inf))
        inside = per_channel(self.error > 0, integers) & ((exact - rounded) * side > 0)
        return np.where(inside, outward, rounded)


def start_of_tensor(scale: float, channels: int) -> Start:
    """A quantized tensor's own float values: `float32(integer) * scale`, rounded once."""
    zeros = np.zeros(channels)
    return Start(np.full(channels, scale, np.float64), zeros, zeros)


def start_of_sum(
    source_scale: float,
    factor_scale: np.ndarray,
    magnitude: np.ndarray,
    terms: np.ndarray,
    bias: np.ndarray | None = None,
) -> Start:
    """A sum of products of `source_scale * integer` and `factor_scale[c] * integer`, in an order nobody promises.

    `magnitude[c]` bounds the sum of the integer products' magnitudes, `terms[c]` counts them. Where all partial sums
    are integers below 2^24 times one power of two, every order gives the same, exact result. Elsewhere the error is
    bounded by Higham's gamma for the roundings of the factors, the products and the additions.
    """
    unit = float(np.float32(source_scale)) * factor_scale.astype(np.float64)
    offset = np.zeros_like(unit) if bias is None else bias.astype(np.float64)
    grid = np.abs(unit) / np.maximum(odd_part(unit), 1)
    exact = (magnitude * odd_part(unit) < EXACT_LIMIT) & (grid >= SMALLEST_NORMAL)
    if bias is not None:
        # With a bias inside the sum, the common grid is the finer one of the products' and the bias's.
        grid = np.minimum(grid, np.where(offset == 0, np.inf, np.abs(offset) / np.maximum(odd_part(offset), 1)))
        exact &= (magnitude * np.abs(unit) + np.abs(offset)) / grid < EXACT_LIMIT
    roundings = (terms + 4) * FLOAT32_UNIT_ROUNDOFF
    gamma = np.where(roundings < 0.5, roundings / (1 - np.minimum(roundings, 0.5)), np.inf)
    error = np.where(exact, 0.0, 1.001 * gamma * (magnitude * np.abs(unit) + np.abs(offset)))
    return Start(unit, offset, error)


@dataclass(frozen=True)
class Scale:
    """x * factor[c]."""

    factor: np.ndarray  # float32 (C,)

    def __call__(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return x * per_channel(self.factor, x)

    def exact(self, x: Fraction, channel: int, residual: int) -> Fraction:
        return x * Fraction(float(self.factor[channel]))

    def rises(self) -> np.ndarray:
        return self.factor >= 0


@dataclass(frozen=True)
class Divide:
    """x / divisor[c]."""

    divisor: np.ndarray  # float32 (C,), without zeros

    def __call__(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return x / per_channel(self.divisor, x)

    def exact(self, x: Fraction, channel: int, residual: int) -> Fraction:
        return x / Fraction(float(self.divisor[channel]))

    def rises(self) -> np.ndarray:
        return self.divisor >= 0


@dataclass(frozen=True)
class Offset:
    """x + offset[c]."""

    offset: np.ndarray  # float32 (C,)

    def __call__(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return x + per_channel(self.offset, x)

    def exact(self, x: Fraction, channel: int, residual: int) -> Fraction:
        return x + Fraction(float(self.offset[channel]))

    def rises(self) -> np.ndarray:
        return np.ones(len(self.offset), bool)


@dataclass(frozen=True)
class Clamp:
    """x limited to low..high; a Relu has low 0 and no high."""

    low: np.float32
    high: np.float32

    def __call__(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return np.minimum(np.maximum(x, self.low), self.high)

    def exact(self, x: Fraction, channel: int, residual: int) -> Fraction:
        raised = x if np.isneginf(self.low) else max(x, Fraction(float(self.low)))
        return raised if np.isposinf(self.high) else min(raised, Fraction(float(self.high)))

    def rises(self) -> np.ndarray:
        return np.ones(1, bool)


@dataclass(frozen=True)
class Leak:
    """x, or x * slope[c] below 0."""

    slope: np.ndarray  # float32 (C,)

    def __call__(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return np.where(x < 0, x * per_channel(self.slope, x), x)

    def exact(self, x: Fraction, channel: int, residual: int) -> Fraction:
        return x * Fraction(float(self.slope[channel])) if x < 0 else x

    def rises(self) -> np.ndarray:
        return self.slope >= 0


@dataclass(frozen=True)
class AddTensor:
    """x + the float value of a quantized tensor, which has a chain of its own."""

    tensor: str
    chain: Chain

    def __call__(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return x + self.chain(residual, np.zeros_like(residual))

    def real(self, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return x + self.chain.real(residual, np.zeros_like(residual))

    def exact(self, x: Fraction, channel: int, residual: int) -> Fraction:
        return x + self.chain.exact(residual, channel, 0)

    def rises(self) -> np.ndarray:
        return np.ones(1, bool)


Operation = Scale | Divide | Offset | Clamp | Leak | AddTensor


@dataclass(frozen=True)
class Chain:
    """`Start` and the operations after it."""

    start: Start
    operations: tuple[Operation, ...] = ()

    def __call__(self, integers: np.ndarray, residual: np.ndarray, side: int = 0) -> np.ndarray:
        """The model's float32 number (C, ...) for accumulators and residual integers (C, ...)."""
        x = self.start(integers, side)
        with np.errstate(over="ignore", invalid="ignore"):
            for operation in self.operations:
                x = operation(x, residual)
        return x

    def real(self, integers: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """The number that is meant, up to float64's rounding, for accumulators and residual integers (C, ...)."""
        x = self.start.real(integers)
        for operation in self.operations:
            x = operation.real(x, residual) if isinstance(operation, AddTensor) else operation(x, residual)
        return x

    def exact(self, integer: int, channel: int, residual: int) -> Fraction:
        """The number that is meant, for one accumulator and residual integer of a channel."""
        x = self.start.exact(integer, channel)
        for operation in self.operations:
            x = operation.exact(x, channel, residual)
        return x

    def then(self, *operations: Operation) -> Chain:
        return Chain(self.start, self.operations + operations)

    def rising(self) -> Chain:
        """The chain for accumulators with another sign, where it falls with them (as far as factors say)."""
        sign = np.sign(self.start.unit)
        for operation in self.operations:
            if isinstance(operation, Scale):
                sign = sign * np.sign(operation.factor)
            elif isinstance(operation, Divide):
                sign = sign * np.sign(operation.divisor)
        unit = np.where(sign < 0, -self.start.unit, self.start.unit)
        return Chain(Start(unit, self.start.offset, self.start.error), self.operations)

    @property
    def residual(self) -> str | None:
        """Name of the tensor that an operation adds, if any."""
        return next((operation.tensor for operation in self.operations if isinstance(operation, AddTensor)), None)

    @property
    def known(self) -> bool:
        """Whether the model's float numbers are known, not only bounded."""
        return not self.start.error.any()


@dataclass(frozen=True)
class Quantizer:
    """A QONNX Quant node's way from float32 to an integer level: divide, add the zero point, clip, round, subtract it.

    Levels are what the model multiplies by the scale: without the zero point. `late` if it is added after rounding, as
    QuantizeLinear does. Numbers are rounded to 1/`fraction` of a level first, as Trunc does; `worth` is what a level
    counts afterwards, if it is not the scale.
    """

    scale: np.float32
    bits: int
    signed: bool
    narrow: bool
    rounding: Callable[[Any], Any]
    zero_point: int = 0
    late: bool = False
    fraction: int = 1
    worth: float | None = None

    @property
    def low(self) -> int:
        return (-(1 << (self.bits - 1)) + self.narrow if self.signed else 0) - self.zero_point

    @property
    def high(self) -> int:
        highest = (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1 - self.narrow
        return highest - self.zero_point

    @property
    def bias(self) -> int:
        """What is added to a level of at most 4 bits where it is stored."""
        return (8 if self.signed else 0) + self.zero_point

    @property
    def shift(self) -> int:
        """What is added before rounding."""
        return 0 if self.late else self.zero_point

    def round(self, positions: np.ndarray) -> np.ndarray:
        """Levels, as floats, of numbers divided by the scale."""
        if self.fraction > 1:
            positions = np.round(positions * positions.dtype.type(self.fraction)) / positions.dtype.type(self.fraction)
        shift = positions.dtype.type(self.shift)
        return self.rounding(np.clip(positions + shift, self.low + shift, self.high + shift)) - shift

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Levels, as int64, of float32 numbers (C, ...)."""
        return self.round(x / self.scale).astype(np.int64)

    def as_meant(self, numbers: np.ndarray, ties_up: bool = False) -> np.ndarray:
        """Levels, as int64, of real numbers (C, ...) in float64; with `ties_up`, one halfway between two levels is the
        upper one."""
        positions = numbers / np.float64(self.scale)
        if ties_up:
            return np.clip(np.floor(positions + 0.5), self.low, self.high).astype(np.int64)
        return self.round(positions).astype(np.int64)

    def near(self, numbers: np.ndarray) -> np.ndarray:
        """Whether numbers (C, ...) lie so near to where a level may begin that float64's own rounding could matter."""
        twice = 2 * self.fraction * (numbers / np.float64(self.scale))
        return np.abs(twice - np.round(twice)) < NEAR * np.maximum(1, np.abs(twice))

    def exact(self, number: Fraction, channel: int, ties_up: bool = False) -> int:
        """`as_meant` of an exact number.

        A rounding mode can only ask whether a number is whole, halfway, or to which side of halfway it lies: so a float
        of the same kind stands for it.
        """
        position = number / Fraction(float(self.scale))
        if self.fraction > 1:
            position = Fraction(round(position * self.fraction), self.fraction)
        clipped = min(max(position, Fraction(self.low)), Fraction(self.high)) + self.shift
        whole = math.floor(clipped)
        rest = clipped - whole
        kind = 0.0 if rest == 0 else 0.25 if rest < Fraction(1, 2) else 0.5 if rest == Fraction(1, 2) else 0.75
        return (whole + int(kind >= 0.5) if ties_up else int(self.rounding(np.float64(whole + kind)))) - self.shift


@dataclass(frozen=True, eq=False)
class Thresholds(Quantizer):
    """FINN's MultiThreshold: a level is `first` + `stride` * (how many of its channel's thresholds are reached)."""

    table: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), np.float32))  # float32 (C, T), rising
    first: int = 0
    stride: int = 1

    def __call__(self, x: np.ndarray) -> np.ndarray:
        reached = np.zeros(x.shape, np.int64)
        for thresholds in self.table.T:
            reached += x >= per_channel(thresholds, x)
        return self.first + self.stride * reached

    def as_meant(self, numbers: np.ndarray, ties_up: bool = False) -> np.ndarray:
        return self(numbers)

    def near(self, numbers: np.ndarray) -> np.ndarray:
        found = np.zeros(numbers.shape, bool)
        for thresholds in self.table.T.astype(np.float64):
            limit = per_channel(thresholds, numbers)
            found |= np.abs(numbers - limit) <= NEAR * np.maximum(np.abs(limit), SMALLEST_NORMAL)
        return found

    def exact(self, number: Fraction, channel: int, ties_up: bool = False) -> int:
        finite = [float(threshold) for threshold in self.table[channel] if threshold < np.inf]
        reached = sum(threshold == -np.inf or number >= Fraction(threshold) for threshold in finite)
        return self.first + self.stride * reached
