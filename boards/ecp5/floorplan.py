"""Places on the largest ECP5, which is nearly full: multipliers and block RAMs near what they work with."""

from __future__ import annotations

import json
from pathlib import Path

from sentei.boards.flow import NAME
from sentei.gateware.group.group import table_prefix
from sentei.gateware.memory.activation_memory import MEMORY_PREFIX

LARGEST = "85F"  # multipliers and memories lie in rows, in blocks of four, which begin at the same tiles in all rows
BLOCKS = (*range(4, 59, 9), *range(69, 115, 9))
MULTIPLIER_ROWS, MULTIPLIERS = (10, 34, 58), {0: "MULT18_0", 1: "MULT18_1", 4: "MULT18_4", 5: "MULT18_5"}
MEMORY_ROWS, MEMORIES = (22, 46, 70, 82), {0: "EBR0", 2: "EBR1", 4: "EBR2", 6: "EBR3"}
CONTROL_BLOCKS = slice(5, 9)  # in the middle of a row of memories, for a group's tables


def sites(row: int, block: dict[int, str], blocks=BLOCKS) -> list[str]:
    """Places for multipliers or memories, from left to right."""
    return [f"X{first + tile}/Y{row}/{cell}" for first in blocks for tile, cell in block.items()]


def there_and_back(rows: list[list[str]]) -> list[str]:
    """Rows as one line, every other one reversed."""
    return [site for number, row in enumerate(rows) for site in (row[::-1] if number % 2 else row)]


def place_multipliers(device: str, engine) -> None:
    """Gives each multiplier of the array its place, where that matters: on a device that is nearly full.

    Neighbouring lanes lie side by side. What a lane needs is then in one place, and the placer finds it.
    """
    if device != LARGEST:
        return
    pieces = [
        (lane, number, column, instance)
        for number, group in enumerate(engine.core.groups)
        for lane, column, instance in group.array.pieces
    ]
    pieces.sort(key=lambda piece: piece[:3])
    places = there_and_back([sites(row, MULTIPLIERS) for row in MULTIPLIER_ROWS])
    for (*_, instance), place in zip(pieces, places, strict=False):
        instance.attr.add(("BEL", place))


def place_memories(netlist: Path, groups: int) -> None:
    """Gives the largest device's block RAMs their places: to those of the activation memory near their lanes, to a
    group's tables in the middle of a row."""
    design = json.loads(netlist.read_text())
    cells = {name: cell for name, cell in design["modules"][NAME]["cells"].items() if cell["type"] == "DP16KD"}
    outer = [*BLOCKS[: CONTROL_BLOCKS.start], *BLOCKS[CONTROL_BLOCKS.stop :]]
    banks = sorted(
        (name for name in cells if name.startswith(MEMORY_PREFIX)),
        key=lambda name: (int(name.rpartition(".")[2]), name),
    )  # the same lanes side by side
    share = -(-len(banks) // len(MEMORY_ROWS))
    rows = [sites(row, MEMORIES, outer) for row in MEMORY_ROWS]
    near_lanes = there_and_back([[row[number * len(row) // share] for number in range(share)] for row in rows])
    places = dict(zip(banks, near_lanes, strict=False))
    for group, row in zip(range(groups), MEMORY_ROWS, strict=False):
        tables = [name for name in cells if name.startswith(table_prefix(group))]
        places |= zip(tables, sites(row, MEMORIES, BLOCKS[CONTROL_BLOCKS]), strict=False)
    for name, site in places.items():
        cells[name]["attributes"]["BEL"] = site
    netlist.write_text(json.dumps(design))
