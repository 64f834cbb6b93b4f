"""One group: a stream of jobs, an aligner port, and `group_columns` columns of the array.

The group reads jobs from its stream memory (see overlay/instructions.py) and issues one step a cycle, tile after tile
and job after job. The next job's header is read in the last tile of the job before it. At the issue point a step waits
until all groups have reached its epoch, and one that ends a pass until it has the result bus; only there can the group
stall. Behind it everything has a fixed latency and never waits:

    stream, tile --> issue --> tap --> mask --> aligner --> array --> columns, emptied by the requantizer
    memory           point     table   table                          when `drain` says so
                       |                                                     ^
                       +-- drain parameters ------ queue --------------------+
"""

from functools import reduce
from itertools import pairwise
from operator import and_, or_

from litex.soc.interconnect import stream
from migen import *
from migen.genlib.fifo import SyncFIFO
from migen.genlib.fsm import FSM, NextState, NextValue

from sentei.gateware.common import delay, delay_valid, fields_of
from sentei.gateware.group.aligner import Aligner
from sentei.gateware.technologies.array import GroupArray
from sentei.gateware.technologies.technology import PORTABLE, Technology
from sentei.overlay.fields import Layout
from sentei.overlay.geometry import WEIGHT_BITS, Geometry
from sentei.overlay.instructions import (
    EPOCH_BITS,
    HEADER0,
    HEADER1,
    HEADER_WORDS,
    STEP,
    STEP_WEIGHTS_OFFSET,
    TAP,
    TILE,
    stream_bits,
)

TABLE_LATENCY = 2  # memory and its output register
FETCH_LATENCY = TABLE_LATENCY + 1  # address to issue point: one cycle to work out what the step waits for
RUN_QUEUE_DEPTH = 4
TAP_DELAY = 1 + TABLE_LATENCY  # issue to tap entry: address register, table
PIXEL_DELAY = TAP_DELAY + 1  # issue to pixel address
ARRAY_DELAY = PIXEL_DELAY + Aligner.LATENCY  # issue to the array's activations
WEIGHT_DELAY = ARRAY_DELAY - GroupArray.LEAD  # issue to the array's weights
DRAIN_DELAY = ARRAY_DELAY + GroupArray.LATENCY  # issue to column 0's finished sums
DRAIN_QUEUE_DEPTH = 16  # at least DRAIN_DELAY + 1: a pass may end every cycle
assert DRAIN_QUEUE_DEPTH > DRAIN_DELAY

TRIGGER_LEAD = 2  # cycles by which the requantizer learns of finished sums before they are there

# What the requantizer needs to empty a group's columns: the header's fields, and where the tile's results go.
DRAIN = Layout(
    "drain",
    ("channel", HEADER0["channel"].width),
    ("columns", HEADER0["columns"].width),
    ("use_residual", 1),
    ("reduce", 1),
    ("wide", 1),
    ("output", HEADER1["output"].width),
    ("stride", HEADER1["stride"].width),
    ("residual", HEADER1["residual"].width),
    ("join", 1),  # keep as partial instead of requantizing
    ("accumulate", 1),  # add the partial
    ("nibble", 1),  # the partial counts 16 times
    ("maximum", 1),  # the maxima instead of the columns
    ("signal", 1),  # ends a phase
)


def result_queue_depth(geometry: Geometry) -> int:
    """Results that a requantizer may have on their way to the memory; so many that synthesis takes a block RAM."""
    return max(64, 4 * geometry.group_columns)


def run_layout(geometry: Geometry):
    """A run: where the stream starts (`resume`: where the last run stopped), the epoch of the picture's start, and
    whether to stop at the end of a layer."""
    return [("address", bits_for(geometry.stream_words - 1)), ("resume", 1), ("layer", 1), ("epoch", EPOCH_BITS)]


class Table(Module):
    """A memory with one write port and one read port; `data` shows entry `address` TABLE_LATENCY cycles later.

    With `enable` at 0 the output stands still.
    """

    def __init__(self, width: int, depth: int, name: str):
        self.write = Signal()
        self.write_address = Signal(max=depth)
        self.write_data = Signal(width)
        self.enable = Signal(reset=1)
        self.address = Signal(max=depth)
        self.data = Signal(width, reset_less=True)

        # # #

        memory = Memory(width, depth, name=name)
        write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
        read_port = memory.get_port(has_re=True, mode=READ_FIRST)
        self.specials += memory, write_port, read_port
        self.comb += [
            write_port.we.eq(self.write),
            write_port.adr.eq(self.write_address),
            write_port.dat_w.eq(self.write_data),
            read_port.adr.eq(self.address),
            read_port.re.eq(self.enable),
        ]
        self.sync += If(self.enable, self.data.eq(read_port.dat_r))


