"""Fixtures that build simulators once and share them: they stay under build/sim until their sources change."""

import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def _manifest(geometry, memory: str, control: bool) -> Path:
    from sentei.boards.sim import build
    from sentei.gateware.control import ControlEngine
    from sentei.overlay.instructions import fingerprint

    name = geometry if isinstance(geometry, str) else f"{fingerprint(geometry):08x}"
    directory = ROOT / "build" / "sim" / (f"{name}-{memory}" + ("-control" if control else ""))
    return build(geometry, memory, directory, ControlEngine if control else None)


@pytest.fixture(scope="session")
def overlay_path():
    """overlay_path(geometry="8x8", memory="zynq-hp", control=False): manifest of a built simulator.

    The geometry is a preset's name or a Geometry; `control`: with the engine's control alone.
    """

    def build(geometry="8x8", memory: str = "zynq-hp", control: bool = False) -> Path:
        return _manifest(geometry, memory, control)

    return build
