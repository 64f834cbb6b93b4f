"""Random networks with float scales on the Verilated SoC: every layer equals the reference."""

import numpy as np
import pytest

pytest.importorskip("sentei.driver.quiet_pynq")
pytest.importorskip("litex")

from helpers.fitting_networks import LIMIT_CYCLES
from helpers.float_networks import float_models
from helpers.qonnx_execution import execute
from helpers.random_networks import ModelWriter, random_images
from helpers.tiers import long
from hypothesis import HealthCheck, assume, given, settings

from sentei.driver import SenteiOverlay
from sentei.host.compiler.compile import compile_network
from sentei.host.errors import InexactModel
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import PRESETS

BY_DAY, BY_NIGHT = 15, 60


@pytest.fixture(scope="module")
def overlay(overlay_path):
    with SenteiOverlay(overlay_path("8x8")) as opened:
        opened.engine.clock.limit = LIMIT_CYCLES
        yield opened


def of_examples(count: int):
    return settings(
        max_examples=count, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck), derandomize=True
    )


def assert_exact(overlay, model) -> None:
    try:
        network = load(model)
        program = compile_network(network, PRESETS["8x8"])
    except (CapacityError, InexactModel):
        assume(False)
    images = random_images(0, network, 2)
    expected = reference.run(network, images)
    measured = overlay.load(program).trace(images)
    for op in network.ops:
        np.testing.assert_array_equal(measured[op.output], expected[op.output], err_msg=op.name)
    np.testing.assert_array_equal(overlay.run(images), expected[network.output])


@given(model=float_models())
@of_examples(BY_DAY)
def test_every_layer_of_networks_with_float_scales(overlay, model):
    assert_exact(overlay, model)


@long
@given(model=float_models())
@of_examples(BY_NIGHT)
def test_every_layer_of_networks_with_float_scales_all_night(overlay, model):
    assert_exact(overlay, model)


@pytest.mark.parametrize("pictures", [1, 3, 4])
def test_sums_of_several_terms_in_batches(overlay, pictures):
    """A flattened map and a pooled one in one sum, joined and repeated maps, tensors of two nibbles: as a batch, each
    picture lies elsewhere in each of them."""
    writer = ModelWriter()
    random = np.random.default_rng(pictures)

    def weights(*shape: int) -> str:
        return writer.quant(writer.constant(random.integers(-7, 8, shape) / 8), 0.125, 4, True)

    picture = writer.quant("input", 2.0**-7, 8, True)
    first = writer.quant(writer.node("Conv", picture, weights(4, 2, 3, 3), pads=[1] * 4), 0.25, 4, False)
    small = writer.quant(writer.node("Conv", first, weights(3, 4, 3, 3), pads=[1] * 4, strides=[2, 2]), 0.125, 7, True)
    sums = writer.node("Conv", small, weights(3, 3, 1, 1))
    larger = writer.node("Resize", writer.quant(sums, 0.5, 4, False), "", writer.constant([1.0, 1.0, 2.0, 2.0]))
    joined = writer.node("Concat", larger, first, axis=1)
    name = writer.quant(writer.node("Conv", joined, weights(5, 7, 3, 3), pads=[1] * 4), 0.5, 4, False)
    whole = writer.node("MatMul", writer.node("Flatten", name), weights(5 * 48, 6))
    pooled = writer.quant(writer.node("GlobalAveragePool", name), 0.125, 4, False)
    both = writer.node("Add", whole, writer.node("MatMul", writer.node("Flatten", pooled), weights(5, 6)))
    model = writer.model((pictures, 2, 6, 8), both, 2)
    network = load(model)
    images = random_images(0, network, pictures)
    expected = reference.run(network, images)
    measured = overlay.load(compile_network(network, PRESETS["8x8"], batch=pictures)).trace(images)
    for op in network.ops:
        np.testing.assert_array_equal(measured[op.output], expected[op.output], err_msg=op.name)
    np.testing.assert_array_equal(overlay.run(images).model.reshape(pictures, -1), execute(model, network, images))
