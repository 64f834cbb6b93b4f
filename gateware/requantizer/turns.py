"""Whose turn it is: takes a drain's parameters, and gives the columns their turns in the lanes.

cycle -2   `trigger` of a group's drain; its parameters
      -1   the first column's turn is announced; the others follow, one a cycle
       0   `begin` was 1 in the cycle before: the drain begins; a sum of lanes as much later as the lanes take for it
"""

from migen import *

from sentei.gateware.common import delay_valid
from sentei.gateware.group.drain import DRAIN, TRIGGER_LEAD, DrainPort
from sentei.gateware.record import record_of
from sentei.gateware.technologies.lanes import SUM, Lanes
from sentei.overlay.geometry import Geometry

assert TRIGGER_LEAD == 2


class Turns(Module):
    """Drives the turns of `lanes`. With `begin`, `coming` are the parameters of the drain that begins, and `owner` is
    the number of its group."""

    def __init__(self, geometry: Geometry, drains: list[DrainPort], lanes: Lanes):
        columns = geometry.group_columns
        self.coming = record_of(DRAIN, reset_less=True)
        self.owner = Signal(max=max(2, len(drains)))
        self.begin = Signal()

        # # #

        coming = self.coming
        triggers = Signal(len(drains))
        offered = Signal(DRAIN.width)
        owner = Signal.like(self.owner)
        self.comb += triggers.eq(Cat(*[drain.trigger for drain in drains]))
        for index, drain in enumerate(drains):
            self.comb += If(drain.trigger, offered.eq(drain.parameters), owner.eq(index))
        self.sync += If(triggers != 0, coming.raw_bits().eq(offered), self.owner.eq(owner))

        started = Signal(len(drains))
        starts = Signal()
        left = Signal(bits_for(columns))  # turns, this one included
        more = Signal()
        sum_lanes = Signal()
        self.comb += [
            starts.eq(started != 0),
            more.eq(left[1:] != 0),
            self.begin.eq(starts & ~coming.reduce | delay_valid(self, starts & coming.reduce, lanes.reduce_delay)),
        ]
        self.sync += [
            started.eq(triggers),
            If(starts, left.eq(coming.columns), sum_lanes.eq(coming.reduce)).Elif(left != 0, left.eq(left - 1)),
        ]
        turns = []
        for index in range(len(drains)):
            turn = started[index] & ~coming.maximum
            for _ in range(columns):
                turns.append(turn)
                turn = delay_valid(self, turn, 1) & more
        turns += [started[index] & coming.maximum for index in range(len(drains))]
        self.comb += [
            lanes.turns.eq(Cat(*turns)),
            lanes.sum_lanes.eq(delay_valid(self, (left != 0) & sum_lanes, SUM)),
        ]
