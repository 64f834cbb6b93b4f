"""Boards by name: the modules that describe them, a short one each; README.md says how to add one."""

from __future__ import annotations

import importlib

from sentei.overlay.errors import InputError

BOARDS = {
    "sim": "sentei.boards.sim",
    "ulx3s": "sentei.boards.ecp5.ulx3s",
    "orangecrab": "sentei.boards.ecp5.orangecrab",
    "colorlight": "sentei.boards.ecp5.colorlight",
    "ecpix5": "sentei.boards.ecp5.ecpix5",
    "arty_a7": "sentei.boards.xilinx.arty_a7",
    "pynq_z1": "sentei.boards.xilinx.pynq_z1",
    "pynq_z2": "sentei.boards.xilinx.pynq_z2",
}


def board_named(name: str):
    """The Board of that name; InputError if there is none."""
    if name not in BOARDS:
        first, *others = BOARDS
        raise InputError(f"board must be {first} or one of {', '.join(others)}, not {name!r}")
    try:
        return importlib.import_module(BOARDS[name]).BOARD
    except ImportError as error:
        raise InputError(
            f"building needs a package that is not installed ({error}): pip install "
            "'sentei[sim,synthesis]', or `make setup`"
        ) from error
