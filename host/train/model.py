"""The demo network for Fashion-MNIST: five 3x3 convolutions, one residual, a pooled classifier.

::

    image 1x28x28 -> conv1 /2 -> conv2 -> conv3 /2 -+-> conv4 -> conv5 -(+)-> ReLU -> pool -> fc -> 10 logits
                     32x16x16    64x16x16  64x8x8   |    64x8x8          |           64
                                                    +--------------------+

Images are pixel / 256, so that the 8-bit input is exact.  Every activation behind a ReLU is an unsigned 4-bit tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from sentei.host.train.quant import ActQuant, QuantConv2d, QuantLinear


class ConvBlock(nn.Module):
    """Convolution, batch norm, an optional residual, ReLU, quantizer: (N, I, H, W) -> (N, O, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1):
        super().__init__()
        self.conv = QuantConv2d(in_channels, out_channels, 3, stride, padding)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.act = ActQuant()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = self.norm(self.conv(x))
        if residual is not None:
            x = x + residual
        return self.act(F.relu(x))


@dataclass(frozen=True)
class ResidualAdd:
    """A block that adds a residual, the quantizer of the block's input and that of the residual."""

    block: ConvBlock
    input: ActQuant
    residual: ActQuant


class FashionNet(nn.Module):
    """Logits (N, 10) of images (N, 1, 28, 28) in [0, 1)."""

    def __init__(self, channels: int = 64, classes: int = 10):
        super().__init__()
        self.input = ActQuant(bits=8, scale=2.0**-8)
        self.conv1 = ConvBlock(1, channels // 2, stride=2, padding=3)
        self.conv2 = ConvBlock(channels // 2, channels)
        self.conv3 = ConvBlock(channels, channels, stride=2)
        self.conv4 = ConvBlock(channels, channels)
        self.conv5 = ConvBlock(channels, channels)
        self.pool = ActQuant()
        self.fc = QuantLinear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(self.input(x))))
        x = self.conv5(self.conv4(x), residual=x)
        return self.fc(self.pool(F.adaptive_avg_pool2d(x, 1)).flatten(1))

    def prunable(self) -> dict[str, QuantConv2d]:
        """The convolutions worth pruning: all but the first, which has one input channel."""
        return {name: getattr(self, name).conv for name in ("conv2", "conv3", "conv4", "conv5")}

    def residual_adds(self) -> list[ResidualAdd]:
        return [ResidualAdd(self.conv5, input=self.conv4.act, residual=self.conv3.act)]
