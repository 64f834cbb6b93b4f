"""Formats that the engine reads: instructions, task headers, steps, and the entries of its tables.

The sequencer carries out *instructions*: move data, run, end. A RUN sends every group through the *tasks* in its own
*stream*; the sequencer goes on at once, to the next picture's instructions too:

    header (2 words) | step | step | ... | step(last) | header | step ...

A task computes one block of `group_columns` output channels over a list of tiles; its steps are replayed for each tile.
One step is one array cycle: it multiplies the vector at (plane, tap, tile) with one weight for each column. Where a
step reads is found through three small tables, so that padding, strides and map sizes cost no logic and no cycle:

    tile  -> row of taps, word of the input plane, word of the output plane
    tap   -> offset in pixels from that word, row of masks       (address: tile.taps + step.tap)
    mask  -> which lanes lie inside the map; the others read `pad`

Groups go through their tasks each at its own pace. What keeps them together are *epochs*: a picture is divided into
sections, every group counts the sections of which it has written all results, and a tile (or a step) waits until all
groups have reached the epoch in which what it reads was written. Epochs count on from picture to picture, modulo
2^EPOCH_BITS; none may be ahead of another by half of that.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from sentei.overlay.fields import Layout
from sentei.overlay.geometry import ACTIVATION_BITS, LOAD_BITS, WEIGHT_BITS, Geometry, fingerprint_of

FORMAT_VERSION = 4
NIBBLE_SHIFT = 4  # joining nibble passes: partial * 16 + accumulator
EPOCH_BITS = 10

# Requantizing (gateware/technologies/lanes.py): a binary search among 31 thresholds, of which the first step compares
# with the 16th.
SEARCH_LEVELS = 4  # steps after the first
THRESHOLDS = (2 << SEARCH_LEVELS) - 1
CARRY_BITS = (2 << SEARCH_LEVELS) - 2
NO_RESIDUAL = 8  # the nibble that is added where there is no residual
LANE_SUM_BITS = 5  # of each lane's sum, where all lanes are summed


class Opcode(IntEnum):
    END = 0  # the picture's last instruction: the job ends when all its STOREs have
    SYNC = 1  # wait for what `units` names
    LOAD = 2  # main memory -> on-chip memory; returns at once, the next LOAD waits for it
    STORE = 3  # activation memory -> main memory, when the epoch is reached; returns at once
    RUN = 4  # queue a run for all groups, or some
    PAGE = 5  # main memory -> the sequencer's own memory: go on with other instructions


class Until(IntFlag):
    """What a SYNC waits for."""

    EPOCH = 1  # all groups have reached `epoch`
    LOADED = 2  # no LOAD is under way
    STORED = 4  # no STORE is under way or waits
    RUNS = 8  # no group (of some) has more than `count` runs to do
    WRITTEN = 16  # no result is under way to the activation memory


EVERYTHING = Until.LOADED | Until.STORED | Until.RUNS | Until.WRITTEN


class Start(IntFlag):
    """`units` of a RUN."""

    RESUME = 1  # start where the group's last run stopped instead of at `address`
    LAYER = 2  # stop at the end of the layer


class Memory(IntEnum):
    """Destination of a LOAD."""

    ACTIVATION = 0
    STREAM = 1
    TILE = 2
    TAP = 3
    MASK = 4
    CHANNEL = 5
    WEIGHTS = 6  # of two steps of the stream at a time; their control stays


class Base(IntEnum):
    """Register that a LOAD or STORE adds its offset to."""

    PROGRAM = 0
    INPUT = 1
    OUTPUT = 2


INSTRUCTION = Layout(
    "instruction",
    ("opcode", 4, "Opcode"),
    ("memory", 4, "LOAD: Memory"),
    (
        "units",
        8,
        "LOAD: a bit for each group (STREAM, WEIGHTS) or requantizer (CHANNEL) that takes the data; SYNC: Until; "
        "RUN: Start",
    ),
    (
        "address",
        16,
        "LOAD, STORE: first entry of the on-chip memory (WEIGHTS: first pair of words); RUN: stream address; PAGE: "
        "instruction to go on at; SYNC: a bit for each group that RUNS is about, 0: all",
    ),
    (
        "count",
        16,
        "LOAD, STORE: entries; SYNC: runs; END: sections of the picture; PAGE: 64-bit words; RUN: a bit for each group "
        "that it is for, 0: all",
    ),
    ("epoch", 16, "from the picture's start; SYNC, STORE: to wait for; RUN: that the first task counts from"),
    ("offset", 32, "LOAD, STORE, PAGE: bytes from the base, a multiple of 8"),
    ("base", 2, "LOAD, STORE, PAGE: Base"),
)
INSTRUCTION_LOAD_WORDS = 2

HEADER_WORDS = 2  # stream words of a task's header
HEADER0 = Layout(
    "header0",
    ("tile", 15, "first tile"),
    ("tiles", 15, "number of tiles; 0: the task has no steps and passes as many sections as `steps` says"),
    ("channel", 12, "first entry of the channel table"),
    ("columns", 7, "columns that hold results, from column 0"),
    ("residual", 1, "1: add a residual"),
    ("reduce", 1, "1: sum all lanes; the result is lane 0"),
    ("wide", 1, "1: hand the sums out whole, as planes of nibbles"),
    ("signal", 1, "1: tiles that carry `signal` end a section"),
    ("layer", 1, "1: the layer's last task"),
    ("last", 1, "1: the run's last task"),
    ("epoch", 6, "epochs to wait for, more than the task before (the run's first: than the picture's first)"),
)
HEADER1 = Layout(
    "header1",
    ("output", 16, "word of the first output plane; wide: of the first channel's highest nibble"),
    ("stride", 14, "words from one column's output plane to the next"),
    (
        "residual",
        16,
        "word of the first residual plane; wide: words from one nibble's last plane to the next "
        "lower nibble's first, modulo 2^16",
    ),
    ("steps", 13, "steps of one tile"),
    ("late", 5, "epochs that steps with `late` wait for on top"),
)
STEP = Layout(
    "step",
    ("plane", 16, "word of the input plane"),
    ("tap", 7, "row of the tile's taps"),
    ("last", 1, "the tile's last step"),
    ("join", 1, "last step of a pass that is not the last: keep the sum as partial"),
    ("shift", 1, "at the end of a pass: the partial counts 16 times"),
    ("pad", ACTIVATION_BITS, "what lanes outside the map read"),
    ("maximum", 1, "take the maximum of the vectors instead of multiplying"),
    ("late", 1, "wait for the header's `late` epochs too"),
)
STEP_WEIGHTS_OFFSET = 32  # bit of a stream word where the weights start, column 0 lowest

TILE = Layout(
    "tile",
    ("taps", 16, "first entry of its row of taps"),
    ("input", 16, "word of the input plane"),
    ("output", 16, "word of the output plane"),
    ("epoch", 6, "epochs to wait for, more than the task's"),
    ("signal", 1, "1: ends a section, in tasks with `signal`"),
)
TAP = Layout("tap", ("offset", -20, "pixels from the tile's input word"), ("mask", 12, "entry of the mask table"))


def mask_layout(geometry: Geometry) -> Layout:
    return Layout("mask", ("lanes", geometry.lanes, "a bit for each lane: 1 inside the map"))


def channel_layout(geometry: Geometry) -> Layout:
    """Entry of the channel table: how a sum becomes a nibble."""
    return Layout(
        "channel",
        ("constant", -geometry.wide_bits, "threshold 16, or one pass's share of it"),
        ("distance", geometry.search_bits - 1, "from threshold 16 to threshold 24, or 1 less"),
        ("carries", CARRY_BITS, "of the search's four steps: 2, 4, 8 and 16 bits"),
        ("late_odd", 1, "1: the last step's distance down is 1 less"),
        ("late_even", 1, "1: the last step's distance up is 1 less"),
        ("low", ACTIVATION_BITS, "smallest result"),
        ("span", ACTIVATION_BITS, "largest result, less the smallest"),
        ("flip", 1, "1: results fall as the sum rises"),
    )


def stream_bits(geometry: Geometry) -> int:
    """Width of a stream word."""
    return -(-(STEP_WEIGHTS_OFFSET + WEIGHT_BITS * geometry.group_columns) // LOAD_BITS) * LOAD_BITS


def load_words(memory: Memory, geometry: Geometry) -> int:
    """64-bit words that one entry of `memory` occupies in main memory."""
    bits = {
        Memory.ACTIVATION: ACTIVATION_BITS * geometry.lanes,
        Memory.STREAM: stream_bits(geometry),
        Memory.TILE: TILE.width,
        Memory.TAP: TAP.width,
        Memory.MASK: geometry.lanes,
        Memory.CHANNEL: channel_layout(geometry).width,
        Memory.WEIGHTS: 2 * WEIGHT_BITS * geometry.group_columns,
    }[memory]
    return -(-bits // LOAD_BITS)


def entries(memory: Memory, geometry: Geometry) -> int:
    """Entries that `memory` has."""
    return {
        Memory.ACTIVATION: geometry.activation_words,
        Memory.STREAM: geometry.stream_words,
        Memory.TILE: geometry.tile_entries,
        Memory.TAP: geometry.tap_entries,
        Memory.MASK: geometry.mask_entries,
        Memory.CHANNEL: geometry.channel_entries,
        Memory.WEIGHTS: geometry.stream_words // 2,
    }[memory]


def fingerprint(geometry: Geometry) -> int:
    """32-bit identity of an engine: its geometry, its formats and its registers."""
    from sentei.overlay.registers import PROFILE_WORDS, REGISTERS

    layouts = [INSTRUCTION, HEADER0, HEADER1, STEP, TILE, TAP, mask_layout(geometry), channel_layout(geometry)]
    tables = [
        FORMAT_VERSION,
        [layout.bits() for layout in layouts],
        [list(map(str, enum)) for enum in (Opcode, Memory, Base)],
        [(r.name, r.offset, r.layout.bits() if r.layout else None) for r in REGISTERS.values()],
        PROFILE_WORDS,
    ]
    return fingerprint_of(geometry, tables)
