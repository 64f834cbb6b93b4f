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
def _manifest(geometry, memory: str, technology) -> Path:
    from sentei.boards.sim import build
    from sentei.gateware.technologies.technology import PACKED
    from sentei.overlay.instructions import fingerprint

    name = geometry if isinstance(geometry, str) else f"{fingerprint(geometry):08x}"
    directory = f"{name}-{memory}" if technology is PACKED else f"{name}-{memory}-{technology.name}"
    return build(geometry, memory, ROOT / "build" / "sim" / directory, technology)


@pytest.fixture(scope="session")
def overlay_path():
    """overlay_path(geometry="8x8", memory="zynq-hp", technology=PACKED): manifest of a built simulator.

    The geometry is a preset's name or a Geometry.
    """

    def build(geometry="8x8", memory: str = "zynq-hp", technology=None) -> Path:
        from sentei.gateware.technologies.technology import PACKED

        return _manifest(geometry, memory, technology or PACKED)

    return build
