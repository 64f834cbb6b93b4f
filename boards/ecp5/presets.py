"""What is built for each ECP5: the engine's geometry, how many multipliers it has, and its clock.

The array of each is the largest whose clock was met (reports/boards.json). docs/boards.md has the measurements.
"""

from __future__ import annotations

from dataclasses import replace

from sentei.boards.flow import Device
from sentei.gateware.soc.dram import DDR3_BUS_BITS
from sentei.overlay.geometry import Geometry

# 32x32 with memories that leave EBRs of an LFE5U-85F to the rest of the SoC; it fits, but nothing routes it.
WHOLE = Geometry(
    activation_words=2048,
    stream_words=2048,
    tile_entries=512,
    tap_entries=512,
    mask_entries=512,
    channel_entries=512,
    instruction_words=512,
    profile_entries=64,
)
SMALL = replace(WHOLE, lanes=8, columns=8, groups=1, requantizers=1, bus_bits=32, activation_words=4096)
MEDIUM = replace(WHOLE, lanes=16, columns=16, groups=2, requantizers=1, activation_words=4096)
LARGE = replace(WHOLE, columns=16, groups=2, requantizers=1)
DEVICES = {
    "12F": Device(SMALL, multipliers=16, clock_hz=70_000_000),  # LiteDRAM's bank machines reach little more
    "25F": Device(SMALL, multipliers=16, clock_hz=70_000_000),
    "45F": Device(MEDIUM, multipliers=64, clock_hz=65_000_000),
    "85F": Device(LARGE, multipliers=128, clock_hz=50_000_000),
}


def with_ddr3(*names: str) -> dict[str, Device]:
    """Those of DEVICES, for boards with 16 bits of DDR3."""
    return {
        name: replace(DEVICES[name], geometry=replace(DEVICES[name].geometry, bus_bits=DDR3_BUS_BITS)) for name in names
    }
