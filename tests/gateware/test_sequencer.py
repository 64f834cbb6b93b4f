"""The parts of the sequencer one by one: job queue, instruction memory, stores, SYNC's conditions, watchdog; and the
profile."""

import random
from types import SimpleNamespace

import pytest
from helpers.tiers import seeds
from migen import Module, Signal, run_simulation

from sentei.gateware.engine.profile import Profile
from sentei.gateware.record import record_of
from sentei.gateware.sequencer.instruction_memory import InstructionMemory
from sentei.gateware.sequencer.job_queue import JobQueue
from sentei.gateware.sequencer.stores import STORE_QUEUE_DEPTH, Stores
from sentei.gateware.sequencer.sync import Sync
from sentei.gateware.sequencer.watchdog import Watchdog
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import EPOCH_BITS, INSTRUCTION, INSTRUCTION_LOAD_WORDS, Until
from sentei.overlay.registers import JOB_QUEUE_DEPTH, PROFILE_CAUSES, PROFILE_WORDS

SMALL = Geometry(lanes=8, columns=8, groups=2, requantizers=1, instruction_words=64, profile_entries=16)
EPOCHS = 1 << EPOCH_BITS


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_jobs_leave_in_order_and_count_until_they_end(seed):
    rng = random.Random(seed)
    dut = JobQueue()

    def bench():
        sent, got, ended = [], [], 0
        for cycle in range(600):
            offer, accept = rng.random() < 0.4, rng.random() < 0.5
            done = ended < len(got) and rng.random() < 0.3
            entry = rng.getrandbits(16)
            yield dut.sink.valid.eq(offer)
            yield dut.sink.entry.eq(entry)
            yield dut.source.ready.eq(accept)
            yield dut.done.eq(done)
            yield
            where = f"seed {seed}, cycle {cycle}"
            assert (yield dut.count) == len(sent) - ended, where
            assert (yield dut.sink.ready) == (len(sent) - ended != JOB_QUEUE_DEPTH), where
            if accept and (yield dut.source.valid):
                got.append((yield dut.source.entry))
            if offer and len(sent) - ended != JOB_QUEUE_DEPTH:
                sent.append(entry)
            ended += done
            assert got == sent[: len(got)], where
        assert ended > 20

    run_simulation(dut, bench())


