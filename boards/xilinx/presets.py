"""What is built for each 7 series device: the engine's geometry, how many DSPs it has, and its clock."""

from __future__ import annotations

from dataclasses import replace

from sentei.boards.flow import Device
from sentei.gateware.soc.dram import DDR3_BUS_BITS
from sentei.overlay.geometry import PRESETS

GEOMETRY = replace(
    PRESETS["32x32"],
    activation_words=4096,
    stream_words=2048,
    tile_entries=512,
    tap_entries=512,
    mask_entries=512,
    channel_entries=512,
    instruction_words=512,
    profile_entries=64,
)
# For nextpnr-xilinx, which is no match for Vivado: half of the array, and most of the device left free.
OPENXC7_7020 = Device(replace(GEOMETRY, columns=16, groups=2, requantizers=1), multipliers=128, clock_hz=50_000_000)
DEVICES = {
    "7020": Device(GEOMETRY, multipliers=208, clock_hz=100_000_000),
    "100T": Device(replace(GEOMETRY, bus_bits=DDR3_BUS_BITS), multipliers=240, clock_hz=100_000_000),
}
