"""The parts of the requantizer one by one: result bus, turns and columns with their addresses, partials, results."""

import random
from types import SimpleNamespace

import pytest
from helpers.tiers import seeds
from migen import Module, Signal, passive, run_simulation

from sentei.gateware.common import spread
from sentei.gateware.group.drain import DRAIN, DrainPort
from sentei.gateware.record import record_of
from sentei.gateware.requantizer.addresses import Addresses
from sentei.gateware.requantizer.columns import Columns
from sentei.gateware.requantizer.partials import Partials
from sentei.gateware.requantizer.result_bus import JOIN_CYCLES, ResultBus
from sentei.gateware.requantizer.results import Results
from sentei.gateware.requantizer.turns import Turns
from sentei.gateware.technologies.lanes import LATENCY, VALUE
from sentei.overlay.geometry import Geometry

SMALL = Geometry(lanes=4, columns=8, groups=2, requantizers=1, wide_bits=20, search_bits=17, channel_entries=64)
COLUMNS, QUEUE_DEPTH, REDUCE_DELAY = SMALL.group_columns, 16, 3


def ports(count: int = 2) -> list[DrainPort]:
    return [DrainPort(SimpleNamespace(columns=[], maxima=Signal())) for _ in range(count)]


def lanes_stub():
    """In place of the lanes: their ports."""
    return SimpleNamespace(
        reduce_delay=REDUCE_DELAY,
        turns=Signal(2 * COLUMNS + 2),
        sum_lanes=Signal(),
        spread=spread,
        partials=Signal(SMALL.wide_bits * SMALL.lanes),
        values=Signal(SMALL.wide_bits * SMALL.lanes),
        nibbles=Signal(4 * SMALL.lanes),
    )


@pytest.mark.parametrize("seed", seeds(4, 60))
def test_the_bus_is_one_groups_at_a_time_and_never_without_room(seed):
    """Everybody who asks gets it in the end; a place is taken for each column, and no more than there are."""
    rng = random.Random(seed)
    drains = ports()
    dut = ResultBus(SMALL, drains, QUEUE_DEPTH, REDUCE_DELAY)
    granted = [0, 0]

    def bench():
        free, taken, locked, settled = 0, 0, 0, 0
        wishes, waited = [None, None], [0, 0]
        for cycle in range(2000):
            for number, drain in enumerate(drains):
                if wishes[number] is None and rng.random() < 0.5:
                    wishes[number] = dict(
                        columns=rng.randint(1, COLUMNS),
                        join=int(rng.random() < 0.3),
                        wide=int(rng.random() < 0.05),
                        reduce=int(rng.random() < 0.1),
                    )
                wish = wishes[number]
                yield drain.request.eq(wish is not None and not locked)
                for name, value in (wish or {}).items():
                    yield getattr(drain, name).eq(value)
            give = taken > 0 and rng.random() < 0.6
            unlock = locked and rng.random() < 0.1
            yield dut.give.eq(give)
            yield dut.unlock.eq(unlock)
            yield
            where = f"seed {seed}, cycle {cycle}"
            grants = []
            for drain in drains:
                grants.append((yield drain.grant))
                assert (yield drain.hold) == bool(locked), where
            assert sum(grants) <= 1, where
            assert (yield dut.credits) == QUEUE_DEPTH - taken >= 0, where
            taken -= give
            locked = locked and not unlock
            for number, grant in enumerate(grants):
                waited[number] = 0 if grant or wishes[number] is None else waited[number] + 1
                assert waited[number] < 400, f"{where}: group {number} waits for ever"
                if grant:
                    wish = wishes[number]
                    assert cycle >= free and not locked, where
                    assert wish["reduce"] or cycle >= settled, f"{where}: overtakes a sum of lanes"
                    least = REDUCE_DELAY + 1 if wish["reduce"] else JOIN_CYCLES if wish["join"] else 0
                    free = cycle + max(wish["columns"], least)
                    settled = cycle + wish["columns"] + REDUCE_DELAY if wish["reduce"] else settled
                    taken += 0 if wish["join"] else wish["columns"]
                    locked = wish["wide"] and not wish["join"]
                    granted[number] += 1
                    wishes[number] = None

    run_simulation(dut, bench())
    assert min(granted) > 20, f"seed {seed}: {granted}"


