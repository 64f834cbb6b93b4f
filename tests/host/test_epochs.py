"""Nothing is read before it is written or overwritten before it is read, however the groups' paces differ.

The proof reads the compiled program itself: from instructions, streams and tables it works out which activation words
each tile of each group reads and writes, and which epoch it waits for. Epoch e only says that every group has *passed*
its sections up to e. So each access is checked against all accesses to the same word before it, in program order, in
the same picture and in the one before.
"""

from dataclasses import dataclass, field, replace
from itertools import product

import pytest
from helpers.fitting_networks import layered_model
from helpers.geometries import LAYER_GEOMETRIES, SMALL_STREAMS
from helpers.random_layers import random_layer
from helpers.tiers import seeds

from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.host.network.ir import IRError
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import WEIGHT_BITS
from sentei.overlay.instructions import (
    EPOCH_BITS,
    EVERYTHING,
    HEADER0,
    HEADER1,
    INSTRUCTION,
    INSTRUCTION_LOAD_WORDS,
    STEP,
    STEP_WEIGHTS_OFFSET,
    TAP,
    TILE,
    Memory,
    Opcode,
    Start,
    Until,
    load_words,
)
from sentei.overlay.program import Program

LAYERS, NETWORKS = (60, 2000), (40, 1000)
ALL_INSTRUCTIONS = replace(SMALL_STREAMS, instruction_words=8192)  # of a picture, on one page


def signed(epoch: int) -> int:
    """An instruction's epoch, counted from the picture's start."""
    half = 1 << EPOCH_BITS - 1
    return (epoch + half) % (2 * half) - half


@dataclass
class Item:
    """One tile of one job of one group: what it reads (word -> the epoch waited for), what it writes, the epoch that it
    waits for before it writes, and the group's epoch when all of it is in memory."""

    layer: int
    wait: int
    done: int
    runs_since_stored: int  # its own run included, when no store was under way
    reads: dict[int, int] = field(default_factory=dict)
    writes: set[int] = field(default_factory=set)


