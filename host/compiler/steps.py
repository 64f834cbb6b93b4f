"""Turns operators into jobs for the groups: which slots, in which passes, on which tiles, after which epoch.

output channels  -> blocks of group_columns       a block's slots with any weight left become steps
8-bit operands   -> nibble passes, highest power of 16 first, joined after the array
long sums        -> chunks that provably fit the array's accumulators, joined likewise
(block, tiles)   -> jobs, spread over the groups so that all finish together
what is read     -> the epoch in which the last of it is written
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import gcd

import numpy as np

from sentei.host.compiler.channel_entries import excess
from sentei.host.compiler.placement import Placement
from sentei.host.compiler.tables import Tables, Tile, single_pixel_tiles, whole_plane_tiles, window_tiles
from sentei.host.network.ir import Conv, Pool, kernel_of
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry
from sentei.overlay.instructions import LANE_SUM_BITS, STEP
from sentei.overlay.layout import PlaneLayout

NIBBLE = 15
MAX_TAPS = 1 << STEP["tap"].width
HEADER_CYCLES = 2  # a group's cycles for a job's header


@dataclass
class Steps:
    """Steps in order: `planes`, `taps`, `pad` int64 (n,), `weights` int64 (n, columns), and `late` bool (n,): what the
    step reads is written in a later epoch than what the others read."""

    planes: np.ndarray
    taps: np.ndarray
    weights: np.ndarray
    pad: np.ndarray
    late: np.ndarray

    def __len__(self) -> int:
        return len(self.planes)

    def take(self, selection) -> Steps:
        return Steps(*(getattr(self, column.name)[selection] for column in fields(self)))


@dataclass
class Block:
    """One block of output channels of one operator: `channels` consecutive ones from `first` on.

    `passes` are (steps, joins by a nibble) in order. `stored_bias` int64 (channels,) is what the sums contain on top of
    the true ones because signed tensors are stored offset.
    """

    first: int
    channels: int
    passes: list[tuple[Steps, bool]]
    stored_bias: np.ndarray
    maximum: bool = False
    reduce: bool = False

    @property
    def steps(self) -> int:
        return sum(len(steps) for steps, _ in self.passes)


@dataclass
class Job:
    """`block` on some tiles of the operator, by number and in order."""

    block: Block
    tiles: list[int]

    @property
    def steps(self) -> int:
        return self.block.steps * len(self.tiles)


def weight_digits(weights: np.ndarray) -> list[np.ndarray]:
    """Splits integers into arrays of digits of -8..7 with weights = sum(16**j * digits[j]), lowest first; the highest
    digit may leave that range (then it takes more than one step). Weights that fit in 4 bits are one digit."""
    if weights.size == 0 or (weights.min() >= -8 and weights.max() <= 7):
        return [weights]
    low = (weights + 8) % 16 - 8
    return [low, (weights - low) // 16]


def nibble_steps(slots: Steps) -> Steps:
    """Steps for slots; empty slots vanish, weights beyond -8..7 are spread over several steps."""
    parts = []
    rest = slots.weights
    while True:
        digit = np.clip(rest, -8, 7)
        used = np.flatnonzero((digit != 0).any(axis=1))
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
            steps = Steps(zero, zero, np.zeros((1, columns), np.int64), zero, np.zeros(1, bool))
        up = np.maximum(steps.weights, 0).cumsum(0) * largest
        down = np.minimum(steps.weights, 0).cumsum(0) * largest
        by_nibble = bool(passes)
        if by_nibble:
            high, low = high * 16, low * 16
        begin = 0
        while begin < len(steps):
            base_up, base_down = (up[begin - 1], down[begin - 1]) if begin else (0, 0)
            fits = ((up[begin:] - base_up <= limit) & (down[begin:] - base_down >= -limit)).all(1)
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


def is_single_pixel(target: PlaneLayout) -> bool:
    """True if the output map is one pixel: then every slot is one fixed pixel of the input."""
    return target.height == target.width == 1


def window_slots(op: Conv | Pool, layout: PlaneLayout, single: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(words, taps, inside) of the coordinates of the window, in the order (ky, kx): word within the plane and tap
    number, int64, and whether the coordinate is read at all."""
    rows, columns = kernel_of(op)
    ky, kx = (index.ravel() for index in np.mgrid[:rows, :columns])
    if not single:
        return np.zeros(rows * columns, np.int64), ky * columns + kx, np.ones(rows * columns, bool)
    y, x = ky - op.pads.top, kx - op.pads.left
    inside = (y >= 0) & (y < layout.height) & (x >= 0) & (x < layout.width)
    position = layout.positions()[0][np.where(inside, y, 0), np.where(inside, x, 0)]
    return position // layout.lanes, position % layout.lanes, inside


