"""The Verilated SoC, a board like any other: its memory is simulated, its host is the process that loads it.

    python -m sentei.boards.sim --geometry 32x32 --memory zynq-hp --output build/sim/32x32

writes into the output directory a shared object, a `.hwh`, a `.bit` (a marker: there is nothing to configure) and the
manifest that names them.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from litedram.modules import MT41K64M16, MT48LC16M16
from litedram.phy.model import SDRAMPHYModel
from litex.build.generic_platform import Pins, Subsignal
from litex.build.sim import SimPlatform
from litex.gen import LiteXModule
from litex.soc.cores.uart import RS232PHYModel
from migen import ClockDomain, Signal

from sentei.boards.board import Board
from sentei.boards.flow import NAME, Device, Flow, Outcome
from sentei.gateware.soc.dram import DRAM
from sentei.gateware.soc.simulated_memory import SimulatedMemory
from sentei.gateware.soc.soc import MAIN_RAM_BASE
from sentei.gateware.technologies.technology import PACKED, SIMULATED, Technology
from sentei.gateware.tools import verilator
from sentei.overlay.errors import InputError
from sentei.overlay.geometry import PRESETS, Geometry
from sentei.overlay.manifest import (
    LITEDRAM,
    LITEDRAM_DDR3,
    MEMORY_MODELS,
    Manifest,
    ManifestError,
    MemoryModel,
)
from sentei.overlay.serial_bridge import SIMULATED_FRAME_CYCLES

CLOCK_HZ = 100_000_000
MEMORY_BYTES = 32 << 20
# Behind LiteDRAM, by memory model: the chip, and the controller's clock to the chip's.
CHIPS = {LITEDRAM: (MT48LC16M16, "1:1"), LITEDRAM_DDR3: (MT41K64M16, "1:4")}
CHIP_BITS = 16
BIT_CONTENT = b"Sentei: simulated, nothing to configure.\n"

_io = [
    ("sys_clk", 0, Pins(1)),
    ("sys_rst", 0, Pins(1)),
    ("cpu_clk", 0, Pins(1)),
    ("cpu_idle", 0, Pins(1)),
    ("irq", 0, Pins(1)),
    ("engine_irq", 0, Pins(1)),
    ("bus_error", 0, Pins(1)),
    ("stalls", 0, Pins(32)),
    ("withhold", 0, Pins(1)),
    (
        "serial",
        0,
        Subsignal("source_valid", Pins(1)),
        Subsignal("source_ready", Pins(1)),
        Subsignal("source_data", Pins(8)),
        Subsignal("sink_valid", Pins(1)),
        Subsignal("sink_ready", Pins(1)),
        Subsignal("sink_data", Pins(8)),
    ),
    (
        "host",
        0,
        Subsignal("adr", Pins(30)),
        Subsignal("dat_w", Pins(32)),
        Subsignal("dat_r", Pins(32)),
        Subsignal("sel", Pins(4)),
        Subsignal("cyc", Pins(1)),
        Subsignal("stb", Pins(1)),
        Subsignal("ack", Pins(1)),
        Subsignal("err", Pins(1)),
        Subsignal("we", Pins(1)),
        Subsignal("cti", Pins(3)),
        Subsignal("bte", Pins(2)),
    ),
]


class Clocks(LiteXModule):
    """Clocks and reset come from the harness. `rst`: the SoC's own wish to be reset."""

    def __init__(self, platform):
        self.rst = Signal()
        self.cd_sys = ClockDomain()
        self.cd_cpu = ClockDomain(reset_less=True)

        # # #

        self.comb += [
            self.cd_sys.clk.eq(platform.request("sys_clk")),
            self.cd_sys.rst.eq(platform.request("sys_rst") | self.rst),
            self.cd_cpu.clk.eq(platform.request("cpu_clk")),
        ]


def main_memory(model: MemoryModel, geometry: Geometry):
    if model.name not in CHIPS:
        return SimulatedMemory(model, MAIN_RAM_BASE, MEMORY_BYTES, geometry.bus_bits)
    chip, rate = CHIPS[model.name]
    module = chip(CLOCK_HZ, rate)
    phy = SDRAMPHYModel(module, data_width=CHIP_BITS, clk_freq=CLOCK_HZ)
    return DRAM(phy, module, MAIN_RAM_BASE, geometry.bus_bits, CLOCK_HZ)


@dataclass(frozen=True)
class VerilatorFlow(Flow):
    """Verilator and a C++ compiler; `fast=False` compiles sooner and simulates slower."""

    datapath: Technology = PACKED
    fast: bool = True
    jobs: int = 2

    def technology(self, multipliers):
        return self.datapath

    def write_verilog(self, soc, platform, work):
        return verilator.write_verilog(soc, platform, work)

    def implement(self, label, device, platform, sources, work, seed, stage):
        directory = work.parent
        with stage("Verilator"):
            library = verilator.compile_library(sources, work, directory, self.fast, self.jobs)
        bit = directory / f"{NAME}.bit"
        bit.write_bytes(BIT_CONTENT)
        return Outcome({"library": library, "bit": bit})

    def tools(self):
        return {"verilator": version("verilator")}


