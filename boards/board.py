"""What a board is, and how its overlay is built: the same steps for every board, with the tools of its `flow`.

SoC --LiteX--> Verilog, constraints --flow--> bitstream
 `-----------> .hwh, manifest
"""

from __future__ import annotations

import logging
import os
import platform as system
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from sentei.boards.flow import NAME, ClockMissed, Device, Flow, Stage, silent
from sentei.gateware.engine.engine import Engine
from sentei.gateware.soc.soc import SenteiSoC
from sentei.overlay.errors import BuildError, InputError
from sentei.overlay.hwh import hardware_description
from sentei.overlay.manifest import Manifest, MemoryModel, sha256_of

CPU_NAMES = Path("/proc/cpuinfo")
SLOWEST_HZ, FASTEST_HZ = 5_000_000, 400_000_000
LOGGERS = ("SoC", "SoCBusHandler", "SoCCSRHandler", "SoCIRQHandler", "ECP5PLL", "S7PLL")


def machine() -> str:
    """What this computer is: processor and cores."""
    names = re.findall(r"model name\s*:\s*(.*)", CPU_NAMES.read_text()) if CPU_NAMES.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else system.machine()}, {cores} cores"


@dataclass(frozen=True)
class Variant:
    """A board as other tools build it: these, and what they have room for on each device."""

    flow: Flow
    devices: dict[str, Device]


