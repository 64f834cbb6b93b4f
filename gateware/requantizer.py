"""Requantizer: empties columns, joins passes, adds residuals, and turns sums into 4-bit outputs, exactly.

    cycle  0         1            3                4 .. 7            8
    sums --> select --> + partial --> << shift, --> 15 thresholds, --> write queue
                          |  ^        + gain * r    by bisection
                          |  |           ^             ^
                    partial memory   residual word   channel table
                    (join: stop here)      (reduce: sum of all lanes before cycle 3, log2(lanes) cycles more)

One column (a vector of `lanes` sums) a cycle. out = (number of thresholds <= u) ^ flip, where u is

    v = accumulator + (partial << 4 or 0)          joined passes
    u = (v << shift) + gain * residual_nibble

A *wide* drain hands v out whole, one nibble plane a cycle, lowest first; its group stands still meanwhile.
The result bus is granted to one group at a time, for as many cycles as it has columns, and only if the write queue
has room for all of them: so nothing behind the grant ever waits.
"""

from migen import *
from migen.genlib.fifo import SyncFIFO
from migen.genlib.record import Record, layout_len

from sentei.gateware.activation_memory import ActivationPort
from sentei.gateware.common import delay, delay_valid, fields_of, nibble
from sentei.gateware.group import DRAIN, TABLE_LATENCY, Table
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry
from sentei.overlay.instructions import NIBBLE_SHIFT, THRESHOLDS, channel_layout

SUM_STAGE = 2  # cycles from trigger to v
JOIN_CYCLES = 3  # from reading a partial until its successor can be read


