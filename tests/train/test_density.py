"""Pruning reaches the density that is asked for, and goes there on the schedule."""

from __future__ import annotations

import copy
import itertools
import math
from fractions import Fraction

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

from helpers.training import GROUP, convolutions, kept_elements, kept_slots
from torch import nn

from sentei.host.train.prune import (
    PruneError,
    Pruner,
    cubic_density,
)


def test_the_schedule_is_a_cube_that_falls_from_start_to_end():
    densities = [cubic_density(progress / 20, 0.5, 0.25) for progress in range(21)]
    assert densities[0] == 0.5 and densities[-1] == 0.25 and densities[10] == 0.25 + 0.25 / 8
    assert all(later < earlier for earlier, later in itertools.pairwise(densities))
    assert cubic_density(-1, 0.5, 0.25) == 0.5 and cubic_density(7, 0.5, 0.25) == 0.25


def test_a_network_is_pruned_to_exactly_the_asked_density():
    """At half of the slots of three layers, every layer's share is a whole number of slots."""
    network = convolutions()
    keep = Fraction(216 + 3584 // 2, 3800)
    pruner = Pruner(network, GROUP)
    pruner.begin(keep)
    pruner.update(1.0)
    assert kept_elements(network) == 216 + 3584 // 2
    assert pruner.density() == pytest.approx(float(keep), abs=1e-12)
    assert pruner.densities() == {"1": 0.5, "2": 0.5, "3": 0.5}
    assert [kept_slots(layer) for layer in network] == [[27] * 2, [36] * 4, [72] * 4, [8] * 2]


@pytest.mark.parametrize("keep", [Fraction(1), Fraction(1, 2), Fraction(1, 3), Fraction(1, 9), Fraction(1, 12), 0.0777])
@pytest.mark.parametrize("floors", [{}, {"3": Fraction(1, 2)}, {"2": Fraction(1, 40)}, {"0": Fraction(0)}])
def test_any_density_is_reached_as_nearly_as_whole_slots_allow(keep, floors):
    network = convolutions()
    pruner = Pruner(network, GROUP, floors)
    counts = {name: layer.weight.numel() for name, layer in network.named_children()}
    kept = {"0": 1.0} | pruner.plan(keep)
    assert sum(kept[name] * count for name, count in counts.items()) == pytest.approx(float(keep) * 3800, abs=1e-6)
    free = {density for name, density in kept.items() if density > float(floors.get(name, name == "0"))}
    assert len(free) <= 1, "layers without a floor are not pruned evenly"
    assert all(kept[name] >= floors.get(name, 0) for name in ("1", "2", "3"))
    pruner.begin(keep)
    pruner.update(1.0)
    half_slots = sum(0.5 * layer.out_channels for layer in network)
    assert abs(kept_elements(network) - keep * 3800) <= half_slots
    assert pruner.density() == pytest.approx(kept_elements(network) / 3800, abs=1e-12)


def test_density_follows_the_schedule_from_where_it_is():
    """From dense to a half, then from there to a quarter: each block of each layer, at every step."""
    network = convolutions()
    pruner = Pruner(network, GROUP)
    start = dict.fromkeys(("1", "2", "3"), 1.0)
    for keep in (Fraction(1, 2), Fraction(1, 4)):
        target = pruner.plan(keep)
        pruner.begin(keep)
        before = math.inf
        for progress in (0.0, 0.1, 0.3, 0.6, 0.9, 1.0):
            pruner.update(progress)
            for name, density in target.items():
                slots = network[int(name)].weight[0].numel()
                expected = round(cubic_density(progress, start[name], density) * slots)
                assert set(kept_slots(network[int(name)])) == {expected}, f"{name} at {progress}"
            assert pruner.density() <= before
            before = pruner.density()
        start = pruner.densities()
    assert abs(before - 0.25) < 0.01


@pytest.mark.parametrize(
    "keep, text",
    [
        (0, "must be above 0.0568, .* and at most 1, not 0"),
        (-0.5, "and at most 1, not -0.5"),
        (Fraction(3, 2), "and at most 1, not 3/2"),
        (Fraction(1, 20), r"must be above 0\.0568, what the layers .* hold, and at most 1, not 1/20"),
    ],
)
def test_a_density_that_cannot_be_is_refused(keep, text):
    pruner = Pruner(convolutions(), GROUP)
    with pytest.raises(PruneError, match=text):
        pruner.begin(keep)


def test_layers_with_a_factor_keep_so_many_times_as_much():
    network = convolutions()
    pruner = Pruner(network, GROUP, {"0": Fraction(0)}, factors={"1": Fraction(2), "3": Fraction(1, 2)})
    for keep in (Fraction(1), Fraction(1, 2), Fraction(1, 9)):
        planned = pruner.plan(keep)
        common = planned["2"]
        assert planned["1"] == pytest.approx(min(1.0, 2 * common))
        assert planned["3"] == pytest.approx(min(1.0, common / 2)) or keep == 1
        pruner.begin(keep)
        pruner.update(1.0)
        assert abs(pruner.density() - keep) < 0.03, keep
    assert set(pruner.plan(1).values()) == {1.0}


def test_the_first_layer_keeps_all_unless_it_is_named():
    assert "0" not in Pruner(convolutions(), GROUP).layers
    assert Pruner(convolutions(), GROUP, {"0": Fraction(1, 2)}).plan(Fraction(1, 9))["0"] == 0.5
    planned = Pruner(convolutions(), GROUP, factors={"0": Fraction(2)}).plan(Fraction(1, 9))
    assert planned["0"] == pytest.approx(2 * planned["1"])


@pytest.mark.parametrize(
    "factors, text",
    [
        ({"none": Fraction(2)}, "layer 'none': the name must match one of 0, 1, 2, 3"),
        ({"1": Fraction(0)}, "layer '1': the factor must be above 0, not 0"),
    ],
)
def test_a_factor_that_fits_no_layer_is_refused(factors, text):
    with pytest.raises(PruneError, match=text):
        Pruner(convolutions(), GROUP, factors=factors)


def test_a_density_below_what_floors_hold_is_refused():
    """216 + 2304 / 2 of 3800 elements."""
    pruner = Pruner(convolutions(), GROUP, {"2": Fraction(1, 2)})
    with pytest.raises(PruneError, match=r"must be above 0\.3600, .* not 1/3"):
        pruner.plan(Fraction(1, 3))
    assert pruner.plan(Fraction(37, 100))["2"] == 0.5
    plan = Pruner(convolutions(), GROUP, {"[12]": Fraction(1, 2)}).plan(Fraction(52, 100))
    assert plan["1"] == plan["2"] == 0.5 > plan["3"] > 0


@pytest.mark.parametrize(
    "floors, text",
    [
        ({"nowhere*": Fraction(1, 2)}, r"layer 'nowhere\*': the name must match one of 0, 1, 2, 3"),
        ({"1": Fraction(3, 2)}, "layer '1': the density must lie between 0 and 1, not be 3/2"),
        ({"1": Fraction(-1, 2)}, "layer '1': the density must lie between 0 and 1, not be -1/2"),
    ],
)
def test_a_floor_that_fits_no_layer_is_refused(floors, text):
    with pytest.raises(PruneError, match=text):
        Pruner(convolutions(), GROUP, floors)


def test_layers_that_do_not_divide_into_blocks_keep_all():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 8, 3))
    pruner = Pruner(network, GROUP)
    pruner.begin(Fraction(1, 2))
    pruner.update(1.0)
    assert list(pruner.densities()) == ["3"]
    assert kept_elements(network[:3]) == 24 + 48 + 18
    with pytest.raises(PruneError, match=r"1: a layer whose output channels do not divide into blocks of 4, .* leave"):
        Pruner(copy.deepcopy(network), GROUP, {"[1]": Fraction(1, 2)})
    with pytest.raises(PruneError, match=r"1: a layer whose output channels do not divide into blocks of 4, .* leave"):
        Pruner(copy.deepcopy(network), GROUP, factors={"[1]": Fraction(2)})
    assert "1" not in Pruner(nn.Sequential(*(nn.Conv2d(6, 6, 1) for _ in "ab")), GROUP, {"1": Fraction(1)}).layers


def test_a_network_without_convolutions_is_not_pruned():
    with pytest.raises(PruneError, match="no convolution: nothing to prune"):
        Pruner(nn.Linear(4, 4), GROUP)
