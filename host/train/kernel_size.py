"""Kernels keep the size that fits the grid of their layer; the batch norm behind undoes what that does to the sums."""

from __future__ import annotations

import math
from typing import cast

import torch
from brevitas.nn import QuantConv2d
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from sentei.host.train.quantizers import best_size
from sentei.host.train.traced import module_of, norm_behind


class KernelSize(nn.Module):
    """Parametrization of a convolution's weight (O, I, kh, kw): each output channel's kernel, at a root mean square.

    Zeros do not count, so where kernels are pruned, what they keep has that size.  The batch norm behind the
    convolution undoes it (weight normalization: Salimans and Kingma 2016, arXiv:1602.07868).
    """

    def __init__(self, size: float):
        super().__init__()
        self.size = size

    def forward(self, weight: Tensor) -> Tensor:
        kernel = (1, 2, 3)
        energy = weight.square().sum(kernel, keepdim=True)
        mean = energy / weight.ne(0).sum(kernel, keepdim=True).clamp_min(1)
        return weight * (self.size * torch.where(energy > 0, mean, 1.0).rsqrt())


def hold_kernel_sizes(network: fx.GraphModule) -> None:
    """Have the kernels in front of batch norms fit their grids, however training and pruning change them.

    For a quantized network, with its masks if it has any; :func:`remove_parametrizations` ends it.  The fewer elements
    a kernel keeps, the larger they grow in training: left alone, nearly all weights of a deeply pruned network end up
    beyond the ends of their grids.
    """
    for node in network.graph.nodes:
        layer = module_of(node)
        if isinstance(layer, QuantConv2d) and norm_behind(node) is not None:
            grid = layer.weight_quant
            size = best_size(int(grid.bit_width())) * float(grid.scale())
            parametrize.register_parametrization(layer, "weight", KernelSize(size))


@torch.no_grad()
def remove_parametrizations(network: nn.Module) -> None:
    """Write masks and sizes into the weights, and leave plain layers behind.

    Copies of the network keep theirs: torch's remove_parametrizations would take them away from the class that a layer
    shares with its copies.
    """
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            weight = nn.Parameter(cast(Tensor, module.weight))
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            module.weight = weight


def fit_kernels_to_grid(weight: Tensor, norm: nn.BatchNorm2d, bits: int) -> float:
    """Multiply the kernel of each output channel so that it fits its layer's grid, and have the batch norm undo it.

    Returns the scale of the layer's grid: the power of two nearest to the median of what the channels want, so that
    the weights stay about as large as they were.
    """
    scales = weight.flatten(1).square().mean(dim=1).sqrt().clamp_min(2.0**-20) / best_size(bits)
    scale = 2.0 ** round(math.log2(scales.median().item()))
    factors = scale / scales
    weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    if norm.affine:  # the norm's epsilon does not grow with the variance
        grown = variance * factors.square() + norm.eps
        norm.weight.mul_((grown / (variance + norm.eps)).sqrt() / factors)
    mean.mul_(factors)
    variance.mul_(factors.square())
    return scale
