"""Goes through the columns of a drain, one a cycle; of a *wide* one once for each nibble, highest first.

A wide drain hands the sums out whole, as planes of nibbles: all columns' top nibbles are written, then their values
come back from the partial memory 16 times as large, and so on. Each such *piece* waits until the partials of the one
before can be read, and until there is room for its results. The group stands still meanwhile.
"""

from migen import *

from sentei.gateware.group.drain import DRAIN
from sentei.gateware.record import record_of
from sentei.gateware.requantizer.result_bus import JOIN_CYCLES, ResultBus
from sentei.gateware.requantizer.turns import Turns
from sentei.overlay.geometry import Geometry


class Columns(Module):
    """`active`: a column is in its cycle 0; it is number `column`, or the drain's `last`. `now` are the drain's
    parameters.

    `ends_piece`: others follow this one; `resume`: the next one begins in the next cycle. `ends`: the drain's last
    column is there. `next_column` is what `column` will be.
    """

    def __init__(self, geometry: Geometry, turns: Turns, bus: ResultBus):
        columns = geometry.group_columns
        count_bits = bits_for(columns)
        self.now = now = record_of(DRAIN, reset_less=True)
        self.active = Signal()
        self.column = Signal(max=max(2, columns))
        self.next_column = Signal.like(self.column)
        self.last = Signal()
        self.piece = Signal(max=geometry.wide_nibbles)
        self.wide = Signal()
        self.ends_piece = Signal()
        self.resume = Signal()
        self.ends = Signal()

        # # #

        begin = turns.begin
        remaining = Signal(count_bits)  # columns, this one included
        spacing = Signal(max=JOIN_CYCLES)
        waiting = Signal()  # for room for the next piece
        room, unlock = Signal(), Signal()
        self.comb += [
            self.wide.eq(now.wide & ~now.join),
            self.last.eq(self.active & (remaining == 1)),
            unlock.eq(self.last & self.wide & (self.piece == geometry.wide_nibbles - 1)),
            self.ends_piece.eq(self.last & self.wide & ~unlock),
            room.eq(bus.credits >= now.columns[:count_bits]),
            self.resume.eq((waiting | self.ends_piece) & (spacing == 0) & room),
            self.ends.eq(self.last & (~self.wide | unlock)),
            bus.resume.eq(self.resume),
            bus.columns.eq(now.columns[:count_bits]),
            bus.unlock.eq(unlock),
            If(~self.last, self.next_column.eq(self.column + self.active)),
        ]
        self.sync += [
            If(begin, now.eq(turns.coming)),
            self.column.eq(self.next_column),
            If(self.active, remaining.eq(remaining - 1)),
            If(self.last, self.active.eq(0), waiting.eq(self.ends_piece)),
            If(spacing != 0, spacing.eq(spacing - 1)),
            If(self.resume, waiting.eq(0), self.piece.eq(self.piece + 1)),
            If(begin, self.piece.eq(0)),
            If(
                begin | self.resume,
                self.active.eq(1),
                remaining.eq(Mux(begin, turns.coming.columns, now.columns)),
                spacing.eq(JOIN_CYCLES - 1),
            ),
        ]
