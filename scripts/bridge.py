"""Runs many inferences over the serial bridge, on a simulated SoC behind TCP, and reports how long each took.

First over a good line, then over one that flips, loses, doubles and delays bytes:

    PYTHONPATH=tests python scripts/bridge.py models/fmnist-ninth.onnx --output reports/bridge.json

Every output of every inference is compared with the integer reference; the script fails if one is lost or differs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from helpers.noisy_line import NoisyLine

from sentei.driver import SenteiOverlay
from sentei.driver.bridge import BridgeDevice
from sentei.host.apps.target import build_simulator
from sentei.host.commands.console import say, step
from sentei.host.compiler.compile import compile_network
from sentei.host.datasets.catalogue import load_split
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.overlay.manifest import Manifest

EVERY = 2000  # bytes of the bad line; one of them suffers
SEED = 1


def measure(model: Path, geometry: str, count: int, noisy: bool) -> dict:
    directory = build_simulator(geometry)
    network = load(model)
    program = compile_network(network, Manifest.load(directory).geometry)
    images = load_split("fashion-mnist", "test").images[:count]
    expected = reference.run(network, images)[network.output]
    server = subprocess.Popen(
        [sys.executable, "-m", "sentei.host.commands.cli", "serve", "--port", "0", "--geometry", geometry],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = next(found[0] for line in server.stdout if (found := re.search(r"tcp:localhost:\d+", line)))
        line = NoisyLine(int(port.rpartition(":")[2]), EVERY, SEED) if noisy else None
        port = f"tcp:localhost:{line.port}" if line else port
        seconds, wrong = [], 0
        with SenteiOverlay(directory, device=BridgeDevice(directory, port)) as overlay:
            begin = time.perf_counter()
            overlay.load(program)
            loaded = time.perf_counter() - begin
            with step(f"{count} inferences over {port}") as progress:
                for number, image in enumerate(images):
                    begin = time.perf_counter()
                    output = overlay.run(image[None])
                    seconds.append(time.perf_counter() - begin)
                    wrong += not np.array_equal(output[0], expected[number])
                    progress(number + 1, count)
            cycles = overlay.last_cycles
    finally:
        server.terminate()
        server.wait(10)
    milliseconds = 1e3 * np.array(seconds)
    return {
        "model": program.name,
        "geometry": str(program.geometry),
        "inferences": len(seconds),
        "wrong": wrong,
        "cycles": cycles,
        "load_s": round(loaded, 3),
        "latency_ms": {
            "mean": round(milliseconds.mean(), 2),
            "median": round(np.median(milliseconds), 2),
            "p95": round(np.percentile(milliseconds, 95), 2),
            "most": round(milliseconds.max(), 2),
        },
        "input_bytes": program.input_bytes,
        "output_bytes": program.output_bytes,
        "line": {kind: number for kind, number in sorted(line.suffered.items()) if kind} if line else "good",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="QONNX model of Fashion-MNIST's pictures")
    parser.add_argument("--inferences", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--geometry", default="32x32", help="of the simulated engine (default 32x32)")
    parser.add_argument("--output", type=Path, help="report (JSON)")
    arguments = parser.parse_args()
    figures = {
        name: measure(arguments.model, arguments.geometry, arguments.inferences, noisy)
        for name, noisy in (("good line", False), ("bad line", True))
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    say(json.dumps(figures, indent=2))
    if any(row["wrong"] or row["inferences"] != arguments.inferences for row in figures.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
