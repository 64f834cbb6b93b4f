"""Bus-master DMA: moves runs of 64-bit words between main memory (AXI) and streams, in bursts.

A transfer is cut into INCR bursts of at most 16 beats that end at multiples of 16 beats, so that none crosses a 4 KiB
border. Reads keep several bursts in flight, which hides the memory's latency:

    command --> AR bursts ---> memory ---> R beats --> width converter --> 64-bit words
    64-bit words --> width converter --> W beats, AW bursts ---> memory ---> B

An error response ends the transfer and raises `error` with the address. `abort` gives up at once but keeps the bus
legal: data still due is taken and thrown away, bursts begun are completed without writing; only then does `busy` fall.
Base addresses must be multiples of the bus width.
"""

from litex.soc.interconnect import stream
from litex.soc.interconnect.axi import BURST_INCR, AXIInterface
from migen import *
from migen.genlib.fifo import SyncFIFO

from sentei.overlay.geometry import LOAD_BITS

BURST_BEATS = 16
READS_IN_FLIGHT = 8  # bursts
WRITES_IN_FLIGHT = 4  # bursts


def command_layout():
    """`address`: first byte, a multiple of the bus width; `words`: 64-bit words, at least 1."""
    return [("address", 32), ("words", 24)]


class BurstCutter(Module):
    """Turns a command into bursts: `source` gives `address`, `beats` (1 to 16) and `last`."""

    def __init__(self, bus_bits: int):
        self.sink = sink = stream.Endpoint(command_layout())
        self.source = source = stream.Endpoint([("address", 32), ("beats", 5)])
        self.clear = Signal()

        # # #

        bus_bytes = bus_bits // 8
        beat_shift = log2_int(bus_bytes)
        address = Signal(32)
        remaining = Signal(26)  # beats
        busy = Signal()
        room = Signal(5)
        self.comb += [
            sink.ready.eq(~busy),
            room.eq(BURST_BEATS - address[beat_shift : beat_shift + log2_int(BURST_BEATS)]),
            source.valid.eq(busy),
            source.address.eq(address),
            source.last.eq(remaining <= room),
            source.beats.eq(Mux(source.last, remaining, room)),
        ]
        if bus_bits <= LOAD_BITS:
            beats = sink.words << log2_int(LOAD_BITS // bus_bits)
        else:
            beats = (sink.words + bus_bits // LOAD_BITS - 1) >> log2_int(bus_bits // LOAD_BITS)
        self.sync += [
            If(sink.valid & sink.ready, address.eq(sink.address), remaining.eq(beats), busy.eq(1)),
            If(
                source.valid & source.ready,
                address.eq(address + (source.beats << beat_shift)),
                remaining.eq(remaining - source.beats),
                busy.eq(~source.last),
            ),
            If(self.clear, busy.eq(0)),
        ]


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
        words = Signal(24)  # still to hand over
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
        words = Signal(24)  # still to take
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
