"""Every operator's tasks and epochs: who does what on which tiles, and what each waits for."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sentei.host.compiler.blocks import CLASSES, blocks_of, tiles_of
from sentei.host.compiler.epochs import (
    LONG_AGO,
    Sections,
    cut,
    late_channels,
    needs,
    sections_limit,
)
from sentei.host.compiler.placement import Placement
from sentei.host.compiler.tables import Tile
from sentei.host.compiler.tasks import HEADER_CYCLES, Task, spread
from sentei.host.network.ir import Conv, Network, Pool, inputs_of
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import stream_bits


@dataclass
class Layer:
    """One operator, scheduled: its tiles, each group's tasks, and the epochs."""

    op: Conv | Pool
    tiles: list[Tile]
    shares: list[list[Task]]
    sections: Sections
    needed: np.ndarray  # int64 (tiles,): the epoch that each tile waits for
    last: int  # the epoch that late steps wait for; LONG_AGO if there are none


def steps_of(layers: list[Layer]) -> int:
    """Cycles that the array computes, if every group waits for all others after each operator."""
    return sum(max(sum(task.steps for task in tasks) for tasks in layer.shares) for layer in layers)


def load_cycles(layers: list[Layer], geometry: Geometry) -> float:
    """Cycles that the bus needs for the streams that are loaded for each picture: the largest ones, if they do not all
    stay on chip. Of blocks that read alike, the weights are loaded."""
    room = geometry.groups * geometry.stream_words
    words = 0.0
    for layer in sorted(layers, key=words_of):
        if words_of(layer) <= room:
            room -= words_of(layer)
            continue
        room = 0
        blocks = {id(task.block): task.block for tasks in layer.shares for task in tasks}
        alike = len({block.reads() for block in blocks.values()}) == 1
        words += words_of(layer) / (2 if alike else 1)
    return words * stream_bits(geometry) / geometry.bus_bits


def words_of(layer: Layer) -> int:
    """Of all groups' streams."""
    return sum(task.words for tasks in layer.shares for task in tasks)


def schedule(
    network: Network, placed: dict[str, Placement], geometry: Geometry, short_streams: bool = False
) -> list[Layer]:
    """Every operator's tasks and epochs. `short_streams`: tiles share steps where that saves the bus more cycles than
    it costs the array, and blocks of nearly all slots have all of them."""
    limit = sections_limit(len(network.ops), network.name)
    given = {name: placed[name].layout for name in network.inputs}
    written = {name: np.full((layout.channels, layout.plane_words), LONG_AGO) for name, layout in given.items()}
    layers: list[Layer] = []
    load = [0] * geometry.groups
    for op in network.ops:
        with naming(network, op):
            first = layers[-1].sections.last if layers else 0
            tiles, words = tiles_of(op, placed, CLASSES)
            if short_streams and len({tile.parts for tile in tiles}) > 1:
                alike, _ = tiles_of(op, placed, 1)
                tiles = min(tiles, alike, key=lambda tiles: cycles_of(op, placed, tiles, geometry))
            needed = needs(tiles, [written[name] for name in inputs_of(op)])
            late = late_channels(needed, first) if isinstance(op, Conv) else np.zeros(needed.shape[1], bool)
            shares: list[list[Task]] = [[] for _ in load]
            for parts in dict.fromkeys(tile.parts for tile in tiles):
                blocks = blocks_of(op, placed, parts, words, late, geometry, short_streams)
                members = [number for number, tile in enumerate(tiles) if tile.parts == parts]
                for share, tasks in zip(shares, spread(blocks, members, load, geometry), strict=True):
                    share += tasks
            sections = cut(shares, tiles, placed[op.output], first, limit)
            written[op.output] = sections.written
            of_tiles = needed[:, ~late].max(axis=1)
            if op.requantize is not None and op.requantize.residual is not None:
                added = written[op.requantize.residual]
                of_tiles = np.maximum(of_tiles, [added[:, tile.target].max() for tile in tiles])
            last = int(needed.max()) if late.any() else LONG_AGO
            layers.append(Layer(op, tiles, shares, sections, of_tiles, last))
    return layers


def cycles_of(op: Conv | Pool, placed: dict[str, Placement], tiles: list[Tile], geometry: Geometry) -> float:
    """Cycles of the array, and of the bus if the streams are loaded."""
    cycles = 0.0
    for parts, count in Counter(tile.parts for tile in tiles).items():
        late = np.zeros(sum(placed[name].layout.channels for name in inputs_of(op)), bool)
        for block in blocks_of(op, placed, parts, None, late, geometry):
            cycles += block.steps * count / geometry.groups
            cycles += (block.steps + HEADER_CYCLES) * stream_bits(geometry) / geometry.bus_bits
    return cycles


@contextmanager
def naming(network: Network, op: Conv | Pool):
    """Has a CapacityError name network and operator."""
    try:
        yield
    except CapacityError as error:
        text = str(error).removeprefix(f"{op.name}: ")
        raise CapacityError(f"{network.name}: {op.name}: {text}") from error
