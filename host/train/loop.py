"""The training loop: SGD, one learning-rate cycle, a checkpoint after each epoch.

All randomness of an epoch comes from generators seeded by (seed, epoch), so on a CPU, with as many threads, a resumed
run continues bit for bit as if it had never stopped; a GPU adds in whatever order it likes.  Forward and backward run
under bfloat16 autocast where the machine computes in it: quantized weights and activations have at most 8 significant
bits and are exact in it.  Evaluation is in float32.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from sentei.host.train import processes
from sentei.host.train.checkpoint import (
    OTHER_RUN,
    CheckpointError,
    check_settings,
    first_line,
    load_checkpoint,
    save_checkpoint,
)
from sentei.host.train.images import (
    Images,
    computes_in_bfloat16,
    device_of,
    keep_freed_memory,
    moved,
    random_moves,
    to_input,
)
from sentei.overlay.errors import SenteiError

_MOMENTUM = 0.9
_WARMUP = 0.05


class TrainingError(SenteiError):
    """Training cannot go on."""


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
    loss: float  # mean of the epoch so far; on a GPU, of the one before
    accuracy: float | None  # after the last epoch
    density: float = 1.0  # kernel elements kept
    ends_epoch: bool = False  # `accuracy` is this epoch's


def ignore(moment: Moment) -> None:
    """For callers that do not want to be told."""


@torch.no_grad()
def accuracy(network: nn.Module, data: Images, batch: int = 500) -> float:
    """The share of images classified as labelled."""
    network.eval()
    own_images, own_labels = processes.share(data.images), processes.share(data.labels)
    right = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    for images, labels in zip(own_images.split(batch), own_labels.split(batch), strict=True):
        right += (network(to_input(images)).argmax(1) == labels).sum()
    return processes.total(right).item() / len(data)


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
    compiled: bool | None = None,
) -> float:
    """Train in place and return the seconds it took, those before a resume included.

    ``before_step`` is called with the progress in [0, 1] before each step (to prune), ``watch`` after it; on a GPU the
    loss it is told is that of the epoch before.  A step is ``compiled`` on a GPU, if it can be, and not on a CPU, where
    it gains nothing.  With ``resume``, training continues after the last epoch in ``checkpoint`` if that file exists
    and was written with the same ``settings``.  TrainingError if the loss is no finite number, CheckpointError if the
    checkpoint cannot be written or belongs to another run; the last checkpoint stays as it was.
    """
    keep_freed_memory()
    training = _Training(network, train, recipe, stage, seed, teacher, checkpoint, compiled)
    settings = identity(settings, seed, stage, recipe)
    done, seconds, reached = 0, 0.0, None
    if resume and checkpoint and checkpoint.exists():
        done, seconds, reached = training.resume(checkpoint, settings)
        watch(Moment(stage, done, recipe.epochs, 0, training.steps, math.nan, reached))
    for epoch in range(done, recipe.epochs):
        start = time.monotonic()
        with processes.common_norms(network):
            for step, loss in enumerate(training.epoch(epoch, before_step), 1):
                watch(Moment(stage, epoch, recipe.epochs, step, training.steps, loss, reached))
        reached = accuracy(network, test)
        watch(Moment(stage, epoch, recipe.epochs, training.steps, training.steps, loss, reached, ends_epoch=True))
        seconds += time.monotonic() - start
        if checkpoint and processes.rank() == 0:
            state = {"settings": settings, "epochs": epoch + 1, "seconds": seconds, "accuracy": reached}
            save_checkpoint(training.state() | state, checkpoint)
    return seconds


class _Training:
    """A network with its optimizer: what a checkpoint brings back."""

    def __init__(
        self,
        network: nn.Module,
        train: Images,
        recipe: Recipe,
        stage: str,
        seed: int,
        teacher: nn.Module | None,
        checkpoint: Path | None,
        compiled: bool | None,
    ):
        self.network, self.train, self.recipe = network, train, recipe
        self.stage, self.seed, self.checkpoint = stage, seed, checkpoint
        self.device = train.images.device
        self.waits = self.device.type == "cpu"  # to look at the loss after each step
        self.mean = math.nan  # of the losses of an epoch, as far as it is known
        self.eager_loss = partial(
            _loss, processes.with_common_gradients(network), teacher, recipe, computes_in_bfloat16(self.device)
        )
        self.loss: Callable[[Tensor, Tensor], Tensor] = self.eager_loss
        if compiled or (compiled is None and self.device.type == "cuda"):
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self.loss = torch.compile(self.eager_loss, mode=mode, dynamic=False)
        self.batch = min(recipe.batch, len(train))
        if self.batch % processes.count():
            raise TrainingError(f"{self.batch} images of a batch cannot be shared by {processes.count()} processes")
        self.steps = max(1, len(train) // recipe.batch)  # of an epoch
        trained = [p for p in network.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.dim() > 1]
        plain = [p for p in trained if p.dim() <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            momentum=_MOMENTUM,
            nesterov=True,
        )
        self.schedule = self._schedule(0)

    def _schedule(self, step: int) -> LambdaLR:
        """The learning rate, from that step on."""
        total = max(1, self.recipe.epochs * self.steps)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = self.recipe.learning_rate
        return LambdaLR(self.optimizer, lambda step: one_cycle(step / total), last_epoch=step - 1)

    def state(self) -> dict[str, object]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def resume(self, path: Path, settings: Mapping[str, object]) -> tuple[int, float, float]:
        """Take up a checkpoint: (epochs done, seconds they took, accuracy reached)."""
        state = load_checkpoint(path, device_of(self.network))
        check_settings(path, state, settings)
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} must be of the same network: {first_line(error)}; {OTHER_RUN}") from error
        self.schedule = self._schedule(state["epochs"] * self.steps)
        return state["epochs"], state["seconds"], state["accuracy"]

    def epoch(self, epoch: int, before_step: Callable[[float], None]) -> Iterator[float]:
        """Train for an epoch; after each step, the mean loss so far."""
        recipe, train = self.recipe, self.train
        torch.manual_seed((self.seed << 16) + epoch)
        generator = torch.Generator().manual_seed((self.seed << 16) + epoch)
        # All that is drawn goes to the device at once: within an epoch, nothing waits for a GPU.
        order = torch.randperm(len(train), generator=generator).to(self.device)
        moves = torch.stack(
            [random_moves(self.batch, recipe.max_shift, recipe.mirror, generator) for _ in range(self.steps)]
        ).to(self.device)
        self.network.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for step in range(self.steps):
            before_step((epoch * self.steps + step) / (recipe.epochs * self.steps))
            chosen = processes.share(order[step * self.batch : (step + 1) * self.batch])
            own_moves = processes.share(moves[step].T).T
            inputs = to_input(moved(train.images[chosen], own_moves, recipe.max_shift))
            total += self.step(inputs, train.labels[chosen])
            self.schedule.step()
            if self.waits or step + 1 == self.steps:
                self.mean = processes.total(total).item() / (step + 1) / processes.count()
                if not math.isfinite(self.mean):
                    raise TrainingError(
                        f"{self.stage}: the loss is {self.mean} in epoch {epoch + 1}, step {step + 1}; "
                        f"{self._remedy(epoch)}"
                    )
            yield self.mean
        if not all(tensor.isfinite().all() for tensor in self.network.state_dict().values()):
            raise TrainingError(
                f"{self.stage}: weights are no finite numbers after epoch {epoch + 1}; {self._remedy(epoch)}"
            )

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer; returns the loss of the weights before it."""
        torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad()
        try:
            loss = self.loss(inputs, labels)
            loss.backward()
        except Exception as error:  # a compiler may raise anything; what is wrong with the step itself comes again
            if self.loss is self.eager_loss:
                raise
            warnings.warn(
                f"{self.stage}: the step cannot be compiled ({first_line(error)}); training goes on without, slower",
                stacklevel=2,
            )
            self.loss = self.eager_loss
            return self.step(inputs, labels)
        self.optimizer.step()
        return loss.detach()

    def _remedy(self, epochs: int) -> str:
        return f"lower the learning rate ({self.recipe.learning_rate})" + (
            f"; {self.checkpoint} holds {epochs} epochs" if self.checkpoint else ""
        )


def identity(settings: Mapping[str, object], seed: int, stage: str, recipe: Recipe) -> dict[str, object]:
    """What a checkpoint says of the training that it belongs to."""
    return {**settings, "seed": seed, "stage": stage, **vars(recipe)}


def estimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch norm by their means over the batches (N, C, H, W).

    Weights that oscillate around a rounding threshold leave running statistics behind that fit no network
    (Nagel et al. 2022, "Overcoming oscillations in quantization-aware training", arXiv:2203.11086).
    """
    update_bn(batches, network)
    network.eval()


def one_cycle(progress: float) -> float:
    """Learning rate relative to its peak: a linear warm-up, then half a cosine."""
    if progress < _WARMUP:
        return progress / _WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP))


def _loss(
    network: nn.Module, teacher: nn.Module | None, recipe: Recipe, bfloat16: bool, inputs: Tensor, labels: Tensor
) -> Tensor:
    """Cross entropy, mixed with the teacher's softened outputs (Hinton et al. 2015, arXiv:1503.02531)."""
    autocast = torch.autocast(inputs.device.type, torch.bfloat16, enabled=bfloat16)
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
