"""Random networks with float scales on the Verilated SoC: every layer equals the reference."""

import numpy as np
import pytest

pytest.importorskip("sentei.driver.quiet_pynq")
pytest.importorskip("litex")

from helpers.fitting_networks import LIMIT_CYCLES
from helpers.float_networks import float_models
from helpers.random_networks import random_images
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
