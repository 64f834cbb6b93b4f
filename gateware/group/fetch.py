"""Fetches a group's words: walks the steps of each tile, tile after tile, task after task, run after run.

    run --> next header's 2 words --> steps of tile 0 | steps of tile 1 | ... | steps of the last tile
                                                                                  ^ behind the first of them, the
                                                                                    next task's header is fetched

A word comes to the issue point FETCH_LATENCY cycles after its address. Everything up to there moves on together: if
`advance` is 0, it stands still. Only steps and empty tasks may be made to wait there, headers pass.
"""

from functools import reduce
from itertools import pairwise
from operator import or_

from migen import *
from migen.genlib.fsm import FSM, NextState, NextValue
from migen.genlib.record import Record

from sentei.gateware.memory.table import TABLE_LATENCY, Table
from sentei.gateware.record import record_of
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import EPOCH_BITS, HEADER0, HEADER1, HEADER_WORDS

FETCH_LATENCY = TABLE_LATENCY + 1  # address to issue point: one cycle to work out what the step waits for
RUN_QUEUE_DEPTH = 4


def run_layout(geometry: Geometry):
    """A run: where the stream starts (`resume`: where the last run stopped), the epoch of the picture's start, and
    whether to stop at the end of a layer."""
    return [("address", bits_for(geometry.stream_words - 1)), ("resume", 1), ("layer", 1), ("epoch", EPOCH_BITS)]


class Word:
    """What is said of each word on its way to the issue point."""

    STEP, HEADER0, HEADER1, EMPTY = range(4)
    LAYOUT = (
        ("valid", 1),
        ("kind", 2),
        ("first", 1),  # the task's first word: the task changes here
        ("starts_run", 1),
        ("ends_layer", 1),
    )


class NextHeader(Module):
    """The header of the task to come: `first` and `second` take its words as they pass the issue point (`here` says
    what `word` is). `ready` rises when both are there, and falls when the task begins: `taken`."""

    def __init__(self, here: Record, word):
        self.first, self.second = record_of(HEADER0), record_of(HEADER1)
        self.ready = Signal()
        self.taken = Signal()

        # # #

        self.sync += [
            If(self.taken, self.ready.eq(0)),
            If(here.valid & (here.kind == Word.HEADER0), self.first.raw_bits().eq(word)),
            If(here.valid & (here.kind == Word.HEADER1), self.second.raw_bits().eq(word), self.ready.eq(1)),
        ]


class Position:
    """Where in the stream the walk is."""

    def __init__(self, geometry: Geometry):
        self.next_header = Signal(max=geometry.stream_words)
        self.first_step = Signal(max=geometry.stream_words)
        self.word = Signal(max=geometry.stream_words)
        self.steps = Signal(HEADER1["steps"].width)  # of a tile
        self.left = Signal.like(self.steps)  # steps of this tile to go, this one included
        self.first, self.last = Signal(), Signal()  # of the tile's steps
        self.tiles = Signal(HEADER0["tiles"].width)  # to go, this one included
        self.last_tile = Signal()
        self.tile = Signal(max=geometry.tile_entries)
        self.first_tile = Signal()  # still in the task's first tile
        self.starts_run = Signal()
        self.ends_layer, self.ends_run = Signal(), Signal()


