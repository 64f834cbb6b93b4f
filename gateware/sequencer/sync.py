"""What a SYNC instruction waits for."""

from functools import reduce
from operator import and_

from migen import *

from sentei.overlay.instructions import EPOCH_BITS, Until


def bit_of(flag: int) -> int:
    """Position of the flag's one bit."""
    return int(flag).bit_length() - 1


def is_for(groups, group: int):
    """Whether an instruction's field `groups`, a bit for each, 0 for all, names that one."""
    return groups[group] | (groups == 0)


class Sync(Module):
    """`satisfied`: what `units` names (see Until) has come about; `everything`: nothing at all is under way.

    `epoch`, counted from `first_epoch`, `count` and `address` are the instruction's; `loading`, `storing` and `results`
    say what is under way. `epochs` are the groups' counters, `arrivals` say which of them are about to go one up,
    `todo` are the numbers of runs that each has not finished.
    """

    def __init__(self, instruction, first_epoch, epochs, arrivals, todo):
        self.loading = Signal()
        self.storing = Signal()
        self.results = Signal()
        self.satisfied = Signal()
        self.everything = Signal()

        # # #

        ahead = []  # of the picture's start
        for epoch, more in zip(epochs, arrivals, strict=True):
            distance = Signal(EPOCH_BITS)
            self.sync += distance.eq(epoch + more - first_epoch)
            ahead.append(distance)
        reached, few_runs, no_run = Signal(), Signal(), Signal()
        self.comb += [
            reached.eq(reduce(and_, [~(distance - instruction.epoch)[EPOCH_BITS - 1] for distance in ahead])),
            few_runs.eq(
                reduce(
                    and_,
                    [
                        (level <= instruction.count) | ~is_for(instruction.address, group)
                        for group, level in enumerate(todo)
                    ],
                )
            ),
            no_run.eq(reduce(and_, [level == 0 for level in todo])),
            self.everything.eq(~self.loading & ~self.storing & no_run & ~self.results),
        ]
        come_about = {
            Until.EPOCH: reached,
            Until.LOADED: ~self.loading,
            Until.STORED: ~self.storing,
            Until.RUNS: few_runs,
            Until.WRITTEN: ~self.results,
        }
        self.comb += self.satisfied.eq(
            reduce(and_, [true | ~instruction.units[bit_of(until)] for until, true in come_about.items()])
        )
