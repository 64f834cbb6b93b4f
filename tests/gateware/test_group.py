"""The parts of a group one by one, in Migen's simulator: fetch, issue point, operands, drain parameters, epochs."""

import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from helpers.tiers import seeds
from migen import Module, Record, Signal, run_simulation

from sentei.gateware.group.aligner import Aligner
from sentei.gateware.group.drain import DRAIN, DRAIN_DELAY, TRIGGER_LEAD, DrainPort, DrainQueue
from sentei.gateware.group.epochs import Awaited, Epochs
from sentei.gateware.group.fetch import Fetch, Word, run_layout
from sentei.gateware.group.issue import Issue, IssuePoint
from sentei.gateware.group.operands import ARRAY_DELAY, PIXEL_DELAY, WEIGHT_DELAY, OperandPath
from sentei.gateware.memory.table import Table
from sentei.gateware.record import fields_of, record_of
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import (
    EPOCH_BITS,
    HEADER0,
    HEADER1,
    HEADER_WORDS,
    STEP,
    STEP_WEIGHTS_OFFSET,
    TAP,
    TILE,
    stream_bits,
)

SMALL = Geometry(
    lanes=8, columns=8, groups=2, requantizers=1, stream_words=256, tile_entries=64, tap_entries=64, mask_entries=16
)
EPOCHS = 1 << EPOCH_BITS
LIMIT_CYCLES = 5000


def has_reached(epoch: int, wanted: int) -> bool:
    return (epoch - wanted) % EPOCHS < EPOCHS // 2


def columns_and_maxima():
    """In place of an array."""
    return SimpleNamespace(columns=[Signal(16)], maxima=Signal(4))


def fill(table: Table, words: list[int]):
    for address, word in enumerate(words):
        yield table.write.eq(1)
        yield table.write_address.eq(address)
        yield table.write_data.eq(word)
        yield
    yield table.write.eq(0)
    yield


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_an_epoch_is_reached_when_no_group_is_behind(seed):
    rng = random.Random(seed)
    counters = [Signal(EPOCH_BITS) for _ in range(3)]
    dut = Epochs(counters)

    def bench():
        for _ in range(200):
            wanted = rng.randrange(EPOCHS)
            values = [(wanted + rng.choice([-40, -1, 0, 1, 40])) % EPOCHS for _ in counters]
            yield dut.wanted.eq(wanted)
            for counter, value in zip(counters, values, strict=True):
                yield counter.eq(value)
            yield
            assert (yield dut.reached) == all(has_reached(value, wanted) for value in values), f"seed {seed}"

    run_simulation(dut, bench())


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_what_is_awaited_is_known_in_the_cycle_in_which_the_last_counter_gets_there(seed):
    rng = random.Random(seed)
    counters, arrives = [Signal(EPOCH_BITS) for _ in range(3)], [Signal() for _ in range(3)]
    dut = Awaited(counters, arrives)
    for counter, more in zip(counters, arrives, strict=True):
        dut.sync += counter.eq(counter + more)

    def bench():
        before = 0
        for cycle in range(400):
            values = []
            for counter in counters:
                values.append((yield counter))
            if cycle > 2:
                expected = all(has_reached(value, before + 1) for value in values)
                assert (yield dut.reached) == expected, f"seed {seed}, cycle {cycle}"
            for more in arrives:
                yield more.eq(rng.random() < 0.3)
            soon = (rng.choice(values) + rng.randint(-3, 3)) % EPOCHS
            advance = rng.random() < 0.3
            yield dut.advance.eq(advance)
            yield dut.soon.eq(soon)
            yield
            # What was set above is seen in this cycle, and shows in the next.
            shown = before
            before = soon if advance else before
            values = []
            for counter in counters:
                values.append((yield counter))
            assert (yield dut.before) == shown % EPOCHS
            yield
            yield dut.advance.eq(0)
            for more in arrives:
                yield more.eq(0)
            yield
            yield

    run_simulation(dut, bench())


@dataclass
class Task:
    tiles: int
    steps: int
    layer: int
    last: int


