"""Gateware modules one by one, in migen's simulator: stated latencies, every cycle busy, random stalls and aborts."""

import random

import numpy as np
import pytest
from helpers.tiers import hardware
from litex.soc.interconnect.axi import AXIInterface
from migen import Module, run_simulation

from sentei.gateware.group.aligner import Aligner
from sentei.gateware.memory.activation_memory import ActivationMemory, ActivationPort
from sentei.gateware.memory.bursts import BURST_BEATS
from sentei.gateware.memory.dma_reader import DMAReader
from sentei.gateware.memory.dma_writer import DMAWriter
from sentei.gateware.technologies.array import GroupArray
from sentei.overlay.geometry import Geometry

SMALL = Geometry(lanes=8, columns=8, groups=2, requantizers=1, activation_words=64)


def pack(nibbles):
    """Lanes, lowest first, as one integer."""
    return sum(int(value) << 4 * lane for lane, value in enumerate(nibbles))


def lanes_of(word, lanes, bits=4, signed=False):
    values = [word >> bits * lane & ((1 << bits) - 1) for lane in range(lanes)]
    return [value - (1 << bits) if signed and value >> (bits - 1) else value for value in values]


def test_aligner_delivers_a_vector_every_cycle_at_its_stated_latency():
    seed = 1
    rng = np.random.default_rng(seed)
    top = Module()
    top.submodules.memory = memory = ActivationMemory(SMALL, readers=1, writers=1)
    top.submodules.aligner = aligner = Aligner(SMALL, memory.ports[0])
    lanes = SMALL.lanes
    content = rng.integers(0, 16, SMALL.activation_words * lanes)
    requests = [
        (int(rng.integers(0, len(content) - lanes)), int(rng.integers(0, 1 << lanes)), int(rng.integers(0, 16)))
        for _ in range(300)
    ]
    seen = []

    def stimulus():
        writer = memory.writers[0]
        for word in range(SMALL.activation_words):
            yield writer.valid.eq(1)
            yield writer.word.eq(word)
            yield writer.data.eq(pack(content[word * lanes : (word + 1) * lanes]))
            yield
        yield writer.valid.eq(0)
        for _ in range(1 + ActivationMemory.WRITE_LATENCY):
            yield
        for cycle in range(len(requests) + Aligner.LATENCY):
            if cycle < len(requests):
                yield aligner.address.eq(requests[cycle][0])
            if 0 <= cycle - Aligner.MASK_DELAY < len(requests):
                _, mask, pad = requests[cycle - Aligner.MASK_DELAY]
                yield aligner.mask.eq(mask)
                yield aligner.pad.eq(pad)
            yield
            # What is seen here follows the inputs set above by one cycle.
            if cycle >= Aligner.LATENCY:
                seen.append((yield aligner.vector))

    run_simulation(top, stimulus())
    for (address, mask, pad), word in zip(requests, seen, strict=True):
        expected = [content[address + lane] if mask >> lane & 1 else pad for lane in range(lanes)]
        assert lanes_of(word, lanes) == expected, f"seed {seed}, address {address}"


def test_aligner_latency_contains_the_memory_s():
    assert ActivationPort.LATENCY < Aligner.MASK_DELAY < Aligner.LATENCY


