"""Training: pruning keeps blocks aligned, quantizing keeps the function, a resumed run is the same run, and what is
exported computes what was trained.

Networks have a few channels and pictures of 8x8 pixels; every random number comes from SEED.
"""

from __future__ import annotations

import copy
import errno
import gzip
import itertools
import math
import operator
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sentei.host.datasets import catalogue, dataset, idx

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
from brevitas.quant.fixed_point import Int8ActPerTensorFixedPoint, Uint8ActPerTensorFixedPoint
from torch import nn
from torch.nn import functional as F

from sentei.host.errors import UnsupportedModel
from sentei.host.frontend import importer as frontend
from sentei.host.network import reference
from sentei.host.network.ir import kept_density
from sentei.host.train import pipeline
from sentei.host.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from sentei.host.train.evaluate import qonnx_logits
from sentei.host.train.export import Affine, ExportError, avoid_ties, export, freeze
from sentei.host.train.images import Images, augment, to_input
from sentei.host.train.kernel_size import hold_kernel_sizes, remove_parametrizations
from sentei.host.train.loop import Recipe, TrainingError, accuracy, estimate_norms, fit, one_cycle
from sentei.host.train.networks import NETWORKS, BasicBlock, conv_norm
from sentei.host.train.pipeline import Plan, load_float, prune_and_retrain
from sentei.host.train.prune import (
    PruneError,
    Pruner,
    cubic_density,
    largest_slots,
    slot_importance,
)
from sentei.host.train.quantize import quantize
from sentei.host.train.quantizers import (
    ActivationQuantizer,
    Precision,
    UnsupportedNetworkError,
    best_power_of_two,
    best_size,
    quantization_error,
)
from sentei.host.train.traced import ChannelBias, residual_adds
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import PRESETS

SEED = 20210822
GROUP = 4
SIZE = 8
CLASSES = 4

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    print(f"seed {SEED}")
    torch.manual_seed(SEED)


def split_of(count: int, seed: int = SEED) -> dataset.Split:
    """Pictures of four coloured patches with some noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 224, (count, 3, 2, 2)).repeat(SIZE // 2, 2).repeat(SIZE // 2, 3)
    images = (patches + rng.integers(0, 32, patches.shape)).astype(np.uint8)
    return dataset.Split(images, np.arange(count) % CLASSES)


def data_set(train: int = 32, test: int = 16) -> dataset.DataSet:
    return dataset.DataSet("random", split_of(train), split_of(test, SEED + 1), tuple("abcd"))


def inputs_of(count: int = 24) -> torch.Tensor:
    return to_input(torch.from_numpy(split_of(count).images))


def is_power_of_two(value: float) -> bool:
    return math.frexp(value)[0] == 0.5


# Networks


class Call(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Join(nn.Module):
    """What two modules make of one tensor, added (or joined otherwise)."""

    def __init__(self, left: nn.Module, right: nn.Module, join: Callable = operator.add):
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x):
        return self.join(self.left(x), self.right(x))


def head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


class Tiny(nn.Module):
    """A residual network of one block with an identity shortcut and one with a projection, and a dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 8), nn.ReLU())
        self.same = BasicBlock(8, 8, 1)
        self.smaller = BasicBlock(8, 16, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, CLASSES))

    def forward(self, x):
        return self.head(self.smaller(self.same(self.stem(x))))


def tiny() -> Tiny:
    torch.manual_seed(SEED)
    return Tiny()


def signed_block(stride: int = 1, channels: int = 8) -> nn.Module:
    return nn.Sequential(conv_norm(8, channels, stride=stride), nn.ReLU(), conv_norm(channels, channels))


def first(channels: int = 8) -> tuple[nn.Module, ...]:
    return conv_norm(3, channels), nn.ReLU()


# Everything that the table of host/train/quantize.py names, in every way of writing it.
OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": lambda: nn.Sequential(
        conv_norm(3, 8),
        nn.ReLU(inplace=True),
        conv_norm(8, 8),
        Call(F.relu),
        conv_norm(8, 8),
        Call(torch.relu),
        conv_norm(8, 8),
        Call(lambda x: x.relu()),
        *head(8),
    ),
    "ReLU6": lambda: nn.Sequential(conv_norm(3, 8), nn.ReLU6(), conv_norm(8, 8), Call(F.relu6), *head(8)),
    "max pooling": lambda: nn.Sequential(
        *first(), nn.MaxPool2d(2), conv_norm(8, 8), Call(lambda x: F.max_pool2d(x, 2)), nn.ReLU(), *head(8)
    ),
    "mean pooling": lambda: nn.Sequential(
        *first(),
        nn.AvgPool2d(2),
        conv_norm(8, 8),
        Call(lambda x: F.avg_pool2d(x, 2)),
        conv_norm(8, 8),
        nn.ReLU(),
        Call(lambda x: x.mean((2, 3))),
        nn.Linear(8, CLASSES),
    ),
    "functional head": lambda: nn.Sequential(
        *first(),
        Call(lambda x: F.adaptive_avg_pool2d(x, 1)),
        Call(lambda x: torch.flatten(x, 1)),
        nn.Linear(8, CLASSES),
    ),
    "biases": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        *head(8),
    ),
    "no biases": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4, bias=False)
    ),
    "identity shortcut": lambda: nn.Sequential(*first(), Join(signed_block(), nn.Identity()), nn.ReLU(), *head(8)),
    "projection shortcut": lambda: nn.Sequential(
        *first(), Join(signed_block(2, 16), conv_norm(8, 16, kernel=1, stride=2)), nn.ReLU(), *head(16)
    ),
    "shortcut on the left, in place": lambda: nn.Sequential(
        *first(),
        Join(nn.Identity(), signed_block(), torch.add),
        nn.ReLU(inplace=True),
        Join(signed_block(), nn.Identity(), operator.iadd),
        nn.ReLU(),
        *head(8),
    ),
    "shortcut of a maximum": lambda: nn.Sequential(
        *first(), Join(signed_block(2), nn.MaxPool2d(2)), nn.ReLU(), *head(8)
    ),
    "sums that are read by an addition and by a pooling": lambda: nn.Sequential(
        *first(), Join(conv_norm(8, 8), nn.Identity()), Join(signed_block(), nn.Identity()), nn.MaxPool2d(2), *head(8)
    ),
    "norm before the convolution": lambda: nn.Sequential(
        *first(), nn.BatchNorm2d(8), nn.ReLU(), conv_norm(8, 8), nn.ReLU(), *head(8)
    ),
    "norm without weights": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), *head(8)
    ),
    "groups and dilation": lambda: nn.Sequential(
        *first(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, dilation=2),
        nn.ReLU(),
        *head(8),
    ),
    "flattened maps": lambda: nn.Sequential(
        conv_norm(3, 8, stride=2),
        nn.ReLU(),
        nn.Dropout(),
        nn.Identity(),
        Call(lambda x: x.reshape(x.size(0), -1)),
        nn.Linear(128, 8),
        nn.ReLU(),
        nn.Linear(8, CLASSES),
    ),
    "linear layers": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8), nn.ReLU(), nn.Linear(8, 4)),
}


