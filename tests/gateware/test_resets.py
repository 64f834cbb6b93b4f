"""A reset at any moment leaves nothing behind: whatever the engine was doing, the next run is right."""

import random

import numpy as np
import pytest
from helpers.random_layers import describe, random_layer
from helpers.tiers import seeds

from sentei.driver import SenteiOverlay
from sentei.host.compiler.compile import compile_network
from sentei.host.network import reference
from sentei.overlay.geometry import PRESETS

NETWORKS = (10, 100)
RESETS = 12  # of each network


@pytest.mark.parametrize("seed", seeds(*NETWORKS))
def test_a_reset_in_mid_job_leaves_the_next_run_right(overlay_path, seed):
    rng = random.Random(seed)
    network, images = random_layer(7000 + seed, PRESETS["8x8"], large=False)
    expected = reference.run(network, images)[network.output]
    with SenteiOverlay(overlay_path("8x8")) as overlay:
        simulator, engine = overlay.device.simulator, overlay.engine
        overlay.load(compile_network(network, PRESETS["8x8"]))
        overlay.run(images)
        job_cycles = overlay.last_cycles
        for attempt in range(RESETS):
            simulator.stall_memory(rng.choice([0, rng.randrange(1, 1000)]))
            packed = overlay.program.pack_input(images)
            entry, load = rng.choice(
                [(overlay.program.stages[0].body, False), (overlay.program.stages[0].prologue, True)]
            )
            for picture in range(rng.choice([1, 2])):
                source, target = overlay._slots[picture]
                source[:] = packed[picture]
                engine.start(entry, source.device_address, target.device_address, load)
            cycles = rng.randrange(1, 2 * job_cycles)
            simulator.run(cycles)
            assert engine.reset(), f"seed {seed}, attempt {attempt}: still busy after a reset at cycle {cycles}"
            overlay._on_chip = None
            outputs = overlay.run(images)
            text = f"seed {seed}, attempt {attempt}, reset after {cycles} cycles: {describe(network)}"
            np.testing.assert_array_equal(outputs, expected, err_msg=text)
