"""Packs what the groups do into the words that the hardware reads: streams of tasks, channel entries, tables.

a task  ->  two header words, a word for each step        headers wait for the run that they will be in:
                                                          they say how far the epoch is from the one before
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sentei.host.compiler.blocks import Block
from sentei.host.compiler.channel_entries import channel_entries, excess, plain_entries
from sentei.host.compiler.epochs import (
    FURTHEST_BACK,
    LONG_AGO,
    Waits,
    overwriting,
    waits_of,
)
from sentei.host.compiler.placement import Placement
from sentei.host.compiler.schedule import Layer, naming
from sentei.host.compiler.tables import Page, PageFull
from sentei.host.compiler.tasks import Task
from sentei.host.network.ir import Conv, Network, Pool, Requantize, accumulator_range, residual_codes
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import LOAD_BITS, Geometry
from sentei.overlay.instructions import (
    HEADER0,
    HEADER1,
    HEADER_WORDS,
    STEP,
    STEP_WEIGHTS_OFFSET,
    Memory,
    load_words,
    stream_bits,
)


def pack_entries(entries: list[int], memory: Memory, geometry: Geometry) -> bytes:
    """Table entries as a LOAD instruction reads them."""
    size = load_words(memory, geometry) * LOAD_BITS // 8
    return b"".join(int(entry).to_bytes(size, "little") for entry in entries)


def pack_steps(block: Block, geometry: Geometry) -> bytes:
    """The steps of a block as stream words."""
    words = stream_bits(geometry) // LOAD_BITS
    packed = np.zeros((block.steps, words), np.uint64)
    begin = 0
    for number, (steps, by_nibble) in enumerate(block.passes):
        end = begin + len(steps)
        control = np.zeros(len(steps), np.int64)
        flags = dict(plane=steps.planes, tap=steps.taps, pad=steps.pad, maximum=int(block.maximum))
        for name, value in flags.items():
            control |= np.asarray(value, np.int64) << STEP[name].offset
        if steps.late.any():
            control[int(np.argmax(steps.late))] |= 1 << STEP["late"].offset
        final = number == len(block.passes) - 1
        control[-1] |= 1 << STEP["last" if final else "join"].offset
        control[-1] |= int(by_nibble) << STEP["shift"].offset
        packed[begin:end, 0] = control.astype(np.uint64)
        for column in range(geometry.group_columns):
            bit = STEP_WEIGHTS_OFFSET + 4 * column
            weight = (steps.weights[:, column] & 15).astype(np.uint64)
            packed[begin:end, bit // LOAD_BITS] |= weight << np.uint64(bit % LOAD_BITS)
        begin = end
    return packed.tobytes()


def pack_header(first: dict, second: dict, geometry: Geometry) -> bytes:
    size = stream_bits(geometry) // 8
    return HEADER0.pack(**first).to_bytes(size, "little") + HEADER1.pack(**second).to_bytes(size, "little")


def entries_of(block: Block, op: Conv | Pool, network: Network, geometry: Geometry) -> list[int]:
    """Channel table entries of a block, for each level of its passes."""
    joins = [by_nibble for _, by_nibble in block.passes[1:]]
    spec = op.requantize
    if spec is None:
        return plain_entries(geometry.group_columns, joins, geometry)
    channels = slice(block.first, block.first + block.channels)
    low, high = range_of(block, op, network)
    codes = residual_codes(network.tensors[spec.residual] if spec.residual else None)
    part = Requantize(
        spec.thresholds[channels], spec.descending[channels], spec.low[channels], spec.span[channels], spec.residual
    )
    return channel_entries(part, codes, low, high, block.stored_bias, joins, geometry, op.name)


def range_of(block: Block, op: Conv | Pool, network: Network) -> tuple[np.ndarray, np.ndarray]:
    """`accumulator_range` of a block's channels."""
    channels = slice(block.first, block.first + block.channels)
    if isinstance(op, Conv):
        addends = tuple(replace(term, weights=term.weights[channels]) for term in op.addends)
        return accumulator_range(replace(op, weights=op.weights[channels], addends=addends), network.tensors)
    low, high = accumulator_range(op, network.tensors)
    return low[channels], high[channels]


NO_PAGE = -1


@dataclass(frozen=True)
class Packed:
    """One task in a stream: `epoch` is what it waits for; `header` gives both words for an epoch to count from and for
    whether the run ends with it; `page` is the one whose tables it needs (NO_PAGE: none)."""

    epoch: int
    header: Callable[[int, bool], bytes]
    steps: bytes
    words: int
    page: int = NO_PAGE


