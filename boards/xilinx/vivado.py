"""From Verilog to the bitstream of a Xilinx 7 series device, with Vivado; without it, its complete project."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from sentei.boards.flow import NAME, ClockMissed, Flow, Outcome
from sentei.gateware.technologies.technology import xilinx
from sentei.gateware.tools.programs import run
from sentei.overlay.errors import BuildError


class VivadoFlow(Flow):
    """Clocks are measured by Vivado, which places multipliers well by itself and has no seed."""

    def technology(self, multipliers):
        return xilinx(multipliers)

    def tools(self):
        said = subprocess.run(["vivado", "-version"], capture_output=True, text=True).stdout
        return {"vivado": next(iter(said.splitlines()), "unknown")}

    def implement(self, label, device, platform, sources, work, seed, stage):
        make_portable(platform, work)
        if shutil.which("vivado") is None:
            return Outcome(
                {},
                missing=f"vivado must be installed and on the PATH to make {label}'s bitstream. Its project "
                f"is complete, for any machine: cd {work} && vivado -mode batch -source {NAME}.tcl; "
                f"then add what it makes: sentei build ... --bit {NAME}.bit",
            )
        with stage("bitstream by Vivado"):
            run(["vivado", "-mode", "batch", "-source", f"{NAME}.tcl"], work)
        slack = worst_slack((work / f"{NAME}_timing.rpt").read_text())
        target = device.clock_hz / 1e6
        achieved = round(1 / (1 / target - slack / 1e3), 2)
        if slack < 0:
            raise ClockMissed(
                f"{label} misses its clock: it reaches {achieved} MHz of {target}; the critical paths are in "
                f"{work / NAME}_timing.rpt",
                achieved,
            )
        return Outcome(
            {"bit": work / f"{NAME}.bit"},
            {"fits": True, "clocks": {"sys": {"target_mhz": target, "achieved_mhz": achieved}}},
        )


def make_portable(platform, work: Path) -> None:
    """Copy all sources into `work`, and have the project name them without a folder."""
    script = work / f"{NAME}.tcl"
    text = script.read_text()
    for source, *_ in platform.sources:
        path = Path(source)
        if path.parent != work:
            shutil.copy(path, work)
        text = text.replace(str(path), path.name)
    script.write_text(text)


def worst_slack(report: str) -> float:
    """The worst slack of all setup paths, in ns, in a timing summary of Vivado. BuildError if there is none."""
    found = re.search(r"WNS\(ns\).*\n[\s-]+\n\s*(-?\d+\.\d+)", report)
    if found is None:
        raise BuildError("Vivado's timing report has no summary of slacks; see its log")
    return float(found[1])