@torch.no_grad()
def with_statistics(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, its batch norms and biases as training might leave them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            module.weight.normal_(1.0, 0.3)
            module.bias.normal_(0, 0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                module.bias.normal_(0, 0.3)
    estimate_norms(network, [inputs_of()])
    return network


def named_operation(name: str) -> nn.Module:
    torch.manual_seed(SEED)
    return with_statistics(OPERATIONS[name]())


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in network.named_modules() if isinstance(m, QuantConv2d | QuantLinear)}


def quantizers_of(network: nn.Module) -> dict[str, ActivationQuantizer]:
    return {name: m for name, m in network.named_modules() if isinstance(m, ActivationQuantizer)}


def is_signed(quantizer: ActivationQuantizer) -> bool:
    return bool(quantizer.act_quant.is_signed)


def without_quantizers(network: nn.Module) -> nn.Module:
    """A quantized network with float layers in the place of quantized ones, and ReLUs for unsigned quantizers."""
    plain = copy.deepcopy(network)
    for name, module in quantizers_of(network).items():
        plain.set_submodule(name, nn.Identity() if is_signed(module) else nn.ReLU())
    for name, module in layers_of(network).items():
        if isinstance(module, QuantLinear):
            layer: nn.Module = nn.Linear(module.in_features, module.out_features, bias=False)
        else:
            layer = nn.Conv2d(
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                module.stride,
                module.padding,
                module.dilation,
                module.groups,
                bias=False,
            )
        layer.weight = nn.Parameter(module.weight.detach().clone())
        plain.set_submodule(name, layer)
    return plain.eval()


@torch.no_grad()
def logits_of(network: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    return network.eval()(inputs).numpy()


def check_export(network: nn.Module, path: Path, count: int = 12):
    """PyTorch, qonnx and the integer reference give equal logits, and not one for all; returns the integer network."""
    export(network, path, (1, 3, SIZE, SIZE))
    images = split_of(count, SEED + 2).images
    inputs = to_input(torch.from_numpy(images))
    expected = logits_of(network, inputs)
    loaded = frontend.load(path)
    np.testing.assert_array_equal(qonnx_logits(path, inputs.numpy(), batch=count), expected)
    np.testing.assert_array_equal(reference.predict(loaded, images), expected)
    assert len(np.unique(expected, axis=0)) > count // 3, "the pictures make no difference"
    return loaded


# Pruning: schedule and densities


def convolutions() -> nn.Sequential:
    """3800 kernel elements, of which the first layer has 216."""
    torch.manual_seed(SEED)
    sizes = ((3, 8, 3), (8, 16, 3), (16, 16, 3), (16, 8, 1))
    return nn.Sequential(*(nn.Conv2d(i, o, kernel, bias=False) for i, o, kernel in sizes))


def kept_slots(layer: nn.Conv2d, group: int = GROUP) -> list[int]:
    """The number of slots in which each block has a weight, after a check that its channels share them."""
    used = layer.weight.detach().unflatten(0, (-1, group)).ne(0)
    assert (used == used[:, :1]).all(), "the channels of a block do not share their slots"
    return used[:, 0].flatten(1).sum(1).tolist()


def kept_elements(network: nn.Module) -> int:
    return sum(int(m.weight.detach().ne(0).sum()) for m in network.modules() if isinstance(m, nn.Conv2d))


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


# Pruning: masks


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


# Quantization


@pytest.mark.parametrize("name", OPERATIONS)
def test_quantizing_keeps_the_function_but_for_the_rounding(name):
    """With the quantizers out, what biases and kernels became computes what the float network does."""
    network, inputs = named_operation(name), inputs_of()
    quantized = quantize(network, inputs)
    plain = without_quantizers(quantized).double()
    expected = copy.deepcopy(network).double()(inputs.double())
    slack = 2e-4 if name == "norm without weights" else 1e-6  # the norm's epsilon is not made up for
    torch.testing.assert_close(plain(inputs.double()), expected, rtol=1e-5, atol=slack)
    difference = torch.from_numpy(logits_of(quantized, inputs)).double() - expected
    assert 0 < difference.abs().mean() < 0.5 * expected.std(), "quantization changes more than rounding explains"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_scale_is_a_power_of_two_and_every_value_an_integer_in_range(name):
    inputs = inputs_of()
    network = quantize(named_operation(name), inputs)
    quantizers, layers, seen = quantizers_of(network), layers_of(network), {}
    for place, quantizer in quantizers.items():
        quantizer.register_forward_hook(lambda _, __, output, place=place: seen.update({place: output.detach()}))
    logits_of(network, inputs)
    source, *others = quantizers
    assert quantizers[source].scale == 2.0**-8 and torch.equal(seen[source], inputs)
    assert set(seen) == set(quantizers)
    for place in others:
        scale, values = quantizers[place].scale, seen[place] / quantizers[place].scale
        low, high = (-8, 7) if is_signed(quantizers[place]) else (0, 15)
        assert is_power_of_two(scale), f"{place}: {scale}"
        assert torch.equal(values, values.round()) and low <= values.min() and values.max() <= high, place
        assert values.abs().max() >= high // 4, f"{place}: the scale is too large"
    for index, (place, layer) in enumerate(layers.items()):
        weight = layer.quant_weight()
        values, limit = weight.value / weight.scale, 127 if index in (0, len(layers) - 1) else 7
        assert weight.scale.numel() == 1 and is_power_of_two(weight.scale.item()), place
        assert torch.equal(values, values.round()) and values.abs().max() <= limit, place
        assert values.abs().max() > limit // 2, f"{place}: the scale is too large"
        assert layer.bias is None


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_exported_equals_the_torch_model(name, tmp_path):
    network = quantize(named_operation(name), inputs_of())
    freeze(network)
    check_export(network, tmp_path / "model.onnx")


def test_an_activation_quantizer_is_brevitas_own():
    """The faster quantizer of constant scales computes what Brevitas' does, gradients included, ties and all."""
    x = torch.cat([torch.randn(1000) * 4, torch.arange(-40, 41) / 8])
    for signed, base in ((False, Uint8ActPerTensorFixedPoint), (True, Int8ActPerTensorFixedPoint)):
        theirs = QuantIdentity(
            act_quant=base.let(bit_width=4, scaling_impl_type="const", scaling_init=0.25 * 2 ** (4 - signed))
        )
        results = []
        for quantizer in (ActivationQuantizer(4, signed, 0.25), theirs):
            leaf = x.clone().requires_grad_()
            output = quantizer(leaf)
            (output * torch.arange(len(x))).sum().backward()
            results.append((output.detach(), leaf.grad))
        inside = (x > (-2 if signed else 0)) & (x < (1.75 if signed else 3.75))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1][inside], results[1][1][inside])
        assert (results[0][1][x > 4] == 0).all() and (results[0][1][x < -2.1] == 0).all()


