"""From a chain of float32 operations to the integer `Requantize` that provably equals it.

A chain is monotone in the accumulator, so each output level is reached at one smallest accumulator. Bisection over
the whole reachable range finds it by running the chain itself, for all channels, levels and residuals at once:

    level                  ┌────       smallest accumulator at which level j is reached with residual r
                    ┌──────┘           = threshold number 16 + j - r
        ────────────┘
        low ............... high   (accumulator)

What is never or always reached bounds its threshold. All pairs (j, r) of one number must agree, and the thresholds of a
channel must lie on a line, rounded up. The search for the line is complete (host/network/lines.py), so where it finds
none, there is none. Then the levels are cut into pieces that have one each, and the level is their sum:

    level = clip(level, 0, 7) + clip(level, 7, 15) - 7
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sentei.host.arithmetic.float_chain import AddTensor, Chain, Divide, Offset, Quantizer, Scale
from sentei.host.errors import InexactModel
from sentei.host.network.ir import Requantize, Tensor, residual_codes
from sentei.host.network.lines import FREE, find
from sentei.overlay.instructions import NO_RESIDUAL, THRESHOLDS

LEVELS = 15  # above the lowest one
PARTS = 16  # of half a sum's worth, that an offset may be moved by
NUMBERS = np.arange(1, THRESHOLDS + 1)


def requantize(
    op: str, chain: Chain, quantizer: Quantizer, low: np.ndarray, high: np.ndarray, residual: Tensor | None
) -> list[Piece]:
    """The levels of operator `op` for accumulators in low[c]..high[c]; raises `InexactModel` if there are none."""
    integers = residual_integers(residual)
    descending = falls(op, chain, quantizer, low, high, integers)
    smallest, largest = (reaching_in_float(chain, quantizer, low, high, integers, descending, side) for side in (-1, 1))
    require_equal(op, smallest, largest)
    spec, exists = on_lines(smallest, low, high, descending, residual)
    if exists.all():
        return [Piece(0, LEVELS, spec)]
    if residual is not None:
        refuse(op, chain, quantizer, residual, exists)
    return in_pieces(*limits_of(smallest, low, high), descending)


def quiet_offsets(
    op: str, chain: Chain, quantizer: Quantizer, low: np.ndarray, high: np.ndarray, residual: Tensor | None
) -> np.ndarray:
    """float32 (C,): the smallest offsets, in parts of what one more in the sum is worth, with which no sum is in doubt;
    0 where there are none."""
    factor = np.abs(chain.start.unit)
    for operation in chain.operations:
        if isinstance(operation, Scale):
            factor = factor * np.abs(operation.factor)
        elif isinstance(operation, Divide):
            factor = factor / np.abs(operation.divisor)
    integers = residual_integers(residual)
    found = np.full(len(low), np.nan, np.float32)
    for part in sorted(range(-PARTS, PARTS + 1), key=abs):
        offsets = (factor * part / (2 * PARTS)).astype(np.float32)
        moved = chain.then(Offset(offsets))
        descending = falls(op, moved, quantizer, low, high, integers)
        ends = [reaching_in_float(moved, quantizer, low, high, integers, descending, side) for side in (-1, 1)]
        quiet = (ends[0] == ends[1]).all((1, 2))
        if residual is not None:
            quiet &= on_lines(ends[0], low, high, descending, residual)[1]
        found = np.where(np.isnan(found) & quiet, offsets, found)
        if not np.isnan(found).any():
            break
    return np.nan_to_num(found)


def residual_integers(residual: Tensor | None) -> np.ndarray:
    """All values of a residual; 0 if there is none."""
    return np.arange(residual.low, residual.high + 1) if residual else np.zeros(1, np.int64)


def on_lines(
    smallest: np.ndarray, low: np.ndarray, high: np.ndarray, descending: np.ndarray, residual: Tensor | None
) -> tuple[Requantize, np.ndarray]:
    """The `Requantize` that reaches the levels at `smallest` (C, 15, R), and whether each channel (C,) has one."""
    spec, exists = between(*limits_of(smallest, low, high), descending, residual_codes(residual))
    return replace(spec, residual=residual.name if residual else None), exists


def limits_of(smallest: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a threshold may lie that is reached at `smallest` (C, 15, R): from where and to where."""
    least = np.where(smallest <= low[:, None, None], -FREE, smallest)
    return least, np.where(smallest > high[:, None, None], FREE, smallest)


