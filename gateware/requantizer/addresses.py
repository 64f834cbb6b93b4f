"""Where a column's channel entry, residual and result are, in its cycle 0.

A joined sum needs one drain for each of its passes. Passes that are joined by a nibble begin a new *level*; each level
has channel entries of its own, `columns` behind those of the level before.
"""

from migen import *

from sentei.gateware.requantizer.columns import Columns
from sentei.gateware.requantizer.turns import Turns
from sentei.overlay.geometry import Geometry


class Addresses(Module):
    """`channel` (entry of the channel table), `residual` and `output` (words of activation memory) of the column in its
    cycle 0; `owner` is its group, `next_owner` that of the next cycle. `groups` share the requantizer."""

    def __init__(self, geometry: Geometry, groups: int, turns: Turns, columns: Columns):
        self.channel = Signal(max=geometry.channel_entries)
        self.residual = Signal(max=geometry.activation_words)
        self.output = Signal(max=geometry.activation_words)
        self.owner, self.next_owner = Signal.like(turns.owner), Signal.like(turns.owner)

        # # #

        begin, coming, now = turns.begin, turns.coming, columns.now
        level, offset = Signal.like(self.channel), Signal.like(self.channel)
        for index in range(groups):
            own = Signal.like(self.channel)  # offset of the entries of this group's level
            here = turns.owner == index
            self.comb += If(here, offset.eq(own))
            self.sync += If(begin & here, If(coming.join, own.eq(level)).Else(own.eq(0)))
        self.comb += [
            level.eq(offset + Mux(coming.nibble, coming.columns[: bits_for(geometry.group_columns)], 0)),
            self.next_owner.eq(Mux(begin, turns.owner, self.owner)),
        ]
        moves = (columns.active & ~columns.ends_piece) | columns.resume
        self.sync += [
            self.owner.eq(self.next_owner),
            If(
                begin,
                self.channel.eq(coming.channel + level),
                self.output.eq(coming.output),
                self.residual.eq(coming.residual),
            ).Else(
                self.channel.eq(self.channel + (columns.active & ~columns.wide)),
                If(moves, self.output.eq(self.output + Mux(columns.resume, now.residual, now.stride))),
                If(columns.active, self.residual.eq(self.residual + now.stride)),
            ),
        ]
