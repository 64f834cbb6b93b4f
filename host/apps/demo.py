"""The demonstration: real pictures, classified on the Verilated SoC by a pruned network and by its dense twin."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sentei.driver import SenteiOverlay
from sentei.host.apps import charts
from sentei.host.apps.measure import first_difference
from sentei.host.apps.target import build_simulator
from sentei.host.compiler.compile import compile_network
from sentei.host.datasets.catalogue import KINDS, load_split
from sentei.host.frontend.importer import load
from sentei.host.network import reference

GEOMETRY, MEMORY = "32x32", "zynq-hp"
DATA = "fashion-mnist"
CLASSES = KINDS[DATA].classes


@dataclass(frozen=True)
class Picture:
    """One classified picture: `truth` and `label` are class names, `confidence` is the softmax of the label's logit."""

    truth: str
    label: str
    confidence: float
    exact: bool  # every layer equalled the reference

    @property
    def right(self) -> bool:
        return self.truth == self.label


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def run_demo(models: Path, output: Path, count: int, step) -> tuple[dict, list[Picture]]:
    """Classify the first `count` test pictures; writes result.png and result.json under `output`.

    `step(text)` returns a context manager that yields a progress function (done, total). Returns the content of
    result.json and the pictures.
    """
    output.mkdir(parents=True, exist_ok=True)
    test = load_split(DATA, "test")
    pictures, labels = test.images, test.labels
    batch = pictures[:count].astype(np.int64)
    networks = {kind: load(models / f"fmnist-{kind}.onnx") for kind in ("ninth", "dense")}

    with step(f"building the {GEOMETRY} simulator (first time: one to three minutes)"):
        directory = build_simulator(GEOMETRY, MEMORY)
    exact: dict[str, list[bool]] = {}
    cycles = {}
    with SenteiOverlay(directory) as overlay:
        simulator = overlay.device.simulator
        begin_cycles, begin = simulator.cycles, time.perf_counter()
        for kind, network in networks.items():
            overlay.load(compile_network(network, overlay.manifest.geometry, CLASSES))
            with step(f"{kind}: classifying {count} pictures") as progress:
                outputs = []
                for number, values in enumerate(overlay.stream(iter(batch))):
                    outputs.append(values.logits)
                    progress(number + 1, count)
            cycles[kind] = overlay.last_cycles
            if kind == "ninth":
                logits = np.array(outputs)
            with step(f"{kind}: comparing every layer with the reference") as progress:
                exact[kind] = []
                for number, image in enumerate(batch):
                    exact[kind].append(first_difference(overlay, network, image[None]) is None)
                    progress(number + 1, count)
        simulated_cycles, seconds = simulator.cycles - begin_cycles, time.perf_counter() - begin
    accuracy = {}
    for kind, network in networks.items():
        with step(f"{kind}: reference on all {len(pictures)} test pictures") as progress:
            predicted = reference.predict(network, pictures, progress).argmax(1)
            accuracy[kind] = float((predicted == labels).mean())

    chances = softmax(logits)
    results = [
        Picture(
            CLASSES[labels[number]],
            CLASSES[chances[number].argmax()],
            float(chances[number].max()),
            exact["ninth"][number],
        )
        for number in range(count)
    ]
    summary = {
        "model": "fmnist-ninth",
        "geometry": GEOMETRY,
        "memory_model": MEMORY,
        "images": count,
        "correct": sum(result.right for result in results),
        "bit_exact": all(all(values) for values in exact.values()),
        "cycles_per_image": cycles["ninth"],
        "dense_cycles_per_image": cycles["dense"],
        "speedup": cycles["dense"] / cycles["ninth"],
        "accuracy": accuracy["ninth"],
        "dense_accuracy": accuracy["dense"],
        "clock_cycles_simulated": simulated_cycles,
        "simulated_khz": simulated_cycles / seconds / 1e3,
        "labels": [result.label for result in results],
    }
    charts.gallery(
        pictures[:count, 0],
        [f"{result.label}\n{result.confidence:.0%}" for result in results],
        [result.right for result in results],
        f"INT4, 1/9 of the kernel elements: {summary['correct']} of {count} right, "
        f"{summary['cycles_per_image']} cycles a picture, {summary['speedup']:.1f}x the dense network's speed",
        output / "result.png",
    )
    (output / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary, results
