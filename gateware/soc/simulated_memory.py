"""Simulated main memory: one array, an AXI port for the engine and a Wishbone port for the CPU and the host.

Cycle counts mean nothing without a memory model, so the AXI port keeps to a stated one (`MemoryModel`): latency of
bursts overlaps as on a Zynq HP port, words follow at the model's rate. It is for simulation only.

                 +----------+   due?   +------+  pace   +---------------+
    axi.ar  ---> | 8 bursts | -------> | beat | ------> | main_ram read | ---> axi.r    latency, then 1 beat a pace
                 +----------+          +------+         +---------------+
    axi.aw  ---> | 4 bursts | ---> axi.w, 1 beat a pace ---> main_ram write ---> | answers, due? | ---> axi.b

Answers: OKAY; DECERR for a beat outside the memory; SLVERR for what the model does not do (bursts that are not INCR or
not of full width, `last` on the wrong beat). Nothing is written by a beat that fails.

Run-time inputs, for tests: `stalls` (nonzero: seed of random stalls on all five channels), `withhold` (1: no more
answers, neither read beats nor write answers, until 0).
"""

from litex.gen import LiteXModule
from litex.soc.interconnect import axi, stream, wishbone
from litex.soc.interconnect.axi import BURST_INCR
from migen import READ_FIRST, If, Memory, Mux, Signal, log2_int

from sentei.overlay.manifest import MemoryModel

READ_BURSTS = 8  # accepted and not yet answered, as on a Zynq HP port
WRITE_BURSTS = 4
OKAY, SLVERR, DECERR = 0b00, 0b10, 0b11
OUTPUT_CYCLES = 1  # registers of the r and b channels, part of the model's latency