def random_tasks(rng: random.Random) -> list[Task]:
    tasks = []
    for _ in range(rng.randint(2, 6)):
        empty = rng.random() < 0.2
        tiles, steps = (0, rng.randint(0, 5)) if empty else (rng.randint(1, 3), rng.choice([1, 1, 2, 3, 7]))
        tasks.append(Task(tiles, steps, int(rng.random() < 0.5), 0))
    tasks[-1].layer = tasks[-1].last = 1
    return tasks


def stream_of(tasks: list[Task], rng: random.Random) -> list[int]:
    words = []
    for task in tasks:
        words += [
            HEADER0.pack(tiles=task.tiles, tile=3, layer=task.layer, last=task.last, epoch=rng.randrange(64)),
            HEADER1.pack(steps=task.steps, late=rng.randrange(32)),
        ]
        words += [rng.getrandbits(stream_bits(SMALL)) for _ in range(task.steps if task.tiles else 0)]
    return words


def expected_words(tasks: list[Task], words: list[int], by_layer: bool) -> list[tuple]:
    """(kind, word or None, first, starts_run, ends_layer) of everything that comes to the issue point, in order."""
    found, address, begins = [], 0, True
    for task in tasks:
        headers = [(Word.HEADER0, words[address], 0, None, 0), (Word.HEADER1, words[address + 1], 0, None, 0)]
        if begins:
            found += headers
        address += HEADER_WORDS
        starts_run, ends_run = begins, bool(task.last or (by_layer and task.layer))
        length = task.steps if task.tiles else 1
        for tile in range(max(1, task.tiles)):
            for step in range(length):
                last_tile = tile == max(1, task.tiles) - 1
                ends = task.layer and last_tile and step == length - 1
                kind, word = (Word.STEP, words[address + step]) if task.tiles else (Word.EMPTY, None)
                found.append((kind, word, int(tile == step == 0), int(starts_run), int(ends)))
                starts_run = False
                if last_tile and step == 0 and not ends_run:
                    following = address + (task.steps if task.tiles else 0)
                    found += [
                        (Word.HEADER0, words[following], 0, None, 0),
                        (Word.HEADER1, words[following + 1], 0, None, 0),
                    ]
        address += task.steps if task.tiles else 0
        begins = ends_run
    return found


