"""Turns an operator into blocks of output channels and into tiles: which slots, in which passes, on which pixels.

output channels  -> blocks of group_columns       a block's slots with any weight left become steps
output pixels    -> tiles of `lanes`
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sentei.host.compiler.placement import Placement
from sentei.host.compiler.steps import NIBBLE, Steps, check_wide, nibble_steps, split_passes, weight_digits
from sentei.host.compiler.tables import Tables, Tile, single_pixel_tiles, whole_plane_tiles, window_tiles
from sentei.host.network.ir import Conv, Pool, kernel_of
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