def test_an_instruction_is_the_words_that_were_filled_in():
    rng = random.Random(1)
    pointer = Signal(16)
    dut = InstructionMemory(SMALL, pointer)

    def bench():
        for _ in range(3):
            words = [rng.getrandbits(64) for _ in range(rng.choice([2, 10, 64]))]
            yield dut.clear.eq(1)
            yield
            yield dut.clear.eq(0)
            sent = 0
            while sent < len(words):
                fill = rng.random() < 0.6
                yield dut.data.eq(words[sent])
                yield dut.fill.eq(fill)
                yield
                assert (yield dut.filled) == sent
                sent += fill
            yield dut.fill.eq(0)
            yield
            for number in rng.sample(range(len(words) // INSTRUCTION_LOAD_WORDS), k=len(words) // 2):
                yield pointer.eq(number)
                yield
                yield
                parts = words[number * INSTRUCTION_LOAD_WORDS :][:INSTRUCTION_LOAD_WORDS]
                assert (yield dut.instruction) == sum(part << 64 * index for index, part in enumerate(parts))

    run_simulation(dut, bench())


@pytest.mark.parametrize("seed", seeds(4, 40))
def test_stores_begin_in_order_when_their_epoch_is_reached(seed):
    rng = random.Random(seed)
    epochs = [Signal(EPOCH_BITS) for _ in range(2)]
    dut = Stores(epochs)
    items = [(int(rng.random() < 0.3), 3 * number, rng.getrandbits(16)) for number in range(20)]
    begun, counts = [], [0, 0]

    def sequencer():
        for end, epoch, word in items:
            yield dut.sink.valid.eq(1)
            yield dut.sink.end.eq(end)
            yield dut.sink.epoch.eq(epoch)
            yield dut.sink.word.eq(word)
            yield
            while not (yield dut.sink.ready):
                yield
            yield dut.sink.valid.eq(0)
            for _ in range(rng.choice([0, 0, 5])):
                yield

    def others():
        busy = 0
        for _ in range(3000):
            for group, epoch in enumerate(epochs):
                counts[group] = min(counts[group] + (rng.random() < 0.2), 90)
                yield epoch.eq(counts[group])
            yield dut.busy.eq(int(busy > 0))
            yield dut.stopped.eq(0)
            yield dut.command.ready.eq(int(rng.random() < 0.7))
            reached, was_busy = min(counts), busy > 0
            yield
            busy = max(0, busy - 1)
            started, done = (yield dut.start), (yield dut.done)
            assert not (started and done)
            if started or done:
                assert not was_busy
                end, epoch, word = items[len(begun)]
                assert (end, 1 - end) == (done, started), f"seed {seed}"
                assert end or (reached >= epoch and (yield dut.word) == word), f"seed {seed}"
                begun.append(word)
                busy = rng.choice([0, 1, 6]) if started else busy
            if len(begun) == len(items):
                yield
                assert (yield dut.empty)
                return
        raise AssertionError(f"seed {seed}: {len(begun)} of {len(items)} stores")

    run_simulation(dut, [sequencer(), others()])


def test_nothing_is_stored_behind_an_error():
    dut = Stores([Signal(EPOCH_BITS)])

    def bench():
        yield dut.stopped.eq(1)
        yield dut.command.ready.eq(1)
        yield dut.sink.valid.eq(1)
        for number in range(2 * STORE_QUEUE_DEPTH):
            yield dut.sink.end.eq(number % 2)
            yield
            assert not (yield dut.start) and not (yield dut.done)

    run_simulation(dut, bench())


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_a_sync_waits_for_what_it_names(seed):
    rng = random.Random(seed)
    top = Module()
    instruction = record_of(INSTRUCTION)
    first = Signal(EPOCH_BITS)
    epochs, arrivals, todo = ([Signal(width) for _ in range(3)] for width in (EPOCH_BITS, 1, 3))
    top.submodules.dut = dut = Sync(instruction, first, epochs, arrivals, todo)

    def bench():
        for _ in range(300):
            base, wanted = rng.randrange(EPOCHS), rng.randrange(-20, 20)
            values = [(base + wanted + rng.choice([-30, -1, 0, 0, 1, 30])) % EPOCHS for _ in epochs]
            levels, count = [rng.randrange(5) for _ in todo], rng.randrange(4)
            units = rng.getrandbits(5)
            loading, storing, results = (int(rng.random() < 0.3) for _ in range(3))
            yield first.eq(base)
            yield instruction.epoch.eq(wanted % EPOCHS)
            yield instruction.count.eq(count)
            yield instruction.units.eq(units)
            for signals, numbers in ((epochs, values), (todo, levels)):
                for signal, number in zip(signals, numbers, strict=True):
                    yield signal.eq(number)
            for signal, value in ((dut.loading, loading), (dut.storing, storing), (dut.results, results)):
                yield signal.eq(value)
            yield
            yield
            true = {
                Until.EPOCH: all((value - base - wanted) % EPOCHS < EPOCHS // 2 for value in values),
                Until.LOADED: not loading,
                Until.STORED: not storing,
                Until.RUNS: max(levels) <= count,
                Until.WRITTEN: not results,
            }
            assert (yield dut.satisfied) == all(true[until] for until in Until if units & until), f"seed {seed}"
            nothing = not (loading or storing or results or any(levels))
            assert (yield dut.everything) == nothing, f"seed {seed}"

    run_simulation(top, bench())


def test_the_watchdog_counts_from_one_jobs_end_to_the_next():
    dut = Watchdog()

    def bench():
        yield dut.limit.eq(10)
        yield dut.busy.eq(1)
        for _ in range(8):
            yield
            assert not (yield dut.late)
        yield dut.done.eq(1)
        yield
        yield dut.done.eq(0)
        yield
        yield
        assert (yield dut.last_cycles) == 9 and not (yield dut.late)
        waited = 0
        while not (yield dut.late):
            waited += 1
            assert waited < 20
            yield
        assert (yield dut.cycles) == 10
        yield dut.stopped.eq(1)
        for _ in range(3):
            yield
        assert (yield dut.cycles) == 11, "a stopped engine's time stands still"
        yield dut.busy.eq(0)
        yield
        yield
        assert (yield dut.cycles) == 0

    run_simulation(dut, bench())


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_a_profiles_causes_add_up_to_the_time_between_records(seed):
    rng = random.Random(seed)
    names = ("stepping", "draining", "waiting", "preparing", "idle", "layer_ends", "record_taken")
    groups = [SimpleNamespace(**{name: Signal() for name in names}) for _ in range(2)]
    moved = Signal(8)
    dut = Profile(SMALL, groups, moved)
    causes = names[:5]
    counted = [dict.fromkeys(causes, 0) for _ in groups]
    expected, total = [], [0]

    def bench():
        yield dut.clear.eq(1)
        yield
        yield dut.clear.eq(0)
        ready = [True, True]
        for _ in range(250):
            for number, group in enumerate(groups):
                cause = rng.choice(causes)
                ends = ready[number] and rng.random() < 0.04 and len(expected) < SMALL.profile_entries
                for name in causes:
                    yield getattr(group, name).eq(name == cause)
                yield group.layer_ends.eq(ends)
                counted[number][cause] += 1
                if ends:
                    expected.append((number, dict(counted[number])))
                    counted[number] = dict.fromkeys(causes, 0)
            yield moved.eq(8)
            total[0] += 8
            yield
            for number, group in enumerate(groups):
                ready[number] = yield group.record_taken
        for group in groups:
            yield group.layer_ends.eq(0)
        for _ in range(6):
            yield
        count = yield dut.count
        assert count == len(expected), f"seed {seed}"
        records = []
        for record in range(count):
            words = {}
            for index, name in enumerate(PROFILE_WORDS):
                yield dut.index.eq(record * 8 + index)
                for _ in range(3):
                    yield
                words[name] = yield dut.data
            records.append(words)
        last = [0, 0]
        for number in range(len(groups)):
            own = [record for record in records if record["group"] == number]
            assert [[record[cause] for cause in PROFILE_CAUSES] for record in own] == [
                list(counts.values()) for group, counts in expected if group == number
            ], f"seed {seed}"
            for place, record in enumerate(own):
                if place:
                    spent = sum(record[cause] for cause in PROFILE_CAUSES)
                    assert spent == record["end"] - last[number], f"seed {seed}"
                last[number] = record["end"]

    run_simulation(dut, bench())
