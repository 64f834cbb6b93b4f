"""Transposed convolutions and moves between channels and pixels on the Verilated engine: every layer is the
reference's; and what they cost."""

import numpy as np
import pytest

pytest.importorskip("litex")

from helpers.enlarging_networks import enlarging_model
from helpers.geometries import NARROW
from helpers.random_networks import ModelWriter, random_images
from helpers.tiers import seeds

from sentei.driver import SenteiOverlay
from sentei.host.apps.measure import benchmark, first_difference
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.geometry import PRESETS


@pytest.fixture(scope="module", params=["8x8", NARROW], ids=["8x8", "narrow"])
def overlay(overlay_path, request):
    with SenteiOverlay(overlay_path(request.param)) as overlay:
        yield overlay


@pytest.mark.parametrize("seed", seeds(12, 400))
def test_every_layer_is_the_references(overlay, seed):
    model, text = enlarging_model(seed)
    network = load(model)
    overlay.load(compile_network(network, overlay.manifest.geometry))
    assert first_difference(overlay, network, random_images(seed, network, 2)) is None, text


def test_a_transposed_convolution_takes_only_the_steps_that_meet_pixels(overlay_path):
    writer, rng = ModelWriter(), np.random.default_rng(0)
    weights = [writer.quant(writer.constant(rng.integers(1, 7, (16, 16, 4, 4)) * 0.125), 0.125, 4, True) for _ in "12"]
    name = writer.quant("input", 2.0**-4, 4, False)
    for weight in weights:
        name = writer.node("ConvTranspose", name, weight, strides=[2, 2], pads=[1, 1, 1, 1])
        name = writer.quant(name, 4.0, 4, False)
    network = load(writer.model((1, 16, 8, 8), name, 4))
    with SenteiOverlay(overlay_path()) as overlay:
        overlay.load(compile_network(network, PRESETS["8x8"]))
        measured = benchmark(overlay)
    assert network.tensors[network.output].shape == (16, 32, 32)
    assert measured.bound_cycles == (16 * 16 + 32 * 32) * 16 * 16 * 4 / 64
    assert measured.utilisation > 0.9
