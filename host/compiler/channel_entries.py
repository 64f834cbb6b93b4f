"""Channel table entries: a `Requantize` in the terms of gateware/technologies/lanes.py, and the proof that they are
equal.

    thresholds of the channel, those that count --> a line within the search's reach --> constant, distance, carries

The entry's thresholds need not be the network's: where no sum decides, any will do. `decided` is the search, bit for
bit, and `channel_entries` runs it on both sides of every threshold that counts, at the ends of the range of sums, and
at the borders beyond which a sum is too far away.
"""

from __future__ import annotations

import numpy as np

from sentei.host.network.ir import Requantize
from sentei.host.network.lines import FREE, find
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import CARRY_BITS, NIBBLE_SHIFT, SEARCH_LEVELS, THRESHOLDS, channel_layout

ROOT = (THRESHOLDS + 1) // 2
NUMBERS = np.arange(1, THRESHOLDS + 1)
PLAIN = dict(constant=0, span=15)  # fields of a channel that is handed out whole


def constants(root: int, joins: list[bool]) -> list[int]:
    """Constant of each level's entry, the first level first, for a threshold 16 of `root`.

    `joins` says of each pass but the first whether it begins a level, being joined by a nibble. A pass subtracts 1
    besides its sum; one that is joined by a nibble puts its level's constant, 4 bits, below the partial.
    """
    levels: list[int] = []
    for by_nibble in reversed(joins):
        if by_nibble:
            levels.append(root & 15)
            root = (root >> NIBBLE_SHIFT) + 1
        else:
            root += 1
    return [root, *reversed(levels)]


def excess(joins: list[bool]) -> int:
    """What joined passes add to a sum that is handed out whole."""
    total = 0
    for by_nibble in joins:
        total = (total << NIBBLE_SHIFT if by_nibble else total) + 1
    return total


def counting(spec: Requantize, codes: range) -> np.ndarray:
    """bool (C, 31): thresholds that decide between two results for some residual of `codes`."""
    first = np.where(spec.descending, ROOT + codes.start - spec.span, ROOT + 1 - (codes.stop - 1))
    last = np.where(spec.descending, ROOT - 1 + codes.stop - 1, ROOT + spec.span - codes.start)
    return (first[:, None] <= NUMBERS) & (last[:, None] >= NUMBERS) & (spec.span > 0)[:, None]


def channel_entries(
    spec: Requantize,
    codes: range,
    low: np.ndarray,
    high: np.ndarray,
    bias: np.ndarray,
    joins: list[bool],
    geometry: Geometry,
    name: str,
) -> list[int]:
    """Entries of all channels of `spec`, level by level, for accumulators low[c]..high[c], stored as sums `bias[c]`
    greater. `codes` are the residual's. Raises CapacityError, naming operator `name`, if a search is out of reach."""
    layout = channel_layout(geometry)
    wanted = spec.thresholds + bias[:, None]
    low, high = (low + bias)[:, None], (high + bias)[:, None]
    counts = counting(spec, codes)
    lower = np.where(~counts | (wanted <= low), -FREE, np.where(wanted > high, high + 1, wanted))
    upper = np.where(~counts | (wanted > high), FREE, np.where(wanted <= low, low, wanted))
    lines, exists = find(lower, upper, steepest=1 << (geometry.search_bits - 4))
    numbers = np.broadcast_to(NUMBERS, wanted.shape)
    found = lines.thresholds(numbers)
    fields = encode(found, lines.scaled_slope(8))
    root = found[:, ROOT - 1 :][:, :1]
    limit = 1 << (geometry.wide_bits - 1)
    exists &= ((root - 1 - low < limit) & (root - 1 - high >= -limit))[:, 0]
    exists &= fields.pop("valid")
    exists &= proven(root, fields, wanted, counts, low, high, geometry)
    if not exists.all():
        channel = int(np.flatnonzero(~exists)[0])
        raise CapacityError(
            f"{name}: channel {channel}: thresholds around {int(np.median(wanted[channel]))}, "
            f"{int(wanted[channel, 16] - wanted[channel, 15])} apart, are out of the search's reach; use a geometry "
            "with more search_bits and wide_bits, or fewer bits"
        )
    shares = [constants(int(value), joins) for value in root[:, 0]]
    entries = []
    for level in range(len(shares[0])):
        for channel, share in enumerate(shares):
            values = {key: int(value[channel]) for key, value in fields.items()}
            constant = wrapped(share[level], geometry.wide_bits)
            values |= dict(low=int(spec.low[channel]), span=int(spec.span[channel]), flip=int(spec.descending[channel]))
            entries.append(layout.pack(constant=constant, **values))
    return entries


def plain_entries(channels: int, joins: list[bool], geometry: Geometry) -> list[int]:
    """Entries of channels that are handed out whole."""
    return [channel_layout(geometry).pack(**PLAIN)] * (channels * (1 + sum(joins)))


