"""Writes a program's instructions, and lays out the data that they load.

prologue   once: tables, channel entries, the streams that stay on chip
picture    overlaps with the pictures before and after it
trace      layer by layer; every layer's output is stored

Where the sequencer has no room for all of them, they go on in pages of instructions behind the other data.
"""

from __future__ import annotations

from collections.abc import Mapping

from sentei.host.compiler.epochs import overlap
from sentei.host.compiler.pack import NO_PAGE, Streams, pack_entries
from sentei.host.compiler.placement import Placement, last_uses
from sentei.host.compiler.plan import Run, StreamContent, StreamPlan, runs_since_address_was_used
from sentei.host.compiler.schedule import Layer
from sentei.host.network.ir import WIDE, Network
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
    ):
        self.tilings = tilings
        self.network, self.geometry, self.placed, self.exclusive = network, geometry, placed, exclusive
        self.layers, self.plan, self.streams = layers, plan, streams
        self.total = layers[-1].sections.last
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
        return offsets, size

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
        runs = self.plan.runs
        self._load_input()
        self.page = None
        for index, run in enumerate(runs):
            self._turn_page(run)
            if run.chunk:
                since = runs_since_address_was_used(self.plan, index)
                self._emit(Opcode.SYNC, units=Until.RUNS, count=since - 1, address=run.groups)
                self._load_streams(index)
            until = Until.LOADED if run.chunk or index == 0 else Until(0)
            if run.layers.stop == len(self.layers):
                until |= Until.STORED
            if until:
                self._emit(Opcode.SYNC, units=until)
            self._emit(Opcode.RUN, run.epoch, address=self.plan.addresses[index], count=run.groups)
        for name, offset in self.output_offsets.items():
            self._store(name, offset, self.total)
        self._emit(Opcode.END, count=self.total)

    def _trace(self) -> None:
        runs = self.plan.runs
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
        self._emit(Opcode.END, count=self.total)

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

    def _load_input(self) -> None:
        if self.exclusive:
            self._emit(Opcode.SYNC, self._input_is_free() - self.total, units=Until.EPOCH)
        else:
            self._emit(Opcode.SYNC, units=EVERYTHING)
        for name, offset in self.input_offsets.items():
            address, words = self.placed[name].address, self.placed[name].layout.words
            where = dict(memory=Memory.ACTIVATION, address=address, count=words)
            self._emit(Opcode.LOAD, **where, base=Base.INPUT, offset=offset)

    def _input_is_free(self) -> int:
        """The epoch from which on nobody uses the words of the network's inputs."""
        sources, uses = [self.placed[name] for name in self.network.inputs], last_uses(self.network)
        return max(
            self.layers[uses[name]].sections.last
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

    def _store(self, name: str, offset: int, epoch: int) -> None:
        where = self.placed[name]
        words = where.layout.words
        self._emit(Opcode.STORE, epoch, address=where.address, count=words, base=Base.OUTPUT, offset=offset)

    def _store_traced(self, layer: int) -> None:
        name = self.network.ops[layer].output
        self._store(name, self.trace_bytes, self.layers[layer].sections.last)
        self.traced.append(self.tensor_info(name, self.trace_bytes))
        self.trace_bytes += aligned(self.placed[name].layout.words * self.geometry.word_bytes)
