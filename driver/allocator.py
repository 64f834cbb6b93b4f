"""Hands out pieces of a device's main memory: first fit, neighbours joined when freed."""

from __future__ import annotations

from sentei.driver.errors import OutOfMemoryError
from sentei.overlay.geometry import ALIGNMENT_BYTES


class Allocator:
    """Offsets from 0 to `size_bytes`. What is free is kept as (offset, length), lowest first."""

    def __init__(self, size_bytes: int):
        self.size_bytes = size_bytes
        self._free = [(0, size_bytes)]

    @property
    def free_bytes(self) -> int:
        return sum(length for _, length in self._free)

    def allocate(self, length: int) -> int:
        """Offset of a piece of at least `length` bytes; OutOfMemoryError if no piece is that large."""
        rounded = max(1, -(-length // ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
        for index, (offset, available) in enumerate(self._free):
            if available >= rounded:
                rest = [(offset + rounded, available - rounded)] if available > rounded else []
                self._free[index : index + 1] = rest
                return offset
        largest = max((available for _, available in self._free), default=0)
        raise OutOfMemoryError(
            f"a buffer must have at most {largest} bytes, not {length}: main memory has {self.size_bytes} bytes, "
            f"{self.free_bytes} of them free; delete buffers, or build an overlay with more memory"
        )

    def free(self, offset: int, length: int) -> None:
        """Give back what `allocate(length)` returned."""
        rounded = max(1, -(-length // ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
        joined: list[tuple[int, int]] = []
        for start, size in sorted([*self._free, (offset, rounded)]):
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((start, size))
        self._free = joined
