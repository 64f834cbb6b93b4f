"""The engine's control alone spends the cycles of the whole engine: each picture's, and in the profile each cause's.

Random networks and all models of the repository, on both memories' models, a third with random stalls.
"""

from pathlib import Path

import pytest

pytest.importorskip("sentei.driver.quiet_pynq")
pytest.importorskip("litex")

from helpers.fitting_networks import LIMIT_CYCLES, fitting_network
from helpers.geometries import NETWORK_GEOMETRIES
from helpers.random_networks import random_images
from helpers.tiers import campaign

from sentei.driver import SenteiOverlay
from sentei.gateware.technologies.technology import CONTROL, PACKED
from sentei.host.apps import measure, target
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.errors import InputError
from sentei.overlay.geometry import PRESETS

NETWORKS = {
    ("8x8", "zynq-hp"): (60, 1000),
    ("8x8", "ulx3s-sdram"): (20, 500),
    ("32x32", "zynq-hp"): (15, 300),
    ("streamed", "zynq-hp"): (10, 300),
}
MODELS = sorted((Path(__file__).resolve().parents[2] / "models").glob("*.onnx"))
PICTURES = 4  # two or three under way at any time


@pytest.fixture(scope="module")
def pairs(overlay_path):
    """pairs(name, memory): two overlays, of the whole engine and of its control."""
    opened = {}

    def get(name, memory):
        if (name, memory) not in opened:
            paths = [
                overlay_path(name if name in PRESETS else NETWORK_GEOMETRIES[name], memory, technology)
                for technology in (PACKED, CONTROL)
            ]
            opened[name, memory] = [SenteiOverlay(path) for path in paths]
            for overlay in opened[name, memory]:
                overlay.engine.clock.limit = LIMIT_CYCLES
        return opened[name, memory]

    yield get
    for overlays in opened.values():
        for overlay in overlays:
            overlay.close()


def spent(overlay, program, images, stalls=0):
    """Cycles of the last picture, and the profile: all that a run says about time."""
    overlay.device.simulator.stall_memory(stalls)
    overlay.load(program)
    overlay.run(images)
    return overlay.last_cycles, overlay.profile()


@pytest.mark.parametrize(("name", "memory", "seed"), campaign(NETWORKS))
def test_a_random_network_takes_the_predicted_cycles(pairs, name, memory, seed):
    model, network, program, description = fitting_network(1000 + seed, NETWORK_GEOMETRIES[name])
    stalls = seed + 1 if seed % 3 == 0 else 0
    print(f"geometry {name}, memory {memory}, seed {seed}, stalls {stalls}, {description}")
    images = random_images(seed, network, max(PICTURES, model.graph.input[0].type.tensor_type.shape.dim[0].dim_value))
    whole, control = (spent(overlay, program, images, stalls) for overlay in pairs(name, memory))
    assert whole == control


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_takes_the_predicted_cycles(pairs, path):
    program = compile_network(load(path), PRESETS["32x32"])
    images = measure.random_images(program, PICTURES)
    whole, control = (spent(overlay, program, images) for overlay in pairs("32x32", "zynq-hp"))
    assert whole == control


def test_what_predicts_is_refused_where_results_are_wanted():
    with pytest.raises(InputError, match=r"^the target 'predict' counts cycles and computes nothing; use 'sim'"):
        target.open_target("predict")
