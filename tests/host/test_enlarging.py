"""Transposed convolutions and moves between channels and pixels: the integer network computes what qonnx does."""

import numpy as np
import pytest
from helpers.enlarging_networks import enlarging_model
from helpers.qonnx_execution import execute
from helpers.random_networks import random_images
from helpers.tiers import seeds

from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.overlay.geometry import PRESETS


@pytest.mark.parametrize("seed", seeds(40, 1000))
def test_the_reference_is_qonnx(seed):
    model, text = enlarging_model(seed)
    network = load(model)
    images = random_images(seed, network, 2)
    found = np.concatenate([execute(model, network, image[None]) for image in images])
    np.testing.assert_array_equal(reference.predict(network, images), found, err_msg=text)
    compile_network(network, PRESETS["8x8"])
