"""Writes a program's instructions, and lays out the data that they load.

prologue   once: tables, channel entries, the streams that stay on chip
picture    overlaps with the pictures before and after it; or does all patches of one, which overlap with one another
trace      layer by layer; every layer's output is stored

Where the sequencer has no room for all of them, they go on in pages of instructions behind the other data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sentei.host.compiler.epochs import overlap
from sentei.host.compiler.pack import NO_PAGE, Streams, pack_entries
from sentei.host.compiler.placement import Placement, last_uses
from sentei.host.compiler.plan import Run, StreamContent, StreamPlan, runs_since_address_was_used
from sentei.host.compiler.schedule import Layer
from sentei.host.network.ir import WIDE, Network
from sentei.host.network.patches import twice
from sentei.overlay.geometry import ALIGNMENT_BYTES, LOAD_BITS, Geometry
from sentei.overlay.instructions import (
    EPOCH_BITS,
    EVERYTHING,
    INSTRUCTION,
    INSTRUCTION_LOAD_WORDS,
    Base,
    Memory,
    Opcode,
    Start,
    Until,
    load_words,
)
from sentei.overlay.layout import Tiling
from sentei.overlay.program import TensorInfo


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def code_of(instructions: list[int]) -> bytes:
    size = INSTRUCTION_LOAD_WORDS * LOAD_BITS // 8
    return b"".join(instruction.to_bytes(size, "little") for instruction in instructions)


def page_turn(offset: int, instructions: int, then: int) -> int:
    """The instruction that goes on at number `then` of so many that lie `offset` bytes from the program's start."""
    count = instructions * INSTRUCTION_LOAD_WORDS
    return INSTRUCTION.pack(opcode=Opcode.PAGE, base=Base.PROGRAM, offset=offset, count=count, address=then)


