"""Loads that replace what a stream memory holds: the memory then has what is wanted, and no more is moved than it
takes."""

from __future__ import annotations

import numpy as np
import pytest

from sentei.host.compiler import plan as planning
from sentei.host.compiler.plan import StreamContent
from sentei.overlay.geometry import LOAD_BITS, WEIGHT_BITS, Geometry
from sentei.overlay.instructions import STEP_WEIGHTS_OFFSET, Memory, load_words, stream_bits

SEED = 20211206
CONTROL = STEP_WEIGHTS_OFFSET // 8


class StreamMemory:
    """A group's stream memory as the gateware has it (gateware/memory/table.py)."""

    def __init__(self, geometry: Geometry):
        self.geometry = geometry
        self.bytes = stream_bits(geometry) // 8
        self.words = np.full((geometry.stream_words, self.bytes), 0xAA, np.uint8)

    def load(self, memory: Memory, address: int, content: bytes) -> None:
        size = load_words(memory, self.geometry) * LOAD_BITS // 8
        entries = np.frombuffer(content, np.uint8).reshape(-1, size)
        if memory == Memory.STREAM:
            self.words[address : address + len(entries)] = entries
            return
        assert memory == Memory.WEIGHTS
        own = WEIGHT_BITS * self.geometry.group_columns // 8
        for number, entry in enumerate(entries, address):
            for half in range(2):
                self.words[2 * number + half, CONTROL:] = 0
                self.words[2 * number + half, CONTROL : CONTROL + own] = entry[half * own : (half + 1) * own]


def random_stream(rng: np.random.Generator, geometry: Geometry, words: int, control: np.ndarray | None) -> np.ndarray:
    stream = np.zeros((words, stream_bits(geometry) // 8), np.uint8)
    own = max(1, WEIGHT_BITS * geometry.group_columns // 8)
    stream[:, : CONTROL + own] = rng.integers(0, 256, (words, CONTROL + own))
    if control is not None:
        stream[:, :CONTROL] = control
    return stream


@pytest.mark.parametrize("columns", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("fewest", [1, 5])
def test_the_memory_holds_what_was_asked_for(columns, fewest, monkeypatch):
    monkeypatch.setattr(planning, "FEWEST_PAIRS", fewest)
    geometry = Geometry(columns=2 * columns, groups=2, requantizers=1, stream_words=256)
    seed = SEED + 10 * columns + fewest
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    held, memory, by_pairs = StreamContent(geometry), StreamMemory(geometry), 0
    for _ in range(60):
        words = int(rng.integers(1, 100))
        address = int(rng.integers(0, geometry.stream_words - words))
        control = memory.words[address : address + words, :CONTROL].copy() if rng.random() < 0.7 else None
        if control is not None:
            control[rng.random(words) < 0.05] ^= 1  # a header, or a step that is another
        stream = random_stream(rng, geometry, words, control)
        if rng.random() < 0.2:
            stream[int(rng.integers(words)), -1] |= 1  # more than a step's weights, where there is room
        for part in held.replaced(address, stream.tobytes()):
            memory.load(*part)
            by_pairs += part[0] == Memory.WEIGHTS
        np.testing.assert_array_equal(memory.words[address : address + words], stream)
    assert (by_pairs > 0) == (columns > 1), "weights of less than a byte are not loaded apart"


def test_the_next_block_of_a_dense_layer_takes_half(monkeypatch):
    geometry = Geometry()
    rng = np.random.default_rng(SEED)
    held = StreamContent(geometry)
    first = random_stream(rng, geometry, 1000, None)
    assert [(memory, address) for memory, address, _ in held.replaced(3, first.tobytes())] == [(Memory.STREAM, 3)]
    following = random_stream(rng, geometry, 1000, first[:, :CONTROL])
    following[:2, 0] ^= 1  # two header words
    loads = [(memory, address, len(content)) for memory, address, content in held.replaced(3, following.tobytes())]
    assert loads == [
        (Memory.STREAM, 3, 8 * 3),
        (Memory.WEIGHTS, 3, 8 * 498),
        (Memory.STREAM, 1002, 8),
    ]
