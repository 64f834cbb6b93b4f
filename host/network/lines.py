"""Even sequences: integer thresholds that lie on a line, T_k = ceil(offset + k * slope), and the search for one.

Each threshold is known, or bounded, or free: lower <= T_k <= upper. That is lower - 1 < offset + k * slope <= upper, so
for any two of them

    (j - i) * slope  <  upper_j - lower_i + 1        and        (j - i) * slope  >  lower_j - 1 - upper_i

These inequalities of the slope alone are sufficient, too: then all intervals for the offset intersect. Slopes that
satisfy all of them are an open interval with rational ends, computed in integers; so if none is found, there is none.

A quantizer that rounds ties to even puts thresholds of odd levels a little behind those of even ones. Then the line
that all odd (or all even) T_k obey lies higher by something less than any distance that matters: here 1/FINE.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FREE = 1 << 40  # bounds at least so far from 0 are none
FINE = 64  # more than any denominator that occurs (at most 30 + 30)


@dataclass(frozen=True)
class Lines:
    """One line a channel, in units of 1/FINE: T_k = ceil(((offset + k * rise) / run + is_late(k)) / FINE).

    All int64 (C,). `late` is 1 if odd k are late, -1 if even k are, else 0.
    """

    offset: np.ndarray
    rise: np.ndarray
    run: np.ndarray
    late: np.ndarray

    def scaled_slope(self, factor: int) -> np.ndarray:
        """int64 (C,): `factor` times the slope, rounded down."""
        return factor * self.rise // (FINE * self.run)

    def thresholds(self, numbers: np.ndarray) -> np.ndarray:
        """T_k, int64 (C, K), for `numbers` (K,) or (C, K)."""
        numbers = np.broadcast_to(numbers, (len(self.offset), np.shape(numbers)[-1]))
        run = self.run[:, None]
        position = self.offset[:, None] + numbers * self.rise[:, None] + run * is_late(self.late[:, None], numbers)
        return -(-position // (FINE * run))


def is_late(late: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """0 or 1 for thresholds `numbers`."""
    odd = numbers & 1
    return np.where(late > 0, odd, np.where(late < 0, 1 - odd, 0))


def fit(lower: np.ndarray, upper: np.ndarray, steepest: int = FREE, late: int = 0):
    """(Lines, bool (C,) whether a line exists) for bounds (C, K) of T_1 .. T_K; the slope is below `steepest`.

    Of several, a line of whole slope is preferred, and a flat one.
    """
    channels, count = lower.shape
    numbers = np.arange(1, count + 1)
    which = np.full(channels, late, np.int64)
    behind = is_late(which[:, None], numbers[None])
    # In units of 1/FINE: below < offset + k * slope <= above.
    below = np.where(lower <= -FREE, -FREE * FINE, FINE * (np.maximum(lower, -FREE) - 1) - behind)
    above = np.where(upper >= FREE, FREE * FINE, FINE * np.minimum(upper, FREE) - behind)
    most, least = np.full(channels, steepest * FINE), np.full(channels, -FREE * FINE)
    most_run, least_run = np.ones(channels, np.int64), np.ones(channels, np.int64)
    for apart in range(1, count):
        rise = (above[:, apart:] - below[:, :-apart]).min(1)
        smaller = rise * most_run < most * apart
        most, most_run = np.where(smaller, rise, most), np.where(smaller, apart, most_run)
        rise = (below[:, apart:] - above[:, :-apart]).max(1)
        larger = rise * least_run > least * apart
        least, least_run = np.where(larger, rise, least), np.where(larger, apart, least_run)
    exists = (below < above).all(1) & (most > 0) & (least * most_run < most * least_run)
    whole = np.maximum(least // (least_run * FINE) + 1, 0)
    is_whole = whole * FINE * most_run < most
    # The mediant of two fractions lies between them.
    rise = np.where(is_whole, whole * FINE, least + most)
    run = np.where(is_whole, 1, least_run + most_run)
    highest = (run[:, None] * above - numbers * rise[:, None]).min(1)
    lowest = (run[:, None] * below - numbers * rise[:, None]).max(1)
    bounded = (upper < FREE).any(1)
    offset = np.where(bounded, highest, np.where((lower > -FREE).any(1), lowest + 1, 0))
    return Lines(offset, rise, run, which), exists


def find(lower: np.ndarray, upper: np.ndarray, steepest: int = FREE):
    """Like `fit`, for whichever thresholds may be late."""
    lines, exists = fit(lower, upper, steepest)
    for late in (1, -1):
        if exists.all():
            break
        others, found = fit(lower, upper, steepest, late)
        better = found & ~exists
        values = (getattr(lines, name) for name in ("offset", "rise", "run", "late"))
        lines = Lines(*(np.where(better, new, old) for new, old in zip(vars(others).values(), values, strict=True)))
        exists |= found
    return lines, exists
