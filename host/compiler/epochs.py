"""Epochs: who waits for whom (overlay/instructions.py says what the hardware does with them).

Each operator has a few *sections*. A group's tiles of an operator are cut into as many parts, and the last tile of each
part carries a signal. Epoch e means: sections up to e are written, whichever group does them. So

    a tile waits for the epoch in which the last word that it reads was written             (what it reads is there)
    an operator waits until nothing is read any more from where it writes              (what it overwrites is dead)

Epochs count from the picture's start; those of the picture before are negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sentei.host.compiler.placement import Placement, last_uses
from sentei.host.compiler.tables import Tile
from sentei.host.compiler.tasks import Task
from sentei.host.network.ir import Network
from sentei.overlay.errors import CapacityError
from sentei.overlay.instructions import EPOCH_BITS, HEADER0, HEADER1

MAX_SECTIONS = 8  # of an operator
MAX_EPOCHS = (1 << EPOCH_BITS) * 3 // 8  # of a picture: two of them and some to spare in half of the counter's range
FURTHEST_BACK = 48  # an operator waits at least for what was written so many epochs before it
LARGEST_DELAY = (1 << HEADER0["epoch"].width) - 1
LARGEST_LATE = (1 << HEADER1["late"].width) - 1
LONG_AGO = -(1 << EPOCH_BITS)


@dataclass
class Sections:
    """One operator's sections: epochs `first` + 1 to `last`. `signals` tells for each group, task and tile whether it
    ends a section; `written` int64 (C, words of a plane) is the epoch in which each word of the output is written."""

    first: int
    last: int
    signals: list[list[list[bool]]]
    written: np.ndarray


def sections_limit(operators: int, name: str) -> int:
    """Sections that each of so many operators may have."""
    limit = min(MAX_SECTIONS, MAX_EPOCHS // operators)
    if not limit:
        raise CapacityError(f"{name}: has {operators} operators, more than {MAX_EPOCHS}; split it")
    return limit


def cut(shares: list[list[Task]], tiles: list[Tile], target: Placement, first: int, limit: int) -> Sections:
    """Cut an operator that is shared out like this into at most `limit` sections."""
    lengths = [sum(len(task.tiles) for task in tasks) for tasks in shares]
    count = min([limit, *(length for length in lengths if length)])
    written = np.full((target.layout.channels, target.layout.plane_words), first, np.int64)
    signals: list[list[list[bool]]] = []
    for tasks, length in zip(shares, lengths, strict=True):
        ends = {-(-(section + 1) * length // count) - 1 for section in range(count)}
        item, section = 0, first + 1
        signals.append([])
        for task in tasks:
            channels = slice(task.block.first, task.block.first + task.block.channels)
            signals[-1].append([])
            for tile in task.tiles:
                word = tiles[tile].target
                written[channels, word] = np.maximum(written[channels, word], section)
                signals[-1][-1].append(item in ends)
                section += item in ends
                item += 1
    return Sections(first, first + count, signals, written)


def needs(tiles: list[Tile], written: list[np.ndarray]) -> np.ndarray:
    """int64 (tiles, C): the epoch in which what each tile reads of each channel is written, of all terms' channels."""
    return np.array(
        [
            np.concatenate(
                [of[:, reads].max(axis=1, initial=LONG_AGO) for of, reads in zip(written, tile.reads, strict=True)]
            )
            for tile in tiles
        ]
    )


def late_channels(needed: np.ndarray, first: int) -> np.ndarray:
    """bool (C,): input channels that steps should read last, given `needs` and the epoch before the operator's first.

    They are those written in the very last section, if even the first tile needs them and not others.
    """
    late = needed[0] == first
    return late if late.any() and not late.all() else np.zeros(len(late), bool)


def overwriting(network: Network, placed: dict[str, Placement], sections: list[Sections], total: int) -> list[int]:
    """For each operator the epoch that it must wait for before it writes: until then, what lies there is read.

    `sections` are those of the operators, `total` is the number of epochs of a picture.
    """
    uses = last_uses(network)
    made = {op.output: index for index, op in enumerate(network.ops)} | dict.fromkeys(network.inputs, -1)
    waits = []
    for index, op in enumerate(network.ops):
        wait = LONG_AGO
        for name, other in placed.items():
            if name in network.outputs or not overlap(placed[op.output], other):
                continue
            done = sections[uses[name]].last
            wait = max(wait, done if made[name] < index else done - total)
        waits.append(wait)
    return waits


def overlap(one: Placement, other: Placement) -> bool:
    """Whether two tensors share words."""
    return one.address < other.address + other.layout.words and other.address < one.address + one.layout.words


@dataclass(frozen=True)
class Waits:
    """What a task's header and tiles carry: epochs to wait for, relative to one another."""

    epoch: int  # of the task, counted from the picture's start
    tiles: list[int]  # more than that, of each tile
    late: int  # more than that, of late steps


def waits_of(task: Task, needed: np.ndarray, last: int, running: int, first: int) -> Waits:
    """The waits of a task whose tiles need `needed` (tiles of the task,) and whose late steps `last`.

    `running` is what the group's task before waited for, `first` the epoch before the operator's first.
    """
    epoch = max(running, int(needed.min()), int(needed.max()) - LARGEST_DELAY, first - FURTHEST_BACK)
    if last > first - FURTHEST_BACK:
        epoch = max(epoch, last - LARGEST_LATE)
    return Waits(epoch, [max(0, int(need) - epoch) for need in needed], max(0, last - epoch))
