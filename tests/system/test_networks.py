"""Whole random QONNX networks, from the file to the Verilated SoC: every layer equals the reference, and the outputs
equal qonnx's own execution of the model; a third with random stalls on the memory bus.

Networks that do not fit the geometry are drawn again. "portable" has the engine of plain Verilog, not the one that
simulates fast. The last tests use an engine whose stream memory is too small
for the weights, so that they are loaded for each picture while the layer before computes.
"""

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("sentei.driver.quiet_pynq")
pytest.importorskip("litex")

from helpers.fitting_networks import LIMIT_CYCLES, fitting_network, layered_model
from helpers.geometries import NETWORK_GEOMETRIES, SMALL_STREAMS
from helpers.qonnx_execution import execute
from helpers.random_networks import ModelWriter, random_images, random_model
from helpers.tiers import campaign, hardware, seeds

from sentei.driver import SenteiOverlay
from sentei.gateware.technologies.technology import PACKED, PORTABLE
from sentei.host.compiler import compile as compiler
from sentei.host.compiler import plan as planning
from sentei.host.compiler.compile import compile_network
from sentei.host.compiler.placement import Packed, make_layouts, place
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.host.network.ir import WIDE
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.instructions import INSTRUCTION, INSTRUCTION_LOAD_WORDS, Memory, Opcode

NETWORKS = {"8x8": (40, 2000), "portable": (10, 400), "32x32": (10, 400), "little": (16, 600)}
STREAMED = (12, 300)  # of each kind
BATCHED = (16, 500)
PACKED_PHASES = (12, 500)


@pytest.fixture(scope="module")
def overlays(overlay_path):
    opened = {}

    def get(name):
        if name not in opened:
            path = overlay_path(NETWORK_GEOMETRIES[name], technology=PORTABLE if name == "portable" else PACKED)
            opened[name] = SenteiOverlay(path)
            opened[name].engine.clock.limit = LIMIT_CYCLES
        return opened[name]

    yield get
    for overlay in opened.values():
        overlay.close()


def assert_equal(overlay, model, network, program, images, text):
    """On the SoC every traced tensor is the reference's, and the outputs are those of qonnx."""
    __tracebackhide__ = True
    overlay.load(program)
    expected = reference.run(network, images)
    measured = overlay.trace(images)
    assert list(measured) == [op.output for op in network.ops], text
    for op in network.ops:
        np.testing.assert_array_equal(measured[op.output], expected[op.output], err_msg=f"{text}: {op.name}")
    outputs = overlay.run(images)
    np.testing.assert_array_equal(outputs, expected[network.output], err_msg=text)
    floats = execute(model, network, images)
    np.testing.assert_array_equal(outputs.model.reshape(floats.shape), floats, err_msg=f"{text}: qonnx")


@pytest.mark.parametrize(("name", "seed"), campaign(NETWORKS))
def test_a_random_network_equals_the_reference_and_qonnx(overlays, name, seed):
    overlay = overlays(name)
    model, network, program, description = fitting_network(seed, NETWORK_GEOMETRIES[name])
    stalls = seed + 1 if seed % 3 == 0 else 0
    text = f"geometry {name}, seed {seed}, stalls {stalls}, {description}"
    print(text)
    overlay.device.simulator.stall_memory(stalls)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    assert_equal(overlay, model, network, program, random_images(seed, network, batch), text)


def all_packed(network, geometry, batch, pairs):
    assert not pairs
    yield place(network, make_layouts(network, geometry, batch, Packed.ALL), geometry)


@pytest.mark.parametrize("seed", seeds(*PACKED_PHASES))
def test_packed_phases_give_equal_results(overlays, monkeypatch, seed):
    """Tensors without gaps between their phases, also where that takes more steps."""
    monkeypatch.setattr(compiler, "placements", all_packed)
    for attempt in range(20):
        model, network, program, description = fitting_network(70_000 + 20 * seed + attempt, NETWORK_GEOMETRIES["8x8"])
        if program.input.phases > 1:
            break
    text = f"seed {seed}, attempt {attempt}: {description}"
    print(text)
    overlay = overlays("8x8")
    overlay.device.simulator.stall_memory(0)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    assert_equal(overlay, model, network, program, random_images(seed, network, batch), text)


