"""One run of `train` or `curve`: trains under a progress bar, and writes each finished model with its card."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sentei.host.commands.console import console, opened, say, step, writing
from sentei.host.commands.training_options import TrainingOptions, epochs_of, layer_density, picture_size
from sentei.overlay.errors import InputError
from sentei.overlay.manifest import sha256_of

if TYPE_CHECKING:
    from sentei.host.datasets.dataset import DataSet
    from sentei.host.train.loop import Moment
    from sentei.host.train.pipeline import Point

LABELS = 200  # of the first test images, in a model card
PACKAGES = ("torch", "brevitas", "numpy", "onnx", "qonnx", "onnxruntime")
SHIFT_SHARE = 8  # of a picture's side: as far as it is moved, at most
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # read when PyTorch is imported: waiting burns no core


def command_line() -> str:
    """How this process was called, for cards and reports."""
    return shlex.join(["sentei", *sys.argv[1:]])


def read_data(options: TrainingOptions) -> tuple[DataSet, dict[str, int | bool]]:
    """The data set that the options name, and the fields of a plan that say how its images may be changed."""
    from sentei.host.datasets.catalogue import KINDS, PICTURE_SHAPE, load
    from sentei.host.datasets.dataset import DataSet, Split

    augmentation: dict[str, int | bool]
    if options.data in KINDS:
        if options.size is not None or not options.mirror:
            raise InputError(f"--size and --no-mirror are for folders of pictures, not for {options.data}")
        data, augmentation = load(options.data, options.folder), {"mirror": KINDS[options.data].mirror}
    else:
        height, width = picture_size(options.size or str(PICTURE_SHAPE[-1]))
        with step(f"reading the pictures in {options.data}") as progress:
            data = load(options.data, options.folder, (PICTURE_SHAPE[0], height, width), progress)
        augmentation = {"mirror": options.mirror, "max_shift": max(1, min(height, width) // SHIFT_SHARE)}
    count = options.train_images
    return DataSet(
        data.name, Split(data.train.images[:count], data.train.labels[:count]), data.test, data.classes
    ), augmentation


class TrainingRun:
    """One run of `train` or `curve`: what its options mean."""

    def __init__(self, options: TrainingOptions):
        from sentei.host.apps.target import geometry_named
        from sentei.overlay.errors import BuildError
        from sentei.overlay.manifest import MEMORY_MODELS

        for name, value in THREADS.items():
            os.environ.setdefault(name, value)
        try:
            import torch

            from sentei.host.train import pipeline
        except ImportError as error:
            raise InputError(
                f"training needs PyTorch and Brevitas ({error}): install the package's extra 'train', "
                "as `make setup-train` does"
            ) from error
        from sentei.host.train import processes
        from sentei.host.train.networks import NETWORKS, own_network
        from sentei.host.train.quantizers import Precision

        processes.join()
        self.writes = processes.rank() == 0
        console.quiet = not self.writes
        self.geometry = options.geometry
        self.memory = options.memory
        self.weights = options.weights
        self.start = options.start
        self.resume = options.resume
        self.array = geometry = geometry_named(self.geometry)
        if self.memory not in MEMORY_MODELS:
            raise BuildError(f"memory must be one of {', '.join(MEMORY_MODELS)}, not {self.memory!r}")
        if (options.network is None) == (options.own_network is None):
            raise InputError("name one network: one of the project's, or your own by --network FILE.py:NAME")
        if options.network not in (None, *NETWORKS):
            raise InputError(
                f"the network must be one of {', '.join(NETWORKS)}, not {options.network!r}; "
                "your own is --network FILE.py:NAME"
            )
        self.data, augmentation = read_data(options)
        _, *shape = self.data.train.images.shape
        torch.manual_seed(options.seed)
        if options.own_network is None:
            self.name = options.network
            self.network = NETWORKS[self.name](shape[0], len(self.data.classes))
        else:
            self.name = options.own_network.rpartition(":")[2]
            self.network = own_network(options.own_network, tuple(shape), len(self.data.classes))
        self.work = options.work / f"{self.name}-{self.data.name}"
        layers = options.layer or []
        self.plan = pipeline.Plan(
            float_epochs=options.float_epochs,
            float_cycles=options.float_cycles,
            epochs=epochs_of(options.epochs),
            floors=dict(layer_density(text) for text in layers if "=x" not in text),
            factors=dict(layer_density(text.replace("=x", "=")) for text in layers if "=x" in text),
            group=options.group or geometry.group_columns,
            aligned=not options.unstructured,
            seed=options.seed,
            holdout=options.holdout,
            **augmentation,
            float_learning_rate=options.float_learning_rate,
            learning_rate=options.learning_rate,
            precision=Precision(options.weight_bits, options.activation_bits, options.first, options.last),
        )
        if options.restart:
            if self.resume:
                raise InputError("--resume and --restart exclude each other: continue, or begin anew")
            for path in self.work.glob("*.pt") if self.writes else ():
                path.unlink()
            processes.wait()

    def points(self, keeps: list[Fraction]) -> Iterator[Point]:
        """Train, under a progress bar over all epochs."""
        from sentei.host.train import pipeline

        if self.weights is not None:
            pipeline.load_float(self.network, self.weights)
        epochs = sum(sum(self.plan.epochs_of(index)) for index in range(len(keeps)))
        if self.weights is None:
            epochs += self.plan.float_cycles * self.plan.float_epochs
        with opened("predict", self.geometry, self.memory, results=False):
            pass  # what measures cycles is there, before hours of training
        with _training_bar(epochs) as watch:
            yield from pipeline.prune_and_retrain(
                self.network,
                self.data,
                keeps,
                self.plan,
                work=self.work,
                resume=self.resume,
                pretrained=self.weights is not None,
                start=self.start,
                geometry=self.array,
                watch=watch,
            )

    def help_along(self, keeps: list[Fraction]) -> None:
        """Train with the process that writes."""
        for _ in self.points(keeps):
            pass

    def write(self, point: Point, path: Path) -> dict:
        """Export a point, measure it, and write its card; returns the card."""
        from sentei.host.frontend.importer import load
        from sentei.host.network import reference
        from sentei.host.train.export import export
        from sentei.host.train.images import best_device, machine
        from sentei.host.train.pipeline import first_labels

        test = self.data.test
        # The model and its card take the place of older ones together, once both are complete.
        with writing(path), TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder) / path.name
            export(point.network, draft, (1, *self.data.train.images.shape[1:]))
            with step(f"{path.name}: {len(test)} images") as progress:
                predicted = reference.predict(load(draft), test.images, progress).argmax(1)
            card = {
                "file": path.name,
                "command": command_line(),
                "data": self.data.name,
                "train_images": len(self.data.train) - self.plan.holdout,
                "classes": list(self.data.classes),
                "keep": str(point.keep),
                "density": point.density,
                "layers": dict(point.densities),
                "plan": self.plan.settings(),
                **({} if self.start is None else {"start": _origin(self.start)}),
                "seconds": round(point.seconds),
                "machine": machine(best_device()),
                "float_accuracy": point.float_accuracy,
                "accuracy": float((predicted == test.labels).mean()),
                "accuracy_by": f"integer reference, {len(test)} test images",
                "holdout_accuracy": point.holdout_accuracy,
                "first_labels": first_labels(point.network, test.images[:LABELS]),  # by PyTorch
                "cycles": self._cycles(draft),
                "cycles_on": f"{self.geometry}, simulated control, memory {self.memory}",
                "python": platform.python_version(),
                "packages": {package: version(package) for package in PACKAGES},
            }
            (written := draft.with_suffix(".json")).write_text(json.dumps(card, indent=2) + "\n")
            os.replace(draft, path)
            os.replace(written, path.with_suffix(".json"))
        held_out = "" if point.holdout_accuracy is None else f" ({point.holdout_accuracy:.2%} of those held out)"
        say(
            f"{path}: {card['accuracy']:.2%}{held_out}, {point.float_accuracy:.2%} in float; {point.density:.3f} of "
            f"the kernel elements, {card['cycles']} cycles\nfigures: {path.with_suffix('.json')}"
        )
        return card

    def _cycles(self, model: Path) -> int:
        """Cycles of a picture on the simulated hardware's control."""
        from sentei.host.apps.measure import benchmark
        from sentei.host.compiler.compile import compile_network
        from sentei.host.frontend.importer import load

        with opened("predict", self.geometry, self.memory, results=False) as overlay:
            program = compile_network(load(model), overlay.manifest.geometry)
            overlay.load(program)
            return benchmark(overlay).cycles


