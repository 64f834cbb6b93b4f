"""Networks of a few channels and pictures of 8x8 pixels, for tests of the training code.

Random numbers come from SEED.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from brevitas.nn import QuantConv2d, QuantLinear
from helpers.random_pictures import CLASSES, SEED, SIZE, split_of
from torch import nn
from torch.nn import functional as F

from sentei.host.apps.evaluate import qonnx_logits
from sentei.host.frontend import importer as frontend
from sentei.host.network import reference
from sentei.host.train.export import export
from sentei.host.train.images import to_input
from sentei.host.train.kernel_size import hold_kernel_sizes
from sentei.host.train.loop import estimate_norms
from sentei.host.train.networks import BasicBlock, conv_norm
from sentei.host.train.pipeline import Plan
from sentei.host.train.prune import Pruner
from sentei.host.train.quantize import quantize
from sentei.host.train.quantizers import (
    ActivationQuantizer,
)

torch.set_num_threads(1)
GROUP = 4


def inputs_of(count: int = 24) -> torch.Tensor:
    return to_input(torch.from_numpy(split_of(count).images))


def is_power_of_two(value: float) -> bool:
    return math.frexp(value)[0] == 0.5


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


def quantized(teacher: nn.Module, count: int) -> tuple[nn.Module, Pruner]:
    """A network in 4 bits, its scales chosen by so many pictures, that is to be pruned to half; and its pruner."""
    student = quantize(teacher, inputs_of(count))
    pruner = Pruner(student, GROUP)
    hold_kernel_sizes(student)
    pruner.begin(Fraction(1, 2))
    return student, pruner


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
