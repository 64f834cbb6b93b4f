"""Adds accumulators: what the model adds becomes one sum of a convolution with several terms.

    left  = u * l + ...       l, r integer sums          sum = a * l + b * r      with a / b = u / v, in whole numbers
    right = v * r + ...                                  left + right = (u / a) * sum + ...

The heavier side keeps its steps if `a` is a power of 16: then its weights only move up by whole digits. Where no small
whole numbers have the ratio of the scales, the nearest that the accumulator has room for do, and how far the sum then
lies from what is meant is part of its error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from sentei.host.arithmetic.float_chain import (
    EXACT_LIMIT,
    FLOAT32_UNIT_ROUNDOFF,
    AddTensor,
    Chain,
    Divide,
    Offset,
    Quantizer,
    Scale,
    Start,
    is_power_of_two,
)
from sentei.host.arithmetic.halves import worth
from sentei.host.errors import UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.values import QUANTIZE_IT, Activation
from sentei.host.network.ir import ACCUMULATOR_LIMIT, Conv, Pool, Shape, Tensor, Term, term_range

DIGIT = 16
ROOM = ACCUMULATOR_LIMIT // 2  # that factors make use of: thresholds anywhere within are in the search's reach
NEAR_ENOUGH = 1 / 16  # likewise: no larger numbers are looked for
LARGEST_ERROR = 0.25  # of a sum, in units of the heavier side's


@dataclass(frozen=True)
class Fineness:
    """How finely a remainder is taken: bases up to `largest_base`, as far as sums have `room`; `narrow`: 16 levels
    count as no more than all sums do."""

    largest_base: int
    room: int = ROOM
    narrow: bool = False


COARSE = Fineness(DIGIT**2, narrow=True)
FINER = (Fineness(DIGIT**2), Fineness(DIGIT**3, ROOM // 4), Fineness(DIGIT**4, ROOM // 4))


def add(place: str, left: Activation, right: Activation, tensors: dict[str, Tensor]) -> Activation:
    """The activation of left + right; UnsupportedOperator if the array cannot compute it as one sum."""
    sides = [straight(place, side) for side in (left, right)]
    terms = [terms_of(side) for side in sides]
    if steps(terms[1]) > steps(terms[0]):
        sides, terms = sides[::-1], terms[::-1]
    affine = [[affine_of(side.chain, channel) for channel in range(left.shape.channels)] for side in sides]
    ranges = [np.abs(sum_range(part, tensors)).max(0) for part in terms]
    ratios = [second / first if first else None for (first, _), (second, _) in zip(*affine, strict=True)]
    factors = whole_factors(place, ratios, ranges)
    weighted = (
        replace(term, weights=term.weights.astype(np.int64) * factor[:, None, None, None])
        for part, factor in zip(terms, factors, strict=True)
        for term in part
    )
    op = Conv.of_terms(left.label if sides[0].op is None else sides[0].op.name, weighted)
    chain = Chain(start_of(sides, affine, factors, ranges))
    label = f"{left.label} and {right.label}"
    return replace(left, source=op.input, op=op, chain=chain, label=label, before=0)


def absorbed(place: str, activation: Activation, tensors: dict[str, Tensor]) -> Activation:
    """The activation with the tensor that its chain adds as a term of its sum."""
    operations = activation.chain.operations
    index = next(number for number, operation in enumerate(operations) if isinstance(operation, AddTensor))
    added = operations[index]
    assert isinstance(added, AddTensor)
    left = replace(activation, chain=Chain(activation.chain.start, operations[:index]))
    right = replace(activation, source=added.tensor, op=None, chain=added.chain)
    return add(place, left, right, tensors).then(*operations[index + 1 :])


def with_room(activation: Activation, tensors: dict[str, Tensor]) -> tuple[Conv, int, np.ndarray]:
    """The sum of an activation whose chain adds a stored tensor of any scale, with that tensor as a term: (operator,
    base, factors (C,)), such that its sum is base * l + factors * r, nearly in the ratio of the scales. The base is the
    largest power of 16 that the accumulator has room for."""
    operations = activation.chain.operations
    index = next(number for number, operation in enumerate(operations) if isinstance(operation, AddTensor))
    added = operations[index]
    assert isinstance(added, AddTensor)
    left = straight(activation.label, replace(activation, chain=Chain(activation.chain.start, operations[:index])))
    right = straight(activation.label, replace(activation, source=added.tensor, op=None, chain=added.chain))
    terms = terms_of(left), terms_of(right)
    ranges = [np.abs(sum_range(part, tensors)).max(0) for part in terms]
    sides = ([affine_of(side.chain, channel)[0] for channel in range(len(ranges[0]))] for side in (left, right))
    ratios = [second / first if first else Fraction(0) for first, second in zip(*sides, strict=True)]

    def wholes(base: int) -> np.ndarray:
        return np.array([round(ratio * base) for ratio in ratios])

    base = 1
    while fits(base * DIGIT, wholes(base * DIGIT), ranges):
        base *= DIGIT
    if not fits(base, wholes(base), ranges):
        raise UnsupportedOperator(f"{activation.label}: the accumulator is too narrow for what it adds: {QUANTIZE_IT}")
    weighted = (
        replace(term, weights=term.weights.astype(np.int64) * factor[:, None, None, None])
        for part, factor in zip(terms, (np.full(len(ratios), base), wholes(base)), strict=True)
        for term in part
    )
    name = activation.label if activation.op is None else activation.op.name
    return Conv.of_terms(name, weighted), base, wholes(base)


def remainder_factors(
    place: str, quantizer: Quantizer, chain: Chain, limits: tuple[np.ndarray, np.ndarray], fineness: Fineness
) -> tuple[np.ndarray, np.ndarray]:
    """(bases (C,), factors (C,)) of sums base * l + factor * high, which are what is left behind the high nibble:
    nearly in the ratio of the worths of l and of 16 levels."""
    most = DIGIT - 1
    bases, factors = [], []
    for each, limit in zip(worth(chain), np.abs(limits).max(0), strict=True):
        steps = DIGIT * float(quantizer.scale) / each if each else 0.0
        if fineness.narrow or limit + most * steps >= ACCUMULATOR_LIMIT:
            # Where 16 levels are worth more than all sums, the high nibble hardly changes.
            steps = min(steps, 2.0 * limit + 1)
        room = int(fineness.room / max(1.0, limit + most * steps))
        nearest = Fraction(steps).limit_denominator(min(max(room, 1), fineness.largest_base))
        if nearest.denominator * limit + most * nearest.numerator >= ACCUMULATOR_LIMIT:
            raise UnsupportedBitWidth(
                f"{place}: its sums reach {limit}, too much for more than 4 bits behind them: use fewer bits"
            )
        bases.append(nearest.denominator)
        factors.append(-nearest.numerator)
    return np.array(bases), np.array(factors)


def remainder(place: str, op: Conv | Pool, chain: Chain, high: str, bases: np.ndarray, factors: np.ndarray) -> Conv:
    """The operator whose sum is bases[c] * l + factors[c] * high."""
    terms = terms_of(Activation(op.input, Shape(len(bases), 1, 1), chain, place, op))
    sums = (replace(term, weights=term.weights.astype(np.int64) * bases[:, None, None, None]) for term in terms)
    return Conv.of_terms(op.name, [*sums, Term(high, np.diag(factors)[:, :, None, None], groups=len(factors))])


def straight(place: str, side: Activation) -> Activation:
    """A side whose numbers are a factor times its sum, and an offset."""
    bent = [op for op in side.chain.operations if not isinstance(op, Scale | Offset | Divide)]
    if bent or side.maximum is not None or (isinstance(side.op, Pool) and side.op.kind == "max"):
        what = type(bent[0]).__name__ if bent else "MaxPool"
        raise UnsupportedOperator(
            f"{place}: adds the unquantized result of {side.label}, which is no sum any more ({what}): {QUANTIZE_IT}"
        )
    return side


def terms_of(side: Activation) -> tuple[Term, ...]:
    """The terms of a side's sum."""
    if isinstance(side.op, Conv):
        return side.op.terms
    channels = len(side.chain.start.unit)
    pool = side.op or Pool("", side.source, "", "sum", (1, 1))
    diagonal = np.eye(channels, dtype=np.int64)[:, :, None, None]
    return (Term(side.source, np.tile(diagonal, (1, 1, *pool.kernel)), pool.stride, pool.pads, channels),)