class Requantizer(Module):
    """Serves the groups behind `drains` (a list of DrainPort).

    `writer` is its source of the activation memory; `residual_port` its reader, where it wants `residual_word` in the
    cycles in which `residual_busy` is 1. `channels` is the table that the loader writes. `busy` falls when all results
    are written.
    """

    def __init__(self, geometry: Geometry, drains, residual_port, writer):
        lanes, wide = geometry.lanes, geometry.wide_bits
        channel = channel_layout(geometry)
        self.submodules.channels = Table(channel.width, geometry.channel_entries)
        self.residual_word = Signal.like(residual_port.word)
        self.residual_busy = Signal()
        self.busy = Signal()

        # # #

        # Result bus: who may end a pass.
        queue_depth = max(32, 2 * geometry.group_columns)
        credits = Signal(max=queue_depth + 1, reset=queue_depth)
        take = Signal.like(credits)
        give = Signal()
        self.sync += credits.eq(credits - take + give)
        occupied = Signal(max=128)
        locked = Signal()  # a wide drain is on its way
        unlock = Signal()
        wide_take = Signal()
        self.comb += take.eq(wide_take)
        settling = Signal(max=128)  # a sum of lanes is still on its way and must not be overtaken
        granted = C(0)
        statements = [If(settling != 0, settling.eq(settling - 1))]
        for drain in drains:
            enough, follows = Signal(), Signal()
            self.comb += [
                follows.eq(drain.join | drain.reduce | (settling == 0)),
                enough.eq(drain.join | drain.wide | (credits >= drain.columns)),
                drain.hold.eq(locked),
                drain.grant.eq(drain.request & enough & (occupied == 0) & ~locked & ~granted & follows),
            ]
            statements += [
                If(
                    drain.grant,
                    occupied.eq(Mux(drain.join & (drain.columns < JOIN_CYCLES), JOIN_CYCLES, drain.columns) - 1),
                    locked.eq(drain.wide & ~drain.join),
                    If(drain.reduce & ~drain.join, settling.eq(drain.columns + log2_int(lanes))),
                )
            ]
            self.comb += If(drain.grant & ~drain.join & ~drain.wide, take.eq(drain.columns))
            granted = granted | drain.grant
        self.sync += [If(occupied != 0, occupied.eq(occupied - 1)), If(unlock, locked.eq(0)), *statements]

        # Cycle 0: which column, and its addresses.
        trigger = Signal()
        held = Signal(DRAIN.width, reset_less=True)
        current = Signal(DRAIN.width)
        owner = Signal(max=max(2, len(drains)))
        owner_held = Signal.like(owner)
        running = Signal()
        active = Signal()
        column = Signal(max=geometry.group_columns + 1)
        column_held = Signal.like(column)
        piece = Signal(max=max(2, geometry.wide_nibbles))  # nibble plane of a wide result
        self.comb += [
            trigger.eq(Cat(*[drain.trigger for drain in drains]) != 0),
            owner.eq(owner_held),
            current.eq(held),
            column.eq(column_held),
        ]
        for index, drain in enumerate(drains):
            self.comb += If(drain.trigger, owner.eq(index), current.eq(drain.parameters), column.eq(0))
        now, statements = fields_of(DRAIN, current)
        self.comb += statements
        give_out = now.wide & ~now.join
        wait = Signal()  # a wide piece waits for room in the write queue
        last_piece = Signal()
        self.comb += [
            wait.eq(give_out & (credits == 0)),
            active.eq((trigger | running) & ~wait),
            last_piece.eq(~give_out | (piece == geometry.wide_nibbles - 1)),
            wide_take.eq(active & give_out),
        ]
        output = Signal.like(now.output)
        residual = Signal.like(now.residual)
        output_held, residual_held = Signal.like(output), Signal.like(residual)
        self.comb += [
            output.eq(Mux(trigger, now.output, output_held)),
            residual.eq(Mux(trigger, now.residual, residual_held)),
            unlock.eq(active & give_out & last_piece & (column == now.columns - 1)),
        ]
        self.sync += [
            If(trigger, held.eq(current), owner_held.eq(owner), running.eq(1)),
            If(trigger & wait, output_held.eq(output), residual_held.eq(residual), column_held.eq(0)),
            If(
                active,
                output_held.eq(output + now.stride),
                If(
                    last_piece,
                    piece.eq(0),
                    residual_held.eq(residual + now.stride),
                    column_held.eq(column + 1),
                    running.eq(column != now.columns - 1),
                ).Else(
                    piece.eq(piece + 1),
                    residual_held.eq(residual),
                    column_held.eq(column),
                ),
            ),
        ]

        # Cycle 1: the column's sums and its partial.
        bits = geometry.accumulator_bits
        selected = Signal(bits * lanes, reset_less=True)
        cases = {}
        for index, drain in enumerate(drains):
            for number, sums in enumerate(drain.sums):
                cases[index * geometry.group_columns + number] = selected.eq(sums)
        choice = Signal(max=max(2, len(cases)))
        self.comb += choice.eq(owner * geometry.group_columns + column)
        maxima = {
            index: [selected[bits * lane : bits * (lane + 1)].eq(nibble(drain.maxima, lane)) for lane in range(lanes)]
            for index, drain in enumerate(drains)
        }
        self.sync += If(active, If(now.maximum, Case(owner, maxima)).Else(Case(choice, cases)))
        partials = Memory(wide * lanes, max(2, len(cases)))
        partial_read = partials.get_port(mode=READ_FIRST)
        partial_write = partials.get_port(write_capable=True, mode=READ_FIRST)
        self.specials += partials, partial_read, partial_write
        self.comb += partial_read.adr.eq(choice)

        # Cycle 2: v.
        accumulate = delay(self, now.accumulate, 1)
        by_nibble = delay(self, now.nibble, 1)
        joined = []
        values = []
        for lane in range(lanes):
            part = Signal((wide, True))
            total = Signal((bits, True))
            value = Signal((wide, True), reset_less=True)
            self.comb += [
                part.eq(partial_read.dat_r[wide * lane : wide * (lane + 1)]),
                total.eq(selected[bits * lane : bits * (lane + 1)]),
            ]
            joined.append(
                If(
                    accumulate, If(by_nibble, value.eq(total + (part << NIBBLE_SHIFT))).Else(value.eq(total + part))
                ).Else(value.eq(total))
            )
            values.append(value)
        self.sync += If(delay_valid(self, active, 1), *joined)
        self.comb += [
            partial_write.adr.eq(delay(self, choice, SUM_STAGE)),
            partial_write.we.eq(delay_valid(self, active & now.join, SUM_STAGE)),
            partial_write.dat_w.eq(Cat(*values)),
        ]

        # Sum of all lanes, for global pooling: a tree of log2(lanes) registered stages, joining again at cycle 3.
        tree = values
        while len(tree) > 1:
            sums = []
            for left, right in zip(tree[0::2], tree[1::2], strict=True):
                total = Signal((wide, True), reset_less=True)
                self.sync += total.eq(left + right)
                sums.append(total)
            tree = sums
        tree_delay = log2_int(lanes)

        # The channel's entry and the residual word arrive when their sums do.
        emit = Signal()
        self.comb += emit.eq(active & ~now.join)
        reduced = delay_valid(self, emit & now.reduce, tree_delay)
        number = Signal(max=geometry.channel_entries)
        self.comb += number.eq(now.channel + column)
        number_reduced = delay(self, number, tree_delay)
        self.comb += self.channels.address.eq(Mux(reduced, number_reduced, number))
        entry, statements = fields_of(channel, self.channels.data)
        self.comb += statements
        assert SUM_STAGE == TABLE_LATENCY
        self.comb += [
            self.residual_word.eq(residual),
            self.residual_busy.eq(active & now.use_residual),
        ]

        # The residual port is one cycle slower than the channel table: sums and entry wait for it.
        late = ActivationPort.LATENCY - SUM_STAGE
        at_u = SUM_STAGE + late
        is_reduced = delay_valid(self, reduced, at_u)
        valid_u = Signal()
        self.comb += valid_u.eq(delay_valid(self, emit & ~now.reduce, at_u) | is_reduced)

        def when(signal):
            """`signal` of cycle 0, when its u is computed."""
            direct = delay(self, signal, at_u)
            then = Signal.like(direct)
            self.comb += then.eq(Mux(is_reduced, delay(self, direct, tree_delay), direct))
            return then

        shift = when(now.shift)
        use_residual = when(now.use_residual)
        word = when(output)
        finished = Signal()
        self.comb += finished.eq(emit & last_piece & (column == now.columns - 1))
        fate = when(Cat(finished, now.signal, owner))  # what the group is told when this result is written
        handed_out = when(now.wide)
        which = when(piece)
        gain = delay(self, entry.gain, late)
        flip = delay(self, entry.flip, late)
        thresholds = [delay(self, getattr(entry, f"threshold{k}"), late) for k in range(THRESHOLDS)]
        late_values = [delay(self, value, late) for value in values]
        late_sum = delay(self, tree[0], late)

        # Cycle 3 (+ late): u.
        us = []
        scaled = []
        for lane in range(lanes):
            value = Signal((wide, True))
            u = Signal((wide, True), reset_less=True)
            piece_value = Signal(ACTIVATION_BITS)
            residual_value = Signal(ACTIVATION_BITS)
            self.comb += [
                value.eq(Mux(is_reduced, late_sum if lane == 0 else 0, late_values[lane])),
                residual_value.eq(nibble(residual_port.low, lane)),
                Case(which, {k: piece_value.eq(value[4 * k : 4 * k + 4]) for k in range(geometry.wide_nibbles)}),
            ]
            scaled.append(
                If(handed_out, u.eq(piece_value))
                .Elif(use_residual, u.eq((value << shift) + gain * residual_value))
                .Else(u.eq(value))
            )
            us.append(u)
        self.sync += If(valid_u, *scaled)

        # Cycles 4 to 7 (+ late): bisection; stage s decides bit 3 - s of the count.
        valid = delay_valid(self, valid_u, 1)
        thresholds = [delay(self, threshold, 1) for threshold in thresholds]
        counts = [[] for _ in range(lanes)]  # decided bits, lowest first
        for bit in reversed(range(ACTIVATION_BITS)):
            next_us, next_counts, decide = [], [], []
            for lane in range(lanes):
                u = Signal((wide, True), reset_less=True)
                known = len(counts[lane])
                count = Signal(known + 1, reset_less=True)
                # The count so far, followed by a one and zeros, is the number of the threshold to compare with.
                bound = Signal((wide, True))
                options = {prefix: bound.eq(thresholds[((prefix << 1 | 1) << bit) - 1]) for prefix in range(1 << known)}
                self.comb += Case(counts[lane], options) if known else options[0]
                decide += [u.eq(us[lane]), count.eq(Cat(us[lane] >= bound, counts[lane]))]
                next_us.append(u)
                next_counts.append(count)
            self.sync += If(valid, *decide)
            us, counts = next_us, next_counts
            valid = delay_valid(self, valid, 1)
            thresholds = [delay(self, threshold, 1) for threshold in thresholds]
        stages = 1 + ACTIVATION_BITS
        flip = delay(self, flip, stages)
        word = delay(self, word, stages)
        fate = delay(self, fate, stages)
        handed_out = delay(self, handed_out, stages)

        entry_layout = [("word", len(writer.word)), ("data", len(writer.data)), ("fate", len(fate))]
        self.submodules.queue = queue = SyncFIFO(layout_len(entry_layout), queue_depth)
        pushed, popped = Record(entry_layout), Record(entry_layout)
        results = [Signal(ACTIVATION_BITS) for _ in range(lanes)]
        self.comb += [
            If(handed_out, result.eq(u)).Else(result.eq(count ^ flip))
            for result, u, count in zip(results, us, counts, strict=True)
        ]
        written, signal, whose = Signal(), Signal(), Signal.like(owner)
        self.comb += [
            pushed.word.eq(word),
            pushed.data.eq(Cat(*results)),
            pushed.fate.eq(fate),
            queue.we.eq(valid),
            queue.din.eq(pushed.raw_bits()),
            popped.raw_bits().eq(queue.dout),
            writer.valid.eq(queue.readable),
            writer.word.eq(popped.word),
            writer.data.eq(popped.data),
            queue.re.eq(writer.ready),
            give.eq(writer.valid & writer.ready),
            Cat(written, signal, whose).eq(popped.fate),
        ]
        for index, drain in enumerate(drains):
            self.sync += [drain.written.eq(give & written & (whose == index)), drain.signal.eq(signal)]
        self.comb += self.busy.eq((credits != queue_depth) | locked)
