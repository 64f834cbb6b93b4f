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
    Tile,
    picture_starts,
    single_pixel_tiles,
    whole_plane_tiles,
    window_tiles,
)
from sentei.host.network.ir import Conv, Pool, Term, kernel_of
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry
from sentei.overlay.instructions import LANE_SUM_BITS, STEP
from sentei.overlay.layout import PlaneLayout

MAX_TAPS = 1 << STEP["tap"].width


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


def terms_of(op: Conv | Pool) -> Sequence[Conv | Pool | Term]:
    return op.terms if isinstance(op, Conv) else (op,)


def window_slots(
    op: Conv | Pool | Term, layout: PlaneLayout, single: bool, used: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(words, taps, inside) of the coordinates of the window, in the order (ky, kx): word within the plane and tap
    number, int64, and whether the coordinate is read at all. `used` are those that have taps."""
    rows, columns = kernel_of(op)
    ky, kx = (index.ravel() for index in np.mgrid[:rows, :columns])
    if not single:
        used = np.ones(rows * columns, bool) if used is None else used
        return np.zeros(rows * columns, np.int64), np.cumsum(used) - 1, used
    y, x = ky - op.pads.top, kx - op.pads.left
    inside = (y >= 0) & (y < layout.height) & (x >= 0) & (x < layout.width)
    position = layout.positions()[0][np.where(inside, y, 0), np.where(inside, x, 0)]
    return position // layout.lanes, position % layout.lanes, inside


def conv_blocks(
    op: Conv, placed: dict[str, Placement], single: bool, late: np.ndarray, geometry: Geometry
) -> list[Block]:
    """Blocks of a convolution, slots in the order (term, input channel, ky, kx), those of `late` (C,) bool channels, of
    all terms, last."""
    columns = geometry.group_columns
    slots = [Slots(*place) for place in slot_places(op, placed, single)]
    ends = np.cumsum([placed[term.input].layout.channels for term in op.terms])[:-1]
    lates = np.split(late, ends)
    largest = max(part.largest for part in slots)
    blocks = []
    for first in range(0, len(op.weights), columns):
        powers: dict[int, list[Steps]] = {}
        bias = np.zeros(columns, np.int64)
        for part, of_part in zip(slots, lates, strict=True):
            bias += part.add_steps(powers, first, of_part, columns)
        passes, _ = split_passes(powers, columns, largest, geometry, op.name)
        channels = min(columns, len(op.weights) - first)
        blocks.append(Block(first, channels, passes, bias[:channels]))
    return blocks


class Slots:
    """The slots of a convolution's term: where each reads, through which of the tiles' taps from `first_tap` on."""

    def __init__(self, term: Term, source: Placement, first_tap: int, single: bool, used: np.ndarray | None):
        layout = source.layout
        words, taps, self.inside = window_slots(term, layout, single, used)
        channel = np.arange(layout.channels)[:, None] * (layout.nibbles * layout.stride)
        self.term, self.layout = term, layout
        self.planes = (source.address + channel + words[None, self.inside]).ravel()
        self.taps = np.tile(first_tap + taps[self.inside], layout.channels)
        self.largest = NIBBLE if layout.nibbles > 1 else layout.high + layout.bias

    def add_steps(self, powers: dict[int, list[Steps]], first: int, late: np.ndarray, columns: int) -> np.ndarray:
        """Add the steps of `columns` output channels from `first` on to those of each power of 16; returns what their
        sums contain on top, int64 (columns,), because the tensor is stored with a bias."""
        layout, count = self.layout, len(self.planes)
        part = self.term.weights[first : first + columns].astype(np.int64)
        weights = np.zeros((count, columns), np.int64)
        inside = part.reshape(len(part), layout.channels, -1)[:, :, self.inside]
        weights[:, : len(part)] = inside.reshape(len(part), -1).T
        late_slots = np.repeat(late, int(self.inside.sum()))
        for j, digit in enumerate(weight_digits(weights)):
            for i in range(layout.nibbles):
                pad = np.full(count, layout.bias >> ACTIVATION_BITS * i & NIBBLE)
                steps = Steps(self.planes + i * layout.stride, self.taps, digit, pad, late_slots)
                powers.setdefault(i + j, []).append(nibble_steps(steps))
        return weights.sum(0) * layout.bias


def slot_places(op: Conv, placed: dict[str, Placement], single: bool) -> list[tuple]:
    """What `Slots` needs of each term. Terms that read pixel by pixel share the taps, one for each lane, if their
    pictures begin at the same places."""
    sources = [placed[term.input] for term in op.terms]
    if single:
        starts = picture_starts([source.layout for source in sources])
        firsts = [start * sources[0].layout.lanes for start in starts]
        used: list[np.ndarray | None] = [None] * len(sources)
    else:
        used = [*coordinates(op)]
        counts = [int(of.sum()) for of in coordinates(op)]
        firsts = [sum(counts[:number]) for number in range(len(counts))]
    return [(*of, single, mask) for *of, mask in zip(op.terms, sources, firsts, used, strict=True)]


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


def tiles_of(op: Conv | Pool, placed: dict[str, Placement]) -> tuple[list[Tile], list[int] | None]:
    """An operator's tiles; and, if it sums whole planes, the words that it sums."""
    source, target = placed[op.input], placed[op.output]
    if sums_whole_plane(op, source.layout):
        return whole_plane_tiles(source.layout, target.layout)
    terms = terms_of(op)
    layouts = [placed[term.input].layout for term in terms]
    if is_single_pixel(target.layout):
        return single_pixel_tiles(layouts, target.layout), None
    if any(is_single_pixel(layout) for layout in layouts) and target.layout.pictures > 1:
        raise CapacityError(f"{op.name}: enlarges a map of one pixel, which no batch can; compile for single pictures")
    return window_tiles(layouts, target.layout, terms, coordinates(op)), None


def blocks_of(
    op: Conv | Pool, placed: dict[str, Placement], words: list[int] | None, late: np.ndarray, geometry: Geometry
) -> list[Block]:
    """An operator's blocks; `words` as `tiles_of` gave them, `late` (C,) bool: input channels, of all
    terms, to be read last."""
    source = placed[op.input]
    single = is_single_pixel(placed[op.output].layout)
    if isinstance(op, Conv):
        return conv_blocks(op, placed, single, late, geometry)
    return pool_blocks(op, source, single, words, geometry)
