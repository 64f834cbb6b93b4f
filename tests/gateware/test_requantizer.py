"""The requantizer against its integer model: random passes on its result bus, in migen's simulator.

Sums lie at and around every threshold. Drains follow one another as closely as grants allow; the writer stalls at
random, and every result must come, in order, at its address.
"""

import numpy as np
import pytest
from helpers.random_layers import even_thresholds
from helpers.tiers import seeds
from migen import Module, Signal, run_simulation

from sentei.gateware.group.drain import DRAIN, TRIGGER_LEAD, DrainPort
from sentei.gateware.requantizer.requantizer import Requantizer
from sentei.gateware.technologies.lanes import LATENCY
from sentei.host.compiler import channel_entries as entries
from sentei.host.network.ir import Requantize
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import channel_layout

SMALL = Geometry(
    lanes=4,
    columns=8,
    groups=2,
    requantizers=1,
    wide_bits=20,
    search_bits=17,
    activation_words=4096,
    channel_entries=64,
)
KINDS = ["plain", "residual", "max", "reduce", "wide"]
MOST_CYCLES = 20_000
UNKNOWN = -1  # a lane whose result does not matter


class Sums:
    """In place of an array: the columns' sums and the maxima."""

    def __init__(self, geometry):
        self.columns = [Signal(geometry.accumulator_bits * geometry.lanes) for _ in range(geometry.group_columns)]
        self.maxima = Signal(4 * geometry.lanes)


class Port:
    """In place of a port of the activation memory."""

    def __init__(self, geometry):
        self.word = Signal(max=geometry.activation_words)
        self.low = Signal(4 * geometry.lanes)
        self.valid, self.ready = Signal(), Signal()
        self.data = Signal(4 * geometry.lanes)


def packed(values, bits):
    return sum((int(value) & ((1 << bits) - 1)) << bits * lane for lane, value in enumerate(values))


