"""Compiles a checked network for a geometry: intermediate representation in, program out.

    place tensors -> schedule each operator, cut it into phases -> pack streams, channel entries, tables
                  -> plan the stream memory -> instructions -> Program

The groups' streams of all operators stay on chip if they can. Otherwise the largest operators are cut into *chunks*
that are loaded for each picture, while the run before computes, into the two halves of what is left of the stream
memory in turn; the others form *segments* of the stream memory. A run does one chunk or one segment.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from sentei.host.compiler.channel_entries import channel_entries, counting, excess, plain_entries
from sentei.host.compiler.epochs import (
    FURTHEST_BACK,
    LONG_AGO,
    Phases,
    Waits,
    cut,
    late_channels,
    needs,
    overlap,
    overwriting,
    phases_limit,
    waits_of,
)
from sentei.host.compiler.placement import Placement, last_uses, place
from sentei.host.compiler.steps import Block, Job, blocks_of, spread, tiles_of, weight_digits
from sentei.host.compiler.tables import Tables, Tile
from sentei.host.network.ir import Conv, Network, Pool, Requantize, accumulator_range, check, residual_codes
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import ACTIVATION_BITS, LOAD_BITS, Geometry
from sentei.overlay.instructions import (
    EPOCH_BITS,
    EVERYTHING,
    HEADER0,
    HEADER1,
    INSTRUCTION,
    INSTRUCTION_LOAD_WORDS,
    STEP,
    STEP_WEIGHTS_OFFSET,
    Base,
    Memory,
    Opcode,
    Start,
    Until,
    load_words,
    stream_bits,
)
from sentei.overlay.program import LayerInfo, Program, TensorInfo

HEADER_WORDS = 2
ALIGNMENT = 64  # bytes; segments start at multiples of it


@dataclass
class Data:
    """The program's data while it grows. Offsets count from its start, where the instructions will be."""

    reserved: int
    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def append(self, content: bytes) -> int:
        """Add a segment; returns its offset in bytes."""
        offset = self.reserved + self.size
        padded = content + bytes(-len(content) % ALIGNMENT)
        self.parts.append(padded)
        self.size += len(padded)
        return offset


def pack_entries(entries: list[int], memory: Memory, geometry: Geometry) -> bytes:
    """Table entries as a LOAD instruction reads them."""
    size = load_words(memory, geometry) * LOAD_BITS // 8
    return b"".join(int(entry).to_bytes(size, "little") for entry in entries)


