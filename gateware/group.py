"""One group: a stream of jobs, an aligner port, and `group_columns` columns of the array.

The group reads jobs from its stream memory (see overlay/instructions.py) and issues one step a cycle, tile after tile,
without a bubble between tiles. Before a step that ends a pass it asks the requantizer for the result bus; only there
can it stall. Behind the issue point everything has a fixed latency and never waits:

    stream, tile --> issue --> tap --> mask --> aligner --> array --> columns, emptied by the requantizer
    memory           point     table   table                          when `drain` says so
                       |                                                     ^
                       +-- drain parameters ------ queue --------------------+
"""

from itertools import pairwise

from migen import *
from migen.genlib.fifo import SyncFIFO
from migen.genlib.fsm import FSM, NextState, NextValue

from sentei.gateware.aligner import Aligner
from sentei.gateware.array import GroupArray
from sentei.gateware.common import delay, delay_valid, fields_of
from sentei.gateware.technology import PORTABLE, Technology
from sentei.overlay.fields import Layout
from sentei.overlay.geometry import WEIGHT_BITS, Geometry
from sentei.overlay.instructions import (
    HEADER0,
    HEADER1,
    STEP,
    STEP_WEIGHTS_OFFSET,
    TAP,
    TILE,
    stream_bits,
)

TABLE_LATENCY = 2  # memory and its output register
TAP_DELAY = 1 + TABLE_LATENCY  # issue to tap entry: address register, table
PIXEL_DELAY = TAP_DELAY + 1  # issue to pixel address
ARRAY_DELAY = PIXEL_DELAY + Aligner.LATENCY  # issue to the array's input
DRAIN_DELAY = ARRAY_DELAY + GroupArray.LATENCY  # issue to column 0's finished sums
DRAIN_QUEUE_DEPTH = 16  # at least DRAIN_DELAY + 1: a pass may end every cycle
assert DRAIN_QUEUE_DEPTH > DRAIN_DELAY

# What the requantizer needs to empty a group's columns: the header's fields, and where the tile's results go.
DRAIN = Layout(
    "drain",
    ("channel", HEADER0["channel"].width),
    ("columns", HEADER0["columns"].width),
    ("shift", HEADER0["shift"].width),
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
)


class Table(Module):
    """A memory with one write port and one read port; `data` shows entry `address` TABLE_LATENCY cycles later.

    With `enable` at 0 the output stands still.
    """

    def __init__(self, width: int, depth: int):
        self.write = Signal()
        self.write_address = Signal(max=depth)
        self.write_data = Signal(width)
        self.enable = Signal(reset=1)
        self.address = Signal(max=depth)
        self.data = Signal(width, reset_less=True)

        # # #

        memory = Memory(width, depth)
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


class DrainPort:
    """Between a group and its requantizer.

    `request` with `columns`, `join` and `wide` asks for the result bus; the step is issued in the cycle of `grant`.
    `hold` stops the group while a wide result is emptied. DRAIN_DELAY cycles after the grant `trigger` rises for one
    cycle; then `parameters` and `sums[0]` are valid, and sums[c] is valid c cycles later.
    """

    def __init__(self, array: GroupArray):
        self.request = Signal()
        self.grant = Signal()
        self.hold = Signal()
        self.columns = Signal(HEADER0["columns"].width)
        self.join = Signal()
        self.wide = Signal()
        self.trigger = Signal()
        self.parameters = Signal(DRAIN.width)
        self.sums = array.columns
        self.maxima = array.maxima


