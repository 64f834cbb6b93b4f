"""Bus-master DMA, from main memory (AXI) to on-chip memory. Several bursts are in flight, which hides the latency.

    command --> AR bursts ---> memory ---> R beats --> width converter --> 64-bit words

An error response ends the transfer and raises `error` with the address. `abort` gives up at once but keeps the bus
legal: data still due is taken and thrown away; only then does `busy` fall.
"""

from litex.soc.interconnect import stream
from litex.soc.interconnect.axi import BURST_INCR, AXIInterface
from migen import *

from sentei.gateware.memory.bursts import BURST_BEATS, WORDS_BITS, BurstCutter, command_layout
from sentei.overlay.geometry import LOAD_BITS

READS_IN_FLIGHT = 8  # bursts


class DMAReader(Module):
    """`sink` takes a command; `source` gives its 64-bit words, `last` with the final one.

    `address` is the bus address of the next beat to arrive; `beat` pulses with each beat taken.
    """

    def __init__(self, bus: AXIInterface):
        bus_bits = bus.data_width
        self.sink = sink = stream.Endpoint(command_layout())
        self.source = source = stream.Endpoint([("data", LOAD_BITS)])
        self.abort = Signal()
        self.busy = Signal()
        self.error = Signal()
        self.address = Signal(32)
        self.beat = Signal()

        # # #

        self.submodules.cutter = cutter = BurstCutter(bus_bits)
        active = Signal()  # a transfer whose words are wanted
        words = Signal(WORDS_BITS)  # still to hand over
        due = Signal(max=READS_IN_FLIGHT * BURST_BEATS + 1)  # beats asked for and not yet here
        stale = Signal()  # beats due are not wanted any more
        self.submodules.converter = converter = ResetInserter()(stream.Converter(bus_bits, LOAD_BITS))
        accept = Signal()
        ask = Signal()  # the next burst enters the address channel, which then holds it until it is taken
        self.comb += [
            accept.eq(sink.valid & ~active & ~stale),
            cutter.sink.valid.eq(accept),
            cutter.sink.address.eq(sink.address),
            cutter.sink.words.eq(sink.words),
            sink.ready.eq(accept),
            cutter.clear.eq(self.abort | stale),
            ask.eq(
                cutter.source.valid
                & (~bus.ar.valid | bus.ar.ready)
                & (due <= (READS_IN_FLIGHT - 1) * BURST_BEATS)
                & ~stale
                & ~self.abort
            ),
            cutter.source.ready.eq(ask),
            bus.ar.size.eq(log2_int(bus_bits // 8)),
            bus.ar.burst.eq(BURST_INCR),
            bus.r.ready.eq(stale | converter.sink.ready),
            converter.sink.valid.eq(bus.r.valid & ~stale),
            converter.sink.data.eq(bus.r.data),
            converter.reset.eq(~active | self.abort),
            source.valid.eq(converter.source.valid & active),
            source.data.eq(converter.source.data),
            source.last.eq(words == 1),
            converter.source.ready.eq(source.ready),
            self.beat.eq(bus.r.valid & bus.r.ready),
            self.error.eq(self.beat & ~stale & (bus.r.resp != 0)),
            self.busy.eq(active | stale),
        ]
        due_next = Signal.like(due)
        self.comb += due_next.eq(due + Mux(ask, cutter.source.beats, 0) - self.beat)
        self.sync += [
            due.eq(due_next),
            If(bus.ar.ready, bus.ar.valid.eq(0)),
            If(
                ask,
                bus.ar.valid.eq(1),
                bus.ar.addr.eq(cutter.source.address),
                bus.ar.len.eq(cutter.source.beats - 1),
            ),
            If(accept, active.eq(1), words.eq(sink.words), self.address.eq(sink.address)),
            If(self.beat, self.address.eq(self.address + bus_bits // 8)),
            If(
                source.valid & source.ready,
                words.eq(words - 1),
                # Half of a wide last beat may be left over.
                If(source.last, active.eq(0), stale.eq(due_next != 0)),
            ),
            If(stale & (due_next == 0), stale.eq(0)),
            If(self.abort, active.eq(0), stale.eq(due_next != 0)),
        ]
