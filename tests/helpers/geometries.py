"""Engines that random tests run on, besides the presets."""

from dataclasses import replace

from sentei.boards.ecp5.presets import LARGE, MEDIUM, SMALL
from sentei.overlay.geometry import PRESETS, Geometry

ODD = Geometry(
    lanes=16, columns=16, groups=1, requantizers=1, accumulator_bits=12, bus_bits=128, activation_words=16384
)  # one group of wide stream words, accumulators that overflow unless sums are cut
NARROW = Geometry(
    lanes=4, columns=32, groups=8, requantizers=8, wide_bits=32, activation_words=32768
)  # eight result buses that contend for two memory banks
PAGED = Geometry(
    lanes=8,
    columns=12,
    groups=3,
    requantizers=1,
    bus_bits=32,
    activation_words=16384,
    tile_entries=16,
    tap_entries=256,
    mask_entries=64,
    channel_entries=32,
    instruction_words=16,
)  # three groups, no power of two; tables for a part of a layer at a time, and eight instructions
LAYER_GEOMETRIES = {"8x8": PRESETS["8x8"], "32x32": PRESETS["32x32"], "odd": ODD, "narrow": NARROW, "paged": PAGED}
LAYER_GEOMETRIES |= {"12F": SMALL, "45F": MEDIUM, "85F": LARGE}

SMALL_STREAMS = replace(PRESETS["8x8"], stream_words=512, channel_entries=16)  # tables that are loaded in turn
NETWORK_GEOMETRIES = {
    "8x8": PRESETS["8x8"],
    "portable": PRESETS["8x8"],
    "32x32": PRESETS["32x32"],
    "streamed": SMALL_STREAMS,
    "little": replace(PRESETS["8x8"], activation_words=128),  # a third of the networks run in stages, or in patches
}
