"""Finds or builds what a program runs on.

A target is one of

    sim              the Verilated SoC, built on first use and kept under build/sim
    OVERLAY          the path of an overlay's directory or manifest
    OVERLAY:PORT     the same on a board that is no PYNQ, behind its serial port (see driver/serial_link.py)
    predict          where only cycles are asked for: the SoC with the engine's control alone
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from sentei.driver import SenteiOverlay
from sentei.overlay.errors import BuildError, InputError
from sentei.overlay.geometry import PRESETS, Geometry
from sentei.overlay.manifest import MEMORY_MODELS, Manifest

OVERLAY = "overlay: "  # how the last line of a build begins
FURTHER = "... "


def geometry_named(name: str) -> Geometry:
    """Preset geometry of that name, or that of an overlay's directory."""
    if name in PRESETS:
        return PRESETS[name]
    if Path(name).is_dir():
        return Manifest.load(name).geometry
    raise BuildError(f"geometry must be one of {', '.join(PRESETS)}, or an overlay's directory, not {name!r}")


def build_simulator(geometry: str = "32x32", memory: str = "zynq-hp", control: bool = False) -> Path:
    """Directory of the Verilated SoC; builds it if it is not there or not up to date (one to three minutes).

    `control`: with the engine's control alone, which spends the same cycles and computes nothing.
    """
    geometry_named(geometry)
    if memory not in MEMORY_MODELS:
        raise BuildError(f"memory must be one of {', '.join(MEMORY_MODELS)}, not {memory!r}")
    directory = Path("build/sim") / (f"{geometry}-{memory}" + ("-control" if control else ""))
    # The gateware's tools are not imported here: they are not there on a board.
    command = [sys.executable, "-m", "sentei.boards.sim"]
    command += ["--geometry", geometry, "--memory", memory, "--output", str(directory)]
    command += ["--technology", "control"] if control else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()[-5:]
        raise BuildError(f"building the {geometry} simulator failed:\n" + "\n".join(said))
    return directory


def build_board(arguments: list[str], step: Callable) -> Path:
    """Build a board's overlay as `python -m sentei.boards ARGUMENTS` does, each step in the context `step(text)`.

    Returns its directory. BuildError with what the build says.
    """
    command = [sys.executable, "-m", "sentei.boards", *arguments]
    said = ""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ExitStack() as under_way,
    ):
        show = None
        for line in process.stdout or ():
            said = line.strip()
            if said.startswith(FURTHER):
                if show is not None:
                    show(text=said.removeprefix(FURTHER))
                continue
            under_way.close()
            if not said.startswith(OVERLAY):
                show = under_way.enter_context(step(said))
        if process.wait():
            errors.seek(0)
            raise BuildError(errors.read().strip())
    return Path(said.removeprefix(OVERLAY))


def open_target(target: str, geometry: str = "32x32", memory: str = "zynq-hp", results: bool = True) -> SenteiOverlay:
    """The overlay behind `target`; `geometry` and `memory` choose the simulator.

    `results`: whether more than cycles is wanted. InputError if the target computes none.
    """
    if target == "predict" and results:
        raise InputError("the target 'predict' counts cycles and computes nothing; use 'sim'")
    if target in ("sim", "predict"):
        return SenteiOverlay(build_simulator(geometry, memory, control=target == "predict"))
    directory, separator, port = target.partition(":")
    if separator:
        from sentei.driver.bridge import BridgeDevice

        return SenteiOverlay(directory, device=BridgeDevice(directory, port))
    return SenteiOverlay(target)