def steps(terms: tuple[Term, ...]) -> int:
    return sum(int((term.weights != 0).any(0).sum()) for term in terms)


def sum_range(terms: tuple[Term, ...], tensors: dict[str, Tensor]) -> np.ndarray:
    """int64 (2, C): the smallest and the largest sum."""
    return np.sum([term_range(term, tensors[term.input]) for term in terms], 0)


def affine_of(chain: Chain, channel: int) -> tuple[Fraction, Fraction]:
    """(factor, offset) of a chain, exactly."""
    offset = chain.exact(0, channel, 0)
    return chain.exact(1, channel, 0) - offset, offset


def whole_factors(place: str, ratios: list[Fraction | None], ranges: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """int64 (C,) of either side: whole numbers whose ratio is, or nearly is, that of the second scale to the first;
    0 and 1 where the first is 0."""
    base = 1
    while True:
        wholes = [base if ratio is None else round(ratio * base) for ratio in ratios]
        if not fits(base, np.array(wholes), ranges):
            break
        if all(ratio is None or (ratio * base).denominator == 1 for ratio in ratios):
            return np.array([0 if ratio is None else base for ratio in ratios]), np.array(wholes)
        base *= DIGIT
    first, second = [], []
    for ratio, own, other in zip(ratios, *ranges, strict=True):
        room = int(ROOM // max(1, own + abs(ratio or 0) * other + other))
        nearest = small_fraction(ratio or Fraction(0), max(room, 1), int(other))
        if ratio is not None and abs(nearest - ratio) * int(other) > LARGEST_ERROR:
            raise UnsupportedOperator(
                f"{place}: adds sums of scales 1 : {float(ratio):.6g}, which the accumulator is too narrow for: put a "
                "Quant node of at most 4 bits behind one of them, or use scales that are powers of two"
            )
        first.append(0 if ratio is None else nearest.denominator)
        second.append(1 if ratio is None else nearest.numerator)
    return np.array(first), np.array(second)


def small_fraction(ratio: Fraction, room: int, reach: int) -> Fraction:
    """The simplest fraction near enough for a sum of that reach, or the nearest with a denominator up to `room`."""
    largest = 1
    while largest < room:
        found = ratio.limit_denominator(largest)
        if abs(found - ratio) * reach <= NEAR_ENOUGH:
            return found
        largest *= 2
    return ratio.limit_denominator(room)


def fits(base: int, other: np.ndarray, ranges: list[np.ndarray]) -> bool:
    """Whether the accumulator has room for `base` times the first sum and `other` times the second."""
    return bool((base * ranges[0] + np.abs(other) * ranges[1] < ROOM).all())


def start_of(
    sides: list[Activation],
    affine: list[list[tuple[Fraction, Fraction]]],
    wholes: tuple[np.ndarray, np.ndarray],
    ranges: list[np.ndarray],
) -> Start:
    """What the sum counts, and how far float32 may be from it."""
    units, offsets, errors = [], [], []
    pairs = [zip(of, whole, limit, strict=True) for of, whole, limit in zip(affine, wholes, ranges, strict=True)]
    for channel, of_sides in enumerate(zip(*pairs, strict=True)):
        unit = next((factor / int(whole) for (factor, _), whole, _ in of_sides if factor and whole), Fraction(1))
        reach = sum(abs(factor) * int(limit) + abs(offset) for (factor, offset), _, limit in of_sides)
        missed = sum(abs(factor - unit * int(whole)) * int(limit) for (factor, _), whole, limit in of_sides)
        units.append(float(unit))
        offsets.append(float(sum(offset for (_, offset), _, _ in of_sides)))
        exact = all(map(rounds_nothing, sides)) and not missed and reach < EXACT_LIMIT * abs(unit)
        if exact and is_power_of_two(np.array([float(unit)])).all():
            errors.append(0.0)
            continue
        error = float(missed) + FLOAT32_UNIT_ROUNDOFF * float(reach)
        for side, ((factor, offset), _, limit) in zip(sides, of_sides, strict=True):
            start, roundings = side.chain.start, 2 * len(side.chain.operations) + 1
            error += float(start.error[channel] / abs(start.unit[channel])) * abs(float(factor))
            error += roundings * FLOAT32_UNIT_ROUNDOFF * float(abs(factor) * int(limit) + abs(offset))
        errors.append(1.001 * error)
    return Start(np.array(units), np.array(offsets), np.array(errors))


def rounds_nothing(side: Activation) -> bool:
    """Whether float32 computes a side exactly, as long as its numbers have few bits."""
    return side.chain.known and all(
        isinstance(operation, Scale) and bool(is_power_of_two(operation.factor).all())
        for operation in side.chain.operations
    )
