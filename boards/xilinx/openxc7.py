"""From Verilog to a Zynq-7000's bitstream with the open tools: yosys, nextpnr-xilinx, prjxray's.

sentei.v --yosys--> sentei.json --nextpnr-xilinx--> sentei.fasm --fasm2frames--> sentei.frames --xc7frames2bit--> .bit

yosys is the project's own; the others are the user's, on the PATH, with two data bases: CHIPDB names the folder with
nextpnr-xilinx's, PRJXRAY_DB_DIR the one with prjxray's.

Vivado wraps the processing system in a block with names of its own, and knows its pins. Here `processing_system` is
that block, around the PS7 itself, and the pins, which are where they are, stay away: the design has none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from sentei.boards.flow import NAME, ClockMissed, Flow, Outcome
from sentei.boards.xilinx.vivado import make_portable
from sentei.gateware.technologies.technology import xilinx
from sentei.gateware.tools.programs import run
from sentei.gateware.tools.yowasp import yosys
from sentei.overlay.errors import BuildError

PROGRAMS = ("nextpnr-xilinx", "fasm2frames", "xc7frames2bit")
PROJECT = "https://github.com/openXC7/toolchain-installer"
TOP = f"{NAME}_without_pins"
SYNTHESIS = "synth_xilinx -family xc7 -flatten -abc9 -nowidelut"
FAMILIES = {"xc7z": "zynq7"}
LIMIT_MINUTES = 60  # for place and route
# Ports of the block whose place in the PS7 is not simply that of the name; sizes have two bits there, for 8 bytes.
SPECIAL = {
    "FCLK_CLK0": ("FCLKCLK", "clocks"),
    "FCLK_RESET0_N": ("FCLKRESETN", "resets"),
    "IRQ_F2P": ("IRQF2P", "{4'd0, IRQ_F2P}"),
}
# What nextpnr-xilinx packs of a design without input and output pins.
CELLS = {
    *(f"LUT{inputs}" for inputs in range(1, 7)),
    *("FDRE", "FDSE", "FDCE", "FDPE", "CARRY4", "MUXF7", "MUXF8", "INV", "BUFG", "BUFGCTRL", "PS7", "DSP48E1"),
    *(
        "RAMB18E1",
        "RAMB36E1",
        "SRL16E",
        "SRLC32E",
        "RAM32X1D",
        "RAM64X1D",
        "RAM128X1D",
        "RAM32M",
        "RAM64M",
        "GND",
        "VCC",
    ),
}


class OpenXC7Flow(Flow):
    def technology(self, multipliers):
        return xilinx(multipliers)

    def tools(self):
        said = subprocess.run(["nextpnr-xilinx", "--version"], capture_output=True, text=True)
        return {"nextpnr-xilinx": next(iter((said.stdout + said.stderr).splitlines()), "unknown")}

    def implement(self, label, device, platform, sources, work, seed, stage):
        make_portable(platform, work)
        part = platform.device
        chips, frames = data_bases(part)
        if lacking := missing(chips, frames):
            return Outcome(
                {},
                missing=f"{label}'s bitstream needs {', '.join(lacking)}. They are openXC7's, which is no part of this "
                f"project: {PROJECT}. Without them, Vivado makes it (leave out --flow)",
            )
        (work / "processing_system.v").write_text(processing_system((work / f"{NAME}.v").read_text()))
        keep_places(work / f"{NAME}.xdc")
        reads = "; ".join(f"read_verilog {path.name}" for path in sorted(work.glob("*.v")))
        with stage("synthesis by yosys"):
            yosys(f"{reads}; {SYNTHESIS} -top {TOP}; write_json {NAME}.json", work)
        check_cells(json.loads((work / f"{NAME}.json").read_text()))
        megahertz = device.clock_hz / 1e6
        log = []
        with stage(f"place and route by nextpnr-xilinx, at most {LIMIT_MINUTES} minutes"):
            command = ["nextpnr-xilinx", "--chipdb", chips, "--xdc", f"{NAME}.xdc", "--json", f"{NAME}.json"]
            command += ["--fasm", f"{NAME}.fasm", "--freq", f"{megahertz:g}", "--seed", seed, "--timing-allow-fail"]
            run(command, work, log.append, 60 * LIMIT_MINUTES)
        achieved = slowest_clock(log)
        if achieved < megahertz:
            raise ClockMissed(f"{label} misses its clock: it reaches {achieved} MHz of {megahertz:g}", achieved)
        with stage("bitstream by prjxray's tools"):
            run(["fasm2frames", "--part", part, "--db-root", frames, f"{NAME}.fasm", f"{NAME}.frames"], work)
            command = ["xc7frames2bit", "--part_file", frames / part / "part.yaml", "--part_name", part]
            run([*command, "--frm_file", f"{NAME}.frames", "--output_file", f"{NAME}.bit"], work)
        return Outcome(
            {"bit": work / f"{NAME}.bit"},
            {"fits": True, "clocks": {"sys": {"target_mhz": megahertz, "achieved_mhz": achieved}}, "seed": seed},
        )


def data_bases(part: str) -> tuple[Path, Path]:
    """nextpnr-xilinx's file and prjxray's folder for a part."""
    family = next(family for prefix, family in FAMILIES.items() if part.startswith(prefix))
    chips = Path(os.environ.get("CHIPDB", "chipdb")) / f"{part.rpartition('-')[0]}.bin"
    return chips, Path(os.environ.get("PRJXRAY_DB_DIR", "prjxray-db")) / family


def missing(chips: Path, frames: Path) -> list[str]:
    """What of the user's is not there, in words."""
    found = [f"{program} on the PATH" for program in PROGRAMS if shutil.which(program) is None]
    if not chips.is_file():
        found.append(f"CHIPDB, the folder with {chips.name}")
    if not frames.is_dir():
        found.append(f"PRJXRAY_DB_DIR, the folder with {frames.name}")
    return found


