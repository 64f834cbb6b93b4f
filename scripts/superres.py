"""Enlarges a photograph with a super-resolution network of the package qonnx, on the simulated SoC.

    python scripts/superres.py                      matplotlib's photograph of Grace Hopper
    python scripts/superres.py photo.jpg --output build/superres

The photograph is made half as large (bilinear, as in the network's training), and enlarged again: by the network (ESPCN
of 4 bits, trained by others), and by bicubic interpolation. Every layer of the network is compared with the integer
reference. Writes result.jpg and result.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from sentei.driver import SenteiOverlay
from sentei.host.apps.measure import first_difference
from sentei.host.apps.pictures import read_image
from sentei.host.apps.target import build_simulator
from sentei.host.commands.console import say, step
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.manifest import Manifest

MODEL = Path(str(files("qonnx"))) / "data" / "onnx" / "bsd300x3-espcn" / "nn_resize" / "quant_model.onnx"
PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def square(path: Path, size: int) -> Image.Image:
    """The upper middle of a photograph."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    side = min(picture.size)
    left = (picture.width - side) // 2
    return picture.crop((left, 0, left + side, side)).resize((size, size), Image.Resampling.BICUBIC)


def decibels(picture: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures."""
    error = np.mean((picture.astype(float) - truth.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def draw(panels: dict[str, Image.Image], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.4), layout="constrained")
    for axis, (title, picture) in zip(axes, panels.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 85})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path, nargs="?", default=PHOTOGRAPH)
    parser.add_argument("--output", type=Path, default=Path("build/superres"), help="folder (default: build/superres)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    directory = build_simulator()
    network = load(MODEL)
    program = compile_network(network, Manifest.load(directory).geometry)
    _, height, width = program.input_shape
    truth = square(arguments.photograph, 2 * height)
    small = truth.resize((width, height), Image.Resampling.BILINEAR)
    small.save(arguments.output / "small.png")
    image = read_image(arguments.output / "small.png", program)
    with SenteiOverlay(directory) as overlay:
        overlay.load(program)
        with step(f"enlarging {width}x{height} pixels in {program.jobs} jobs"):
            outputs = overlay.run(image[None])
            cycles = overlay.picture_cycles
        with step("comparing every layer with the reference"):
            difference = first_difference(overlay, network, image[None])
    enlarged = np.clip(np.rint(outputs.model[0].transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)
    bicubic = small.resize(truth.size, Image.Resampling.BICUBIC)
    made = {"bicubic": bicubic, "network": Image.fromarray(enlarged)}
    figures: dict = {
        "command": "python scripts/superres.py",
        "model": "qonnx, bsd300x3-espcn, nn_resize, 4 bits",
        "photograph": arguments.photograph.name,
        "exact": difference is None,
        "difference": str(difference or ""),
        "stages": len(program.stages),
        "jobs": program.jobs,
        "cycles": cycles,
        "fps_100mhz": round(1e8 / cycles, 1),
        "decibels": {name: round(decibels(np.array(of), np.array(truth)), 2) for name, of in made.items()},
    }
    titled = {f"{name}: {figures['decibels'][name]} dB": of for name, of in made.items()}
    panels = {"small": small, **titled, "photograph": truth}
    draw(panels, arguments.output / "result.jpg")
    (arguments.output / "result.json").write_text(json.dumps(figures, indent=2) + "\n")
    say(json.dumps(figures, indent=2))
    say(f"picture: {arguments.output / 'result.jpg'}")
    if difference is not None:
        sys.exit(1)


if __name__ == "__main__":
    main()