def test_columns_follow_one_another_and_show_their_sums_at_the_stated_latency():
    seed = 2
    rng = np.random.default_rng(seed)
    array = GroupArray(SMALL)
    lanes, columns = SMALL.lanes, SMALL.group_columns
    steps = []  # (valid, fresh, maximum, activations, weights)
    for number in range(200):
        vector, weights = rng.integers(0, 16, lanes), rng.integers(-8, 8, columns)
        steps.append((rng.random() < 0.8, number == 0 or rng.random() < 0.2, rng.random() < 0.2, vector, weights))
    sums = np.zeros((columns, lanes), np.int64)
    maxima = np.zeros(lanes, np.int64)
    expected = []
    for valid, fresh, maximum, vector, weights in steps:
        if valid and maximum:
            maxima = vector if fresh else np.maximum(maxima, vector)
        elif valid:
            sums = (0 if fresh else sums) + weights[:, None] * vector[None]
        expected.append((sums, maxima))
    begun = next(i for i, step in enumerate(steps) if step[0] and not step[2] and step[1])
    begun_maxima = next(i for i, step in enumerate(steps) if step[0] and step[2] and step[1])
    compared = []

    def stimulus():
        for cycle in range(-GroupArray.LEAD, len(steps) + GroupArray.LATENCY + columns):
            early = cycle + GroupArray.LEAD
            if early < len(steps):
                valid, fresh, maximum, _, weights = steps[early]
                yield array.valid.eq(int(valid))
                yield array.fresh.eq(int(fresh))
                yield array.maximum.eq(int(maximum))
                yield array.weights.eq(pack(weights & 15))
            else:
                yield array.valid.eq(0)
            if 0 <= cycle < len(steps):
                yield array.activations.eq(pack(steps[cycle][3]))
            yield
            for column in range(columns):
                number = cycle - GroupArray.LATENCY - column
                if begun <= number < len(steps):
                    word = yield array.columns[column]
                    values = lanes_of(word, lanes, SMALL.accumulator_bits, signed=True)
                    assert values == expected[number][0][column].tolist(), (
                        f"seed {seed}, step {number}, column {column}"
                    )
                    compared.append(number)
            number = cycle - GroupArray.LATENCY
            if begun_maxima <= number < len(steps):
                assert lanes_of((yield array.maxima), lanes) == expected[number][1].tolist(), f"step {number}"

    run_simulation(array, stimulus())
    assert len(compared) == columns * (len(steps) - begun)


class BusModel:
    """Main memory behind an AXI bus, one 64-bit word per address, with random stalls; checks the bus's rules."""

    def __init__(self, bus, seed):
        self.bus, self.random = bus, random.Random(seed)
        self.bus_bytes = bus.data_width // 8
        self.content = {}
        self.withhold = False

    def check_burst(self, address, beats):
        assert 1 <= beats <= BURST_BEATS
        assert address % self.bus_bytes == 0
        assert address // 4096 == (address + beats * self.bus_bytes - 1) // 4096, "burst crosses a 4 KiB border"

    def read_side(self, cycles):
        bus, waiting = self.bus, []
        for _ in range(cycles):
            if (yield bus.ar.valid) and (yield bus.ar.ready):
                address, beats = (yield bus.ar.addr), (yield bus.ar.len) + 1
                self.check_burst(address, beats)
                waiting += [address + beat * self.bus_bytes for beat in range(beats)]
            if (yield bus.r.valid) and (yield bus.r.ready):
                waiting.pop(0)
                yield bus.r.valid.eq(0)
            if waiting and not self.withhold and self.random.random() < 0.7:
                yield bus.r.valid.eq(1)
                yield bus.r.data.eq(self.content.get(waiting[0], 0))
            elif not waiting:
                yield bus.r.valid.eq(0)
            yield bus.ar.ready.eq(self.random.random() < 0.5)
            yield

    def write_side(self, cycles):
        bus, waiting, answers = self.bus, [], 0
        for _ in range(cycles):
            if (yield bus.aw.valid) and (yield bus.aw.ready):
                address, beats = (yield bus.aw.addr), (yield bus.aw.len) + 1
                self.check_burst(address, beats)
                waiting += [(address + beat * self.bus_bytes, beat == beats - 1) for beat in range(beats)]
            if (yield bus.w.valid) and (yield bus.w.ready):
                address, last = waiting.pop(0)
                assert (yield bus.w.last) == last
                if (yield bus.w.strb):
                    self.content[address] = yield bus.w.data
                answers += last
            if (yield bus.b.valid) and (yield bus.b.ready):
                answers -= 1
                yield bus.b.valid.eq(0)
            elif answers and not self.withhold and self.random.random() < 0.3:
                yield bus.b.valid.eq(1)
            yield bus.aw.ready.eq(self.random.random() < 0.5)
            yield bus.w.ready.eq(bool(waiting) and self.random.random() < 0.7)
            yield


