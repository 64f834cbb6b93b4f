"""What the commands share: printing, progress, options, and opening what the user names."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sentei.overlay.errors import InputError
from sentei.overlay.manifest import MEMORY_MODELS
from sentei.overlay.program import MAGIC, Program

# Names of files and layers may contain brackets, which are no markup; a file may be wider than a terminal.
console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)

Model = Annotated[Path, typer.Argument(help="QONNX model (.onnx)")]
ModelOrProgram = Annotated[Path, typer.Argument(help="QONNX model (.onnx) or program file (.sentei)")]
Target = Annotated[
    str,
    typer.Option(
        help="'sim', an overlay's directory, or DIRECTORY:PORT for a board behind a "
        "serial port, as build/ulx3s-12F:/dev/ttyUSB0"
    ),
]
GeometryName = Annotated[
    str, typer.Option("--geometry", help="size of the engine: 32x32, 16x16 or 8x8, or an overlay's directory")
]
MemoryName = Annotated[str, typer.Option("--memory", help=f"model of main memory: {', '.join(MEMORY_MODELS)}")]
Batch = Annotated[int | None, typer.Option(min=1, help="pictures of a job: more throughput, more latency")]
InputOption = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="integers in the model's input, if it does not say so: uint8, or int8:1/128 with what a step means",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="refuse a model whose float32 execution can decide otherwise by its rounding")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="also write the figures to this file")]


@contextmanager
def step(text: str):
    """Shows that `text` is under way; yields a function (done, total) that moves a bar, or shows more `text`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=None)
        what = text

        def move(done: int | None = None, total: int | None = None, text: str = "") -> None:
            progress.update(task, completed=done, total=total, description=f"{what}: {text}" if text else what)

        yield move
        if progress.tasks[0].total is None:
            progress.update(task, completed=1, total=1)


def say(text: str, style: str | None = None) -> None:
    """One line, never wrapped: others may read it."""
    console.print(text, soft_wrap=True, style=style)


@contextmanager
def writing(path: Path):
    """For the code that writes `path`: makes its folder; InputError if that or the writing fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; write it elsewhere") from error


def write_json(path: Path | None, values: dict) -> None:
    if path is not None:
        with writing(path):
            path.write_text(json.dumps(values, indent=2) + "\n")
        say(f"figures: {path}")


def write_report(path: Path, text: str, figures: dict) -> None:
    """A report, and its figures beside it, in .json."""
    with writing(path):
        path.write_text(text)
        path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    say(f"report: {path}")


def classes_of(model: Path) -> tuple[str, ...]:
    """Class names from the model's card (same name, .json), if it lists them."""
    card = model.with_suffix(".json")
    if not card.exists():
        return ()
    try:
        return tuple(json.loads(card.read_text()).get("classes", ()))
    except (ValueError, AttributeError):
        return ()


def is_program(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.suffix == ".sentei" or file.read(len(MAGIC)) == MAGIC
    except OSError:
        return path.suffix == ".sentei"


def read_model(path: Path, batch: int | None = None, input: str | None = None):
    """Function from a geometry to the program in a file, or to the model in it compiled for `batch` pictures a job. The
    file is read at once."""
    if is_program(path):
        if batch is not None:
            raise InputError(f"{path}: is a program, whose batch is that it was compiled for; leave out --batch")
        program = Program.load(path)
        return lambda geometry: program
    from sentei.host.compiler.compile import compile_network
    from sentei.host.frontend.importer import load

    network, classes = load(path, input=input), classes_of(path)
    return lambda geometry: compile_network(network, geometry, classes, batch or 1)


@contextmanager
def opened(target: str, geometry: str, memory: str, results: bool = True):
    """The target's overlay, built if need be; `results` says whether more than cycles is wanted."""
    from sentei.host.apps.target import open_target

    with step(f"opening {target}" + (f" ({geometry}, {memory})" if target in ("sim", "predict") else "")):
        overlay = open_target(target, geometry, memory, results)
    with overlay:
        yield overlay
