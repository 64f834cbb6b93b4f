"""A Zynq-7000 board: the engine beside Linux, driven by pynq.

    Arm cores <--> PS7 --M_AXI_GP0--> registers: engine, interrupts
                    ^  <--S_AXI_HP0-- engine's DMA
                    `--IRQ_F2P------- interrupts

There is no soft CPU: the Arm cores are the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from litex.gen import LiteXModule
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from migen import ClockDomain, ClockSignal, ResetSignal, Signal

from sentei.boards.board import Board, Variant
from sentei.boards.flow import NAME, Device
from sentei.boards.xilinx.openxc7 import OpenXC7Flow
from sentei.boards.xilinx.presets import DEVICES, OPENXC7_7020
from sentei.boards.xilinx.vivado import VivadoFlow
from sentei.gateware.engine.engine import Engine
from sentei.gateware.soc.interrupt import InterruptController
from sentei.gateware.soc.soc import CSR_PAGE_BYTES
from sentei.gateware.technologies.technology import Technology
from sentei.overlay.manifest import MEMORY_MODELS

CSR_BASE = 0x4000_0000  # where M_AXI_GP0 begins
CSR_PAGES = {"ctrl": 0, "engine": 1, "interrupts": 2}
MEMORY_BYTES = 512 << 20
NOT_CACHED = 0b0011  # AxCACHE: normal memory, which may be buffered and not be cached


class Clocks(LiteXModule):
    """The processing system's FCLK0."""

    def __init__(self):
        self.rst = Signal()
        self.cd_sys = ClockDomain()

        # # #

        self.comb += [
            self.cd_sys.clk.eq(ClockSignal("ps7")),
            self.cd_sys.rst.eq(ResetSignal("ps7") | self.rst),
        ]


class ZynqSoC(SoCCore):
    def __init__(self, platform, device: Device, technology: Technology):
        self.csr_map = dict(CSR_PAGES)
        self.memory_bytes = MEMORY_BYTES
        self.addresses = {"main_ram": 0} | {
            page: CSR_BASE + number * CSR_PAGE_BYTES for page, number in CSR_PAGES.items()
        }
        self.crg = Clocks()
        SoCCore.__init__(
            self,
            platform,
            device.clock_hz,
            cpu_type="zynq7000",
            csr_paging=CSR_PAGE_BYTES,
            integrated_rom_size=0,
            integrated_sram_size=0,
            with_uart=False,
            with_timer=False,
            bus_timeout=1024,
        )
        engine = Engine(device.geometry, technology)
        engine.get_memories = lambda sort=False: []  # the contract has registers only
        self.engine = engine
        self.interrupts = InterruptController([engine.irq])

        # # #

        self.cpu.set_ps7(
            name="ps7",
            config={
                "PCW_FPGA0_PERIPHERAL_FREQMHZ": device.clock_hz / 1e6,
                "PCW_USE_S_AXI_HP0": 1,
                "PCW_S_AXI_HP0_DATA_WIDTH": device.geometry.bus_bits,
            },
        )
        # LiteX connects this port of a PS7 whether it has one or not; without USB it has not.
        del self.cpu.cpu_params["i_USB0_VBUS_PWRFAULT"]
        # LiteX wants to know of the memory where the Arm cores begin.
        self.bus.add_region("rom", SoCRegion(origin=self.cpu.reset_address, size=1 << 20, mode="rx", linker=True))
        port = self.cpu.add_axi_hp_slave("sys")
        bus = engine.bus
        for name in ("aw", "w", "ar"):
            omitted = {"cache", "lock", "qos", "region", "user"}
            self.comb += getattr(bus, name).connect(getattr(port, name), omit=omitted)
        self.comb += [port.aw.cache.eq(NOT_CACHED), port.ar.cache.eq(NOT_CACHED)]
        for name in ("b", "r"):
            self.comb += getattr(port, name).connect(getattr(bus, name), omit={"user"})
        self.irq.add("fabric", n=0)
        self.comb += self.cpu.interrupt[0].eq(self.interrupts.irq)

    def add_csr_bridge(self, *arguments, **options):
        """With registers, as gateware/soc/soc.py has it."""
        super().add_csr_bridge(*arguments, **options | {"register": True})


@dataclass(frozen=True)
class ZynqBoard(Board):
    """A board with a Zynq-7000. `parts()` makes a LiteX platform with the PS7's pins."""

    @property
    def target(self) -> str:
        return "pynq"

    def makes_clock(self, name: str, clock_hz: int) -> bool:
        """The processing system makes one near to it, and not faster (overlay/hwh.py)."""
        return True

    def make_soc(self, name: str, directory: Path):
        device = self.devices[name]
        platform = self.parts()
        return ZynqSoC(platform, device, self.flow.technology(device.multipliers)), platform

    def write_verilog(self, name: str, work: Path):
        written = super().write_verilog(name, work)
        constraints = work / f"{NAME}.xdc"
        # The processing system's pins are where they are.
        kept = [line for line in constraints.read_text().splitlines() if line and "ps7" not in line]
        constraints.write_text("\n".join(kept) + "\n")
        return written


def zynq_board(name: str, platform: Callable) -> ZynqBoard:
    """A board with a Zynq-7020, built by Vivado; or by openXC7's tools, with a smaller array."""
    openxc7 = Variant(OpenXC7Flow(), {"7020": OPENXC7_7020})
    devices = {"7020": DEVICES["7020"]}
    return ZynqBoard(name, devices, MEMORY_MODELS["zynq-hp"], VivadoFlow(), platform, {"openxc7": openxc7})
