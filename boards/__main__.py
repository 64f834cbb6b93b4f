"""Builds a board's overlay in a process of its own: `sentei build` runs it, as other parts do not import gateware.

    python -m sentei.boards ulx3s --device 85F --output build/ulx3s-85F

prints a line when a step begins, "... TEXT" when it is further, "overlay: DIRECTORY" at the end, and errors to stderr.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sentei.boards import BOARDS, board_named
from sentei.overlay.errors import InputError, SenteiError
from sentei.overlay.manifest import Manifest, sha256_of


def add_bitstream(directory: Path, bit: Path) -> None:
    """Make `bit`, which was made from the project in `directory`, the overlay's."""
    manifest = Manifest.load(directory)
    if not bit.is_file():
        raise InputError(f"{bit}: there is no such file")
    target = manifest.directory / "sentei.bit"
    shutil.copy(bit, target)
    files = manifest.files | {"bit": {"name": target.name, "sha256": sha256_of(target)}}
    replace(manifest, files=files).save()


@contextmanager
def stage(text: str):
    print(text, flush=True)
    yield lambda progress: print(f"... {progress}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", help=", ".join(BOARDS))
    parser.add_argument("--device", help="which FPGA the board has, if it comes with several")
    parser.add_argument("--output", type=Path, help="folder (default: the board's own)")
    parser.add_argument("--seed", type=int, default=1, help="of the placement")
    parser.add_argument("--flow", help="other tools than the board's own: openxc7, on a PYNQ")
    parser.add_argument("--clock", type=float, help="MHz (default: the preset's)")
    parser.add_argument("--report", type=Path, help="file of the boards' figures (JSON) to add these to")
    parser.add_argument("--bit", type=Path, help="build nothing, but add this bitstream of the project")
    arguments = parser.parse_args()
    try:
        board = board_named(arguments.board)
        if arguments.flow is not None:
            board = board.with_flow(arguments.flow)
        device = arguments.device or (next(iter(board.devices)) if len(board.devices) == 1 else None)
        if device not in board.devices:
            raise InputError(f"{arguments.board}: --device must be one of {', '.join(board.devices)}, not {device}")
        if arguments.clock is not None:
            board = board.at_clock(device, round(arguments.clock * 1e6))
        directory = arguments.output or board.directory(device)
        if arguments.bit is not None:
            add_bitstream(directory, arguments.bit)
        else:
            figures = board.build(device, directory, arguments.seed, stage)
            if arguments.report is not None:
                rows = json.loads(arguments.report.read_text()) if arguments.report.exists() else {}
                rows[board.label(device)] = figures
                arguments.report.write_text(json.dumps(dict(sorted(rows.items())), indent=2) + "\n")
    except SenteiError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"overlay: {directory}")


if __name__ == "__main__":
    main()
