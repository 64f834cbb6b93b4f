"""Writes the report on pruning: what each part of the recipe is worth, on ResNet-8 and CIFAR-10 at one density.

    python scripts/pruning.py --folder cifar-10-batches-bin --float build/train/resnet8-cifar10/float-2.pt \\
        --dense models/resnet8-c10-dense.onnx --output reports/pruning.md

One change at a time, all from the same float network, quantized and pruned in a single stage. Each variant has its
checkpoints in --work, so that what is done is not repeated. Accuracies are those of the integer reference on all test
images, cycles those of the simulated hardware's control.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import torch

from sentei.driver import SenteiOverlay
from sentei.host.apps.measure import benchmark
from sentei.host.apps.target import build_simulator
from sentei.host.commands.console import step, write_report
from sentei.host.compiler.compile import compile_network
from sentei.host.datasets import catalogue, dataset
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.host.train import pipeline
from sentei.host.train.export import export
from sentei.host.train.networks import NETWORKS
from sentei.host.train.quantizers import Precision
from sentei.overlay.errors import SenteiError

NETWORK = "resnet8"
KEEP = Fraction(1, 9)
FLOORS = {
    "stem.0": Fraction(16, 27),
    "*shortcut*": Fraction(1, 2),
    "blocks.1.shortcut.0": Fraction(1),
    "blocks.0.conv*": Fraction(1, 9),
    "blocks.1.conv1.0": Fraction(1, 9),
}


@dataclass(frozen=True)
class Variant:
    name: str
    plan: dict = field(default_factory=dict)  # what differs from the plan
    sizes_held: bool = True


VARIANTS = (
    Variant("blocks of 8 channels, as the array wants them"),
    Variant("blocks of 16", {"group": 16}),
    Variant("blocks of 32", {"group": 32}),
    Variant("unstructured", {"aligned": False}),
    Variant("blocks of 8, no distillation", {"distillation": 0.0}),
    Variant("blocks of 8, kernels not held at the size that fits their grids", sizes_held=False),
)


def train(
    variant: Variant, cifar10: dataset.DataSet, weights: Path, epochs: int, work: Path
) -> tuple[pipeline.Point, Path]:
    """The finished model of a variant, and its QONNX file."""
    plan = pipeline.Plan(**{"epochs": epochs, "floors": FLOORS, "precision": Precision(first=4), **variant.plan})
    folder = work / variant.name.replace(" ", "-").replace(",", "")
    torch.manual_seed(plan.seed)
    network = NETWORKS[NETWORK](3, len(cifar10.classes))
    pipeline.load_float(network, weights)
    held = nullcontext() if variant.sizes_held else patch.object(pipeline, "hold_kernel_sizes", lambda network: None)
    with held, step(f"{variant.name}: {epochs} epochs") as progress:
        (point,) = pipeline.prune_and_retrain(
            network,
            cifar10,
            [KEEP],
            plan,
            work=folder,
            resume=True,
            pretrained=True,
            watch=lambda moment: progress(moment.epoch * moment.steps + moment.step, moment.epochs * moment.steps),
        )
    export(point.network, path := folder / "model.onnx", (1, 3, 32, 32))
    return point, path


def report(figures: dict) -> str:
    """The figures as Markdown."""
    lines = [
        "# What pruning in aligned blocks costs, and what it buys",
        "",
        f"Written by `make pruning`. ResNet-8 on CIFAR-10, 4 bits, {figures['keep']} of the kernel elements, each "
        f"variant quantized and pruned in one stage of {figures['epochs']} epochs from the same float network "
        f"({figures['float_accuracy']:.2%}); the published models are trained longer. Accuracy: integer reference, "
        f"{figures['images']:,} test images. Cycles: 32x32 array, simulated control; dense, the network takes "
        f"{figures['dense_cycles']:,}.",
        "",
        "| | accuracy | kernel elements kept | cycles | faster than dense |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in figures["variants"]:
        lines.append(
            f"| {row['name']} | {row['accuracy']:.2%} | {row['density']:.4f} | {row['cycles']:,} | "
            f"{figures['dense_cycles'] / row['cycles']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of CIFAR-10's binary version")
    parser.add_argument("--float", type=Path, required=True, help="float ResNet-8: a checkpoint of `sentei curve`")
    parser.add_argument("--dense", type=Path, required=True, help="QONNX model of the dense network")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each variant (default: 12)")
    parser.add_argument("--work", type=Path, default=Path("build/train/pruning"), help="folder for checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="report to write; the figures get .json")
    arguments = parser.parse_args()
    for path in (arguments.float, arguments.dense):
        if not path.exists():
            parser.error(f"{path} does not exist; `sentei curve resnet8` --work build/train -o models makes it")
    cifar10 = catalogue.load("cifar10", arguments.folder)
    rows = []
    with SenteiOverlay(build_simulator(control=True)) as control:

        def cycles_of(path: Path) -> int:
            control.load(compile_network(load(path), control.manifest.geometry))
            return benchmark(control).cycles

        dense_cycles = cycles_of(arguments.dense)
        for variant in VARIANTS:
            point, path = train(variant, cifar10, arguments.float, arguments.epochs, arguments.work)
            with step(f"{variant.name}: {len(cifar10.test)} images") as progress:
                predicted = reference.predict(load(path), cifar10.test.images, progress).argmax(1)
            rows.append(
                {
                    "name": variant.name,
                    "accuracy": float((predicted == cifar10.test.labels).mean()),
                    "density": point.density,
                    "cycles": cycles_of(path),
                    "seconds": round(point.seconds),
                }
            )
    figures = {
        "command": "make pruning",
        "network": NETWORK,
        "keep": str(KEEP),
        "epochs": arguments.epochs,
        "float_accuracy": point.float_accuracy,
        "images": len(cifar10.test),
        "dense_cycles": dense_cycles,
        "variants": rows,
    }
    write_report(arguments.output, report(figures), figures)


if __name__ == "__main__":
    try:
        main()
    except SenteiError as error:
        sys.exit(f"error: {error}")
