"""Packs what the groups do into the words that the hardware reads: streams of tasks, channel entries, tables.

a task  ->  two header words, a word for each step        headers wait for the run that they will be in:
                                                          they say how far the epoch is from the one before
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from sentei.host.compiler.tables import Tables
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
    low, high = accumulator_range(op, network.tensors)
    codes = residual_codes(network.tensors[spec.residual] if spec.residual else None)
    part = Requantize(
        spec.thresholds[channels], spec.descending[channels], spec.low[channels], spec.span[channels], spec.residual
    )
    return channel_entries(part, codes, low[channels], high[channels], block.stored_bias, joins, geometry, op.name)


@dataclass(frozen=True)
class Packed:
    """One task in a stream: `epoch` is what it waits for; `header` gives both words for an epoch to count from and for
    whether the run ends with it."""

    epoch: int
    header: Callable[[int, bool], bytes]
    steps: bytes
    words: int


@dataclass
class Streams:
    """What the groups do: `tasks[layer][group]`; and what goes with it: `channels[page][requantizer]`, entries of each
    requantizer's channel table, of which `pages[layer]` must be loaded; and `corrections` (C,) of the wide output."""

    tasks: list[list[list[Packed]]]
    channels: list[list[list[int]]]
    pages: list[int]
    corrections: np.ndarray


def pack_streams(
    network: Network, placed: dict[str, Placement], tables: Tables, layers: list[Layer], geometry: Geometry
) -> Streams:
    """Every group's tasks, adding to `tables` the tiles that they go through."""
    total = layers[-1].sections.last
    dead = overwriting(network, placed, [layer.sections for layer in layers], total)
    packer = Packer(network, placed, tables, geometry)
    for layer, free in zip(layers, dead, strict=True):
        with naming(network, layer.op):
            packer.pack(layer, free)
    return packer.streams


class Packer:
    """Packs one layer after the other into `streams`."""

    def __init__(self, network: Network, placed: dict[str, Placement], tables: Tables, geometry: Geometry):
        self.network, self.placed, self.tables, self.geometry = network, placed, tables, geometry
        self.streams = Streams(
            tasks=[],
            channels=[[[] for _ in range(geometry.requantizers)]],
            pages=[],
            corrections=np.zeros(network.tensors[network.output].shape.channels, np.int64),
        )
        self.running = [LONG_AGO] * geometry.groups  # what each group's last task waited for

    def pack(self, layer: Layer, free: int) -> None:
        """Pack a layer that may overwrite what lies there from the epoch `free` on."""
        needed = np.maximum(layer.needed, free)
        entries = self._channels(layer)
        self.streams.tasks.append(
            [self._group(group, tasks, layer, needed, entries) for group, tasks in enumerate(layer.shares)]
        )

    def _group(
        self, group: int, tasks: list[Task], layer: Layer, needed: np.ndarray, entries: dict[tuple[int, int], int]
    ) -> list[Packed]:
        """A group's share of a layer."""
        sections = layer.sections
        if not tasks:
            self.running[group] = max(self.running[group], sections.first - FURTHEST_BACK)
            return [pack_empty(sections.last - sections.first, self.running[group], True, self.geometry)]
        packed = []
        for number, task in enumerate(tasks):
            waits = waits_of(task, needed[task.tiles], layer.last, self.running[group], sections.first)
            self.running[group] = waits.epoch
            channel = entries[self._key(task.block, layer.op, group)]
            signals = sections.signals[group][number]
            tiles = tuple(
                layer.tiles[tile].pack(epoch, signal)
                for tile, epoch, signal in zip(task.tiles, waits.tiles, signals, strict=True)
            )
            fields = task_fields(layer.op, task, self.placed, channel)
            fields[0].update(tile=self.tables.tile_list(tiles), signal=int(any(signals)))
            packed.append(pack_task(task, fields, waits, number == len(tasks) - 1, self.geometry))
        return packed

    def _key(self, block: Block, op: Conv | Pool, group: int) -> tuple[int, int]:
        """What names the entries of a block: those of a wide output are all alike."""
        return -1 if op.requantize is None else block.first, group // self.geometry.groups_per_requantizer

    def _channels(self, layer: Layer) -> dict[tuple[int, int], int]:
        """The first entry of each of a layer's blocks in the channel tables; begins a page if there is no room."""
        op, geometry = layer.op, self.geometry
        blocks: dict[tuple[int, int], list[int]] = {}
        for group, tasks in enumerate(layer.shares):
            for block in [task.block for task in tasks]:
                if op.requantize is None:
                    joined = excess([by_nibble for _, by_nibble in block.passes[1:]])
                    self.streams.corrections[block.first : block.first + block.channels] = block.stored_bias + joined
                key = self._key(block, op, group)
                if key not in blocks:
                    blocks[key] = entries_of(block, op, self.network, geometry)
        wanted = [0] * geometry.requantizers
        for (_, requantizer), entries in blocks.items():
            wanted[requantizer] += len(entries)
        if max(wanted) > geometry.channel_entries:
            raise CapacityError(
                f"needs more than {geometry.channel_entries} channel_entries; use a geometry with "
                "more of them, or fewer output channels"
            )
        page = self.streams.channels[-1]
        if any(len(page[unit]) + count > geometry.channel_entries for unit, count in enumerate(wanted)):
            page = [[] for _ in range(geometry.requantizers)]
            self.streams.channels.append(page)
        self.streams.pages.append(len(self.streams.channels) - 1)
        found = {}
        for (first, requantizer), entries in blocks.items():
            found[first, requantizer] = len(page[requantizer])
            page[requantizer] += entries
        return found


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


def pack_task(task: Task, fields: tuple[dict, dict], waits: Waits, ends_layer: bool, geometry: Geometry) -> Packed:
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

    return Packed(waits.epoch, header, pack_steps(task.block, geometry), HEADER_WORDS + task.block.steps)


def pack_empty(sections: int, epoch: int, ends_layer: bool, geometry: Geometry) -> Packed:
    """The task of a group that has nothing to do: it passes so many sections."""

    def header(base: int, last: bool) -> bytes:
        first = dict(tiles=0, layer=int(ends_layer), last=int(last), epoch=epoch - base)
        return pack_header(first, dict(steps=sections), geometry)

    return Packed(epoch, header, b"", HEADER_WORDS)
