"""What is exported computes what was trained, and sums keep away from ties."""

from __future__ import annotations

import operator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

from helpers.random_pictures import SEED
from helpers.training import OPERATIONS, Join, first, head, inputs_of, named_operation, signed_block, with_statistics
from torch import nn

from sentei.host.train.export import Affine, ExportError, avoid_ties, freeze
from sentei.host.train.networks import NETWORKS
from sentei.host.train.quantize import quantize
from sentei.host.train.quantizers import (
    best_power_of_two,
)
from sentei.host.train.traced import residual_adds


def test_norms_become_maps_computed_in_float64():
    norm = nn.BatchNorm2d(64)
    for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        values.normal_()
    norm.running_var.abs_()
    norm.weight.data[3] = 0.0
    affine = Affine.from_batch_norm(norm)
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    expected = (norm.bias.double() - norm.running_mean.double() * gain).float()
    assert torch.equal(affine.m.flatten(), gain.float())
    assert torch.equal(affine.b.flatten(), expected)


@pytest.mark.parametrize("scale", [2.0**-8, 2.0**-3, 0.3, 2.0])
def test_sums_that_a_residual_is_added_to_keep_away_from_ties(scale):
    """Among them channels with all sums on ties, with zero gain on a tie, and with steps larger than the output's."""
    torch.manual_seed(SEED)
    m = torch.cat([torch.randn(60), torch.tensor([0.0, 1.0, -0.5, 40.0])])
    b = torch.cat([torch.randn(60), torch.tensor([0.125, 0.125, -0.125, 0.375])])
    affine = Affine(m, b)
    avoid_ties(affine, scale, 0.25)
    moved = affine.b.flatten()
    step = (scale * m.double().abs()).clamp(min=0.25 / 1024)
    assert torch.equal(affine.m.flatten(), m)
    assert ((moved - b).abs() <= 0.51 * step).all()
    sums = torch.arange(-4000, 4001) * scale * m.double()[:, None] + moved.double()[:, None]
    from_tie = torch.remainder(sums / 0.25 + 0.5, 1.0)
    from_tie = torch.minimum(from_tie, 1 - from_tie) * 0.25
    within = sums.abs() < 7
    assert (torch.where(within, from_tie, 1.0).amin(dim=1) > step / 300).all()


def test_a_residual_of_another_scale_than_the_output_is_refused():
    network = quantize(named_operation("identity shortcut"), inputs_of())
    (add,) = residual_adds(network)
    (node,) = (node for node in network.graph.nodes if node.target is operator.add)
    behind = network.get_submodule(next(iter(node.users)).target)
    behind.scale = add.residual_scale / 2
    with pytest.raises(ExportError, match=f"must be the residual's, {add.residual_scale}, not {behind.scale}; quant"):
        freeze(network)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if "shortcut" in name or "sums" in name])
def test_values_that_are_added_share_a_scale(name):
    adds = residual_adds(quantize(named_operation(name), inputs_of()))
    assert adds and all(add.output_scale == add.residual_scale for add in adds)


def test_the_scale_of_added_values_is_the_median_of_what_they_want():
    """A stream of three values, each eight times as large as the one before: it has the scale of the second."""
    torch.manual_seed(SEED)
    network = with_statistics(
        nn.Sequential(
            *first(),
            Join(signed_block(), nn.Identity()),
            nn.ReLU(),
            Join(signed_block(), nn.Identity()),
            nn.ReLU(),
            *head(8),
        )
    )
    for index, size in ((2, 8), (4, 64)):
        network[index].left[2][1].weight.data.mul_(size)
    values, wanted = inputs_of(), []
    for module in network[:6]:
        values = module(values)
        if isinstance(module, nn.ReLU):
            wanted.append(best_power_of_two(values, 4, False))
    adds = residual_adds(quantize(network, inputs_of()))
    assert wanted[0] < wanted[1] < wanted[2]
    assert {add.output_scale for add in adds} == {add.residual_scale for add in adds} == {wanted[1]}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_that_come_along_can_be_quantized(name):
    channels, classes = (1, 7) if name == "fashion" else (3, 10)
    network = NETWORKS[name](channels, classes).eval()
    inputs = torch.rand(2, channels, 16, 16)
    assert network(inputs).shape == (2, classes)
    assert len(residual_adds(quantize(network, inputs))) == {"resnet20": 9, "resnet8": 3, "fashion": 1}[name]
