"""Arty A7-100T: an Artix-7 with 256 MiB of DDR3 (16 bits wide), a serial port on USB."""

from litedram.modules import MT41K128M16
from litedram.phy import A7DDRPHY
from litex.gen import LiteXModule
from litex.soc.cores.clock import S7IDELAYCTRL, S7PLL
from litex.soc.cores.uart import UARTPHY
from litex_boards.platforms import digilent_arty
from migen import ClockDomain, ClockSignal, Signal

from sentei.boards.board import Board
from sentei.boards.xilinx.presets import DEVICES
from sentei.boards.xilinx.vivado import VivadoFlow
from sentei.gateware.soc.dram import DRAM
from sentei.gateware.soc.soc import MAIN_RAM_BASE
from sentei.overlay.geometry import Geometry
from sentei.overlay.manifest import MEMORY_MODELS
from sentei.overlay.serial_bridge import BAUD


class Clocks(LiteXModule):
    """ "sys" and "cpu", four times as fast the DDR3's, and 200 MHz for its delays."""

    def __init__(self, oscillator, clock_hz: int, reset):
        self.rst = Signal()
        self.cd_sys = ClockDomain()
        self.cd_sys4x = ClockDomain(reset_less=True)
        self.cd_sys4x_dqs = ClockDomain(reset_less=True)
        self.cd_idelay = ClockDomain()
        self.cd_cpu = ClockDomain(reset_less=True)

        # # #

        self.pll = pll = S7PLL(speedgrade=-1)
        self.comb += [pll.reset.eq(reset | self.rst), self.cd_cpu.clk.eq(ClockSignal("sys"))]
        pll.register_clkin(oscillator, 100e6)
        pll.create_clkout(self.cd_sys, clock_hz)
        pll.create_clkout(self.cd_sys4x, 4 * clock_hz)
        pll.create_clkout(self.cd_sys4x_dqs, 4 * clock_hz, phase=90)
        pll.create_clkout(self.cd_idelay, 200e6)
        self.idelayctrl = S7IDELAYCTRL(self.cd_idelay)


def parts(device: str, geometry: Geometry, clock_hz: int):
    platform = digilent_arty.Platform(variant="a7-100", toolchain="vivado")
    clocks = Clocks(platform.request("clk100"), clock_hz, reset=~platform.request("cpu_reset"))
    platform.add_false_path_constraints(clocks.cd_sys.clk, clocks.pll.clkin)  # the SoC's wish to be reset
    phy = A7DDRPHY(platform.request("ddram"), memtype="DDR3", nphases=4, sys_clk_freq=clock_hz)
    memory = DRAM(phy, MT41K128M16(clock_hz, "1:4"), MAIN_RAM_BASE, geometry.bus_bits, clock_hz)
    return (
        platform,
        clocks,
        memory,
        UARTPHY(platform.request("serial"), clock_hz, BAUD),
        platform.request("user_led", 0),
    )


BOARD = Board("arty_a7", {"100T": DEVICES["100T"]}, MEMORY_MODELS["ddr3"], VivadoFlow(), parts)