def table_prefix(group: int) -> str:
    """Of the names of a group's tables in the Verilog."""
    return f"group{group}_"


class DrainPort:
    """Between a group and its requantizer.

    `request` with `columns`, `join`, `wide` and `reduce` asks for the result bus; the step is issued in the cycle of
    `grant`. `hold` stops the group while a wide result is emptied. DRAIN_DELAY cycles after the grant `sums[0]` and
    `maxima` are valid, and sums[c] is valid c cycles later. TRIGGER_LEAD cycles before, `trigger` rises for one cycle,
    in which `parameters` are valid. `written` pulses when the last result of a drain that is no join has been written,
    with `signal` as its parameter says.
    """

    def __init__(self, array: GroupArray):
        self.request = Signal()
        self.grant = Signal()
        self.hold = Signal()
        self.columns = Signal(HEADER0["columns"].width)
        self.join = Signal()
        self.wide = Signal()
        self.reduce = Signal()
        self.trigger = Signal()
        self.parameters = Signal(DRAIN.width)
        self.written = Signal()
        self.signal = Signal()
        self.sums = array.columns
        self.maxima = array.maxima


class Epochs(Module):
    """Whether all groups have reached the epoch `wanted`: `reached`. `epochs` are the groups' counters."""

    def __init__(self, epochs):
        self.wanted = Signal(EPOCH_BITS)
        self.reached = Signal()

        # # #

        ahead = []
        for epoch in epochs:
            distance = Signal(EPOCH_BITS)
            self.comb += distance.eq(epoch - self.wanted)
            ahead.append(~distance[-1])
        self.comb += self.reached.eq(reduce(and_, ahead))


class Awaited(Module):
    """The epoch that the step at the issue point waits for: `reached` says whether all groups are there.

    It is a register, for what follows is decided late in the cycle. `before` is the wanted epoch less 1, `soon` that of
    the step which comes to the issue point if `advance` is 1. `epochs` are the groups' counters, and a counter whose
    `arrives` is 1 is about to go one up. A counter that goes up in another way is seen a cycle later.
    """

    def __init__(self, epochs, arrives):
        self.advance = Signal()
        self.soon = Signal(EPOCH_BITS)
        self.before = Signal(EPOCH_BITS)
        self.reached = Signal()

        # # #

        def all_there(before):
            there = []
            for epoch, more in zip(epochs, arrives, strict=True):
                short = Signal(1 + EPOCH_BITS)  # twice before - epoch - more; and 1 or 2 more, the carry's doing
                self.comb += short.eq(Cat(1, before) + Cat(~more, ~epoch))
                there.append(short[-1])
            return reduce(and_, there)

        self.sync += [
            If(self.advance, self.before.eq(self.soon), self.reached.eq(all_there(self.soon))).Else(
                self.reached.eq(all_there(self.before))
            )
        ]


# What the fetch unit says of each word on its way to the issue point.
class Word:
    STEP, HEADER0, HEADER1, EMPTY = range(4)
    LAYOUT = (
        ("kind", 2),
        ("first", 1),  # the job's first word: the job changes here
        ("starts_run", 1),
        ("ends_layer", 1),
    )


