"""The Verilated SoC, a board like any other: its memory is simulated, its host is the process that loads it.

    python -m sentei.boards.sim --geometry 32x32 --memory zynq-hp --output build/sim/32x32

writes into the output directory a shared object, a `.hwh`, a `.bit` (a marker: there is nothing to configure) and the
manifest that names them.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
from dataclasses import asdict
from pathlib import Path

from litex.build.generic_platform import Pins, Subsignal
from litex.build.sim import SimPlatform
from litex.gen import LiteXModule
from migen import ClockDomain

from sentei.gateware import firmware, simulation
from sentei.gateware.memory import SimulatedMemory
from sentei.gateware.soc import CLOCK_HZ, MAIN_RAM_BASE, SenteiSoC, csr_address, firmware_constants
from sentei.overlay.errors import InputError
from sentei.overlay.geometry import PRESETS, Geometry
from sentei.overlay.hwh import hardware_description
from sentei.overlay.manifest import MEMORY_MODELS, Manifest, ManifestError, MemoryModel, sha256_of

MEMORY_BYTES = 32 << 20
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
    """Clocks and reset come from the harness."""

    def __init__(self, platform):
        self.cd_sys = ClockDomain()
        self.cd_cpu = ClockDomain(reset_less=True)

        # # #

        self.comb += [
            self.cd_sys.clk.eq(platform.request("sys_clk")),
            self.cd_sys.rst.eq(platform.request("sys_rst")),
            self.cd_cpu.clk.eq(platform.request("cpu_clk")),
        ]


def make_soc(geometry: Geometry, memory: MemoryModel, engine: type, words: list[int]):
    """(SoC, platform), wired to the harness's pads."""
    for logger in ("SoC", "SoCBusHandler", "SoCCSRHandler", "SoCIRQHandler"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    platform = SimPlatform("SIM", list(_io))
    ram = SimulatedMemory(memory, MAIN_RAM_BASE, MEMORY_BYTES, geometry.bus_bits)
    soc = SenteiSoC(platform, geometry, engine(geometry), ram, words, "sim", Clocks(platform))
    # A cycle late, so that whoever sees the pulse also sees the registers that changed with it.
    soc.sync += platform.request("engine_irq").eq(soc.engine.irq)
    soc.comb += soc.host.connect_to_pads(platform.request("host"), mode="slave")
    soc.comb += [
        platform.request("irq").eq(soc.interrupts.irq),
        platform.request("bus_error").eq(soc.ctrl.bus_error),
        platform.request("cpu_idle").eq(soc.cpu_idle),
        ram.stalls.eq(platform.request("stalls")),
        ram.withhold.eq(platform.request("withhold")),
    ]
    return soc, platform


def build(
    geometry: Geometry | str = "32x32",
    memory: MemoryModel | str = "zynq-hp",
    output: str | Path | None = None,
    engine: type | None = None,
    fast: bool = True,
    jobs: int = 2,
) -> Path:
    """Build the simulator, or find it already built; returns the manifest's path.

    `engine` stands in for sentei.gateware.packed.PackedEngine. `fast=False` compiles sooner and simulates slower.
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
    if engine is None:
        from sentei.gateware.packed import PackedEngine as engine
    directory = Path(output or f"build/sim/{name}-{memory.name}").resolve()
    options = {
        "geometry": geometry.to_dict(),
        "memory": asdict(memory),
        "memory_bytes": MEMORY_BYTES,
        "engine": f"{engine.__module__}.{engine.__qualname__}",
        "fast": fast,
    }
    inputs = simulation.digest(options, (Path(__file__), Path(inspect.getfile(engine))))
    with simulation.locked(directory):
        try:
            manifest = Manifest.load(directory)
            if manifest.inputs == inputs and all(manifest.file(role) for role in manifest.files):
                return directory / "manifest.json"
        except ManifestError:
            pass
        return _build(name, geometry, memory, engine, fast, jobs, directory, inputs)


def _build(name, geometry, memory, engine, fast, jobs, directory: Path, inputs: str) -> Path:
    work = directory / "work"
    work.mkdir(exist_ok=True)
    words = firmware.build(firmware_constants(geometry), work)
    soc, platform = make_soc(geometry, memory, engine, words)
    library = simulation.compile_library(simulation.write_verilog(soc, platform, work), work, directory, fast, jobs)
    addresses = {
        "main_ram": MAIN_RAM_BASE,
        "engine": csr_address("engine"),
        "interrupts": csr_address("interrupts"),
    }
    description, bit = directory / "sentei.hwh", directory / "sentei.bit"
    description.write_text(hardware_description(addresses["engine"], addresses["interrupts"], CLOCK_HZ))
    bit.write_bytes(BIT_CONTENT)
    files = {"library": library, "hwh": description, "bit": bit}
    return Manifest(
        name=f"{name}-{memory.name}",
        target="sim",
        geometry=geometry,
        memory=memory,
        clock_hz=CLOCK_HZ,
        addresses=addresses,
        memory_bytes=MEMORY_BYTES,
        files={role: {"name": path.name, "sha256": sha256_of(path)} for role, path in files.items()},
        inputs=inputs,
        directory=directory,
    ).save()


def main() -> None:
    from sentei.gateware.control import ControlEngine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", default="32x32", choices=list(PRESETS), help="size of the engine")
    parser.add_argument("--memory", default="zynq-hp", choices=list(MEMORY_MODELS), help="model of main memory")
    parser.add_argument("--output", help="directory (default: build/sim/GEOMETRY-MEMORY)")
    parser.add_argument("--control", action="store_true", help="only the engine's control: cycles, but no results")
    parser.add_argument("--quick", action="store_true", help="compile sooner, simulate slower")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at once")
    arguments = parser.parse_args()
    path = build(
        arguments.geometry,
        arguments.memory,
        arguments.output,
        ControlEngine if arguments.control else None,
        fast=not arguments.quick,
        jobs=arguments.jobs,
    )
    print(path)


if __name__ == "__main__":
    main()
