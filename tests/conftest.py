"""Fixtures that build simulators once and share them: they stay under build/sim until their sources change."""

import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def _manifest(geometry: str, memory: str) -> Path:
    from sentei.boards.sim import build

    return build(geometry, memory, ROOT / "build" / "sim" / f"{geometry}-{memory}")


@pytest.fixture(scope="session")
def overlay_path():
    """overlay_path(geometry="8x8", memory="zynq-hp"): manifest of a built simulator."""

    def build(geometry: str = "8x8", memory: str = "zynq-hp") -> Path:
        return _manifest(geometry, memory)

    return build
