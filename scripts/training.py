"""Writes the report on training's speed: epochs a second on this machine, of ResNet-20 and 50,000 images of 32x32.

    python scripts/training.py --output reports/training.md

Images and labels are random, and so are weights: what is measured is time. Rows of other machines stay in the report.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sentei.host.commands.console import say, step, write_report
from sentei.host.datasets.dataset import Split
from sentei.host.train.images import Images, best_device, machine, to_input
from sentei.host.train.kernel_size import hold_kernel_sizes
from sentei.host.train.loop import Recipe, fit
from sentei.host.train.networks import NETWORKS
from sentei.host.train.prune import Pruner
from sentei.host.train.quantize import quantize
from sentei.overlay.errors import SenteiError

NETWORK, CLASSES, SHAPE = "resnet20", 10, (3, 32, 32)
EPOCH_IMAGES = 50_000
BATCH = 256
SEED = 0
ELSEWHERE = (
    "On an H200 (another machine, measured when this loop did not exist yet): the loop of before, with a "
    "synchronization each step, made 0.40 epochs a second with ResNet-20 in 4 bits; a prototype that captures the "
    "whole step as a CUDA graph made 2.28, and 3.39 with eight models side by side. This loop was not measured on a "
    "GPU yet."
)


def images(count: int, device: torch.device) -> Images:
    rng = np.random.default_rng(SEED)
    pixels = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return Images(Split(pixels, rng.integers(0, CLASSES, count)), device)


def epochs_a_second(network: nn.Module, train: Images, test: Images, recipe: Recipe, **options) -> float:
    """Of the fastest of three epochs behind a first one, without its test."""
    marks: list[float] = []
    fit(
        network,
        train,
        test,
        recipe,
        seed=SEED,
        stage="speed",
        watch=lambda moment: marks.append(time.monotonic()) if moment.step in (1, moment.steps) else None,
        **options,
    )
    # Three marks an epoch: its first step's end, its last step's, and its test's.
    steps = len(train) // recipe.batch - 1
    seconds = min(marks[3 * epoch + 1] - marks[3 * epoch] for epoch in range(1, recipe.epochs))
    return steps * recipe.batch / seconds / EPOCH_IMAGES


def measured(batches: int) -> dict[str, float]:
    """Epochs a second of the float network, and of one in 4 bits that it teaches while it is being pruned."""
    device = best_device()
    torch.manual_seed(SEED)
    train, test = images(BATCH * batches, device), images(BATCH, device)
    network = NETWORKS[NETWORK](SHAPE[0], CLASSES).to(device).to(memory_format=torch.channels_last)
    recipe = Recipe(epochs=4, learning_rate=0.01, batch=BATCH)
    rates = {"float": epochs_a_second(network, train, test, recipe)}
    student = quantize(network, to_input(train.images[:BATCH]))
    pruner = Pruner(student, group=8)
    hold_kernel_sizes(student)
    pruner.begin(Fraction(1, 9))
    recipe = Recipe(epochs=4, learning_rate=0.01, batch=BATCH, distillation=0.5)
    rates["4 bits"] = epochs_a_second(
        student, train, test, recipe, teacher=network.eval(), before_step=lambda progress: pruner.update(progress)
    )
    return rates


def report(rows: list[dict]) -> str:
    lines = [
        "# How fast training is",
        "",
        f"Written by `make training-speed`: epochs a second of ResNet-20, {EPOCH_IMAGES:,} images of 32x32, batches of "
        f"{BATCH}; in 4 bits with a teacher, pruned at each step. Tests between epochs do not count.",
        "",
        "| machine | PyTorch | loop | float | 4 bits, taught |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['machine']} | {row['torch']} | {row['loop']} | {row['float']:.4f} | {row['4 bits']:.4f} |"
            for row in rows
        ),
        "",
        ELSEWHERE,
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=24, help="batches of an epoch that is measured (default: 24)")
    parser.add_argument("--loop", default="now", help="what the row is called, for comparisons (default: now)")
    parser.add_argument("--output", type=Path, required=True, help="report to write; the figures get .json")
    arguments = parser.parse_args()
    with step(f"training {NETWORK} for {8 * arguments.batches} steps"):
        rates = measured(arguments.batches)
    row = {"machine": machine(best_device()), "torch": torch.__version__, "loop": arguments.loop} | rates
    figures = arguments.output.with_suffix(".json")
    rows = json.loads(figures.read_text())["rows"] if figures.exists() else []
    same = ("machine", "torch", "loop")
    rows = [other for other in rows if any(other[key] != row[key] for key in same)] + [row]
    say(f"{row['machine']}: {rates['float']:.4f} epochs a second in float, {rates['4 bits']:.4f} in 4 bits, taught")
    write_report(arguments.output, report(rows), {"command": "make training-speed", "network": NETWORK, "rows": rows})


if __name__ == "__main__":
    try:
        main()
    except SenteiError as error:
        sys.exit(f"error: {error}")
