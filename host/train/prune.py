"""Coordinate pruning: output channels that share a weight vector lose the same kernel elements, while training goes on.

Output channels are taken in blocks of ``group`` consecutive ones.  A *slot* is (input channel, ky, kx); the channels
of a block keep the same slots, and every block of a layer keeps the same number, so a slot that is gone costs
no cycle and all column groups of the array finish together::

                     input channel 0    input channel 1
                     . # .  . . .       weight (O, I, kh, kw) -> slots (O / group, I, kh, kw)
    block 0          # . .  . # .       kept slots '#': as many in each block, wherever they matter most
    block 1          . . .  . # #
                     . . .  . # .

The number of kept slots falls along the cubic schedule of Zhu and Gupta, "To prune, or not to prune" (2017,
arXiv:1710.01878): fast while there is redundancy, slowly towards the end.  Masks are chosen anew at each update, so a
slot may come back until the schedule has ended; then they are frozen.

Works on any ``nn.Conv2d`` through ``torch.nn.utils.parametrize``: ``conv.weight`` reads as the masked weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sentei.overlay.errors import SenteiError


class PruneError(SenteiError, ValueError):
    """A layer cannot be pruned as asked."""


def slot_importance(weight: Tensor, group: int) -> Tensor:
    """The L2 norm of each slot's weights over a block: (O, I, kh, kw) -> (O / group, I, kh, kw).

    Each output channel counts relative to the norm of its own kernel, because the batch norm behind the convolution
    makes the absolute size of a channel's weights meaningless.
    """
    relative = weight / weight.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return relative.unflatten(0, (-1, group)).norm(dim=1)


def largest_slots(importance: Tensor, count: int) -> Tensor:
    """A boolean mask of the ``count`` most important slots of each block, shaped like importance."""
    rows = importance.flatten(1)
    kept = torch.zeros_like(rows, dtype=torch.bool)
    return kept.scatter_(1, rows.topk(count, dim=1).indices, True).view_as(importance)


def cubic_density(progress: float, final: float) -> float:
    """The density at ``progress`` in [0, 1] of the schedule, from 1 down to ``final`` (Zhu and Gupta 2017, eq. 1)."""
    remaining = 1.0 - min(max(progress, 0.0), 1.0)
    return final + (1.0 - final) * remaining**3


class SlotMask(nn.Module):
    """Parametrization of a convolution's weight: zero outside the kept slots, which change until frozen."""

    kept: Tensor
    frozen: Tensor

    def __init__(self, weight: Tensor, group: int):
        super().__init__()
        self.group = group
        blocks = weight.shape[0] // group
        self.register_buffer("kept", torch.ones(blocks, *weight.shape[1:], dtype=torch.bool))
        self.register_buffer("frozen", torch.tensor(False))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept.repeat_interleave(self.group, dim=0)


class SlotPruner:
    """Prunes convolutions from dense to ``keep`` of their slots.

    Usage: call :meth:`update` with the schedule's progress as training goes on, and :meth:`finish` after training.
    """

    def __init__(self, layers: Mapping[str, nn.Conv2d], keep: Fraction, group: int = 8):
        if not 0 < keep <= 1:
            raise PruneError(f"keep must be in (0, 1], not {keep}")
        for name, layer in layers.items():
            if layer.out_channels % group:
                raise PruneError(
                    f"{name}: output channels must be a multiple of group {group}, not {layer.out_channels}; "
                    "leave the layer out or choose another group"
                )
            if layer.groups != 1:
                raise PruneError(f"{name}: groups must be 1, not {layer.groups}; leave the layer out")
        self.layers = dict(layers)
        self.keep = keep
        self.weights = {name: layer.weight for name, layer in layers.items()}
        self.masks = {name: SlotMask(layer.weight, group) for name, layer in layers.items()}
        for name, layer in layers.items():
            parametrize.register_parametrization(layer, "weight", self.masks[name])

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Choose the masks for ``progress`` in [0, 1] of the schedule; at 1 they are final, later calls do nothing."""
        final = progress >= 1.0
        density = self.keep if final else cubic_density(progress, float(self.keep))
        for name, mask in self.masks.items():
            if mask.frozen:
                continue
            importance = slot_importance(self.weights[name], mask.group)
            mask.kept.copy_(largest_slots(importance, max(1, round(density * importance[0].numel()))))
            mask.frozen.fill_(final)

    def density(self) -> dict[str, float]:
        """The fraction of slots that each layer keeps now."""
        return {name: int(mask.kept.sum()) / mask.kept.numel() for name, mask in self.masks.items()}

    def finish(self) -> None:
        """Write the masks into the weights and leave plain convolutions behind."""
        self.update(1.0)
        for layer in self.layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
