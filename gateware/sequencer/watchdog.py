"""Counts a job's cycles, and says when it is late."""

from migen import *


class Watchdog(Module):
    """`late`: more than `limit` cycles (0: no limit) have passed since the job before ended (`done`), or since this one
    was alone in coming (`busy`). Nothing is counted while `stopped`. `last_cycles` are those of the last job."""

    def __init__(self):
        self.limit = Signal(32)
        self.busy = Signal()
        self.done = Signal()
        self.stopped = Signal()
        self.late = Signal()
        self.cycles = Signal(32)
        self.last_cycles = Signal(32)

        # # #

        self.comb += self.late.eq((self.limit != 0) & (self.cycles >= self.limit) & self.busy & ~self.done)
        self.sync += [
            If(self.done, self.last_cycles.eq(self.cycles + 1), self.cycles.eq(0))
            .Elif(~self.busy, self.cycles.eq(0))
            .Elif(~self.stopped, self.cycles.eq(self.cycles + 1)),
        ]