class Group(Module):
    """`start` begins at stream word `start_address`; `busy` falls when the last step of the last job is issued.

    `stream`, `tiles`, `taps`, `masks` are the tables that the loader writes. `stepping`, `draining`, `preparing` tell
    what this cycle was spent on: a step issued, a wait for the result bus, or reading headers and filling the pipeline.
    """

    def __init__(self, geometry: Geometry, activation_port, technology: Technology = PORTABLE):
        self.submodules.stream = Table(stream_bits(geometry), geometry.stream_words)
        self.submodules.tiles = Table(TILE.width, geometry.tile_entries)
        self.submodules.taps = Table(TAP.width, geometry.tap_entries)
        self.submodules.masks = Table(geometry.lanes, geometry.mask_entries)
        self.submodules.aligner = aligner = Aligner(geometry, activation_port)
        self.submodules.array = array = technology.group_array(geometry)
        self.start = Signal()
        self.start_address = Signal(max=geometry.stream_words)
        self.busy = Signal()
        self.stepping = Signal()
        self.draining = Signal()
        self.preparing = Signal()
        self.drain = DrainPort(array)

        # # #

        # Job: the header's fields, taken when its two words pass the issue point.
        header0 = Signal(HEADER0.width)
        header1 = Signal(HEADER1.width)
        job, statements = fields_of(HEADER0, header0)
        place, more = fields_of(HEADER1, header1)
        self.comb += statements + more

        # Address generator: walks header words, then the steps of each tile. It runs ahead of the issue point by the
        # two stages of the stream and tile tables, which all advance together.
        advance = Signal()
        fetch = Signal()  # the generator offers a word
        is_header = Signal(2)  # which header word it is; 0: a step
        address = Signal(max=geometry.stream_words)
        first_step = Signal(max=geometry.stream_words)
        step = Signal(HEADER1["steps"].width)
        tile = Signal(HEADER0["tiles"].width)
        self.comb += [
            self.stream.address.eq(address),
            self.stream.enable.eq(advance),
            self.tiles.address.eq(job.tile + tile),
            self.tiles.enable.eq(advance),
        ]
        valid = [Signal() for _ in range(TABLE_LATENCY)]
        header = [Signal(2) for _ in range(TABLE_LATENCY)]
        self.sync += If(
            advance,
            valid[0].eq(fetch),
            header[0].eq(is_header),
            *[after.eq(before) for before, after in pairwise(valid)],
            *[after.eq(before) for before, after in pairwise(header)],
        )

        self.submodules.fsm = fsm = FSM(reset_state="IDLE")
        fsm.act("IDLE", If(self.start, NextValue(address, self.start_address), NextState("FETCH-HEADER0")))
        fsm.act(
            "FETCH-HEADER0",
            fetch.eq(1),
            is_header.eq(1),
            If(advance, NextValue(address, address + 1), NextState("FETCH-HEADER1")),
        )
        fsm.act(
            "FETCH-HEADER1",
            fetch.eq(1),
            is_header.eq(2),
            If(advance, NextValue(address, address + 1), NextState("AWAIT-HEADER")),
        )
        taken = Signal()  # the second header word passes the issue point
        fsm.act(
            "AWAIT-HEADER",
            NextValue(first_step, address),
            NextValue(step, 0),
            NextValue(tile, 0),
            If(taken, NextState("FETCH-STEPS")),
        )
        fsm.act(
            "FETCH-STEPS",
            If(
                job.tiles == 0,
                NextState("FINISH-JOB"),
            ).Else(
                fetch.eq(1),
                If(
                    advance,
                    NextValue(address, address + 1),
                    NextValue(step, step + 1),
                    If(
                        step == place.steps - 1,
                        NextValue(step, 0),
                        NextValue(tile, tile + 1),
                        If(tile == job.tiles - 1, NextState("FINISH-JOB")).Else(NextValue(address, first_step)),
                    ),
                ),
            ),
        )
        fsm.act("FINISH-JOB", If(job.last, NextState("EMPTY")).Else(NextState("FETCH-HEADER0")))
        fsm.act("EMPTY", If(~(valid[0] | valid[1]), NextState("IDLE")))

        # Issue point.
        word = self.stream.data
        here, statements = fields_of(STEP, word)
        self.comb += statements
        where, statements = fields_of(TILE, self.tiles.data)
        self.comb += statements
        ends = Signal()
        stall = Signal()
        issue = Signal()
        is_step = Signal()
        self.comb += [
            is_step.eq(valid[-1] & (header[-1] == 0)),
            ends.eq(here.last | here.join),
            self.drain.request.eq(is_step & ends & ~self.drain.hold),
            self.drain.columns.eq(job.columns),
            self.drain.join.eq(here.join),
            self.drain.wide.eq(job.wide),
            stall.eq(is_step & (self.drain.hold | (ends & ~self.drain.grant))),
            issue.eq(is_step & ~stall),
            advance.eq(~stall),
            taken.eq(valid[-1] & (header[-1] == 2)),
            self.busy.eq(~fsm.ongoing("IDLE")),
            self.stepping.eq(issue),
            self.draining.eq(stall),
            self.preparing.eq(self.busy & ~is_step),
        ]
        self.sync += [
            If(valid[-1] & (header[-1] == 1), header0.eq(word)),
            If(taken, header1.eq(word)),
        ]

        # The parameters of each drain wait in a queue until the sums are ready.
        accumulate = Signal()  # an earlier pass of this tile left a partial
        self.submodules.queue = queue = SyncFIFO(DRAIN.width, DRAIN_QUEUE_DEPTH)
        parameters = dict(
            channel=job.channel,
            columns=job.columns,
            shift=job.shift,
            use_residual=job.residual,
            reduce=job.reduce,
            wide=job.wide,
            output=place.output + where.output,
            stride=place.stride,
            residual=place.residual + where.output,
            join=here.join,
            accumulate=accumulate,
            nibble=here.shift,
            maximum=here.maximum,
        )
        for name, value in parameters.items():
            signal = Signal(DRAIN[name].width, name=f"drain_{name}")
            self.comb += [signal.eq(value), queue.din[DRAIN[name].offset : DRAIN[name].offset + len(signal)].eq(signal)]
        self.sync += If(issue & ends, accumulate.eq(here.join))
        trigger = delay_valid(self, issue & ends, DRAIN_DELAY)
        self.comb += [
            queue.we.eq(issue & ends),
            queue.re.eq(trigger),
            self.drain.trigger.eq(trigger),
            self.drain.parameters.eq(queue.dout),
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
                    ARRAY_DELAY,
                )
            ),
            array.valid.eq(delay_valid(self, issue, ARRAY_DELAY)),
            array.fresh.eq(delay(self, here.fresh, ARRAY_DELAY)),
            array.maximum.eq(delay(self, here.maximum, ARRAY_DELAY)),
        ]
