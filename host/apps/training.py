"""The commands `sentei train`, `sentei curve` and `sentei accuracy`: a thin face of `pipeline`."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sentei.host.apps.console import GeometryName, JsonFile, MemoryName, console, opened, say, step, write_json, writing
from sentei.overlay.errors import InputError

if TYPE_CHECKING:
    from sentei.driver import SenteiOverlay
    from sentei.host.network.ir import Network
    from sentei.host.train.loop import Moment
    from sentei.host.train.pipeline import Point

LABELS = 200  # of the first test images, in a model card
PACKAGES = ("torch", "brevitas", "numpy", "onnx", "qonnx", "onnxruntime")
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}  # read when PyTorch is imported: waiting burns no core
DENSITY_NAMES = {
    "1": "dense",
    "1/2": "half",
    "1/3": "third",
    "2/9": "quarter",
    "1/6": "sixth",
    "1/9": "ninth",
    "1/12": "twelfth",
}

NetworkName = Annotated[str, typer.Argument(help="resnet20, resnet8 or fashion")]
DataName = Annotated[str, typer.Option("--data", help="cifar10, fashion-mnist or mnist")]
Folder = Annotated[Path | None, typer.Option(help="folder of the data set's files")]
Float = Annotated[
    Path | None,
    typer.Option(
        "--float",
        help="weights of a trained float network (a state_dict, or the "
        "last checkpoint of a float network, as float-2.pt): no float training",
    ),
]
FloatCycles = Annotated[int, typer.Option(min=1, help="cycles of the learning rate for the float network")]
FloatRate = Annotated[
    float,
    typer.Option(
        "--float-learning-rate",
        min=1e-6,
        help="peak of the float network's first cycle; each has half the peak of the one before",
    ),
]
Rate = Annotated[float, typer.Option("--learning-rate", min=1e-6, help="the same of each density, quantized")]
FloatEpochs = Annotated[int, typer.Option(min=0, help="epochs of each cycle of the float network")]
Epochs = Annotated[
    str,
    typer.Option(
        help="epochs of each density, quantized; 20,8 means 20 of the first, where "
        "rounding is new, and 8 of each other; 8+4 are two cycles of the learning rate"
    ),
]
Layer = Annotated[
    list[str] | None,
    typer.Option(
        help="density of single layers, may be repeated: '*shortcut*=1/3' "
        "keeps at least that, 'blocks.0.*=x2' twice as much as others; the "
        "first convolution keeps all unless it is named"
    ),
]
Group = Annotated[
    int | None, typer.Option(min=1, help="output channels that share their kernel elements (default: the geometry's)")
]
Unstructured = Annotated[bool, typer.Option("--unstructured", help="prune each weight by itself (to compare)")]
Weights = Annotated[int, typer.Option(help="bits of weights")]
Activations = Annotated[int, typer.Option(help="bits of activations")]
First = Annotated[int, typer.Option(help="bits of the first layer's weights")]
Last = Annotated[int, typer.Option(help="bits of the last layer's weights")]
Seed = Annotated[int, typer.Option(min=0, max=2**31, help="seed of all randomness")]
Work = Annotated[Path, typer.Option(help="folder for checkpoints")]
Resume = Annotated[bool, typer.Option("--resume", help="continue from the checkpoints in --work")]
Restart = Annotated[bool, typer.Option("--restart", help="delete the checkpoints in --work and begin anew")]
Holdout = Annotated[int, typer.Option(min=0, help="training images kept from training, to choose a recipe by")]
TrainImages = Annotated[
    int | None, typer.Option(min=1, help="train on the first so many images only (to try things out)")
]


def density_of(text: str) -> Fraction:
    """'1/9', '0.25' or '1/4.5' as a fraction. InputError if it is none."""
    try:
        numerator, _, denominator = text.partition("/")
        return Fraction(numerator) / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"a density must be a number such as 1/9 or 0.25, not {text!r}") from None


def epochs_of(text: str) -> tuple[int | tuple[int, ...], ...]:
    """'20', '20,8' or '20,8+4' as numbers and tuples of numbers. InputError if they are none."""
    densities = [[cycle.strip() for cycle in cycles.split("+")] for cycles in text.split(",")]
    if not all(cycle.isdecimal() for cycles in densities for cycle in cycles):
        raise InputError(f"epochs must be a number such as 20, or several such as 20,8 or 20,8+4, not {text!r}")
    return tuple(int(cycles[0]) if len(cycles) == 1 else tuple(map(int, cycles)) for cycles in densities)


def train(
    network: NetworkName,
    output: Annotated[Path, typer.Option("--output", "-o", help="QONNX model to write; its card gets .json")],
    keep: Annotated[str, typer.Option(help="fraction of the kernel elements to keep, as 1/9")] = "1",
    data: DataName = "cifar10",
    folder: Folder = None,
    float_weights: Float = None,
    float_epochs: FloatEpochs = 45,
    float_cycles: FloatCycles = 2,
    float_learning_rate: FloatRate = 0.2,
    epochs: Epochs = "20",
    learning_rate: Rate = 0.03,
    layer: Layer = None,
    group: Group = None,
    unstructured: Unstructured = False,
    weights: Weights = 4,
    activations: Activations = 4,
    first: First = 8,
    last: Last = 8,
    seed: Seed = 0,
    work: Work = Path("build/train"),
    resume: Resume = False,
    restart: Restart = False,
    holdout: Holdout = 0,
    train_images: TrainImages = None,
    geometry: GeometryName = "32x32",
    memory: MemoryName = "zynq-hp",
) -> None:
    """Train a network, prune and retrain it in 4 bits, and write it as a QONNX model.

    A float network is trained first, or taken from --float. Then it is quantized, and while it is trained on, kernel
    elements fall away until --keep of them are left: output channels that share a step of the array lose the same ones.
    """
    _check_suffix(output, ".onnx")
    run = _Run(locals())
    for point in run.points([density_of(keep)]):
        run.write(point, output)


def curve(
    network: NetworkName,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the models and their cards")],
    report: Annotated[Path, typer.Option(help="picture to write; the figures get .json")],
    keep: Annotated[str, typer.Option(help="densities, falling")] = "1,1/2,1/3,1/4.5,1/6,1/9,1/12",
    name: Annotated[
        str | None,
        typer.Option(help="models are called NAME-dense, NAME-half, ... (default: the network and the data set)"),
    ] = None,
    data: DataName = "cifar10",
    folder: Folder = None,
    float_weights: Float = None,
    float_epochs: FloatEpochs = 45,
    float_cycles: FloatCycles = 2,
    float_learning_rate: FloatRate = 0.2,
    epochs: Epochs = "20,8",
    learning_rate: Rate = 0.03,
    layer: Layer = None,
    group: Group = None,
    unstructured: Unstructured = False,
    weights: Weights = 4,
    activations: Activations = 4,
    first: First = 8,
    last: Last = 8,
    seed: Seed = 0,
    work: Work = Path("build/train"),
    resume: Resume = False,
    restart: Restart = False,
    holdout: Holdout = 0,
    train_images: TrainImages = None,
    geometry: GeometryName = "32x32",
    memory: MemoryName = "zynq-hp",
) -> None:
    """Accuracy against cycles, in one run: prune and retrain through many densities, with a finished model at each.

    The accuracies are those of the integer reference on all test images, the cycles those of the simulated hardware.
    """
    from sentei.host.apps.charts import curve_chart

    _check_suffix(report, ".png")
    run = _Run(locals())
    stem = name or f"{network}-{data}"
    cards = []
    for point in run.points([density_of(text) for text in keep.split(",")]):
        label = DENSITY_NAMES.get(str(point.keep), f"keep-{str(point.keep).replace('/', '-')}")
        cards.append(run.write(point, output / f"{stem}-{label}.onnx"))
    figures = {
        "network": network,
        "data": data,
        "command": _command(),
        "geometry": geometry,
        "memory_model": memory,
        "float_accuracy": cards[0]["float_accuracy"],
        "points": [{key: card[key] for key in ("file", "keep", "density", "accuracy", "cycles")} for card in cards],
    }
    with writing(report):
        curve_chart(figures, report)
    say(f"picture: {report}")
    write_json(report.with_suffix(".json"), figures)


def accuracy(
    models: Annotated[list[Path], typer.Argument(help="QONNX models (.onnx) with their cards beside them")],
    data: DataName = "cifar10",
    folder: Folder = None,
    compare: Annotated[
        int,
        typer.Option(
            min=0,
            help="images whose labels are also compared with qonnx, and with "
            f"PyTorch (at most {LABELS}, if the card has its labels)",
        ),
    ] = 0,
    simulate: Annotated[
        int, typer.Option(min=0, help="images of which every layer is also compared on the simulated hardware")
    ] = 0,
    geometry: GeometryName = "32x32",
    memory: MemoryName = "zynq-hp",
    json_file: JsonFile = None,
) -> None:
    """Accuracy of models over all test images of a data set, by the integer reference.

    Exits with 1 if a label or a layer that was compared differs.
    """
    from sentei.host.apps.target import geometry_named
    from sentei.host.datasets.data import load_split
    from sentei.host.frontend.importer import load
    from sentei.host.network import reference
    from sentei.host.network.ir import kept_density

    group = geometry_named(geometry).group_columns
    if len({model.stem for model in models}) < len(models):
        raise InputError("the models must have different names, which the figures are listed by")
    networks = {model: load(model) for model in models}
    test = load_split(data, "test", folder)
    table = Table(title=f"{len(test)} test images of {data}, integer reference", title_justify="left")
    for column in ("model", "accuracy", "kernel elements", "float network"):
        table.add_column(column)
    figures = {}
    for model, network in networks.items():
        with step(f"{model.stem}: {len(test)} images") as progress:
            predicted = reference.predict(network, test.images, progress).argmax(1)
        float_accuracy = _card(model).get("float_accuracy")
        figures[model.stem] = {
            "accuracy": float((predicted == test.labels).mean()),
            "density": kept_density(network, group),
            "images": len(test),
            "float_accuracy": float_accuracy,
        }
        if compare:
            figures[model.stem]["labels_compared"] = compare
            figures[model.stem]["labels_equal"] = _same_labels(model, test.images[:compare], predicted[:compare])
        if simulate:
            with opened("sim", geometry, memory) as overlay:
                equal = _same_layers(overlay, network, test.images[:simulate], model.stem)
            figures[model.stem] |= {"images_simulated": simulate, "every_layer_equal": equal}
        table.add_row(
            model.stem,
            f"{figures[model.stem]['accuracy']:.2%}",
            f"{figures[model.stem]['density']:.2%}",
            "" if float_accuracy is None else f"{float_accuracy:.2%}",
        )
    console.print(table)
    write_json(json_file, {"data": data, "models": figures})
    different = [
        name
        for name, values in figures.items()
        if False in values.get("labels_equal", {}).values() or not values.get("every_layer_equal", True)
    ]
    if different:
        say(f"different: {', '.join(different)}", style="red")
        raise typer.Exit(1)


def _same_labels(model: Path, images: np.ndarray, labels: np.ndarray) -> dict[str, bool | None]:
    """Whether qonnx gives the images the reference's labels, and whether PyTorch did when the model was written: None
    if its card has no labels."""
    from sentei.host.train.evaluate import qonnx_logits

    inputs = images.astype(np.float32) / 256
    by_qonnx = qonnx_logits(model, inputs, batch=len(inputs)).argmax(1)
    by_torch = np.array(_card(model).get("first_labels", ())[: len(images)])
    return {
        "qonnx": bool((by_qonnx == labels).all()),
        "pytorch": bool((by_torch == labels[: len(by_torch)]).all()) if len(by_torch) else None,
    }


def _same_layers(overlay: SenteiOverlay, network: Network, images: np.ndarray, name: str) -> bool:
    from sentei.host.apps.measure import first_difference
    from sentei.host.compiler.compile import compile_network

    overlay.load(compile_network(network, overlay.manifest.geometry))
    with step(f"{name}: every layer of {len(images)} images") as progress:
        difference = first_difference(overlay, network, images.astype(np.int64), progress)
    if difference is not None:
        say(f"{name}: {difference}", style="red")
    return difference is None


def _card(model: Path) -> dict:
    try:
        card = json.loads(model.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _command() -> str:
    return shlex.join(["sentei", *sys.argv[1:]])


class _Run:
    """One run of `train` or `curve`: what its options mean."""

    def __init__(self, options: dict):
        from sentei.host.apps.target import geometry_named
        from sentei.host.datasets.data import KINDS, DataSet, Split, load
        from sentei.overlay.errors import BuildError
        from sentei.overlay.manifest import MEMORY_MODELS

        for name, value in THREADS.items():
            os.environ.setdefault(name, value)
        try:
            from sentei.host.train import pipeline
        except ImportError as error:
            raise InputError(
                f"training needs PyTorch and Brevitas ({error}): install the package's extra 'train', "
                "as `make setup-train` does"
            ) from error
        from sentei.host.train.networks import NETWORKS
        from sentei.host.train.quantize import Precision

        self.network: str = options["network"]
        self.geometry: str = options["geometry"]
        self.memory: str = options["memory"]
        self.float_weights: Path | None = options["float_weights"]
        self.work: Path = options["work"] / f"{self.network}-{options['data']}"
        self.resume: bool = options["resume"]
        if self.network not in NETWORKS:
            raise InputError(
                f"the network must be one of {', '.join(NETWORKS)}, not {self.network!r}; "
                "for your own, see prune_and_retrain in sentei.host.train.pipeline"
            )
        self.array = geometry = geometry_named(self.geometry)
        if self.memory not in MEMORY_MODELS:
            raise BuildError(f"memory must be one of {', '.join(MEMORY_MODELS)}, not {self.memory!r}")
        data, count = load(options["data"], options["folder"]), options["train_images"]
        train = Split(data.train.images[:count], data.train.labels[:count])
        self.data = DataSet(data.name, train, data.test, data.classes)
        layers: list[str] = options["layer"] or []
        self.plan = pipeline.Plan(
            float_epochs=options["float_epochs"],
            float_cycles=options["float_cycles"],
            epochs=epochs_of(options["epochs"]),
            floors=dict(_layer_density(text) for text in layers if "=x" not in text),
            factors=dict(_layer_density(text.replace("=x", "=")) for text in layers if "=x" in text),
            group=options["group"] or geometry.group_columns,
            aligned=not options["unstructured"],
            seed=options["seed"],
            holdout=options["holdout"],
            mirror=KINDS[data.name].mirror,
            float_learning_rate=options["float_learning_rate"],
            learning_rate=options["learning_rate"],
            precision=Precision(**{name: options[name] for name in ("weights", "activations", "first", "last")}),
        )
        if options["restart"]:
            if self.resume:
                raise InputError("--resume and --restart exclude each other: continue, or begin anew")
            for path in self.work.glob("*.pt"):
                path.unlink()

    def points(self, keeps: list[Fraction]) -> Iterator[Point]:
        """Train, under a progress bar over all epochs."""
        import torch

        from sentei.host.train import pipeline
        from sentei.host.train.networks import NETWORKS

        torch.manual_seed(self.plan.seed)
        network = NETWORKS[self.network](self.data.train.images.shape[1], len(self.data.classes))
        if self.float_weights is not None:
            pipeline.load_float(network, self.float_weights)
        epochs = sum(sum(self.plan.epochs_of(index)) for index in range(len(keeps)))
        if self.float_weights is None:
            epochs += self.plan.float_cycles * self.plan.float_epochs
        with opened("predict", self.geometry, self.memory, results=False):
            pass  # what measures cycles is there, before hours of training
        with _training_bar(epochs) as watch:
            yield from pipeline.prune_and_retrain(
                network,
                self.data,
                keeps,
                self.plan,
                work=self.work,
                resume=self.resume,
                pretrained=self.float_weights is not None,
                geometry=self.array,
                watch=watch,
            )

    def write(self, point: Point, path: Path) -> dict:
        """Export a point, measure it, and write its card; returns the card."""
        from sentei.host.frontend.importer import load
        from sentei.host.network import reference
        from sentei.host.train.export import export
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
                "command": _command(),
                "data": self.data.name,
                "train_images": len(self.data.train) - self.plan.holdout,
                "classes": list(self.data.classes),
                "keep": str(point.keep),
                "density": point.density,
                "layers": dict(point.densities),
                "plan": self.plan.settings(),
                "seconds": round(point.seconds),
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


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise InputError(f"{path}: the file's name must end in {suffix}")


def _layer_density(text: str) -> tuple[str, Fraction]:
    pattern, separator, density = text.partition("=")
    if not separator:
        raise InputError(f"--layer must be NAME=DENSITY or NAME=xFACTOR, not {text!r}")
    return pattern, density_of(density)


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
