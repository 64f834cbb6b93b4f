"""Finds or builds what a program runs on.

A target is `sim` (the Verilated SoC, built on first use and kept under build/sim) or the path of an overlay's directory
or manifest; or, where only cycles are asked for, `predict`: the SoC with the engine's control alone.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sentei.driver import SenteiOverlay
from sentei.overlay.errors import InputError, SenteiError
from sentei.overlay.geometry import PRESETS, Geometry
from sentei.overlay.manifest import MEMORY_MODELS


class BuildError(SenteiError):
    """Building an overlay failed; the text ends with what the build said last."""


def geometry_named(name: str) -> Geometry:
    """Preset geometry of that name."""
    if name not in PRESETS:
        raise BuildError(f"geometry must be one of {', '.join(PRESETS)}, not {name!r}")
    return PRESETS[name]


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
    command += ["--control"] if control else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()[-5:]
        raise BuildError(f"building the {geometry} simulator failed:\n" + "\n".join(said))
    return directory


def open_target(target: str, geometry: str = "32x32", memory: str = "zynq-hp", results: bool = True) -> SenteiOverlay:
    """The overlay behind `target`; `geometry` and `memory` choose the simulator.

    `results`: whether more than cycles is wanted. InputError if the target computes none.
    """
    if target == "predict" and results:
        raise InputError("the target 'predict' counts cycles and computes nothing; use 'sim'")
    if target in ("sim", "predict"):
        return SenteiOverlay(build_simulator(geometry, memory, control=target == "predict"))
    return SenteiOverlay(Path(target))
