"""From a chain of float32 operations to the integer `Requantize` that provably equals it.

A chain is monotone in the accumulator, so each output level is reached at one smallest accumulator. Bisection over
the whole reachable range finds it by running the chain itself, for all channels and levels at once:

    level                  ┌────       thresholds[c, k] = smallest accumulator at which level k is reached
                    ┌──────┘
        ────────────┘
        low ............... high   (accumulator)

With a residual r the smallest accumulator T_k(r) depends on r. `shift` and `gain[c]` must place one threshold between
the last value below and the first value above, for all r and k at once:

    max over r of ((T_k(r) - 1) << shift) + gain * r   <   threshold_k   <=   min over r of (T_k(r) << shift) + gain * r

For each shift these are linear inequalities in the gain, one for each pair of r, whose solution is an interval: the
search is complete, so a refusal means that no such integers exist.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sentei.host.errors import InexactModel
from sentei.host.float_chain import Chain, Quantizer
from sentei.host.ir import ACCUMULATOR_LIMIT, THRESHOLDS, Requantize, Tensor

SHIFTS = range(8)
GAIN_LIMIT = 32767


def requantize(
    op: str, chain: Chain, quantizer: Quantizer, low: np.ndarray, high: np.ndarray, residual: Tensor | None
) -> Requantize:
    """The `Requantize` of operator `op` for accumulators in low[c]..high[c]; raises `InexactModel` if there is none."""
    integers = np.arange(residual.low, residual.high + 1) if residual else np.zeros(1, np.int64)
    base = -8 if quantizer.signed else 0
    descending = falls(op, chain, quantizer, low, high, integers)
    smallest = smallest_reaching(chain, quantizer, low, high, integers, base, descending, -1)
    if not chain.exact:
        other = smallest_reaching(chain, quantizer, low, high, integers, base, descending, 1)
        require_equal(op, smallest, other)
    if residual is None:
        thresholds = with_sentinels(
            smallest[..., 0], smallest[..., 0] <= low[:, None], smallest[..., 0] > high[:, None]
        )
        return Requantize(thresholds, descending)
    shift, gain = shift_and_gain(op, residual, smallest, low, high, integers)
    scaled = (smallest << shift) + gain[:, None, None] * integers
    never, always = smallest > high[:, None, None], smallest <= low[:, None, None]
    first = np.where(never, ACCUMULATOR_LIMIT, scaled).min(-1)
    return Requantize(with_sentinels(first, always.all(-1), never.all(-1)), descending, residual.name, shift, gain)


def identity(tensor: Tensor) -> Requantize:
    """The `Requantize` that hands out an accumulator within the range of `tensor` unchanged."""
    levels = (-8 if tensor.signed else 0) + np.arange(1, THRESHOLDS + 1)
    thresholds = with_sentinels(levels, levels <= tensor.low, levels > tensor.high)
    channels = tensor.shape.channels
    return Requantize(np.tile(thresholds, (channels, 1)), np.zeros(channels, bool))


def with_sentinels(thresholds: np.ndarray, always: np.ndarray, never: np.ndarray) -> np.ndarray:
    """Thresholds that no accumulator decides, replaced by the ends of the hardware's range."""
    return np.where(always, -ACCUMULATOR_LIMIT, np.where(never, ACCUMULATOR_LIMIT, thresholds)).astype(np.int64)


def falls(
    op: str, chain: Chain, quantizer: Quantizer, low: np.ndarray, high: np.ndarray, integers: np.ndarray
) -> np.ndarray:
    """(C,) whether the level falls as the accumulator rises."""
    residual = np.broadcast_to(integers, (len(low), len(integers)))
    first, last = (chain(np.broadcast_to(end[:, None], residual.shape), residual) for end in (low, high))
    undefined = np.flatnonzero((np.isnan(first) | np.isnan(last)).any(1))
    if len(undefined):
        raise InexactModel(f"{op}: channel {undefined[0]}: its float32 numbers overflow: use constants of usual size")
    return (quantizer(last) < quantizer(first)).any(1)