class Machine:
    """Goes through a program's body as the groups do."""

    def __init__(self, program: Program):
        self.program, self.geometry = program, program.geometry
        size = 8 * INSTRUCTION_LOAD_WORDS
        code = program.data[: 8 * program.stages[0].instruction_load_words]
        words = [int.from_bytes(code[i : i + size], "little") for i in range(0, len(code), size)]
        self.code = [INSTRUCTION.unpack(word) for word in words]
        self.tables: dict[Memory, list[int]] = {}
        self.streams = [dict[int, int]() for _ in range(self.geometry.groups)]
        for instruction in self.code[program.stages[0].prologue : program.stages[0].body]:
            self.load(instruction)
        self.epochs = [0] * self.geometry.groups
        self.layers = [0] * self.geometry.groups
        self.items: list[Item] = []
        self.loads: list[tuple[int, set[int]]] = []  # the picture: epoch waited for, words
        self.stores: list[set[int]] = []
        self.wait: int | None = None  # of the last SYNC, for an epoch or for everything
        self.runs_since_stored = 0
        for instruction in self.code[program.stages[0].body : program.stages[0].trace]:
            self.execute(instruction)

    def load(self, instruction: dict) -> None:
        if instruction["opcode"] != Opcode.LOAD:
            return
        memory = Memory(instruction["memory"])
        words = load_words(memory, self.geometry)
        start = instruction["offset"]
        entries = [
            int.from_bytes(self.program.data[start + 8 * words * i : start + 8 * words * (i + 1)], "little")
            for i in range(instruction["count"])
        ]
        if memory not in (Memory.STREAM, Memory.WEIGHTS):
            self.tables[memory] = entries
            return
        for group, stream in enumerate(self.streams):
            if not instruction["units"] >> group & 1:
                continue
            if memory == Memory.STREAM:
                stream.update(enumerate(entries, instruction["address"]))
                continue
            bits = WEIGHT_BITS * self.geometry.group_columns
            for number, pair in enumerate(entries, instruction["address"]):
                for half in range(2):
                    weights = pair >> half * bits & (1 << bits) - 1
                    control = stream[2 * number + half] & (1 << STEP_WEIGHTS_OFFSET) - 1
                    stream[2 * number + half] = weights << STEP_WEIGHTS_OFFSET | control

    def execute(self, instruction: dict) -> None:
        words = set(range(instruction["address"], instruction["address"] + instruction["count"]))
        if instruction["opcode"] == Opcode.LOAD and instruction["memory"] != Memory.ACTIVATION:
            self.load(instruction)
        elif instruction["opcode"] == Opcode.LOAD:
            assert self.wait is not None
            self.loads.append((self.wait, words))
        elif instruction["opcode"] == Opcode.STORE:
            assert signed(instruction["epoch"]) == self.epochs[0], "a result is stored when its last section is passed"
            self.stores.append(words)
        elif instruction["opcode"] == Opcode.SYNC:
            if instruction["units"] & Until.EPOCH:
                self.wait = signed(instruction["epoch"])
            if instruction["units"] & EVERYTHING == EVERYTHING:
                self.wait = 0
            if instruction["units"] & Until.STORED:
                self.runs_since_stored = 0
        elif instruction["opcode"] == Opcode.RUN:
            assert not instruction["units"] & Start.RESUME
            self.runs_since_stored += 1
            for group in range(self.geometry.groups):
                if not instruction["count"] or instruction["count"] >> group & 1:
                    self.run(group, instruction["address"], signed(instruction["epoch"]))

    def run(self, group: int, address: int, epoch: int) -> None:
        stream, last = self.streams[group], False
        while not last:
            job, place = HEADER0.unpack(stream[address]), HEADER1.unpack(stream[address + 1])
            epoch += job["epoch"]
            last = bool(job["last"])
            if not job["tiles"]:
                self.epochs[group] += place["steps"]
                self.layers[group] += job["layer"]
                address += 2
                continue
            words = [stream[address + 2 + i] for i in range(place["steps"])]
            steps = [STEP.unpack(word & 0xFFFFFFFF) | {"weights": word >> STEP_WEIGHTS_OFFSET} for word in words]
            for number in range(job["tiles"]):
                tile = TILE.unpack(self.tables[Memory.TILE][job["tile"] + number])
                wait, done = epoch + tile["epoch"], self.epochs[group] + 1
                item = Item(self.layers[group], wait, done, self.runs_since_stored)
                self.access(item, job, place, steps, tile, epoch)
                self.epochs[group] += job["signal"] & tile["signal"]
            if job["layer"]:
                assert job["signal"] and tile["signal"], "a layer must end with a phase"
            self.layers[group] += job["layer"]
            address += 2 + place["steps"]

    def access(self, item: Item, job: dict, place: dict, steps: list[dict], tile: dict, epoch: int) -> None:
        """Note what one tile reads and writes."""
        lanes = self.geometry.lanes
        late = False
        for step in steps:
            late = late or bool(step["late"])
            if not step["weights"] and not step["maximum"]:
                continue  # what it reads does not matter
            tap = TAP.unpack(self.tables[Memory.TAP][tile["taps"] + step["tap"]])
            mask = self.tables[Memory.MASK][tap["mask"]]
            first = (step["plane"] + tile["input"]) * lanes + tap["offset"]
            waited = max(item.wait, epoch + place["late"]) if late else item.wait
            for word in {(first + lane) // lanes for lane in range(lanes) if mask >> lane & 1}:
                item.reads.setdefault(word, waited)
        nibbles = self.geometry.wide_nibbles if job["wide"] else 1
        for column, nibble in product(range(job["columns"]), range(nibbles)):
            below = nibble * place["stride"] // nibbles
            item.writes.add(place["output"] + column * place["stride"] - below + tile["output"])
        if job["residual"]:
            for column in range(job["columns"]):
                item.reads[place["residual"] + column * place["stride"] + tile["output"]] = item.wait
        self.items.append(item)


def check(program: Program, text: str) -> None:
    """Assert that no access comes too early."""
    machine = Machine(program)
    total = machine.code[program.stages[0].trace - 1]["count"]
    assert machine.epochs == [total] * machine.geometry.groups, text
    assert machine.layers == [len(program.layers)] * machine.geometry.groups, text
    readers: dict[int, list[Item]] = {}
    writers: dict[int, list[Item]] = {}
    for item in machine.items:
        for word in item.reads:
            readers.setdefault(word, []).append(item)
        for word in item.writes:
            writers.setdefault(word, []).append(item)
    ((load_wait, picture),) = machine.loads
    (result,) = machine.stores
    for word in picture:
        for user in (*readers.get(word, ()), *writers.get(word, ())):
            assert user.done - total <= load_wait, f"{text}: the next picture overwrites word {word} too early"
    for item in machine.items:
        for word, waited in item.reads.items():
            before = [writer for writer in writers.get(word, ()) if writer.layer < item.layer]
            assert before or word in picture, f"{text}: layer {item.layer} reads word {word}, which nobody writes"
            producer = max((writer.layer for writer in before), default=-1)
            for writer in before:
                if writer.layer == producer:
                    assert writer.done <= waited, f"{text}: layer {item.layer} reads word {word} before it is written"
        for word in item.writes - result:
            for user in (*readers.get(word, ()), *writers.get(word, ())):
                done = user.done if user.layer < item.layer else user.done - total
                assert done <= item.wait, f"{text}: layer {item.layer} overwrites word {word} in use by {user.layer}"
        if item.writes & result:
            assert item.runs_since_stored == 1, f"{text}: layer {item.layer} writes to the result while it is stored"
    last = len(program.layers) - 1
    for word in result:
        users = [*readers.get(word, ()), *(user for user in writers.get(word, ()) if user.layer < last)]
        assert not users or load_wait == 0, f"{text}: word {word} of the result is used while it is stored"


@pytest.mark.parametrize("seed", seeds(*LAYERS))
@pytest.mark.parametrize("name", ["8x8", "32x32", "odd", "narrow"])
def test_a_layer_waits_for_what_it_reads_and_overwrites(name, seed):
    geometry = LAYER_GEOMETRIES[name]
    for attempt in range(20):
        try:
            network, _ = random_layer(5000 + 100 * seed + attempt, geometry, large=False)
            program = compile_network(network, geometry)
            break
        except (CapacityError, IRError):
            continue
    check(program, f"geometry {name}, seed {seed}")


@pytest.mark.parametrize("seed", seeds(*NETWORKS))
@pytest.mark.parametrize("geometry", [LAYER_GEOMETRIES["8x8"], LAYER_GEOMETRIES["32x32"], ALL_INSTRUCTIONS], ids=str)
def test_a_network_waits_for_what_it_reads_and_overwrites(geometry, seed):
    for attempt in range(60):
        try:
            network = load(layered_model(1000 * seed + attempt, ("ahead", "single")[seed % 2]))
            program = compile_network(network, geometry)
            break
        except CapacityError:
            continue
    check(program, f"geometry {geometry}, seed {seed}")