@pytest.mark.parametrize("seed", seeds(*BATCHED))
def test_a_batch_equals_the_reference_and_qonnx(overlays, monkeypatch, seed):
    """Of two to five pictures, and again with one that is not full; half of them with packed phases."""
    if seed % 4 > 1:
        monkeypatch.setattr(compiler, "placements", all_packed)
    geometry = NETWORK_GEOMETRIES["8x8"]
    batch = 2 + seed % 4
    for attempt in range(20):
        model, description = random_model(50_000 + 100 * seed + attempt)
        network = load(model)
        try:
            program = compile_network(network, geometry, batch=batch)
            break
        except CapacityError as error:
            print(f"seed {seed}, attempt {attempt}: {error}")
    text = f"seed {seed}, attempt {attempt}, batch {batch}: {description}"
    print(text)
    overlay = overlays("8x8")
    overlay.device.simulator.stall_memory(0)
    images = random_images(seed, network, 2 * batch + 1)
    overlay.load(program)
    expected = reference.run(network, images)
    measured = overlay.trace(images)
    for op in network.ops:
        np.testing.assert_array_equal(measured[op.output], expected[op.output], err_msg=f"{text}: {op.name}")
    np.testing.assert_array_equal(overlay.run(images), expected[network.output], err_msg=text)
    np.testing.assert_array_equal(list(overlay.stream(images)), expected[network.output], err_msg=text)


def test_the_random_networks_differ_in_kind():
    """The networks above have every kind of layer, wide and narrow outputs, residuals, 8-bit inputs."""
    kinds = set()
    for seed in range(NETWORKS["8x8"][0]):
        _, network, program, _ = fitting_network(seed, NETWORK_GEOMETRIES["8x8"])
        kinds |= {layer.kind.split(" ")[-1] for layer in program.layers}
        kinds |= {"wide" if network.tensors[network.output].bits == WIDE else "narrow"}
        kinds |= {"8 bits"} if network.tensors[network.input].bits == 8 else set()
        for op in network.ops:
            kinds |= {"residual"} if op.requantize is not None and op.requantize.residual else set()
            kinds |= {"strided"} if max(op.stride) > 1 else set()
    assert kinds >= {"pool", "1x1", "3x3", "7x3", "wide", "narrow", "8 bits", "residual", "strided"}


def test_a_strided_layer_that_adds_its_own_input_is_refused():
    """Its input would have to lie in twice as many phases as the residual, which it is."""
    writer = ModelWriter()
    source = writer.quant("input", 0.25, 4, False)
    weights = writer.quant(writer.constant(np.ones((2, 2, 3, 3)) / 8), 0.125, 4, True)
    name = writer.node("Conv", source, weights, strides=[2, 2], pads=[3, 3, 3, 3])  # 5x5 pixels, as before
    name = writer.node("Add", name, writer.constant(1 / 64))
    name = writer.quant(writer.node("Add", name, source), 0.25, 4, False)
    network = load(writer.model((1, 2, 5, 5), name, 4))
    assert any(op.requantize.residual == op.input for op in network.ops)
    with pytest.raises(CapacityError, match=r"^random: Conv_2: the strides of its branches do not fit together"):
        compile_network(network, PRESETS["8x8"])


def streamed_network(seed, kind, monkeypatch):
    """The first of the seed's models that streams in that way: (model, network, program, its StreamPlan)."""
    plans = []
    plan_streams = compiler.plan_streams

    def plan(*arguments):
        plans.append(plan_streams(*arguments))
        return plans[-1]

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "plan_streams", plan)
        for attempt in range(60):
            model = layered_model(100 * seed + attempt, kind)
            network = load(model)
            try:
                program = compile_network(network, SMALL_STREAMS)
            except CapacityError as error:
                print(f"seed {seed}, attempt {attempt}: {error}")
                continue
            if any(run.chunk for run in plans[-1].runs) and plans[-1].buffers == (2 if kind == "ahead" else 1):
                return model, network, program, plans[-1]
    raise AssertionError(f"none of seed {seed}'s networks streams {kind}")


def streams_loaded(program, memory=Memory.STREAM):
    """Number of LOADs of streams, or of their weights, while a picture is computed."""
    data = program.data[: 8 * program.stages[0].instruction_load_words]
    size = 8 * INSTRUCTION_LOAD_WORDS
    fields = [INSTRUCTION.unpack(int.from_bytes(data[i : i + size], "little")) for i in range(0, len(data), size)]
    body = fields[program.stages[0].body : program.stages[0].trace]
    return sum(f["opcode"] == Opcode.LOAD and f["memory"] == memory for f in body)