def _origin(model: Path) -> dict:
    """What is known of a model that another was trained on from: its name and digest, and what its card says."""
    found = {"file": model.name, "sha256": sha256_of(model)}
    with suppress(OSError, json.JSONDecodeError):
        card = json.loads(model.with_suffix(".json").read_text())
        found |= {key: card[key] for key in ("command", "seconds", "machine", "start") if key in card}
    return found


@contextmanager
def _training_bar(epochs: int):
    """One bar over all epochs, with loss, accuracy, density and the time left; off a terminal, a line an epoch."""
    fields = ("stage", "epoch", "loss", "accuracy", "density")
    text = "  ".join(f"{name if name != 'stage' else ''} {{task.fields[{name}]}}".strip() for name in fields)
    columns = (TextColumn(text), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=None, stage="", epoch="", loss="", accuracy="", density="")
        epochs_of: dict[str, int] = {}

        def watch(moment: Moment) -> None:
            before = sum(count for stage, count in epochs_of.items() if stage != moment.stage)
            epochs_of[moment.stage] = moment.epochs
            loss, density = f"{moment.loss:.3f}", f"{moment.density:.3f}"
            accuracy = "" if moment.accuracy is None else f"{moment.accuracy:.2%}"
            total, completed = epochs * moment.steps, (before + moment.epoch) * moment.steps + moment.step
            if not moment.step:  # a checkpoint: what it spares is no measure of speed
                progress.reset(task, total=total, completed=completed)
                return
            progress.update(
                task,
                total=total,
                completed=completed,
                stage=moment.stage,
                epoch=f"{moment.epoch + 1}/{moment.epochs}",
                loss=loss,
                accuracy=accuracy,
                density=density,
            )
            if moment.ends_epoch and not console.is_terminal:
                say(
                    f"{moment.stage}, epoch {moment.epoch + 1}/{moment.epochs}: loss {loss}, accuracy {accuracy}, "
                    f"density {density}"
                )

        yield watch
