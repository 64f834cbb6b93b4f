"""Networks to train, in plain PyTorch: residual networks for small images, the demo's, and the user's own.

Nothing here knows of quantization or pruning: :func:`~sentei.host.train.quantize.quantize` takes these and any
``nn.Module`` like them.  Images come as pixel / 256 in [0, 1).
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sentei.overlay.errors import SenteiError


class NetworkError(SenteiError, ValueError):
    """A user's own network cannot be made."""


def conv_norm(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, padding: int | None = None):
    """Convolution and batch norm: (N, I, H, W) -> (N, O, H', W')."""
    padding = kernel // 2 if padding is None else padding
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = conv_norm(in_channels, out_channels, stride=stride)
        self.relu1 = nn.ReLU()
        self.conv2 = conv_norm(out_channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv_norm(in_channels, out_channels, kernel=1, stride=stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """He et al. 2016, "Deep residual learning for image recognition" (arXiv:1512.03385), section 4.2.

    Three stages of `blocks` blocks with 16, 32 and 64 channels, a pooled classifier: images (N, C, H, W) to logits.
    """

    def __init__(self, blocks: int, in_channels: int = 3, classes: int = 10):
        super().__init__()
        self.stem = conv_norm(in_channels, 16)
        self.relu = nn.ReLU()
        stages, width = [], 16
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(blocks):
                stages.append(BasicBlock(width, channels, 2 if stage and not block else 1))
                width = channels
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.blocks(self.relu(self.stem(x)))).flatten(1))


class FashionNet(nn.Module):
    """The demo's network for 28x28 pictures: five 3x3 convolutions, one shortcut, a pooled classifier.

    ::

        image -> conv1 /2 -> conv2 -> conv3 /2 -+-> conv4 -> conv5 -(+)-> ReLU -> pool -> fc -> logits
                 32x16x16    64x16x16  64x8x8   |    64x8x8          |           64
                                                +--------------------+
    """

    def __init__(self, in_channels: int = 1, classes: int = 10, channels: int = 64):
        super().__init__()
        self.conv1 = nn.Sequential(conv_norm(in_channels, channels // 2, stride=2, padding=3), nn.ReLU())
        self.conv2 = nn.Sequential(conv_norm(channels // 2, channels), nn.ReLU())
        self.conv3 = nn.Sequential(conv_norm(channels, channels, stride=2), nn.ReLU())
        self.block = BasicBlock(channels, channels, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.block(self.conv3(self.conv2(self.conv1(x))))).flatten(1))


def resnet20(in_channels: int, classes: int) -> nn.Module:
    return ResNet(3, in_channels, classes)


def resnet8(in_channels: int, classes: int) -> nn.Module:
    """The shape of MLPerf Tiny's image classification benchmark."""
    return ResNet(1, in_channels, classes)


def fashion(in_channels: int, classes: int) -> nn.Module:
    return FashionNet(in_channels, classes)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"resnet20": resnet20, "resnet8": resnet8, "fashion": fashion}


def own_network(place: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of a class or function in a file, "FILE.py:NAME".

    It is called with `in_channels`, and with `classes` or `num_classes`, as far as it has such parameters. NetworkError
    if that does not make a network from images (N, *shape) to logits (N, classes).
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise NetworkError(f"--network must be FILE.py:NAME, a file and a class or function in it, not {place!r}")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))  # as for a file that Python runs
    given = {"in_channels": shape[0], "classes": classes, "num_classes": classes}
    try:
        specification.loader.exec_module(module)
        make = getattr(module, name)
        parameters = inspect.signature(make).parameters
        network = make(**{name: value for name, value in given.items() if name in parameters})
        network.eval()
        with torch.no_grad():
            logits = network(torch.zeros(2, *shape))
    except Exception as error:  # a user's code may raise anything
        raise NetworkError(f"{place} makes no network for images {shape}: {type(error).__name__}: {error}") from error
    if tuple(logits.shape) != (2, classes):
        raise NetworkError(
            f"{place} must make {classes} numbers of an image, one for each class, not {tuple(logits.shape[1:])}; a "
            "parameter `classes` or `num_classes` says how many there are"
        )
    return network.train()
