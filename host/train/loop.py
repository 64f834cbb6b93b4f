"""A short, repeatable training loop: SGD, one learning-rate cycle, a checkpoint after each epoch.

All randomness of an epoch comes from a generator seeded by (seed, epoch), so a resumed run continues as if it had
never stopped.  Forward and backward run under bfloat16 autocast: quantized weights and activations have 4 bits and are
exact in its 8, and it halves the time of an epoch.  Evaluation is in float32.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sentei.overlay.errors import SenteiError

PIXEL_SCALE = 2.0**-8
_MOMENTUM = 0.9
_WARMUP = 0.05


class CheckpointError(SenteiError, ValueError):
    """A checkpoint belongs to another run."""


@dataclass(frozen=True)
class Recipe:
    """What one stage of training does."""

    epochs: int
    learning_rate: float
    batch: int = 256
    weight_decay: float = 5e-4
    distillation: float = 0.0  # share of the teacher's soft targets in the loss
    temperature: float = 3.0
    max_shift: int = 2  # pixels by which an image is moved, at most


@dataclass(frozen=True)
class Images:
    """Images (N, 28, 28) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def to_input(images: Tensor) -> Tensor:
    """uint8 (N, H, W) -> the network's float32 (N, 1, H, W), pixel / 256."""
    return images.unsqueeze(1).float() * PIXEL_SCALE


def augment(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Each image (N, H, W) moved by up to max_shift pixels and mirrored by chance."""
    count, height, width = images.shape
    padded = F.pad(images, [max_shift] * 4)
    corner = torch.randint(0, 2 * max_shift + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand((count, 1), generator=generator) < 0.5
    columns = torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
    rows = corner[0] + torch.arange(height)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], (corner[1] + columns)[:, None, :]]


@torch.no_grad()
def accuracy(network: nn.Module, data: Images, batch: int = 500) -> float:
    """The share of images classified as labelled."""
    network.eval()
    right = 0
    for images, labels in zip(data.images.split(batch), data.labels.split(batch), strict=True):
        right += (network(to_input(images)).argmax(1) == labels).sum().item()
    return right / len(data)


def fit(
    network: nn.Module,
    train: Images,
    test: Images,
    recipe: Recipe,
    *,
    seed: int,
    name: str,
    checkpoint: Path | None = None,
    settings: Mapping[str, object] = MappingProxyType({}),
    resume: bool = False,
    teacher: nn.Module | None = None,
    before_step: Callable[[float], None] = lambda progress: None,
) -> float:
    """Train in place and return the seconds it took, those before a resume included.

    ``before_step`` is called with the progress in [0, 1] before each step (to prune).  With ``resume``, training
    continues after the last epoch in ``checkpoint`` if that file exists and was written with the same ``settings``.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() > 1]
    plain = [p for p in trained if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate, momentum=_MOMENTUM, nesterov=True,
    )
    done, seconds = 0, 0.0
    if resume and checkpoint and checkpoint.exists():
        state = torch.load(checkpoint)
        if state["settings"] != dict(settings):
            raise CheckpointError(f"{checkpoint} must come from a run with {dict(settings)}, not {state['settings']}; "
                                  "repeat those options, or start anew without --resume")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done, seconds = state["epochs"], state["seconds"]
    steps = len(train) // recipe.batch
    for epoch in range(done, recipe.epochs):
        start = time.monotonic()
        generator = torch.Generator().manual_seed((seed << 16) + epoch)
        order = torch.randperm(len(train), generator=generator)
        network.train()
        total = 0.0
        for step in range(steps):
            progress = (epoch * steps + step) / (recipe.epochs * steps)
            before_step(progress)
            for parameters in optimizer.param_groups:
                parameters["lr"] = recipe.learning_rate * _one_cycle(progress)
            chosen = order[step * recipe.batch:(step + 1) * recipe.batch]
            inputs = to_input(augment(train.images[chosen], recipe.max_shift, generator))
            loss = _loss(network, teacher, inputs, train.labels[chosen], recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        reached = accuracy(network, test)
        seconds += time.monotonic() - start
        print(f"{name}: epoch {epoch + 1}/{recipe.epochs}  loss {total / steps:.4f}  "
              f"test accuracy {reached:.4f}  {seconds:.0f} s", flush=True)
        if checkpoint:
            _save({"network": network.state_dict(), "optimizer": optimizer.state_dict(),
                   "settings": dict(settings), "epochs": epoch + 1, "seconds": seconds}, checkpoint)
    return seconds


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


def _one_cycle(progress: float) -> float:
    """Learning rate relative to its peak: a linear warm-up, then half a cosine."""
    if progress < _WARMUP:
        return progress / _WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP))


def _loss(network: nn.Module, teacher: nn.Module | None, inputs: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Cross entropy, mixed with the teacher's softened outputs (Hinton et al. 2015, arXiv:1503.02531)."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(inputs).float()
    loss = F.cross_entropy(logits, labels)
    if teacher is None or not recipe.distillation:
        return loss
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        targets = F.log_softmax(teacher(inputs).float() / recipe.temperature, dim=1)
    softened = F.log_softmax(logits / recipe.temperature, dim=1)
    distance = F.kl_div(softened, targets, reduction="batchmean", log_target=True) * recipe.temperature**2
    return (1 - recipe.distillation) * loss + recipe.distillation * distance


def _save(state: dict, path: Path) -> None:
    """Write a checkpoint so that a crash leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)
