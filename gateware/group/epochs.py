"""Waiting for other groups: whether all of them have reached an epoch (overlay/instructions.py says what epochs are).

Epochs count modulo 2^EPOCH_BITS; none is ahead of another by half of that. So epoch a has reached b if a - b is not
negative.
"""

from functools import reduce
from operator import and_

from migen import *

from sentei.overlay.instructions import EPOCH_BITS


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