def pack_steps(block: Block, geometry: Geometry) -> bytes:
    """The steps of a block as stream words."""
    words = stream_bits(geometry) // LOAD_BITS
    packed = np.zeros((block.steps, words), np.uint64)
    begin = 0
    for number, (steps, by_nibble) in enumerate(block.passes):
        end = begin + len(steps)
        control = np.zeros(len(steps), np.int64)
        flags = dict(plane=steps.planes, tap=steps.taps, pad=steps.pad, maximum=int(block.maximum))
        for name, value in flags.items():
            control |= np.asarray(value, np.int64) << STEP[name].offset
        if steps.late.any():
            control[int(np.argmax(steps.late))] |= 1 << STEP["late"].offset
        final = number == len(block.passes) - 1
        control[-1] |= 1 << STEP["last" if final else "join"].offset
        control[-1] |= int(by_nibble) << STEP["shift"].offset
        packed[begin:end, 0] = control.astype(np.uint64)
        for column in range(geometry.group_columns):
            bit = STEP_WEIGHTS_OFFSET + 4 * column
            weight = (steps.weights[:, column] & 15).astype(np.uint64)
            packed[begin:end, bit // LOAD_BITS] |= weight << np.uint64(bit % LOAD_BITS)
        begin = end
    return packed.tobytes()


def pack_header(first: dict, second: dict, geometry: Geometry) -> bytes:
    size = stream_bits(geometry) // 8
    return HEADER0.pack(**first).to_bytes(size, "little") + HEADER1.pack(**second).to_bytes(size, "little")


def entries_of(block: Block, op: Conv | Pool, network: Network, geometry: Geometry) -> list[int]:
    """Channel table entries of a block, for each level of its passes."""
    joins = [by_nibble for _, by_nibble in block.passes[1:]]
    spec = op.requantize
    if spec is None:
        return plain_entries(geometry.group_columns, joins, geometry)
    channels = slice(block.first, block.first + block.channels)
    low, high = accumulator_range(op, network.tensors[op.input])
    codes = residual_codes(network.tensors[spec.residual] if spec.residual else None)
    part = Requantize(
        spec.thresholds[channels], spec.descending[channels], spec.low[channels], spec.span[channels], spec.residual
    )
    return channel_entries(part, codes, low[channels], high[channels], block.stored_bias, joins, geometry, op.name)


def without_idle_weights(network: Network) -> Network:
    """`network` without the weights of channels whose sums decide nothing: their results are the same with sum 0."""
    ops: list[Conv | Pool] = []
    for op in network.ops:
        if isinstance(op, Conv) and op.requantize is not None:
            spec = op.requantize
            low, high = accumulator_range(op, network.tensors[op.input])
            residual = network.tensors[spec.residual] if spec.residual else None
            inside = (low[:, None] < spec.thresholds) & (spec.thresholds <= high[:, None])
            used = (inside & counting(spec, residual_codes(residual))).any(1)
            op = replace(op, weights=op.weights * used[:, None, None, None].astype(op.weights.dtype))
        ops.append(op)
    return replace(network, ops=tuple(ops))


def layer_info(op: Conv | Pool, network: Network, geometry: Geometry) -> LayerInfo:
    """What reports say of an operator."""
    source, target = network.tensors[op.input], network.tensors[op.output]
    if isinstance(op, Pool):
        return LayerInfo(op.name, f"{op.kind} pool", op.output, 0, 0, 0.0)
    pixels = target.shape.height * target.shape.width
    nibbles = -(-source.bits // ACTIVATION_BITS)
    dense = op.weights.size * len(weight_digits(op.weights)) * nibbles * pixels
    kept = 0
    for first in range(0, len(op.weights), geometry.group_columns):
        part = op.weights[first : first + geometry.group_columns]
        kept += sum(int((digit != 0).any(axis=0).sum()) for digit in weight_digits(part)) * len(part)
    macs = kept * nibbles * pixels
    kernel = f"{op.weights.shape[2]}x{op.weights.shape[3]}"
    return LayerInfo(op.name, f"conv {kernel}", op.output, macs, dense, macs / geometry.array_macs)


@dataclass
class Layer:
    """One operator, scheduled: its tiles, each group's jobs, and the epochs."""

    op: Conv | Pool
    tiles: list[Tile]
    shares: list[list[Job]]
    phases: Phases
    needed: np.ndarray  # int64 (tiles,): the epoch that each tile waits for
    last: int  # the epoch that late steps wait for; LONG_AGO if there are none


def compile_network(network: Network, geometry: Geometry, classes: tuple[str, ...] = (), batch: int = 1) -> Program:
    """Compile for `geometry`. Raises IRError for a network that breaks the IR's rules and CapacityError, naming
    operator and memory, for one that does not fit.

    `batch` pictures make a job. They share tiles, so small maps leave fewer lanes empty; they need as many times the
    activation memory.
    """
    if batch < 1:
        raise CapacityError(f"a batch must have at least 1 picture, not {batch}")
    network = without_idle_weights(check(network))
    placed, exclusive = place(network, geometry, batch)
    tables = Tables(geometry)
    layers = schedule(network, placed, tables, geometry)
    streams = pack_streams(network, placed, tables, layers, geometry)
    return assemble(network, geometry, placed, exclusive, tables, layers, streams, classes)


def schedule(network: Network, placed: dict[str, Placement], tables: Tables, geometry: Geometry) -> list[Layer]:
    """Every operator's jobs and epochs, adding to `tables` what they need."""
    limit = phases_limit(len(network.ops), network.name)
    source = placed[network.input].layout
    written = {network.input: np.full((source.channels, source.plane_words), LONG_AGO)}
    layers: list[Layer] = []
    load = [0] * geometry.groups
    for op in network.ops:
        with naming(network, op):
            first = layers[-1].phases.last if layers else 0
            tiles, words = tiles_of(op, placed, tables)
            needed = needs(tiles, written[op.input])
            late = late_channels(needed, first) if isinstance(op, Conv) else np.zeros(needed.shape[1], bool)
            shares = spread(blocks_of(op, placed, words, late, geometry), len(tiles), load, geometry)
            phases = cut(shares, tiles, placed[op.output], first, limit)
            written[op.output] = phases.written
            of_tiles = needed[:, ~late].max(axis=1)
            if op.requantize is not None and op.requantize.residual is not None:
                added = written[op.requantize.residual]
                of_tiles = np.maximum(of_tiles, [added[:, tile.target].max() for tile in tiles])
            last = int(needed.max()) if late.any() else LONG_AGO
            layers.append(Layer(op, tiles, shares, phases, of_tiles, last))
    return layers


@contextmanager
def naming(network: Network, op: Conv | Pool):
    """Has a CapacityError name network and operator."""
    try:
        yield
    except CapacityError as error:
        text = str(error).removeprefix(f"{op.name}: ")
        raise CapacityError(f"{network.name}: {op.name}: {text}") from error


@dataclass(frozen=True)
class Packed:
    """One job in a stream: `epoch` is what it waits for; `header` gives both words for an epoch to count from and for
    whether the run ends with it."""

    epoch: int
    header: Callable[[int, bool], bytes]
    steps: bytes
    words: int


@dataclass
class Streams:
    """What the groups do: `jobs[layer][group]`; and what goes with it: entries of each requantizer's channel table, and
    `corrections` (C,) of the wide output."""

    jobs: list[list[list[Packed]]]
    channels: list[list[int]]
    corrections: np.ndarray


def pack_streams(
    network: Network, placed: dict[str, Placement], tables: Tables, layers: list[Layer], geometry: Geometry
) -> Streams:
    channels: list[list[int]] = [[] for _ in range(geometry.requantizers)]
    corrections = np.zeros(network.tensors[network.output].shape.channels, np.int64)
    total = layers[-1].phases.last
    dead = overwriting(network, placed, [layer.phases for layer in layers], total)
    running = [LONG_AGO] * geometry.groups
    packed: list[list[list[Packed]]] = []
    for layer, free in zip(layers, dead, strict=True):
        op, phases = layer.op, layer.phases
        needed = np.maximum(layer.needed, free)
        known: dict[tuple[int, int], int] = {}
        packed.append([])
        with naming(network, op):
            for group, jobs in enumerate(layer.shares):
                requantizer = group // geometry.groups_per_requantizer
                packed[-1].append([])
                for number, job in enumerate(jobs):
                    block = job.block
                    if op.requantize is None:
                        joined = excess([by_nibble for _, by_nibble in block.passes[1:]])
                        corrections[block.first : block.first + block.channels] = block.stored_bias + joined
                    key = (-1 if op.requantize is None else block.first, requantizer)
                    if key not in known:
                        known[key] = len(channels[requantizer])
                        channels[requantizer] += entries_of(block, op, network, geometry)
                        if len(channels[requantizer]) > geometry.channel_entries:
                            raise CapacityError(
                                f"needs more than {geometry.channel_entries} channel_entries; use a geometry with "
                                "more of them, or fewer output channels"
                            )
                    waits = waits_of(job, needed[job.tiles], layer.last, running[group], phases.first)
                    running[group] = waits.epoch
                    signals = phases.signals[group][number]
                    entries = tuple(
                        layer.tiles[tile].pack(epoch, signal)
                        for tile, epoch, signal in zip(job.tiles, waits.tiles, signals, strict=True)
                    )
                    fields = job_fields(op, job, placed, known[key])
                    fields[0].update(tile=tables.tile_list(entries), signal=int(any(signals)))
                    packed[-1][-1].append(pack_job(job, fields, waits, number == len(jobs) - 1, geometry))
                if not jobs:
                    running[group] = max(running[group], phases.first - FURTHEST_BACK)
                    packed[-1][-1].append(pack_empty(phases.last - phases.first, running[group], True, geometry))
    return Streams(packed, channels, corrections)


def job_fields(op: Conv | Pool, job: Job, placed: dict[str, Placement], channel: int) -> tuple[dict, dict]:
    """Most of a header: fields of both words."""
    block, target = job.block, placed[op.output]
    requantize: Requantize | None = op.requantize
    residual = None if requantize is None or requantize.residual is None else placed[requantize.residual]
    plane, nibbles = target.layout.stride, target.layout.nibbles
    first = dict(
        tiles=len(job.tiles),
        channel=channel,
        columns=block.channels,
        residual=int(residual is not None),
        reduce=int(block.reduce),
        wide=int(requantize is None),
    )
    second = dict(
        output=target.address + (block.first * nibbles + nibbles - 1) * plane,
        stride=nibbles * plane,
        residual=0 if residual is None else residual.address + block.first * plane,
        steps=block.steps,
    )
    if requantize is None:
        # From the last column's highest nibble to the first column's next one.
        back = (block.channels - 1) * nibbles + 1
        second["residual"] = -back * plane % (1 << HEADER1["residual"].width)
    return first, second


def pack_job(job: Job, fields: tuple[dict, dict], waits: Waits, ends_layer: bool, geometry: Geometry) -> Packed:
    first, second = fields
    largest = (1 << HEADER1["steps"].width) - 1
    if largest < job.block.steps <= geometry.stream_words - HEADER_WORDS:
        raise CapacityError(f"has {job.block.steps} steps, more than {largest}; use fewer input channels")
    largest = (1 << HEADER1["stride"].width) - 1
    if second["stride"] > largest:
        raise CapacityError(f"output planes lie {second['stride']} words apart, more than {largest}; use smaller maps")

    def header(base: int, last: bool) -> bytes:
        return pack_header(
            dict(first, layer=int(ends_layer), last=int(last), epoch=waits.epoch - base),
            dict(second, late=waits.late),
            geometry,
        )

    return Packed(waits.epoch, header, pack_steps(job.block, geometry), HEADER_WORDS + job.block.steps)


def pack_empty(phases: int, epoch: int, ends_layer: bool, geometry: Geometry) -> Packed:
    """The job of a group that has nothing to do: it passes so many phases."""

    def header(base: int, last: bool) -> bytes:
        first = dict(tiles=0, layer=int(ends_layer), last=int(last), epoch=epoch - base)
        return pack_header(first, dict(steps=phases), geometry)

    return Packed(epoch, header, b"", HEADER_WORDS)


@dataclass(frozen=True)
class Run:
    """One RUN instruction: the `layers` that it does, each group's jobs, and the epoch that the first header counts
    from. A chunk is a part of one layer and is loaded for each picture."""

    layers: range
    jobs: list[list[Packed]]
    chunk: bool

    @property
    def epoch(self) -> int:
        return min(jobs[0].epoch for jobs in self.jobs)

    @property
    def words(self) -> int:
        """Stream words that it needs, the same addresses in every group."""
        return max(sum(job.words for job in jobs) for jobs in self.jobs)

    def contents(self) -> list[bytes]:
        """Each group's stream."""
        streams = []
        for jobs in self.jobs:
            base, parts = self.epoch, []
            for index, job in enumerate(jobs):
                parts += [job.header(base, index == len(jobs) - 1), job.steps]
                base = job.epoch
            streams.append(b"".join(parts))
        return streams


@dataclass(frozen=True)
class StreamPlan:
    """The runs of a picture and the stream address of each; chunks take one of `buffers` places in turn: with two, a
    chunk is loaded while the run before it computes."""

    runs: list[Run]
    addresses: list[int]
    buffers: int


def plan_streams(streams: Streams, geometry: Geometry, network: Network) -> StreamPlan:
    """Keep on chip what fits, the largest layers last. The last layer has a run of its own: it may not begin before
    the previous picture's result is stored."""
    lengths = [max(sum(job.words for job in jobs) for jobs in shares) for shares in streams.jobs]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])

    def longest_job(layer: int) -> int:
        return max(job.words for jobs in streams.jobs[layer] for job in jobs)

    for buffers, count in product((2, 1), range(len(lengths) + 1)):
        segments = make_segments(streams, set(order[:count]))
        room = geometry.stream_words - sum(run.words for run in segments if not run.chunk)
        place = room // buffers
        if place >= max(map(longest_job, order[:count]), default=0):
            break
    else:
        worst = max(range(len(lengths)), key=longest_job)
        raise CapacityError(
            f"{network.name}: {network.ops[worst].name}: one block of output channels needs {longest_job(worst)} "
            f"stream words, the geometry has {geometry.stream_words}; use a geometry with more stream_words, or fewer "
            "input channels"
        )
    runs, addresses = [], []
    free, turn = buffers * place if count else 0, 0
    for segment in segments:
        if not segment.chunk:
            runs.append(segment)
            addresses.append(free)
            free += segment.words
            continue
        for chunk in make_chunks(segment, place, geometry):
            runs.append(chunk)
            addresses.append(turn * place)
            turn = (turn + 1) % buffers
    return StreamPlan(runs, addresses, buffers)


