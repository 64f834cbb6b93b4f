"""The commands `sentei train`, `sentei curve` and `sentei accuracy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.table import Table

from sentei.host.commands.console import (
    GeometryName,
    JsonFile,
    MemoryName,
    console,
    opened,
    say,
    step,
    write_json,
    writing,
)
from sentei.host.commands.training_options import (
    DataName,
    Folder,
    TrainingOptions,
    check_suffix,
    density_of,
    with_training_options,
)
from sentei.host.commands.training_run import LABELS, TrainingRun, command_line
from sentei.overlay.errors import InputError

if TYPE_CHECKING:
    from sentei.driver import SenteiOverlay
    from sentei.host.network.ir import Network

DENSITY_NAMES = {
    "1": "dense",
    "1/2": "half",
    "1/3": "third",
    "2/9": "quarter",
    "1/6": "sixth",
    "1/9": "ninth",
    "1/12": "twelfth",
}


@with_training_options()
def train(
    options: TrainingOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="QONNX model to write; its card gets .json")],
    keep: Annotated[str, typer.Option(help="fraction of the kernel elements to keep, as 1/9")] = "1",
) -> None:
    """Train a network, prune and retrain it in 4 bits, and write it as a QONNX model.

    A float network is trained first, or its weights are taken from --weights. Then it is quantized, and while it is
    trained on, kernel elements fall away until --keep of them are left: output channels that share a step of the array
    lose the same ones.
    """
    check_suffix(output, ".onnx")
    run, keeps = TrainingRun(options), [density_of(keep)]
    if not run.writes:
        return run.help_along(keeps)
    for point in run.points(keeps):
        run.write(point, output)


@with_training_options(epochs="20,8")
def curve(
    options: TrainingOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the models and their cards")],
    report: Annotated[Path, typer.Option(help="picture to write; the figures get .json")],
    keep: Annotated[str, typer.Option(help="densities, falling")] = "1,1/2,1/3,1/4.5,1/6,1/9,1/12",
    name: Annotated[
        str | None,
        typer.Option(help="models are called NAME-dense, NAME-half, ... (default: the network and the data set)"),
    ] = None,
) -> None:
    """Accuracy against cycles, in one run: prune and retrain through many densities, with a finished model at each.

    The accuracies are those of the integer reference on all test images, the cycles those of the simulated hardware.
    """
    from sentei.host.apps.charts import curve_chart

    check_suffix(report, ".png")
    run, keeps = TrainingRun(options), [density_of(text) for text in keep.split(",")]
    if not run.writes:
        return run.help_along(keeps)
    stem = name or f"{run.name}-{run.data.name}"
    cards = []
    for point in run.points(keeps):
        label = DENSITY_NAMES.get(str(point.keep), f"keep-{str(point.keep).replace('/', '-')}")
        cards.append(run.write(point, output / f"{stem}-{label}.onnx"))
    figures = {
        "network": run.name,
        "data": run.data.name,
        "command": command_line(),
        "geometry": options.geometry,
        "memory_model": options.memory,
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
    from sentei.host.datasets.catalogue import load_split
    from sentei.host.frontend.importer import load
    from sentei.host.network import reference
    from sentei.host.network.ir import kept_density

    group = geometry_named(geometry).group_columns
    if len({model.stem for model in models}) < len(models):
        raise InputError("the models must have different names, which the figures are listed by")
    networks = {model: load(model) for model in models}
    shapes = {model: network.tensors[network.input].shape for model, network in networks.items()}
    tests = {}
    for shape in set(shapes.values()):
        with step(f"reading {data}") as progress:
            tests[shape] = load_split(data, "test", folder, shape, progress)
    table = Table(
        title=f"{len(next(iter(tests.values())))} test images of {data}, integer reference", title_justify="left"
    )
    for column in ("model", "accuracy", "kernel elements", "float network"):
        table.add_column(column)
    figures = {}
    for model, network in networks.items():
        test = tests[shapes[model]]
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
    from sentei.host.apps.evaluate import qonnx_logits

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
