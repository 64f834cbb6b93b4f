"""Levels of five to eight bits as two nibbles, each a tensor of four bits.

    level = 16 * high + low       high: levels that are 16 apart       low: what a sum is worth less its high nibble

The high nibble is requantized like any level. The low one is that of another sum, of which the high nibble is a term:
base * sum + factor * high, where the factor is what 16 levels are worth, negative. So the search for the level goes on
from the remainder.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from sentei.host.arithmetic.float_chain import Chain, Divide, Quantizer, Scale
from sentei.host.arithmetic.real_thresholds import reaching_as_meant
from sentei.host.arithmetic.thresholds import LEVELS, NUMBERS, Piece, between, reached_by, reaching_in_float
from sentei.host.network.ir import residual_codes
from sentei.host.network.lines import FINE, FREE
from sentei.overlay.instructions import NO_RESIDUAL
from sentei.overlay.program import Doubt

NIBBLE = 16


@dataclass(frozen=True, eq=False)
class Part(Quantizer):
    """Another quantizer's levels, counted from its lowest one, less `first`, divided by `divisor`: 0 to 15, less the
    zero point."""

    whole: Quantizer = field(default=None)  # type: ignore[assignment]
    first: int = 0
    divisor: int = 1

    def of(self, levels: np.ndarray) -> np.ndarray:
        return np.clip((levels - self.whole.low - self.first) // self.divisor, 0, LEVELS) - self.zero_point

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.of(self.whole(x))

    def as_meant(self, numbers: np.ndarray, ties_up: bool = False) -> np.ndarray:
        return self.of(self.whole.as_meant(numbers, ties_up))

    def near(self, numbers: np.ndarray) -> np.ndarray:
        return self.whole.near(numbers)

    def exact(self, number: Fraction, channel: int, ties_up: bool = False) -> int:
        return int(self.of(np.array(self.whole.exact(number, channel, ties_up))))


def part(whole: Quantizer, first: int, divisor: int, zero_point: int) -> Part:
    limits = (whole.scale, 4, False, False, whole.rounding, zero_point)
    return Part(*limits, whole=whole, first=first, divisor=divisor)


def nibbles(whole: Quantizer) -> tuple[Part, Part]:
    """The quantizers of the high and the low nibble; the low one's levels are those of the lowest high nibble."""
    high, low = divmod(-whole.low, NIBBLE)
    return part(whole, 0, NIBBLE, high), part(whole, 0, 1, low)


def worth(chain: Chain) -> np.ndarray:
    """float64 (C,): what one more in the sum is worth behind the chain."""
    factor = chain.start.unit
    for operation in chain.operations:
        if isinstance(operation, Scale):
            factor = factor * operation.factor
        elif isinstance(operation, Divide):
            factor = factor / operation.divisor
    return factor


def low_nibble(
    op: str,
    chain: Chain,
    whole: Quantizer,
    limits: tuple[np.ndarray, np.ndarray],
    bases: np.ndarray,
    factors: np.ndarray,
) -> tuple[list[Piece], Doubt | None, np.ndarray]:
    """The low nibble of levels that rise with the accumulator, for sums bases[c] * accumulator + factors[c] * high; for
    how many accumulators the array or float32 may decide otherwise; and for how many of each channel, int64 (C,), the
    array does, as no line of thresholds will do. `limits` are the accumulator's."""
    (low, high), base = limits, bases[:, None]
    none, rises = np.zeros(1, np.int64), np.zeros(len(low), bool)
    upper = nibbles(whole)[0]
    counts = reaching_as_meant(chain, upper, low, high, none, rises)[:, :, 0]  # where each high nibble begins
    begins = np.concatenate([low[:, None], counts, high[:, None] + 1], axis=1)
    least, most = np.full((len(low), LEVELS), -FREE), np.full((len(low), LEVELS), FREE)
    windows = []
    doubtful = np.zeros(len(low), np.int64)
    for nibble in range(1 + (whole.high - whole.low) // NIBBLE):
        window = part(whole, nibble * NIBBLE, 1, 0)
        begin, end = begins[:, nibble, None], begins[:, nibble + 1, None]
        meant = np.clip(reaching_as_meant(chain, window, low, high, none, rises)[:, :, 0], begin, end)
        added = (factors * (nibble - upper.zero_point))[:, None]
        least = np.maximum(least, np.where(meant > begin, base * (meant - 1) + added + 1, -FREE))
        most = np.minimum(most, np.where(meant < end, base * meant + added, FREE))
        windows.append((begin, end, meant, added))
        sides = [reaching_in_float(chain, window, low, high, none, rises, side)[:, :, 0] for side in (-1, 1)]
        first, last = np.minimum(np.minimum(*sides), meant), np.maximum(np.maximum(*sides), meant)
        doubtful += (np.clip(last, begin, end) - np.clip(first, begin, end)).sum(1)
    spec, exists = between(least[:, :, None], most[:, :, None], rises, residual_codes(None))
    thresholds = np.where(exists[:, None], spec.thresholds, nearest_line(least, most, spec.low))
    pieces = [Piece(0, LEVELS, replace(spec, thresholds=thresholds))]
    thresholds = reached_by(pieces)
    wrong = np.zeros(len(low), np.int64)
    for begin, end, meant, added in windows:
        found = np.clip(-((added - thresholds) // base), begin, end)  # rounded up
        wrong += np.abs(found - meant).sum(1)
    doubtful += wrong
    if not doubtful.any():
        return pieces, None, wrong
    return pieces, Doubt(op, int(doubtful.sum()), int((doubtful > 0).sum()), nearest=int(wrong.sum())), wrong


def nearest_line(least: np.ndarray, most: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """int64 (C, 31): thresholds on the line nearest to the middles of what bounds them, `least` and `most` (C, 15),
    which may contradict one another."""
    known = (least > -FREE) & (most < FREE)
    middles = np.where(known, (least + most) / 2, 0.0)
    count = np.maximum(known.sum(1), 1)
    levels = np.where(known, np.arange(1, LEVELS + 1), 0)
    centre, level = middles.sum(1) / count, levels.sum(1) / count
    away = np.where(known, levels - level[:, None], 0.0)
    spread = np.maximum((away**2).sum(1), 1e-9)
    slope = np.maximum((away * (middles - centre[:, None])).sum(1) / spread, 0)
    rise, start = np.round(slope * FINE).astype(np.int64), np.round((centre - slope * level) * FINE).astype(np.int64)
    numbers = NUMBERS[None, :] + (lowest - NO_RESIDUAL)[:, None]  # the level that each decides about
    return -((-(start[:, None] + rise[:, None] * numbers)) // FINE)
