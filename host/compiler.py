"""Compiles a checked network for a geometry: intermediate representation in, program out.

    place tensors -> schedule each operator -> pack streams, channel entries, tables -> instructions -> Program

A layer is computed in one or more *runs*: as many as its streams need to fit. Streams of all runs stay on chip if they
can. Otherwise the largest ones are loaded for each picture, while the run before computes, into the two halves of what
is left of the stream memory in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from sentei.host.entries import channel_entries, counting, excess, plain_entries
from sentei.host.ir import Conv, Network, Pool, Requantize, accumulator_range, check, residual_codes
from sentei.host.placement import Placement, place
from sentei.host.schedule import Block, Job, schedule, weight_digits
from sentei.host.tables import Tables
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import ACTIVATION_BITS, LOAD_BITS, Geometry
from sentei.overlay.instructions import (
    HEADER0,
    HEADER1,
    INSTRUCTION,
    INSTRUCTION_LOAD_WORDS,
    STEP,
    STEP_WEIGHTS_OFFSET,
    Base,
    Memory,
    Opcode,
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
        control[0] |= 1 << STEP["fresh"].offset
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


def pack_job(job: Job, header: dict, last: bool, geometry: Geometry) -> bytes:
    """Header and steps of a job; `header` holds what depends on the operator."""
    first = dict(
        tile=job.first_tile,
        tiles=job.tiles,
        columns=job.block.channels,
        reduce=int(job.block.reduce),
        last=int(last),
        **{name: header[name] for name in ("channel", "residual", "wide")},
    )
    second = dict(
        output=header["output"], stride=header["stride"], residual=header["residual_word"], steps=job.block.steps
    )
    size = stream_bits(geometry) // 8
    words = HEADER0.pack(**first).to_bytes(size, "little") + HEADER1.pack(**second).to_bytes(size, "little")
    return words + pack_steps(job.block, geometry)


def empty_job(geometry: Geometry) -> bytes:
    """A job without tiles, for a group that has nothing to do in a layer."""
    return HEADER0.pack(last=1).to_bytes(stream_bits(geometry) // 8, "little") + bytes(stream_bits(geometry) // 8)


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


def compile_network(network: Network, geometry: Geometry, classes: tuple[str, ...] = ()) -> Program:
    """Compile for `geometry`. Raises IRError for a network that breaks the IR's rules and CapacityError, naming
    operator and memory, for one that does not fit."""
    network = without_idle_weights(check(network))
    placed = place(network, geometry)
    tables = Tables(geometry)
    runs: list[Run] = []
    channels: list[list[int]] = [[] for _ in range(geometry.requantizers)]
    corrections = np.zeros(network.tensors[network.output].shape.channels, np.int64)
    for number, op in enumerate(network.ops):
        try:
            shares = schedule(op, placed, tables, geometry)
        except CapacityError as error:
            text = str(error).removeprefix(f"{op.name}: ")
            raise CapacityError(f"{network.name}: {op.name}: {text}") from error
        known: dict[tuple[int, int], int] = {}
        packed: list[list[tuple[Job, dict]]] = []
        for group, jobs in enumerate(shares):
            requantizer = group // geometry.groups_per_requantizer
            packed.append([])
            for job in jobs:
                key = (-1 if op.requantize is None else job.block.first, requantizer)
                if op.requantize is None:
                    part = slice(job.block.first, job.block.first + job.block.channels)
                    corrections[part] = job.block.stored_bias + excess([joined for _, joined in job.block.passes[1:]])
                if key not in known:
                    known[key] = len(channels[requantizer])
                    channels[requantizer] += entries_of(job.block, op, network, geometry)
                    if len(channels[requantizer]) > geometry.channel_entries:
                        raise CapacityError(
                            f"{network.name}: {op.name}: needs more than {geometry.channel_entries} channel_entries; "
                            "use a geometry with more of them, or fewer output channels"
                        )
                packed[-1].append((job, job_header(op, job.block, placed, known.get(key, 0))))
        runs += [Run(number, contents) for contents in pack_layer(packed, geometry)]
    return assemble(network, geometry, placed, tables, runs, channels, corrections, classes)


def job_header(op: Conv | Pool, block: Block, placed: dict[str, Placement], channel: int) -> dict:
    """The header fields that depend on the operator and on where its tensors lie."""
    target = placed[op.output]
    requantize: Requantize | None = op.requantize
    residual = None if requantize is None or requantize.residual is None else placed[requantize.residual]
    plane, nibbles = target.layout.stride, target.layout.nibbles
    header = dict(
        channel=channel,
        residual=int(residual is not None),
        wide=int(requantize is None),
        output=target.address + (block.first * nibbles + nibbles - 1) * plane,
        stride=nibbles * plane,
        residual_word=0 if residual is None else residual.address + block.first * plane,
    )
    if requantize is None:
        # From behind the last column's highest nibble to the first column's next one.
        header["residual_word"] = -(block.channels * nibbles + 1) * plane % (1 << HEADER1["residual"].width)
    return header


def pack_layer(shares: list[list[tuple[Job, dict]]], geometry: Geometry) -> list[list[bytes]]:
    """Packs the jobs and headers of a layer, one list for each group, into runs of one stream for each group.

    A layer that needs more than half of the stream memory is cut into runs that do not, as far as single jobs allow.
    """
    half = geometry.stream_words // 2
    runs: list[list[bytes]] = []
    waiting = [list(jobs) for jobs in shares]
    while any(waiting):
        run = []
        for jobs in waiting:
            words = 0
            taken: list[tuple[Job, dict]] = []
            while jobs and (not taken or words + HEADER_WORDS + jobs[0][0].block.steps <= half):
                words += HEADER_WORDS + jobs[0][0].block.steps
                taken.append(jobs.pop(0))
            last = len(taken) - 1
            stream = [pack_job(job, header, index == last, geometry) for index, (job, header) in enumerate(taken)]
            run.append(b"".join(stream) or empty_job(geometry))
        runs.append(run)
    return runs


@dataclass(frozen=True)
class Run:
    """One RUN instruction: layer number and, for each group, the stream's content."""

    layer: int
    contents: list[bytes]