@pytest.mark.parametrize("by_layer", [False, True], ids=["whole", "by-layer"])
@pytest.mark.parametrize("seed", seeds(6, 200))
def test_fetch_brings_every_word_in_order_whatever_the_stalls(seed, by_layer):
    rng = random.Random(seed)
    tasks = random_tasks(rng)
    words = stream_of(tasks, rng)
    top = Module()
    runs = Record([("valid", 1), ("ready", 1), *run_layout(SMALL)])
    top.submodules.stream = stream = Table(stream_bits(SMALL), SMALL.stream_words, "stream")
    top.submodules.tiles = tiles = Table(TILE.width, SMALL.tile_entries, "tiles")
    top.submodules.fetch = fetch = Fetch(SMALL, runs, stream, tiles)
    stall, waits = Signal(), Signal()  # headers never wait
    top.comb += [
        waits.eq(fetch.here.valid & ((fetch.here.kind == Word.STEP) | (fetch.here.kind == Word.EMPTY))),
        fetch.advance.eq(~(stall & waits)),
    ]
    entries = [rng.getrandbits(TILE.width) for _ in range(SMALL.tile_entries)]
    expected = expected_words(tasks, words, by_layer)
    stalls = rng.choice([0, 0.3, 0.8])
    found, tile_words, done = [], [], []

    def host():
        yield from fill(stream, words)
        yield from fill(tiles, entries)
        begin = True
        ends = [task for task in tasks if task.last or (by_layer and task.layer)]
        for _ in ends:
            yield runs.valid.eq(1)
            yield runs.layer.eq(by_layer)
            yield runs.resume.eq(not begin)
            yield runs.address.eq(0 if begin else rng.randrange(256))
            yield
            while not (yield runs.ready):
                yield
            yield runs.valid.eq(0)
            for _ in range(rng.choice([1, 1, 12])):
                yield
            begin = False
        done.append(True)

    def issue_point():
        for _ in range(LIMIT_CYCLES):
            if (yield fetch.advance) and (yield fetch.here.valid):
                kind = yield fetch.here.kind
                word = yield fetch.word
                starts = yield fetch.here.starts_run
                found.append(
                    (
                        kind,
                        None if kind == Word.EMPTY else word,
                        (yield fetch.here.first),
                        None if kind in (Word.HEADER0, Word.HEADER1) else starts,
                        (yield fetch.here.ends_layer),
                    )
                )
                if kind == Word.STEP:
                    tile_words.append((yield fetch.tile))
            if done and (yield fetch.idle) and len(found) >= len(expected):
                return
            yield stall.eq(int(rng.random() < stalls))
            yield
        raise AssertionError(f"seed {seed}: {len(found)} of {len(expected)} words within {LIMIT_CYCLES} cycles")

    run_simulation(top, [host(), issue_point()])
    assert found == expected, f"seed {seed}"
    numbers = [3 + tile for task in tasks for tile in range(task.tiles) for _ in range(task.steps)]
    assert tile_words == [entries[number] for number in numbers], f"seed {seed}"


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_the_issue_point_knows_its_task_and_what_it_waits_for(seed):
    rng = random.Random(seed)
    top = Module()
    fetch = SimpleNamespace(
        advance=Signal(),
        soon=Record(Word.LAYOUT),
        word=Signal(stream_bits(SMALL)),
        tile=Signal(TILE.width),
        run_epoch=Signal(EPOCH_BITS),
        header=SimpleNamespace(first=record_of(HEADER0), second=record_of(HEADER1)),
    )
    stream, tiles = SimpleNamespace(data=Signal(stream_bits(SMALL))), SimpleNamespace(data=Signal(TILE.width))
    top.submodules.point = point = IssuePoint(SMALL, fetch, stream, tiles, [Signal(EPOCH_BITS)], [Signal()])

    def bench():
        task_epoch, late, task = 0, 0, None
        for cycle in range(300):
            first, starts = rng.random() < 0.3 or cycle == 0, rng.random() < 0.3
            valid, advance = rng.random() < 0.8 or cycle == 0, rng.random() < 0.7 or cycle == 0
            run_epoch, epoch, header_late = rng.randrange(EPOCHS), rng.randrange(64), rng.randrange(32)
            columns, steps = rng.randrange(8), rng.randrange(100)
            step = STEP.pack(late=int(rng.random() < 0.5), plane=rng.randrange(99))
            entry = TILE.pack(epoch=rng.randrange(64))
            yield fetch.advance.eq(advance)
            yield fetch.soon.valid.eq(valid)
            yield fetch.soon.first.eq(first)
            yield fetch.soon.starts_run.eq(starts)
            yield fetch.run_epoch.eq(run_epoch)
            yield fetch.header.first.raw_bits().eq(HEADER0.pack(epoch=epoch, columns=columns))
            yield fetch.header.second.raw_bits().eq(HEADER1.pack(late=header_late, steps=steps))
            yield stream.data.eq(step)
            yield tiles.data.eq(entry)
            yield
            yield fetch.advance.eq(0)
            yield
            if advance:
                if valid and first:
                    task_epoch = ((run_epoch if starts else task_epoch) + epoch) % EPOCHS
                    late, task = header_late, (columns, steps)
                more = late if STEP.unpack(step)["late"] else TILE.unpack(entry)["epoch"]
                assert (yield point.awaited.before) == (task_epoch + more) % EPOCHS, f"seed {seed}, cycle {cycle}"
            assert ((yield point.task.columns), (yield point.place.steps)) == task, f"seed {seed}, cycle {cycle}"

    run_simulation(top, bench())


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_each_cycle_has_one_cause_and_a_step_goes_only_when_it_may(seed):
    rng = random.Random(seed)
    top = Module()
    fetch = SimpleNamespace(advance=Signal(), here=Record(Word.LAYOUT), idle=Signal())
    task, place, step = record_of(HEADER0), record_of(HEADER1), record_of(STEP)
    point = SimpleNamespace(reached=Signal(), task=task, place=place, step=step)
    drain = DrainPort(columns_and_maxima())
    epoch, arrives = Signal(EPOCH_BITS), Signal()
    top.submodules.dut = dut = Issue(fetch, point, drain, epoch, arrives, 64)

    def bench():
        outstanding, count, fresh = 0, 0, 1
        for cycle in range(1500):
            here = dict(
                valid=int(rng.random() < 0.8),
                kind=rng.choice([Word.STEP, Word.STEP, Word.HEADER0, Word.EMPTY]),
                ends_layer=int(rng.random() < 0.2),
            )
            last, join = rng.choice([(0, 0), (0, 0), (1, 0), (0, 1)])
            reached, hold, taken = rng.random() < 0.7, rng.random() < 0.1, rng.random() < 0.8
            written = int(outstanding > 0 and rng.random() < 0.5)
            signal, sections = int(rng.random() < 0.5), rng.randrange(6)
            idle = int(not here["valid"] and rng.random() < 0.3)
            for name, value in here.items():
                yield getattr(fetch.here, name).eq(value)
            for target, value in (
                (fetch.idle, idle),
                (step.last, last),
                (step.join, join),
                (point.reached, reached),
                (drain.hold, hold),
                (dut.record_taken, taken),
                (drain.written, written),
                (drain.signal, signal),
                (place.steps, sections),
                (drain.grant, 0),
            ):
                yield target.eq(value)
            yield
            # The grant answers in the same cycle: the request is a matter of what was set.
            is_step = here["valid"] and here["kind"] == Word.STEP
            is_empty = here["valid"] and here["kind"] == Word.EMPTY
            ready = reached and (taken or not here["ends_layer"])
            ends = last or join
            where = f"seed {seed}, cycle {cycle}"
            assert (yield drain.request) == int(bool(is_step and ends and ready and not hold)), where
            causes = []
            for cause in (dut.issue, dut.draining, dut.waiting, dut.preparing, dut.idle):
                causes.append((yield cause))
            assert sum(causes) == 1, where
            issued = bool(is_step and ready and not hold and not ends)  # nothing is granted here
            passes = bool(is_empty and outstanding == 0 and taken)
            assert causes[0] == issued, where
            assert (yield fetch.advance) == int(not (causes[1] or causes[2])), where
            assert (yield dut.layer_ends) == int((issued or passes) and here["ends_layer"]), where
            assert (yield dut.fresh) == fresh, where
            assert (yield dut.busy) == int(not idle or outstanding > 0), where
            assert (yield epoch) == count, where
            outstanding -= written
            count = (count + written * signal + (sections if passes else 0)) % EPOCHS
            fresh = 0 if issued else fresh
            if rng.random() < 0.3:  # one that is granted
                for target, value in (
                    (fetch.here.valid, 1),
                    (fetch.here.kind, Word.STEP),
                    (fetch.idle, 0),
                    (point.reached, 1),
                    (drain.hold, 0),
                    (dut.record_taken, 1),
                    (step.last, 1),
                    (step.join, 0),
                    (drain.grant, 1),
                    (drain.written, 0),
                ):
                    yield target.eq(value)
                yield
                assert (yield dut.issue) and (yield dut.ends), where
                outstanding, fresh = outstanding + 1, 1
            yield fetch.here.valid.eq(0)
            yield drain.written.eq(0)
            yield drain.grant.eq(0)
            yield

    run_simulation(top, bench())


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_operands_come_to_the_array_at_their_stated_latencies(seed):
    rng = random.Random(seed)
    top = Module()
    lanes, weight_bits = SMALL.lanes, 4 * SMALL.group_columns
    word, entry = Signal(stream_bits(SMALL)), Signal(TILE.width)
    point = SimpleNamespace(
        step=fields_of(top, STEP, word),
        tile=fields_of(top, TILE, entry),
        weights=word[STEP_WEIGHTS_OFFSET : STEP_WEIGHTS_OFFSET + weight_bits],
    )
    aligner = SimpleNamespace(
        address=Signal(max=SMALL.activation_words * lanes), mask=Signal(lanes), pad=Signal(4), vector=Signal(4 * lanes)
    )
    array = SimpleNamespace(
        activations=Signal(4 * lanes), weights=Signal(weight_bits), valid=Signal(), fresh=Signal(), maximum=Signal()
    )
    top.submodules.taps = taps = Table(TAP.width, SMALL.tap_entries, "taps")
    top.submodules.masks = masks = Table(lanes, SMALL.mask_entries, "masks")
    top.submodules.dut = dut = OperandPath(SMALL, point, taps, masks, aligner, array)
    tap_words = [TAP.pack(offset=rng.randint(-900, 900), mask=rng.randrange(16)) for _ in range(64)]
    mask_words = [rng.getrandbits(lanes) for _ in range(16)]
    steps, seen = [], []

    def bench():
        yield from fill(taps, tap_words)
        yield from fill(masks, mask_words)
        for _ in range(200):
            step = dict(plane=rng.randrange(1000, 2000), tap=rng.randrange(30), pad=rng.randrange(16))
            step["maximum"] = rng.randrange(2)
            tile = dict(taps=rng.randrange(30), input=rng.randrange(500))
            weights, issue, fresh = rng.getrandbits(weight_bits), rng.randrange(2), rng.randrange(2)
            steps.append((step, tile, weights, issue, fresh))
            yield word.eq(STEP.pack(**step) | weights << STEP_WEIGHTS_OFFSET)
            yield entry.eq(TILE.pack(**tile))
            yield dut.issue.eq(issue)
            yield dut.fresh.eq(fresh)
            yield
            found = {}
            for name, signal in (
                ("address", aligner.address),
                ("mask", aligner.mask),
                ("pad", aligner.pad),
                ("weights", array.weights),
                ("valid", array.valid),
                ("fresh", array.fresh),
                ("maximum", array.maximum),
            ):
                found[name] = yield signal
            seen.append(found)

    run_simulation(top, bench())
    for cycle, (step, tile, weights, issue, fresh) in enumerate(steps[: -ARRAY_DELAY - 1]):
        tap = TAP.unpack(tap_words[step["tap"] + tile["taps"]])
        masked = seen[cycle + PIXEL_DELAY + Aligner.MASK_DELAY]
        assert seen[cycle + PIXEL_DELAY]["address"] == (step["plane"] + tile["input"]) * lanes + tap["offset"]
        assert (masked["mask"], masked["pad"]) == (mask_words[tap["mask"]], step["pad"]), f"seed {seed}"
        at = seen[cycle + WEIGHT_DELAY]
        assert [at[name] for name in ("weights", "valid", "fresh", "maximum")] == [
            weights,
            issue,
            fresh,
            step["maximum"],
        ], f"seed {seed}"


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_a_drains_parameters_come_just_before_its_sums(seed):
    rng = random.Random(seed)
    step, tile, task, place = (record_of(layout) for layout in (STEP, TILE, HEADER0, HEADER1))
    drain = DrainPort(columns_and_maxima())
    dut = DrainQueue(SimpleNamespace(step=step, tile=tile, task=task, place=place), drain)
    expected, found = {}, {}

    def bench():
        accumulate = 0
        for cycle in range(300):
            fields = dict(channel=rng.randrange(99), columns=rng.randrange(9), residual=rng.randrange(2))
            fields |= dict(reduce=rng.randrange(2), wide=rng.randrange(2), signal=rng.randrange(2))
            places = dict(output=rng.randrange(1000), stride=rng.randrange(99), residual=rng.randrange(1000))
            target, join = rng.randrange(500), rng.randrange(2)
            shift, maximum, ends = rng.randrange(2), rng.randrange(2), rng.randrange(2)
            enter = int(cycle < 280 and rng.random() < 0.6)
            yield task.raw_bits().eq(HEADER0.pack(**fields))
            yield place.raw_bits().eq(HEADER1.pack(**places))
            yield tile.raw_bits().eq(TILE.pack(output=target, signal=ends))
            yield step.raw_bits().eq(STEP.pack(join=join, shift=shift, maximum=maximum))
            yield dut.enter.eq(enter)
            yield
            if (yield drain.trigger):
                found[cycle] = DRAIN.unpack((yield drain.parameters))
            if enter:
                expected[cycle + DRAIN_DELAY - TRIGGER_LEAD] = dict(
                    channel=fields["channel"],
                    columns=fields["columns"],
                    use_residual=fields["residual"],
                    reduce=fields["reduce"],
                    wide=fields["wide"],
                    output=places["output"] + target,
                    stride=places["stride"],
                    residual=places["residual"] + (0 if fields["wide"] else target),
                    join=join,
                    accumulate=accumulate,
                    nibble=shift,
                    maximum=maximum,
                    signal=fields["signal"] & ends,
                )
                accumulate = join

    run_simulation(dut, bench())
    assert found == expected, f"seed {seed}"
