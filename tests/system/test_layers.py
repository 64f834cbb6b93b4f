"""Random layers on the Verilated engine, through the driver, against the integer reference: equal in every element.

Kernels 1 to 7, strides 1 and 2, any padding, 1 to 70 channels, maps from 1x1 to 40x40, densities from 0 to 1 (aligned
and unstructured), 2 to 8 bits, signed and unsigned, residuals, pools, global pools, fully connected; on eight
geometries, a third of them with random stalls on the memory bus. The seed is the test's number.
"""

import numpy as np
import pytest
from helpers.geometries import LAYER_GEOMETRIES
from helpers.random_layers import describe, fitting_layer
from helpers.tiers import campaign

from sentei.driver import SenteiOverlay
from sentei.host.network import reference
from sentei.overlay.geometry import PRESETS
from sentei.overlay.registers import PROFILE_CAUSES

LAYERS = {"8x8": (25, 2000), "32x32": (25, 2000), "odd": (20, 1000), "narrow": (20, 1000), "paged": (20, 1000)}
LAYERS |= {"12F": (10, 1000), "45F": (20, 1000), "85F": (10, 1000)}


@pytest.fixture(scope="module")
def overlays(overlay_path):
    opened = {}

    def get(name):
        if name not in opened:
            opened[name] = SenteiOverlay(overlay_path(name if name in PRESETS else LAYER_GEOMETRIES[name]))
        return opened[name]

    yield get
    for overlay in opened.values():
        overlay.close()


@pytest.mark.parametrize(("name", "seed"), campaign(LAYERS))
def test_layer_equals_the_reference(overlays, name, seed):
    overlay = overlays(name)
    network, images, program = fitting_layer(seed, LAYER_GEOMETRIES[name], large=name == "32x32" or seed % 4 == 0)
    stalled = seed % 3 == 0
    overlay.device.simulator.stall_memory(seed + 1 if stalled else 0)
    overlay.load(program)
    expected = reference.run(network, images)
    measured = overlay.trace(images)
    text = f"geometry {name}, seed {seed}, stalls {stalled}: {describe(network)}"
    for op in network.ops:
        np.testing.assert_array_equal(measured[op.output], expected[op.output], err_msg=f"{text}: {op.name}")
    np.testing.assert_array_equal(overlay.run(images), expected[network.output], err_msg=text)
    previous = dict.fromkeys(range(LAYER_GEOMETRIES[name].groups), 0)
    for record in overlay.engine.profile():
        spent = sum(record[cause] for cause in PROFILE_CAUSES)
        assert spent == record["end"] - previous[record["group"]], f"{text}: {record}"
        previous[record["group"]] = record["end"]
