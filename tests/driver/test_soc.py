"""The SoC around the engine: its memory keeps to the model's figures, its interrupts to PG099, its CPU talks."""

import random

import pytest

pytest.importorskip("litex")

from litex.gen.sim import run_simulation
from litex.soc.interconnect.axi import BURST_INCR
from litex.soc.interconnect.csr_bus import CSRBank, Interface
from migen import Module, Signal, passive

from sentei.gateware.soc.interrupt import InterruptController
from sentei.gateware.soc.simulated_memory import DECERR, OKAY, SLVERR, SimulatedMemory
from sentei.overlay.manifest import MEMORY_MODELS
from sentei.overlay.registers import INTERRUPT_REGISTERS

BASE, SIZE, BEATS = 0x4000_0000, 4096, 16
HP, SDRAM = MEMORY_MODELS["zynq-hp"], MEMORY_MODELS["ulx3s-sdram"]


class Traffic:
    """AXI master for tests: queue bursts, then run; it records what comes back and in which cycle."""

    def __init__(self, memory: SimulatedMemory, seed: int | None = None):
        self.memory, self.seed = memory, seed
        self.random = random.Random(seed)
        self.reads, self.writes = [], []  # (address, beats), (address, data words)
        self.overrides = {}
        self.taken, self.beats, self.answers = [], [], []  # cycles of AR; (cycle, data, resp, last); (cycle, resp)
        self.written = []  # cycle of each W beat
        self.cycle = 0

    def run(self, limit: int = 2000, stalls: int = 0, withhold=()):
        """Until everything has been answered; `withhold` is a range of cycles without answers."""
        wanted = sum(beats for _, beats in self.reads), len(self.writes)
        watch = self._watch(wanted, limit, stalls, withhold)
        run_simulation(self.memory, [self._channel("ar"), self._channel("aw"), self._data(), watch])
        return self

    def _ready(self):
        return 1 if self.seed is None else self.random.randint(0, 1)

    @passive
    def _channel(self, name):
        channel = getattr(self.memory.axi, name)
        size_log2 = (self.memory.axi.data_width // 8).bit_length() - 1
        for address, content in list(self.reads if name == "ar" else self.writes):
            beats = content if name == "ar" else len(content)
            fields = {"addr": address, "len": beats - 1, "size": size_log2, "burst": BURST_INCR} | self.overrides
            for field, value in fields.items():
                yield getattr(channel, field).eq(value)
            yield channel.valid.eq(1)
            yield
            while not (yield channel.ready):
                yield
            yield channel.valid.eq(0)
        while True:
            yield

    @passive
    def _data(self):
        channel = self.memory.axi.w
        for _, words in list(self.writes):
            for index, word in enumerate(words):
                yield channel.data.eq(word)
                yield channel.strb.eq(2 ** len(channel.strb) - 1)
                yield channel.last.eq(index == len(words) - 1)
                yield channel.valid.eq(1)
                yield
                while not (yield channel.ready):
                    yield
        yield channel.valid.eq(0)
        while True:
            yield

    def _watch(self, wanted, limit, stalls, withhold):
        ar, r, w, b = (getattr(self.memory.axi, name) for name in ("ar", "r", "w", "b"))
        held = None
        yield self.memory.stalls.eq(stalls)
        while (len(self.beats), len(self.answers)) != wanted:
            assert self.cycle < limit, f"{len(self.beats)} beats, {len(self.answers)} answers, wanted {wanted}"
            yield r.ready.eq(self._ready())
            yield b.ready.eq(self._ready())
            yield self.memory.withhold.eq(self.cycle in withhold)
            yield
            self.cycle += 1
            if (yield ar.valid) and (yield ar.ready):
                self.taken.append(self.cycle)
            if (yield w.valid) and (yield w.ready):
                self.written.append(self.cycle)
            offered = ((yield r.valid), (yield r.data), (yield r.resp), (yield r.last))
            assert held is None or held == offered, "an offered beat must stay until it is taken"
            held = offered if offered[0] and not (yield r.ready) else None
            if offered[0] and (yield r.ready):
                self.beats.append((self.cycle, *offered[1:]))
            if (yield b.valid) and (yield b.ready):
                self.answers.append((self.cycle, (yield b.resp)))
        for _ in range(50):
            yield
            assert not (yield r.valid) or held, "more beats than were asked for"


def memory(model=HP, bus_bits=64, content=None):
    result = SimulatedMemory(model, BASE, SIZE, bus_bits)
    count = SIZE * 8 // bus_bits
    result.storage.init = content or [index * 0x10001 for index in range(count)]
    return result


@pytest.mark.parametrize("model, bus_bits", [(HP, 64), (HP, 32), (SDRAM, 64), (SDRAM, 32)], ids=str)
def test_reads_have_the_models_latency_and_rate(model, bus_bits):
    traffic = Traffic(memory(model, bus_bits))
    beat_bytes = bus_bits // 8
    bursts = 6
    traffic.reads = [(BASE + index * BEATS * beat_bytes, BEATS) for index in range(bursts)]
    traffic.run()
    times = [time for time, *_ in traffic.beats]
    pace = model.beat_cycles(bus_bits)
    assert times[0] - traffic.taken[0] == model.latency_cycles
    assert times[-1] - times[0] == (bursts * BEATS - 1) * pace  # latencies of later bursts are hidden
    assert [data for _, data, *_ in traffic.beats] == [index * 0x10001 for index in range(bursts * BEATS)]
    assert [last for *_, last in traffic.beats] == ([0] * (BEATS - 1) + [1]) * bursts
    assert {resp for _, _, resp, _ in traffic.beats} == {OKAY}


def test_stated_bandwidths():
    assert HP.bytes_per_cycle(64) == 8 and HP.bytes_per_cycle(32) == 4 and HP.bytes_per_cycle(128) == 8
    assert SDRAM.bytes_per_cycle(64) == 2 and SDRAM.beat_cycles(64) == 4
    assert str(HP) == "zynq-hp: 64 bits a cycle each way, latency 20 cycles"


@pytest.mark.parametrize("model", [HP, SDRAM], ids=str)
def test_writes_have_the_models_latency_and_rate(model):
    ram = memory(model)
    traffic = Traffic(ram)
    traffic.writes = [(BASE + 128 * index, list(range(100 * index, 100 * index + BEATS))) for index in range(3)]
    traffic.run()
    pace = model.beat_cycles(64)
    assert traffic.written[-1] - traffic.written[0] == (3 * BEATS - 1) * pace
    ends = [traffic.written[BEATS * (index + 1) - 1] for index in range(3)]
    assert [time - end for (time, _), end in zip(traffic.answers, ends, strict=True)] == [model.latency_cycles] * 3


@pytest.mark.parametrize("model, factor", [(HP, 1), (SDRAM, 2)], ids=str)
def test_reads_and_writes_share_the_bandwidth_only_where_the_model_says_so(model, factor):
    traffic = Traffic(memory(model))
    traffic.reads = [(BASE + 128 * index, BEATS) for index in range(8)]
    traffic.writes = [(BASE + 2048 + 128 * index, [0] * BEATS) for index in range(8)]
    traffic.run(4000)
    times = sorted(time for time, *_ in traffic.beats)
    shortest = (8 * BEATS - 1) * model.beat_cycles(64) * factor
    assert shortest - model.latency_cycles * factor <= max(times[-1], traffic.written[-1]) - model.latency_cycles
    assert times[-1] - times[0] <= shortest + model.latency_cycles


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_data_survives_random_stalls_on_both_sides(seed):
    ram = memory(bus_bits=32)
    words = [random.Random(seed).getrandbits(32) for _ in range(BEATS * 4)]
    traffic = Traffic(ram, seed)
    traffic.writes = [(BASE + 64 * index, words[BEATS * index : BEATS * (index + 1)]) for index in range(4)]
    traffic.reads = [(BASE + 1024 + 64 * index, BEATS) for index in range(8)]
    traffic.run(8000, stalls=seed * 0x9E3779B9 & 0xFFFFFFFF)
    assert [data for _, data, *_ in traffic.beats] == [(256 + index) * 0x10001 for index in range(BEATS * 8)]


def test_withheld_answers_come_later():
    ram = memory()
    traffic = Traffic(ram)
    traffic.reads, traffic.writes = [(BASE, BEATS)], [(BASE + 1024, [7])]
    traffic.run(withhold=range(25, 300))
    times = [time for time, *_ in traffic.beats]
    assert not [time for time in times if 30 < time < 300] and times[-1] > 300


@pytest.mark.parametrize(
    "address, overrides, responses",
    [
        (BASE + SIZE - 64, {}, [OKAY] * 8 + [DECERR] * 8),
        (BASE - 128, {}, [DECERR] * 16),
        (0, {}, [DECERR] * 16),
        (BASE, {"burst": 0}, [SLVERR] * 16),
        (BASE, {"size": 2}, [SLVERR] * 16),
    ],
)
def test_bursts_that_the_memory_cannot_serve_are_answered_with_errors(address, overrides, responses):
    traffic = Traffic(memory())
    traffic.overrides = overrides
    traffic.reads, traffic.writes = [(address, BEATS)], [(address, [1] * BEATS)]
    traffic.run()
    assert [resp for _, _, resp, _ in traffic.beats] == responses
    assert [resp for _, resp in traffic.answers] == [max(responses)]
    assert all(data == 0 for _, data, resp, _ in traffic.beats if resp)


class Interrupts(Module):
    """The controller on a CSR bus, with three inputs."""

    def __init__(self):
        self.inputs = [Signal() for _ in range(3)]
        self.submodules.controller = InterruptController(self.inputs)
        self.submodules.bank = CSRBank(self.controller.get_csrs(), bus=Interface(data_width=32))

    def write(self, name, value):
        yield from self.bank.bus.write(INTERRUPT_REGISTERS.index(name), value)
        yield

    def read(self, name):
        """LiteX's own read() looks one cycle too early."""
        yield self.bank.bus.adr.eq(INTERRUPT_REGISTERS.index(name))
        yield
        yield
        return (yield self.bank.bus.dat_r)

    def pulse(self, number):
        yield self.inputs[number].eq(1)
        yield
        yield self.inputs[number].eq(0)
        yield


def run_interrupts(process):
    dut = Interrupts()
    run_simulation(dut, process(dut))


def test_interrupts_are_captured_enabled_and_acknowledged():
    def process(dut):
        line = dut.controller.irq
        yield from dut.pulse(1)
        assert (yield from dut.read("isr")) == 0  # hardware interrupts are off
        yield from dut.write("mer", 0b11)
        yield from dut.pulse(1)
        assert (yield from dut.read("isr")) == 0b010 and (yield from dut.read("ipr")) == 0
        assert not (yield line) and (yield from dut.read("ivr")) == 0xFFFFFFFF
        yield from dut.write("sie", 0b010)
        assert (yield line) and (yield from dut.read("ipr")) == 0b010 and (yield from dut.read("ivr")) == 1
        yield from dut.write("cie", 0b010)
        assert not (yield line) and (yield from dut.read("isr")) == 0b010
        yield from dut.write("ier", 0b110)
        yield from dut.pulse(2)
        assert (yield from dut.read("ipr")) == 0b110 and (yield from dut.read("ivr")) == 1
        yield from dut.write("iar", 0b010)
        assert (yield from dut.read("ipr")) == 0b100 and (yield line)
        yield from dut.write("mer", 0)
        assert not (yield line) and (yield from dut.read("mer")) == 0b10

    run_interrupts(process)


def test_software_can_raise_interrupts_only_before_hardware_may():
    def process(dut):
        yield from dut.write("ier", 0b111)
        yield from dut.write("mer", 0b01)
        yield from dut.write("isr", 0b100)
        assert (yield dut.controller.irq) and (yield from dut.read("ivr")) == 2
        yield from dut.write("iar", 0b100)
        yield from dut.write("mer", 0b11)
        yield from dut.write("isr", 0b100)
        assert (yield from dut.read("isr")) == 0

    run_interrupts(process)


@pytest.mark.parametrize("delay", range(5))
def test_a_pulse_around_an_acknowledgement_is_not_lost(delay):
    """Pulses in successive cycles around the write of iar: only one that came before it may be gone."""
    dut = Interrupts()
    bus, history = dut.bank.bus, {}

    def process():
        yield from dut.write("mer", 0b11)
        for cycle in range(8):
            yield bus.adr.eq(INTERRUPT_REGISTERS.index("iar"))
            yield bus.dat_w.eq(1)
            yield bus.we.eq(cycle == 2)
            yield dut.inputs[0].eq(cycle == delay)
            yield
            history[cycle] = (yield dut.controller.iar.re), (yield dut.inputs[0])
        acknowledged = next(cycle for cycle, (strobe, _) in history.items() if strobe)
        pulsed = next(cycle for cycle, (_, level) in history.items() if level)
        assert (yield from dut.read("isr")) == (pulsed >= acknowledged)

    run_simulation(dut, process())


@pytest.fixture
def simulator(overlay_path):
    pytest.importorskip("numpy")
    from sentei.driver.simulator import Simulator

    simulator = Simulator(overlay_path())
    yield simulator
    simulator.close()


def test_the_host_reaches_memory_and_registers_and_nothing_else(simulator):
    from sentei.driver.errors import BusAccessError

    base = simulator.manifest.addresses["main_ram"]
    assert simulator.read(simulator.manifest.addresses["engine"]) == simulator.manifest.fingerprint
    simulator.write(base + 8, 0x01020304)
    assert simulator.memory[8:12].tolist() == [4, 3, 2, 1] and len(simulator.memory) == simulator.manifest.memory_bytes
    simulator.memory[-4:] = 9
    assert simulator.read(base + len(simulator.memory) - 4) == 0x09090909
    with pytest.raises(BusAccessError, match="read at 0xe0000000 was answered with a bus error"):
        simulator.read(0xE000_0000)


def test_a_build_is_not_repeated(overlay_path):
    from sentei.boards.sim import build

    path = overlay_path()
    library = next(path.parent.glob("sentei-*.so"))
    before = library.stat().st_mtime_ns
    assert build("8x8", "zynq-hp", path.parent) == path and library.stat().st_mtime_ns == before