def as_beats(words, base, bus_bytes):
    """{address: bus word} that hold 64-bit `words` from `base` on."""
    content = b"".join(word.to_bytes(8, "little") for word in words)
    content += bytes(-len(content) % bus_bytes)
    return {base + i: int.from_bytes(content[i : i + bus_bytes], "little") for i in range(0, len(content), bus_bytes)}


@pytest.mark.parametrize("bus_bits", [32, 64, 128])
def test_reader_delivers_the_words_in_order_whatever_the_stalls_and_aborts(bus_bits):
    seed = bus_bits
    rng = random.Random(seed)
    bus = AXIInterface(data_width=bus_bits, address_width=32, id_width=1)
    dut = DMAReader(bus)
    model = BusModel(bus, seed)
    cycles = 12000
    done = []

    def stimulus():
        for number in range(30):
            base = rng.randrange(0, 1 << 16, 16)
            words = [rng.getrandbits(64) for _ in range(rng.choice([1, 2, 3, 17, rng.randrange(1, 150)]))]
            model.content.update(as_beats(words, base, bus_bits // 8))
            yield dut.sink.valid.eq(1)
            yield dut.sink.address.eq(base)
            yield dut.sink.words.eq(len(words))
            yield
            while not (yield dut.sink.ready):
                yield
            yield dut.sink.valid.eq(0)
            abort_after = rng.randrange(len(words)) if number % 3 == 2 else None
            got = []
            while len(got) < len(words):
                if len(got) == abort_after:
                    break
                yield dut.source.ready.eq(rng.random() < 0.8)
                yield
                if (yield dut.source.valid) and (yield dut.source.ready):
                    got.append((yield dut.source.data))
                    assert (yield dut.source.last) == (len(got) == len(words))
            yield dut.source.ready.eq(0)
            if abort_after is None:
                assert got == words, f"seed {seed}, transfer {number}"
            else:
                yield dut.abort.eq(1)
                yield
                yield dut.abort.eq(0)
            yield
            while (yield dut.busy):
                assert not (yield dut.source.valid)
                yield
            done.append(number)

    run_simulation(dut, [stimulus(), model.read_side(cycles)])
    assert len(done) == 30


@hardware
@pytest.mark.parametrize("bus_bits", [32, 64, 128])
def test_writer_writes_the_words_and_nothing_else_whatever_the_stalls_and_aborts(bus_bits):
    seed = bus_bits
    rng = random.Random(seed)
    bus = AXIInterface(data_width=bus_bits, address_width=32, id_width=1)
    dut = DMAWriter(bus)
    model = BusModel(bus, seed)
    cycles = 20000
    done = []

    def stimulus():
        for number in range(30):
            base = rng.randrange(0, 1 << 16, 16)
            words = [rng.getrandbits(64) for _ in range(rng.choice([2, 4, 18, 2 * rng.randrange(1, 70)]))]
            expected = as_beats(words, base, bus_bits // 8)
            model.content.clear()
            yield dut.sink.valid.eq(1)
            yield dut.sink.address.eq(base)
            yield dut.sink.words.eq(len(words))
            yield
            while not (yield dut.sink.ready):
                yield
            yield dut.sink.valid.eq(0)
            given = rng.randrange(len(words)) if number % 3 == 2 else len(words)
            sent = 0
            while sent < given:
                yield dut.data.valid.eq(rng.random() < 0.8)
                yield dut.data.data.eq(words[sent])
                yield
                if (yield dut.data.valid) and (yield dut.data.ready):
                    sent += 1
            yield dut.data.valid.eq(0)
            if given < len(words):
                yield dut.abort.eq(1)
                yield
                yield dut.abort.eq(0)
            yield
            while (yield dut.busy):
                yield
            if given == len(words):
                assert model.content == expected, f"seed {seed}, transfer {number}"
            else:
                assert model.content.items() <= expected.items(), f"seed {seed}, aborted transfer {number}"
            done.append(number)

    run_simulation(dut, [stimulus(), model.write_side(cycles)])
    assert len(done) == 30