def make_segments(streams: Streams, streamed: set[int]) -> list[Run]:
    """Runs of consecutive layers that stay on chip, and streamed layers by themselves."""
    runs: list[Run] = []
    begin = 0
    layers = len(streams.jobs)
    groups = range(len(streams.jobs[0]))
    for index in range(layers):
        last = index == layers - 1
        alone = index in streamed
        ends = last or alone or index + 1 in streamed or index + 1 == layers - 1
        if ends:
            members = range(begin, index + 1)
            jobs = [[job for layer in members for job in streams.jobs[layer][group]] for group in groups]
            runs.append(Run(members, jobs, alone))
            begin = index + 1
    return runs


def make_chunks(run: Run, words: int, geometry: Geometry) -> list[Run]:
    """Cut a streamed layer into runs of at most `words`; each job whole. Every group has a job in each of them."""
    waiting = [list(jobs) for jobs in run.jobs]
    chunks = []
    while any(waiting):
        taken: list[list[Packed]] = []
        for jobs in waiting:
            taken.append([])
            used = 0
            while jobs and used + jobs[0].words <= words:
                used += jobs[0].words
                taken[-1].append(jobs.pop(0))
        epoch = min(jobs[0].epoch for jobs in taken if jobs)
        nothing = pack_empty(0, epoch, False, geometry)
        chunks.append(Run(run.layers, [jobs or [nothing] for jobs in taken], True))
    return chunks