def conv_blocks(op: Conv, source: Placement, single: bool, late: np.ndarray, geometry: Geometry) -> list[Block]:
    """Blocks of a convolution, slots in the order (input channel, ky, kx), those of `late` (C,) bool channels last."""
    layout = source.layout
    columns = geometry.group_columns
    words, taps, inside = window_slots(op, layout, single)
    channel = np.arange(layout.channels)[:, None] * (layout.nibbles * layout.stride)
    planes = (source.address + channel + words[None, inside]).ravel()
    taps = np.tile(taps[inside], layout.channels)
    late_slots = np.repeat(late, int(inside.sum()))
    largest = NIBBLE if layout.nibbles > 1 else layout.high + layout.bias
    blocks = []
    for first in range(0, len(op.weights), columns):
        part = op.weights[first : first + columns].astype(np.int64)
        weights = np.zeros((len(planes), columns), np.int64)
        weights[:, : len(part)] = part.reshape(len(part), layout.channels, -1)[:, :, inside].reshape(len(part), -1).T
        powers: dict[int, list[Steps]] = {}
        for j, digit in enumerate(weight_digits(weights)):
            for i in range(layout.nibbles):
                pad = layout.bias >> ACTIVATION_BITS * i & NIBBLE
                slots = Steps(planes + i * layout.stride, taps, digit, np.full(len(planes), pad), late_slots)
                powers.setdefault(i + j, []).append(nibble_steps(slots))
        passes, _ = split_passes(powers, columns, largest, geometry, op.name)
        blocks.append(Block(first, len(part), passes, (weights.sum(0) * layout.bias)[: len(part)]))
    return blocks


def pool_blocks(op: Pool, source: Placement, single: bool, whole: list[int] | None, geometry: Geometry) -> list[Block]:
    """Blocks of a pool: the maxima of one channel, or sums of `group_columns` channels, each with weight 1 for its
    column. `whole` lists the words of a plane that is summed as a whole, lanes included."""
    layout = source.layout
    if whole is not None:
        words, taps = np.array(whole), np.arange(len(whole))
        bias = layout.bias * layout.height * layout.width
    else:
        words, taps, inside = window_slots(op, layout, single)
        words, taps = words[inside], taps[inside]
        bias = layout.bias * len(words)
    planes = source.address + np.arange(layout.channels) * layout.nibbles * layout.stride
    count = len(words)
    blocks = []
    if op.kind == "max":
        nothing = np.zeros((count, geometry.group_columns), np.int64)
        zero, never = np.zeros(count, np.int64), np.zeros(count, bool)
        for channel, plane in enumerate(planes):
            steps = Steps(plane + words, taps, nothing, zero, never)
            blocks.append(Block(channel, 1, [(steps, False)], np.array([layout.bias]), maximum=True))
        return blocks
    for first in range(0, layout.channels, geometry.group_columns):
        members = planes[first : first + geometry.group_columns]
        weights = np.tile(np.eye(len(members), geometry.group_columns, dtype=np.int64), (count, 1))
        powers = {}
        for i in range(layout.nibbles):
            pad = 0 if whole is not None else layout.bias >> ACTIVATION_BITS * i & NIBBLE
            where = (words[:, None] + i * layout.stride + members).ravel()
            size = len(where)
            slots = Steps(where, np.repeat(taps, len(members)), weights, np.full(size, pad), np.zeros(size, bool))
            powers[i] = [slots]
        limit = (1 << LANE_SUM_BITS) - 1 if whole is not None else 0
        passes, worst = split_passes(powers, geometry.group_columns, NIBBLE, geometry, op.name, limit)
        if whole is not None:
            worst *= layout.lanes
            check_wide(worst, geometry, op.name)
        bias_of_each = np.full(len(members), bias)
        blocks.append(Block(first, len(members), passes, bias_of_each, reduce=whole is not None))
    return blocks


