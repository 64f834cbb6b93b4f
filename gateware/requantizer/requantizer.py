"""Requantizer: empties columns, joins passes, adds residuals, and turns sums into 4-bit outputs, exactly.

                         residual word
                               v
    columns' sums --> [lanes: OR, threshold - sum, search, + residual, clamp] --> write queue
                        ^  |            ^
                   partial memory   channel table

One column (a vector of `lanes` sums) a cycle; gateware/technologies/lanes.py says how and in which cycle. This module
says when:

    cycle -2   `trigger` of a group's drain; its parameters
          -1   begin: addresses
           0   first column's turn; the others follow. Their partials, entries and residuals are addressed accordingly
          10   first result enters the write queue

The result bus is granted to one group at a time, for as many cycles as it has columns, and only if the write queue
has room for two groups' columns: so nothing behind the grant ever waits. With the last result of a drain goes its
`fate`: which group is told that it is written, and whether that ends a phase.

A joined sum needs one drain for each of its passes. Passes that are joined by a nibble begin a new *level*; each level
has channel entries of its own, `columns` behind those of the level before.

A *wide* drain hands the sums out whole, as planes of nibbles, highest first: all columns' top nibbles are written, then
their values come back from the partial memory 16 times as large, and so on. The group stands still meanwhile.
To sum all lanes, `reduce` sends the columns through a tree of adders first; everything else happens as much later.
"""

from migen import *
from migen.genlib.fifo import SyncFIFO, SyncFIFOBuffered
from migen.genlib.record import Record, layout_len

from sentei.gateware.common import delay, delay_valid, fields_of
from sentei.gateware.engine.activation_memory import ActivationPort
from sentei.gateware.group.group import DRAIN, TABLE_LATENCY, TRIGGER_LEAD, Table, result_queue_depth
from sentei.gateware.technologies.lanes import LATENCY, RESIDUAL, SUM, VALUE
from sentei.gateware.technologies.technology import PORTABLE, Technology
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import channel_layout

JOIN_CYCLES = VALUE + 1  # from reading a partial until its successor can be read