class Fetch(Module):
    """Does the runs of `runs`, an Endpoint of `run_layout`, which is ready when the run is read to its end.

    `stream` and `tiles` are the tables to read. At the issue point stand `word` and its tile's entry `tile`, and `here`
    says what they are; `soon` says it of the tables' data, which come there next. `header` is the NextHeader,
    `run_epoch` the run's epoch, less 1, from its first header on. `idle`: there is nothing to do.
    """

    def __init__(self, geometry: Geometry, runs, stream: Table, tiles: Table):
        self.advance = Signal()
        self.soon, self.here = Record(Word.LAYOUT), Record(Word.LAYOUT)
        self.word = Signal.like(stream.data, reset_less=True)
        self.tile = Signal.like(tiles.data, reset_less=True)
        self.run_epoch = Signal(EPOCH_BITS)
        self.idle = Signal()

        # # #

        self.runs, self.position = runs, Position(geometry)
        self.submodules.header = NextHeader(self.here, self.word)
        self.fetched = fetched = Record(Word.LAYOUT)
        self.address = Signal(max=geometry.stream_words)
        self.comb += [
            stream.address.eq(self.address),
            stream.enable.eq(self.advance),
            tiles.address.eq(self.position.tile),
            tiles.enable.eq(self.advance),
        ]
        self.submodules.fsm = fsm = FSM(reset_state="IDLE")
        self._read_headers(fsm)
        self._read_steps(fsm)
        way = [fetched, *(Record(Word.LAYOUT) for _ in range(FETCH_LATENCY - 2)), self.soon, self.here]
        self.sync += [
            If(
                self.advance,
                self.word.eq(stream.data),
                self.tile.eq(tiles.data),
                *[after.eq(before) for before, after in pairwise(way)],
            ),
            If(fsm.ongoing("HEADER1") & self.position.starts_run & self.advance, self.run_epoch.eq(runs.epoch - 1)),
        ]
        under_way = reduce(or_, [word.valid for word in way[1:]])
        self.comb += self.idle.eq(fsm.ongoing("IDLE") & ~runs.valid & ~under_way)

    def _begin(self):
        """The task whose header is there begins."""
        position, header = self.position, self.header
        steps = position.next_header + HEADER_WORDS
        return [
            header.taken.eq(1),
            NextValue(position.tiles, header.first.tiles),
            NextValue(position.tile, header.first.tile),
            NextValue(position.steps, header.second.steps),
            NextValue(position.left, header.second.steps),
            NextValue(position.last, (header.second.steps == 1) | (header.first.tiles == 0)),
            NextValue(position.last_tile, header.first.tiles <= 1),
            NextValue(position.ends_layer, header.first.layer),
            NextValue(position.ends_run, header.first.last | (header.first.layer & self.runs.layer)),
            NextValue(position.first_step, steps),
            NextValue(position.word, steps),
            NextValue(position.next_header, steps + Mux(header.first.tiles == 0, 0, header.second.steps)),
            NextValue(position.first, 1),
            NextValue(position.first_tile, 1),
            NextState("STEPS"),
        ]

    def _read_headers(self, fsm: FSM):
        position, runs, fetched = self.position, self.runs, self.fetched
        fsm.act(
            "IDLE",
            NextValue(position.starts_run, 1),
            NextValue(position.ends_run, 0),
            NextValue(position.first, 1),
            If(
                runs.valid & self.advance,
                If(~runs.resume, NextValue(position.next_header, runs.address)),
                NextState("HEADER0"),
            ),
        )
        fsm.act(
            "HEADER0",
            fetched.valid.eq(1),
            self.address.eq(position.next_header),
            fetched.kind.eq(Word.HEADER0),
            If(self.advance, NextState("HEADER1")),
        )
        # A task of one step (or none) has nothing to fetch behind the header: its first step has come round.
        fsm.act(
            "HEADER1",
            fetched.valid.eq(1),
            self.address.eq(position.next_header + 1),
            fetched.kind.eq(Word.HEADER1),
            If(self.advance, If(position.first, NextState("SWITCH")).Else(NextState("STEPS"))),
        )
        fsm.act("SWITCH", If(self.advance & self.header.ready, *self._begin()))

    def _read_steps(self, fsm: FSM):
        position, fetched = self.position, self.fetched
        fsm.act(
            "STEPS",
            fetched.valid.eq(1),
            self.address.eq(position.word),
            fetched.kind.eq(Mux(position.tiles == 0, Word.EMPTY, Word.STEP)),
            fetched.first.eq(position.first_tile & position.first),
            fetched.starts_run.eq(position.starts_run),
            fetched.ends_layer.eq(position.ends_layer & position.last_tile & position.last),
            If(
                self.advance,
                NextValue(position.word, position.word + 1),
                NextValue(position.starts_run, 0),
                If(
                    position.last,
                    NextValue(position.left, position.steps),
                    NextValue(position.first, 1),
                    NextValue(position.last, position.steps == 1),
                    NextValue(position.first_tile, 0),
                    If(
                        ~position.last_tile,
                        NextValue(position.word, position.first_step),
                        NextValue(position.tiles, position.tiles - 1),
                        NextValue(position.last_tile, position.tiles == 2),
                        NextValue(position.tile, position.tile + 1),
                    ),
                ).Else(
                    NextValue(position.left, position.left - 1),
                    NextValue(position.first, 0),
                    NextValue(position.last, position.left == 2),
                ),
                If(
                    position.last_tile & position.first & ~position.ends_run,
                    NextState("HEADER0"),
                ).Elif(
                    position.last_tile & position.last,
                    If(position.ends_run, self.runs.ready.eq(1), NextState("IDLE"))
                    .Elif(self.header.ready, *self._begin())
                    .Else(NextState("SWITCH")),
                ),
            ),
        )