def processing_system(soc: str) -> str:
    """Verilog of the block that is the processing system in the SoC's Verilog, and of a design without pins around the
    SoC."""
    instance = re.search(r"^ps7 ps7\(\n(.*?)^\);", soc, re.M | re.S)
    assert instance is not None, "a Zynq's SoC has a processing system"
    inputs, _, rest = instance[1].partition("// Outputs.")
    outputs, _, pins = rest.partition("// InOuts.")
    ports, wires, body = [], [], []
    for direction, part in (("input", inputs), ("output", outputs), ("inout", pins)):
        for name, signal in re.findall(r"\.(\w+)\s*\((\w+)\)", part):
            found = re.search(rf"(?:wire|reg)\s+(?:signed\s+)?\[(\d+):0\]\s+{signal}\b", soc)
            high = found[1] if found else 0
            ports.append(f"{direction} [{high}:0] {name}")
            if direction != "inout":
                port, wire = SPECIAL.get(name, (name.replace("_", ""), name))
                wires.append(f".{port}({wire}[1:0])" if name.endswith("SIZE") else f".{port}({wire})")
                body += [f"assign {name}[{high}:2] = 0;"] if name.endswith("SIZE") and direction == "output" else []
    separator = ",\n    "
    return f"""module ps7(
    {separator.join(ports)}
);
wire [3:0] clocks, resets;
BUFG clock(.I(clocks[0]), .O(FCLK_CLK0));
assign FCLK_RESET0_N = resets[0];
{chr(10).join(body)}
PS7 the_ps7(
    {separator.join(wires)}
);
endmodule

module {TOP}();
{NAME} soc();
endmodule
"""


def keep_places(constraints: Path) -> None:
    """Leave in the file what nextpnr-xilinx reads: properties of pins."""
    kept = [line for line in constraints.read_text().splitlines() if line.startswith("set_property")]
    constraints.write_text("".join(f"{line}\n" for line in kept))


def check_cells(netlist: dict) -> None:
    """BuildError if yosys has made cells that nextpnr-xilinx does not know."""
    made = {cell["type"] for cell in netlist["modules"][TOP]["cells"].values()}
    if unknown := sorted(kind for kind in made - CELLS if not kind.startswith("$")):
        raise BuildError(f"nextpnr-xilinx does not know cells of type {', '.join(unknown)}")


def slowest_clock(log: list[str]) -> float:
    """MHz that the slowest clock reaches, in a log of nextpnr-xilinx: its last word on each. BuildError if it says
    nothing of any."""
    found = dict(re.findall(r"Max frequency for clock\s+'([^']+)': ([\d.]+) MHz", "".join(log)))
    if not found:
        raise BuildError("nextpnr-xilinx's log tells no clock's frequency")
    return round(min(map(float, found.values())), 2)