def sums_whole_plane(op: Conv | Pool, source: PlaneLayout) -> bool:
    """True for a global sum that is read word by word and summed over the lanes at the end."""
    return (
        isinstance(op, Pool)
        and op.kind == "sum"
        and op.kernel == (source.height, source.width)
        and not any(op.pads)
        and source.height * source.width > 1
        and source.phases * (-(-source.rows * source.pitch // source.lanes) + (source.pictures > 1)) <= MAX_TAPS
        and op.requantize is not None
        and op.requantize.residual is None
    )


def tiles_of(op: Conv | Pool, placed: dict[str, Placement], tables: Tables) -> tuple[list[Tile], list[int] | None]:
    """An operator's tiles; and, if it sums whole planes, the words that it sums."""
    source, target = placed[op.input], placed[op.output]
    if sums_whole_plane(op, source.layout):
        return whole_plane_tiles(tables, source.layout, target.layout)
    if is_single_pixel(target.layout):
        return single_pixel_tiles(tables, source.layout, target.layout), None
    rows, columns = kernel_of(op)
    if rows * columns > MAX_TAPS:
        raise CapacityError(
            f"{op.name}: kernel {rows}x{columns} has more than {MAX_TAPS} coordinates; use a smaller one"
        )
    if is_single_pixel(source.layout) and source.layout.pictures > 1:
        raise CapacityError(f"{op.name}: enlarges a map of one pixel, which no batch can; compile for single pictures")
    pads = (op.pads.top, op.pads.left)
    return window_tiles(tables, source.layout, target.layout, (rows, columns), op.stride, pads), None


def blocks_of(
    op: Conv | Pool, placed: dict[str, Placement], words: list[int] | None, late: np.ndarray, geometry: Geometry
) -> list[Block]:
    """An operator's blocks; `words` as `tiles_of` gave them, `late` (C,) bool: input channels to be read last."""
    source = placed[op.input]
    single = is_single_pixel(placed[op.output].layout)
    if isinstance(op, Conv):
        return conv_blocks(op, source, single, late, geometry)
    return pool_blocks(op, source, single, words, geometry)


def spread(blocks: list[Block], tiles: int, load: list[int], geometry: Geometry) -> list[list[Job]]:
    """Shares blocks among groups so that their `load`, which it adds to, comes out even.

    Whole blocks first, as many for each group; what remains is cut into tiles, dealt out in turn: so all groups are
    at about the same tile at any time. Of groups with equal loads, one whose result bus has less to do is preferred.
    """
    groups, share = geometry.groups, geometry.groups_per_requantizer
    shares: list[list[Job]] = [[] for _ in range(groups)]

    def next_group(candidates: range | list[int]) -> int:
        def business(group: int) -> tuple[int, int, int]:
            bus = group // share * share
            return load[group], sum(load[bus : bus + share]), group

        return min(candidates, key=business)

    rest = len(blocks) % groups
    whole = len(blocks) - rest
    for start in range(0, whole, groups):
        waiting = list(range(groups))
        for block in blocks[start : start + groups]:
            group = next_group(waiting)
            waiting.remove(group)
            shares[group].append(Job(block, list(range(tiles))))
            load[group] += block.steps * tiles + HEADER_CYCLES
    parts = min(groups // gcd(groups, rest), tiles) if rest else 1
    waiting = list(range(groups))
    for block in blocks[whole:]:
        members = []
        for _ in range(parts):
            if not waiting:
                waiting = list(range(groups))
            members.append(next_group(waiting))
            waiting.remove(members[-1])
            load[members[-1]] += HEADER_CYCLES
        numbers: dict[int, list[int]] = {group: [] for group in members}
        for tile in range(tiles):
            group = next_group(members)
            numbers[group].append(tile)
            load[group] += block.steps
        for group, own in numbers.items():
            if own:
                shares[group].append(Job(block, own))
    return shares
