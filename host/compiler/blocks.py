"""Turns an operator into blocks of output channels and into tiles: which slots, in which passes, on which pixels.

output channels  -> blocks of group_columns       a block's slots with any weight left become steps
output pixels    -> tiles of `lanes`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentei.host.compiler.placement import Placement
from sentei.host.compiler.steps import NIBBLE, Steps, check_wide, nibble_steps, split_passes, weight_digits
from sentei.host.compiler.tables import (
    MAX_TAPS,
    Tile,
    picture_starts,
    single_pixel_tiles,
    whole_plane_tiles,
    window_tiles,
)
from sentei.host.network.ir import Conv, Pool, Term, kernel_of, terms_of
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry
from sentei.overlay.instructions import LANE_SUM_BITS
from sentei.overlay.layout import PlaneLayout

CLASSES = 4  # of an operator's tiles


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

    def reads(self) -> bytes:
        """What its steps read, in order: the same for blocks of which only the weights have to be loaded."""
        return b"".join(of.tobytes() for steps, _ in self.passes for of in (steps.planes, steps.taps, steps.pad))


def is_single_pixel(target: PlaneLayout) -> bool:
    """True if the output map is one pixel: then every slot is one fixed pixel of the input."""
    return target.height == target.width == 1


def coordinates(op: Conv | Pool) -> list[np.ndarray]:
    """Of each term, which coordinates of its window the tiles' rows have taps for, bool (rows * columns,): all of them,
    or those with a weight if there are too many. CapacityError if these are too many, too."""
    terms = terms_of(op)
    windows = [kernel_of(term) for term in terms]
    used = [np.ones(rows * columns, bool) for rows, columns in windows]
    if sum(map(len, used)) > MAX_TAPS and isinstance(op, Conv):
        used = [(term.weights != 0).any((0, 1)).ravel() for term in op.terms]
    if (count := sum(int(of.sum()) for of in used)) > MAX_TAPS:
        found = " and ".join(f"{rows}x{columns}" for rows, columns in windows)
        raise CapacityError(
            f"{op.name}: kernel {found} has {count} coordinates, more than {MAX_TAPS}; use a smaller one, or prune it"
        )
    return used


@dataclass(frozen=True)
class Reads:
    """How the coordinates of a window are read, those that are, in the order (ky, kx): int64 (reads,) number of the
    `coordinate`, word within the plane and tap; bool (reads,) whether it reads other lanes of the same coordinate as
    the one before it."""

    coordinate: np.ndarray
    words: np.ndarray
    taps: np.ndarray
    repeated: np.ndarray

    def __len__(self) -> int:
        return len(self.taps)


def window_reads(used: np.ndarray, parts: Sequence[int], first_tap: int = 0) -> Reads:
    """Of a window whose `used` coordinates (rows * columns,) have so many taps, from `first_tap` on."""
    coordinate = np.repeat(np.flatnonzero(used), parts)
    taps = np.arange(len(coordinate))
    return Reads(coordinate, np.zeros_like(taps), first_tap + taps, np.diff(coordinate, prepend=-1) == 0)


def pixel_reads(op: Conv | Pool | Term, layout: PlaneLayout, first_tap: int = 0) -> Reads:
    """Of a window of which there is only one: each coordinate is one pixel, which the tap of its lane brings."""
    rows, columns = kernel_of(op)
    y, x = (
        index.ravel() - pad for index, pad in zip(np.mgrid[:rows, :columns], (op.pads.top, op.pads.left), strict=True)
    )
    inside = np.flatnonzero((y >= 0) & (y < layout.height) & (x >= 0) & (x < layout.width))
    position = layout.positions()[0][y[inside], x[inside]]
    return Reads(inside, position // layout.lanes, first_tap + position % layout.lanes, np.zeros(len(inside), bool))


def conv_blocks(
    op: Conv,
    placed: dict[str, Placement],
    parts: tuple[int, ...],
    late: np.ndarray,
    geometry: Geometry,
    alike: bool,
) -> list[Block]:
    """Blocks of a convolution, slots in the order (term, input channel, ky, kx), those of `late` (C,) bool channels, of
    all terms, last."""
    columns = geometry.group_columns
    slots = [
        Slots(term, placed[term.input], reads)
        for term, reads in zip(op.terms, reads_of(op, placed, parts), strict=True)
    ]
    ends = np.cumsum([placed[term.input].layout.channels for term in op.terms])[:-1]
    lates = np.split(late, ends)
    largest = max(part.largest for part in slots)
    blocks = []
    for first in range(0, len(op.weights), columns):
        powers: dict[int, list[Steps]] = {}
        bias = np.zeros(columns, np.int64)
        for part, of_part in zip(slots, lates, strict=True):
            bias += part.add_steps(powers, first, of_part, columns, alike)
        passes, _ = split_passes(powers, columns, largest, geometry, op.name)
        channels = min(columns, len(op.weights) - first)
        blocks.append(Block(first, channels, passes, bias[:channels]))
    return blocks


class Slots:
    """The slots of a convolution's term, and how each is read."""

    def __init__(self, term: Term, source: Placement, reads: Reads):
        layout = source.layout
        channel = np.arange(layout.channels)[:, None] * (layout.nibbles * layout.stride)
        self.term, self.layout, self.reads = term, layout, reads
        self.planes = (source.address + channel + reads.words).ravel()
        self.taps, self.repeated = (np.tile(of, layout.channels) for of in (reads.taps, reads.repeated))
        self.largest = NIBBLE if layout.nibbles > 1 else layout.high + layout.bias

    def add_steps(
        self, powers: dict[int, list[Steps]], first: int, late: np.ndarray, columns: int, alike: bool
    ) -> np.ndarray:
        """Add the steps of `columns` output channels from `first` on to those of each power of 16; returns what their
        sums contain on top, int64 (columns,), because the tensor is stored with a bias."""
        layout, count = self.layout, len(self.planes)
        part = self.term.weights[first : first + columns].astype(np.int64)
        weights = np.zeros((count, columns), np.int64)
        weights[:, : len(part)] = (
            part.reshape(len(part), layout.channels, -1)[:, :, self.reads.coordinate].reshape(len(part), -1).T
        )
        late_slots = np.repeat(late, len(self.reads))
        for j, digit in enumerate(weight_digits(weights)):
            for i in range(layout.nibbles):
                pad = np.full(count, layout.bias >> ACTIVATION_BITS * i & NIBBLE)
                steps = Steps(self.planes + i * layout.stride, self.taps, digit, pad, late_slots, self.repeated)
                powers.setdefault(i + j, []).append(nibble_steps(steps, alike))
        return weights.sum(0) * layout.bias