@dataclass(frozen=True)
class SimulatedBoard(Board):
    """The board that is simulated; each geometry is a device of it."""

    flow: VerilatorFlow

    frame_cycles = SIMULATED_FRAME_CYCLES

    @property
    def target(self) -> str:
        return "bridge" if self.memory.name in CHIPS else "sim"

    def label(self, name: str) -> str:
        return f"{name}-{self.memory.name}"

    def directory(self, name: str) -> Path:
        return Path("build/sim") / self.label(name)

    def connect(self, soc, platform) -> None:
        # A cycle late, so that whoever sees the pulse also sees the registers that changed with it.
        soc.sync += platform.request("engine_irq").eq(soc.engine.irq)
        soc.comb += soc.host.connect_to_pads(platform.request("host"), mode="slave")
        soc.comb += [
            platform.request("irq").eq(soc.interrupts.irq),
            platform.request("bus_error").eq(soc.ctrl.bus_error),
            platform.request("cpu_idle").eq(soc.cpu_idle),
        ]
        stalls, withhold = platform.request("stalls"), platform.request("withhold")
        if isinstance(soc.memory, SimulatedMemory):
            soc.comb += [soc.memory.stalls.eq(stalls), soc.memory.withhold.eq(withhold)]

    def inputs(self, name: str, sources: list[Path]) -> str:
        """Known before the Verilog is, so that a simulator that is there is found at once."""
        options = {
            "geometry": self.devices[name].geometry.to_dict(),
            "memory": asdict(self.memory),
            "memory_bytes": MEMORY_BYTES,
            "technology": self.flow.datapath.name,
            "fast": self.flow.fast,
        }
        here = Path(__file__).parent
        return verilator.digest(options, tuple(here / source for source in ("sim.py", "board.py", "flow.py")))


def simulated(devices: dict[str, Device], memory: MemoryModel, flow: VerilatorFlow) -> SimulatedBoard:
    def parts(device: str, geometry: Geometry, clock_hz: int):
        platform = SimPlatform("SIM", list(_io))
        port = RS232PHYModel(platform.request("serial"))
        return platform, Clocks(platform), main_memory(memory, geometry), port, Signal()

    return SimulatedBoard("sim", devices, memory, flow, parts)


def device_of(geometry: Geometry) -> Device:
    return Device(geometry, multipliers=0, clock_hz=CLOCK_HZ)


DEVICES = {name: device_of(geometry) for name, geometry in PRESETS.items()}
BOARD = simulated(DEVICES, MEMORY_MODELS["zynq-hp"], VerilatorFlow())


def build(
    geometry: Geometry | str = "32x32",
    memory: MemoryModel | str = "zynq-hp",
    output: str | Path | None = None,
    technology: Technology = PACKED,
    fast: bool = True,
    jobs: int = 2,
) -> Path:
    """Build the simulator, or find it already built; returns the manifest's path.

    `technology` is what the engine's datapath is made of. `fast=False` compiles sooner and simulates slower.
    """
    name = geometry if isinstance(geometry, str) else f"{geometry.lanes}x{geometry.columns}"
    if isinstance(geometry, str):
        if geometry not in PRESETS:
            raise InputError(f"geometry must be one of {', '.join(PRESETS)}, not {geometry!r}")
        geometry = PRESETS[geometry]
    if isinstance(memory, str):
        if memory not in MEMORY_MODELS:
            raise InputError(f"memory must be one of {', '.join(MEMORY_MODELS)}, not {memory!r}")
        memory = MEMORY_MODELS[memory]
    board = simulated({name: device_of(geometry)}, memory, VerilatorFlow(technology, fast, jobs))
    directory = Path(output or board.directory(name)).resolve()
    with verilator.locked(directory):
        try:
            manifest = Manifest.load(directory)
            if manifest.inputs == board.inputs(name, []) and all(manifest.file(role) for role in manifest.files):
                return directory / "manifest.json"
        except ManifestError:
            pass
        board.build(name, directory)
        return directory / "manifest.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", default="32x32", choices=list(PRESETS), help="size of the engine")
    parser.add_argument("--memory", default="zynq-hp", choices=list(MEMORY_MODELS), help="model of main memory")
    parser.add_argument("--output", help="directory (default: build/sim/GEOMETRY-MEMORY)")
    parser.add_argument(
        "--technology", default=PACKED.name, choices=list(SIMULATED), help="of the datapath; control: no results"
    )
    parser.add_argument("--quick", action="store_true", help="compile sooner, simulate slower")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at once")
    arguments = parser.parse_args()
    path = build(
        arguments.geometry,
        arguments.memory,
        arguments.output,
        SIMULATED[arguments.technology],
        fast=not arguments.quick,
        jobs=arguments.jobs,
    )
    print(path)


if __name__ == "__main__":
    main()
