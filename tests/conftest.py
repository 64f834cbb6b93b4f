"""Fixtures that build simulators once and share them: they stay under build/sim until their sources change."""

import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def _manifest(geometry, memory: str) -> Path:
    from sentei.boards.sim import build
    from sentei.overlay.instructions import fingerprint

    name = geometry if isinstance(geometry, str) else f"{fingerprint(geometry):08x}"
    return build(geometry, memory, ROOT / "build" / "sim" / f"{name}-{memory}")


@pytest.fixture(scope="session")
def overlay_path():
    """overlay_path(geometry="8x8", memory="zynq-hp"): manifest of a built simulator; a preset's name or a Geometry."""

    def build(geometry="8x8", memory: str = "zynq-hp") -> Path:
        return _manifest(geometry, memory)

    return build