def reads_of(op: Conv | Pool, placed: dict[str, Placement], parts: tuple[int, ...]) -> list[Reads]:
    """How each term is read by tiles with these `parts`, or pixel by pixel: then terms share the taps, one for each
    lane, if their pictures begin at the same places."""
    terms = terms_of(op)
    layouts = [placed[term.input].layout for term in terms]
    if is_single_pixel(placed[op.output].layout):
        firsts = [start * layouts[0].lanes for start in picture_starts(layouts)]
        return [pixel_reads(*of) for of in zip(terms, layouts, firsts, strict=True)]
    reads, begin, tap = [], 0, 0
    for used in coordinates(op):
        own = parts[begin : begin + int(used.sum())]
        reads.append(window_reads(used, own, tap))
        begin, tap = begin + len(own), tap + sum(own)
    return reads


def pool_blocks(
    op: Pool, placed: dict[str, Placement], parts: tuple[int, ...], whole: list[int] | None, geometry: Geometry
) -> list[Block]:
    """Blocks of a pool: the maxima of one channel, or sums of `group_columns` channels, each with weight 1 for its
    column. `whole` lists the words of a plane that is summed as a whole, lanes included."""
    source = placed[op.input]
    layout = source.layout
    if whole is not None:
        words, taps = np.array(whole), np.arange(len(whole))
        repeated = np.zeros(len(whole), bool)
        bias = layout.bias * layout.height * layout.width
    else:
        (reads,) = reads_of(op, placed, parts)
        words, taps, repeated = reads.words, reads.taps, reads.repeated
        bias = layout.bias * len(reads)
    planes = source.address + np.arange(layout.channels) * layout.nibbles * layout.stride
    count = len(words)
    blocks = []
    if op.kind == "max":
        nothing = np.zeros((count, geometry.group_columns), np.int64)
        zero, never = np.zeros(count, np.int64), np.zeros(count, bool)
        for channel, plane in enumerate(planes):
            steps = Steps(plane + words, taps, nothing, zero, never, repeated)
            blocks.append(Block(channel, 1, [(steps, False)], np.array([layout.bias]), maximum=True))
        return blocks
    for first in range(0, layout.channels, geometry.group_columns):
        members = planes[first : first + geometry.group_columns]
        weights = np.tile(np.eye(len(members), geometry.group_columns, dtype=np.int64), (count, 1))
        powers = {}
        for i in range(layout.nibbles):
            pad = 0 if whole is not None else layout.bias >> ACTIVATION_BITS * i & NIBBLE
            where = (words[:, None] + i * layout.stride + members).ravel()
            of_all = (np.repeat(of, len(members)) for of in (taps, repeated))
            taps_of_all, repeated_of_all = of_all
            size = len(where)
            never = np.zeros(size, bool)
            powers[i] = [Steps(where, taps_of_all, weights, np.full(size, pad), never, repeated_of_all)]
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
        and source.plane_words + (source.phases if source.pictures > 1 else 0) <= MAX_TAPS
        and op.requantize is not None
        and op.requantize.residual is None
    )


def tiles_of(op: Conv | Pool, placed: dict[str, Placement], most_classes: int) -> tuple[list[Tile], list[int] | None]:
    """An operator's tiles, of at most so many classes; and, if it sums whole planes, the words that it sums."""
    source, target = placed[op.input], placed[op.output]
    if sums_whole_plane(op, source.layout):
        return whole_plane_tiles(source.layout, target.layout)
    terms = terms_of(op)
    layouts = [placed[term.input].layout for term in terms]
    if is_single_pixel(target.layout):
        return single_pixel_tiles(layouts, target.layout), None
    if any(is_single_pixel(layout) for layout in layouts) and target.layout.pictures > 1:
        raise CapacityError(f"{op.name}: enlarges a map of one pixel, which no batch can; compile for single pictures")
    limit = most_classes if op.requantize is not None else 1  # the host corrects all sums of a channel by one number
    return window_tiles(layouts, target.layout, terms, coordinates(op), limit), None


def blocks_of(
    op: Conv | Pool,
    placed: dict[str, Placement],
    parts: tuple[int, ...],
    words: list[int] | None,
    late: np.ndarray,
    geometry: Geometry,
    alike: bool = False,
) -> list[Block]:
    """An operator's blocks for tiles with these `parts`; `words` as `tiles_of` gave them, `late` (C,) bool: input
    channels, of all terms, to be read last; `alike` as for `nibble_steps`."""
    if isinstance(op, Conv):
        return conv_blocks(op, placed, parts, late, geometry, alike)
    return pool_blocks(op, placed, parts, words, geometry)