class Group(Module):
    """Does the runs that come in through `runs`; `todo` counts those not finished, that is, not read to their end.

    `epoch` counts the phases that the group has passed, and goes up when `arrives` is 1, or when it passes phases in
    which it has nothing to do; `epochs` and `arrivals` must be the lists of all groups' counters and `arrives`. `busy`
    falls when all results are written.
    `stream`, `tiles`, `taps`, `masks` are the tables that the loader writes. In every cycle one of `stepping` (a step
    is issued), `draining` (wait for the result bus), `waiting` (for an epoch), `preparing` (headers, filling the
    pipeline) and `idle` (nothing to do) is 1. `layer_ends` pulses with the layer's last cycle, which waits for
    `record_taken`.
    """

    def __init__(
        self, geometry: Geometry, activation_port, number, epochs, arrivals, technology: Technology = PORTABLE
    ):
        prefix = table_prefix(number)
        self.submodules.stream = Table(stream_bits(geometry), geometry.stream_words, prefix + "stream")
        self.submodules.tiles = Table(TILE.width, geometry.tile_entries, prefix + "tiles")
        self.submodules.taps = Table(TAP.width, geometry.tap_entries, prefix + "taps")
        self.submodules.masks = Table(geometry.lanes, geometry.mask_entries, prefix + "masks")
        self.submodules.aligner = aligner = Aligner(geometry, activation_port)
        self.submodules.array = array = technology.group_array(geometry)
        self.submodules.queue = runs = stream.SyncFIFO(run_layout(geometry), RUN_QUEUE_DEPTH)
        self.runs = runs.sink
        self.todo = runs.level
        self.stepping = Signal()
        self.draining = Signal()
        self.waiting = Signal()
        self.preparing = Signal()
        self.idle = Signal()
        self.layer_ends = Signal()
        self.record_taken = Signal(reset=1)
        self.busy = Signal()
        self.drain = DrainPort(array)

        # # #

        run = runs.source
        advance = Signal()  # everything up to the issue point moves on

        # The header of the next job, as its words pass the issue point.
        pending0, pending1 = Signal(HEADER0.width), Signal(HEADER1.width)
        pending_ready = Signal()
        coming, statements = fields_of(HEADER0, pending0)
        coming_place, more = fields_of(HEADER1, pending1)
        self.comb += statements + more

        # Fetch: walks the steps of each tile, and in the last tile fetches the next header after the first step.
        fetch = Signal()
        word_out = Record(Word.LAYOUT)  # what is fetched
        address = Signal(max=geometry.stream_words)
        tiles = Signal(HEADER0["tiles"].width)
        tile_address = Signal(max=geometry.tile_entries)
        steps = Signal(HEADER1["steps"].width)
        ends_layer, ends_run = Signal(), Signal()
        first_step = Signal(max=geometry.stream_words)
        position = Signal(max=geometry.stream_words)
        next_header = Signal(max=geometry.stream_words)
        step = Signal.like(steps)
        first_tile = Signal()  # still in the job's first tile
        starts_run = Signal()
        last_tile, last_step = Signal(), Signal()
        self.comb += [
            self.stream.address.eq(address),
            self.stream.enable.eq(advance),
            self.tiles.address.eq(tile_address),
            self.tiles.enable.eq(advance),
            last_tile.eq(tiles <= 1),
            last_step.eq((step == steps - 1) | (tiles == 0)),
        ]
        switch = [  # the job whose header is pending begins
            NextValue(tiles, coming.tiles),
            NextValue(tile_address, coming.tile),
            NextValue(steps, coming_place.steps),
            NextValue(ends_layer, coming.layer),
            NextValue(ends_run, coming.last | (coming.layer & run.layer)),
            NextValue(first_step, next_header + HEADER_WORDS),
            NextValue(position, next_header + HEADER_WORDS),
            NextValue(next_header, next_header + HEADER_WORDS + Mux(coming.tiles == 0, 0, coming_place.steps)),
            NextValue(step, 0),
            NextValue(first_tile, 1),
            NextValue(pending_ready, 0),
            NextState("STEPS"),
        ]
        self.submodules.fsm = fsm = FSM(reset_state="IDLE")
        fsm.act(
            "IDLE",
            NextValue(starts_run, 1),
            NextValue(ends_run, 0),
            NextValue(step, 0),
            NextValue(steps, 1),
            NextValue(tiles, 1),
            If(
                run.valid & advance,
                If(~run.resume, NextValue(next_header, run.address)),
                NextState("HEADER0"),
            ),
        )
        fsm.act(
            "HEADER0",
            fetch.eq(1),
            address.eq(next_header),
            word_out.kind.eq(Word.HEADER0),
            If(advance, NextState("HEADER1")),
        )
        # A job of one step (or none) has nothing to fetch behind the header: `step` has come round to 0.
        fsm.act(
            "HEADER1",
            fetch.eq(1),
            address.eq(next_header + 1),
            word_out.kind.eq(Word.HEADER1),
            If(advance, If(step == 0, NextState("SWITCH")).Else(NextState("STEPS"))),
        )
        fsm.act("SWITCH", If(advance & pending_ready, *switch))
        fsm.act(
            "STEPS",
            fetch.eq(1),
            address.eq(position),
            word_out.kind.eq(Mux(tiles == 0, Word.EMPTY, Word.STEP)),
            word_out.first.eq(first_tile & (step == 0)),
            word_out.starts_run.eq(starts_run),
            word_out.ends_layer.eq(ends_layer & last_tile & last_step),
            If(
                advance,
                NextValue(position, position + 1),
                NextValue(step, step + 1),
                NextValue(starts_run, 0),
                If(
                    last_step,
                    NextValue(step, 0),
                    NextValue(first_tile, 0),
                    If(
                        ~last_tile,
                        NextValue(position, first_step),
                        NextValue(tiles, tiles - 1),
                        NextValue(tile_address, tile_address + 1),
                    ),
                ),
                If(
                    last_tile & (step == 0) & ~ends_run,
                    NextState("HEADER0"),
                ).Elif(
                    last_tile & last_step,
                    If(ends_run, run.ready.eq(1), NextState("IDLE"))
                    .Elif(pending_ready, *switch)
                    .Else(NextState("SWITCH")),
                ),
            ),
        )

        # On the way to the issue point.
        valid = [Signal() for _ in range(FETCH_LATENCY)]
        words = [Record(Word.LAYOUT) for _ in range(FETCH_LATENCY)]
        self.sync += If(
            advance,
            valid[0].eq(fetch),
            words[0].eq(word_out),
            *[after.eq(before) for before, after in pairwise(valid)],
            *[after.eq(before) for before, after in pairwise(words)],
        )

        # Issue point: a step, its tile, its job, and the epoch that it waits for.
        word = Signal(stream_bits(geometry), reset_less=True)
        tile_word = Signal(TILE.width, reset_less=True)
        here, statements = fields_of(STEP, word)
        where, more = fields_of(TILE, tile_word)
        self.comb += statements + more
        header0, header1 = Signal(HEADER0.width), Signal(HEADER1.width)
        job, statements = fields_of(HEADER0, header0)
        place, more = fields_of(HEADER1, header1)
        self.comb += statements + more
        soon, statements = fields_of(STEP, self.stream.data)  # one cycle before the issue point
        soon_where, more = fields_of(TILE, self.tiles.data)
        self.comb += statements + more
        job_epoch, soon_epoch = Signal(EPOCH_BITS), Signal(EPOCH_BITS)
        soon_late = Signal(HEADER1["late"].width)
        self.submodules.awaited = awaited = Awaited(epochs, arrivals)
        changes = Signal()
        run_epoch = Signal(EPOCH_BITS)  # of the picture's start, less 1; so are the jobs' epochs
        self.comb += [
            changes.eq(valid[-2] & words[-2].first),
            awaited.advance.eq(advance),
            awaited.soon.eq(soon_epoch + Mux(soon.late, soon_late, soon_where.epoch)),
            soon_epoch.eq(job_epoch),
            soon_late.eq(place.late),
            If(
                changes,
                soon_epoch.eq(Mux(words[-2].starts_run, run_epoch, job_epoch) + coming.epoch),
                soon_late.eq(coming_place.late),
            ),
        ]
        self.sync += [
            If(fsm.ongoing("HEADER1") & starts_run & advance, run_epoch.eq(run.epoch - 1)),
            If(
                advance,
                word.eq(self.stream.data),
                tile_word.eq(self.tiles.data),
                If(changes, header0.eq(pending0), header1.eq(pending1), job_epoch.eq(soon_epoch)),
            ),
        ]
        kind = words[-1].kind
        self.sync += [
            If(valid[-1] & (kind == Word.HEADER0), pending0.eq(word)),
            If(valid[-1] & (kind == Word.HEADER1), pending1.eq(word), pending_ready.eq(1)),
        ]

        arrives = arrivals[number]
        self.comb += arrives.eq(self.drain.written & self.drain.signal)

        # Drains issued whose results are not all written. A wide one is alone.
        outstanding = Signal(max=result_queue_depth(geometry) + 1)
        is_step, is_empty = Signal(), Signal()
        ready, ends, stall, issue, passes = Signal(), Signal(), Signal(), Signal(), Signal()
        fresh = Signal(reset=1)  # the next step begins a new sum
        self.comb += [
            is_step.eq(valid[-1] & (kind == Word.STEP)),
            is_empty.eq(valid[-1] & (kind == Word.EMPTY)),
            ends.eq(here.last | here.join),
            ready.eq(awaited.reached & (self.record_taken | ~words[-1].ends_layer)),
            self.drain.request.eq(is_step & ends & ready & ~self.drain.hold),
            self.drain.columns.eq(job.columns),
            self.drain.join.eq(here.join),
            self.drain.wide.eq(job.wide),
            self.drain.reduce.eq(job.reduce),
            self.waiting.eq((is_step & ~ready) | (is_empty & ((outstanding != 0) | ~self.record_taken))),
            self.draining.eq(is_step & ready & (self.drain.hold | (ends & ~self.drain.grant))),
            stall.eq(self.waiting | self.draining),
            issue.eq(is_step & ~stall),
            passes.eq(is_empty & ~stall),
            advance.eq(~stall),
            self.stepping.eq(issue),
            self.idle.eq(fsm.ongoing("IDLE") & ~run.valid & ~reduce(or_, valid)),
            self.preparing.eq(~self.idle & ~is_step & ~self.waiting),
            self.busy.eq(~self.idle | (outstanding != 0)),
            self.layer_ends.eq((issue | passes) & words[-1].ends_layer),
        ]
        self.sync += [
            If(issue, fresh.eq(ends)),
            outstanding.eq(outstanding + (issue & here.last) - self.drain.written),
            epochs[number].eq(epochs[number] + arrives + Mux(passes, place.steps, 0)),
        ]

        # The parameters of each drain wait in a queue until the sums are ready.
        accumulate = Signal()  # an earlier pass of this tile left a partial
        self.submodules.drains = drains = SyncFIFO(DRAIN.width, DRAIN_QUEUE_DEPTH)
        parameters = dict(
            channel=job.channel,
            columns=job.columns,
            use_residual=job.residual,
            reduce=job.reduce,
            wide=job.wide,
            output=place.output + where.output,
            stride=place.stride,
            residual=place.residual + Mux(job.wide, 0, where.output),
            join=here.join,
            accumulate=accumulate,
            nibble=here.shift,
            maximum=here.maximum,
            signal=job.signal & where.signal,
        )
        for name, value in parameters.items():
            signal = Signal(DRAIN[name].width, name=f"drain_{name}")
            field = drains.din[DRAIN[name].offset : DRAIN[name].offset + len(signal)]
            self.comb += [signal.eq(value), field.eq(signal)]
        self.sync += If(issue & ends, accumulate.eq(here.join))
        trigger = delay_valid(self, issue & ends, DRAIN_DELAY - TRIGGER_LEAD)
        self.comb += [
            drains.we.eq(issue & ends),
            drains.re.eq(trigger),
            self.drain.trigger.eq(trigger),
            self.drain.parameters.eq(drains.dout),
        ]
        # Tap, mask, pixel address; all of fixed latency from here on.
        lane_bits = log2_int(geometry.lanes)
        plane = Signal(max=geometry.activation_words)
        base = Signal.like(plane)
        self.comb += base.eq(here.plane + where.input)
        self.sync += [self.taps.address.eq(where.taps + here.tap), plane.eq(base)]
        plane = delay(self, plane, TAP_DELAY - 1)
        tap, statements = fields_of(TAP, self.taps.data)
        self.comb += statements
        self.sync += aligner.address.eq(Cat(C(0, lane_bits), plane) + tap.offset)
        self.comb += self.masks.address.eq(tap.mask)
        mask_ready = TAP_DELAY + TABLE_LATENCY
        mask_needed = PIXEL_DELAY + Aligner.MASK_DELAY
        pad = delay(self, here.pad, mask_needed)
        self.comb += [
            aligner.mask.eq(delay(self, self.masks.data, mask_needed - mask_ready)),
            aligner.pad.eq(pad),
            array.activations.eq(aligner.vector),
            array.weights.eq(
                delay(
                    self,
                    word[STEP_WEIGHTS_OFFSET : STEP_WEIGHTS_OFFSET + WEIGHT_BITS * geometry.group_columns],
                    WEIGHT_DELAY,
                )
            ),
            array.valid.eq(delay_valid(self, issue, WEIGHT_DELAY)),
            array.fresh.eq(delay(self, fresh, WEIGHT_DELAY)),
            array.maximum.eq(delay(self, here.maximum, WEIGHT_DELAY)),
        ]