def smallest_reaching(
    chain: Chain,
    quantizer: Quantizer,
    low: np.ndarray,
    high: np.ndarray,
    integers: np.ndarray,
    base: int,
    descending: np.ndarray,
    side: int,
) -> np.ndarray:
    """int64 (C, 15, R): the smallest accumulator that reaches threshold k when the residual is integers[r].

    high[c] + 1 stands for never. Reaching means level >= base + k + 1, or level <= base + 14 - k where descending.
    `side` chooses the end of the interval in which the model's sum is known to lie.
    """
    shape = (len(low), THRESHOLDS, len(integers))
    residual = np.broadcast_to(integers, shape)
    rising_level = base + np.arange(1, THRESHOLDS + 1)[None, :, None]
    falling_level = base + THRESHOLDS - np.arange(1, THRESHOLDS + 1)[None, :, None]
    direction = descending[:, None, None]

    def reached(accumulators: np.ndarray) -> np.ndarray:
        levels = quantizer(chain(accumulators, residual, side))
        return np.where(direction, levels <= falling_level, levels >= rising_level)

    return bisect(reached, np.broadcast_to(low[:, None, None], shape), np.broadcast_to(high[:, None, None] + 1, shape))


def bisect(reached: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Elementwise smallest integer in low..high with `reached`, which is monotone and taken to hold at `high`."""
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = (low + high) >> 1
        hit = reached(middle)
        high = np.where(open_ & hit, middle, high)
        low = np.where(open_ & ~hit, middle + 1, low)
    return low


def require_equal(op: str, one: np.ndarray, other: np.ndarray) -> None:
    """Refuse if float rounding noise could move a threshold across a reachable accumulator."""
    differ = (one != other).any((1, 2))
    if differ.any():
        channel = int(np.flatnonzero(differ)[0])
        raise InexactModel(
            f"{op}: channel {channel}: a reachable accumulator lies within the float32 rounding error of a "
            f"quantization boundary ({int(differ.sum())} of {len(one)} channels): use power-of-two scales for input "
            "and weights, and MatMul followed by Add instead of a bias inside Gemm, so that the model's sums are exact"
        )


def shift_and_gain(
    op: str, residual: Tensor, smallest: np.ndarray, low: np.ndarray, high: np.ndarray, integers: np.ndarray
) -> tuple[int, np.ndarray]:
    """The smallest shift, and per channel the gain closest to zero, that satisfy the inequalities above."""
    reach = np.maximum(np.abs(low), np.abs(high))
    fewest = np.arange(len(low))
    for shift in SHIFTS:
        least, most = gain_interval(smallest, low, high, integers, shift)
        gain = np.clip(0, least, most)
        fits = (reach << shift) + np.abs(gain) * np.abs(integers).max() < ACCUMULATOR_LIMIT
        failing = np.flatnonzero((least > most) | ~fits)
        if not len(failing):
            return shift, gain
        if len(failing) < len(fewest):
            fewest = failing
    raise InexactModel(
        f"{op}: channel {fewest[0]}: adding {residual.name!r} equals (accumulator << shift) + gain * residual for no "
        f"shift of 0 to {SHIFTS[-1]} and gain up to {GAIN_LIMIT} ({len(fewest)} of {len(low)} channels): choose the "
        "factor after the convolution so that the residual's scale is a whole multiple of (accumulator scale * factor) "
        "/ 2^shift, and offsets away from rounding ties"
    )


def gain_interval(
    smallest: np.ndarray, low: np.ndarray, high: np.ndarray, integers: np.ndarray, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """(C,) least and (C,) most gain for one shift; least > most where there is none.

    For residuals p and q: ((T(p) - 1) << shift) + gain * p < (T(q) << shift) + gain * q, provided that the accumulator
    T(p) - 1 is reachable and T(q) is.
    """
    least, most = np.full(len(low), -GAIN_LIMIT), np.full(len(low), GAIN_LIMIT)
    below_exists, above_exists = smallest > low[:, None, None], smallest <= high[:, None, None]
    for p, below in enumerate(integers):
        for q, above in enumerate(integers):
            distance = int(below - above)
            if not distance:
                continue
            room = (smallest[..., q] - smallest[..., p] + 1) << shift
            binding = below_exists[..., p] & above_exists[..., q]
            if distance > 0:
                most = np.minimum(most, np.where(binding, (room - 1) // distance, GAIN_LIMIT).min(1))
            else:
                least = np.maximum(least, np.where(binding, -room // -distance + 1, -GAIN_LIMIT).max(1))
    return least, most