def test_a_bias_goes_into_the_norm_or_behind_the_sums():
    network = quantize(named_operation("biases"), inputs_of())
    biases = [name for name, module in network.named_modules() if isinstance(module, ChannelBias)]
    assert len(biases) == 4 and not any(name.startswith("_2") for name in biases), biases
    assert all(network.get_submodule(name).bias.requires_grad for name in biases)


def test_the_best_size_has_the_least_error():
    """Against what is published for as many levels (Max 1960, table II: steps of 0.3352 for 16, 0.5860 for 8)."""
    weights = torch.randn(1, 1 << 20, dtype=torch.float64)
    for bits in (2, 3, 4, 8):
        best = best_size(bits)
        errors = [
            quantization_error(weights * best * factor, 1.0, bits, True, True) / factor**2
            for factor in (1.0, 0.93, 1.07)
        ]
        assert errors[0] < min(errors[1:]), bits
    assert 1 / 0.5860 < best_size(4) < 1 / 0.3352


def test_kernels_are_moved_to_the_grid_of_their_layer():
    """The channels' sizes differ by powers of ten; quantizing makes them those that fit the layer's grid."""
    network = nn.Sequential(*first(), conv_norm(8, 16), nn.ReLU(), *head(16)).eval()
    with torch.no_grad():
        network[2][0].weight.mul_(torch.logspace(-2, 2, 16).view(-1, 1, 1, 1))
    expected = network[2](torch.ones(1, 8, 4, 4))
    quantized = quantize(network, inputs_of())
    layer, norm = quantized.get_submodule("2.0"), quantized.get_submodule("2.1")
    sizes = layer.weight.flatten(1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(sizes, torch.full_like(sizes, best_size(4) * layer.quant_weight().scale.item()))
    changed = norm(F.conv2d(torch.ones(1, 8, 4, 4), layer.weight, padding=1))
    torch.testing.assert_close(changed, expected, rtol=1e-3, atol=1e-5)


def test_kernels_keep_the_size_that_fits_their_grid():
    """Holding changes nothing at first; what is left of a pruned kernel has its size, whatever training does to it."""
    network = quantize(tiny().eval(), inputs_of())
    expected = network(inputs_of())
    pruner = Pruner(network, GROUP)
    hold_kernel_sizes(network)
    torch.testing.assert_close(network(inputs_of()), expected)
    pruner.begin(Fraction(1, 2))
    pruner.update(1.0)
    layers = {node: module for node, module in layers_of(network).items() if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        for layer in layers.values():
            layer.parametrizations.weight.original[0] *= 100
            layer.parametrizations.weight.original[1] = 0
    network(inputs_of()).square().sum().backward()
    for name, layer in layers.items():
        original = layer.parametrizations.weight.original
        assert original.grad.isfinite().all() and original.grad[0].any(), name
        weight = layer.weight.detach().flatten(1)
        kept = weight.ne(0)
        if name in pruner.layers:
            assert kept[0].float().mean() < 0.6, name
        sizes = weight.square().sum(dim=1) / kept.sum(dim=1)
        size = best_size(8 if layer is next(iter(layers.values())) else 4) * layer.quant_weight().scale.item()
        torch.testing.assert_close(sizes[2:].sqrt(), torch.full_like(sizes[2:], size))
        assert not kept[1].any() and math.isclose(sizes[0].sqrt(), size, rel_tol=1e-5)


def test_relu6_clips_near_six_and_relu_where_its_values_end():
    scales = {}
    for relu in (nn.ReLU(), nn.ReLU6(), Call(F.relu6)):
        network = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        nn.init.constant_(network[0].weight, 20.0)
        *_, quantizer, _ = quantizers_of(quantize(network, inputs_of())).values()
        scales[relu] = quantizer.scale
    relu, *bounded = scales.values()
    assert relu * 15 > 20 and all(4 < scale * 15 < 8 for scale in bounded), scales


def test_shortcuts_are_quantized_once_and_projections_with_a_sign():
    identity = quantize(named_operation("identity shortcut"), inputs_of())
    projection = quantize(named_operation("projection shortcut"), inputs_of())
    signs = [[is_signed(q) for q in quantizers_of(network).values()] for network in (identity, projection)]
    assert [sum(each) for each in signs] == [0, 1], signs
    assert len(signs[1]) == len(signs[0]) + 1
    (add,) = residual_adds(projection)
    signed = next(q for q in quantizers_of(projection).values() if is_signed(q))
    assert add.residual_scale == signed.scale == add.output_scale
    assert add.norm.endswith("left.2.1"), "the 3x3 convolution is the sum, the projection the residual"


def test_bits_are_chosen_by_the_layers_place(tmp_path):
    network = nn.Sequential(*first(), conv_norm(8, 8), nn.ReLU(), conv_norm(8, 8), nn.ReLU(), *head(8))
    precision = Precision(weights=3, activations=2, first=6, last=5)
    quantized = quantize(with_statistics(network), inputs_of(), precision)
    limits = [int((w.value / w.scale).abs().max()) for w in (m.quant_weight() for m in layers_of(quantized).values())]
    assert 15 < limits[0] <= 31 and limits[1:3] == [3, 3] and 7 < limits[3] <= 15, limits
    _, *others = quantizers_of(quantized).values()
    assert {int((q(torch.full((1,), 99.0)) / q.scale).item()) for q in others} == {3}
    freeze(quantized)
    check_export(quantized, tmp_path / "model.onnx")


@pytest.mark.parametrize("precision", [{"weights": 9}, {"activations": 8}, {"first": 1}, {"last": 0}])
def test_bits_that_the_array_lacks_are_refused(precision):
    ((name, bits),) = precision.items()
    text = f"{name} must be quantized to between 2 and [48] bits, not {bits}$"
    with pytest.raises(UnsupportedNetworkError, match=text):
        Precision(**precision)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x, y):
        return self.conv(x) + y


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.mean() > 0.5 else x


class Twice(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.first, self.layer = conv_norm(3, 8), layer

    def forward(self, x):
        return self.layer(F.relu(self.layer(F.relu(self.first(x)))))


def plain_block() -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1)


@pytest.mark.parametrize(
    "network, text",
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()), "_1: Sigmoid cannot be quantized; convolut"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Call(F.silu)), "silu cannot be quantized"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Call(lambda x: x.clamp(0, 1))), "clamp cannot be quantized"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2)), "no convolution and no linear layer"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4)), "BatchNorm1d cannot be quantized"),
        (Branching, "cannot be traced: .*control flow; its forward must not depend on the values of tensors"),
        (TwoInputs, "y: a network has one input, an image"),
        (lambda: Join(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), lambda x, y: torch.cat([x, y])), "cat cannot be quant"),
        (
            lambda: nn.Sequential(*first(), Join(plain_block(), nn.Identity()), nn.ReLU()),
            "add: one operand of an addition must be a convolution with a batch norm behind it, the other a tensor",
        ),
        (lambda: nn.Sequential(*first(), Join(nn.BatchNorm2d(8), nn.Identity()), nn.ReLU()), "add: one operand of an"),
        (lambda: nn.Sequential(*first(), conv_norm(8, 8), Call(lambda x: x + 1)), "add: one operand of an addition"),
        (lambda: nn.Sequential(*first(), Join(conv_norm(8, 8), nn.Identity())), "add: a ReLU, a pooling, .* must read"),
        (
            lambda: nn.Sequential(*first(), Join(conv_norm(8, 8), nn.Identity()), nn.Dropout(), nn.ReLU()),
            "add: a ReLU, a pooling, a convolution or another addition must read the sum, at once",
        ),
        (nn.Flatten, "no convolution and no linear layer: nothing to quantize"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
            "_0: padding must be numbers of "
            r"zeros, not reflect \(1, 1\)",
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same")), "padding must be numbers of zeros, not zeros same"),
        (lambda: Twice(plain_block()), "layer_1: layer is called twice; each call needs its own layer"),
        (lambda: Twice(nn.BatchNorm2d(8)), "layer_1: layer is called twice"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
            "_1: a batch norm must track its running statistics",
        ),
    ],
)
def test_what_cannot_be_quantized_is_named(network, text):
    with pytest.raises(UnsupportedNetworkError, match=text):
        quantize(network().eval(), inputs_of(8))


