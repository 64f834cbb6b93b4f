"""Coordinate pruning: output channels that share a weight vector lose the same kernel elements, while training goes on.

Output channels are taken in blocks of ``group`` consecutive ones.  A *slot* is (input channel, ky, kx); the channels
of a block keep the same slots, and every block of a layer keeps the same number, so a slot that is gone costs
no cycle and all column groups of the array finish together::

                     input channel 0    input channel 1
                     . # .  . . .       weight (O, I, kh, kw) -> slots (O / group, I, kh, kw)
    block 0          # . .  . # .       kept slots '#': as many in each block, wherever they matter most
    block 1          . . .  . # #
                     . . .  . # .

A slot matters as much as the L2 norm of its weights, each channel's relative to the norm of its own kernel (magnitude
pruning: Han et al. 2015, arXiv:1506.02626; by groups: Wen et al. 2016, arXiv:1608.03665).  The number of kept slots
falls along the cubic schedule of Zhu and Gupta (2017, "To prune, or not to prune", arXiv:1710.01878): fast while there
is redundancy, slowly towards the end.  Masks are chosen anew at each update, and weights outside the mask get no
gradient but stay, so a slot may come back until the schedule has ended.

Works on any ``nn.Conv2d`` through ``torch.nn.utils.parametrize``: ``conv.weight`` reads as the masked weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sentei.overlay.errors import SenteiError


class PruneError(SenteiError, ValueError):
    """A network cannot be pruned as asked."""


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


def cubic_density(progress: float, start: float, final: float) -> float:
    """The density at ``progress`` in [0, 1] of the schedule, from start down to final (Zhu and Gupta 2017, eq. 1)."""
    remaining = 1.0 - min(max(progress, 0.0), 1.0)
    return final + (start - final) * remaining**3


class SlotMask(nn.Module):
    """Parametrization of a convolution's weight (O, I, kh, kw): zero outside the kept slots.

    `density` and `is_final` say of the buffers what training asks for at each step, without waiting for a GPU.
    """

    kept: Tensor
    final: Tensor

    def __init__(self, weight: Tensor, group: int):
        super().__init__()
        self.group = group
        self.register_buffer("final", torch.tensor(True, device=weight.device))
        shape = (weight.shape[0] // group, *weight.shape[1:])
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool, device=weight.device))
        self.density, self.is_final = 1.0, True

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept.repeat_interleave(self.group, dim=0)

    def set_final(self, final: bool) -> None:
        self.final.fill_(final)
        self.is_final = final

    def keep_what_is_there(self, weight: Tensor) -> None:
        """Keep the slots whose weights (O, I, kh, kw) are not all zero."""
        self.kept.copy_(weight.detach().unflatten(0, (-1, self.group)).ne(0).any(dim=1))
        self.density = int(self.kept.sum()) / self.kept.numel()

    def keep_largest(self, importance: Tensor, count: int) -> None:
        """Keep the `count` most important slots of each row of `importance`, (rows, ...)."""
        self.kept.copy_(largest_slots(importance, count).view_as(self.kept))
        self.density = count * len(importance) / self.kept.numel()

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self.density = int(self.kept.sum()) / self.kept.numel()
        self.is_final = bool(self.final)


class Pruner:
    """Prunes the convolutions of a network, from whatever they keep to a density of the whole network.

    The density counts the kernel elements of all convolutions, which lose them evenly, except that `factors` names
    layers that keep so many times the density of the others, and `floors` densities below which layers do not fall:
    mappings from name patterns (as for files).  The first convolution keeps all unless floors or factors name it, and
    every one keeps all whose channels do not divide into blocks; fewer channels than a block has are a block.
    With `aligned=False` each weight is pruned by itself, anywhere in its layer: for comparison, as nearly no slot
    becomes empty.

    Usage: :meth:`begin` with the density to reach, :meth:`update` with the schedule's progress as training goes on;
    :func:`sentei.host.train.quantize.remove_parametrizations` on what is exported.
    """

    def __init__(
        self,
        network: nn.Module,
        group: int,
        floors: Mapping[str, Fraction] | None = None,
        aligned: bool = True,
        factors: Mapping[str, Fraction] | None = None,
    ):
        self.aligned = aligned
        convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
        if not convolutions:
            raise PruneError("the network has no convolution: nothing to prune")
        whole = {
            name
            for name, layer in convolutions.items()
            if layer.groups != 1 or layer.out_channels % min(group, layer.out_channels)
        }

        def matching(pattern: str, pruned: bool) -> list[str]:
            """Names of layers. PruneError if there is none, or one that cannot be pruned."""
            names = [name for name in convolutions if fnmatch(name, pattern)]
            if not names:
                raise PruneError(f"layer {pattern!r}: the name must match one of {', '.join(convolutions)}")
            if pruned and whole.intersection(names):
                raise PruneError(
                    f"{', '.join(sorted(whole.intersection(names)))}: a layer whose output channels do "
                    f"not divide into blocks of {group}, or that has groups, keeps all; leave it out"
                )
            return names

        self.floors: dict[str, float] = {}
        for pattern, density in (floors or {}).items():
            if not 0 <= density <= 1:
                raise PruneError(f"layer {pattern!r}: the density must lie between 0 and 1, not be {density}")
            self.floors.update(dict.fromkeys(matching(pattern, density < 1), float(density)))
        self.factors: dict[str, float] = {}
        for pattern, factor in (factors or {}).items():
            if factor <= 0:
                raise PruneError(f"layer {pattern!r}: the factor must be above 0, not {factor}")
            self.factors.update(dict.fromkeys(matching(pattern, True), float(factor)))
        first = next(iter(convolutions))
        if first not in {*self.floors, *self.factors}:
            self.floors[first] = 1.0
        self.floors.update(dict.fromkeys(whole, 1.0))
        self.layers = {name: layer for name, layer in convolutions.items() if self.floors.get(name) != 1.0}
        self.elements = {name: layer.weight.numel() for name, layer in convolutions.items()}
        self.weights = {name: layer.weight for name, layer in self.layers.items()}
        self.masks = {
            name: SlotMask(layer.weight, min(group, layer.out_channels) if aligned else 1)
            for name, layer in self.layers.items()
        }
        for name, layer in self.layers.items():
            self.masks[name].keep_what_is_there(layer.weight)
            parametrize.register_parametrization(layer, "weight", self.masks[name])
        self.start = self.target = self.densities()

    def plan(self, keep: Fraction | float) -> dict[str, float]:
        """The density of each pruned layer at which the network's is `keep`. PruneError if there is none."""
        total = sum(self.elements.values())

        def of_layer(name: str, density: float) -> float:
            return max(self.floors.get(name, 0.0), min(1.0, self.factors.get(name, 1.0) * density))

        def of_network(density: float) -> float:
            return sum(of_layer(name, density) * count for name, count in self.elements.items()) / total

        if not of_network(0.0) < keep < 1 and keep != 1:
            raise PruneError(
                f"the network's density must be above {of_network(0.0):.4f}, what the layers that are not "
                f"pruned as far hold, and at most 1, not {keep}"
            )
        if keep == 1:
            return dict.fromkeys(self.layers, 1.0)
        low, high = 0.0, 1.0 / min([1.0, *self.factors.values()])
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if of_network(middle) < keep else (low, middle)
        return {name: of_layer(name, high) for name in self.layers}

    def begin(self, keep: Fraction | float) -> None:
        """Set out for another density of the network."""
        self.target = self.plan(keep)
        self.start = self.densities()
        for mask in self.masks.values():
            mask.set_final(False)

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Choose the masks for ``progress`` in [0, 1] of the schedule; at 1 they are final, later calls do nothing."""
        for name, mask in self.masks.items():
            if mask.is_final:
                continue
            density = cubic_density(progress, self.start[name], self.target[name])
            importance = slot_importance(self.weights[name], mask.group)
            if not self.aligned:
                importance = importance[None]
            count = max(1, round(density * importance[0].numel()))
            mask.keep_largest(importance, count)
            mask.set_final(progress >= 1.0)

    def densities(self) -> dict[str, float]:
        """The fraction of kernel elements that each pruned layer keeps now."""
        return {name: mask.density for name, mask in self.masks.items()}

    def density(self) -> float:
        """The fraction of kernel elements that all convolutions together keep now."""
        kept = dict.fromkeys(self.elements, 1.0) | self.densities()
        return sum(kept[name] * count for name, count in self.elements.items()) / sum(self.elements.values())
