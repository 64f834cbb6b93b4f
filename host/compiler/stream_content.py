"""What a group's stream memory holds, and the least that has to be loaded to change it.

Where steps are replaced by steps that read the same and have other weights, as those of a dense layer's next block, the
weights of two steps are loaded at a time:

    control  header  a b c d e f                 control  header  a b c d e f
    weights  header  . . . . . .     becomes     weights  header  , , , , , ,     |header|, ,|, ,|, ,|
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sentei.overlay.geometry import LOAD_BITS, WEIGHT_BITS, Geometry
from sentei.overlay.instructions import STEP_WEIGHTS_OFFSET, Memory, load_words, stream_bits

FEWEST_PAIRS = 64  # that are loaded so: a LOAD more takes some ten cycles


class StreamContent:
    """A group's stream memory: what is known of it."""

    def __init__(self, geometry: Geometry):
        self.bytes = stream_bits(geometry) // 8
        self.control = STEP_WEIGHTS_OFFSET // 8
        self.weights = WEIGHT_BITS * geometry.group_columns // 8  # bytes; 0 if a step's are no whole ones
        self.pair_bytes = load_words(Memory.WEIGHTS, geometry) * LOAD_BITS // 8
        self.worth = WEIGHT_BITS * geometry.group_columns % 8 == 0 and self.pair_bytes < 2 * self.bytes
        self.words = np.zeros((geometry.stream_words, self.bytes), np.uint8)
        self.known = np.zeros(geometry.stream_words, bool)

    def replaced(self, address: int, stream: bytes) -> Iterator[tuple[Memory, int, bytes]]:
        """The loads that bring `stream` to `address`: memory, first entry, content."""
        words = np.frombuffer(stream, np.uint8).reshape(-1, self.bytes)
        place = slice(address, address + len(words))
        alike = self.known[place] & (self.words[place, : self.control] == words[:, : self.control]).all(1)
        alike &= ~words[:, self.control + self.weights :].any(1)
        self.words[place], self.known[place] = words, True
        begin = 0
        for first, last in self._pairs(alike, address):
            if begin < first:
                yield Memory.STREAM, address + begin, words[begin:first].tobytes()
            yield Memory.WEIGHTS, (address + first) // 2, self._packed(words[first:last])
            begin = last
        if begin < len(words):
            yield Memory.STREAM, address + begin, words[begin:].tobytes()

    def _pairs(self, alike: np.ndarray, address: int) -> Iterator[tuple[int, int]]:
        """Ranges of words that are worth to be loaded by pairs, which begin at even addresses."""
        if not self.worth:
            return
        edges = np.flatnonzero(np.diff(alike, prepend=False, append=False))
        for first, last in edges.reshape(-1, 2).tolist():
            first += (address + first) % 2
            last -= (address + last) % 2
            if last - first >= 2 * FEWEST_PAIRS:
                yield first, last

    def _packed(self, words: np.ndarray) -> bytes:
        weights = words[:, self.control : self.control + self.weights].reshape(len(words) // 2, -1)
        packed = np.zeros((len(weights), self.pair_bytes), np.uint8)
        packed[:, : weights.shape[1]] = weights
        return packed.tobytes()
