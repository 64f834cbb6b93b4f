"""Places for what lies in rows of an ECP5: multipliers, and the activation memory's block RAMs.

    row of multipliers   lanes 0, 1 | lanes 2, 3 | ...              each pair's multipliers side by side
    row of block RAMs    residuals' copies near their lanes, an aligner's copy in the middle
    row of multipliers           ... | lanes 14, 15 | lanes 12, 13

nextpnr's placers find places for the other cells well, but not these: left to them, the multipliers of a lane lie all
over the device, and with them all that the lane has. On an 85F with 512 MACs these places save 40 % of the wires, and
only with them is there a route (docs/boards.md).
"""

from __future__ import annotations

import json
from pathlib import Path

from sentei.boards.flow import NAME
from sentei.gateware.memory.activation_memory import MEMORY_PREFIX
from sentei.overlay.geometry import Geometry

LARGEST = {"85k", "um5g-85k"}  # nextpnr's names; the smaller devices need no floorplan
BLOCKS = (*range(4, 59, 9), *range(69, 115, 9))  # first tiles of blocks of four multipliers, or block RAMs
MULTIPLIER_ROWS, MULTIPLIERS = (10, 34, 58), {0: "MULT18_0", 1: "MULT18_1", 4: "MULT18_4", 5: "MULT18_5"}
MEMORY_ROWS, MEMORIES = (22, 46), {0: "EBR0", 2: "EBR1", 4: "EBR2", 6: "EBR3"}
SHARED = slice(34, 91)  # columns of tiles for what all lanes have a part in


def sites(row: int, block: dict[int, str]) -> list[str]:
    """Places for multipliers or memories, from left to right."""
    return [f"X{first + tile}/Y{row}/{cell}" for first in BLOCKS for tile, cell in block.items()]


def column_of(site: str) -> int:
    return int(site[1:].partition("/")[0])


def lane_pairs(geometry: Geometry) -> list[list[str]]:
    """For each pair of lanes places for its multipliers: in rows, every other one from right to left."""
    each = geometry.columns // 2
    clusters: list[list[str]] = []
    for number, row in enumerate(MULTIPLIER_ROWS):
        places = sites(row, MULTIPLIERS)
        count = len(places) // each
        own = [places[begin : begin + each] for begin in (part * len(places) // count for part in range(count))]
        clusters += own[::-1] if number % 2 else own
    return clusters


def place_multipliers(engine, geometry: Geometry) -> None:
    """Gives the multipliers of each pair of lanes places side by side."""
    pieces: dict[int, list] = {}
    for group in engine.core.groups:
        for lane, _, instance in group.array.pieces:
            pieces.setdefault(lane // 2, []).append(instance)
    for pair, places in zip(sorted(pieces), lane_pairs(geometry), strict=False):
        for instance, place in zip(pieces[pair], places, strict=False):
            instance.attr.add(("BEL", place))


def place_memories(netlist: Path, geometry: Geometry) -> None:
    """Gives the activation memory's block RAMs places: the copy of each group's aligner, which brings any pixel to any
    lane, the middle of a row; the others, which stay in their lanes, places near these."""
    design = json.loads(netlist.read_text())
    cells = design["modules"][NAME]["cells"]
    banks = sorted(name for name, cell in cells.items() if cell["type"] == "DP16KD" and name.startswith(MEMORY_PREFIX))
    free = {row: sites(row, MEMORIES) for row in MEMORY_ROWS}
    pairs = lane_pairs(geometry)

    def part(name: str) -> tuple[int, int]:
        """Which reader's copy it belongs to, which part of the word it has."""
        reader, _, rest = name.removeprefix(f"{MEMORY_PREFIX}_").partition("_")
        return int(reader), int(rest.rpartition(".")[2])

    parts = 1 + max(part(name)[1] for name in banks)
    for name in sorted(banks, key=part):
        reader, number = part(name)
        if reader < geometry.groups:
            row = MEMORY_ROWS[reader % len(MEMORY_ROWS)]
            column = SHARED.start + (SHARED.stop - SHARED.start) * number // parts
        else:
            near = pairs[geometry.lanes // 2 * number // parts]
            multipliers_row = int(near[0].partition("/Y")[2].partition("/")[0])
            row = min(MEMORY_ROWS, key=lambda row: abs(row - multipliers_row))
            column = column_of(near[len(near) // 2])
        site = min(free[row], key=lambda site: abs(column_of(site) - column))
        free[row].remove(site)
        cells[name]["attributes"]["BEL"] = site
    netlist.write_text(json.dumps(design))
