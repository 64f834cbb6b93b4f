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
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from sentei.host.datasets.dataset import DataSet, DatasetError, Split
from sentei.host.train import processes
from sentei.host.train.checkpoint import (
    OTHER_RUN,
    CheckpointError,
    check_settings,
    first_line,
    load_checkpoint,
    load_onnx_weights,
)
from sentei.host.train.export import check_supported, freeze, take_over
from sentei.host.train.images import Images, augment, best_device, device_of, to_input
from sentei.host.train.kernel_size import hold_kernel_sizes, remove_parametrizations
from sentei.host.train.loop import Moment, Recipe, accuracy, estimate_norms, fit, identity, ignore
from sentei.host.train.prune import PruneError, Pruner
from sentei.host.train.quantize import quantize
from sentei.host.train.quantizers import Precision
from sentei.overlay.geometry import Geometry
from sentei.overlay.manifest import sha256_of

CALIBRATION_IMAGES = 256
NORM_IMAGES = 10_000
TEACHER = "teacher"  # setting of a density's checkpoint: the float network's weights, known once it is trained
PRUNING_SHARE = 0.5  # of a stage, after which the masks stay


@dataclass(frozen=True)
class Plan:
    """How a network is trained. What committed models were trained with is in their cards."""

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
    holdout: int = 0  # training images, the last ones, kept from training: what progress is measured on

    def epochs_of(self, index: int) -> tuple[int, ...]:
        """Epochs of each cycle of the learning rate at the density that comes `index` after the first."""
        epochs = self.epochs if isinstance(self.epochs, int) else self.epochs[min(index, len(self.epochs) - 1)]
        return (epochs,) if isinstance(epochs, int) else epochs

    def settings(self) -> dict[str, object]:
        mappings = {"floors": self.floors, "factors": self.factors}
        return asdict(self) | {
            key: {name: str(number) for name, number in mapping.items()} for key, mapping in mappings.items()
        }


@dataclass(frozen=True)
class Point:
    """A finished model on the way: what :func:`prune_and_retrain` yields."""

    keep: Fraction  # asked
    density: float  # reached: the kernel elements that all convolutions keep
    densities: Mapping[str, float]  # of each pruned layer
    network: fx.GraphModule  # frozen: export it, or measure it
    accuracy: float  # on the test images, by PyTorch
    float_accuracy: float  # the float network's
    holdout_accuracy: float | None  # on the training images that were held out, if any
    seconds: float  # of training, from the float network on


@dataclass(frozen=True)
class Stage:
    """One cycle of the learning rate: what :func:`fit` is called with, and the file of its checkpoints."""

    name: str
    file: str
    recipe: Recipe
    seed: int
    settings: Mapping[str, object]

    def identity(self) -> dict[str, object]:
        return identity(self.settings, self.seed, self.name, self.recipe)


def prune_and_retrain(
    network: nn.Module,
    data: DataSet,
    keeps: Sequence[Fraction],
    plan: Plan,
    *,
    work: Path | None = None,
    resume: bool = False,
    pretrained: bool = False,
    start: Path | None = None,
    geometry: Geometry | None = None,
    watch: Callable[[Moment], None] = ignore,
) -> Iterator[Point]:
    """Train a float network, then quantize it and prune it to one density after the other; yields each as it is done.

    `network` is any float network that :func:`quantize` takes; `pretrained` says that its weights stay as they are.
    With `start`, a model of that network that was written before, quantized training goes on from that model; the
    float network teaches.  `keeps` fall.  Checkpoints go to the folder `work` after each epoch; with `resume`, training
    continues after the last of them, and without, there must be none.  What cannot be done is refused before hours of
    training: with `geometry`, also a network that does not fit that array.  Errors: PruneError, CheckpointError,
    UnsupportedNetworkError, UnsupportedModel, CapacityError, TrainingError.
    """
    if list(keeps) != sorted(set(keeps), reverse=True) or not keeps:
        raise PruneError(f"the densities must fall, not be {', '.join(map(str, keeps)) or 'none'}")
    device = best_device()
    torch.manual_seed(plan.seed)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    train, shown = _splits(data, plan.holdout, device)
    test = Images(data.test, device) if plan.holdout else shown
    teacher = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    untrained = _prunable(teacher, train, keeps, plan, start)[0]
    check_supported(untrained, (1, *train.images.shape[1:]), geometry)
    structure = f"{network}{untrained.code}"
    run = {"data": data.name, "images": data.digest(), "network": hashlib.sha256(structure.encode()).hexdigest()}
    floats = [] if pretrained else _float_stages(plan, run)
    if start is not None:
        run["start"] = sha256_of(start)
    densities = [_density_stages(plan, keeps[: index + 1], run) for index in range(len(keeps))]
    if work:
        _check_checkpoints(work, floats, [stage for stages in densities for stage in stages], resume)
    processes.wait()  # before one of them writes what another would find
    for stage in floats:
        fit(
            teacher,
            train,
            shown,
            stage.recipe,
            seed=stage.seed,
            stage=stage.name,
            checkpoint=work and work / stage.file,
            settings=stage.settings,
            resume=resume,
            watch=watch,
        )
    float_accuracy = accuracy(teacher, test)
    student, pruner = _prunable(teacher, train, keeps, plan, start)
    taught = {TEACHER: _digest(teacher)}
    seconds = 0.0
    for keep, stages in zip(keeps, densities, strict=True):
        pruner.begin(keep)
        for stage in stages:
            seconds += fit(
                student,
                train,
                shown,
                stage.recipe,
                seed=stage.seed,
                stage=stage.name,
                teacher=teacher,
                checkpoint=work and work / stage.file,
                settings={**stage.settings, **taught},
                resume=resume,
                before_step=lambda progress: pruner.update(progress / PRUNING_SHARE),
                watch=lambda moment: watch(replace(moment, density=pruner.density())),
            )
            pruner.update(1.0)
        finished = copy.deepcopy(student)
        estimate_norms(finished, _as_trained(train, plan))
        remove_parametrizations(finished)
        freeze(finished)
        yield Point(
            keep,
            pruner.density(),
            pruner.densities(),
            finished,
            accuracy(finished, test),
            float_accuracy,
            accuracy(finished, shown) if plan.holdout else None,
            seconds,
        )