def wrapped(value: int, bits: int) -> int:
    """`value` modulo 2^bits, as a signed number."""
    return ((value + (1 << (bits - 1))) & ((1 << bits) - 1)) - (1 << (bits - 1))


def encode(thresholds: np.ndarray, distance: np.ndarray) -> dict[str, np.ndarray]:
    """Fields distance, carries, late_odd, late_even (C,) of thresholds (C, 31), and whether they express them."""
    at = np.concatenate([thresholds[:, :1], thresholds], axis=1)  # by number
    carries = np.zeros(len(at), np.int64)
    valid = (distance >= 0) & (thresholds[:, 0] <= thresholds[:, -1])
    late = {}
    position = 0
    for level in range(SEARCH_LEVELS):
        step = distance >> level
        gap = ROOT >> (level + 1)
        for reached in (0, 1):
            parents = [(2 * before + 1) * 2 * gap for before in range(1 << level)]
            apart = [at[:, p + gap] - at[:, p] if reached else at[:, p] - at[:, p - gap] for p in parents]
            less = np.zeros(len(at), np.int64)
            if level == SEARCH_LEVELS - 1:
                less = (np.min(apart, axis=0) < step).astype(np.int64)
                late["late_even" if reached else "late_odd"] = less
            for before, distances in enumerate(apart):
                extra = distances - (step - less)
                valid &= (extra == 0) | (extra == 1)
                bit = extra if reached else 1 - extra
                carries |= (bit & 1) << (position + 2 * before + reached)
        position += 2 << level
    assert position == CARRY_BITS
    return dict(distance=np.maximum(distance, 0), carries=carries, valid=valid & (distance >= 0), **late)


def searched(rest: np.ndarray, fields: dict[str, np.ndarray], geometry: Geometry) -> np.ndarray:
    """n (C, P) for values (C, P) that fit in search_bits: the hardware's search."""
    bits = geometry.search_bits
    reached = (rest < 0).astype(np.int64)
    number = reached
    position = 0
    for level in range(SEARCH_LEVELS):
        step = (fields["distance"] >> level)[:, None]
        last = level == SEARCH_LEVELS - 1
        up, down = (step - (fields[late][:, None] if last else 0) for late in ("late_even", "late_odd"))
        carry = (fields["carries"][:, None] >> (position + number)) & 1
        rest = rest + np.where(reached == 1, up, ~down) + carry
        rest = ((rest + (1 << (bits - 1))) & ((1 << bits) - 1)) - (1 << (bits - 1))
        reached = (rest < 0).astype(np.int64)
        number = 2 * number + reached
        position += 2 << level
    return number


def narrowed(value: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Values as the search sees them: those too large keep their sign and their lowest bits."""
    limit = 1 << (geometry.search_bits - 1)
    low_bits = value & (limit // 4 - 1)
    return np.where(value >= limit, 3 * (limit // 4) + low_bits, np.where(value < -limit, low_bits - limit, value))


def decided(sums: np.ndarray, root: np.ndarray, fields: dict[str, np.ndarray], geometry: Geometry) -> np.ndarray:
    """n (C, P): how many thresholds the hardware finds reached by `sums` (C, P)."""
    return searched(narrowed(root - 1 - sums, geometry), fields, geometry)


def proven(
    root: np.ndarray,
    fields: dict[str, np.ndarray],
    wanted: np.ndarray,
    counts: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    geometry: Geometry,
) -> np.ndarray:
    """bool (C,): whether for all sums low..high every threshold that counts is decided as `wanted`.

    Within the search's range n rises with the sum, so both sides of each threshold and the range's ends suffice. Beyond
    it n lies between those of the smallest and the largest number that a sum may become there.
    """
    limit = 1 << (geometry.search_bits - 1)
    nearest, furthest = root - limit, root - 1 + limit  # sums within the search's range
    start, stop = np.maximum(low, nearest), np.minimum(high, furthest)
    points = np.clip(np.concatenate([wanted - 1, wanted, low, high], axis=1), start, stop)
    ok = agree(decided(points, root, fields, geometry), points, wanted, counts) | (start > stop)[:, 0]
    for ends, rests in (
        (np.concatenate([low, np.minimum(high, nearest - 1)], axis=1), (3 * (limit // 4), limit - 1)),
        (np.concatenate([np.maximum(low, furthest + 1), high], axis=1), (-limit, limit // 4 - 1 - limit)),
    ):
        found = searched(np.broadcast_to(np.array(rests), ends.shape), fields, geometry)
        right = agree(found, ends, wanted, counts) & agree(found, ends[:, ::-1], wanted, counts)
        ok &= right | (ends[:, 0] > ends[:, 1])
    return ok


def agree(found: np.ndarray, sums: np.ndarray, wanted: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool (C,): whether n `found` for `sums` (C, P) is right for every threshold that counts."""
    reached = sums[:, None] >= wanted[:, :, None]
    right = (found[:, None] >= NUMBERS[:, None]) == reached
    return (right | ~counts[:, :, None]).all((1, 2))