@dataclass(frozen=True)
class Board:
    """A board whose SoC has a soft CPU, and whose host is behind a serial port.

    `parts(device, geometry, clock_hz)` makes (platform, clocks, main memory, serial port, LED). The LED is a signal, 1
    is lit, that may lead nowhere.
    """

    name: str
    devices: dict[str, Device]
    memory: MemoryModel
    flow: Flow
    parts: Callable
    variants: dict[str, Variant] = field(default_factory=dict)  # by the name of a flow that is not the board's first
    variant: str = ""  # the name of the flow, if it is one of those

    frame_cycles: ClassVar[int | None] = None  # after which half a frame on the serial port is forgotten

    @property
    def target(self) -> str:
        """What is before the driver, as the manifest says it."""
        return "bridge"

    def label(self, name: str) -> str:
        """What the overlay for the device of that name is called."""
        return f"{self.name}-{name}" + (f"-{self.variant}" if self.variant else "")

    def directory(self, name: str) -> Path:
        """Where the overlay for the device of that name is built by default."""
        return Path("build") / self.label(name)

    def connect(self, soc: Any, platform: Any) -> None:
        """Wire what the platform has besides `parts`."""

    def make_soc(self, name: str, directory: Path) -> tuple[Any, Any]:
        """(SoC, platform) for the device of that name; firmware is compiled in `directory`."""
        device = self.devices[name]
        platform, clocks, memory, port, led = self.parts(name, device.geometry, device.clock_hz)
        engine = Engine(device.geometry, self.flow.technology(device.multipliers))
        self.flow.constrain(platform, device, engine)
        soc = SenteiSoC(platform, device.geometry, engine, memory, port, clocks, device.clock_hz, self.frame_cycles)
        soc.comb += led.eq(soc.led)
        self.connect(soc, platform)
        soc.install_firmware(directory)
        return soc, platform

    def write_verilog(self, name: str, work: Path) -> tuple[Any, Any, list[Path]]:
        """Begin anew in `work` with Verilog and constraints; returns (SoC, platform, sources)."""
        for logger in LOGGERS:
            logging.getLogger(logger).setLevel(logging.WARNING)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        soc, platform = self.make_soc(name, work)
        return soc, platform, self.flow.write_verilog(soc, platform, work)

    def build(self, name: str, directory: Path, seed: int = 1, stage: Stage = silent) -> dict:
        """Build the overlay in `directory`; returns its figures. Each step runs in the context `stage(text)`.

        BuildError if it does not fit or a clock is missed, and nothing can be loaded then; or if the tools that make
        the bitstream are not there, and only that is missing then.
        """
        begun = time.monotonic()
        device = self.devices[name]
        directory = directory.resolve()
        work = directory / "work"
        (directory / "manifest.json").unlink(missing_ok=True)
        if not self.makes_clock(name, device.clock_hz):
            slower = self.clock_up_to(name, device.clock_hz / 1e6)
            raise BuildError(
                f"{self.label(name)}: its PLL cannot make {device.clock_hz / 1e6:g} MHz, but --clock {slower}"
            )
        with stage("writing Verilog"):
            soc, platform, sources = self.write_verilog(name, work)
        inputs = self.inputs(name, sources)
        try:
            outcome = self.flow.implement(self.label(name), device, platform, sources, work, seed, stage)
        except ClockMissed as error:
            slower = self.clock_up_to(name, error.reached_mhz) if error.reached_mhz else None
            remedy = f"build it for a clock that it reaches, --clock {slower}, or " if slower else ""
            raise BuildError(f"{error}. What may help: {remedy}another --seed") from error
        files = {"hwh": directory / f"{NAME}.hwh"}
        addresses = soc.addresses
        files["hwh"].write_text(hardware_description(addresses["engine"], addresses["interrupts"], device.clock_hz))
        for role, path in outcome.files.items():
            files[role] = directory / path.name
            if path != files[role]:
                shutil.copy(path, files[role])
        Manifest(
            name=self.label(name),
            target=self.target,
            geometry=device.geometry,
            memory=self.memory,
            clock_hz=device.clock_hz,
            addresses=addresses,
            memory_bytes=soc.memory_bytes,
            files={role: {"name": path.name, "sha256": sha256_of(path)} for role, path in files.items()},
            inputs=inputs,
            directory=directory,
        ).save()
        if outcome.missing:
            raise BuildError(outcome.missing)
        flow = f" --flow {self.variant}" if self.variant else ""
        command = f"sentei build {self.name} --device {name}{flow} --clock {device.clock_hz / 1e6:g} --seed {seed}"
        measured = outcome.figures | {"seconds": round(time.monotonic() - begun), "machine": machine()}
        return self.figures(name, measured, self.flow.tools(), command)

    def with_flow(self, name: str) -> Board:
        """The board as other tools build it. InputError if there is no such flow."""
        if name not in self.variants:
            known = ", ".join(self.variants) or "none but its own"
            raise InputError(f"{self.name}: --flow must be {known}, not {name!r}")
        variant = self.variants[name]
        return replace(self, variant=name, flow=variant.flow, devices=variant.devices)

    def at_clock(self, name: str, clock_hz: int) -> Board:
        """The board with another clock for the device of that name. InputError for one that is none."""
        if not SLOWEST_HZ <= clock_hz <= FASTEST_HZ:
            slowest, fastest = SLOWEST_HZ // 1_000_000, FASTEST_HZ // 1_000_000
            raise InputError(f"--clock must be {slowest} to {fastest} (MHz), not {clock_hz / 1e6:g}")
        return replace(self, devices=self.devices | {name: replace(self.devices[name], clock_hz=clock_hz)})

    def makes_clock(self, name: str, clock_hz: int) -> bool:
        """Whether the device's PLL, if it has one (`pll` of the board's clocks), can make that clock."""
        _, clocks, *_ = self.parts(name, self.devices[name].geometry, clock_hz)
        try:
            if (pll := getattr(clocks, "pll", None)) is not None:
                pll.compute_config()
        except ValueError:
            return False
        return True

    def clock_up_to(self, name: str, mhz: float) -> int | None:
        """The fastest clock of whole MHz, up to that one, that the device's PLL can make."""
        slower = range(int(mhz), SLOWEST_HZ // 1_000_000 - 1, -1)
        return next((clock for clock in slower if self.makes_clock(name, clock * 1_000_000)), None)

    def inputs(self, name: str, sources: list[Path]) -> str:
        """Identity of what is built, for the manifest."""
        return sha256_of(sources[0])

    def figures(self, name: str, measured: dict, tools: dict[str, str], command: str) -> dict:
        """What a report says of a build with these tools."""
        tools = {tool: version(tool) for tool in ("migen", "litex", "litedram", "litex-boards")} | tools
        return {"geometry": str(self.devices[name].geometry), **measured, "tools": tools, "command": command}