@dataclass(frozen=True)
class StreamPlan:
    """Address of each run's streams; `streamed` runs are loaded for each picture, ahead of time if `ahead`."""

    addresses: list[int]
    streamed: set[int]
    ahead: bool


def plan_streams(runs: list[Run], geometry: Geometry, network: Network) -> StreamPlan:
    """Keep on chip what fits, the largest runs last."""
    size = stream_bits(geometry) // 8
    lengths = [max(map(len, run.contents)) // size for run in runs]
    if max(lengths) > geometry.stream_words:
        op = network.ops[runs[lengths.index(max(lengths))].layer]
        raise CapacityError(
            f"{network.name}: {op.name}: one block of output channels needs {max(lengths)} stream words, the geometry "
            f"has {geometry.stream_words}; use a geometry with more stream_words, or fewer input channels"
        )
    order = sorted(range(len(runs)), key=lambda index: -lengths[index])
    buffers = 2 if 2 * max(lengths) <= geometry.stream_words else 1
    streamed: set[int] = set()
    while True:
        buffer = max((lengths[index] for index in streamed), default=0)
        resident = sum(length for index, length in enumerate(lengths) if index not in streamed)
        if resident + buffers * buffer <= geometry.stream_words:
            break
        streamed.add(order[len(streamed)])
    addresses, free, turn = [], buffers * buffer, 0
    for index, length in enumerate(lengths):
        if index in streamed:
            addresses.append(turn * buffer)
            turn = (turn + 1) % buffers
        else:
            addresses.append(free)
            free += length
    return StreamPlan(addresses, streamed, buffers == 2)


def assemble(
    network: Network,
    geometry: Geometry,
    placed: dict[str, Placement],
    tables: Tables,
    runs: list[Run],
    channels: list[list[int]],
    corrections: np.ndarray,
    classes: tuple[str, ...],
) -> Program:
    """Lay out the data and write the instructions. `corrections` (C,) belong to the wide output."""
    plan = plan_streams(runs, geometry, network)
    word_bytes = geometry.word_bytes
    instructions: list[int] = []
    data = Data(geometry.instruction_words * LOAD_BITS // 8)

    def emit(opcode: Opcode, **fields: int) -> None:
        instructions.append(INSTRUCTION.pack(opcode=opcode, **fields))

    def load(memory: Memory, content: bytes, address: int = 0, units: int = 0) -> dict[str, int]:
        """Fields of the LOAD of a new segment."""
        count = len(content) // (load_words(memory, geometry) * LOAD_BITS // 8)
        fields = dict(memory=memory, units=units, address=address, count=count, base=Base.PROGRAM)
        return dict(fields, offset=data.append(content))

    def store(name: str, offset: int) -> None:
        where = placed[name]
        emit(Opcode.STORE, address=where.address, count=where.layout.words, base=Base.OUTPUT, offset=offset)

    prologue = len(instructions)
    table_contents = ((Memory.TILE, tables.tiles), (Memory.TAP, tables.taps), (Memory.MASK, tables.masks))
    for memory, entries in table_contents:
        emit(Opcode.LOAD, **load(memory, pack_entries(entries, memory, geometry)))
    for unit, entries in enumerate(channels):
        if entries:
            content = pack_entries(entries, Memory.CHANNEL, geometry)
            emit(Opcode.LOAD, **load(Memory.CHANNEL, content, units=1 << unit))
    loads: list[list[dict[str, int]]] = []
    for index, run in enumerate(runs):
        loads.append(
            [
                load(Memory.STREAM, content, address=plan.addresses[index], units=1 << group)
                for group, content in enumerate(run.contents)
            ]
        )
        if index not in plan.streamed:
            for fields in loads[-1]:
                emit(Opcode.LOAD, **fields)
    emit(Opcode.END)

    source = placed[network.input]
    trace_tensors: list[TensorInfo] = []
    trace_bytes = 0

    def correction_of(op: Conv | Pool) -> tuple[int, ...]:
        return tuple(int(value) for value in corrections) if op.requantize is None else ()

    def picture(trace: bool) -> int:
        """Instructions for one picture; returns the entry."""
        nonlocal trace_bytes
        entry = len(instructions)
        emit(Opcode.LOAD, memory=Memory.ACTIVATION, address=source.address, count=source.layout.words, base=Base.INPUT)
        for index, run in enumerate(runs):
            if index in plan.streamed and (index == 0 or not plan.ahead):
                emit(Opcode.SYNC)
                for fields in loads[index]:
                    emit(Opcode.LOAD, **fields)
            if index == 0 or index in plan.streamed:
                emit(Opcode.SYNC)
            emit(Opcode.RUN, address=plan.addresses[index], layer=run.layer)
            if plan.ahead and index + 1 in plan.streamed:
                for fields in loads[index + 1]:
                    emit(Opcode.LOAD, **fields)
            if trace and (index + 1 == len(runs) or runs[index + 1].layer != run.layer):
                op = network.ops[run.layer]
                emit(Opcode.SYNC)
                store(op.output, trace_bytes)
                emit(Opcode.SYNC)
                trace_tensors.append(TensorInfo(op.output, placed[op.output].layout, trace_bytes, correction_of(op)))
                trace_bytes += -(-placed[op.output].layout.words * word_bytes // ALIGNMENT) * ALIGNMENT
        if not trace:
            emit(Opcode.SYNC)
            store(network.output, 0)
        emit(Opcode.END)
        return entry

    body = picture(trace=False)
    trace = picture(trace=True)
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
        body=body,
        trace=trace,
        input=source.layout,
        input_scale=float(network.tensors[network.input].scale),
        output=output,
        output_bytes=output.layout.words * word_bytes,
        output_scale=tuple(float(v) for v in network.output_scale),
        output_offset=tuple(float(v) for v in network.output_offset),
        trace_tensors=tuple(trace_tensors),
        trace_bytes=trace_bytes,
        runs=len(runs),
        layers=tuple(layer_info(op, network, geometry) for op in network.ops),
        classes=classes,
    )
