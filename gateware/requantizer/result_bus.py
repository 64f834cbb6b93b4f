"""The result bus: which group may end a pass.

It is granted to one group at a time, for as many cycles as the group has columns, and only if the write queue has room
for two groups' columns: so nothing behind the grant ever waits. A *wide* drain has it until its last piece is out.
"""

from migen import *

from sentei.gateware.group.drain import DrainPort
from sentei.gateware.technologies.lanes import VALUE
from sentei.overlay.geometry import Geometry

JOIN_CYCLES = VALUE + 1  # from reading a partial until its successor can be read


class ResultBus(Module):
    """Grants what the DrainPorts `drains` request. `credits` counts the free places of a write queue of `queue_depth`.

    `give` gives one back. A wide drain takes places for its other pieces with `resume`, `columns` at a time, and ends
    with `unlock`. A sum of lanes reaches the lanes `reduce_delay` cycles late; who follows must not overtake it.
    """

    def __init__(self, geometry: Geometry, drains: list[DrainPort], queue_depth: int, reduce_delay: int):
        columns = geometry.group_columns
        self.credits = Signal(max=queue_depth + 1, reset=queue_depth)
        self.give = Signal()
        self.resume = Signal()
        self.columns = Signal(bits_for(columns))
        self.unlock = Signal()
        self.busy = Signal()

        # # #

        take = Signal(len(self.credits))
        room = Signal()  # for a drain's results, also if another one took room in the cycle before
        self.sync += [
            self.credits.eq(self.credits - take + self.give),
            room.eq(self.credits >= 2 * columns),
        ]
        parameters_cycles = reduce_delay + 1  # for so long a sum of lanes needs its parameters
        occupied = Signal(max=max(columns, JOIN_CYCLES, parameters_cycles) + 1)  # cycles, this one included
        settling = Signal(max=columns + reduce_delay + 1)  # likewise, until a sum of lanes cannot be overtaken
        free, settled = Signal(), Signal()
        locked = Signal()  # a wide drain is on its way
        granted = C(0)
        statements = []
        self.comb += [
            free.eq((occupied[1:] == 0) & ~locked),
            settled.eq(settling[1:] == 0),
            self.busy.eq((self.credits != queue_depth) | locked),
        ]
        for drain in drains:
            wanted = drain.columns[: bits_for(columns)]
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
                    If(drain.reduce, settling.eq(wanted + reduce_delay)),
                )
            )
            granted = granted | drain.grant
        self.comb += If(self.resume, take.eq(self.columns))
        self.sync += [
            If(occupied != 0, occupied.eq(occupied - 1)),
            If(settling != 0, settling.eq(settling - 1)),
            If(self.unlock, locked.eq(0)),
            *statements,
        ]
