"""Programs of the system that a build runs: whether they work is found out by using them, once a process.

    python -m sentei.gateware.tools.programs      says of each, as JSON, where it is, what is wrong, and the remedy

A name on the PATH says little: a minimal Debian has a perl without the modules that Verilator's script needs.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sentei.overlay.errors import BuildError, ToolMissingError

RISCV_GCC = "riscv64-unknown-elf-gcc"
OBJCOPY = "riscv64-unknown-elf-objcopy"
MISSING = "is not installed"
TRIAL_S = 60  # a trial that takes longer has failed
PERL_MODULES = ("FindBin", "Getopt::Long", "IO::File", "Pod::Usage")  # of Verilator's script


def _compiles(*flags: str) -> Callable[[str, Path], list[str]]:
    def command(program: str, directory: Path) -> list[str]:
        source = directory / "trial.cpp"
        source.write_text("int main() { return 0; }\n")
        return [program, *flags, "-o", str(directory / "trial"), str(source)]

    return command


@dataclass(frozen=True)
class Program:
    """A program: the Debian package that has it, and a command, made in an empty directory, that works if it does."""

    package: str
    trial: Callable[[str, Path], list[str]]


PROGRAMS = {
    "g++": Program("g++", _compiles("-shared", "-fPIC")),
    "make": Program("make", lambda program, directory: [program, "--version"]),
    "perl": Program("perl", lambda program, directory: [program, *(f"-M{name}" for name in PERL_MODULES), "-e", "1"]),
    RISCV_GCC: Program(
        "gcc-riscv64-unknown-elf", _compiles("-xc", "-march=rv32i", "-mabi=ilp32", "-nostdlib", "-ffreestanding", "-c")
    ),
    OBJCOPY: Program("binutils-riscv64-unknown-elf", lambda program, directory: [program, "--version"]),
}


@functools.cache
def fault(name: str) -> str | None:
    """What is wrong with a program, or None if it works."""
    path = shutil.which(name)
    if path is None:
        return MISSING
    with tempfile.TemporaryDirectory() as folder:
        command = PROGRAMS[name].trial(path, Path(folder))
        try:
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TRIAL_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"does not work: {error}"
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines() or ["it says nothing"]
        return f"does not work: {said[0]}"
    return None


def remedy(name: str) -> str:
    return f"sudo apt-get install {PROGRAMS[name].package}"


def require(name: str) -> str:
    """Path of a program that works; ToolMissingError that names its Debian package."""
    wrong = fault(name)
    if wrong == MISSING:
        raise ToolMissingError(f"{name} must be installed to build an overlay: {remedy(name)}")
    if wrong is not None:
        raise ToolMissingError(f"{name} {wrong}; install it: {remedy(name)}")
    return str(shutil.which(name))


def run(command: list, directory: Path) -> None:
    """Run a tool; BuildError with the end of its output if it fails."""
    result = subprocess.run([str(word) for word in command], cwd=directory, capture_output=True, text=True)
    if result.returncode:
        output = (result.stdout + result.stderr).strip()
        raise BuildError(f"{command[0]} failed in {directory} (exit code {result.returncode}):\n{output[-4000:]}")


if __name__ == "__main__":
    found = {name: {"path": shutil.which(name), "fault": fault(name), "remedy": remedy(name)} for name in PROGRAMS}
    print(json.dumps(found))
