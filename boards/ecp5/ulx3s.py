"""ULX3S: an ECP5 of 12k to 85k LUTs, 32 MiB of SDRAM (16 bits wide), a serial port on USB."""

from litedram.modules import MT48LC16M16
from litedram.phy import GENSDRPHY
from litex.soc.cores.uart import UARTPHY
from litex_boards.platforms import radiona_ulx3s

from sentei.boards.board import Board
from sentei.boards.ecp5.clocks import SDRClocks
from sentei.boards.ecp5.flow import ECP5Flow
from sentei.boards.ecp5.presets import DEVICES
from sentei.gateware.soc.dram import DRAM
from sentei.gateware.soc.soc import MAIN_RAM_BASE
from sentei.overlay.geometry import Geometry
from sentei.overlay.manifest import MEMORY_MODELS
from sentei.overlay.serial_bridge import BAUD


def parts(device: str, geometry: Geometry, clock_hz: int):
    platform = radiona_ulx3s.Platform(device=f"LFE5U-{device}", revision="2.0", toolchain="trellis")
    clocks = SDRClocks(
        platform.request("clk25"), 25e6, clock_hz, platform.request("sdram_clock"), 90, reset=platform.request("rst")
    )
    clocks.comb += platform.request("wifi_gpio0").eq(1)  # or the ESP32 resets the FPGA
    phy = GENSDRPHY(platform.request("sdram"), clock_hz)
    memory = DRAM(phy, MT48LC16M16(clock_hz, "1:1"), MAIN_RAM_BASE, geometry.bus_bits, clock_hz)
    return (
        platform,
        clocks,
        memory,
        UARTPHY(platform.request("serial"), clock_hz, BAUD),
        platform.request("user_led", 0),
    )


BOARD = Board("ulx3s", DEVICES, MEMORY_MODELS["ulx3s-sdram"], ECP5Flow(), parts)