@pytest.mark.parametrize("kind", ["ahead", "single"])
@pytest.mark.parametrize("seed", seeds(*STREAMED))
def test_weights_that_do_not_fit_on_chip_are_loaded_for_each_picture(overlays, monkeypatch, kind, seed):
    overlay = overlays("streamed")
    if seed % 2:
        monkeypatch.setattr(planning, "FEWEST_PAIRS", 4)  # these layers are small
    model, network, program, plan = streamed_network(seed, kind, monkeypatch)
    assert seed % 2 == 0 or kind == "ahead" or streams_loaded(program, Memory.WEIGHTS), "no weights are loaded alone"
    chunks = [run for run in plan.runs if run.chunk]
    groups = [group for run in chunks for group in range(SMALL_STREAMS.groups) if run.is_for(group)]
    assert streams_loaded(program) >= len(groups) > 0 and (len(groups) == len(chunks)) == (kind == "single")
    stalls = seed + 1 if seed % 3 == 0 else 0
    text = f"{kind}, seed {seed}, stalls {stalls}, {chunks} of {len(plan.runs)} runs streamed"
    print(text)
    overlay.device.simulator.stall_memory(stalls)
    assert_equal(overlay, model, network, program, random_images(seed, network, 2), text)
    images = random_images(seed + 1, network, 4)
    expected = reference.run(network, images)[network.output]
    for number, output in enumerate(overlay.stream(iter(images))):
        np.testing.assert_array_equal(output, expected[number], err_msg=f"{text}: picture {number} of a stream")


@hardware
def test_runs_of_both_places_are_mixed(monkeypatch):
    """Among the networks above runs that stay on chip stand before, between and behind streamed ones, and some follow
    a streamed run at once."""
    for kind in ("ahead", "single"):
        pairs = set()
        for seed in range(STREAMED[0]):
            plan = streamed_network(seed, kind, monkeypatch)[3]
            streamed = [run.chunk for run in plan.runs]
            pairs |= {*pairwise(streamed), ("first", streamed[0]), ("last", streamed[-1])}
        assert pairs >= {(False, False), (False, True), (True, False), (True, True)}, kind
        assert pairs >= {("first", False), ("last", False), ("last", True)}, kind


def pages_loaded(program):
    """Number of LOADs of channel tables while a picture is computed."""
    data = program.data[: 8 * program.stages[0].instruction_load_words]
    size = 8 * INSTRUCTION_LOAD_WORDS
    fields = [INSTRUCTION.unpack(int.from_bytes(data[i : i + size], "little")) for i in range(0, len(data), size)]
    body = fields[program.stages[0].body : program.stages[0].trace]
    return sum(f["opcode"] == Opcode.LOAD and f["memory"] == Memory.CHANNEL for f in body)


def test_channel_tables_that_do_not_fit_on_chip_are_loaded_in_turn(overlays):
    overlay = overlays("streamed")
    overlay.device.simulator.stall_memory(0)
    found = 0
    for seed in range(60):
        model = layered_model(7000 + seed, "ahead")
        network = load(model)
        try:
            program = compile_network(network, SMALL_STREAMS)
        except CapacityError as error:
            print(f"seed {seed}: {error}")
            continue
        if pages_loaded(program) > 1:
            assert_equal(overlay, model, network, program, random_images(seed, network, 2), f"seed {seed}")
            images = random_images(seed + 1, network, 4)
            expected = reference.run(network, images)[network.output]
            np.testing.assert_array_equal(list(overlay.stream(iter(images))), expected, err_msg=f"seed {seed}")
            found += 1
        if found == 4:
            return
    raise AssertionError(f"only {found} networks have several pages of channel entries")


def test_streamed_and_resident_weights_give_equal_results(overlays, monkeypatch):
    _, network, program, _ = streamed_network(3, "ahead", monkeypatch)
    images = random_images(3, network, 2)
    resident = compile_network(network, PRESETS["8x8"])
    assert streams_loaded(resident) == 0 < streams_loaded(program)
    outputs = {}
    for name, compiled in (("streamed", program), ("8x8", resident)):
        overlays(name).device.simulator.stall_memory(0)
        outputs[name] = np.array(overlays(name).load(compiled).run(images))
    assert np.array_equal(outputs["streamed"], outputs["8x8"])
