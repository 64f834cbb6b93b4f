"""Compiles a checked network for a geometry: intermediate representation in, program out.

place tensors -> schedule each operator, cut it into sections -> pack streams, channel entries, tables
              -> plan the stream memory -> emit instructions -> Program
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, product

import numpy as np

from sentei.host.compiler.channel_entries import counting
from sentei.host.compiler.emit import Emitter, aligned
from sentei.host.compiler.pack import Streams, pack_streams, page_cycles
from sentei.host.compiler.placement import Packed, Placement, fits, make_layouts, placements
from sentei.host.compiler.plan import plan_streams
from sentei.host.compiler.schedule import Layer, load_cycles, schedule, steps_of
from sentei.host.compiler.steps import ALIKE_SHARE, weight_digits
from sentei.host.network.ir import Conv, Network, Pool, accumulator_range, residual_codes
from sentei.host.network.law import check
from sentei.host.network.patches import twice
from sentei.host.network.pixels import pixel_levels
from sentei.host.network.stages import Way, best_stages, divisions, part_of, ways
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry
from sentei.overlay.instructions import stream_bits
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


MOST_TILINGS = 4  # of a stage, that are estimated, one by one and in pairs
MOST_LIVING = 6  # tensors between two stages
JOB_CYCLES = 200  # until the array's first step and after its last one
LAYER_CYCLES = 50  # between two operators
MOST_TRIES = 4  # ways to divide a network that are compiled
WORTH_A_TRY = 0.97  # of the cycles of the stages found so far, as which others must seem to take to be compiled


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


def fastest(
    network: Network, geometry: Geometry, batch: int, pairs: bool
) -> tuple[dict[str, Placement], bool, list[Layer], Streams]:
    """The placement that takes the fewest cycles, as `placements` gives it, the schedule, and the streams: steps of the
    array, loads of streams that do not stay on chip, and of pages of the tables."""
    scheduled = twice(network)[0] if pairs else network
    found: list[tuple[dict[str, Placement], bool, list[Layer]]] = []
    failure = None
    for (placed, exclusive), short_streams in product(placements(network, geometry, batch, pairs), (False, True)):
        if short_streams and (not found or not load_cycles(found[-1][2], geometry)):
            continue
        try:
            found.append((placed, exclusive, schedule(scheduled, placed, geometry, short_streams)))
        except CapacityError as error:
            failure = failure or error
    best, fewest = None, math.inf
    costs = [steps_of(layers) + load_cycles(layers, geometry) for _, _, layers in found]
    for cost, (placed, exclusive, layers) in sorted(zip(costs, found, strict=True), key=lambda way: way[0]):
        if cost >= fewest:
            break
        try:
            streams = pack_streams(scheduled, placed, layers, geometry)
        except CapacityError as error:
            failure = failure or error
            continue
        cost += page_cycles(streams, geometry)
        if cost < fewest:
            best, fewest = (placed, exclusive, layers, streams), cost
    if best is None:
        assert failure is not None
        raise failure
    return best


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
        stages = [compile_stage(Way(network, network, {}, pictures=batch), geometry)[:2]]
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
    """The stages that take the fewest cycles, by estimate, of those that compile; none, if there are none. What is
    chosen is compiled, and estimated anew by its schedule, until nothing else seems faster. Stages that do a picture
    whole do as many of a batch at a time as they have room for."""
    work = {op.output: Work.of(op, network, geometry) for op in network.ops}
    sizes = [pictures for pictures in range(2, batch + 1) if batch % pictures == 0]

    @cache
    def found(first: int, end: int) -> list[Way]:
        part = part_of(network, first, end)
        possible = [
            Way(part, job, cuts, pairs)
            for pairs in (False, True)
            for job, cuts in islice(ways(part, partial(fits, geometry=geometry, pairs=pairs), pairs), MOST_TILINGS)
        ]
        possible += [Way(part, part, {}, pictures=pictures) for pictures in sizes if fits(part, geometry, pictures)]
        for one in possible:
            one.cycles = estimate(one, work, geometry).of_picture(one, batch)
        return possible

    compiled: dict[Way, tuple[Stage, bytes] | None] = {}

    def way(first: int, end: int) -> Way | None:
        possible = (way for way in found(first, end) if compiled.get(way, way) is not None)
        return min(possible, key=lambda way: way.cycles, default=None)

    def attempt(stage: Way) -> CapacityError | None:
        """Compiles it, unless it was."""
        if stage not in compiled:
            try:
                done, data, cost = compile_stage(stage, geometry)
                compiled[stage] = done, data
                stage.cycles = cost.of_picture(stage, batch)
            except CapacityError as error:
                compiled[stage] = None
                return error
        return None

    numbers = {op.output: number for number, op in enumerate(network.ops)}
    places = divisions(network, MOST_LIVING)
    best: list[Way] = []
    tries = 0
    while chosen := best_stages(network, way, MOST_LIVING):
        if best and (tries >= MOST_TRIES or cycles_of(chosen) > WORTH_A_TRY * cycles_of(best)):
            break
        tries += 1
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
        if all(compiled[stage] for stage in chosen):
            best = min(best or chosen, chosen, key=cycles_of)
    return [done for way in best if (done := compiled[way]) is not None]


def cycles_of(stages: Iterable[Way]) -> float:
    return sum(stage.cycles for stage in stages)


@dataclass(frozen=True)
class Work:
    """What an operator asks of the array for each tile: `steps` of all groups, `longest` of them one block's. `alike`:
    its blocks read the same."""

    steps: int
    longest: int
    alike: bool

    @staticmethod
    def of(op: Conv | Pool, network: Network, geometry: Geometry) -> Work:
        outputs = network.tensors[op.output].shape.channels
        if isinstance(op, Pool):
            source = network.tensors[op.input].shape
            window = min(math.prod(op.kernel), -(-source.height * source.width // geometry.lanes))
            return Work(outputs * window, min(outputs, geometry.group_columns) * window, False)
        counts = np.zeros(-(-outputs // geometry.group_columns), np.int64)
        for term in op.terms:
            for digit in weight_digits(term.weights):
                used = [
                    (digit[first : first + geometry.group_columns] != 0).any(0).sum()
                    for first in range(0, outputs, geometry.group_columns)
                ]
                counts += -(-network.tensors[term.input].bits // ACTIVATION_BITS) * np.array(used)
        slots = sum(math.prod(term.weights.shape[1:]) for term in op.terms)
        return Work(int(counts.sum()), int(counts.max()), bool((counts >= ALIKE_SHARE * slots).all()))


@dataclass(frozen=True)
class Cost:
    """Cycles of a stage: of the bus to bring on chip `once` what stays, and for each job, or patch of a pair, those of
    the `array`, those of the bus for `loads` of weights and for the tensors that are `moved`."""

    once: float
    array: float
    loads: float
    moved: float

    def of_picture(self, way: Way, batch: int) -> float:
        """A picture's share, in batches of so many."""
        patches = len(way.cuts[way.part.input]) if way.cuts else 1
        if way.pairs:
            cycles = patches * max(self.array, self.loads + self.moved) + self.moved + JOB_CYCLES
        else:
            cycles = patches * (max(self.array, self.loads) + self.moved + JOB_CYCLES)
        return self.once / batch + cycles / way.pictures