@dataclass(frozen=True)
class Piece:
    """`spec` hands out the level, limited to `first`..`last`, counted from the lowest one."""

    first: int
    last: int
    spec: Requantize


def in_pieces(least: np.ndarray, most: np.ndarray, descending: np.ndarray) -> list[Piece]:
    """The fewest pieces that reach each level somewhere from `least` to `most` (C, 15, 1), the same of all channels."""
    step = np.arange(LEVELS)
    level = np.where(descending[:, None], LEVELS - step, step + 1)[:, :, None]
    pieces: list[Piece] = []
    while not pieces or pieces[-1].last < LEVELS:
        first = pieces[-1].last if pieces else 0
        for last in range(LEVELS, first, -1):
            below, above = level <= first, level > last
            always = np.where(descending[:, None, None], above, below)
            never = np.where(descending[:, None, None], below, above)
            lower, upper = (np.where(always, -FREE, np.where(never, FREE, of)) for of in (least, most))
            spec, exists = between(lower, upper, descending, residual_codes(None))
            if exists.all():
                break
        pieces.append(Piece(first, last, spec))
    return pieces


def between(least: np.ndarray, most: np.ndarray, descending: np.ndarray, codes: range) -> tuple[Requantize, np.ndarray]:
    """The `Requantize` that reaches each level somewhere from `least` to `most` (C, 15, R), for a residual of these
    codes; and whether each channel (C,) has one. -FREE: it is always reached; FREE: never."""
    first, last = (least <= -FREE).sum(1), LEVELS - (most >= FREE).sum(1)  # (C, R): thresholds reached at either end
    lowest = np.where(descending, LEVELS - last.max(1), first.min(1))
    highest = np.where(descending, LEVELS - first.min(1), last.max(1))
    lower, upper = bounds(least, most, descending, lowest, highest, codes)
    lines, exists = find(lower, upper)
    thresholds = lines.thresholds(NUMBERS)
    exists &= ((lower <= thresholds) & (thresholds <= upper)).all(1)
    return Requantize(thresholds, descending, lowest, highest - lowest), exists


def bounds(
    least: np.ndarray,
    most: np.ndarray,
    descending: np.ndarray,
    lowest: np.ndarray,
    highest: np.ndarray,
    codes: range,
) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) of each channel's thresholds, int64 (C, 31); contradictions leave lower > upper."""
    channels = np.arange(len(least))
    lower = np.full((len(channels), THRESHOLDS + 1), -FREE)
    upper = np.full((len(channels), THRESHOLDS + 1), FREE)
    for reached in range(LEVELS):
        level = np.where(descending, LEVELS - reached, reached + 1)
        counts = (lowest < level) & (level <= highest)
        for column, code in enumerate(codes):
            number = np.where(counts, number_of(level, lowest, descending, code), 0)
            lower[channels, number] = np.maximum(lower[channels, number], least[:, reached, column])
            upper[channels, number] = np.minimum(upper[channels, number], most[:, reached, column])
    return lower[:, 1:], upper[:, 1:]


def number_of(level: np.ndarray, lowest: np.ndarray, descending: np.ndarray, code: int) -> np.ndarray:
    """The number of the threshold that decides about a level, counted from 1, for a residual's code."""
    return 16 + np.where(descending, code - (level - lowest), level - lowest - code)


def reached_by(pieces: list[Piece]) -> np.ndarray:
    """int64 (C, 15): the sum at which the pieces together reach each level; -FREE: always, FREE: never."""
    found = np.zeros((len(pieces[0].spec.low), LEVELS), np.int64)
    steps = np.arange(LEVELS)
    level = np.where(pieces[0].spec.descending[:, None], LEVELS - steps, steps + 1)
    for piece in pieces:
        found = np.where((piece.first < level) & (level <= piece.last), reached_at(piece.spec), found)
    return found


