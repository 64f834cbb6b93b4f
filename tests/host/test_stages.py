"""Networks in stages: parts that follow one another, each whole or in patches, give what the whole network gives."""

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
from helpers.large_networks import large_network, network_with_tail
from helpers.random_layers import random_requantize, random_weights
from helpers.tiers import seeds

from sentei.host.compiler.compile import compile_network
from sentei.host.compiler.placement import fits
from sentei.host.network import reference
from sentei.host.network.ir import Conv, Network, Pads, Shape, Tensor, Term, operands
from sentei.host.network.law import check
from sentei.host.network.stages import Way, best_places, best_stages, divisions, part_of, ways
from sentei.overlay.errors import CapacityError, InputError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.image import memory_image
from sentei.overlay.program import Program

GEOMETRY = PRESETS["8x8"]


def run_part(network, tensors):
    """The reference on a part of a network."""
    return reference.run(network, tensors[network.input], given=tensors)


@pytest.mark.parametrize("most", [1, 6])
@pytest.mark.parametrize("seed", seeds(30, 1000))
def test_parts_that_follow_one_another_are_the_whole(seed, most):
    network, images = network_with_tail(seed)
    whole = reference.run(network, images)
    places = divisions(network, most)
    assert places == sorted(set(places)) and places[0] == 0 and places[-1] == len(network.ops)
    down = [op.name for op in network.ops].index("down")
    places = [place for place in places if place != down or not down]
    tensors = {network.input: images}
    parts = [part_of(network, *ends) for ends in pairwise(places)]
    assert any(part.more_inputs for part in parts) == (most > 1)
    assert any(part.more_outputs for part in parts) == (most > 1 and down > 0)
    for part in parts:
        found = run_part(part, tensors)
        for name, own in found.items():
            np.testing.assert_array_equal(own, whole[name], err_msg=f"seed {seed}: {name}")
        tensors |= {name: found[name] for name in part.outputs}


@pytest.mark.parametrize("most", [1, 6])
@pytest.mark.parametrize("seed", seeds(30, 1000))
def test_stages_in_patches_are_the_whole(seed, most):
    network, images = network_with_tail(seed)
    rng = np.random.default_rng(seed)
    small = replace(GEOMETRY, activation_words=int(rng.choice([128, 256, 512])))

    @cache
    def way(first, end):
        part = part_of(network, first, end)
        job, cuts = next(ways(part, partial(fits, geometry=small)), (None, None))
        return None if job is None else Way(part, job, cuts, cycles=float(rng.random()))

    whole = reference.run(network, images)
    tensors = {network.input: images}
    for stage in best_stages(network, way, most):
        given = {name: tensors[name] for name in stage.part.inputs}
        if stage.cuts:
            sizes = {name: stage.job.tensors[name].shape[1:] for name in given}
            given = {name: stage.cuts[name].cut(own, *sizes[name]) for name, own in given.items()}
        found = run_part(stage.job, given)
        joined = {name: stage.cuts[name].join(own) if stage.cuts else own for name, own in found.items()}
        for name, own in joined.items():
            np.testing.assert_array_equal(own, whole[name], err_msg=f"seed {seed}: {name}")
        tensors |= {name: joined[name] for name in stage.part.outputs}


def test_what_nobody_reads_stays_with_the_operator_before():
    network, images = network_with_tail(2)
    number = 1
    read = network.ops[number].output
    idle = replace(network.ops[number], name="idle", output="idle")
    tensors = network.tensors | {"idle": replace(network.tensors[read], name="idle")}
    behind = replace(network, ops=(*network.ops[: number + 1], idle, *network.ops[number + 1 :]), tensors=tensors)
    at_end = replace(network, ops=(*network.ops, idle), tensors=tensors)
    for changed in (behind, at_end):
        places = divisions(changed, 9)
        names = [[op.name for op in changed.ops[first:end]] for first, end in pairwise(places)]
        assert ["idle"] not in names and sum(map(len, names)) == len(changed.ops)
        tensors = {changed.input: images}
        for first, end in pairwise(places):
            part = part_of(changed, first, end)
            tensors |= run_part(part, tensors)
        assert np.array_equal(tensors[network.output], reference.run(network, images)[network.output])


