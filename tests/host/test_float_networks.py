"""Random networks with float scales: qonnx's execution and the reference differ in no sum that was not named.

500 networks by night, some by day. The hardware's part is in tests/system/test_float_networks.py.
"""

import pytest
from helpers.float_networks import differences, float_models
from helpers.random_networks import random_images
from helpers.tiers import long
from hypothesis import HealthCheck, given, note, settings

from sentei.host.errors import InexactModel
from sentei.host.frontend.importer import load

BY_DAY, BY_NIGHT = 30, 500


def assert_explained(model, seed: int) -> None:
    """Load the model, or see it refused for a reason that the array has; compare it on two pictures."""
    try:
        network = load(model)
    except InexactModel as error:
        assert "its thresholds are not even" in str(error), str(error)
        return
    named = {doubt.layer: doubt.sums for doubt in network.doubts if not doubt.outputs}
    note(f"named sums: {named}")
    for layer, count in differences(model, network, random_images(seed, network, 2)).items():
        assert count <= named.get(layer, 0), f"{layer}: {count} sums differ, {named.get(layer, 0)} are named"


def of_examples(count: int):
    return settings(
        max_examples=count, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck), derandomize=True
    )


@given(float_models())
@of_examples(BY_DAY)
def test_no_difference_outside_the_named_sums(model):
    assert_explained(model, 0)


@pytest.mark.timeout(3600)
@long
@given(float_models())
@of_examples(BY_NIGHT)
def test_no_difference_outside_the_named_sums_all_night(model):
    assert_explained(model, 1)
