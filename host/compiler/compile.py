"""Compiles a checked network for a geometry: intermediate representation in, program out.

place tensors -> schedule each operator, cut it into sections -> pack streams, channel entries, tables
              -> plan the stream memory -> emit instructions -> Program
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import islice, product

import numpy as np

from sentei.host.compiler.channel_entries import counting
from sentei.host.compiler.emit import Emitter, aligned
from sentei.host.compiler.pack import pack_streams
from sentei.host.compiler.placement import Placement, fits, placements
from sentei.host.compiler.plan import plan_streams
from sentei.host.compiler.schedule import Layer, load_cycles, schedule, steps_of
from sentei.host.compiler.steps import weight_digits
from sentei.host.network.ir import Conv, Network, Pool, Tensor, accumulator_range, residual_codes
from sentei.host.network.law import check
from sentei.host.network.pixels import pixel_levels
from sentei.host.network.stages import Way, best_stages, divisions, part_of, ways
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry
from sentei.overlay.instructions import stream_bits
from sentei.overlay.layout import Tiling
from sentei.overlay.program import LayerInfo, Program, Stage


def without_idle_weights(network: Network) -> Network:
    """`network` without the weights of channels whose sums decide nothing: their results are the same with sum 0."""
    ops: list[Conv | Pool] = []
    for op in network.ops:
        if isinstance(op, Conv) and op.requantize is not None:
            spec = op.requantize
            low, high = accumulator_range(op, network.tensors)
            residual = network.tensors[spec.residual] if spec.residual else None
            inside = (low[:, None] < spec.thresholds) & (spec.thresholds <= high[:, None])
            used = (inside & counting(spec, residual_codes(residual))).any(1)
            kept = used[:, None, None, None]
            addends = tuple(replace(term, weights=np.where(kept, term.weights, 0)) for term in op.addends)
            op = replace(op, weights=np.where(kept, op.weights, 0), addends=addends)
        ops.append(op)
    return replace(network, ops=tuple(ops))


MOST_TILINGS = 4  # of a stage, that are compiled, until one has room
MOST_LIVING = 6  # tensors between two stages
JOB_CYCLES = 200  # until the array's first step and after its last one


def kept_macs(weights: np.ndarray, groups: int, columns: int) -> int:
    """Weights (O, I, H, W) that survive pruning: those of the slots that any of `columns` output channels needs, within
    their group of channels."""
    outputs, inputs = weights.shape[:2]
    group_of_output = np.arange(outputs) * groups // outputs
    group_of_input = np.arange(inputs) * groups // inputs
    kept = 0
    for first in range(0, outputs, columns):
        block = slice(first, first + columns)
        slots = (weights[block] != 0).any(0).sum((1, 2))
        kept += int((slots * (group_of_output[block, None] == group_of_input).sum(0)).sum())
    return kept


def layer_info(op: Conv | Pool, network: Network, geometry: Geometry) -> LayerInfo:
    """What reports say of an operator."""
    target = network.tensors[op.output]
    if isinstance(op, Pool):
        return LayerInfo(op.name, f"{op.kind} pool", op.output, 0, 0, 0.0)
    pixels = target.shape.height * target.shape.width
    dense = macs = 0
    for term in op.terms:
        # Of a window that slides over zeros in between, so many weights meet pixels.
        passes = -(-network.tensors[term.input].bits // ACTIVATION_BITS) * pixels / math.prod(term.zoom)
        digits = weight_digits(term.weights)
        dense += round(term.weights.size // term.groups * len(digits) * passes)
        macs += round(sum(kept_macs(digit, term.groups, geometry.group_columns) for digit in digits) * passes)
    kernel = f"{op.weights.shape[2]}x{op.weights.shape[3]}"
    return LayerInfo(op.name, f"conv {kernel}", op.output, macs, dense, macs / geometry.array_macs)


def fastest(network: Network, geometry: Geometry, batch: int) -> tuple[dict[str, Placement], bool, list[Layer]]:
    """The placement that takes the fewest cycles, as `placements` gives it, and the schedule: steps of the array, and
    loads of streams that do not stay on chip."""
    found: list[tuple[dict[str, Placement], bool, list[Layer]]] = []
    failure = None
    for (placed, exclusive), short_streams in product(placements(network, geometry, batch), (False, True)):
        if short_streams and (not found or not load_cycles(found[-1][2], geometry)):
            continue
        try:
            found.append((placed, exclusive, schedule(network, placed, geometry, short_streams)))
        except CapacityError as error:
            failure = failure or error
    if not found:
        assert failure is not None
        raise failure
    return min(found, key=lambda way: steps_of(way[2]) + load_cycles(way[2], geometry))


def compile_network(network: Network, geometry: Geometry, classes: tuple[str, ...] = (), batch: int = 1) -> Program:
    """Compile for `geometry`. Raises IRError for a network that breaks the IR's rules and CapacityError, naming
    operator and memory, for one that does not fit.

    `batch` pictures make a job. They share tiles, so small maps leave fewer lanes empty; they need as many times the
    activation memory. A network that it has no room for is done in stages, and these in patches, if need be
    (host/network/stages.py): then some of the stages do several pictures a job.
    """
    if batch < 1:
        raise CapacityError(f"a batch must have at least 1 picture, not {batch}")
    network = without_idle_weights(check(network))
    try:
        stages = [compile_stage(network, network, {}, geometry, batch)]
    except CapacityError:
        if fits(network, geometry):
            raise
        stages = compile_stages(network, geometry, batch)
        if not stages:
            raise
    return linked(network, stages, geometry, classes)


def linked(
    network: Network, stages: Iterable[tuple[Stage, bytes]], geometry: Geometry, classes: tuple[str, ...] = ()
) -> Program:
    """The program of stages and their data."""
    data, parts = b"", []
    for stage, content in stages:
        parts.append(replace(stage, data_offset=len(data)))
        data += content.ljust(aligned(len(content)), b"\0")
    return Program(
        name=network.name,
        geometry=geometry,
        data=data,
        stages=tuple(parts),
        input_scale=float(network.tensors[network.input].scale),
        output_scale=tuple(float(v) for v in network.output_scale),
        output_offset=tuple(float(v) for v in network.output_offset),
        classes=classes,
        doubts=network.doubts,
        tail=network.tail,
        pixels=pixel_levels(network),
    )


def compile_stages(network: Network, geometry: Geometry, batch: int) -> list[tuple[Stage, bytes]]:
    """The stages that take the fewest cycles, by estimate, of those that compile; none, if there are none. Those that
    do a picture whole do as many of a batch at a time as they have room for."""
    bounds = {op.output: layer_info(op, network, geometry).bound_cycles for op in network.ops}

    @cache
    def found(first: int, end: int) -> list[Way]:
        part = part_of(network, first, end)
        some = islice(ways(part, partial(fits, geometry=geometry)), MOST_TILINGS)
        all_of_them = (Way(part, job, cuts, estimate(part, job, cuts, bounds, geometry)) for job, cuts in some)
        return sorted(all_of_them, key=lambda way: way.cycles)

    compiled: dict[Way, tuple[Stage, bytes] | None] = {}

    def way(first: int, end: int) -> Way | None:
        return next((way for way in found(first, end) if compiled.get(way, way) is not None), None)

    def attempt(stage: Way) -> CapacityError | None:
        """Compiles it, unless it was."""
        if stage not in compiled:
            try:
                compiled[stage] = compile_stage(stage.part, stage.job, stage.cuts, geometry, 1)
            except CapacityError as error:
                compiled[stage] = None
                return error
        return None

    numbers = {op.output: number for number, op in enumerate(network.ops)}
    places = divisions(network, MOST_LIVING)
    while chosen := best_stages(network, way, MOST_LIVING):
        for stage in chosen:
            if attempt(stage) is None:
                continue
            # An operator that does not even compile by itself is at fault wherever it is.
            for number in (numbers[op.output] for op in stage.part.ops):
                if number in places and number + 1 in places:
                    errors = [attempt(alone) for alone in found(number, number + 1)]
                    failure = next((error for error in errors if error is not None), None)
                    if failure is not None and way(number, number + 1) is None:
                        raise failure
        stages = [compiled[stage] for stage in chosen]
        if all(stages):
            return [enlarged(way, *stage, geometry, batch) for way, stage in zip(chosen, stages, strict=True) if stage]
    return []


def enlarged(way: Way, stage: Stage, data: bytes, geometry: Geometry, batch: int) -> tuple[Stage, bytes]:
    """The stage with as many pictures a job as it has room for, of the divisors of `batch`."""
    for pictures in range(batch, 1, -1):
        if batch % pictures == 0 and not way.cuts:
            try:
                return compile_stage(way.part, way.job, way.cuts, geometry, pictures)
            except CapacityError:
                continue
    return stage, data


def estimate(
    part: Network, job: Network, cuts: Mapping[str, Tiling], bounds: Mapping[str, float], geometry: Geometry
) -> float:
    """Cycles of a stage: its weights brought on chip, then each job's multiplications, or its transfers, if these take
    longer. `bounds` are those of the whole picture's layers, by their output."""
    pitch = max(tensor.shape.width for tensor in job.tensors.values())

    def words(tensor: Tensor) -> int:
        return -(-tensor.shape.height * pitch // geometry.lanes)

    array, steps, longest = 0.0, 0.0, 0.0  # the steps of one word of each output, of all groups; of one block
    for op in part.ops:
        of_whole, of_job = part.tensors[op.output].shape, job.tensors[op.output]
        cycles_a_word = bounds[op.output] * geometry.lanes / (of_whole.height * of_whole.width)
        array += cycles_a_word * words(of_job)
        own = cycles_a_word * geometry.groups
        steps, longest = steps + own, max(longest, own * geometry.group_columns / of_whole.channels)
    room = geometry.groups * geometry.stream_words
    kept = steps if steps <= room else room / 2
    loads = (steps - kept) * stream_bits(geometry) / geometry.bus_bits
    ends = (job.tensors[name] for name in (*job.inputs, *job.outputs))
    moved = sum(words(tensor) * tensor.shape.channels * -(-tensor.bits // ACTIVATION_BITS) for tensor in ends)
    moved = moved * 8 * geometry.word_bytes / geometry.bus_bits
    overlap = 2 * longest <= geometry.stream_words  # the stream memory has room for two blocks
    cycles = max(array, moved + loads) if overlap else max(array, moved) + loads
    jobs = len(cuts[part.input]) if cuts else 1
    return kept * stream_bits(geometry) / geometry.bus_bits + jobs * (cycles + JOB_CYCLES)


def compile_stage(
    whole: Network, network: Network, cuts: Mapping[str, Tiling], geometry: Geometry, batch: int
) -> tuple[Stage, bytes]:
    """The stage that does `whole`, whose jobs do `network`, the same or one of its patches; and its data."""
    placed, exclusive, layers = fastest(check(network), geometry, batch)
    streams = pack_streams(network, placed, layers, geometry)
    plan = plan_streams(streams, geometry, network)
    emitted = Emitter(network, geometry, placed, exclusive, layers, plan, streams, cuts)
    stage = Stage(
        data_offset=0,
        data_bytes=len(emitted.data),
        instruction_load_words=emitted.instruction_load_words,
        **emitted.entries,
        inputs=tuple(emitted.tensor_info(name, offset) for name, offset in emitted.input_offsets.items()),
        input_bytes=emitted.input_bytes,
        outputs=tuple(emitted.tensor_info(name, offset) for name, offset in emitted.output_offsets.items()),
        output_bytes=emitted.output_bytes,
        trace_tensors=tuple(emitted.traced),
        trace_bytes=emitted.trace_bytes,
        layers=tuple(layer_info(op, whole, geometry) for op in whole.ops),
    )
    return stage, emitted.data
