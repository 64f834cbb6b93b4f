"""Results on their way to the activation memory, and what the groups are told when they have got there.

With the last result of a drain goes its `fate`: which group is told that it is written, and whether that ends a
section.
"""

from migen import *
from migen.genlib.fifo import SyncFIFO, SyncFIFOBuffered
from migen.genlib.record import Record, layout_len

from sentei.gateware.common import delay, delay_valid
from sentei.gateware.group.drain import DrainPort
from sentei.gateware.requantizer.addresses import Addresses
from sentei.gateware.requantizer.columns import Columns
from sentei.gateware.technologies.lanes import LATENCY, Lanes


class Results(Module):
    """A queue of `depth` results between `lanes` and `writer`, a source of the activation memory. `written` pulses with
    each result that the memory takes."""

    def __init__(self, drains: list[DrainPort], columns: Columns, addresses: Addresses, lanes: Lanes, writer, depth):
        self.written = Signal()

        # # #

        emit = Signal()
        self.comb += emit.eq(columns.active & ~columns.now.join)
        fate = [("ends", 1), ("signal", 1), ("owner", len(addresses.owner))]
        layout = [("word", len(writer.word)), ("data", len(writer.data)), ("fate", fate)]
        pushed, popped = Record(layout), Record(layout)
        self.submodules.queue = queue = SyncFIFOBuffered(layout_len(layout), depth)
        # Who may write depends on the words' lowest bits: they do not wait for a block RAM.
        self.submodules.parities = parities = SyncFIFO(1, depth)
        self.comb += [
            pushed.word.eq(delay(self, addresses.output, LATENCY)),
            pushed.data.eq(lanes.nibbles),
            pushed.fate.raw_bits().eq(
                delay(self, Cat(columns.ends & emit, columns.now.signal, addresses.owner), LATENCY)
            ),
            queue.we.eq(delay_valid(self, emit, LATENCY)),
            queue.din.eq(pushed.raw_bits()),
            popped.raw_bits().eq(queue.dout),
            writer.valid.eq(queue.readable),
            parities.din.eq(pushed.word),
            parities.we.eq(queue.we),
            parities.re.eq(self.written),
            writer.word.eq(Cat(parities.dout, popped.word[1:])),
            writer.data.eq(popped.data),
            queue.re.eq(writer.ready),
            self.written.eq(writer.valid & writer.ready),
        ]
        for index, drain in enumerate(drains):
            told = self.written & popped.fate.ends & (popped.fate.owner == index)
            self.sync += [drain.written.eq(told), drain.signal.eq(popped.fate.signal)]