class Bench:
    """Random drains of both groups, and what must come of them."""

    def __init__(self, seed, geometry=SMALL):
        self.geometry, self.random = geometry, np.random.default_rng(seed)
        self.arrays = [Sums(geometry) for _ in range(2)]
        self.drains = [DrainPort(array) for array in self.arrays]
        self.read, self.write = Port(geometry), Port(geometry)
        self.top = Module()
        self.dut = self.top.submodules.dut = Requantizer(geometry, self.drains, self.read, self.write)
        self.table: list[int] = []
        self.residuals = self.random.integers(0, 16, (geometry.activation_words, geometry.lanes))
        self.expected: dict[int, list[int]] = {}
        self.cells: dict[tuple[int, int], list[int]] = {}  # (cycle, column or "max") of each group
        self.free_word = 0
        self.results: dict[int, list[int]] = {}

    def job(self, kind):
        """Random (parameters without passes, passes as sums (columns, lanes) and by_nibble) of one tile."""
        random, geometry = self.random, self.geometry
        columns = int(random.integers(1, geometry.group_columns + 1))
        joins = [bool(random.integers(2)) for _ in range(random.choice([0, 0, 1, 2, 3]))]
        if kind in ("max", "residual") and random.random() < 0.7:
            joins = []
        if kind == "max":
            joins, columns = [], 1
        shape = (1 + len(joins), columns, geometry.lanes)
        limit = 31 if kind == "reduce" else 1 << int(random.integers(1, 12))
        sums = random.integers(0 if kind == "reduce" else -limit, limit + 1, shape)
        if kind == "max":
            sums = random.integers(0, 16, shape)
        return columns, joins, sums

    def total(self, joins, sums):
        value = sums[0]
        for by_nibble, part in zip(joins, sums[1:], strict=True):
            value = (value * 16 if by_nibble else value) + part
        return value

    def prepare(self, kind):
        """A drain for each pass: (parameters, sums); records what is expected."""
        geometry, random = self.geometry, self.random
        while True:
            columns, joins, sums = self.job(kind)
            total = self.total(joins, sums)
            if kind == "reduce":
                total = np.where(np.arange(geometry.lanes) == 0, self.total(joins, sums.sum(-1, keepdims=True)), 0)
            low, high = total.min(1), total.max(1)
            wide = kind == "wide"
            use_residual = kind == "residual"
            codes = range(0, 16) if use_residual else range(8, 9)
            thresholds = even_thresholds(random, np.maximum(1, np.maximum(-low, high)))
            span = random.integers(0, 16, columns)
            low_code, name = random.integers(0, 16 - span), "r" if use_residual else None
            spec = Requantize(thresholds, random.random(columns) < 0.4, low_code, span, name)
            try:
                if wide:
                    own = entries.plain_entries(columns, joins, geometry)
                else:
                    zero = np.zeros(columns, np.int64)
                    own = entries.channel_entries(spec, codes, low, high, zero, joins, geometry, "test")
            except CapacityError:
                continue
            if abs(total).max() < 1 << geometry.wide_bits - 2:
                break
        if len(self.table) + len(own) > geometry.channel_entries:
            return None
        channel = len(self.table)
        self.table += own
        planes = geometry.wide_nibbles if wide else 1
        stride = int(random.integers(1, 4))
        words = columns * planes * stride
        if self.free_word + words > geometry.activation_words:
            return None
        output, residual = self.free_word, int(random.integers(0, geometry.activation_words - columns * stride))
        self.free_word += words
        for column in range(columns):
            if wide:
                codes_out = total[column] + entries.excess(joins)
                for plane in range(planes):
                    word = output + (column * planes + plane) * stride
                    self.expected[word] = (codes_out >> 4 * plane & 15).tolist()
                continue
            reached = (total[column][:, None] >= spec.thresholds[column]).sum(1)
            i = 15 - reached if spec.descending[column] else reached - 16
            r = self.residuals[residual + column * stride] if use_residual else 8
            code = spec.low[column] + np.clip(i + r, 0, spec.span[column])
            if kind == "reduce":
                code[1:] = UNKNOWN
            self.expected[output + column * stride] = code.tolist()
        drains = []
        for number, part in enumerate(sums):
            fields = dict(
                channel=channel,
                columns=columns,
                use_residual=int(use_residual),
                reduce=int(kind == "reduce"),
                wide=int(wide),
                output=output + (planes - 1) * stride,
                stride=planes * stride,
                residual=-((columns - 1) * planes + 1) * stride % (1 << 16) if wide else residual,
                join=int(number < len(joins)),
                accumulate=int(number > 0),
                nibble=int(number > 0 and joins[number - 1]),
                maximum=int(kind == "max"),
                signal=int(random.integers(2)),
            )
            drains.append((fields, part))
        return drains

    def group(self, index, jobs, slow):
        """Requests drains as a group does, and shows sums in their cycles only."""
        drain, array, random = self.drains[index], self.arrays[index], np.random.default_rng(index)
        geometry, bits = self.geometry, self.geometry.accumulator_bits
        shown: dict[int, list] = {}
        cycle = 0
        delay = 6
        waiting = [item for job in jobs for item in job]
        wait = 0
        while waiting or any(at >= cycle for at in shown):
            if waiting and not wait:
                fields, sums = waiting[0]
                yield drain.request.eq(1)
                for name in ("columns", "join", "wide", "reduce"):
                    yield getattr(drain, name).eq(fields[name])
            else:
                yield drain.request.eq(0)
            here = shown.get(cycle, {})
            yield drain.trigger.eq("trigger" in here)
            yield drain.parameters.eq(here.get("trigger", 0))
            for column in range(geometry.group_columns):
                garbage = random.integers(0, 1 << bits, geometry.lanes)
                yield array.columns[column].eq(packed(here.get(column, garbage), bits))
            yield array.maxima.eq(packed(here.get("max", random.integers(0, 16, geometry.lanes)), 4))
            yield
            wait = max(0, wait - 1)
            if waiting and (yield drain.request) and (yield drain.grant):
                fields, sums = waiting.pop(0)
                word = DRAIN.pack(**fields)
                # What is set in the next cycle is seen one later.
                start = cycle + delay
                shown.setdefault(start - TRIGGER_LEAD, {})["trigger"] = word
                for column, part in enumerate(sums):
                    shown.setdefault(start + column, {})["max" if fields["maximum"] else column] = part
                wait = int(random.integers(0, 12)) if slow else 0
                if not fields["join"] and not slow:
                    wait = int(random.choice([0, 0, 0, 5]))
                wait = max(wait, 1)
            cycle += 1
        yield drain.request.eq(0)
        for _ in range(4 * LATENCY):
            yield

    def told(self, index, jobs):
        """Each job is reported once, in order, with its signal, when the last of its results has been written."""
        drain = self.drains[index]
        waiting = [(fields["signal"], self.words_of(fields)) for job in jobs for fields, _ in job if not fields["join"]]
        for _ in range(MOST_CYCLES):
            if not waiting:
                break
            yield
            if (yield drain.written):
                signal, words = waiting.pop(0)
                assert (yield drain.signal) == signal
                assert words <= set(self.results), f"group {index}: reported before it is written"
        assert not waiting, f"group {index}: {len(waiting)} jobs are not reported"
        for _ in range(4 * LATENCY):
            yield
            assert not (yield drain.written), "reported twice"

    def words_of(self, fields):
        """The words that a drain writes."""
        first, stride, columns = fields["output"], fields["stride"], fields["columns"]
        planes = self.geometry.wide_nibbles if fields["wide"] else 1
        plane = stride // planes
        return {first + column * stride - number * plane for column in range(columns) for number in range(planes)}

    def memory(self, stalls):
        """The residual port, three cycles late, and the writer, which stalls."""
        random = np.random.default_rng(99)
        past = [0, 0, 0]
        idle = 0
        while idle < 300:
            yield self.write.ready.eq(int(random.random() >= stalls))
            yield self.read.low.eq(packed(self.residuals[past[0]], 4))
            yield
            past = [*past[1:], (yield self.dut.residual_word)]
            if (yield self.write.valid) and (yield self.write.ready):
                word = yield self.write.word
                assert word not in self.results, f"word {word} is written twice"
                data = yield self.write.data
                self.results[word] = [data >> 4 * lane & 15 for lane in range(self.geometry.lanes)]
                idle = 0
            idle += 1
        assert not (yield self.dut.busy), "still busy"

    def load(self):
        layout = channel_layout(self.geometry)
        for address, entry in enumerate(self.table):
            yield self.dut.channels.write.eq(1)
            yield self.dut.channels.write_address.eq(address)
            yield self.dut.channels.write_data.eq(entry & ((1 << layout.width) - 1))
            yield
        yield self.dut.channels.write.eq(0)

    def run(self, kinds, count, stalls=0.3, slow=False):
        jobs = [[], []]
        for number in range(count):
            job = self.prepare(str(self.random.choice(kinds)))
            if job is None:
                break
            jobs[number % 2].append(job)

        def after_loading(process):
            for _ in range(self.geometry.channel_entries + 2):
                yield
            yield from process

        run_simulation(
            self.top,
            [
                self.load(),
                self.memory(stalls),
                *(after_loading(self.group(i, jobs[i], slow)) for i in range(2)),
                *(after_loading(self.told(i, jobs[i])) for i in range(2)),
            ],
        )
        assert set(self.results) == set(self.expected)
        for word, expected in self.expected.items():
            pairs = zip(self.results[word], expected, strict=True)
            found = [value if wanted != UNKNOWN else UNKNOWN for value, wanted in pairs]
            assert found == expected, f"word {word}"
        return len(self.expected)


@pytest.mark.parametrize("seed", seeds(3, 60))
@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), KINDS], ids="-".join)
def test_every_result_is_the_models(kinds, seed):
    bench = Bench(seed)
    assert bench.run(kinds, 24, stalls=[0, 0.3, 0.8][seed % 3], slow=seed % 2 == 1) > 5