@dataclass
class Streams:
    """What the groups do: `tasks[layer][group]`, the pages of tables that these need, and `corrections` (C,) of the
    wide output."""

    tasks: list[list[list[Packed]]]
    pages: list[Page]
    corrections: np.ndarray


def pack_streams(network: Network, placed: dict[str, Placement], layers: list[Layer], geometry: Geometry) -> Streams:
    """Every group's tasks, and the tables that they need."""
    total = layers[-1].sections.last
    dead = overwriting(network, placed, [layer.sections for layer in layers], total)
    packer = Packer(network, placed, geometry)
    for layer, free in zip(layers, dead, strict=True):
        with naming(network, layer.op):
            packer.pack(layer, free)
    return packer.streams


def page_cycles(streams: Streams, geometry: Geometry) -> int:
    """Cycles that the bus needs to load the tables for each picture; none, if they have one page."""
    if len(streams.pages) == 1:
        return 0
    words = 0
    for page in streams.pages:
        words += len(page.tiles) + len(page.taps) + len(page.masks)
        words += sum(map(len, page.channels)) * load_words(Memory.CHANNEL, geometry)
    return words * LOAD_BITS // geometry.bus_bits


@dataclass(frozen=True)
class Item:
    """A task that waits to be packed, with what its tiles wait for and signal."""

    task: Task
    waits: Waits
    signals: list[bool]
    ends_layer: bool

    def halves(self) -> list[Item]:
        """The same in two tasks; none if it has one tile."""
        count = len(self.task.tiles)
        if count < 2:
            return []
        parts = []
        for part in (slice(0, count // 2), slice(count // 2, count)):
            waits = replace(self.waits, tiles=self.waits.tiles[part])
            ends_layer = self.ends_layer and part.stop == count
            parts.append(Item(Task(self.task.block, self.task.tiles[part]), waits, self.signals[part], ends_layer))
        return parts


class Packer:
    """Packs one layer after the other into `streams`."""

    def __init__(self, network: Network, placed: dict[str, Placement], geometry: Geometry):
        self.network, self.placed, self.geometry = network, placed, geometry
        corrections = np.zeros(network.tensors[network.output].shape.channels, np.int64)
        self.streams = Streams([], [Page(geometry)], corrections)
        self.running = [LONG_AGO] * geometry.groups  # what each group's last task waited for
        self.entries: dict[tuple, list[int]] = {}  # channel entries of blocks; a second patch's are the same

    def pack(self, layer: Layer, free: int) -> None:
        """Pack a layer that may overwrite what lies there from the epoch `free` on: on the page that there is, or on a
        new one, or on several."""
        needed = np.maximum(layer.needed, free)
        queues = [self._items(group, tasks, layer, needed) for group, tasks in enumerate(layer.shares)]
        if layer.op.requantize is None:
            for block in [item.task.block for items in queues for item in items]:
                joined = excess([by_nibble for _, by_nibble in block.passes[1:]])
                self.streams.corrections[block.first : block.first + block.channels] = block.stored_bias + joined
        try:
            tasks = self._together(queues, layer)
        except PageFull:
            self._turn_page()
            try:
                tasks = self._together(queues, layer)
            except PageFull:
                tasks = self._in_turn(queues, layer)
        for group, of_group in enumerate(tasks):
            if not of_group:
                passed = layer.sections.last - layer.sections.first
                of_group.append(pack_empty(passed, self.running[group], True, self.geometry))
        self.streams.tasks.append(tasks)

    def _turn_page(self) -> None:
        self.streams.pages.append(Page(self.geometry))

    def _items(self, group: int, tasks: list[Task], layer: Layer, needed: np.ndarray) -> list[Item]:
        """A group's share of a layer."""
        first = layer.sections.first
        if not tasks:
            self.running[group] = max(self.running[group], first - FURTHEST_BACK)
        items = []
        for number, task in enumerate(tasks):
            waits = waits_of(task, needed[task.tiles], layer.last, self.running[group], first)
            self.running[group] = waits.epoch
            items.append(Item(task, waits, layer.sections.signals[group][number], number == len(tasks) - 1))
        return items

    def _together(self, queues: list[list[Item]], layer: Layer) -> list[list[Packed]]:
        """A whole layer on this page, rows of taps in the order of its tiles."""
        for tile in layer.tiles:
            self.streams.pages[-1].tap_row(tile.row)
        return [[self._packed(item, group, layer) for item in items] for group, items in enumerate(queues)]

    def _in_turn(self, queues: list[list[Item]], layer: Layer) -> list[list[Packed]]:
        """A layer on several pages: as many tasks of all groups as a page has room for, tasks cut if need be."""
        tasks: list[list[Packed]] = [[] for _ in queues]
        waiting = [list(items) for items in queues]
        self._turn_page()
        fresh = True
        while any(waiting):
            for group, items in enumerate(waiting):
                if not items:
                    continue
                item = items.pop(0)
                try:
                    tasks[group].append(self._packed(item, group, layer))
                    fresh = False
                except PageFull as error:
                    if not fresh:
                        self._turn_page()
                        fresh = True
                        items.insert(0, item)
                        continue
                    halves = item.halves()
                    if not halves:
                        raise CapacityError(f"{error} at a time; use a geometry with more of them") from error
                    items[:0] = halves
        return tasks

    def _packed(self, item: Item, group: int, layer: Layer) -> Packed:
        page, task = self.streams.pages[-1], item.task
        channel = self._channel(task.block, layer.op, group)
        tiles = tuple(
            page.tile(layer.tiles[tile], epoch, signal)
            for tile, epoch, signal in zip(task.tiles, item.waits.tiles, item.signals, strict=True)
        )
        fields = task_fields(layer.op, task, self.placed, channel)
        fields[0].update(tile=page.tile_list(tiles), signal=int(any(item.signals)))
        number = len(self.streams.pages) - 1
        return pack_task(task, fields, item.waits, item.ends_layer, number, self.geometry)

    def _channel(self, block: Block, op: Conv | Pool, group: int) -> int:
        """The first of a block's entries in its group's channel table; those of a wide output are all alike."""
        joins = tuple(by_nibble for _, by_nibble in block.passes[1:])
        own: tuple = ()
        if op.requantize is not None:
            of_op = id(op.requantize.thresholds), id(op.weights if isinstance(op, Conv) else None)
            own = *of_op, block.first, *block.stored_bias.tolist()
        if (joins, own) not in self.entries:
            self.entries[joins, own] = entries_of(block, op, self.network, self.geometry)
        unit = group // self.geometry.groups_per_requantizer
        return self.streams.pages[-1].channel_list(unit, self.entries[joins, own])


def task_fields(op: Conv | Pool, task: Task, placed: dict[str, Placement], channel: int) -> tuple[dict, dict]:
    """Most of a header: fields of both words."""
    block, target = task.block, placed[op.output]
    requantize: Requantize | None = op.requantize
    residual = None if requantize is None or requantize.residual is None else placed[requantize.residual]
    plane, nibbles = target.layout.stride, target.layout.nibbles
    first = dict(
        tiles=len(task.tiles),
        channel=channel,
        columns=block.channels,
        residual=int(residual is not None),
        reduce=int(block.reduce),
        wide=int(requantize is None),
    )
    second = dict(
        output=target.address + (block.first * nibbles + nibbles - 1) * plane,
        stride=nibbles * plane,
        residual=0 if residual is None else residual.address + block.first * plane,
        steps=block.steps,
    )
    if requantize is None:
        # From the last column's highest nibble to the first column's next one.
        back = (block.channels - 1) * nibbles + 1
        second["residual"] = -back * plane % (1 << HEADER1["residual"].width)
    return first, second


def pack_task(
    task: Task, fields: tuple[dict, dict], waits: Waits, ends_layer: bool, page: int, geometry: Geometry
) -> Packed:
    first, second = fields
    largest = (1 << HEADER1["steps"].width) - 1
    if largest < task.block.steps <= geometry.stream_words - HEADER_WORDS:
        raise CapacityError(f"has {task.block.steps} steps, more than {largest}; use fewer input channels")
    largest = (1 << HEADER1["stride"].width) - 1
    if second["stride"] > largest:
        raise CapacityError(f"output planes lie {second['stride']} words apart, more than {largest}; use smaller maps")

    def header(base: int, last: bool) -> bytes:
        return pack_header(
            dict(first, layer=int(ends_layer), last=int(last), epoch=waits.epoch - base),
            dict(second, late=waits.late),
            geometry,
        )

    return Packed(waits.epoch, header, pack_steps(task.block, geometry), HEADER_WORDS + task.block.steps, page)


def pack_empty(sections: int, epoch: int, ends_layer: bool, geometry: Geometry) -> Packed:
    """The task of a group that has nothing to do: it passes so many sections."""

    def header(base: int, last: bool) -> bytes:
        first = dict(tiles=0, layer=int(ends_layer), last=int(last), epoch=epoch - base)
        return pack_header(first, dict(steps=sections), geometry)

    return Packed(epoch, header, b"", HEADER_WORDS)
