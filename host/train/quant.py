"""Fake quantization with power-of-two scales, as layers that train like float and export as QONNX ``Quant`` nodes.

A tensor is replaced by the nearest multiple of its scale (half to even) within the integer range, and the gradient
passes straight through inside that range (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).  A scale
is a power of two, so dividing and multiplying by it is exact in float32: what the network computes between two
quantizers is integer arithmetic, plus one rounded float operation each for the multiply and the add of ``Affine``.

Weights:      signed 4 bits in [-7, 7], a scale per output channel, chosen anew at every training step until
              :func:`fix_weight_scales`.
Activations:  unsigned, a scale per tensor, chosen once by :func:`calibrate`.

Every layer also runs unquantized (:func:`set_quantized`): the float model is the same object.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QONNX_DOMAIN = "qonnx.custom_op.general"
QONNX_DOMAIN_VERSION = 1

WEIGHT_BITS = 4
WEIGHT_LIMIT = 7  # symmetric: -8 exists in 4 bits and stays unused
_CANDIDATE_EXPONENTS = 4  # powers of two below the one that covers the largest weight


class _Quantize(torch.autograd.Function):
    """clamp(round(x / scale), low, high) * scale."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, bits: int, low: int, high: int) -> Tensor:
        integers = torch.round(x / scale)
        ctx.save_for_backward((integers >= low) & (integers <= high))
        return integers.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None

    @staticmethod
    def symbolic(g, x, scale, bits: int, low: int, high: int):
        """QONNX Quant(x, scale, zero point, bits).  A symmetric low (-7) needs no narrow range: x is on the grid."""
        zero_point = g.op("Constant", value_t=torch.tensor(0.0))
        bit_width = g.op("Constant", value_t=torch.tensor(float(bits)))
        quantized = g.op(
            f"{QONNX_DOMAIN}::Quant", x, scale, zero_point, bit_width,
            rounding_mode_s="ROUND", signed_i=int(low < 0), narrow_i=0,
        )
        quantized.setType(x.type())
        return quantized


def quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight (O, ...) on its 4-bit grid; scale is (O, 1, ...)."""
    return _Quantize.apply(weight, scale, WEIGHT_BITS, -WEIGHT_LIMIT, WEIGHT_LIMIT)


@torch.no_grad()
def best_weight_scale(weight: Tensor) -> Tensor:
    """Per output channel, the power of two that quantizes the weight (O, ...) with the least squared error."""
    rows = weight.flatten(1)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(2.0**-20)
    top = torch.ceil(torch.log2(largest / WEIGHT_LIMIT))
    scales = torch.exp2(top - torch.arange(_CANDIDATE_EXPONENTS))[:, :, None]  # (O, candidate, 1)
    rounded = torch.round(rows[:, None] / scales).clamp_(-WEIGHT_LIMIT, WEIGHT_LIMIT) * scales
    errors = (rounded - rows[:, None]).square_().sum(2)
    chosen = scales[torch.arange(len(rows)), errors.argmin(1)]
    return chosen.view(-1, *[1] * (weight.dim() - 1))


class QuantConv2d(nn.Conv2d):
    """Convolution with 4-bit weights (O, I, kh, kw) and no bias."""

    weight_scale: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.register_buffer("weight_scale", torch.ones(out_channels, 1, 1, 1))
        self.quantized = False
        self.scale_fixed = False

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _layer_weight(self), None)


class QuantLinear(nn.Linear):
    """Fully connected layer with 4-bit weights (O, I) and a float bias, added after the exact sum of products."""

    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.register_buffer("weight_scale", torch.ones(out_features, 1))
        self.quantized = False
        self.scale_fixed = False

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _layer_weight(self)) + self.bias


def _layer_weight(layer: QuantConv2d | QuantLinear) -> Tensor:
    weight = layer.weight
    if not layer.quantized:
        return weight
    if layer.training and not layer.scale_fixed:
        layer.weight_scale.copy_(best_weight_scale(weight))
    return quantize_weight(weight, layer.weight_scale)


class ActQuant(nn.Module):
    """Unsigned activation quantizer of one power-of-two scale per tensor."""

    scale: Tensor

    def __init__(self, bits: int = 4, scale: float = 1.0):
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.quantized = False

    def forward(self, x: Tensor) -> Tensor:
        return _Quantize.apply(x, self.scale, self.bits, 0, 2**self.bits - 1) if self.quantized else x


class Affine(nn.Module):
    """x * m + b per channel of an NCHW tensor: what batch normalization is once training has ended.

    m and b are (1, C, 1, 1) and stay apart from the weights, so that the quantized weights keep their own scale.
    """

    m: Tensor
    b: Tensor

    def __init__(self, m: Tensor, b: Tensor):
        super().__init__()
        self.register_buffer("m", m.reshape(1, -1, 1, 1))
        self.register_buffer("b", b.reshape(1, -1, 1, 1))

    @classmethod
    @torch.no_grad()
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> Affine:
        """The affine map of a batch norm's running statistics, computed in float64, rounded once."""
        mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
        gain = norm.weight.double() / torch.sqrt(variance + norm.eps)
        gain[gain.abs() < 2.0**-20] = 2.0**-20  # a dead channel keeps an invertible map
        offset = norm.bias.double() - mean * gain
        return cls(gain.float(), offset.float())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.m + self.b


def set_quantized(network: nn.Module, quantized: bool) -> None:
    """Switch every quantizing layer of a network between its quantized and its float form."""
    for module in network.modules():
        if isinstance(module, (QuantConv2d, QuantLinear, ActQuant)):
            module.quantized = quantized


def fix_weight_scales(network: nn.Module) -> None:
    """Keep every weight scale as it is now: towards the end of training, a scale that doubles does only harm."""
    for module in network.modules():
        if isinstance(module, (QuantConv2d, QuantLinear)):
            module.scale_fixed = True


@torch.no_grad()
def estimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch norm by their means over the batches (N, C, H, W).

    Weights that oscillate around a rounding threshold leave running statistics behind that fit no network
    (Nagel et al. 2022, "Overcoming oscillations in quantization-aware training", arXiv:2203.11086).
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    network.train()
    for batch in batches:
        network(batch)
    network.eval()


@torch.no_grad()
def calibrate(network: nn.Module, inputs: Tensor, fixed: frozenset[ActQuant] = frozenset()) -> None:
    """Give each activation quantizer, but the fixed ones, the power-of-two scale of least squared error.

    The activations are those of the float network on the inputs (N, C, H, W).
    """
    def choose(module: ActQuant, arguments: tuple[Tensor]) -> None:
        positive = arguments[0].clamp_min(0)
        high = 2**module.bits - 1
        top = torch.ceil(torch.log2(positive.max().clamp_min(2.0**-20) / high))
        scales = torch.exp2(top - torch.arange(_CANDIDATE_EXPONENTS))
        errors = [(torch.round(positive / s).clamp_(max=high) * s - positive).square_().mean() for s in scales]
        module.scale.copy_(scales[torch.stack(errors).argmin()])

    set_quantized(network, False)
    network.eval()
    quantizers = [module for module in network.modules() if isinstance(module, ActQuant) and module not in fixed]
    handles = [module.register_forward_pre_hook(choose) for module in quantizers]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