@pytest.mark.parametrize("seed", seeds(4, 60))
def test_columns_have_their_turns_and_addresses_in_order(seed):
    rng = random.Random(seed)
    top = Module()
    drains, lanes = ports(), lanes_stub()
    bus = SimpleNamespace(
        credits=Signal(8, reset=100), resume=Signal(), columns=Signal(max=COLUMNS + 1), unlock=Signal()
    )
    top.submodules.turns = turns = Turns(SMALL, drains, lanes)
    top.submodules.columns = columns = Columns(SMALL, turns, bus)
    top.submodules.addresses = addresses = Addresses(SMALL, len(drains), turns, columns)
    expected, announced, found, shown = [], [], [], []

    def groups():
        levels = [0, 0]
        for _ in range(30):
            group = rng.randrange(2)
            fields = dict(
                columns=rng.randint(1, COLUMNS),
                channel=rng.randrange(16),
                output=rng.randrange(1000),
                residual=rng.randrange(1000),
                stride=rng.randrange(1, 9),
                join=int(rng.random() < 0.4),
                nibble=int(rng.random() < 0.4),
                maximum=int(rng.random() < 0.2),
                reduce=int(rng.random() < 0.2),
                wide=int(rng.random() < 0.2),
            )
            if fields["maximum"]:
                fields |= dict(columns=1, wide=0, reduce=0)
            if fields["wide"]:
                fields["reduce"] = 0
            wide = fields["wide"] and not fields["join"]
            level = levels[group] + (fields["columns"] if fields["nibble"] else 0)
            levels[group] = level if fields["join"] else 0
            pieces = SMALL.wide_nibbles if wide else 1
            output, residual, channel = fields["output"], fields["residual"], fields["channel"] + level
            for piece in range(pieces):
                for column in range(fields["columns"]):
                    last = column == fields["columns"] - 1
                    ends = last and piece == pieces - 1
                    expected.append((group, column, channel % 64, output % 2**13, residual % 2**13, int(ends)))
                    residual += fields["stride"]
                    output += fields["stride"] if not last else fields["residual"]
                    channel += not wide
            first = 2 * COLUMNS + group if fields["maximum"] else COLUMNS * group
            announced.extend(first + column for column in range(fields["columns"]))
            drain = drains[group]
            yield drain.trigger.eq(1)
            yield drain.parameters.eq(DRAIN.pack(**fields))
            yield
            yield drain.trigger.eq(0)
            busy = max(fields["columns"], JOIN_CYCLES) * pieces if wide or fields["join"] else fields["columns"]
            for _ in range(busy + (2 * REDUCE_DELAY if fields["reduce"] else 0) + 12 * wide + rng.choice([0, 0, 4])):
                yield
        for _ in range(40):
            yield

    def watch():
        while True:
            for index, turn in enumerate(f"{(yield lanes.turns):b}"[::-1]):
                if turn == "1":
                    shown.append(index)
            if (yield columns.active):
                found.append(
                    (
                        (yield addresses.owner),
                        (yield columns.column),
                        (yield addresses.channel),
                        (yield addresses.output),
                        (yield addresses.residual),
                        (yield columns.ends),
                    )
                )
            yield

    run_simulation(top, [groups(), passive(watch)()])
    assert shown == announced, f"seed {seed}"
    assert found == expected, f"seed {seed}"


def test_a_partial_comes_back_when_its_successor_wants_it():
    rng = random.Random(1)
    lanes = lanes_stub()
    dut = Partials(SMALL, 16, lanes)
    model: dict[int, int] = {}

    def bench():
        for number in range(200):
            address, keeps, value = rng.randrange(16), rng.randrange(2), rng.getrandbits(len(lanes.values))
            yield dut.address.eq(address)
            yield  # the cycle before the column's cycle 0
            yield dut.keeps.eq(keeps)
            yield  # cycle 0
            yield dut.keeps.eq(0)
            yield  # cycle 1
            if address in model:
                assert (yield lanes.partials) == model[address], f"column {number}"
            for cycle in range(2, VALUE + 2):
                yield lanes.values.eq(value if cycle == VALUE else rng.getrandbits(len(lanes.values)))
                yield
            if keeps:
                model[address] = value

    run_simulation(dut, bench())
    assert len(model) == 16


@pytest.mark.parametrize("seed", seeds(3, 30))
def test_results_are_written_in_order_and_their_group_is_told(seed):
    rng = random.Random(seed)
    top = Module()
    drains, lanes = ports(), lanes_stub()
    columns = SimpleNamespace(active=Signal(), ends=Signal(), now=record_of(DRAIN))
    addresses = SimpleNamespace(output=Signal(13), owner=Signal())
    writer = SimpleNamespace(valid=Signal(), ready=Signal(), word=Signal(13), data=Signal(4 * SMALL.lanes))
    top.submodules.dut = dut = Results(drains, columns, addresses, lanes, writer, 64)
    sent, data, got, told, expected = [], {}, [], [[], []], [[], []]

    def producer():
        for cycle in range(600):
            active = int(cycle < 500 and rng.random() < 0.3)
            join, ends, signal, owner = (rng.randrange(2) for _ in range(4))
            word = rng.randrange(1 << 13)
            yield columns.active.eq(active)
            yield columns.now.join.eq(join)
            yield columns.now.signal.eq(signal)
            yield columns.ends.eq(ends)
            yield addresses.output.eq(word)
            yield addresses.owner.eq(owner)
            data[cycle] = rng.getrandbits(4 * SMALL.lanes)
            yield lanes.nibbles.eq(data[cycle])
            yield
            if active and not join:
                sent.append((word, cycle + LATENCY))
                if ends:
                    expected[owner].append(signal)

    def memory():
        for _ in range(800):
            yield writer.ready.eq(int(rng.random() < 0.6))
            yield
            if (yield writer.valid) and (yield writer.ready):
                assert (yield dut.written)
                got.append(((yield writer.word), (yield writer.data)))
            for number, drain in enumerate(drains):
                if (yield drain.written):
                    told[number].append((yield drain.signal))

    run_simulation(top, [producer(), memory()])
    assert got == [(word, data[cycle]) for word, cycle in sent], f"seed {seed}"
    assert told == expected, f"seed {seed}"