class Emitter:
    """The program: its `data`, where its three parts begin in the first `instruction_load_words`, counted in
    instructions (`entries`), and what the trace stores (`traced`, `trace_bytes`)."""

    def __init__(
        self,
        network: Network,
        geometry: Geometry,
        placed: Mapping[str, Placement],
        exclusive: bool,
        layers: list[Layer],
        plan: StreamPlan,
        streams: Streams,
        tilings: Mapping[str, Tiling],
        patches: int = 1,
    ):
        """`placed`, `layers`, `plan` and `streams` are those of `network`, or of `twice` of it: then a picture has so
        many `patches`."""
        self.tilings = tilings
        self.patches = patches
        self.network, self.geometry, self.placed, self.exclusive = network, geometry, placed, exclusive
        self.layers, self.plan, self.streams = layers, plan, streams
        both, second = twice(network)
        self.uses = last_uses(both)
        self.names = [{name: name for name in network.tensors}, second]  # of each patch of a pair
        pictures = len(layers) // len(network.ops)
        self.ends = [layers[len(network.ops) * (number + 1) - 1].sections.last for number in range(pictures)]
        self.total = self.ends[-1]
        self.input_offsets, self.input_bytes = self._offsets(network.inputs)
        self.output_offsets, self.output_bytes = self._offsets(network.outputs)
        self.instructions: list[int] = []
        self.segments: list[bytes] = []
        self.data_bytes = geometry.instruction_words * LOAD_BITS // 8  # the instructions come first
        self.stream_loads: list[list[dict[str, int]]] = []  # of each run, fields of its LOADs
        self.page_loads: list[list[dict[str, int]]] = []  # of each page of the tables, likewise
        self.page: int | None = None  # that is loaded at this point of the program
        self.traced: list[TensorInfo] = []
        self.trace_bytes = 0
        codes: dict[str, list[int]] = {}
        for name, emit in (("prologue", self._prologue), ("body", self._picture), ("trace", self._trace)):
            self.instructions = codes[name] = []
            emit()
        first, self.entries = self._pages(codes)
        self.instruction_load_words = len(first) * INSTRUCTION_LOAD_WORDS
        room = geometry.instruction_words * LOAD_BITS // 8
        self.data = code_of(first).ljust(room, b"\0") + b"".join(self.segments)

    def _offsets(self, names: tuple[str, ...]) -> tuple[dict[str, int], int]:
        """Where each tensor lies in a buffer of all of them, and its bytes."""
        offsets, size = {}, 0
        for name in names:
            offsets[name] = size = aligned(size)
            size += self.placed[name].layout.words * self.geometry.word_bytes
        return offsets, aligned(size) if self.patches > 1 else size

    def _pages(self, codes: dict[str, list[int]]) -> tuple[list[int], dict[str, int]]:
        """The first page of instructions, which is there when a job begins and has each part's END, and where each part
        begins in it. Pages that follow one another are added to the data."""
        room = self.geometry.instruction_words // INSTRUCTION_LOAD_WORDS
        enough = sum(map(len, codes.values())) <= room
        spare = room if enough else room - 2 * len(codes)  # besides each part's PAGE and END
        first: list[int] = []
        entries: dict[str, int] = {}
        rest: dict[int, list[int]] = {}  # by the place of the PAGE that leads to it
        for name in codes if enough else sorted(codes, key=lambda name: name != "body"):
            *code, end = codes[name]
            taken = min(spare, len(code))
            spare -= taken
            entries[name] = len(first)
            first += code[:taken]
            if code[taken:]:
                rest[len(first)] = code[taken:]
                first.append(0)
            first.append(end)
        for place, code in rest.items():
            pages = [code[begin : begin + room - 1] for begin in range(0, len(code), room - 1)]
            turn = page_turn(0, len(first), place + 1)
            for page in reversed(pages):
                turn = page_turn(self._append(code_of([*page, turn])), len(page) + 1, 0)
            first[place] = turn
        return first, entries

    def _prologue(self) -> None:
        for page in self.streams.pages:
            tables = ((Memory.TILE, page.tiles), (Memory.TAP, page.taps), (Memory.MASK, page.masks))
            loads = [self._segment(memory, pack_entries(entries, memory, self.geometry)) for memory, entries in tables]
            for unit, entries in enumerate(page.channels):
                if entries:
                    content = pack_entries(entries, Memory.CHANNEL, self.geometry)
                    loads.append(self._segment(Memory.CHANNEL, content, units=1 << unit))
            self.page_loads.append(loads)
        if len(self.page_loads) == 1:
            self._load(self.page_loads[0])
        held = [StreamContent(self.geometry) for _ in range(self.geometry.groups)]  # chunks, as a picture goes on
        for index, (run, address) in enumerate(zip(self.plan.runs, self.plan.addresses, strict=True)):
            self.stream_loads.append(
                [
                    self._segment(memory, content, begin, 1 << group)
                    for group, stream in enumerate(run.contents())
                    if stream
                    for memory, begin, content in held[group].replaced(address, stream)
                ]
            )
            if not run.chunk:
                self._load_streams(index)
        self._emit(Opcode.SYNC, units=Until.LOADED)
        self._emit(Opcode.END)

    def _picture(self) -> None:
        if self.patches > 1:
            self._patches()
            return
        self._wait_for_input()
        self._load_input()
        self.page = None
        self._run(range(len(self.plan.runs)))
        self._store_output()
        self._emit(Opcode.END, count=self.total)

    def _patches(self) -> None:
        """Two places in turn: while a patch is computed in one, that before is stored from the other, and the next is
        loaded there. A patch is stored only once the next has been sent off, so that one waits for its own place's."""
        halves = [
            [index for index, run in enumerate(self.plan.runs) if run.layers[0] // len(self.network.ops) == half]
            for half in (0, 1)
        ]
        self._emit(Opcode.SYNC, units=EVERYTHING)
        self.page = None
        for patch in range(self.patches):
            pair, half = divmod(patch, 2)
            if pair:
                read = max(self.layers[self.uses[self.names[half][name]]].sections.last for name in self.network.inputs)
                self._emit(Opcode.SYNC, read + (pair - 1) * self.total, units=Until.EPOCH)
            self._load_input(patch)
            self._run(halves[half], pair * self.total)
            if patch:
                self._store_output(patch - 1)
        self._store_output(self.patches - 1)
        self._emit(Opcode.END, count=pair * self.total + self.ends[half])

    def _run(self, indices: Sequence[int], begin: int = 0) -> None:
        """Send off these runs, which do a picture, or a patch: once its input is there and its output may be written.
        `begin` is the epoch that it counts from."""
        for index in indices:
            run = self.plan.runs[index]
            self._turn_page(run)
            if run.chunk:
                since = runs_since_address_was_used(self.plan, index)
                self._emit(Opcode.SYNC, units=Until.RUNS, count=since - 1, address=run.groups)
                self._load_streams(index)
            until = Until.LOADED if run.chunk or index == indices[0] else Until(0)
            if run.layers.stop % len(self.network.ops) == 0:
                until |= Until.STORED
            if until:
                self._emit(Opcode.SYNC, units=until)
            self._emit(Opcode.RUN, begin + run.epoch, address=self.plan.addresses[index], count=run.groups)

    def _trace(self) -> None:
        runs = [run for run in self.plan.runs if run.layers.stop <= len(self.network.ops)]
        self._wait_for_input()
        self._load_input()
        self.page = None
        for index, run in enumerate(runs):
            self._turn_page(run)
            self._emit(Opcode.SYNC, units=EVERYTHING)
            if run.chunk:
                self._load_streams(index)
                self._emit(Opcode.SYNC, units=EVERYTHING)
            for number in run.layers:
                resume = Start.RESUME if number != run.layers[0] else Start(0)
                place = self.plan.addresses[index]
                self._emit(Opcode.RUN, run.epoch, address=place, count=run.groups, units=Start.LAYER | resume)
                if run.chunk and index + 1 < len(runs) and runs[index + 1].layers == run.layers:
                    continue
                self._emit(Opcode.SYNC, units=EVERYTHING)
                self._store_traced(number)
                self._emit(Opcode.SYNC, units=EVERYTHING)
        self._emit(Opcode.END, count=self.ends[0])

    def load_cycles(self, chunks: bool) -> float:
        """Cycles that the bus needs for the streams that are loaded for each picture, or for those that stay."""
        loads = [of for run, of in zip(self.plan.runs, self.stream_loads, strict=True) if run.chunk == chunks]
        words = sum(fields["count"] * load_words(fields["memory"], self.geometry) for of in loads for fields in of)
        return words * LOAD_BITS / self.geometry.bus_bits

    def tensor_info(self, name: str, offset: int) -> TensorInfo:
        """What the driver needs to know of a tensor that is stored at `offset` bytes of a buffer."""
        wide = self.network.tensors[name].bits == WIDE
        correction = tuple(int(value) for value in self.streams.corrections) if wide else ()
        return TensorInfo(name, self.placed[name].layout, offset, correction, self.tilings.get(name))

    def _emit(self, opcode: Opcode, epoch: int = 0, **fields: int) -> None:
        self.instructions.append(INSTRUCTION.pack(opcode=opcode, epoch=epoch % (1 << EPOCH_BITS), **fields))

    def _segment(self, memory: Memory, content: bytes, address: int = 0, units: int = 0) -> dict[str, int]:
        """Add a segment to the data; returns the fields of its LOAD."""
        count = len(content) // (load_words(memory, self.geometry) * LOAD_BITS // 8)
        offset = self._append(content)
        return dict(memory=memory, units=units, address=address, count=count, base=Base.PROGRAM, offset=offset)

    def _append(self, content: bytes) -> int:
        """Add to the data; returns where."""
        offset = self.data_bytes
        self.segments.append(content.ljust(aligned(len(content)), b"\0"))
        self.data_bytes += len(self.segments[-1])
        return offset

    def _wait_for_input(self) -> None:
        if self.exclusive and self.patches == 1:
            self._emit(Opcode.SYNC, self._input_is_free() - self.total, units=Until.EPOCH)
        else:
            self._emit(Opcode.SYNC, units=EVERYTHING)

    def _load_input(self, patch: int = 0) -> None:
        for name, offset in self.input_offsets.items():
            own = self.placed[self.names[patch % 2][name]]
            where = dict(memory=Memory.ACTIVATION, address=own.address, count=own.layout.words)
            self._emit(Opcode.LOAD, **where, base=Base.INPUT, offset=patch * self.input_bytes + offset)

    def _input_is_free(self) -> int:
        """The epoch from which on nobody uses the words of the network's inputs."""
        sources = [self.placed[name] for name in self.network.inputs]
        return max(
            self.layers[self.uses[name]].sections.last
            for name, other in self.placed.items()
            if any(overlap(source, other) for source in sources) and name not in self.network.outputs
        )

    def _load(self, loads: list[dict[str, int]]) -> None:
        for fields in loads:
            self._emit(Opcode.LOAD, **fields)

    def _turn_page(self, run: Run) -> None:
        """Load the tables that a run needs, if there are several pages of them: when nobody uses them."""
        if len(self.page_loads) > 1 and run.page not in (NO_PAGE, self.page):
            self._emit(Opcode.SYNC, units=EVERYTHING)
            self._load(self.page_loads[run.page])
            self._emit(Opcode.SYNC, units=Until.LOADED)
            self.page = run.page

    def _load_streams(self, run: int) -> None:
        self._load(self.stream_loads[run])

    def _store_output(self, patch: int = 0) -> None:
        pair, half = divmod(patch, 2)
        for name, offset in self.output_offsets.items():
            end = pair * self.total + self.ends[half]
            self._store(self.names[half][name], patch * self.output_bytes + offset, end)

    def _store(self, name: str, offset: int, epoch: int) -> None:
        where = self.placed[name]
        words = where.layout.words
        self._emit(Opcode.STORE, epoch, address=where.address, count=words, base=Base.OUTPUT, offset=offset)

    def _store_traced(self, layer: int) -> None:
        name = self.network.ops[layer].output
        self._store(name, self.trace_bytes, self.layers[layer].sections.last)
        self.traced.append(self.tensor_info(name, self.trace_bytes))
        self.trace_bytes += aligned(self.placed[name].layout.words * self.geometry.word_bytes)
