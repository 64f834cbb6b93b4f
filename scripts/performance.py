"""Writes the report on performance: whole networks on the simulated SoC, and a sweep over layers.

    python scripts/performance.py models/resnet*.onnx --output reports/performance.md

Cycles of networks are those of the Verilated SoC, and beside them what the engine's control alone predicts. The sweep
is of the control: each layer stands between two others like it, so that what is measured is a layer inside a network.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from sentei.boards.sim import build
from sentei.driver import SenteiOverlay
from sentei.gateware.technologies.technology import CONTROL
from sentei.host.apps.measure import benchmark
from sentei.host.commands.console import step, write_report
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.host.network.ir import Conv, Network, Pads, Requantize, Shape, Tensor
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import PRESETS, Geometry
from sentei.overlay.instructions import THRESHOLDS

GEOMETRY = "32x32"
MEMORY = "zynq-hp"
BATCHES = (1, 4)
CHANNELS = (16, 32, 64, 128, 256)
MAPS = (4, 7, 8, 14, 16, 28, 32, 56)
KERNELS = (3, 1)
DENSITIES = (Fraction(1), Fraction(1, 9))
SWEEP_ACTIVATION_WORDS = 1 << 14  # as far as a tap reaches
REQUIRED = 0.92  # utilisation of 3x3 layers with 64 channels or more and maps of 14x14 or more

PUBLISHED = [
    ("nn2fpga, ResNet-20", "7,601 fps", "Kria KV260, 250 MHz, measured on the board"),
    ("FINN, ResNet-8, INT4", "13,475 fps", "Kria K26, 225 MHz, measured on the board"),
    ("Tensil, ResNet-20", "6.1 fps", "Zynq-7020, measured on the board"),
    ("hls4ml, ResNet-8", "36.6 fps", "Zynq-7020, measured on the board"),
    ("FINN, CNV-w1a1", "661 fps", "PYNQ-Z2, measured on the board"),
]


def measure_network(path: Path, whole: SenteiOverlay, control: SenteiOverlay) -> dict:
    """Figures of a model: one picture a job, and in batches."""
    network = load(path)
    program = compile_network(network, PRESETS[GEOMETRY])
    whole.load(program)
    control.load(program)
    measured, predicted = benchmark(whole), benchmark(control)
    figures = {
        "cycles": measured.cycles,
        "predicted_cycles": predicted.cycles,
        "bound_cycles": measured.bound_cycles,
        "utilisation": measured.utilisation,
        "fps_100mhz": 1e8 / measured.cycles,
        "bytes": sum(layer["bytes"] for layer in measured.layers),
        "simulated_khz": measured.simulated_khz,
        "batches": {},
    }
    for batch in BATCHES[1:]:
        whole.load(compile_network(network, PRESETS[GEOMETRY], batch=batch))
        in_batch = benchmark(whole)
        figures["batches"][str(batch)] = {
            "cycles": in_batch.cycles,
            "utilisation": in_batch.utilisation,
            "fps_100mhz": 1e8 / in_batch.cycles,
        }
    return figures


def layer_network(kernel: int, channels: int, extent: int, density: Fraction, seed: int = 0) -> Network:
    """Three equal convolutions in a row, that keep the map's size and `density` of the slots of each block."""
    rng = np.random.default_rng(seed)
    columns = PRESETS[GEOMETRY].group_columns
    slots = channels * kernel**2
    names = ["input", "first", "middle", "last"]
    tensors = {name: Tensor(name, Shape(channels, extent, extent), 4, False) for name in names}
    thresholds = np.tile((np.arange(1, THRESHOLDS + 1) - 8) * 64, (channels, 1))
    full = np.full(channels, 15)
    ops = []
    for source, target in pairwise(names):
        kept = rng.permuted(np.tile(np.arange(slots) < round(slots * density), (channels // columns, 1)), axis=1)
        weights = rng.choice([-7, -3, 2, 6], (channels, slots)) * np.repeat(kept, columns, axis=0)
        ops.append(
            Conv(
                target,
                source,
                target,
                weights.reshape(channels, channels, kernel, kernel).astype(np.int16),
                pads=Pads(*[kernel // 2] * 4),
                requantize=Requantize(thresholds, np.zeros(channels, bool), np.zeros(channels, np.int64), full),
            )
        )
    ones = np.ones(channels, np.float32)
    return Network(f"{kernel}x{kernel}-{channels}-{extent}", tensors, tuple(ops), "input", "last", ones, 0 * ones)


def sweep(control: SenteiOverlay, geometry: Geometry) -> list[dict]:
    """Figures of the middle one of three equal layers, for every kernel, density, number of channels, map and batch."""
    cases = list(product(KERNELS, DENSITIES, CHANNELS, MAPS, BATCHES))
    rows = []
    with step(f"{len(cases)} layers") as progress:
        for number, (kernel, density, channels, extent, batch) in enumerate(cases):
            row = {"kernel": kernel, "density": str(density), "channels": channels, "map": extent, "batch": batch}
            try:
                program = compile_network(layer_network(kernel, channels, extent, density), geometry, batch=batch)
                if program.jobs > 1:
                    raise CapacityError(f"runs in {len(program.stages)} stages")
            except CapacityError as error:
                row["does_not_fit"] = str(error)
            else:
                control.load(program)
                middle = benchmark(control).layers[1]
                row |= {name: middle[name] for name in ("cycles", "bound_cycles", "utilisation")}
            rows.append(row)
            progress(number + 1, len(cases))
    return rows


def report(figures: dict) -> str:
    """The figures as Markdown."""
    lines = [
        "# Performance",
        "",
        f"Written by `make performance`. {figures['geometry']}, main memory modelled as {figures['memory_model']}. "
        "Cycles are of the Verilated SoC in steady state, from image in main memory to result in main memory; the "
        "engine's control alone predicts the same number. Nothing here was measured on a board: frames per second are "
        "these cycles at a clock of 100 MHz. The bound is surviving MACs / 1024, 8-bit operands counted as their "
        "nibble passes.",
        "",
        "| network | cycles | predicted | bound | utilisation | dense twin / this | fps at 100 MHz | bytes moved | "
        "cycles in batches of 4 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in figures["networks"].items():
        batch = row["batches"]["4"]
        lines.append(
            f"| {name} | {row['cycles']:,} | {row['predicted_cycles']:,} | {row['bound_cycles']:,.0f} | "
            f"{row['utilisation']:.1%} | {row['speedup']:.2f} | {row['fps_100mhz']:,.0f} | {row['bytes']:,.0f} | "
            f"{batch['cycles']:,.0f} ({batch['utilisation']:.1%}) |"
        )
    lines += [
        "",
        f"The simulated SoC's clock: {figures['simulated_khz']:.0f} kHz on the machine that wrote this.",
        "",
        "## Published figures, for comparison",
        "",
        "On other devices, at other clocks, with other precisions; they are measured on boards, those above are not.",
        "",
        "| | frames per second | |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {name} | {speed} | {where} |" for name, speed, where in PUBLISHED]
    lines += [
        "",
        "## Layers",
        "",
        "Utilisation of a layer between two others like it, in jobs of one picture / of four; activation memory "
        f"of {SWEEP_ACTIVATION_WORDS} words. Small maps fill the last tile of 32 pixels badly (14x14: 7 tiles, "
        "87.5 % of their lanes); pictures of a batch share it.",
        "",
    ]
    for kernel, density in product(KERNELS, DENSITIES):
        lines += [
            f"### {kernel}x{kernel}, {density} of the kernel elements",
            "",
            "| channels | " + " | ".join(f"{extent}x{extent}" for extent in MAPS) + " |",
            "| --- |" + " --- |" * len(MAPS),
        ]
        for channels in CHANNELS:
            cells = []
            for extent in MAPS:
                rows = [
                    row
                    for row in figures["layers"]
                    if (row["kernel"], row["density"], row["channels"], row["map"])
                    == (kernel, str(density), channels, extent)
                ]
                cells.append(" / ".join(f"{row['utilisation']:.0%}" if "utilisation" in row else "-" for row in rows))
            lines.append(f"| {channels} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def below_requirement(rows: list[dict]) -> list[dict]:
    """Required layers whose best batch does not reach REQUIRED."""
    best: dict[tuple, float] = {}
    for row in rows:
        if row["kernel"] == 3 and row["channels"] >= 64 and row["map"] >= 14 and "utilisation" in row:
            key = (row["density"], row["channels"], row["map"])
            best[key] = max(best.get(key, 0.0), row["utilisation"])
    return [
        dict(zip(("density", "channels", "map"), key, strict=True), utilisation=value)
        for key, value in best.items()
        if value < REQUIRED
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="QONNX models; NAME-dense is the dense twin of NAME-...")
    parser.add_argument("--output", type=Path, required=True, help="report to write; the figures get .json")
    arguments = parser.parse_args()
    networks: dict[str, dict] = {}
    whole = SenteiOverlay(build(GEOMETRY, MEMORY))
    control = SenteiOverlay(build(GEOMETRY, MEMORY, f"build/sim/{GEOMETRY}-{MEMORY}-control", CONTROL))
    with whole, control, step(f"{len(arguments.models)} networks") as progress:
        for number, path in enumerate(arguments.models):
            networks[path.stem] = measure_network(path, whole, control)
            progress(number + 1, len(arguments.models))
    for name, row in networks.items():
        dense = networks.get(name.rsplit("-", 1)[0] + "-dense", row)
        row |= {"dense_cycles": dense["cycles"], "speedup": dense["cycles"] / row["cycles"]}
    large = replace(PRESETS[GEOMETRY], activation_words=SWEEP_ACTIVATION_WORDS)
    with SenteiOverlay(build(large, MEMORY, "build/sim/sweep-control", CONTROL)) as control:
        layers = sweep(control, large)
    figures = {
        "command": "make performance",
        "geometry": str(PRESETS[GEOMETRY]),
        "memory_model": MEMORY,
        "simulated_khz": max(row["simulated_khz"] for row in networks.values()),
        "networks": networks,
        "layers": layers,
        "below_requirement": below_requirement(layers),
    }
    write_report(arguments.output, report(figures), figures)


if __name__ == "__main__":
    main()