def reached_at(spec: Requantize) -> np.ndarray:
    """`reached_by` of one piece."""
    steps = np.arange(LEVELS)
    level = np.where(spec.descending[:, None], LEVELS - steps, steps + 1)
    lowest, highest = spec.low[:, None], (spec.low + spec.span)[:, None]
    number = number_of(level, lowest, spec.descending[:, None], NO_RESIDUAL)
    found = np.take_along_axis(spec.thresholds, np.clip(number, 1, THRESHOLDS) - 1, 1)
    always = np.where(spec.descending[:, None], level > highest, level <= lowest)
    never = np.where(spec.descending[:, None], level <= lowest, level > highest)
    return np.where(always, -FREE, np.where(never, FREE, found))


def refuse(op: str, chain: Chain, quantizer: Quantizer, residual: Tensor, exists: np.ndarray) -> None:
    """Say why there is no line for those channels that do not have one."""
    channel = int(np.flatnonzero(~exists)[0])
    count = f"({int((~exists).sum())} of {len(exists)} channels)"
    ends = np.broadcast_to([residual.low, residual.high], (len(exists), 2))
    (added,) = (operation for operation in chain.operations if isinstance(operation, AddTensor))
    scale = np.diff(added.chain(ends, ends))[channel, 0] / (residual.high - residual.low)
    if not np.isclose(scale, quantizer.scale, rtol=1e-3):
        raise InexactModel(
            f"{op}: adds {residual.name!r} of scale {scale:.6g}, but the sum has scale {quantizer.scale:.6g} {count}: "
            "quantize both with the same scale, like all tensors of a residual activation"
        )
    raise InexactModel(
        f"{op}: channel {channel}: {residual.name!r} does not move its thresholds evenly {count}: add it as it left "
        "its Quant node, and keep the sums away from rounding ties, by an offset that is no multiple of half a step"
    )


def identity(tensor: Tensor) -> Requantize:
    """The `Requantize` that hands out an accumulator within the range of `tensor` unchanged."""
    low = tensor.low + tensor.bias
    channels = tensor.shape.channels
    return Requantize(
        np.tile(NUMBERS - NO_RESIDUAL + tensor.low, (channels, 1)),
        np.zeros(channels, bool),
        np.full(channels, low),
        np.full(channels, tensor.high - tensor.low),
    )


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


def reaching_in_float(
    chain: Chain,
    quantizer: Quantizer,
    low: np.ndarray,
    high: np.ndarray,
    integers: np.ndarray,
    descending: np.ndarray,
    side: int,
) -> np.ndarray:
    """`smallest_reaching` of the model's float32 numbers. `side` chooses the end of the interval in which its sum is
    known to lie."""

    def level(accumulators: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return quantizer(chain(accumulators, residual, side))

    return smallest_reaching(level, quantizer.bias, low, high, integers, descending)


def smallest_reaching(
    level: Callable[[np.ndarray, np.ndarray], np.ndarray],
    bias: int,
    low: np.ndarray,
    high: np.ndarray,
    integers: np.ndarray,
    descending: np.ndarray,
) -> np.ndarray:
    """int64 (C, 15, R): the smallest accumulator that reaches step k when the residual is integers[r].

    high[c] + 1 stands for never. Reaching means level >= k + 1 - bias, or level <= 14 - k - bias where descending.
    `level(accumulators, residual)` are the levels of accumulators and residuals (C, 15, R).
    """
    shape = (len(low), LEVELS, len(integers))
    residual = np.broadcast_to(integers, shape)
    wanted = levels_of_steps(bias, descending)[:, :, None]
    direction = descending[:, None, None]

    def reached(accumulators: np.ndarray) -> np.ndarray:
        levels = level(accumulators, residual)
        return np.where(direction, levels <= wanted, levels >= wanted)

    return bisect(reached, np.broadcast_to(low[:, None, None], shape), np.broadcast_to(high[:, None, None] + 1, shape))


def levels_of_steps(bias: int, descending: np.ndarray) -> np.ndarray:
    """int64 (C, 15): the level that each step reaches, from below or, where descending, from above."""
    base = -bias
    steps = np.arange(1, LEVELS + 1)
    return np.where(descending[:, None], base + LEVELS - steps, base + steps)


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
