"""Options that the training commands share, and what their texts mean."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from sentei.host.commands.console import GeometryName, MemoryName
from sentei.overlay.errors import InputError

NetworkName = Annotated[str | None, typer.Argument(help="resnet20, resnet8 or fashion")]
OwnNetwork = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="FILE.py:NAME",
        help="your own: a class or function that returns a torch.nn.Module; it is given in_channels, and classes or "
        "num_classes, if it has such parameters",
    ),
]
DataName = Annotated[
    str,
    typer.Option(
        "--data",
        help="cifar10, fashion-mnist, mnist, or a folder of pictures with a folder for each class, or with train/ and "
        "test/ that have them (without, every fifth picture is for testing)",
    ),
]
Folder = Annotated[Path | None, typer.Option(help="folder of the files of cifar10, fashion-mnist or mnist")]
Size = Annotated[
    str | None,
    typer.Option(help="what a folder's pictures are resized to, as 64, or HEIGHTxWIDTH as 48x64 (default: 32)"),
]
Mirror = Annotated[
    bool, typer.Option("--mirror/--no-mirror", help="whether a mirrored picture of a folder is one of its class, too")
]
FloatWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        "--float",
        help="weights of a trained float network (a state_dict, an ONNX file of it, or the "
        "last checkpoint of a float network, as float-2.pt): no float training",
    ),
]
Start = Annotated[
    Path | None,
    typer.Option(
        metavar="MODEL.onnx",
        help="a model of this network, written by this command: quantized training goes on from its weights and from "
        "what it keeps, taught by the float network",
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
WeightBits = Annotated[int, typer.Option(help="bits of weights")]
ActivationBits = Annotated[int, typer.Option(help="bits of activations")]
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


@dataclass(frozen=True)
class TrainingOptions:
    """What `train` and `curve` have in common; each field is an option of both."""

    network: NetworkName = None
    own_network: OwnNetwork = None
    data: DataName = "cifar10"
    folder: Folder = None
    size: Size = None
    mirror: Mirror = True
    weights: FloatWeights = None
    start: Start = None
    float_epochs: FloatEpochs = 45
    float_cycles: FloatCycles = 2
    float_learning_rate: FloatRate = 0.2
    epochs: Epochs = "20"
    learning_rate: Rate = 0.03
    layer: Layer = None
    group: Group = None
    unstructured: Unstructured = False
    weight_bits: WeightBits = 4
    activation_bits: ActivationBits = 4
    first: First = 8
    last: Last = 8
    seed: Seed = 0
    work: Work = Path("build/train")
    resume: Resume = False
    restart: Restart = False
    holdout: Holdout = 0
    train_images: TrainImages = None
    geometry: GeometryName = "32x32"
    memory: MemoryName = "zynq-hp"


def with_training_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates `command(options, ...)`: Typer sees its other parameters and then the fields of TrainingOptions, those
    in `defaults` with other default values."""
    hints = get_type_hints(TrainingOptions, include_extras=True)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(
                    field.name, inspect.Parameter.empty if field.default is MISSING else field.default
                ),
                annotation=hints[field.name],
            )
            for field in fields(TrainingOptions)
        ]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared

        @functools.wraps(command)
        def called(**values: Any) -> None:
            options = {parameter.name: values.pop(parameter.name) for parameter in shared}
            command(TrainingOptions(**options), **values)

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate


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


def picture_size(text: str) -> tuple[int, int]:
    """'64' or '48x64' as (height, width). InputError if it is none."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise InputError(f"--size must be a number such as 64, or HEIGHTxWIDTH such as 48x64, not {text!r}")
    return int(sides[0]), int(sides[-1])


def layer_density(text: str) -> tuple[str, Fraction]:
    pattern, separator, density = text.partition("=")
    if not separator:
        raise InputError(f"--layer must be NAME=DENSITY or NAME=xFACTOR, not {text!r}")
    return pattern, density_of(density)


def check_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise InputError(f"{path}: the file's name must end in {suffix}")