def test_the_cheapest_stages_are_found():
    """Of all ways through the divisions. More tensors than need be lie between stages only where that is cheaper."""
    network, _ = network_with_tail(1)
    places = divisions(network)
    assert len(places) >= 4
    part = part_of(network, 0, len(network.ops))
    alike = best_stages(network, lambda first, end: Way(part, part, {}, cycles=1.0), 6)
    fine = best_stages(network, lambda first, end: Way(part, part, {}, cycles=float((end - first) ** 2)), 6)
    assert len(alike) == 1 and len(fine) == len(network.ops)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        costs = {(a, b): float(rng.random()) for a in places for b in places if a < b and rng.random() < 0.7}

        def way(first, end, costs=costs):
            part = part_of(network, first, end)
            return Way(part, part, {}, cycles=costs[first, end]) if (first, end) in costs else None

        found = best_places(places, way)
        inner = places[1:-1]
        chains = (
            [places[0], *(place for number, place in enumerate(inner) if pick >> number & 1), places[-1]]
            for pick in range(1 << len(inner))
        )
        pairs = [list(pairwise(chain)) for chain in chains]
        possible = [sum(costs[pair] for pair in chain) for chain in pairs if all(pair in costs for pair in chain)]
        assert (found is None) == (not possible), seed
        if found is not None:
            assert np.isclose(sum(costs[pair] for pair in pairwise(found)), min(possible)), seed


def test_a_residual_over_a_division_forbids_it():
    for seed in range(40):
        network, _ = large_network(seed)
        for place in divisions(network)[1:-1]:
            before = {network.input, *(op.output for op in network.ops[: place - 1])}
            after = {name for op in network.ops[place:] for name in operands(op)}
            assert not before & after, (seed, place)


def test_a_program_of_stages_comes_back_from_its_file():
    network, images = network_with_tail(1)
    program = compile_network(network, replace(GEOMETRY, activation_words=512))
    assert len(program.stages) > 1 and program.stages[-1].jobs == 1
    assert program.input_shape == network.tensors[network.input].shape and program.output.shape == (5, 1, 1)
    assert Program.from_bytes(program.to_bytes()) == program
    assert [layer.name for layer in program.layers] == [op.name for op in network.ops]
    with pytest.raises(InputError, match=f"classifiers that do a picture in one job, not in {program.jobs}"):
        memory_image(program, images, ())


def test_a_skip_from_an_input_of_8_bits_goes_on_beside_the_stages():
    random = np.random.default_rng(0)
    tensors, ops = {"x": Tensor("x", Shape(3, 40, 40), 8, False)}, []
    for name, source in (("a", "x"), ("b", "a"), ("c", "b")):
        weights = random_weights(random, (8, tensors[source].shape.channels, 3, 3), 4, 8)
        op = Conv(name, source, name, weights, pads=Pads(1, 1, 1, 1))
        if name == "c":
            op = replace(op, addends=(Term("x", random_weights(random, (8, 3, 1, 1), 4, 8)),))
        tensors[name] = Tensor(name, Shape(8, 40, 40), 4, False)
        ops.append(replace(op, requantize=random_requantize(random, op, tensors, None)))
    ones = np.ones(8, np.float32)
    network = check(Network("skip", tensors, tuple(ops), "x", "c", ones, 0 * ones))
    program = compile_network(network, replace(GEOMETRY, activation_words=512))
    assert {tensor.name for stage in program.stages[1:] for tensor in stage.inputs} >= {"x"}


@pytest.mark.parametrize("batch", [6, 4, 3])
def test_batches_are_whole_jobs_in_every_stage(batch):
    for seed in range(1, 5):
        network, _ = network_with_tail(seed)
        try:
            program = compile_network(network, replace(GEOMETRY, activation_words=512), batch=batch)
        except CapacityError:
            continue
        assert batch % program.pictures == 0
        assert all(program.pictures % stage.input.pictures == 0 for stage in program.stages)
        assert Program.from_bytes(program.to_bytes()) == program


def test_an_operator_that_compiles_in_no_way_is_named_at_once():
    random = np.random.default_rng(0)
    tensors, ops = {"x": Tensor("x", Shape(22, 56, 56), 4, False)}, []
    for number in range(10):
        source = ops[-1].output if ops else "x"
        kernel = 3 if number == 4 else 1
        weights = random.integers(1, 8, (22, 22, kernel, kernel))
        op = Conv(f"t{number}", source, f"t{number}", weights, pads=Pads(*[kernel // 2] * 4))
        tensors[op.output] = Tensor(op.output, Shape(22, 56, 56), 4, False)
        ops.append(replace(op, requantize=random_requantize(random, op, tensors, None)))
    ones = np.ones(22, np.float32)
    network = check(Network("large", tensors, tuple(ops), "x", "t9", ones, 0 * ones))
    with pytest.raises(CapacityError, match="t4: one block of output channels needs 200 stream words"):
        compile_network(network, replace(GEOMETRY, activation_words=1024, stream_words=128))


def test_a_layer_that_fits_in_no_way_is_refused():
    network, _ = network_with_tail(0)
    with pytest.raises(CapacityError, match="use a geometry with more activation_words"):
        compile_network(network, replace(GEOMETRY, activation_words=64))