def test_a_relu_may_be_called_twice(tmp_path):
    network = quantize(with_statistics(nn.Sequential(Twice(nn.ReLU()), *head(8))), inputs_of())
    freeze(network)
    check_export(network, tmp_path / "model.onnx")


def test_the_float_network_stays_as_it_was():
    for name in ("biases", "projection shortcut", "linear layers"):
        network = named_operation(name)
        before = copy.deepcopy(network.state_dict())
        freeze(quantize(network, inputs_of(8)))
        after = network.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before), name


def test_scales_stay_in_training_and_weights_move():
    network = quantize(tiny().eval(), inputs_of())
    scales = {name: q.scale for name, q in quantizers_of(network).items()}
    weights = {name: m.weight.detach().clone() for name, m in layers_of(network).items()}
    images = Images(split_of(32))
    fit(network, images, images, Recipe(epochs=1, learning_rate=0.2, batch=8), seed=SEED, stage="tiny")
    assert scales == {name: q.scale for name, q in quantizers_of(network).items()}
    for name, layer in layers_of(network).items():
        assert is_power_of_two(layer.quant_weight().scale.item())
        assert not torch.equal(layer.weight, weights[name]), f"{name} is not trained"
    large = torch.full((2,), 1e6)
    assert all(
        q(large).max() == q.scale * (2**8 - 1 if index == 0 else 7 if is_signed(q) else 15)
        for index, q in enumerate(quantizers_of(network).values())
    )


# Freezing and exporting


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


# Training


PLAN = Plan(
    float_epochs=2,
    float_cycles=1,
    epochs=2,
    batch=16,
    float_learning_rate=0.1,
    learning_rate=0.05,
    max_shift=1,
    group=GROUP,
)
KEEPS = (Fraction(1, 2), Fraction(1, 4))
DENSE = (Fraction(1),)


