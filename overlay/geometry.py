"""Size of an engine: array, memories, bus. The one object from which gateware is generated and programs are compiled.

                 columns = groups x group_columns
          group 0          group 1             group n
        +---------+      +---------+         +---------+
lanes   |  MACs   |      |  MACs   |   ...   |  MACs   |     each group: one aligner port, one step stream
        +---------+      +---------+         +---------+
             \\___ requantizer 0 ___/              requantizer r serves groups / requantizers groups
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from sentei.overlay.errors import GeometryError

ACTIVATION_BITS = 4
WEIGHT_BITS = 4
MAX_PIXELS = 1 << 19  # what a tap's signed offset reaches
LOAD_BITS = 64  # unit of the loader: every memory's entry is a whole number of such words
ALIGNMENT_BYTES = 64  # of what lies in main memory: buffers, segments of a program, images
WIDE_BITS = 24  # of sums after the array, joined from several passes


@dataclass(frozen=True)
class Geometry:
    """Every size of an engine. Memories are counted in entries; an activation word is one nibble per lane."""

    lanes: int = 32
    columns: int = 32
    groups: int = 4
    requantizers: int = 2
    accumulator_bits: int = 16  # in the array
    wide_bits: int = WIDE_BITS  # after the array: joined sums, thresholds, logits
    search_bits: int = 23  # of the search among thresholds, which lie up to 2^(search_bits - 4) apart
    activation_words: int = 8192
    stream_words: int = 8192  # per group: task headers and steps
    tile_entries: int = 512
    tap_entries: int = 2048
    mask_entries: int = 512
    channel_entries: int = 512  # per requantizer: lines of thresholds
    instruction_words: int = 1024
    profile_entries: int = 1024
    bus_bits: int = 64  # DMA data width

    def __post_init__(self):
        def power_of_two(name: str, low: int, high: int) -> None:
            value = getattr(self, name)
            if value & (value - 1) or not low <= value <= high:
                raise GeometryError(f"{name} must be a power of two from {low} to {high}, not {value!r}")

        for name, low, high in (("columns", 2, 64), ("groups", 1, 8), ("requantizers", 1, 8)):
            if not low <= getattr(self, name) <= high:
                raise GeometryError(f"{name} must be {low} to {high}, not {getattr(self, name)!r}")
        if self.columns % self.groups:
            raise GeometryError(f"columns must be a multiple of groups ({self.groups}), not {self.columns}")
        if self.groups % self.requantizers:
            raise GeometryError(f"requantizers must divide groups ({self.groups}), not be {self.requantizers}")
        for name, low, high in (
            ("lanes", 4, 64),
            ("group_columns", 1, 64),
            ("activation_words", 64, 65536),
            ("stream_words", 64, 32768),
            ("tile_entries", 16, 32768),
            ("tap_entries", 16, 32768),
            ("mask_entries", 16, 4096),
            ("channel_entries", 8, 4096),
            ("instruction_words", 16, 32768),
            ("profile_entries", 8, 4096),
            ("bus_bits", 32, 128),
        ):
            power_of_two(name, low, high)
        if self.lanes * self.activation_words > MAX_PIXELS:
            raise GeometryError(
                f"lanes * activation_words must be at most {MAX_PIXELS}, not {self.lanes * self.activation_words}"
            )
        if not 12 <= self.accumulator_bits <= self.wide_bits:
            raise GeometryError(f"accumulator_bits must be 12 to wide_bits, not {self.accumulator_bits}")
        if not 12 <= self.search_bits < self.wide_bits:
            raise GeometryError(f"search_bits must be 12 to wide_bits - 1, not {self.search_bits}")
        if self.wide_bits % 4 or not 16 <= self.wide_bits <= 32:
            raise GeometryError(f"wide_bits must be a multiple of 4 from 16 to 32, not {self.wide_bits}")

    @property
    def group_columns(self) -> int:
        """Columns of one group: output channels that share a step."""
        return self.columns // self.groups

    @property
    def groups_per_requantizer(self) -> int:
        return self.groups // self.requantizers

    @property
    def array_macs(self) -> int:
        """MACs in one array cycle."""
        return self.lanes * self.columns

    @property
    def word_bytes(self) -> int:
        """Bytes of one activation word in main memory."""
        return self.load_words_per_activation * LOAD_BITS // 8

    @property
    def load_words_per_activation(self) -> int:
        return -(-self.lanes * ACTIVATION_BITS // LOAD_BITS)

    @property
    def wide_nibbles(self) -> int:
        """Planes of nibbles that hold one wide (accumulator) plane."""
        return self.wide_bits // ACTIVATION_BITS

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.lanes}x{self.columns}, {self.groups} groups"


PRESETS = {
    "32x32": Geometry(),
    "16x16": Geometry(lanes=16, columns=16, groups=2, requantizers=1, activation_words=8192),
    "8x8": Geometry(lanes=8, columns=8, groups=2, requantizers=2, bus_bits=32, activation_words=16384),
}


def fingerprint_of(geometry: Geometry, tables: object) -> int:
    """32-bit identity of a geometry together with the field tables (anything JSON can hold)."""
    text = json.dumps([geometry.to_dict(), tables], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
