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
import threading
from collections import deque
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


def run(
    command: list, directory: Path, watch: Callable[[str], object] = lambda line: None, limit_s: float | None = None
) -> None:
    """Run a tool, each line that it prints through `watch`. BuildError with the end of its output if it fails, or if it
    is not done after `limit_s`: it is stopped then."""
    words = [str(word) for word in command]
    said: deque[str] = deque(maxlen=60)
    late = threading.Event()
    with subprocess.Popen(
        words, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit_s or threading.TIMEOUT_MAX, stop)
        timer.daemon = True
        timer.start()
        try:
            for line in process.stdout or ():
                said.append(line)
                watch(line)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    output = "".join(said).strip()[-4000:]
    if late.is_set():
        raise BuildError(
            f"{command[0]} was stopped in {directory}: not done after {limit_s:g} s; at last it said\n{output}"
        )
    if process.returncode:
        raise BuildError(f"{command[0]} failed in {directory} (exit code {process.returncode}):\n{output}")


if __name__ == "__main__":
    found = {name: {"path": shutil.which(name), "fault": fault(name), "remedy": remedy(name)} for name in PROGRAMS}
    print(json.dumps(found))