def estimate(way: Way, work: Mapping[str, Work], geometry: Geometry) -> Cost:
    """What a stage costs that is not compiled yet. `work` is that of the operators, by their output."""
    job = way.job
    layouts = min(
        (make_layouts(job, geometry, way.pictures, packed) for packed in (Packed.NONE, Packed.ALL)),
        key=lambda layouts: sum(layout.words for layout in layouts.values()),
    )
    cycles_a_word = stream_bits(geometry) / geometry.bus_bits
    of_ops = [(work[op.output], layouts[op.output].plane_words // layouts[op.output].nibbles) for op in job.ops]
    array = sum(own.steps * tiles for own, tiles in of_ops) / geometry.groups
    copies = 2 if way.pairs else 1
    room = geometry.groups * geometry.stream_words / copies
    kept = loads = 0.0
    for own, _ in sorted(of_ops, key=lambda of: of[0].steps):
        room -= own.steps
        if room >= 0:
            kept += own.steps * cycles_a_word
        else:
            loads += own.steps * cycles_a_word / (2 if own.alike else 1)
    moved = sum(layouts[name].words for name in (*job.inputs, *job.outputs)) * 8 * geometry.word_bytes
    moved = moved / geometry.bus_bits
    if 2 * max(own.longest for own, _ in of_ops) > geometry.stream_words:
        array += loads / geometry.groups  # no room for two blocks: while one group's is loaded, the others compute
    return Cost(copies * kept, array + LAYER_CYCLES * len(job.ops), loads, moved)


def compile_stage(way: Way, geometry: Geometry) -> tuple[Stage, bytes, Cost]:
    """A stage, its data, and what it costs, by its schedule."""
    patch, cuts, pairs = way.job, way.cuts, way.pairs
    placed, exclusive, layers, streams = fastest(check(patch), geometry, way.pictures, pairs)
    network = twice(patch)[0] if pairs else patch
    plan = plan_streams(streams, geometry, network, len(network.ops) // len(patch.ops))
    patches = len(cuts[patch.input]) if pairs else 1
    emitted = Emitter(patch, geometry, placed, exclusive, layers, plan, streams, cuts, patches)
    stage = Stage(
        data_offset=0,
        data_bytes=len(emitted.data),
        instruction_load_words=emitted.instruction_load_words,
        **emitted.entries,
        inputs=tuple(emitted.tensor_info(name, offset) for name, offset in emitted.input_offsets.items()),
        input_bytes=emitted.input_bytes,
        patches_a_job=patches,
        outputs=tuple(emitted.tensor_info(name, offset) for name, offset in emitted.output_offsets.items()),
        output_bytes=emitted.output_bytes,
        trace_tensors=tuple(emitted.traced),
        trace_bytes=emitted.trace_bytes,
        layers=tuple(layer_info(op, way.part, geometry) for op in way.part.ops),
    )
    copies = len(network.ops) // len(patch.ops)
    loads = emitted.load_cycles(chunks=True)
    array = steps_of(layers) + LAYER_CYCLES * len(layers) + page_cycles(streams, geometry)
    if plan.buffers == 1:
        array += loads / geometry.groups  # while one group's are loaded, the others compute
    moved = (stage.input_bytes + stage.output_bytes) * 8 / geometry.bus_bits
    return stage, emitted.data, Cost(emitted.load_cycles(chunks=False), array / copies, loads / copies, moved)
