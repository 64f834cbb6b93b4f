"""The array's steps: slots with a weight left, as passes over nibbles whose sums provably fit the accumulators.

8-bit operands   -> nibble passes, highest power of 16 first, joined after the array
long sums        -> passes that fit the array's accumulators, joined likewise
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from sentei.host.compiler.channel_entries import excess
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry

NIBBLE = 15
LARGEST_PRODUCT = 8 * NIBBLE
ALIKE_SHARE = 0.98  # of a layer's slots, from which on its blocks may keep those without a weight


@dataclass
class Steps:
    """Steps in order: `planes`, `taps`, `pad` int64 (n,), `weights` int64 (n, columns); bool (n,) whether what the step
    reads is written in a later epoch than what the others read (`late`), and whether it reads other lanes of what the
    step before reads (`repeated`)."""

    planes: np.ndarray
    taps: np.ndarray
    weights: np.ndarray
    pad: np.ndarray
    late: np.ndarray
    repeated: np.ndarray

    def __len__(self) -> int:
        return len(self.planes)

    def take(self, selection) -> Steps:
        return Steps(*(getattr(self, column.name)[selection] for column in fields(self)))


def weight_digits(weights: np.ndarray) -> list[np.ndarray]:
    """Splits integers into arrays of digits of -8..7 with weights = sum(16**j * digits[j]), lowest first; the highest
    digit may be 8 (then it takes two steps). Weights that fit in 4 bits are one digit."""
    if weights.size == 0 or (weights.min() >= -8 and weights.max() <= 7):
        return [weights]
    low = (weights + 8) % 16 - 8
    rest = (weights - low) // 16
    return [low, rest] if np.abs(rest).max() <= 8 else [low, *weight_digits(rest)]


def nibble_steps(slots: Steps, alike: bool = False) -> Steps:
    """Steps for slots; empty slots vanish, weights beyond -8..7 are spread over several steps. `alike`: a few empty
    slots stay, so that blocks read the same."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    rest = slots.weights
    while True:
        digit = np.clip(rest, -8, 7)
        used = np.flatnonzero((digit != 0).any(axis=1))
        if alike and not parts and len(used) >= ALIKE_SHARE * len(digit):
            used = np.arange(len(digit))
        parts.append((used, digit[used]))
        rest = rest - digit
        if not rest.any():
            break
    order = np.concatenate([used for used, _ in parts])
    steps = replace(slots.take(order), weights=np.concatenate([digit for _, digit in parts]))
    return steps.take(np.argsort(steps.late, kind="stable"))


def concatenate(parts: list[Steps]) -> Steps:
    """The steps of all parts, those that are late last."""
    joined = Steps(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Steps)))
    return joined.take(np.argsort(joined.late, kind="stable"))


def split_passes(
    powers: dict[int, list[Steps]], columns: int, largest: int, geometry: Geometry, name: str, limit: int = 0
):
    """Orders `powers` {power of 16: steps} from high to low and cuts sums that could exceed `limit`, or overflow the
    accumulators.

    `largest` bounds a stored nibble. Returns (list of (steps, joins by a nibble), largest magnitude of the joined sum,
    what the joins add included); raises CapacityError if that needs more than wide_bits.
    """
    limit = limit or (1 << (geometry.accumulator_bits - 1)) - 1
    passes: list[tuple[Steps, bool]] = []
    high = low = np.zeros(columns, np.int64)
    worst = 0
    for power in sorted(powers, reverse=True):
        steps = concatenate(powers[power])
        if len(steps) == 0:
            if power > 0 and not passes:
                continue
            zero = np.zeros(1, np.int64)
            never = np.zeros(1, bool)
            steps = Steps(zero, zero, np.zeros((1, columns), np.int64), zero, never, never)
        # Of the steps that read the same for some lanes each, a lane has a pixel in one and the pad in all others.
        most = np.where(steps.repeated, steps.pad, largest)[:, None]
        up, down = (np.cumsum(bound(steps.weights, 0) * most, axis=0) for bound in (np.maximum, np.minimum))
        room = limit - (columns * LARGEST_PRODUCT if steps.repeated.any() else 0)  # a cut may come between them
        by_nibble = bool(passes)
        if by_nibble:
            high, low = high * 16, low * 16
        begin = 0
        while begin < len(steps):
            base_up, base_down = (up[begin - 1], down[begin - 1]) if begin else (0, 0)
            fits = ((up[begin:] - base_up <= room) & (down[begin:] - base_down >= -room)).all(1)
            end = begin + (len(fits) if fits.all() else int(np.argmin(fits)))
            passes.append((steps.take(slice(begin, end)), by_nibble))
            begin, by_nibble = end, False
        high, low = high + up[-1], low + down[-1]
        worst = max(worst, int(high.max()), int(-low.min()))
    worst += excess([by_nibble for _, by_nibble in passes[1:]])
    check_wide(worst, geometry, name)
    return passes, worst


def check_wide(worst: int, geometry: Geometry, name: str) -> None:
    """Raise CapacityError unless magnitudes up to `worst` fit in wide_bits."""
    if worst >= 1 << (geometry.wide_bits - 1):
        raise CapacityError(f"{name}: sums may reach {worst}, more than {geometry.wide_bits} bits hold; use fewer bits")
