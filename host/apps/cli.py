"""The command line: `sentei COMMAND --help` explains each command."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from sentei.host.apps import board_commands, model_commands, training_commands
from sentei.overlay.errors import SenteiError

COMMANDS = {
    "compile": model_commands.compile_model,
    "run": model_commands.run,
    "verify": model_commands.verify,
    "bench": model_commands.bench,
    "info": model_commands.info,
    "doctor": model_commands.doctor,
    "build": board_commands.build,
    "pack": board_commands.pack,
    "upload": board_commands.upload,
    "serve": board_commands.serve,
    "demo": model_commands.demo,
    "train": training_commands.train,
    "curve": training_commands.curve,
    "accuracy": training_commands.accuracy,
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
