"""The model's float32 arithmetic between an integer accumulator and a quantizer, one object for each float operation.

    accumulator --> Start --> operation --> operation --> ... --> Quantizer --> level
      integer       float32   float32                                 integer

The operations are what onnxruntime and qonnx execute, in graph order, each one correctly rounded in float32. Every one
is monotone (rounding keeps order), hence so is the whole chain: `host/arithmetic/thresholds.py` turns it into
thresholds by evaluating it, not by reasoning about it. The same chain in real numbers is what its author means.

Arrays inside a chain are (C, ...): channels first, then anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

FLOAT32_UNIT_ROUNDOFF = 2.0**-24
SMALLEST_NORMAL = 2.0**-126
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


Operation = Scale | Divide | Offset | Clamp | AddTensor


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
    """A QONNX Quant node's way from float32 to an integer level: divide, clip, round."""

    scale: np.float32
    bits: int
    signed: bool
    narrow: bool
    rounding: Callable[[Any], Any]

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) + self.narrow if self.signed else 0

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1 - self.narrow

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Levels, as int64, of float32 numbers."""
        levels = np.minimum(np.maximum(x / self.scale, np.float32(self.low)), np.float32(self.high))
        return self.rounding(levels).astype(np.int64)
