"""From a float network to quantized, pruned ones at any number of densities: continuous prune and retrain.

::

    float network --quantize--> 4 bits, dense --prune, retrain--> 1/2 --prune, retrain--> 1/3 ...
                                     |                             |
                                  a model                       a model

Each density is one stage of training that starts where the one before ended: the learning rate rises again, kernel
elements fall away during its first half, and it ends with a small learning rate, so that every density on the way is
a finished model.  The float network teaches all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from sentei.host.train.data import DataSet, DatasetError, Split
from sentei.host.train.export import check_supported, freeze
from sentei.host.train.loop import (
    CheckpointError,
    Images,
    Moment,
    Recipe,
    accuracy,
    augment,
    best_device,
    device_of,
    estimate_norms,
    first_line,
    fit,
    ignore,
    load_checkpoint,
    to_input,
)
from sentei.host.train.prune import PruneError, Pruner
from sentei.host.train.quantize import Precision, hold_kernel_sizes, quantize, remove_parametrizations

CURVE = tuple(Fraction(text) for text in ("1", "1/2", "1/3", "2/9", "1/6", "1/9", "1/12"))

CALIBRATION_IMAGES = 256
NORM_IMAGES = 10_000
PRUNING_SHARE = 0.5  # of a stage, after which the masks stay


@dataclass(frozen=True)
class Plan:
    """How a network is trained. The defaults are those of the committed models."""

    float_epochs: int = 45  # of each cycle
    float_cycles: int = 2  # of the learning rate, each with half the peak of the one before (arXiv:1608.03983)
    # For each density; of several, the last is for all that follow. (24, 16): two cycles of the learning rate.
    epochs: int | tuple[int | tuple[int, ...], ...] = 10
    float_learning_rate: float = 0.2
    learning_rate: float = 0.03
    batch: int = 256
    weight_decay: float = 5e-4  # of the float stage; the others have a tenth
    distillation: float = 0.5
    max_shift: int = 4
    mirror: bool = True
    group: int = 8  # output channels that share their kernel elements: the geometry's group_columns
    aligned: bool = True  # False: unstructured pruning, which no array of this kind can skip
    floors: Mapping[str, Fraction] = field(default_factory=dict)  # least densities of single layers, by name pattern
    factors: Mapping[str, Fraction] = field(default_factory=dict)  # how much denser than the others layers are
    precision: Precision = field(default_factory=Precision)
    seed: int = 0
    holdout: int = 0  # training images kept from training; the accuracies shown are then theirs, not the test images'

    def epochs_of(self, index: int) -> tuple[int, ...]:
        """Epochs of each cycle of the learning rate at the density that comes `index` after the first."""
        epochs = self.epochs if isinstance(self.epochs, int) else self.epochs[min(index, len(self.epochs) - 1)]
        return (epochs,) if isinstance(epochs, int) else epochs

    def settings(self) -> dict[str, object]:
        mappings = {"floors": self.floors, "factors": self.factors}
        return asdict(self) | {key: {name: str(number) for name, number in mapping.items()}
                               for key, mapping in mappings.items()}


@dataclass(frozen=True)
class Point:
    """A finished model on the way: what :func:`prune_and_retrain` yields."""

    keep: Fraction  # asked
    density: float  # reached: the kernel elements that all convolutions keep
    densities: Mapping[str, float]  # of each pruned layer
    network: fx.GraphModule  # frozen: export it, or measure it
    accuracy: float  # on the test images (or those held out), by PyTorch
    float_accuracy: float
    seconds: float  # of training, from the float network on


def prune_and_retrain(
    network: nn.Module,
    data: DataSet,
    keeps: Sequence[Fraction],
    plan: Plan,
    *,
    work: Path | None = None,
    resume: bool = False,
    pretrained: bool = False,
    watch: Callable[[Moment], None] = ignore,
) -> Iterator[Point]:
    """Train a float network, then quantize it and prune it to one density after the other; yields each as it is done.

    `network` is any float network that :func:`quantize` takes; `pretrained` says that its weights stay as they are.
    `keeps` fall.  Checkpoints go to the folder `work` after each epoch; with `resume`, training continues after the
    last of them.  Errors: PruneError, UnsupportedNetworkError, UnsupportedModel, TrainingError, CheckpointError.
    """
    if list(keeps) != sorted(set(keeps), reverse=True) or not keeps:
        raise PruneError(f"the densities must fall, not be {', '.join(map(str, keeps)) or 'none'}")
    device = best_device()
    torch.manual_seed(plan.seed)
    torch.use_deterministic_algorithms(device.type == "cpu")
    train, test = _splits(data, plan.holdout, device)
    settings: dict[str, object] = {"data": data.name, "holdout": plan.holdout}
    teacher = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # What cannot be done is refused before hours of training.
    check_supported(_prunable(teacher, train, keeps, plan)[0], (1, *train.images.shape[1:]))
    for cycle in range(0 if pretrained else plan.float_cycles):
        fit(teacher, train, test, _recipe(plan, plan.float_epochs, plan.float_learning_rate / 2**cycle),
            seed=plan.seed + 1000 * cycle, stage="float" if not cycle else f"float, cycle {cycle + 1}",
            checkpoint=work and work / ("float.pt" if not cycle else f"float-{cycle + 1}.pt"),
            settings=settings, resume=resume, watch=watch)
    float_accuracy = accuracy(teacher, test)
    student, pruner = _prunable(teacher, train, keeps, plan)
    seconds = 0.0
    for index, keep in enumerate(keeps):
        pruner.begin(keep)
        before = [plan.epochs_of(done) for done in range(index)]
        for cycle, epochs in enumerate(plan.epochs_of(index)):
            recipe = _recipe(plan, epochs, plan.learning_rate / 2**cycle, distillation=plan.distillation,
                             weight_decay=plan.weight_decay / 10)
            name = f"keep-{str(keep).replace('/', '-')}" + (f"-{cycle + 1}.pt" if cycle else ".pt")
            seconds += fit(
                student, train, test, recipe, seed=plan.seed + 1 + index + 1000 * cycle, teacher=teacher,
                stage=f"keep {keep}" + (f", cycle {cycle + 1}" if cycle else ""),
                checkpoint=work and work / name, resume=resume,
                settings={**plan.settings(), "data": data.name, "keeps": [str(done) for done in keeps[:index + 1]],
                          "epochs_before": [*before, plan.epochs_of(index)[:cycle]]},
                before_step=lambda progress: pruner.update(progress / PRUNING_SHARE),
                watch=lambda moment: watch(replace(moment, density=pruner.density())),
            )
            pruner.update(1.0)
        finished = copy.deepcopy(student)
        estimate_norms(finished, _as_trained(train, plan))
        remove_parametrizations(finished)
        freeze(finished)
        yield Point(keep, pruner.density(), pruner.densities(), finished, accuracy(finished, test), float_accuracy,
                    seconds)


def load_float(network: nn.Module, path: Path) -> None:
    """Load the weights of a float network: a checkpoint of :func:`prune_and_retrain`, or a saved state_dict."""
    state = load_checkpoint(path, torch.device("cpu"))
    try:
        network.load_state_dict(state.get("network", state))
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold the weights of this network: {first_line(error)}") from error


@torch.no_grad()
def first_labels(network: nn.Module, images: np.ndarray) -> list[int]:
    """The labels that a finished network gives uint8 images (N, C, H, W)."""
    inputs = to_input(torch.from_numpy(images).to(device_of(network)))
    return network.eval()(inputs).argmax(1).tolist()


def _prunable(
    teacher: nn.Module, train: Images, keeps: Sequence[Fraction], plan: Plan
) -> tuple[fx.GraphModule, Pruner]:
    """The quantized network and its pruner. PruneError if a density cannot be reached."""
    student = quantize(teacher, to_input(train.images[:CALIBRATION_IMAGES]), plan.precision)
    pruner = Pruner(student, plan.group, plan.floors, plan.aligned, plan.factors)
    for keep in keeps:
        pruner.plan(keep)
    hold_kernel_sizes(student)
    return student, pruner


def _as_trained(train: Images, plan: Plan) -> Iterator[Tensor]:
    """Inputs as in training, moved and mirrored: what batch norms have seen."""
    generator = torch.Generator().manual_seed(plan.seed)
    for images in train.images[:NORM_IMAGES].split(plan.batch):
        yield to_input(augment(images, plan.max_shift, plan.mirror, generator))


def _recipe(plan: Plan, epochs: int, learning_rate: float, **others: float) -> Recipe:
    shared = Recipe(epochs, learning_rate, plan.batch, plan.weight_decay, max_shift=plan.max_shift, mirror=plan.mirror)
    return replace(shared, **others)


def _splits(data: DataSet, holdout: int, device: torch.device) -> tuple[Images, Images]:
    if not 0 <= holdout < len(data.train):
        raise DatasetError(f"{holdout} of {len(data.train)} training images cannot be held out; some must be left")
    if not holdout:
        return Images(data.train, device), Images(data.test, device)
    kept = len(data.train) - holdout
    return (Images(Split(data.train.images[:kept], data.train.labels[:kept]), device),
            Images(Split(data.train.images[kept:], data.train.labels[kept:]), device))
