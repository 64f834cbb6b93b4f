"""The command line: `sentei COMMAND --help` explains each command."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from sentei.host.commands import boards, models, quantization, training
from sentei.overlay.errors import SenteiError

COMMANDS = {
    "compile": models.compile_model,
    "run": models.run,
    "verify": models.verify,
    "bench": models.bench,
    "info": models.info,
    "quantize": quantization.quantize,
    "doctor": models.doctor,
    "build": boards.build,
    "pack": boards.pack,
    "upload": boards.upload,
    "serve": boards.serve,
    "demo": models.demo,
    "train": training.train,
    "curve": training.curve,
    "accuracy": training.accuracy,
}

app = typer.Typer(
    help="Deploy deeply pruned INT4 convolutional networks on FPGAs, or on a simulated one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Entry point: errors that a user can act on are one line, without a traceback."""
    try:
        app(prog_name="sentei")
    except SenteiError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
