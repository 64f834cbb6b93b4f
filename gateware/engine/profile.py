"""What the groups' cycles are spent on: counters, and a record for each layer of each group."""

from migen import *

from sentei.gateware.common import delay_valid
from sentei.overlay.geometry import Geometry
from sentei.overlay.registers import PROFILE_WORDS


class Profile(Module):
    """Counts what every cycle of a group was spent on, and keeps a record of each layer of each (PROFILE_WORDS).

    `bytes_moved` is the number of bytes that the bus moves in this cycle. `index` selects record * 8 + word; `data`
    shows it two cycles later. A full memory takes no more records.
    """

    COUNTER_BITS = 24

    def __init__(self, geometry: Geometry, groups, bytes_moved):
        self.clear = Signal()
        self.count = Signal(max=geometry.profile_entries + 1)
        self.index = Signal(32)
        self.data = Signal(32)

        # # #

        # All a cycle later: what a group does in a cycle is decided late in it.
        clear = delay_valid(self, self.clear, 1)
        clock = Signal(32)
        transferred = Signal(32)
        writing = Signal()
        self.sync += [
            If(clear, clock.eq(0)).Else(clock.eq(clock + 1)),
            If(writing | clear, transferred.eq(bytes_moved)).Else(transferred.eq(transferred + bytes_moved)),
        ]
        written = {name: Signal(32) for name in PROFILE_WORDS}
        busy = C(0)
        for number, group in enumerate(groups):
            causes = dict(
                steps=group.stepping,
                drain_stalls=group.draining,
                waits=group.waiting,
                setup=group.preparing,
                idle=group.idle,
            )
            causes = {name: delay_valid(self, cause, 1) for name, cause in causes.items()}
            ends = delay_valid(self, group.layer_ends, 1)
            taken, pending = Signal(), Signal()
            end = Signal(32)
            self.comb += [
                group.record_taken.eq(~ends & ~pending),
                taken.eq(pending & ~busy),
                If(taken, written["group"].eq(number), written["end"].eq(end)),
            ]
            self.sync += [
                If(taken, pending.eq(0)),
                If(ends, pending.eq(1), end.eq(clock + 1)),
                If(clear, pending.eq(0)),
            ]
            for name, cause in causes.items():
                counter, total, record = (Signal(self.COUNTER_BITS) for _ in range(3))
                self.comb += [total.eq(counter + cause), If(taken, written[name].eq(record))]
                self.sync += [
                    counter.eq(total),
                    If(ends, record.eq(total), counter.eq(0)),
                    If(clear, counter.eq(0)),
                ]
            busy = busy | pending
        memory = Memory(32 * len(PROFILE_WORDS), geometry.profile_entries)
        read_port = memory.get_port(mode=READ_FIRST)
        write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
        self.specials += memory, read_port, write_port
        word_bits = log2_int(len(PROFILE_WORDS))
        select = Signal(word_bits)
        room = Signal()
        self.sync += [
            If(writing & room, self.count.eq(self.count + 1)),
            If(clear, self.count.eq(0)),
            select.eq(self.index[:word_bits]),
        ]
        self.comb += [
            writing.eq(busy),
            room.eq(self.count != geometry.profile_entries),
            written["bytes"].eq(transferred),
            write_port.adr.eq(self.count),
            write_port.dat_w.eq(Cat(*[written[name] for name in PROFILE_WORDS])),
            write_port.we.eq(writing & room),
            read_port.adr.eq(self.index[word_bits:]),
        ]
        self.sync += Case(
            select,
            {k: self.data.eq(read_port.dat_r[32 * k : 32 * (k + 1)]) for k in range(len(PROFILE_WORDS))},
        )
