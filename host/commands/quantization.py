"""The command `quantize`: a float model after training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sentei.host.commands.console import JsonFile, say, step, write_json, writing
from sentei.overlay.errors import InputError


def numbers(text: str | None, name: str) -> list[float]:
    """What 0.485,0.456,0.406 says."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise InputError(f"--{name} must be numbers with commas, one for each channel, not {text!r}") from None


def quantize(
    model: Annotated[Path, typer.Argument(help="ONNX model of floats")],
    calibrate: Annotated[Path, typer.Option(help="folder of pictures, or .npy file of the model's inputs (N, ...)")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file (default: MODEL-int4.onnx)")] = None,
    mean: Annotated[str | None, typer.Option(help="of pictures from 0 to 1: 0.485,0.456,0.406")] = None,
    std: Annotated[str | None, typer.Option(help="of pictures from 0 to 1: 0.229,0.224,0.225")] = None,
    white: Annotated[float, typer.Option(help="what a white pixel is to the model: 1 or 255")] = 1.0,
    json_file: JsonFile = None,
) -> None:
    """Quantize a float model to 4 bits (first and last layer's weights and the input: 8), calibrated over pictures.

    Pictures are taken from 0 to --white; a mean and a standard deviation become part of the model. Accuracy is lost:
    the report says how often the quantized network's answer is the float model's. Training with Quant nodes loses less.
    """
    import onnx

    from sentei.host.apps.pictures import read_floats
    from sentei.host.apps.quantize import quantize as quantized

    pictures = read_floats(calibrate, model, white)
    with step(f"calibrating over {len(pictures)} pictures") as progress:
        found = quantized(model, pictures, numbers(mean, "mean"), numbers(std, "std"), progress)
    output = output or model.with_name(f"{model.stem}-int4.onnx")
    with writing(output):
        onnx.save(found.model, output)
    say(f"model: {output}")
    say(
        f"on the {len(pictures)} pictures: same answer as the float model {found.agreement:.1%}, outputs differ by "
        f"{found.relative_error:.1%} (root mean square); ranges at the {found.percentile:g}th percentile"
    )
    figures = {"agreement": found.agreement, "relative_error": found.relative_error, "percentile": found.percentile}
    write_json(json_file, {"model": str(output), "pictures": len(pictures), **figures})
