"""Fixtures that build simulators once and share them: they stay under build/sim until their sources change."""

import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """What runs on a simulator is hardware."""
    for item in items:
        if "overlay_path" in item.fixturenames:
            item.add_marker("hardware")


@functools.cache
def _manifest(geometry, memory: str, engine: type | None) -> Path:
    from sentei.boards.sim import build
    from sentei.overlay.instructions import fingerprint

    name = geometry if isinstance(geometry, str) else f"{fingerprint(geometry):08x}"
    directory = f"{name}-{memory}" + (f"-{engine.__name__}" if engine else "")
    return build(geometry, memory, ROOT / "build" / "sim" / directory, engine)


@pytest.fixture(scope="session")
def overlay_path():
    """overlay_path(geometry="8x8", memory="zynq-hp", engine=None): manifest of a built simulator.

    The geometry is a preset's name or a Geometry; `engine` stands in for the one that simulators have.
    """

    def build(geometry="8x8", memory: str = "zynq-hp", engine: type | None = None) -> Path:
        return _manifest(geometry, memory, engine)

    return build
