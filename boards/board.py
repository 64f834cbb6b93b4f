"""What a board is, and how its overlay is built: the same steps for every board, with the tools of its `flow`.

SoC --LiteX--> Verilog, constraints --flow--> bitstream
 `-----------> .hwh, manifest
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from sentei.gateware.engine.engine import Engine
from sentei.gateware.soc.soc import SenteiSoC
from sentei.overlay.errors import BuildError
from sentei.overlay.geometry import Geometry
from sentei.overlay.hwh import hardware_description
from sentei.overlay.manifest import Manifest, MemoryModel, sha256_of

NAME = "sentei"  # of all files
LOGGERS = ("SoC", "SoCBusHandler", "SoCCSRHandler", "SoCIRQHandler", "ECP5PLL", "S7PLL")


@dataclass(frozen=True)
class Device:
    """A device that boards come with, and what is built for it: the engine, with so many of its multipliers."""

    geometry: Geometry
    multipliers: int
    clock_hz: int


class Outcome(NamedTuple):
    """Of a flow: the bitstream and its figures, or what was missing to make it."""

    bit: Path | None
    figures: dict
    missing: str = ""


@dataclass(frozen=True)
class Board:
    """A board whose SoC has a soft CPU, and whose host is behind a serial port.

    `flow` is the module of the device's tools: ecp5 or vivado. `parts(device, geometry, clock_hz)` makes (platform,
    clocks, main memory, serial port).
    """

    name: str
    devices: dict[str, Device]
    memory: MemoryModel
    flow: Any
    parts: Callable

    target = "bridge"

    def directory(self, name: str) -> Path:
        """Where the overlay for the device of that name is built by default."""
        return Path("build") / f"{self.name}-{name}"

    def make_soc(self, name: str, directory: Path):
        """(SoC, platform) for the device of that name; firmware is compiled in `directory`."""
        device = self.devices[name]
        platform, clocks, memory, port = self.parts(name, device.geometry, device.clock_hz)
        engine = Engine(device.geometry, self.flow.technology(device.multipliers))
        self.flow.constrain(name, engine)
        soc = SenteiSoC(platform, device.geometry, engine, memory, port, clocks, device.clock_hz)
        soc.install_firmware(directory)
        return soc, platform

    def write_verilog(self, name: str, work: Path):
        """Begin anew in `work` with Verilog and constraints; returns (SoC, platform)."""
        for logger in LOGGERS:
            logging.getLogger(logger).setLevel(logging.WARNING)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        soc, platform = self.make_soc(name, work)
        platform.build(soc, build_dir=str(work), build_name=NAME, run=False, **self.flow.OPTIONS)
        return soc, platform

    def build(self, name: str, directory: Path, seed: int = 1, stage: Callable = nullcontext) -> dict:
        """Build the overlay in `directory`; returns its figures. Each step runs in the context `stage(text)`.

        BuildError if it does not fit or a clock is missed, and nothing can be loaded then; or if the tools that make
        the bitstream are not there, and only that is missing then.
        """
        device = self.devices[name]
        directory = directory.resolve()
        work = directory / "work"
        (directory / "manifest.json").unlink(missing_ok=True)
        with stage("writing Verilog"):
            soc, platform = self.write_verilog(name, work)
        outcome = self.flow.implement(f"{self.name}-{name}", device, platform, work, seed, stage)
        files = {"hwh": directory / f"{NAME}.hwh"}
        addresses = soc.addresses
        files["hwh"].write_text(hardware_description(addresses["engine"], addresses["interrupts"], device.clock_hz))
        if outcome.bit is not None:
            files["bit"] = Path(shutil.copy(outcome.bit, directory))
        Manifest(
            name=f"{self.name}-{name}",
            target=self.target,
            geometry=device.geometry,
            memory=self.memory,
            clock_hz=device.clock_hz,
            addresses=addresses,
            memory_bytes=soc.memory_bytes,
            files={role: {"name": path.name, "sha256": sha256_of(path)} for role, path in files.items()},
            inputs=sha256_of(work / f"{NAME}.v"),
            directory=directory,
        ).save()
        if outcome.bit is None:
            raise BuildError(outcome.missing)
        command = f"sentei build {self.name} --device {name} --seed {seed}"
        return self.figures(name, outcome.figures, self.flow.tools(), command)

    def figures(self, name: str, measured: dict, tools: dict[str, str], command: str) -> dict:
        """What a report says of a build with these tools."""
        tools = {tool: version(tool) for tool in ("migen", "litex", "litedram", "litex-boards")} | tools
        return {"geometry": str(self.devices[name].geometry), **measured, "tools": tools, "command": command}
