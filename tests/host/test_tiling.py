"""Pictures in patches: what they provide, joined, is what the whole picture gives, in every tensor."""

from dataclasses import replace
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers.large_networks import large_network
from helpers.tiers import seeds

from sentei.host.compiler.compile import compile_network, compile_stage
from sentei.host.compiler.placement import fits
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.host.network.ir import Conv, Shape, Tensor, operands
from sentei.host.network.patches import tilings, twice
from sentei.host.network.stages import Way, ways
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.instructions import INSTRUCTION, Base, Opcode
from sentei.overlay.layout import Cuts, Tiling
from sentei.overlay.program import Program

GEOMETRY = PRESETS["8x8"]


@pytest.mark.parametrize("seed", seeds(40, 2000))
def test_patches_joined_are_the_whole(seed):
    network, images = large_network(seed)
    rng = np.random.default_rng(seed)
    whole = reference.run(network, images)
    small = replace(GEOMETRY, activation_words=int(rng.choice([256, 512, 1024, 2048])))
    for patch, cuts in islice(tilings(network, partial(fits, geometry=small)), 3):
        size = patch.tensors[patch.input].shape
        patches = cuts[network.input].cut(images, size.height, size.width)
        found = reference.run(patch, patches)
        for name, values in whole.items():
            np.testing.assert_array_equal(cuts[name].join(found[name]), values, err_msg=f"seed {seed}, {name}, {size}")


def test_the_patches_with_the_least_work_come_first():
    network, _ = large_network(0)
    source = network.tensors[network.input].shape
    work = [
        len(cuts[network.input]) * patch.tensors[patch.input].shape.height * patch.tensors[patch.input].shape.width
        for patch, cuts in islice(tilings(network, partial(fits, geometry=replace(GEOMETRY, activation_words=256))), 20)
    ]
    assert work == sorted(work) and work[0] > source.height * source.width


def test_a_pair_is_the_network_twice():
    network, images = large_network(3)
    both, second = twice(network)
    found = reference.run(network, images)
    assert both.inputs == (*network.inputs, *map(second.get, network.inputs))
    assert set(both.outputs) == {network.output, second[network.output]}
    assert [op.output for op in both.ops] == [op.output for op in network.ops] + [
        second[op.output] for op in network.ops
    ]
    for op, again in zip(network.ops, both.ops[len(network.ops) :], strict=True):
        assert again.weights is op.weights if isinstance(op, Conv) else again.kernel == op.kernel
        assert [second[name] for name in operands(op)] == list(operands(again))
        assert found[op.output].shape[1:] == both.tensors[again.output].shape


def test_a_patch_is_stored_once_the_next_is_sent_off():
    """Then what waits until a place's stores are done waits for no others."""
    network, _ = large_network(0)
    small = replace(GEOMETRY, activation_words=1024)
    patch, cuts = next(ways(network, partial(fits, geometry=small, pairs=True), pairs=True))
    way = Way(network, patch, cuts, pairs=True)
    stage, data, cost = compile_stage(way, small)
    codes = np.frombuffer(data[: 8 * stage.instruction_load_words], "<u8").reshape(-1, 2)
    body = [INSTRUCTION.unpack(int(low) | int(high) << 64) for low, high in codes[stage.body :].tolist()]
    kinds = [fields["opcode"] for fields in body]
    kinds = kinds[: kinds.index(Opcode.END) + 1]
    runs = [number for number, kind in enumerate(kinds) if kind == Opcode.RUN]
    stores = [number for number, kind in enumerate(kinds) if kind == Opcode.STORE]
    a_patch = len(runs) // stage.patches
    assert stage.jobs == 1 and len(stores) == stage.patches > 2
    assert cost.of_picture(way, 1) > cost.of_picture(way, 2) > 0
    assert stores[-1] > stores[-2] > runs[-1]
    for store, last, next_one in zip(
        stores[:-2], runs[2 * a_patch - 1 : -1 : a_patch], runs[2 * a_patch :: a_patch], strict=True
    ):
        assert last < store < next_one
    inputs = [fields for fields in body if fields["opcode"] == Opcode.LOAD and fields["base"] == Base.INPUT]
    assert [fields["offset"] for fields in inputs[: stage.patches]] == [
        number * stage.input_bytes for number in range(stage.patches)
    ]
    assert len({fields["address"] for fields in inputs[: stage.patches]}) == 2


def test_a_program_keeps_its_patches():
    network, images = large_network(0)
    program = compile_network(network, replace(GEOMETRY, activation_words=512))
    assert program.jobs > 1 and program.input_shape == network.tensors[network.input].shape
    assert Program.from_bytes(program.to_bytes()) == program
    assert len(program.pack_input(images)) == 2 * program.stages[0].jobs
    assert sum(layer.macs for layer in program.layers) == sum(
        layer.macs for layer in compile_network(network, replace(GEOMETRY, activation_words=1 << 16)).layers
    )


def test_a_network_that_is_not_the_same_everywhere_is_refused_as_before():
    network, _ = large_network(0)
    output = network.tensors[network.output].shape
    full = Conv("full", network.ops[-1].input, "y", np.ones((3, network.ops[-1].weights.shape[1], *output[1:]), int))
    with_full = replace(
        network,
        ops=(*network.ops[:-1], full),
        tensors=network.tensors | {"y": Tensor("y", Shape(3, 1, 1), 32, True)},
    )
    with pytest.raises(CapacityError, match="use a geometry with more activation_words"):
        compile_network(with_full, replace(GEOMETRY, activation_words=512))


def test_a_network_of_others_enlarges_a_picture_of_128_pixels_in_patches():
    network = load(Path(str(files("qonnx"))) / "data" / "onnx" / "bsd300x3-espcn" / "nn_resize" / "quant_model.onnx")
    program = compile_network(network, PRESETS["32x32"])
    assert program.jobs > 1 and program.input_shape == (3, 128, 128)
    assert program.output.shape == (3, 256, 256)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tiling: tiling["rows"].update(begins=[0, 5]),
        lambda tiling: tiling["rows"].update(begins=tiling["rows"]["begins"][::-1]),
        lambda tiling: tiling["columns"].update(offsets=[10**6 for _ in tiling["columns"]["offsets"]]),
        lambda tiling: tiling["columns"].update(offsets=["a"]),
        lambda tiling: tiling.pop("rows"),
    ],
)
def test_patches_that_are_not_whole_are_refused(damage):
    cuts = Tiling(Cuts((0, 4, 8), (0, 6, 10, 14)), Cuts((0,), (0, 9)))
    values = {axis: {name: list(of) for name, of in part.items()} for axis, part in cuts.to_dict().items()}
    assert Tiling.from_dict(values) == cuts
    damage(values)
    with pytest.raises((ValueError, KeyError)):
        Tiling.from_dict(values)
