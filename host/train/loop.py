"""The training loop: SGD, one learning-rate cycle, a checkpoint after each epoch.

All randomness of an epoch comes from generators seeded by (seed, epoch), so on a CPU, with as many threads, a resumed
run continues bit for bit as if it had never stopped; a GPU adds in whatever order it likes.  Forward and backward run
under bfloat16 autocast where the machine computes in it: quantized weights and activations have at most 8 significant
bits and are exact in it.  Evaluation is in float32.
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sentei.host.datasets.data import Split
from sentei.overlay.errors import SenteiError

PIXEL_SCALE = 2.0**-8
OTHER_RUN = "repeat that run's options, name another folder (--work), or begin anew (--restart)"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MOMENTUM = 0.9
_WARMUP = 0.05


class TrainingError(SenteiError):
    """Training cannot go on."""


class CheckpointError(SenteiError, ValueError):
    """A checkpoint cannot be written, or belongs to another run."""


@dataclass(frozen=True)
class Recipe:
    """What one stage of training does."""

    epochs: int
    learning_rate: float
    batch: int = 256
    weight_decay: float = 5e-4
    distillation: float = 0.0  # share of the teacher's soft targets in the loss
    temperature: float = 3.0
    max_shift: int = 4  # pixels by which an image is moved, at most
    mirror: bool = True  # half of the images are mirrored


@dataclass(frozen=True)
class Moment:
    """Where training stands; what :func:`fit` tells its caller after each step.

    Where it takes up a checkpoint it tells so first: `step` is 0, `epoch` the number of epochs that are done.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float  # mean of the epoch so far
    accuracy: float | None  # after the last epoch
    density: float = 1.0  # kernel elements kept
    ends_epoch: bool = False  # `accuracy` is this epoch's


def ignore(moment: Moment) -> None:
    """For callers that do not want to be told."""


class Images:
    """Images (N, C, H, W) uint8 and labels (N,) int64 on a device."""

    def __init__(self, split: Split, device: torch.device | str = "cpu"):
        self.images, self.labels = (
            torch.from_numpy(np.require(array, requirements="W")).to(device) for array in (split.images, split.labels)
        )

    def __len__(self) -> int:
        return len(self.labels)


def to_input(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> the network's float32, pixel / 256."""
    return (images.float() * PIXEL_SCALE).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, max_shift: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """Each image (N, C, H, W) moved by up to max_shift pixels, and mirrored by chance."""
    count, channels, height, width = images.shape
    padded = F.pad(images, [max_shift] * 4)
    corner = torch.randint(0, 2 * max_shift + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand((count, 1), generator=generator) < 0.5 * mirror
    columns = corner[1] + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
    rows = corner[0] + torch.arange(height)
    columns, rows = columns.to(images.device), rows.to(images.device)
    sample = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def best_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


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
    stage: str,
    checkpoint: Path | None = None,
    settings: Mapping[str, object] = MappingProxyType({}),
    resume: bool = False,
    teacher: nn.Module | None = None,
    before_step: Callable[[float], None] = lambda progress: None,
    watch: Callable[[Moment], None] = ignore,
) -> float:
    """Train in place and return the seconds it took, those before a resume included.

    ``before_step`` is called with the progress in [0, 1] before each step (to prune), ``watch`` after it.  With
    ``resume``, training continues after the last epoch in ``checkpoint`` if that file exists and was written with the
    same ``settings``.  TrainingError if the loss is no finite number, CheckpointError if the checkpoint cannot be
    written or belongs to another run; the last checkpoint stays as it was.
    """
    _keep_freed_memory()
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() > 1]
    plain = [p for p in trained if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        momentum=_MOMENTUM,
        nesterov=True,
    )
    settings = identity(settings, seed, stage, recipe)
    steps = max(1, len(train) // recipe.batch)
    done, seconds, reached = 0, 0.0, None
    if resume and checkpoint and checkpoint.exists():
        state = load_checkpoint(checkpoint, device_of(network))
        check_settings(checkpoint, state, settings)
        try:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint} must be of the same network: {first_line(error)}; {OTHER_RUN}"
            ) from error
        done, seconds, reached = state["epochs"], state["seconds"], state["accuracy"]
        watch(Moment(stage, done, recipe.epochs, 0, steps, math.nan, reached))

    def remedy(epochs: int) -> str:
        return f"lower the learning rate ({recipe.learning_rate})" + (
            f"; {checkpoint} holds {epochs} epochs" if checkpoint else ""
        )

    for epoch in range(done, recipe.epochs):
        start = time.monotonic()
        torch.manual_seed((seed << 16) + epoch)
        generator = torch.Generator().manual_seed((seed << 16) + epoch)
        order = torch.randperm(len(train), generator=generator)
        network.train()
        total = 0.0
        for step in range(steps):
            progress = (epoch * steps + step) / (recipe.epochs * steps)
            before_step(progress)
            for parameters in optimizer.param_groups:
                parameters["lr"] = recipe.learning_rate * one_cycle(progress)
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch].to(train.images.device)
            inputs = to_input(augment(train.images[chosen], recipe.max_shift, recipe.mirror, generator))
            loss = _loss(network, teacher, inputs, train.labels[chosen], recipe)
            if not math.isfinite(value := loss.item()):
                raise TrainingError(
                    f"{stage}: the loss is {value} in epoch {epoch + 1}, step {step + 1}; {remedy(epoch)}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += value
            watch(Moment(stage, epoch, recipe.epochs, step + 1, steps, total / (step + 1), reached))
        if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
            raise TrainingError(f"{stage}: weights are no finite numbers after epoch {epoch + 1}; {remedy(epoch)}")
        reached = accuracy(network, test)
        watch(Moment(stage, epoch, recipe.epochs, steps, steps, total / steps, reached, ends_epoch=True))
        seconds += time.monotonic() - start
        if checkpoint:
            save_checkpoint(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "settings": settings,
                    "epochs": epoch + 1,
                    "seconds": seconds,
                    "accuracy": reached,
                },
                checkpoint,
            )
    return seconds