def points_of(work: Path | None = None, network: nn.Module | None = None, keeps=KEEPS, plan: Plan = PLAN, **options):
    return list(prune_and_retrain(network or tiny(), data_set(), keeps, plan, work=work, **options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: its folder, and its finished models."""
    work = tmp_path_factory.mktemp("whole")
    return work, points_of(work)


def test_the_float_network_goes_through_cycles_of_half_the_peak(tmp_path):
    plan = replace(PLAN, float_epochs=1, float_cycles=3, epochs=0)
    moments = []
    points_of(tmp_path, keeps=KEEPS[:1], plan=plan, watch=moments.append)
    stages = ("float", "float, cycle 2", "float, cycle 3")
    assert [stage for stage in stages if any(moment.stage == stage for moment in moments)] == list(stages)
    names = ("float.pt", "float-2.pt", "float-3.pt")
    states = [load_checkpoint(tmp_path / name, torch.device("cpu")) for name in names]
    assert [state["settings"]["learning_rate"] for state in states] == [0.1, 0.05, 0.025]
    assert len({state["settings"]["seed"] for state in states}) == 3
    resumed = []
    points_of(tmp_path, keeps=KEEPS[:1], plan=plan, watch=resumed.append, resume=True)
    assert [(moment.stage, moment.epoch, moment.step) for moment in resumed] == [(stage, 1, 0) for stage in stages]


@pytest.mark.parametrize(
    ("pool", "error", "text"),
    [
        (nn.MaxPool2d(3, 2, ceil_mode=True), UnsupportedModel, "ceil_mode must be 0"),
        (nn.AdaptiveAvgPool2d(3), ExportError, "cannot be written as ONNX: .*adaptive_avg_pool2d"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_training(pool, error, text, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(4))
    network(torch.zeros(1, *data_set().train.images.shape[1:]))
    with pytest.raises(error, match=text):
        points_of(tmp_path, network, DENSE, watch=lambda moment: pytest.fail("it must not be trained"))


def test_densities_may_have_epochs_of_their_own():
    moments = []
    points_of(plan=replace(PLAN, float_epochs=0, epochs=(3, 1)), watch=moments.append)
    assert {(moment.stage, moment.epochs) for moment in moments} == {("keep 1/2", 3), ("keep 1/4", 1)}


def test_a_density_may_have_several_cycles_of_the_learning_rate(tmp_path):
    """Pruning ends with the first; stopped in the second, training continues there."""
    plan = replace(PLAN, float_epochs=0, epochs=((2, 1, 1), 1))
    moments = []
    whole = points_of(plan=plan, watch=moments.append)
    stages = ["keep 1/2", "keep 1/2, cycle 2", "keep 1/2, cycle 3", "keep 1/4"]
    assert list(dict.fromkeys(moment.stage for moment in moments)) == stages
    assert len({moment.density for moment in moments if "cycle" in moment.stage}) == 1

    def stop(moment):
        if moment.stage == "keep 1/2, cycle 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points_of(tmp_path, plan=plan, watch=stop)
    seen = []
    resumed = points_of(tmp_path, plan=plan, resume=True, watch=seen.append)
    assert list(dict.fromkeys(moment.stage for moment in seen if moment.step)) == stages[2:]
    for one, other in zip(whole, resumed, strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
        )


def assert_same_states(one, other, name: str = "") -> None:
    """Tensors, numbers and everything else in nested dictionaries and lists, apart from the seconds."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), f"{name} differs"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one.keys() - {"seconds"}:
            assert_same_states(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), name
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_states(*pair, f"{name}.{index}")
    else:
        assert one == other, f"{name}: {one} and {other}"


def assert_same_runs(one: tuple[Path, list], other: tuple[Path, list]) -> None:
    names = sorted(path.name for path in one[0].iterdir())
    assert names == sorted(path.name for path in other[0].iterdir()) == ["float.pt", "keep-1-2.pt", "keep-1-4.pt"]
    for name in names:
        assert_same_states(*(load_checkpoint(run[0] / name, torch.device("cpu")) for run in (one, other)), name)
    assert len(one[1]) == len(other[1])
    for left, right in zip(one[1], other[1], strict=True):
        assert_same_states(left.network.state_dict(), right.network.state_dict(), str(left.keep))
        for name in ("keep", "density", "densities", "accuracy", "float_accuracy"):
            assert getattr(left, name) == getattr(right, name), name


def test_every_density_on_the_way_is_a_finished_model(whole, tmp_path):
    """Of a network like ResNet-8 with a projection shortcut: torch, qonnx and the reference agree on every logit."""
    _, points = whole
    assert [point.keep for point in points] == list(KEEPS)
    for point in points:
        path = tmp_path / "model.onnx"
        network = check_export(point.network, path, 16)
        elements = sum(m.weight.numel() for m in point.network.modules() if isinstance(m, nn.Conv2d))
        assert round(kept_density(network, GROUP) * elements) == round(point.density * elements)
        assert abs(point.density - point.keep) < 0.02
        assert {
            name: m.weight.ne(0).float().mean().item()
            for name, m in point.network.named_modules()
            if name in point.densities
        } == pytest.approx(dict(point.densities))
        test = data_set().test
        labels = reference.predict(network, test.images).argmax(1)
        assert point.accuracy == (labels == test.labels).mean() == accuracy(point.network, Images(test))
    assert points[0].seconds < points[1].seconds


@pytest.mark.parametrize(
    "stage, epoch, step",
    [("float", 1, 2), ("keep 1/2", 1, 1), ("keep 1/4", 0, 1), ("keep 1/4", 1, 2)],
)
def test_a_run_that_was_interrupted_continues_bit_for_bit(whole, tmp_path, stage, epoch, step):
    def interrupt(moment):
        if (moment.stage, moment.epoch, moment.step) == (stage, epoch, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points_of(tmp_path, watch=interrupt)
    seen = []
    points = points_of(tmp_path, resume=True, watch=seen.append)
    assert_same_runs(whole, (tmp_path, points))
    epochs = [(name, number) for name in ("float", "keep 1/2", "keep 1/4") for number in range(2)]
    trained = dict.fromkeys((moment.stage, moment.epoch) for moment in seen if moment.step)
    assert list(trained) == epochs[epochs.index((stage, epoch)) :], "finished epochs must not be repeated"
    assert [(moment.stage, moment.epoch) for moment in seen if moment.ends_epoch] == list(trained)


def test_a_run_that_ended_is_not_repeated(whole):
    work, points = whole
    before = {path: path.read_bytes() for path in work.iterdir()}
    seen = []
    again = points_of(work, resume=True, watch=seen.append)
    assert [(moment.stage, moment.epoch, moment.step) for moment in seen] == [
        ("float", 2, 0),
        ("keep 1/2", 2, 0),
        ("keep 1/4", 2, 0),
    ]
    assert before == {path: path.read_bytes() for path in work.iterdir()}
    assert_same_runs(whole, (work, again))
    assert [point.seconds for point in again] == [point.seconds for point in points]


def test_checkpoints_are_continued_or_left_alone(whole, tmp_path):
    """Never overwritten; and what does not fit is named before anything is trained."""
    work = tmp_path / "work"
    shutil.copytree(whole[0], work)
    before = {path.name: path.read_bytes() for path in work.iterdir()}

    def refused(text: str, **options) -> None:
        with pytest.raises(CheckpointError, match=text):
            points_of(work, watch=lambda moment: pytest.fail("it must not be trained"), **options)
        assert before == {path.name: path.read_bytes() for path in work.iterdir()}

    refused(r"float\.pt is there already, from an earlier run: continue it \(--resume\), name .*anew \(--restart\)")
    refused(
        r"keep-1-4\.pt is of another run: .*; keeps is \['1/2', '1/4'\] there and \['1/4'\] here; ",
        keeps=KEEPS[1:],
        resume=True,
    )
    refused(
        r"keep-1-2\.pt is of another run: learning_rate is 0\.05 there and 0\.04 here\.",
        plan=replace(PLAN, learning_rate=0.04),
        resume=True,
    )
    clipped = tiny()
    clipped.stem[1] = nn.ReLU6()
    refused(r"float\.pt is of another run: network is '.*' there and '.*' here\.", network=clipped, resume=True)
    refused(r"keep-1-2\.pt is of another run: .*network is '.*' there", network=clipped, pretrained=True, resume=True)
    other = tiny()
    load_float(other, work / "float.pt")
    other.head[-1].bias.data[0] += 1
    with pytest.raises(CheckpointError, match=r"keep-1-2\.pt is of another run: teacher is '.*' there and '.*' here"):
        points_of(work, other, pretrained=True, resume=True)
    images = data_set().train.images.copy()
    images[0, 0, 0, 0] ^= 1
    changed = replace(data_set(), train=dataset.Split(images, data_set().train.labels))
    with pytest.raises(CheckpointError, match=r"float\.pt is of another run: images is '.*' there and '.*' here"):
        list(prune_and_retrain(tiny(), changed, KEEPS, PLAN, work=work, resume=True))
    (work / "float.pt").unlink()
    with pytest.raises(CheckpointError, match=r"keep-1-2\.pt is there, but what comes before it has not been trained"):
        points_of(work, resume=True)


def test_a_float_network_that_is_not_finished_teaches_nobody(tmp_path):
    def interrupt(moment):
        if moment.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points_of(tmp_path, watch=interrupt)
    with pytest.raises(CheckpointError, match=r"float\.pt holds 1 of 2 epochs; finish that run first"):
        load_float(tiny(), tmp_path / "float.pt")


def test_norms_of_a_finished_model_are_those_over_the_training_images(tmp_path):
    plan = Plan(**{**vars(PLAN), "float_epochs": 0, "epochs": 1, "batch": 32, "max_shift": 0, "mirror": False})
    (point,) = points_of(tmp_path, keeps=KEEPS[:1], plan=plan)
    state, network = load_checkpoint(tmp_path / "keep-1-2.pt", torch.device("cpu"))["network"], point.network
    inputs = to_input(torch.from_numpy(data_set().train.images))
    sums = network.get_submodule("stem.0.0")(next(iter(quantizers_of(network).values()))(inputs))
    variance, mean = torch.var_mean(sums.detach(), (0, 2, 3))
    gain = state["stem.0.1.weight"] / (variance + 1e-5).sqrt()
    affine = network.get_submodule("stem.0.1")
    torch.testing.assert_close(affine.m.flatten(), gain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(affine.b.flatten(), state["stem.0.1.bias"] - mean * gain, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(state["stem.0.1.running_mean"], mean, rtol=1e-3)


def test_the_masks_of_a_schedule_under_way_are_in_the_checkpoint(tmp_path):
    def interrupt(moment):
        if (moment.stage, moment.epoch) == ("keep 1/2", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points_of(tmp_path, watch=interrupt)
    state = load_checkpoint(tmp_path / "keep-1-2.pt", torch.device("cpu"))["network"]
    kept = [value for name, value in state.items() if name.endswith("kept")]
    assert len(kept) == 5 and 0.5 < torch.cat([mask.flatten() for mask in kept]).float().mean() < 0.6
    assert not any(value for name, value in state.items() if name.endswith("final"))


def test_a_float_network_that_is_trained_already_stays_as_it_is(whole, tmp_path):
    work, points = whole
    network = tiny()
    load_float(network, work / "float.pt")
    before = copy.deepcopy(network.state_dict())
    again = points_of(tmp_path, network, KEEPS[:1], pretrained=True)
    assert_same_states(before, network.state_dict())
    assert_same_states(points[0].network.state_dict(), again[0].network.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["keep-1-2.pt"]
    torch.save(before, tmp_path / "weights.pt")
    other = Tiny()
    load_float(other, tmp_path / "weights.pt")
    assert_same_states(before, other.state_dict())


def test_weights_of_another_network_are_refused(whole, tmp_path):
    with pytest.raises(CheckpointError, match=r"float\.pt does not hold the weights of this network: .*") as info:
        load_float(nn.Conv2d(3, 4, 1), whole[0] / "float.pt")
    assert "\n" not in str(info.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt is no checkpoint of this program, but a list"):
        load_float(tiny(), tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"none\.pt does not exist"):
        load_float(tiny(), tmp_path / "none.pt")


@pytest.mark.parametrize("keeps", [(), (Fraction(1, 4), Fraction(1, 2)), (Fraction(1, 2), Fraction(1, 2))])
def test_densities_that_do_not_fall_are_refused(keeps):
    with pytest.raises(PruneError, match="the densities must fall, not be"):
        points_of(keeps=keeps)


@pytest.mark.parametrize(
    "error, options",
    [
        (PruneError, {"keeps": (Fraction(1, 2), Fraction(1, 1000))}),
        (PruneError, {"plan": Plan(floors={"none": Fraction(1, 2)})}),
        (UnsupportedNetworkError, {"network": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), *head(4))}),
        (dataset.DatasetError, {"plan": Plan(holdout=32)}),
        (CapacityError, {"geometry": replace(PRESETS["8x8"], activation_words=64)}),
    ],
)
def test_what_cannot_be_done_is_refused_before_hours_of_training(error, options):
    moments = []
    with pytest.raises(error):
        points_of(**options, watch=moments.append)
    assert not moments


def test_images_held_out_are_not_trained_on_but_measured(tmp_path):
    """Their labels may change without a change to the network; those of the test images do not matter at all."""
    plan = Plan(**{**vars(PLAN), "holdout": 8, "epochs": 1, "float_epochs": 1})
    results = []
    for offset in (0, 1):
        training = split_of(32)
        labels = np.concatenate([training.labels[:24], (training.labels[24:] + offset) % CLASSES])
        changed = dataset.DataSet("random", dataset.Split(training.images, labels), split_of(16), tuple("abcd"))
        (point,) = prune_and_retrain(tiny(), changed, KEEPS[:1], plan)
        held_out = dataset.Split(training.images[24:], labels[24:])
        assert point.holdout_accuracy == accuracy(point.network, Images(held_out))
        assert point.accuracy == accuracy(point.network, Images(changed.test))
        results.append(point.network.state_dict())
    assert_same_states(*results)


def test_a_users_own_network_from_floats_to_integers(tmp_path):
    """A convolution with a bias and no norm, ReLU6, max pooling, 8 bits first and last; pruned twice."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.conv2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6())
            self.conv3 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU6())
            self.fc = nn.Linear(16, CLASSES)

        def forward(self, x):
            x = F.max_pool2d(self.conv2(F.relu(self.conv1(x))), 2)
            return self.fc(self.conv3(x).mean((2, 3)))

    torch.manual_seed(SEED)
    for point in prune_and_retrain(Own(), data_set(), KEEPS, PLAN):
        network = check_export(point.network, tmp_path / f"own-{point.keep.denominator}.onnx", 16)
        weights = [op.weights for op in network.ops if hasattr(op, "weights")]
        assert [np.abs(w).max() > 7 for w in weights] == [True, False, False, True]
        assert abs(point.density - point.keep) < 0.02
        assert round(kept_density(network, GROUP) * 3672) == round(point.density * 3672)


def run_fit(network: nn.Module, *, recipe: Recipe | None = None, seed: int = SEED, **options) -> float:
    images = Images(split_of(16))
    recipe = recipe or Recipe(epochs=2, learning_rate=0.05, batch=8)
    return fit(network, images, images, recipe, seed=seed, stage="tiny", **options)


def test_a_loss_that_is_no_number_ends_training_and_the_last_checkpoint_stays(tmp_path):
    network, checkpoint = tiny(), tmp_path / "tiny.pt"
    kept = []

    def poison(progress):
        if progress >= 0.5:
            kept.append(checkpoint.read_bytes())
            nn.init.constant_(network.head[-1].weight, math.nan)

    text = rf"tiny: the loss is nan in epoch 2, step 1; lower the learning rate \(0\.05\); {checkpoint} holds 1 epochs"
    with pytest.raises(TrainingError, match=text):
        run_fit(network, checkpoint=checkpoint, before_step=poison)
    assert kept == [checkpoint.read_bytes()]
    state = load_checkpoint(checkpoint, torch.device("cpu"))
    assert state["epochs"] == 1 and all(value.isfinite().all() for value in state["network"].values())


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    """The last step of an epoch makes them so: no loss tells."""
    network, checkpoint = tiny(), tmp_path / "tiny.pt"

    def poison(moment):
        if moment.epoch == 1 and moment.step == moment.steps:
            nn.init.constant_(network.head[-1].weight, math.nan)

    text = rf"tiny: weights are no finite numbers after epoch 2; lower the learning .*; {checkpoint} holds 1 epochs"
    with pytest.raises(TrainingError, match=text):
        run_fit(network, checkpoint=checkpoint, watch=poison)
    state = load_checkpoint(checkpoint, torch.device("cpu"))
    assert state["epochs"] == 1 and all(value.isfinite().all() for value in state["network"].values())


def test_a_learning_rate_that_is_too_large_is_named():
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch \d+, step \d+; lower the .* \(1e\+20\)$"):
        run_fit(tiny(), recipe=Recipe(epochs=9, learning_rate=1e20, batch=8))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "tiny.pt"
    run_fit(tiny(), checkpoint=checkpoint, settings={"data": "here"})
    before = checkpoint.read_bytes()
    for changed, text in (
        ({"settings": {"data": "there"}}, "data is 'here' there and 'there' here"),
        ({"seed": 1}, f"seed is {SEED} there and 1 here"),
        ({"recipe": Recipe(3, 0.05, 8)}, "epochs is 2 there and 3 here"),
    ):
        with pytest.raises(CheckpointError, match=rf"tiny\.pt is of another run: {text}\. Repeat that run's options, "):
            run_fit(tiny(), **{"checkpoint": checkpoint, "settings": {"data": "here"}, "resume": True} | changed)
    with pytest.raises(CheckpointError, match=r"tiny\.pt must be of the same network: .*begin anew") as info:
        run_fit(NETWORKS["resnet8"](3, 4), checkpoint=checkpoint, settings={"data": "here"}, resume=True)
    assert "\n" not in str(info.value)
    assert checkpoint.read_bytes() == before
    assert run_fit(tiny(), checkpoint=checkpoint, settings={"data": "here"}, resume=True) > 0


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "caught")


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "code", "list", "other"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    checkpoint = tmp_path / "tiny.pt"
    run_fit(tiny(), checkpoint=checkpoint)
    whole = checkpoint.read_bytes()
    if damage == "list":
        torch.save([1, 2, 3], checkpoint)
    elif damage == "other":
        torch.save({"epochs": 1}, checkpoint)
    else:
        code = pickle.dumps(Trap(tmp_path / "trap"), protocol=2)
        checkpoint.write_bytes({"cut": whole[:-300], "text": b"hello", "empty": b"", "code": code}[damage])
    damaged = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match=r"tiny\.pt is no checkpoint of this program") as info:
        run_fit(tiny(), checkpoint=checkpoint, resume=True)
    assert "\n" not in str(info.value) and checkpoint.read_bytes() == damaged
    assert not (tmp_path / "trap").exists()


class FullFile:
    """A file on a full disk: takes a little, then no more."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *info):
        self.file.close()

    def write(self, content):
        self.file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, where):
    checkpoint = tmp_path / "tiny.pt"
    run_fit(whole := tiny(), checkpoint=tmp_path / "whole.pt")
    (tmp_path / "whole.pt").unlink()
    path_open = Path.open

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(progress):
        if progress >= 0.5:
            if where == "open":
                monkeypatch.setattr(Path, "open", full)
            elif where == "write":
                monkeypatch.setattr(Path, "open", lambda *a, **o: FullFile(path_open(*a, **o)))
            else:
                monkeypatch.setattr(os, where, full)

    text = r"tiny\.pt cannot be written: No space left on device; what it held before is intact\. Make room"
    with pytest.raises(CheckpointError, match=text):
        run_fit(tiny(), checkpoint=checkpoint, before_step=fill)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt"], "something unfinished is left"
    assert load_checkpoint(checkpoint, torch.device("cpu"))["epochs"] == 1
    run_fit(resumed := tiny(), checkpoint=checkpoint, resume=True)
    assert_same_states(whole.state_dict(), resumed.state_dict())


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/tiny\.pt cannot be written: (Not a directory|File exists)"):
        save_checkpoint({}, tmp_path / "file" / "tiny.pt")


def test_the_learning_rate_rises_and_falls_once():
    rates = [one_cycle(step / 100) for step in range(100)]
    peak = rates.index(max(rates))
    assert rates[0] == 0 and rates[peak] == 1.0 and rates[-1] < 0.001
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)


def test_pictures_are_moved_and_mirrored_whole():
    """Every result is one of the 18 that a shift by up to one pixel and a mirror allow, and nearly all come up."""
    image = torch.arange(1, 1 + 2 * 4 * 5, dtype=torch.uint8).view(2, 4, 5)
    padded = F.pad(image, [1] * 4)
    possible = {}
    for y in range(3):
        for x in range(3):
            moved = padded[:, y : y + 4, x : x + 5]
            possible[y, x, False], possible[y, x, True] = moved, moved.flip(2)
    results = augment(image.expand(300, -1, -1, -1), 1, True, torch.Generator().manual_seed(SEED))
    found = {name for name, wanted in possible.items() for result in results if torch.equal(result, wanted)}
    assert all(any(torch.equal(result, wanted) for wanted in possible.values()) for result in results)
    assert len(found) == 18
    assert torch.equal(augment(image[None], 0, False, torch.Generator()), image[None])


def test_estimated_norms_are_the_mean_over_the_batches():
    network = nn.Sequential(nn.BatchNorm2d(3))
    batches = torch.randn(5, 4, 3, 6, 6) + 7.0
    estimate_norms(network, batches)
    torch.testing.assert_close(network[0].running_mean, batches.mean((0, 1, 3, 4)))
    assert not network.training and network[0].momentum == 0.1


def test_the_teacher_is_learned_from_where_it_is_asked_for():
    """Labels that say nothing and a teacher who knows: with distillation alone, its answers are learned."""
    torch.manual_seed(SEED + 1)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    nn.init.normal_(teacher[1].weight)
    images = Images(dataset.Split(split_of(16).images, np.zeros(16, np.int64)))
    wanted = teacher(to_input(images.images)).argmax(1)
    agreed = {}
    for share in (0.0, 1.0):
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
        recipe = Recipe(60, 0.2, 16, 0.0, distillation=share, temperature=1.0, max_shift=0, mirror=False)
        fit(network, images, images, recipe, seed=SEED, stage="tiny", teacher=teacher)
        agreed[share] = (network(to_input(images.images)).argmax(1) == wanted).float().mean().item()
    assert agreed[1.0] == 1.0 and agreed[0.0] < 0.6, agreed


# Data sets


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Test files are compressed, training files are not."""
    for name, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        (folder / f"train-{name}").write_bytes(idx_bytes(values))
        (folder / f"t10k-{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))


def write_cifar10(folder: Path, count: int = 2) -> np.ndarray:
    records = np.random.default_rng(SEED).integers(0, 256, (6, count, 3073), dtype=np.uint8)
    records[:, :, 0] = np.arange(6 * count).reshape(6, count) % 10
    for number, part in enumerate(records[:5]):
        part.tofile(folder / f"data_batch_{number + 1}.bin")
    records[5].tofile(folder / "test_batch.bin")
    return records


def test_cifar10_is_read_in_order(tmp_path):
    records = write_cifar10(tmp_path)
    loaded = catalogue.load("cifar10", tmp_path)
    assert loaded.classes[3] == "cat" and len(loaded.train) == 10 and len(loaded.test) == 2
    np.testing.assert_array_equal(loaded.train.labels, np.arange(10))
    np.testing.assert_array_equal(loaded.train.images[3, 1, 2], records[1, 1, 1 + 1024 + 64 :][:32])
    np.testing.assert_array_equal(loaded.test.images[1].ravel(), records[5, 1, 1:])


def test_idx_files_are_read_plain_and_compressed(tmp_path):
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    write_idx(tmp_path, images, np.array([7, 9]))
    loaded = catalogue.load("mnist", tmp_path)
    for split in (loaded.train, loaded.test):
        np.testing.assert_array_equal(split.images, images[:, None])
        assert split.labels.tolist() == [7, 9] and split.labels.dtype == np.int64


def test_the_folder_is_the_argument_or_what_the_variable_names(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, count in ((here, 1), (there, 2)):
        folder.mkdir()
        write_cifar10(folder, count)
    monkeypatch.setenv("SENTEI_CIFAR10", str(there))
    assert len(catalogue.load_split("cifar10", "test")) == 2
    assert len(catalogue.load_split("cifar10", "test", here)) == 1
    monkeypatch.delenv("SENTEI_CIFAR10")
    with pytest.raises(dataset.DatasetMissingError, match=r"no folder is named for cifar10: download .* set SENTEI_C"):
        catalogue.load_split("cifar10", "test")


@pytest.mark.parametrize(
    "kind, remedy",
    [
        (
            "cifar10",
            r"data_batch_1\.bin does not exist: download https://www\.cs\.toronto\.edu/.*; then name the folder, "
            "or set SENTEI_CIFAR10 to it",
        ),
        ("fashion-mnist", r"train-images-idx3-ubyte\.gz does not exist: install Debian's dataset-fashion-mnist"),
        ("mnist", r"train-images-idx3-ubyte\.gz does not exist: download the four"),
    ],
)
def test_missing_data_names_the_remedy(tmp_path, kind, remedy):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(dataset.DatasetMissingError, match=remedy):
            catalogue.load(kind, folder)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(dataset.DatasetError, match=r"test_batch\.bin cannot be read: Not a directory"):
        catalogue.load_split("cifar10", "test", tmp_path / "file")


def test_unknown_data_and_unknown_splits_are_refused(tmp_path):
    with pytest.raises(dataset.DatasetError, match="must be one of cifar10, fashion-mnist, mnist, not 'cifar100'"):
        catalogue.load("cifar100", tmp_path)
    with pytest.raises(dataset.DatasetError, match="split must be 'train' or 'test', not 'validation'"):
        catalogue.load_split("mnist", "validation", tmp_path)


@pytest.mark.parametrize(
    "name, change, text",
    [
        (
            "data_batch_3.bin",
            lambda raw: raw[:-1],
            r"data_batch_3\.bin must hold records of 3073 bytes, not 6145 bytes",
        ),
        ("test_batch.bin", lambda raw: b"", r"test_batch\.bin must hold records of 3073 bytes, not 0 bytes; download"),
        (
            "data_batch_5.bin",
            lambda raw: b"\x0a" + raw[1:],
            "must hold labels from 0 to 9, not 10; download the binary",
        ),
    ],
)
def test_damaged_cifar10_is_refused(tmp_path, name, change, text):
    write_cifar10(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(dataset.DatasetFormatError, match=text):
        catalogue.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", r"must start with 00 00 08 \(IDX, unsigned bytes\), not ''"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 0]), "must start with 00 00 08 .* not '00 00 0d'"),
        (bytes([0, 0, 8, 2, 0, 0, 0, 1]), "ends inside its header; download it again"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 2, 3]), r"must hold \(5,\) elements, not 3; download it again"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]), r"must hold \(1,\) elements, not 2"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, content, text):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(dataset.DatasetFormatError, match=text):
        idx.load_idx(tmp_path / "labels")


def test_damaged_compressed_files_are_refused(tmp_path):
    whole = gzip.compress(idx_bytes(np.random.default_rng(SEED).integers(0, 256, (10, 9, 9))), mtime=0)
    reasons = set()
    for damaged in (whole[:-20], b"no gzip", whole[:10] + b"\xff" * 20 + whole[30:], whole[:60] + b"#" + whole[61:]):
        path = tmp_path / "images.gz"
        path.write_bytes(damaged)
        with pytest.raises(
            dataset.DatasetFormatError, match=r"images\.gz must be a complete gzip file, .*again"
        ) as info:
            idx.load_idx(path)
        reasons.add(type(info.value.__cause__))
    assert reasons == {EOFError, gzip.BadGzipFile, zlib.error}


@pytest.mark.parametrize(
    "images, labels, text",
    [
        (
            np.zeros((2, 3, 4)),
            np.zeros(3),
            r"must hold \(N, H, W\) images and \(N,\) labels, not \(2, 3, 4\) and \(3,\)",
        ),
        (np.zeros((2, 12)), np.zeros(2), r"must hold \(N, H, W\) images .* not \(2, 12\) and \(2,\)"),
        (np.zeros((2, 3, 4)), np.array([1, 10]), "must hold labels from 0 to 9, not 10"),
        (np.zeros((0, 3, 4)), np.zeros(0), "must hold labels from 0 to 9, not 0 among 0"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(tmp_path, images, labels, text):
    write_idx(tmp_path, images, labels)
    with pytest.raises(dataset.DatasetFormatError, match=text):
        catalogue.load("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"images": lambda images: images / np.float32(255)}, r"images must be uint8 \(N, C, H, W\), .*, not float32"),
        ({"images": lambda images: images[:, 0]}, r"images must be uint8 \(N, C, H, W\), .*, not uint8 \(16, 8, 8\)"),
        ({"labels": lambda labels: labels.astype(float)}, r"labels must be int64 \(16,\), .*, not float64 \(16,\)"),
        ({"labels": lambda labels: labels[1:]}, r"labels must be int64 \(16,\), .*, not int64 \(15,\)"),
        ({"labels": lambda labels: labels + 1}, r"labels are 0 to 3, one for each class, not \[1, 2, 3, 4\]"),
    ],
)
def test_a_users_data_is_looked_at(change, text):
    split = split_of(16)
    with pytest.raises(dataset.DatasetError, match=text):
        changed = replace(split, **{name: function(getattr(split, name)) for name, function in change.items()})
        dataset.DataSet("mine", changed, split, tuple("abcd"))


def test_images_that_are_sorted_by_class_are_refused(monkeypatch):
    monkeypatch.setattr(pipeline, "CALIBRATION_IMAGES", 8)
    train = split_of(32)
    ordered = replace(data_set(), train=replace(train, labels=np.sort(train.labels)))
    with pytest.raises(
        dataset.DatasetError, match=r"the first 8 training images, .* are all of one class; shuffle them"
    ):
        list(prune_and_retrain(tiny(), ordered, KEEPS, PLAN))
