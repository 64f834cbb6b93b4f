"""Compiles a checked network for a geometry: intermediate representation in, program out.

place tensors -> schedule each operator, cut it into sections -> pack streams, channel entries, tables
              -> plan the stream memory -> emit instructions -> Program
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np

from sentei.host.compiler.channel_entries import counting
from sentei.host.compiler.emit import Emitter
from sentei.host.compiler.pack import pack_streams
from sentei.host.compiler.placement import Placement, fits, placements
from sentei.host.compiler.plan import plan_streams
from sentei.host.compiler.schedule import Layer, schedule, steps_of
from sentei.host.compiler.steps import weight_digits
from sentei.host.network.ir import Conv, Network, Pool, accumulator_range, residual_codes
from sentei.host.network.law import check
from sentei.host.network.patches import tilings
from sentei.host.network.pixels import pixel_levels
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry
from sentei.overlay.layout import Tiling
from sentei.overlay.program import LayerInfo, Program


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


MOST_TILINGS = 4  # that are compiled, until one has room


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


def fewest_steps(network: Network, geometry: Geometry, batch: int) -> tuple[dict[str, Placement], bool, list[Layer]]:
    """The placement that the array needs the fewest steps for, as `placements` gives it, and the schedule."""
    found, failure = [], None
    for placed, exclusive in placements(network, geometry, batch):
        try:
            found.append((placed, exclusive, schedule(network, placed, geometry)))
        except CapacityError as error:
            failure = failure or error
    if not found:
        assert failure is not None
        raise failure
    return min(found, key=lambda way: steps_of(way[2]))


def compile_network(network: Network, geometry: Geometry, classes: tuple[str, ...] = (), batch: int = 1) -> Program:
    """Compile for `geometry`. Raises IRError for a network that breaks the IR's rules and CapacityError, naming
    operator and memory, for one that does not fit.

    `batch` pictures make a job. They share tiles, so small maps leave fewer lanes empty; they need as many times the
    activation memory. Pictures that it has no room for are done in patches (host/network/patches.py).
    """
    if batch < 1:
        raise CapacityError(f"a batch must have at least 1 picture, not {batch}")
    network = without_idle_weights(check(network))
    try:
        return compile_whole(network, network, {}, geometry, classes, batch)
    except CapacityError as error:
        if batch > 1 or fits(network, geometry):
            raise
        failure = error
    for patch, cuts in islice(tilings(network, partial(fits, geometry=geometry)), MOST_TILINGS):
        try:
            return compile_whole(network, patch, cuts, geometry, classes, batch)
        except CapacityError as error:
            failure = error
    raise failure


def compile_whole(
    whole: Network,
    network: Network,
    cuts: dict[str, Tiling],
    geometry: Geometry,
    classes: tuple[str, ...],
    batch: int,
) -> Program:
    """The program of `whole`, whose jobs do `network`, the same or one of its patches."""
    placed, exclusive, layers = fewest_steps(network, geometry, batch)
    streams = pack_streams(network, placed, layers, geometry)
    plan = plan_streams(streams, geometry, network)
    emitted = Emitter(network, geometry, placed, exclusive, layers, plan, streams, cuts)
    source, output = placed[network.input].layout, emitted.tensor_info(network.output, 0)
    return Program(
        name=network.name,
        geometry=geometry,
        data=emitted.data,
        instruction_load_words=emitted.instruction_load_words,
        **emitted.entries,
        input=source,
        input_scale=float(network.tensors[network.input].scale),
        output=output,
        output_bytes=output.layout.words * geometry.word_bytes,
        output_scale=tuple(float(v) for v in network.output_scale),
        output_offset=tuple(float(v) for v in network.output_offset),
        trace_tensors=tuple(emitted.traced),
        trace_bytes=emitted.trace_bytes,
        layers=tuple(layer_info(op, whole, geometry) for op in whole.ops),
        classes=classes,
        doubts=whole.doubts,
        tail=whole.tail,
        pixels=pixel_levels(whole),
        tiling=cuts.get(network.input),
    )