class Requantizer(Module):
    """Serves the groups behind `drains` (a list of DrainPort).

    `writer` is its source of the activation memory; `residual_port` its reader, where it wants `residual_word` in the
    cycles in which `residual_busy` is 1. `channels` is the table that the loader writes. `busy` falls when all results
    are written.
    """

    def __init__(self, geometry: Geometry, drains, residual_port, writer, technology: Technology = PORTABLE):
        channel = channel_layout(geometry)
        columns = geometry.group_columns
        self.submodules.channels = Table(channel.width, geometry.channel_entries, "channels")
        self.submodules.lanes = lanes = technology.lanes(
            geometry, [*(sums for drain in drains for sums in drain.sums), *(drain.maxima for drain in drains)]
        )
        self.residual_word = Signal.like(residual_port.word)
        self.residual_busy = Signal()
        self.busy = Signal()

        # # #

        # Result bus: who may end a pass.
        count_bits = bits_for(columns)
        queue_depth = result_queue_depth(geometry)
        credits = Signal(max=queue_depth + 1, reset=queue_depth)
        take = Signal(len(credits))
        give = Signal()
        room = Signal()  # for a drain's results, also if another one took room in the cycle before
        self.sync += [credits.eq(credits - take + give), room.eq(credits >= 2 * columns)]
        parameters_cycles = lanes.reduce_delay + 1  # for so long a sum of lanes needs `held`
        occupied = Signal(max=max(columns, JOIN_CYCLES, parameters_cycles) + 1)  # cycles, this one included
        settling = Signal(max=columns + lanes.reduce_delay + 1)  # likewise, until a sum of lanes cannot be overtaken
        free, settled = Signal(), Signal()
        locked = Signal()  # a wide drain is on its way
        unlock = Signal()
        granted = C(0)
        statements = []
        self.comb += [free.eq((occupied[1:] == 0) & ~locked), settled.eq(settling[1:] == 0)]
        for drain in drains:
            wanted = drain.columns[:count_bits]
            least = Signal.like(occupied)
            enough, follows = Signal(), Signal()
            self.comb += [
                enough.eq(drain.join | room),
                follows.eq(drain.reduce | settled),
                least.eq(Mux(drain.reduce, parameters_cycles, Mux(drain.join, JOIN_CYCLES, 0))),
                drain.hold.eq(locked),
                drain.grant.eq(drain.request & free & enough & follows & ~granted),
                If(drain.grant & ~drain.join, take.eq(wanted)),
            ]
            statements.append(
                If(
                    drain.grant,
                    occupied.eq(Mux(wanted < least, least, wanted)),
                    locked.eq(drain.wide & ~drain.join),
                    If(drain.reduce, settling.eq(wanted + lanes.reduce_delay)),
                )
            )
            granted = granted | drain.grant
        self.sync += [
            If(occupied != 0, occupied.eq(occupied - 1)),
            If(settling != 0, settling.eq(settling - 1)),
            If(unlock, locked.eq(0)),
            *statements,
        ]

        # Cycle -2: parameters.
        assert TRIGGER_LEAD == 2
        triggers = Signal(len(drains))
        self.comb += triggers.eq(Cat(*[drain.trigger for drain in drains]))
        offered = Signal(DRAIN.width)
        owner = Signal(max=max(2, len(drains)))
        for index, drain in enumerate(drains):
            self.comb += If(drain.trigger, offered.eq(drain.parameters), owner.eq(index))
        held = Signal(DRAIN.width, reset_less=True)
        held_owner = Signal.like(owner)
        self.sync += If(triggers != 0, held.eq(offered), held_owner.eq(owner))
        coming, statements = fields_of(DRAIN, held)
        self.comb += statements

        # Cycle -1, and later for the other columns: whose turn is next.
        started = Signal(len(drains))
        self.sync += started.eq(triggers)
        begins = Signal()
        left = Signal(count_bits)  # turns, this one included
        more = Signal()
        sum_lanes = Signal()
        self.comb += [begins.eq(started != 0), more.eq(left[1:] != 0)]
        self.sync += If(begins, left.eq(coming.columns), sum_lanes.eq(coming.reduce)).Elif(left != 0, left.eq(left - 1))
        turns = []
        for index in range(len(drains)):
            turn = started[index] & ~coming.maximum
            for _ in range(columns):
                turns.append(turn)
                turn = delay_valid(self, turn, 1) & more
        for index in range(len(drains)):
            turns.append(started[index] & coming.maximum)
        self.comb += [
            lanes.turns.eq(Cat(*turns)),
            lanes.sum_lanes.eq(delay_valid(self, (left != 0) & sum_lanes, SUM)),
        ]

        # Cycle -1, or for sums of lanes so much later that they come in cycle 0: the drain begins.
        begin = Signal()
        self.comb += begin.eq(begins & ~coming.reduce | delay_valid(self, begins & coming.reduce, lanes.reduce_delay))
        parameters = Signal(DRAIN.width, reset_less=True)
        now, statements = fields_of(DRAIN, parameters)
        self.comb += statements
        self.sync += If(begin, parameters.eq(held))
        wide = Signal()
        active = Signal()
        column = Signal(max=max(2, columns))
        remaining = Signal(count_bits)  # columns, this one included
        spacing = Signal(max=JOIN_CYCLES)
        piece = Signal(max=geometry.wide_nibbles)  # nibble plane of a wide result
        ends_piece = Signal()  # and others follow
        waiting = Signal()  # for room for the next piece
        resume = Signal()
        last_column = Signal()
        self.comb += [
            wide.eq(now.wide & ~now.join),
            last_column.eq(active & (remaining == 1)),
            ends_piece.eq(last_column & wide & ~unlock),
            resume.eq((waiting | ends_piece) & (spacing == 0) & (credits >= now.columns[:count_bits])),
            If(resume, take.eq(now.columns[:count_bits])),
            unlock.eq(last_column & wide & (piece == geometry.wide_nibbles - 1)),
        ]
        next_column = Signal.like(column)
        self.comb += If(~last_column, next_column.eq(column + active))
        self.sync += [
            column.eq(next_column),
            If(active, remaining.eq(remaining - 1)),
            If(last_column, active.eq(0), waiting.eq(ends_piece)),
            If(spacing != 0, spacing.eq(spacing - 1)),
            If(resume, waiting.eq(0), piece.eq(piece + 1)),
            If(begin, piece.eq(0)),
            If(
                begin | resume,
                active.eq(1),
                remaining.eq(Mux(begin, coming.columns, now.columns)),
                spacing.eq(JOIN_CYCLES - 1),
            ),
        ]

        # Addresses of the column in its cycle 0.
        width = len(writer.word)
        output, residual = Signal(width), Signal(width)
        number = Signal(max=geometry.channel_entries)
        now_owner, next_owner = Signal.like(owner), Signal.like(owner)
        level, offset = Signal.like(number), Signal.like(number)
        offsets = [Signal.like(number) for _ in drains]  # of the entries of each group's level
        for index, own in enumerate(offsets):
            self.comb += If(held_owner == index, offset.eq(own))
            self.sync += If(begin & (held_owner == index), If(coming.join, own.eq(level)).Else(own.eq(0)))
        self.comb += [
            level.eq(offset + Mux(coming.nibble, coming.columns[:count_bits], 0)),
            next_owner.eq(Mux(begin, held_owner, now_owner)),
        ]
        self.sync += [
            now_owner.eq(next_owner),
            If(
                begin,
                number.eq(coming.channel + level),
                output.eq(coming.output),
                residual.eq(coming.residual),
            ).Else(
                number.eq(number + (active & ~wide)),
                If((active & ~ends_piece) | resume, output.eq(output + Mux(resume, now.residual, now.stride))),
                If(active, residual.eq(residual + now.stride)),
            ),
        ]

        # From cycle 0 on: each column's partial, entry, residual and result.
        emit, repeats = Signal(), Signal()
        entry, statements = fields_of(channel, self.channels.data)
        self.comb += [
            *statements,
            emit.eq(active & ~now.join),
            repeats.eq(piece != 0),
            self.channels.address.eq(number),
            lanes.join.eq(now.accumulate | repeats),
            lanes.by_nibble.eq(now.nibble | repeats),
            lanes.wide.eq(delay(self, now.wide, SUM)),
            *[getattr(lanes, name).eq(getattr(entry, name)) for name in channel.fields],
            self.residual_word.eq(delay(self, residual, RESIDUAL - ActivationPort.LATENCY)),
            self.residual_busy.eq(delay_valid(self, active & now.use_residual, RESIDUAL - ActivationPort.LATENCY)),
            lanes.residuals.eq(residual_port.low),
            lanes.use_residual.eq(delay(self, now.use_residual, RESIDUAL)),
        ]
        assert SUM == TABLE_LATENCY
        partial = Signal(len(column) + (len(owner) if len(drains) > 1 else 0))  # a cycle before the column's turn
        keeps = Signal()
        self.comb += [partial.eq(Cat(next_column, next_owner)), keeps.eq(active & (now.join | now.wide))]
        reads = lanes.spread(self, partial, 1, geometry.lanes)
        writes = lanes.spread(self, Cat(delay(self, partial, 1), keeps), VALUE, geometry.lanes)
        for (sector, address), (_, write) in zip(reads, writes, strict=True):
            bits = slice(geometry.wide_bits * sector.start, geometry.wide_bits * sector.stop)
            memory = Memory(bits.stop - bits.start, max(2, len(drains) * columns))
            read_port = memory.get_port(mode=READ_FIRST)
            write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
            self.specials += memory, read_port, write_port
            self.comb += [
                read_port.adr.eq(address),
                lanes.partials[bits].eq(read_port.dat_r),
                write_port.adr.eq(write[:-1]),
                write_port.we.eq(write[-1]),
                write_port.dat_w.eq(lanes.values[bits]),
            ]

        # Results, and what the group is told when they are written.
        finished = Signal()
        self.comb += finished.eq(last_column & emit & (~wide | unlock))
        fate = Cat(finished, now.signal, now_owner)
        result_layout = [("word", len(writer.word)), ("data", len(writer.data)), ("fate", len(fate))]
        self.submodules.queue = queue = SyncFIFOBuffered(layout_len(result_layout), queue_depth)
        # Who may write depends on the words' lowest bits: they do not wait for a block RAM.
        self.submodules.parities = parities = SyncFIFO(1, queue_depth)
        pushed, popped = Record(result_layout), Record(result_layout)
        written, signal, whose = Signal(), Signal(), Signal.like(now_owner)
        self.comb += [
            pushed.word.eq(delay(self, output, LATENCY)),
            pushed.data.eq(lanes.nibbles),
            pushed.fate.eq(delay(self, fate, LATENCY)),
            queue.we.eq(delay_valid(self, emit, LATENCY)),
            queue.din.eq(pushed.raw_bits()),
            popped.raw_bits().eq(queue.dout),
            writer.valid.eq(queue.readable),
            parities.din.eq(pushed.word),
            parities.we.eq(queue.we),
            parities.re.eq(give),
            writer.word.eq(Cat(parities.dout, popped.word[1:])),
            writer.data.eq(popped.data),
            queue.re.eq(writer.ready),
            give.eq(writer.valid & writer.ready),
            Cat(written, signal, whose).eq(popped.fate),
            self.busy.eq((credits != queue_depth) | locked),
        ]
        for index, drain in enumerate(drains):
            self.sync += [drain.written.eq(give & written & (whose == index)), drain.signal.eq(signal)]
