"""Builds the boards' bitstreams and says how fast networks run on them: reports/boards.json.

    python scripts/boards.py --output reports/boards.json                     every board with an ECP5, in some hours
    python scripts/boards.py --output reports/boards.json --only ulx3s-45F    one of them
    python scripts/boards.py --output reports/boards.json --speed-only        the speed on what was built

Pictures a second are the clock, which was met, over the cycles of the engine's control with the board's memory model.
A network's MACs are those of its dense form: what a pruned one skips counts as done in "effective_macs_per_s".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from sentei.boards import BOARDS, board_named
from sentei.boards.board import Board
from sentei.boards.ecp5.flow import ECP5Flow
from sentei.boards.sim import build
from sentei.driver import SenteiOverlay
from sentei.gateware.technologies.technology import CONTROL
from sentei.host.apps.measure import benchmark
from sentei.host.commands.console import say, step
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.errors import CapacityError

NETWORKS = ("resnet8-c10-dense", "resnet20-c10-dense", "resnet20-c10-ninth", "fmnist-ninth")


def boards(flow: type) -> dict[str, tuple[Board, str]]:
    """Those that this flow builds, (board, device) by the name in the report."""
    found = {}
    for name in BOARDS:
        board = board_named(name)
        if isinstance(board.flow, flow):
            found |= {board.label(device): (board, device) for device in board.devices}
    return found


def speed(board: Board, device: str, folder: Path) -> dict[str, dict]:
    """Cycles, pictures a second (or why there are none) and MACs a second of each of NETWORKS, by its name."""
    preset = board.devices[device]
    words = f"{preset.geometry.lanes}x{preset.geometry.columns}-{preset.geometry.bus_bits}-{board.memory.name}"
    figures: dict[str, dict] = {"cycles": {}, "fps": {}, "effective_macs_per_s": {}}
    with SenteiOverlay(build(preset.geometry, board.memory, Path("build/boards") / words, CONTROL)) as overlay:
        for name in NETWORKS:
            try:
                program = compile_network(load(folder / f"{name}.onnx"), preset.geometry)
            except CapacityError as error:
                figures["fps"][name] = f"does not run: {error}"
                continue
            overlay.load(program)
            cycles = benchmark(overlay).cycles
            macs = sum(layer.dense_macs for layer in program.layers)
            figures["cycles"][name] = round(cycles)
            figures["fps"][name] = round(preset.clock_hz / cycles, 1)
            figures["effective_macs_per_s"][name] = round(macs * preset.clock_hz / cycles)
    return figures


def add(report: Path, label: str, figures: dict) -> None:
    rows = json.loads(report.read_text()) if report.exists() else {}
    rows[label] = rows.get(label, {}) | figures
    report.write_text(json.dumps(dict(sorted(rows.items())), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = boards(ECP5Flow)
    parser.add_argument("--output", type=Path, required=True, help="report (JSON), which is added to")
    parser.add_argument("--only", nargs="+", metavar="BOARD", choices=list(known), help=", ".join(known))
    parser.add_argument("--speed-only", action="store_true", help="build nothing")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the networks")
    arguments = parser.parse_args()
    failed = []
    for label in arguments.only or known:
        board, device = known[label]
        if not arguments.speed_only:
            command = [sys.executable, "-m", "sentei.host.commands.cli", "build", board.name, "--device", device]
            if subprocess.run([*command, "--report", str(arguments.output)]).returncode:
                failed.append(label)
                continue
        with step(f"{label}: networks' cycles"):
            figures = speed(board, device, arguments.models)
        preset = board.devices[device]
        macs = preset.geometry.lanes * preset.geometry.columns
        add(arguments.output, label, {"macs": macs, "macs_per_s": macs * preset.clock_hz} | figures)
    if failed:
        say(f"not built: {', '.join(failed)}", style="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