class SimulatedMemory(LiteXModule):
    """`size_bytes` of memory at `base`; `axi` is `bus_bits` wide, `bus` is 32 bits wide and addressed in words."""

    autocsr_exclude = ("storage",)  # not to be mapped among the CSRs

    def __init__(self, model: MemoryModel, base: int, size_bytes: int, bus_bits: int):
        self.model = model
        self.size_bytes = size_bytes
        self.parts: dict = {}
        self.header = ""
        self.axi = axi.AXIInterface(data_width=bus_bits, address_width=32, id_width=1)
        self.bus = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        self.stalls = Signal(32)
        self.withhold = Signal()

        # # #

        self.storage = Memory(bus_bits, size_bytes * 8 // bus_bits, name="main_ram")
        self.specials += self.storage
        self.base, self.bus_bits = base, bus_bits
        self.now = Signal(32)
        self.sync += self.now.eq(self.now + 1)
        self.stalled = self.add_stalls()
        self.add_bus_port()

        # Pace: after a beat, its direction (or both, if they share) waits for the rest of the beat's cycles.
        self.read_beat, self.write_beat = Signal(), Signal()
        self.read_wants, self.write_wants = Signal(), Signal()
        beat_cycles = model.beat_cycles(bus_bits)
        if model.duplex:
            self.read_may = self.paced(self.read_beat, beat_cycles)
            self.write_may = self.paced(self.write_beat, beat_cycles)
        else:
            free = self.paced(self.read_beat | self.write_beat, beat_cycles)
            turn = Signal()  # 1: a write goes first
            self.sync += If(self.read_beat, turn.eq(1)).Elif(self.write_beat, turn.eq(0))
            self.read_may, self.write_may = Signal(), Signal()
            self.comb += self.read_may.eq(free & ~(turn & self.write_wants))
            self.comb += self.write_may.eq(free & ~self.read_beat)
        self.add_read_port()
        self.add_write_port()

    def paced(self, beat, cycles):
        """Signal that is 0 for `cycles - 1` cycles after `beat`."""
        free = Signal(reset=1)
        if cycles == 1:
            self.comb += free.eq(1)
        else:
            left = Signal(max=cycles)
            self.comb += free.eq(left == 0)
            self.sync += If(beat, left.eq(cycles - 1)).Elif(~free, left.eq(left - 1))
        return free

    def add_stalls(self):
        """Five bits, for ar, r, aw, w, b: 1 at random (xorshift32) in about half of all cycles."""
        state, a, b, c = (Signal(32) for _ in range(4))
        enabled = Signal()
        self.comb += enabled.eq(self.stalls != 0)
        self.comb += [a.eq(state ^ (state << 13)), b.eq(a ^ (a >> 17)), c.eq(b ^ (b << 5))]
        self.sync += If(enabled & (state != 0), state.eq(c)).Else(state.eq(self.stalls))
        stalled = Signal(5)
        self.comb += If(enabled, stalled.eq(state[8:13]))
        return stalled

    def add_bus_port(self):
        """Wishbone: one word in two cycles. Addresses outside the memory wrap: the interconnect decodes the region."""
        bus, ratio = self.bus, self.bus_bits // 32
        port = self.storage.get_port(write_capable=True, we_granularity=8, mode=READ_FIRST)
        self.specials += port
        strobe = Signal()
        self.comb += [
            strobe.eq(bus.cyc & bus.stb & ~bus.ack),
            port.adr.eq(bus.adr[log2_int(ratio) :]),
        ]
        lane = bus.adr[: log2_int(ratio)] if ratio > 1 else 0
        for i in range(ratio):
            self.comb += port.dat_w[32 * i : 32 * (i + 1)].eq(bus.dat_w)
            self.comb += If(strobe & bus.we & (lane == i), port.we[4 * i : 4 * (i + 1)].eq(bus.sel))
            self.comb += If(lane == i, bus.dat_r.eq(port.dat_r[32 * i : 32 * (i + 1)]))
        self.sync += bus.ack.eq(strobe)

    def decode(self, burst, beat):
        """(word address, error code) of beat number `beat` of `burst`."""
        beat_bytes = self.bus_bits // 8
        relative, error = Signal(32), Signal(2)
        self.comb += [
            relative.eq(burst.addr - self.base + (beat << log2_int(beat_bytes))),
            If((burst.burst != BURST_INCR) & (burst.len != 0) | (burst.size != log2_int(beat_bytes)), error.eq(SLVERR)),
            If(relative >= self.size_bytes, error.eq(DECERR)),
        ]
        return relative[log2_int(beat_bytes) : log2_int(self.size_bytes)], error

    def add_read_port(self):
        ar, r = self.axi.ar, self.axi.r
        self.bursts = bursts = stream.SyncFIFO(
            [("addr", 32), ("len", 8), ("size", 3), ("burst", 2), ("id", 1), ("due", 32)], READ_BURSTS
        )
        port = self.storage.get_port(has_re=True, mode=READ_FIRST)
        self.specials += port
        burst, beat, advance = bursts.source, Signal(8), Signal()
        address, error = self.decode(burst, beat)
        failed, elapsed = Signal(), Signal(32)
        self.comb += [
            ar.connect(bursts.sink, keep={"addr", "len", "size", "burst"}),
            bursts.sink.id.eq(ar.id),
            bursts.sink.valid.eq(ar.valid & ~self.stalled[0]),
            ar.ready.eq(bursts.sink.ready & ~self.stalled[0]),
            bursts.sink.due.eq(self.now + self.model.latency_cycles - OUTPUT_CYCLES),
            elapsed.eq(self.now - burst.due),
            advance.eq(r.ready | ~r.valid),
            self.read_wants.eq(burst.valid & ~elapsed[31] & advance & ~self.stalled[1] & ~self.withhold),
            self.read_beat.eq(self.read_wants & self.read_may),
            burst.ready.eq(self.read_beat & (beat == burst.len)),
            port.adr.eq(address),
            port.re.eq(self.read_beat),
            r.data.eq(Mux(failed, 0, port.dat_r)),
        ]
        self.sync += [
            If(advance, r.valid.eq(0)),
            If(
                self.read_beat,
                r.valid.eq(1),
                r.last.eq(beat == burst.len),
                r.resp.eq(error),
                r.id.eq(burst.id),
                failed.eq(error != OKAY),
                beat.eq(Mux(beat == burst.len, 0, beat + 1)),
            ),
        ]

    def add_write_port(self):
        aw, w, b = self.axi.aw, self.axi.w, self.axi.b
        self.writes = writes = stream.SyncFIFO(
            [("addr", 32), ("len", 8), ("size", 3), ("burst", 2), ("id", 1)], WRITE_BURSTS
        )
        self.answers = answers = stream.SyncFIFO([("id", 1), ("resp", 2), ("due", 32)], READ_BURSTS)
        port = self.storage.get_port(write_capable=True, we_granularity=8, mode=READ_FIRST)
        self.specials += port
        burst, beat, last, worst, resp = writes.source, Signal(8), Signal(), Signal(2), Signal(2)
        address, error = self.decode(burst, beat)
        elapsed = Signal(32)
        self.comb += [
            aw.connect(writes.sink, keep={"addr", "len", "size", "burst"}),
            writes.sink.id.eq(aw.id),
            writes.sink.valid.eq(aw.valid & ~self.stalled[2]),
            aw.ready.eq(writes.sink.ready & ~self.stalled[2]),
            self.write_wants.eq(burst.valid & w.valid & answers.sink.ready & ~self.stalled[3]),
            self.write_beat.eq(self.write_wants & self.write_may),
            w.ready.eq(self.write_beat),
            last.eq(beat == burst.len),
            resp.eq(worst | error | Mux(w.last != last, SLVERR, OKAY)),
            burst.ready.eq(self.write_beat & last),
            port.adr.eq(address),
            port.dat_w.eq(w.data),
            If(self.write_beat & (error == OKAY), port.we.eq(w.strb)),
            answers.sink.valid.eq(self.write_beat & last),
            answers.sink.id.eq(burst.id),
            answers.sink.resp.eq(resp),
            answers.sink.due.eq(self.now + self.model.latency_cycles - OUTPUT_CYCLES),
            elapsed.eq(self.now - answers.source.due),
        ]
        self.sync += If(self.write_beat, beat.eq(Mux(last, 0, beat + 1)), worst.eq(Mux(last, OKAY, resp)))
        # b is registered so that an offered answer stays offered.
        take = Signal()
        self.comb += [
            take.eq(answers.source.valid & ~elapsed[31] & (b.ready | ~b.valid) & ~self.stalled[4] & ~self.withhold),
            answers.source.ready.eq(take),
        ]
        self.sync += [
            If(b.ready, b.valid.eq(0)),
            If(take, b.valid.eq(1), b.id.eq(answers.source.id), b.resp.eq(answers.source.resp)),
        ]
