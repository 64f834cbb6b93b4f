"""The demo network for Fashion-MNIST: five 3x3 convolutions, one residual, a pooled classifier.

::

    image 1x28x28 -> conv1 /2 -> conv2 -> conv3 /2 -+-> conv4 -> conv5 -(+)-> ReLU -> pool -> fc -> 10 logits
                     32x16x16    64x16x16  64x8x8   |    64x8x8          |           64
                                                    +--------------------+

Images are pixel / 256, so that the 8-bit input is exact.  Every activation behind a ReLU is an unsigned 4-bit tensor.
The float network (``quantized=False``) has the same layers without quantizers, so its weights load into the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from torch import Tensor, nn
from torch.nn import functional as F

from sentei.host.train.quant import Int4Weight, Uint4Activation, Uint8Pixel


class ConvBlock(nn.Module):
    """Convolution, batch norm, an optional residual, ReLU with quantizer: (N, I, H, W) -> (N, O, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1, quantized: bool = True):
        super().__init__()
        self.conv = QuantConv2d(in_channels, out_channels, 3, stride=stride, padding=padding, bias=False,
                                weight_quant=Int4Weight if quantized else None)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.act = QuantReLU(act_quant=Uint4Activation if quantized else None)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = self.norm(self.conv(x))
        return self.act(x if residual is None else x + residual)


@dataclass(frozen=True)
class ResidualAdd:
    """A block that adds a residual, the quantizer of the block's input and that of the residual."""

    block: ConvBlock
    input: QuantReLU
    residual: QuantReLU


class FashionNet(nn.Module):
    """Logits (N, 10) of images (N, 1, 28, 28) in [0, 1)."""

    def __init__(self, channels: int = 64, classes: int = 10, quantized: bool = True):
        super().__init__()
        self.input = QuantIdentity(act_quant=Uint8Pixel if quantized else None)
        self.conv1 = ConvBlock(1, channels // 2, stride=2, padding=3, quantized=quantized)
        self.conv2 = ConvBlock(channels // 2, channels, quantized=quantized)
        self.conv3 = ConvBlock(channels, channels, stride=2, quantized=quantized)
        self.conv4 = ConvBlock(channels, channels, quantized=quantized)
        self.conv5 = ConvBlock(channels, channels, quantized=quantized)
        self.pool = QuantIdentity(act_quant=Uint4Activation if quantized else None)
        self.fc = QuantLinear(channels, classes, bias=False, weight_quant=Int4Weight if quantized else None)
        self.bias = nn.Parameter(torch.zeros(classes))  # apart from fc: added after the exact sum of products

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(self.input(x))))
        x = self.conv5(self.conv4(x), residual=x)
        return self.fc(self.pool(F.adaptive_avg_pool2d(x, 1)).flatten(1)) + self.bias

    def prunable(self) -> dict[str, QuantConv2d]:
        """The convolutions worth pruning: all but the first, which has one input channel."""
        return {name: getattr(self, name).conv for name in ("conv2", "conv3", "conv4", "conv5")}

    def residual_adds(self) -> list[ResidualAdd]:
        return [ResidualAdd(self.conv5, input=self.conv4.act, residual=self.conv3.act)]
