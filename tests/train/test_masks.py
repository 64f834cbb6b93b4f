"""Pruning keeps the largest slots of each block, and blocks stay aligned."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

from helpers.training import GROUP, convolutions, kept_elements, kept_slots
from torch import nn

from sentei.host.train.kernel_size import remove_parametrizations
from sentei.host.train.prune import (
    Pruner,
    largest_slots,
    slot_importance,
)


def test_fewer_channels_than_a_block_has_are_a_block():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 3), nn.Conv2d(3, 8, 3))
    pruner = Pruner(network, GROUP)
    pruner.begin(Fraction(1, 2))
    pruner.update(1.0)
    kept = network[1].weight != 0
    assert (kept == kept[:1]).all() and 0 < kept.sum() < kept.numel()


def test_kept_slots_are_the_largest_of_each_block():
    weight = torch.full((8, 2, 1, 1), 0.1)
    weight[:4, 1] = weight[4:, 0] = 1.0
    assert largest_slots(slot_importance(weight, 4), 1).flatten().tolist() == [False, True, True, False]


def test_the_size_of_a_channels_kernel_does_not_matter():
    weight = torch.randn(8, 4, 3, 3)
    scaled = weight * torch.logspace(-3, 3, 8).view(-1, 1, 1, 1)
    torch.testing.assert_close(slot_importance(scaled, GROUP), slot_importance(weight, GROUP))


def test_masks_are_of_blocks_of_the_asked_size():
    for group in (2, 8):
        network = convolutions()
        pruner = Pruner(network, group)
        pruner.begin(Fraction(1, 4))
        pruner.update(1.0)
        assert len({tuple(row.flatten().tolist()) for row in network[2].weight.ne(0)}) == 16 // group
        assert len(set(kept_slots(network[2], group))) == 1


def test_unaligned_pruning_drops_the_smallest_weights_wherever_they_are():
    network = convolutions()
    weight = network[2].weight.detach().clone()
    pruner = Pruner(network, GROUP, aligned=False)
    pruner.begin(Fraction(1, 4))
    pruner.update(1.0)
    count = round(pruner.plan(Fraction(1, 4))["2"] * 2304)
    relative = (weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).abs()
    expected = relative >= relative.flatten().sort(descending=True).values[count - 1]
    assert torch.equal(network[2].weight.detach(), weight * expected)
    with pytest.raises(AssertionError, match="do not share"):
        kept_slots(network[2])


def test_final_masks_stay_until_another_density_is_asked_for():
    network = convolutions()
    pruner = Pruner(network, GROUP)
    pruner.begin(Fraction(1, 4))
    pruner.update(1.0)
    before = {name: mask.kept.clone() for name, mask in pruner.masks.items()}
    with torch.no_grad():
        for layer in network[1:]:
            layer.parametrizations.weight.original.normal_()
    pruner.update(0.5)
    pruner.update(1.0)
    assert all(torch.equal(mask.kept, before[name]) for name, mask in pruner.masks.items())
    pruner.begin(Fraction(1, 6))
    pruner.update(0.0)
    assert not any(torch.equal(mask.kept, before[name]) for name, mask in pruner.masks.items())


def test_pruned_weights_stay_as_they_were_and_may_return_before_the_end():
    network = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    pruner = Pruner(network, GROUP)
    pruner.begin(Fraction(16, 24))
    original = network[1].parametrizations.weight.original
    with torch.no_grad():
        original.copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(4, 4)[:, :, None, None])
    pruner.update(0.99)
    assert network[1].weight.flatten(1)[0].tolist() == [4, 3, 0, 0]
    (network[1].weight * torch.tensor([0.0, 2.5, 1.0, -5.0])[:, None, None]).sum().backward()
    assert original.grad.flatten(1)[0].tolist() == [0, 2.5, 0, 0]
    with torch.no_grad():
        original.sub_(original.grad)
    pruner.update(1.0)
    assert network[1].weight.flatten(1)[0].tolist() == [4, 0, 2, 0]


def test_masks_are_written_into_the_weights_and_copies_keep_theirs():
    network = convolutions()
    pruner = Pruner(network, GROUP)
    pruner.begin(Fraction(1, 4))
    pruner.update(1.0)
    finished = copy.deepcopy(network)
    remove_parametrizations(finished)
    assert all(type(layer) is nn.Conv2d and isinstance(layer.weight, nn.Parameter) for layer in finished)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(network, finished, strict=True))
    kept = kept_elements(network)
    pruner.begin(Fraction(1, 6))
    pruner.update(1.0)
    assert kept_elements(network) < kept == kept_elements(finished)
