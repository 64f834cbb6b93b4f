"""ECPIX-5: an ECP5 of 45k or 85k LUTs, 512 MiB of DDR3 (16 bits wide), a serial port on USB."""

from litedram.modules import MT41K256M16
from litedram.phy import ECP5DDRPHY
from litex.soc.cores.uart import UARTPHY
from litex_boards.platforms import lambdaconcept_ecpix5
from migen import Signal

from sentei.boards.board import Board
from sentei.boards.ecp5.clocks import DDRClocks
from sentei.boards.ecp5.flow import ECP5Flow
from sentei.boards.ecp5.presets import with_ddr3
from sentei.gateware.soc.dram import DRAM
from sentei.gateware.soc.soc import MAIN_RAM_BASE
from sentei.overlay.geometry import Geometry
from sentei.overlay.manifest import MEMORY_MODELS
from sentei.overlay.serial_bridge import BAUD


def parts(device: str, geometry: Geometry, clock_hz: int):
    platform = lambdaconcept_ecpix5.Platform(device=device, toolchain="trellis")
    clocks = DDRClocks(platform.request("clk100"), 100e6, clock_hz, reset=~platform.request("rst_n"), bridged=False)
    phy = ECP5DDRPHY(platform.request("ddram"), clock_hz)
    clocks.comb += [clocks.stop.eq(phy.init.stop), clocks.reset.eq(phy.init.reset)]
    memory = DRAM(phy, MT41K256M16(clock_hz, "1:2"), MAIN_RAM_BASE, geometry.bus_bits, clock_hz)
    led, lamp = Signal(), platform.request("rgb_led", 0)  # the LEDs' other ends are at the supply
    clocks.comb += [lamp.g.eq(~led), lamp.r.eq(1), lamp.b.eq(1)]
    return platform, clocks, memory, UARTPHY(platform.request("serial"), clock_hz, BAUD), led


BOARD = Board("ecpix5", with_ddr3("45F", "85F"), MEMORY_MODELS["ddr3"], ECP5Flow(), parts)
