"""What this machine has and what it lacks, by the command that needs it: for `sentei doctor`."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sentei.host.datasets.catalogue import KINDS, folder_of

EXTRAS = {
    "host": "the compiler and the command line",
    "sim": "the simulator and the driver",
    "synthesis": "bitstreams",
    "train": "training",
}
# What each command needs: extras, programs, a data set.
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str | None]] = {
    "compile, info, pack": (("host",), (), None),
    "run, verify, bench, serve": (
        ("host", "sim"),
        ("g++", "make", "perl", "riscv64-unknown-elf-gcc", "riscv64-unknown-elf-objcopy"),
        None,
    ),
    "demo": (
        ("host", "sim"),
        ("g++", "make", "perl", "riscv64-unknown-elf-gcc", "riscv64-unknown-elf-objcopy"),
        "fashion-mnist",
    ),
    "build": (("host", "sim", "synthesis"), ("riscv64-unknown-elf-gcc", "riscv64-unknown-elf-objcopy"), None),
    "train, curve": (("host", "sim", "train"), ("g++", "make", "perl"), None),
}
SET_UP = "make setup"
SET_UP_OF = {"train": "make setup-train"}
REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*([^;]*?)\s*(?:;\s*(.*))?$")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: its version or place, or what is wrong and what helps."""

    kind: str  # "package", "program", "data set" or "simulator"
    name: str
    found: str
    wrong: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    system: dict[str, str]
    findings: list[Finding]
    extras: dict[str, list[str]]  # names of the packages of each extra

    def missing(self, extras: tuple[str, ...], programs: tuple[str, ...], data: str | None) -> list[Finding]:
        """What is wrong of what these need."""
        packages = {name for extra in extras for name in self.extras[extra]}
        wanted = {("package", name) for name in packages} | {("program", name) for name in programs}
        wanted |= {("data set", data)} if data else set()
        return [finding for finding in self.findings if finding.wrong and (finding.kind, finding.name) in wanted]

    def commands(self) -> dict[str, list[Finding]]:
        """What each command lacks."""
        return {commands: self.missing(*needs) for commands, needs in NEEDS.items()}

    def to_dict(self) -> dict:
        return {
            "system": self.system,
            "found": [vars(finding) for finding in self.findings],
            "commands": {name: [finding.name for finding in lacks] for name, lacks in self.commands().items()},
        }


def examine() -> Report:
    """Look at everything; takes some seconds, as programs are tried out."""
    extras = packages_of_extras()
    findings = [package(name, extra) for extra in EXTRAS for name in extras[extra]]
    return Report(system(), [*findings, *programs(), *data_sets(), *simulators()], extras)


def system() -> dict[str, str]:
    return {
        "sentei": metadata.version("sentei"),
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.platform()}, {platform.machine()}",
    }


def packages_of_extras() -> dict[str, list[str]]:
    """Names of the packages that each of EXTRAS brings to this Python, as the package itself declares them."""
    found: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    for text in metadata.requires("sentei") or []:
        match = REQUIREMENT.match(text)
        name, marker = (match[1], match[3] or "") if match else ("", "")
        for extra in EXTRAS:
            if f'extra == "{extra}"' in marker and name != "sentei" and holds(marker):
                found[extra].append(name)
    return found


def holds(marker: str) -> bool:
    """Whether a requirement's marker is meant for this version of Python; other conditions are taken as true."""
    for comparison, version in re.findall(r'python_version\s*([<>]=?)\s*"([\d.]+)"', marker):
        bound = tuple(map(int, version.split(".")))
        here = sys.version_info[: len(bound)]
        if not {"<": here < bound, "<=": here <= bound, ">": here > bound, ">=": here >= bound}[comparison]:
            return False
    return True


def package(name: str, extra: str) -> Finding:
    try:
        return Finding("package", name, metadata.version(name))
    except metadata.PackageNotFoundError:
        remedy = f"{SET_UP_OF.get(extra, SET_UP)}, or pip install 'sentei[{extra}]'"
        return Finding("package", name, "", f"is not installed; it is for {EXTRAS[extra]}", remedy)


def programs() -> list[Finding]:
    """Of gateware's tools, which say in a process of their own what does not work."""
    command = [sys.executable, "-m", "sentei.gateware.tools.programs"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["nothing is said"])[-1]
        return [Finding("program", "gateware's tools", "", f"cannot be asked: {last}", SET_UP)]
    return [
        Finding("program", name, said["path"] or "", said["fault"] or "", said["remedy"] if said["fault"] else "")
        for name, said in json.loads(result.stdout).items()
    ]


def data_sets() -> list[Finding]:
    findings = []
    for name, kind in KINDS.items():
        folder = folder_of(name)
        if folder is not None and folder.is_dir():
            findings.append(Finding("data set", name, str(folder)))
        else:
            remedy = f"{kind.source}; then set {kind.variable} to its folder"
            findings.append(Finding("data set", name, "", "is not there", remedy))
    return findings


def simulators(folder: Path = Path("build/sim")) -> list[Finding]:
    return [Finding("simulator", path.parent.name, str(path.parent)) for path in sorted(folder.glob("*/manifest.json"))]
