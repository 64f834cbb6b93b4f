"""OrangeCrab r0.2: an ECP5 of 25k or 85k LUTs, 128 MiB of DDR3 (16 bits wide). The serial port is on the Feather pins
(TX 1, RX 0); the button resets."""

from litedram.modules import MT41K64M16
from litedram.phy import ECP5DDRPHY
from litex.soc.cores.uart import UARTPHY
from litex_boards.platforms import gsd_orangecrab
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
    platform = gsd_orangecrab.Platform(revision="0.2", device=device, toolchain="trellis")
    platform.add_extension(gsd_orangecrab.feather_serial)
    clocks = DDRClocks(platform.request("clk48"), 48e6, clock_hz, reset=~platform.request("usr_btn"), bridged=True)
    pads = platform.request("ddram")
    phy = ECP5DDRPHY(pads, clock_hz, dm_remapping={0: 1, 1: 0})  # the board crosses the two data masks
    phy.settings.rtt_nom = "disabled"
    clocks.comb += [
        clocks.stop.eq(phy.init.stop),
        clocks.reset.eq(phy.init.reset),
        pads.vccio.eq(2 ** len(pads.vccio) - 1),  # pins beside the DRAM's that stiffen its supply
        pads.gnd.eq(0),
        platform.request("rst_n").eq(1),
    ]
    memory = DRAM(phy, MT41K64M16(clock_hz, "1:2"), MAIN_RAM_BASE, geometry.bus_bits, clock_hz)
    led = Signal()
    clocks.comb += platform.request("user_led", 1).eq(~led)  # green; the LEDs' other ends are at the supply
    return platform, clocks, memory, UARTPHY(platform.request("serial"), clock_hz, BAUD), led


BOARD = Board("orangecrab", with_ddr3("25F", "85F"), MEMORY_MODELS["ddr3"], ECP5Flow(), parts)
