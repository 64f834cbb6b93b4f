"""Train, prune, quantize and export the Fashion-MNIST demo network.

    python -m sentei.host.train.fashion_mnist --keep 1   --out models/fmnist-dense.onnx
    python -m sentei.host.train.fashion_mnist --keep 1/9 --out models/fmnist-ninth.onnx

Three stages: a float model; 4-bit training from it, distilled from it, during which the kernel elements of every
convolution but the first fall to the kept fraction; and a last one at a lower learning rate on images that are not
moved.  The float model depends on the seed and the number of float epochs alone: ``--float-only`` ends with it,
``--float-stage build/train/float.pt`` begins from it.  Beside the QONNX file stands its model card (``.json``), whose
accuracy is that of executing the exported graph with qonnx on all test images.

On a CPU, set OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 MALLOC_MMAP_THRESHOLD_=1073741824
MALLOC_TRIM_THRESHOLD_=4294967296: threads that do not spin, and activations that are not mapped anew at each step.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import torch

from sentei.host.train import data
from sentei.host.train.evaluate import qonnx_logits, weight_densities
from sentei.host.train.export import check_residual_scales, export, freeze
from sentei.host.train.loop import Images, Recipe, accuracy, estimate_norms, fit, to_input
from sentei.host.train.model import FashionNet
from sentei.host.train.prune import SlotPruner
from sentei.host.train.quant import calibrate

FLOAT_LEARNING_RATE = 0.1
QUANTIZED_LEARNING_RATE = 0.05
SETTLING_LEARNING_RATE = 0.02
DISTILLATION = 0.5
PRUNING_END = 0.6  # share of the quantized stage after which the masks are frozen
CALIBRATION_IMAGES = 1000
NORM_IMAGES = 20_000
PACKAGES = ("torch", "brevitas", "numpy", "onnx", "qonnx", "onnxruntime")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sentei.host.train.fashion_mnist", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="QONNX file to write; its model card gets .json")
    parser.add_argument("--keep", type=Fraction, default=Fraction(1), help="kept fraction of kernel elements, as 1/9")
    parser.add_argument("--group", type=int, default=8, help="output channels that share their kept elements")
    parser.add_argument("--float-epochs", type=int, default=10, help="epochs of the float stage")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the quantized stage, pruning included")
    parser.add_argument("--settling-epochs", type=int, default=8, help="epochs of the last stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, help="train on the first so many images only (to try things out)")
    parser.add_argument("--data", type=Path, help="folder of the IDX files (default: where Debian installs them)")
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="folder for checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in --work")
    parser.add_argument("--float-only", action="store_true", help="end after the float stage, in --work/float.pt")
    parser.add_argument("--float-stage", type=Path, help="checkpoint of a finished float stage to begin from")
    options = parser.parse_args(arguments)
    if options.out is None and not options.float_only:
        parser.error("--out must name the QONNX file to write, unless --float-only")
    if options.float_stage and not options.float_stage.exists():
        parser.error(f"--float-stage must be a checkpoint, but {options.float_stage} does not exist: use --float-only")

    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    train = _load("train", options.data, options.train_images)
    test = _load("test", options.data)

    float_settings = {"seed": options.seed, "train_images": len(train), "float_epochs": options.float_epochs}
    settings = float_settings | {"epochs": options.epochs, "keep": str(options.keep), "group": options.group}
    teacher = FashionNet(quantized=False).to(memory_format=torch.channels_last)
    float_seconds = fit(
        teacher, train, test, Recipe(options.float_epochs, FLOAT_LEARNING_RATE), seed=options.seed, name="float",
        checkpoint=options.float_stage or options.work / "float.pt", settings=float_settings,
        resume=options.resume or options.float_stage is not None,
    )
    float_accuracy = accuracy(teacher, test)
    if options.float_only:
        return

    network = FashionNet().to(memory_format=torch.channels_last)
    network.load_state_dict(teacher.state_dict(), strict=False)  # what is missing are the scales
    network.eval()
    calibrate(network, to_input(train.images[:CALIBRATION_IMAGES]))
    check_residual_scales(network.residual_adds())
    pruner = SlotPruner(network.prunable(), options.keep, options.group)
    quantized_seconds = fit(
        network, train, test, Recipe(options.epochs, QUANTIZED_LEARNING_RATE, distillation=DISTILLATION),
        seed=options.seed + 1, name=options.out.stem, teacher=teacher,
        checkpoint=options.work / f"{options.out.stem}.pt", settings=settings, resume=options.resume,
        before_step=lambda progress: pruner.update(progress / PRUNING_END),
    )
    settling_seconds = fit(
        network, train, test,
        Recipe(options.settling_epochs, SETTLING_LEARNING_RATE, distillation=DISTILLATION, max_shift=0),
        seed=options.seed + 2, name=f"{options.out.stem} settling", teacher=teacher,
        checkpoint=options.work / f"{options.out.stem}-settled.pt", resume=options.resume,
        settings=settings | {"settling_epochs": options.settling_epochs},
    )
    estimate_norms(network, map(to_input, train.images[:NORM_IMAGES].split(500)))
    kept_slots = pruner.density()
    pruner.finish()
    freeze(network, network.residual_adds())
    export(network, options.out, (1, 1, 28, 28))

    start = time.monotonic()
    inputs = to_input(test.images)
    logits = qonnx_logits(options.out, inputs.numpy())
    reached = float((logits.argmax(1) == test.labels.numpy()).mean())
    with torch.no_grad():
        differing = int((network(inputs).numpy() != logits).any(axis=1).sum())
    card = {
        "file": options.out.name,
        "command": shlex.join(["python", "-m", "sentei.host.train.fashion_mnist",
                               *(sys.argv[1:] if arguments is None else arguments)]),
        "data": "Fashion-MNIST (MIT), 60,000 training and 10,000 test images",
        "classes": list(data.CLASSES),
        **settings,
        "settling_epochs": options.settling_epochs,
        "wall_seconds": {"float": round(float_seconds), "quantized": round(quantized_seconds),
                         "settling": round(settling_seconds), "qonnx_test": round(time.monotonic() - start)},
        "test_images": len(test),
        "float_accuracy": float_accuracy,
        "quantized_accuracy": reached,
        "quantized_accuracy_by": "qonnx.core.onnx_exec.execute_onnx",
        "images_whose_logits_differ_from_torch": differing,
        "kept_slots": kept_slots,
        "nonzero_weights": weight_densities(options.out),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
    }
    options.out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{options.out}: accuracy {reached:.4f} quantized, {float_accuracy:.4f} float", flush=True)


def _load(split: str, folder: Path | None, count: int | None = None) -> Images:
    images, labels = data.fashion_mnist(split, folder)
    return Images(torch.from_numpy(images[:count].copy()), torch.from_numpy(labels[:count].astype("int64")))


if __name__ == "__main__":
    main()