def identity(settings: Mapping[str, object], seed: int, stage: str, recipe: Recipe) -> dict[str, object]:
    """What a checkpoint says of the training that it belongs to."""
    return {**settings, "seed": seed, "stage": stage, **vars(recipe)}


def check_settings(path: Path, state: Mapping, settings: Mapping[str, object], unknown: str = "") -> None:
    """CheckpointError, with what differs, if the checkpoint at `path` is not of the training with these settings.

    The setting called `unknown` may be anything.
    """
    found = state.get("settings")
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} is no checkpoint of this program: it does not say of which run it is")
    different = [
        f"{name} is {found.get(name)!r} there and {settings.get(name)!r} here"
        for name in sorted({*found, *settings} - {unknown})
        if found.get(name) != settings.get(name)
    ]
    if different:
        raise CheckpointError(f"{path} is of another run: {'; '.join(different)}. {OTHER_RUN.capitalize()}")


def _keep_freed_memory() -> None:
    """Have glibc keep activations that are freed: mapping them anew takes a sixth of the time of a step on a CPU."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@torch.no_grad()
def estimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch norm by their means over the batches (N, C, H, W).

    Weights that oscillate around a rounding threshold leave running statistics behind that fit no network
    (Nagel et al. 2022, "Overcoming oscillations in quantization-aware training", arXiv:2203.11086).
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    network.train()
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def one_cycle(progress: float) -> float:
    """Learning rate relative to its peak: a linear warm-up, then half a cosine."""
    if progress < _WARMUP:
        return progress / _WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP))


def _loss(network: nn.Module, teacher: nn.Module | None, inputs: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Cross entropy, mixed with the teacher's softened outputs (Hinton et al. 2015, arXiv:1503.02531)."""
    autocast = torch.autocast(inputs.device.type, torch.bfloat16, enabled=computes_in_bfloat16(inputs.device))
    with autocast:
        logits = network(inputs).float()
    loss = F.cross_entropy(logits, labels)
    if teacher is None or not recipe.distillation:
        return loss
    with torch.no_grad(), autocast:
        targets = F.log_softmax(teacher(inputs).float() / recipe.temperature, dim=1)
    softened = F.log_softmax(logits / recipe.temperature, dim=1)
    distance = F.kl_div(softened, targets, reduction="batchmean", log_target=True) * recipe.temperature**2
    return (1 - recipe.distillation) * loss + recipe.distillation * distance


def load_checkpoint(path: Path, device: torch.device) -> dict:
    """What :func:`save_checkpoint` wrote. CheckpointError if the file is no checkpoint."""
    try:
        state = torch.load(path, map_location=device)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:
        raise CheckpointError(f"{path} is no checkpoint of this program: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint of this program, but a {type(state).__name__}")
    return state


def first_line(error: Exception) -> str:
    """What torch says in many lines, in one."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def save_checkpoint(state: Mapping[str, object], path: Path) -> None:
    """Write a checkpoint so that a crash or a full disk leaves either the old one or the new one."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}; what it held before is intact. "
            "Make room, or choose another folder, and use --resume"
        ) from error