def _float_stages(plan: Plan, run: Mapping[str, object]) -> list[Stage]:
    return [
        Stage(
            "float" + (f", cycle {cycle + 1}" if cycle else ""),
            "float" + (f"-{cycle + 1}.pt" if cycle else ".pt"),
            _recipe(plan, plan.float_epochs, plan.float_learning_rate / 2**cycle),
            plan.seed + 1000 * cycle,
            {**run, "holdout": plan.holdout},
        )
        for cycle in range(plan.float_cycles)
    ]


def _density_stages(plan: Plan, keeps: Sequence[Fraction], run: Mapping[str, object]) -> list[Stage]:
    """Of the last of `keeps`, after the others."""
    index, keep = len(keeps) - 1, keeps[-1]
    before = [plan.epochs_of(done) for done in range(index)]
    cycles = plan.epochs_of(index)
    return [
        Stage(
            f"keep {keep}" + (f", cycle {cycle + 1}" if cycle else ""),
            f"keep-{str(keep).replace('/', '-')}" + (f"-{cycle + 1}.pt" if cycle else ".pt"),
            _recipe(
                plan,
                epochs,
                plan.learning_rate / 2**cycle,
                distillation=plan.distillation,
                weight_decay=plan.weight_decay / 10,
            ),
            plan.seed + 1 + index + 1000 * cycle,
            {
                **plan.settings(),
                **run,
                "keeps": [str(done) for done in keeps],
                "epochs_before": [*before, cycles[:cycle]],
            },
        )
        for cycle, epochs in enumerate(cycles)
    ]


def _check_checkpoints(work: Path, floats: Sequence[Stage], densities: Sequence[Stage], resume: bool) -> None:
    """CheckpointError if there are checkpoints in `work` that the run cannot continue from."""
    complete = True
    for stage in (*floats, *densities):
        path = work / stage.file
        if not path.exists():
            complete = complete and not stage.recipe.epochs
            continue
        if not resume:
            raise CheckpointError(
                f"{path} is there already, from an earlier run: continue it (--resume), name another "
                "folder (--work), or begin anew (--restart)"
            )
        if not complete:
            raise CheckpointError(
                f"{path} is there, but what comes before it has not been trained to its end; {OTHER_RUN}"
            )
        state = load_checkpoint(path, torch.device("cpu"))
        check_settings(path, state, stage.identity(), unknown=TEACHER)
        complete = state["epochs"] >= stage.recipe.epochs


def _digest(network: nn.Module) -> str:
    """Of the weights."""
    content = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        content.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def load_float(network: nn.Module, path: Path) -> None:
    """Load the weights of a float network: a finished checkpoint of `prune_and_retrain`, a saved state_dict, or an ONNX
    file of that network."""
    if path.suffix == ".onnx":
        load_onnx_weights(network, path)
        return
    state = load_checkpoint(path, torch.device("cpu"))
    if "settings" in state and state["epochs"] < (wanted := state["settings"]["epochs"]):
        raise CheckpointError(f"{path} holds {state['epochs']} of {wanted} epochs; finish that run first (--resume)")
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
    teacher: nn.Module, train: Images, keeps: Sequence[Fraction], plan: Plan, start: Path | None
) -> tuple[fx.GraphModule, Pruner]:
    """The quantized network and its pruner. PruneError if a density cannot be reached."""
    student = quantize(teacher, to_input(train.images[:CALIBRATION_IMAGES]), plan.precision)
    if start is not None:
        take_over(student, start, _as_trained(train, plan))
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
    """The images to train on, and those to show progress on."""
    if not 0 <= holdout < len(data.train):
        raise DatasetError(f"{holdout} of {len(data.train)} training images cannot be held out; some must be left")
    if len(data.train) > CALIBRATION_IMAGES and len(set(data.train.labels[:CALIBRATION_IMAGES].tolist())) == 1:
        raise DatasetError(
            f"the first {CALIBRATION_IMAGES} training images, which scales are chosen by, are all of "
            "one class; shuffle them"
        )
    if not holdout:
        return Images(data.train, device), Images(data.test, device)
    kept = len(data.train) - holdout
    return (
        Images(Split(data.train.images[:kept], data.train.labels[:kept]), device),
        Images(Split(data.train.images[kept:], data.train.labels[kept:]), device),
    )