def assemble(
    network: Network,
    geometry: Geometry,
    placed: dict[str, Placement],
    exclusive: bool,
    tables: Tables,
    layers: list[Layer],
    streams: Streams,
    classes: tuple[str, ...],
) -> Program:
    """Lay out the data and write the instructions."""
    plan = plan_streams(streams, geometry, network)
    word_bytes = geometry.word_bytes
    instructions: list[int] = []
    data = Data(geometry.instruction_words * LOAD_BITS // 8)
    total = layers[-1].phases.last
    uses = last_uses(network)

    def emit(opcode: Opcode, epoch: int = 0, **fields: int) -> None:
        instructions.append(INSTRUCTION.pack(opcode=opcode, epoch=epoch % (1 << EPOCH_BITS), **fields))

    def load(memory: Memory, content: bytes, address: int = 0, units: int = 0) -> dict[str, int]:
        """Fields of the LOAD of a new segment."""
        count = len(content) // (load_words(memory, geometry) * LOAD_BITS // 8)
        fields = dict(memory=memory, units=units, address=address, count=count, base=Base.PROGRAM)
        return dict(fields, offset=data.append(content))

    def store(name: str, offset: int, epoch: int) -> None:
        where = placed[name]
        emit(Opcode.STORE, epoch, address=where.address, count=where.layout.words, base=Base.OUTPUT, offset=offset)

    prologue = len(instructions)
    table_contents = ((Memory.TILE, tables.tiles), (Memory.TAP, tables.taps), (Memory.MASK, tables.masks))
    for memory, entries in table_contents:
        emit(Opcode.LOAD, **load(memory, pack_entries(entries, memory, geometry)))
    for unit, entries in enumerate(streams.channels):
        if entries:
            content = pack_entries(entries, Memory.CHANNEL, geometry)
            emit(Opcode.LOAD, **load(Memory.CHANNEL, content, units=1 << unit))
    loads: list[list[dict[str, int]]] = []
    for run, address in zip(plan.runs, plan.addresses, strict=True):
        contents = enumerate(run.contents())
        loads.append([load(Memory.STREAM, content, address, 1 << group) for group, content in contents])
        if not run.chunk:
            for fields in loads[-1]:
                emit(Opcode.LOAD, **fields)
    emit(Opcode.SYNC, units=Until.LOADED)
    emit(Opcode.END)

    source = placed[network.input]
    free = max(
        layers[uses[name]].phases.last
        for name, other in placed.items()
        if overlap(source, other) and name != network.output
    )
    trace_tensors: list[TensorInfo] = []
    trace_bytes = 0

    def correction_of(op: Conv | Pool) -> tuple[int, ...]:
        return tuple(int(value) for value in streams.corrections) if op.requantize is None else ()

    def load_input() -> None:
        if exclusive:
            emit(Opcode.SYNC, free - total, units=Until.EPOCH)
        else:
            emit(Opcode.SYNC, units=EVERYTHING)
        emit(Opcode.LOAD, memory=Memory.ACTIVATION, address=source.address, count=source.layout.words, base=Base.INPUT)

    def load_chunk(index: int) -> None:
        for fields in loads[index]:
            emit(Opcode.LOAD, **fields)

    def body() -> int:
        """One picture, overlapping with those before and after it."""
        entry = len(instructions)
        load_input()
        for index, run in enumerate(plan.runs):
            if run.chunk:
                since = runs_since_address_was_used(plan, index)
                emit(Opcode.SYNC, units=Until.RUNS, count=since - 1)
                load_chunk(index)
            until = Until.LOADED if run.chunk or index == 0 else Until(0)
            if index == len(plan.runs) - 1:
                until |= Until.STORED
            if until:
                emit(Opcode.SYNC, units=until)
            emit(Opcode.RUN, run.epoch, address=plan.addresses[index])
        store(network.output, 0, total)
        emit(Opcode.END, count=total)
        return entry

    def trace() -> int:
        """One picture, layer by layer, storing every layer's output."""
        nonlocal trace_bytes
        entry = len(instructions)
        load_input()
        for index, run in enumerate(plan.runs):
            emit(Opcode.SYNC, units=EVERYTHING)
            if run.chunk:
                load_chunk(index)
                emit(Opcode.SYNC, units=EVERYTHING)
            for number in run.layers:
                resume = Start.RESUME if number != run.layers[0] else Start(0)
                emit(Opcode.RUN, run.epoch, address=plan.addresses[index], units=Start.LAYER | resume)
                if run.chunk and index + 1 < len(plan.runs) and plan.runs[index + 1].layers == run.layers:
                    continue
                op = network.ops[number]
                emit(Opcode.SYNC, units=EVERYTHING)
                store(op.output, trace_bytes, layers[number].phases.last)
                emit(Opcode.SYNC, units=EVERYTHING)
                trace_tensors.append(TensorInfo(op.output, placed[op.output].layout, trace_bytes, correction_of(op)))
                trace_bytes += -(-placed[op.output].layout.words * word_bytes // ALIGNMENT) * ALIGNMENT
        emit(Opcode.END, count=total)
        return entry

    entries_of = dict(body=body(), trace=trace())
    if len(instructions) * INSTRUCTION_LOAD_WORDS > geometry.instruction_words:
        raise CapacityError(
            f"{network.name}: needs {len(instructions) * INSTRUCTION_LOAD_WORDS} instruction words, "
            f"the geometry has {geometry.instruction_words}; use one with more"
        )
    size = INSTRUCTION_LOAD_WORDS * LOAD_BITS // 8
    code = b"".join(instruction.to_bytes(size, "little") for instruction in instructions)
    last = next(op for op in network.ops if op.output == network.output)
    output = TensorInfo(network.output, placed[network.output].layout, 0, correction_of(last))
    return Program(
        name=network.name,
        geometry=geometry,
        data=code.ljust(data.reserved, b"\0") + b"".join(data.parts),
        instruction_load_words=len(instructions) * INSTRUCTION_LOAD_WORDS,
        prologue=prologue,
        **entries_of,
        input=source.layout,
        input_scale=float(network.tensors[network.input].scale),
        output=output,
        output_bytes=output.layout.words * word_bytes,
        output_scale=tuple(float(v) for v in network.output_scale),
        output_offset=tuple(float(v) for v in network.output_offset),
        trace_tensors=tuple(trace_tensors),
        trace_bytes=trace_bytes,
        layers=tuple(layer_info(op, network, geometry) for op in network.ops),
        classes=classes,
    )


def runs_since_address_was_used(plan: StreamPlan, index: int) -> int:
    """How many runs ago, this one included, a chunk's address was used before, in this picture or the one before."""
    count = len(plan.runs)
    for distance in range(1, count + 1):
        other = (index - distance) % count
        if plan.runs[other].chunk and plan.addresses[other] == plan.addresses[index]:
            return distance
    raise AssertionError("a run uses its own address")
