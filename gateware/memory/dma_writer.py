"""Bus-master DMA, from on-chip memory to main memory (AXI).

    64-bit words --> width converter --> W beats, AW bursts ---> memory ---> B

An error response ends the transfer and raises `error` with the address. `abort` gives up at once but keeps the bus
legal: bursts begun are completed without writing; only then does `busy` fall.
"""

from litex.soc.interconnect import stream
from litex.soc.interconnect.axi import BURST_INCR, AXIInterface
from migen import *
from migen.genlib.fifo import SyncFIFO

from sentei.gateware.memory.bursts import WORDS_BITS, BurstCutter, command_layout
from sentei.overlay.geometry import LOAD_BITS

WRITES_IN_FLIGHT = 4  # bursts


class DMAWriter(Module):
    """`sink` takes a command, `data` its 64-bit words. `busy` falls when memory has acknowledged the last burst.

    A burst's data follows its address; the next burst does not wait for the acknowledgement.
    """

    def __init__(self, bus: AXIInterface):
        bus_bits = bus.data_width
        self.sink = sink = stream.Endpoint(command_layout())
        self.data = data = stream.Endpoint([("data", LOAD_BITS)])
        self.abort = Signal()
        self.busy = Signal()
        self.error = Signal()
        self.address = Signal(32)  # of the burst being written
        self.oldest = Signal(32)  # of the oldest burst not yet acknowledged; with `error`, the one that failed
        self.beat = Signal()

        # # #

        self.submodules.cutter = cutter = BurstCutter(bus_bits)
        self.submodules.converter = converter = ResetInserter()(
            stream.Converter(LOAD_BITS, bus_bits, report_valid_token_count=True)
        )
        # A beat that was offered stays as it is until it is taken, also when the transfer is aborted.
        self.submodules.offer = offer = stream.Buffer([("data", bus_bits), ("strb", bus_bits // 8)])
        self.submodules.bursts = bursts = SyncFIFO(32, WRITES_IN_FLIGHT)  # addresses not yet acknowledged
        active = Signal()
        aborting = Signal()
        words = Signal(WORDS_BITS)  # still to take
        beats = Signal(5)  # of this burst, not yet offered
        length = Signal(5)  # of this burst
        filled = Signal(bus_bits // 8)  # bytes of the next beat that hold words
        announced = Signal()  # this burst's address is taken
        all_cut = Signal()  # no further burst will start
        unanswered = Signal(max=WRITES_IN_FLIGHT + 1)  # bursts begun, not yet acknowledged
        if bus_bits > LOAD_BITS:
            holds = [converter.source.valid_token_count > word for word in range(bus_bits // LOAD_BITS)]
            self.comb += filled.eq(Cat(*[Replicate(held, LOAD_BITS // 8) for held in holds]))
        else:
            self.comb += filled.eq((1 << len(filled)) - 1)
        accept = Signal()
        start = Signal()
        abandon = Signal()
        idle = Signal()  # nothing is owed to the bus
        self.comb += [
            abandon.eq(aborting | self.abort),
            idle.eq((beats == 0) & (unanswered == 0)),
            accept.eq(sink.valid & ~active & ~aborting),
            cutter.sink.valid.eq(accept),
            cutter.sink.address.eq(sink.address),
            cutter.sink.words.eq(sink.words),
            sink.ready.eq(accept),
            cutter.clear.eq(abandon),
            start.eq((beats == 0) & (unanswered != WRITES_IN_FLIGHT) & cutter.source.valid & ~abandon),
            cutter.source.ready.eq(start),
            bursts.we.eq(start),
            bursts.din.eq(cutter.source.address),
            bursts.re.eq(bus.b.valid),
            self.oldest.eq(bursts.dout),
            bus.aw.valid.eq((length != 0) & ~announced),
            bus.aw.addr.eq(self.address),
            bus.aw.len.eq(length - 1),
            bus.aw.size.eq(log2_int(bus_bits // 8)),
            bus.aw.burst.eq(BURST_INCR),
            converter.sink.valid.eq(data.valid & active & (words != 0)),
            converter.sink.data.eq(data.data),
            converter.sink.last.eq(words == 1),
            data.ready.eq(converter.sink.ready & active & (words != 0)),
            converter.reset.eq(~active | self.abort),
            offer.sink.valid.eq((beats != 0) & announced & (converter.source.valid | aborting)),
            offer.sink.data.eq(converter.source.data),
            offer.sink.strb.eq(Mux(aborting, 0, filled)),
            offer.sink.last.eq(beats == 1),
            converter.source.ready.eq(offer.sink.valid & offer.sink.ready & ~aborting),
            offer.source.connect(bus.w),
            bus.b.ready.eq(1),
            self.beat.eq(bus.w.valid & bus.w.ready),
            self.error.eq(bus.b.valid & (bus.b.resp != 0) & ~aborting),
            self.busy.eq(active | aborting),
        ]
        self.sync += [
            unanswered.eq(unanswered + start - bus.b.valid),
            If(data.valid & data.ready, words.eq(words - 1)),
            If(
                start,
                beats.eq(cutter.source.beats),
                length.eq(cutter.source.beats),
                self.address.eq(cutter.source.address),
                all_cut.eq(cutter.source.last),
                announced.eq(0),
            ),
            If(bus.aw.valid & bus.aw.ready, announced.eq(1)),
            If(offer.sink.valid & offer.sink.ready, beats.eq(beats - 1)),
            If(active & all_cut & idle, active.eq(0)),
            If(aborting & idle, aborting.eq(0)),
            If(accept, active.eq(1), words.eq(sink.words), all_cut.eq(0)),
            If(self.abort, active.eq(0), aborting.eq(~idle)),
        ]
