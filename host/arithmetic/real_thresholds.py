"""The integer `Requantize` of a chain in real numbers: what the model's integers and scales mean, without rounding.

It is for models whose float32 execution cannot be proven equal to any integer requantization: float32 rounds sums by an
order that nobody promises, or lands on a tie by rounding. Then the meaning decides, and those sums for which float32
execution may decide otherwise are counted (`Doubt`).

Numbers are float64 first. Wherever one lies so near to a rounding tie or to an integer that float64's own rounding
could matter, it is computed again as a fraction.
"""

from __future__ import annotations

import numpy as np

from sentei.host.arithmetic.float_chain import Chain, Quantizer
from sentei.host.arithmetic.thresholds import (
    LEVELS,
    Piece,
    in_pieces,
    levels_of_steps,
    limits_of,
    on_lines,
    reached_by,
    reaching_in_float,
    refuse,
    residual_integers,
    smallest_reaching,
)
from sentei.host.errors import InexactModel
from sentei.host.network.ir import Requantize, Tensor
from sentei.host.network.lines import FREE
from sentei.overlay.program import Doubt


def requantize_as_meant(
    op: str, chain: Chain, quantizer: Quantizer, low: np.ndarray, high: np.ndarray, residual: Tensor | None
) -> tuple[list[Piece], Doubt | None]:
    """The levels of what is meant for accumulators in low[c]..high[c], and for how many of them float32 may
    decide otherwise. `InexactModel` if the array cannot compute it."""
    integers = residual_integers(residual)
    descending = falls_as_meant(op, chain, quantizer, low, high, integers)
    meant = reaching_as_meant(chain, quantizer, low, high, integers, descending)
    spec, exists = on_lines(meant, low, high, descending, residual)
    ties = np.zeros(len(low), np.int64)
    if residual is not None and not exists.all():
        # Ties are rounded to even levels, the array adds residuals of both parities: it rounds those of the rest up.
        up = reaching_as_meant(chain, quantizer, low, high, integers, descending, ties_up=True)
        raised, found = on_lines(up, low, high, descending, residual)
        better = found & ~exists
        spec = Requantize(
            np.where(better[:, None], raised.thresholds, spec.thresholds),
            np.where(better, raised.descending, spec.descending),
            np.where(better, raised.low, spec.low),
            np.where(better, raised.span, spec.span),
            spec.residual,
        )
        ties = np.where(better, np.abs(up - meant).sum((1, 2)), 0)
        meant = np.where(better[:, None, None], up, meant)
        exists |= found
    pieces = [Piece(0, LEVELS, spec)]
    if not exists.all() and residual is not None:
        refuse(op, chain, quantizer, residual, exists)
    if not exists.all():
        pieces = in_pieces(*limits_of(meant, low, high), descending)
    sides = [reaching_in_float(chain, quantizer, low, high, integers, descending, side) for side in (-1, 1)]
    first, last = np.minimum(np.minimum(*sides), meant), np.maximum(np.maximum(*sides), meant)
    sums = np.maximum((last - first).sum((1, 2)), ties)
    if not sums.any():
        return pieces, None
    return pieces, Doubt(op, int(sums.sum()), int((sums > 0).sum()), int(ties.sum()))


def requantize_sum_as_meant(
    op: str,
    chain: Chain,
    quantizer: Quantizer,
    limits: tuple[np.ndarray, np.ndarray],
    residual: Tensor,
    base: int,
    factors: np.ndarray,
) -> tuple[list[Piece], Doubt | None]:
    """`requantize_as_meant` of a chain that adds `residual`, for sums that have it as a term: base * accumulator +
    factors[c] * residual. `limits` are those of the accumulator without it.

    Where no threshold of such sums decides as the two together mean, the nearest one does, and those for which it
    decides otherwise are counted, too.
    """
    low, high = limits
    integers = residual_integers(residual)
    descending = falls_as_meant(op, chain, quantizer, low, high, integers)
    meant = reaching_as_meant(chain, quantizer, low, high, integers, descending)
    added = (factors[:, None] * integers)[:, None, :]
    below = np.where(meant > low[:, None, None], base * (meant - 1) + added + 1, -FREE).max(2)
    above = np.where(meant <= high[:, None, None], base * meant + added, FREE).min(2)
    middle = (below + above) // 2
    crossed = below > above
    least, most = np.where(crossed, middle, below), np.where(crossed, middle, above)
    pieces = in_pieces(least[:, :, None], most[:, :, None], descending)
    found = -((added - reached_by(pieces)[:, :, None]) // base)  # rounded up
    wrong = np.abs(np.clip(found, low[:, None, None], high[:, None, None] + 1) - meant).sum((1, 2))
    sides = [reaching_in_float(chain, quantizer, low, high, integers, descending, side) for side in (-1, 1)]
    first, last = np.minimum(np.minimum(*sides), meant), np.maximum(np.maximum(*sides), meant)
    sums = wrong + (last - first).sum((1, 2))
    if not sums.any():
        return pieces, None
    return pieces, Doubt(op, int(sums.sum()), int((sums > 0).sum()), nearest=int(wrong.sum()))


def falls_as_meant(
    op: str, chain: Chain, quantizer: Quantizer, low: np.ndarray, high: np.ndarray, integers: np.ndarray
) -> np.ndarray:
    """(C,) whether the level falls as the accumulator rises."""
    residual = np.broadcast_to(integers, (len(low), len(integers)))
    first, last = (chain.real(np.broadcast_to(end[:, None], residual.shape), residual) for end in (low, high))
    undefined = np.flatnonzero(~(np.isfinite(first) & np.isfinite(last)).all(1))
    if len(undefined):
        raise InexactModel(f"{op}: channel {undefined[0]}: its numbers overflow: use constants of usual size")
    return (quantizer.as_meant(last) < quantizer.as_meant(first)).any(1)


def reaching_as_meant(
    chain: Chain,
    quantizer: Quantizer,
    low: np.ndarray,
    high: np.ndarray,
    integers: np.ndarray,
    descending: np.ndarray,
    ties_up: bool = False,
) -> np.ndarray:
    """`smallest_reaching` of the real numbers; with `ties_up`, a number halfway between two levels is the upper one."""

    def level(accumulators: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return quantizer.as_meant(chain.real(accumulators, residual), ties_up)

    smallest = smallest_reaching(level, quantizer.bias, low, high, integers, descending)
    residual = np.broadcast_to(integers, smallest.shape)
    wanted = np.broadcast_to(levels_of_steps(quantizer.bias, descending)[:, :, None], smallest.shape)
    near = np.zeros(smallest.shape, bool)
    for accumulators in (smallest - 1, smallest):
        near |= quantizer.near(chain.real(accumulators, residual))
    result = smallest.copy()
    for channel, step, column in np.argwhere(near):
        target, falling = int(wanted[channel, step, column]), bool(descending[channel])
        where = (int(channel), int(integers[column]))

        def reached(accumulator: int, target=target, falling=falling, where=where) -> bool:
            found = quantizer.exact(chain.exact(accumulator, *where), where[0], ties_up)
            return found <= target if falling else found >= target

        value = int(smallest[channel, step, column])
        while value > low[channel] and reached(value - 1):
            value -= 1
        while value <= high[channel] and not reached(value):
            value += 1
        result[channel, step, column] = value
    return result
