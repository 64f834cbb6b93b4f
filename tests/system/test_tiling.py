"""Pictures in patches, and networks in stages, on the Verilated engine of the smallest board: every layer, joined, is
the reference's; streams, traces, cycles."""

from functools import partial
from itertools import islice, pairwise

import numpy as np
import pytest

pytest.importorskip("litex")

from helpers.geometries import LAYER_GEOMETRIES
from helpers.large_networks import large_network, network_with_tail
from helpers.random_layers import describe
from helpers.tiers import seeds

from sentei.driver import EngineError, SenteiOverlay
from sentei.host.apps.measure import benchmark, first_difference
from sentei.host.compiler.compile import compile_network, compile_stage, linked
from sentei.host.compiler.placement import fits
from sentei.host.network import reference
from sentei.host.network.stages import Way, divisions, part_of, ways
from sentei.overlay.errors import CapacityError
from sentei.overlay.registers import REGISTERS

LARGEST = 90  # rows and columns: few of them fit


@pytest.fixture(scope="module")
def overlay(overlay_path):
    with SenteiOverlay(overlay_path(LAYER_GEOMETRIES["12F"])) as overlay:
        yield overlay


def in_patches(seed, geometry, draw=large_network, batch=1):
    """The first of the seed's networks that runs in patches: (network, images, program)."""
    for attempt in range(50):
        network, images = draw(50 * seed + attempt, LARGEST)
        try:
            program = compile_network(network, geometry, batch=batch)
        except CapacityError:
            continue
        if program.jobs > 1 and program.pictures == batch:
            return network, images, program
    raise AssertionError(f"none of seed {seed}'s networks needs patches, and fits in them")


@pytest.mark.parametrize("draw", [large_network, network_with_tail])
@pytest.mark.parametrize("seed", seeds(6, 300))
def test_every_layer_is_the_references(overlay, seed, draw):
    network, images, program = in_patches(seed, overlay.manifest.geometry, draw)
    overlay.load(program)
    overlay.device.simulator.stall_memory(seed + 1 if seed % 3 == 0 else 0)
    assert first_difference(overlay, network, images) is None, f"seed {seed}: {describe(network)}"
    assert np.array_equal(overlay.run(images), reference.run(network, images)[network.output])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("seed", seeds(8, 300))
def test_patches_may_overlap_in_time(overlay, seed, pairs):
    """In pairs, and one by one: even and odd numbers of patches, several pictures, memory that stalls."""
    geometry = overlay.manifest.geometry
    for attempt in range(50):
        network, images = large_network(50 * seed + attempt, LARGEST)
        room = partial(fits, geometry=geometry, pairs=pairs)
        found = next((way for way in islice(ways(network, room, pairs), 10) if way[1]), None)
        if found is None:
            continue
        try:
            stage, data, _ = compile_stage(Way(network, *found, pairs), geometry)
            break
        except CapacityError:
            continue
    assert stage.jobs == (1 if pairs else stage.patches) > 0 and stage.patches > 1
    overlay.load(linked(network, [(stage, data)], geometry))
    overlay.device.simulator.stall_memory(seed + 1 if seed % 3 == 0 else 0)
    images = np.concatenate([images, images[::-1]])
    expected = reference.run(network, images)[network.output]
    assert np.array_equal(overlay.run(images), expected), f"seed {seed}: {describe(network)}"
    assert np.array_equal(np.stack(list(overlay.stream(iter(images)))), expected)
    assert first_difference(overlay, network, images) is None
    assert np.array_equal(overlay.run(images), expected)


@pytest.mark.parametrize("seed", seeds(6, 300))
def test_several_tensors_may_lie_between_stages(overlay, seed):
    """Of one operator each, but that of the shorter path's tensor, which is used twice, goes on for another one."""
    geometry = overlay.manifest.geometry
    network, images, _ = in_patches(seed, geometry, network_with_tail)
    down = [op.name for op in network.ops].index("down")
    places = [place for place in divisions(network, len(network.ops)) if place != down or not down]
    parts = [part_of(network, *ends) for ends in pairwise(places)]
    assert any(part.more_inputs for part in parts) and any(part.more_outputs for part in parts) == (down > 0)
    stages = []
    for part in parts:
        job, cuts = next(ways(part, partial(fits, geometry=geometry)))
        stages.append(compile_stage(Way(part, job, cuts), geometry)[:2])
    overlay.load(linked(network, stages, geometry))
    assert first_difference(overlay, network, images) is None, f"seed {seed}: {describe(network)}"


@pytest.mark.parametrize("draw", [large_network, network_with_tail])
def test_streams_and_benchmarks_take_patches_as_pictures(overlay, draw):
    network, images, program = in_patches(0, overlay.manifest.geometry, draw)
    overlay.load(program)
    expected = reference.run(network, images)[network.output]
    assert np.array_equal(overlay.run(images), expected)
    streamed = list(overlay.stream(image for image in images))
    assert np.array_equal(np.stack(streamed), expected)
    measured = benchmark(overlay)
    assert measured.cycles == overlay.picture_cycles >= program.stages[-1].jobs * overlay.last_cycles
    assert 0 < measured.utilisation < 1


@pytest.mark.parametrize("seed", seeds(3, 100))
def test_stages_that_are_whole_take_several_pictures_a_job(overlay, seed):
    network, images, program = in_patches(seed, overlay.manifest.geometry, network_with_tail, batch=4)
    assert {stage.input.pictures for stage in program.stages if stage.jobs > 1} <= {1}
    assert program.jobs == sum(stage.jobs * 4 // stage.input.pictures for stage in program.stages)
    images = np.concatenate([images, images[::-1], images[:1]])
    overlay.load(program)
    assert first_difference(overlay, network, images) is None, f"seed {seed}: {describe(network)}"
    expected = reference.run(network, images)[network.output]
    assert np.array_equal(overlay.run(images), expected)
    assert np.array_equal(np.stack(list(overlay.stream(iter(images)))), expected)
    assert benchmark(overlay).cycles == overlay.picture_cycles


def test_a_run_behind_an_error_begins_with_the_first_stage(overlay):
    _, images, program = in_patches(0, overlay.manifest.geometry, network_with_tail)
    assert len(program.stages) > 1
    overlay.load(program)
    expected = overlay.run(images)
    overlay.engine.register_map.watchdog = 100
    with pytest.raises(EngineError):
        overlay.run(images)
    overlay.engine.register_map.watchdog = REGISTERS["watchdog"].reset
    assert np.array_equal(overlay.run(images), expected)
