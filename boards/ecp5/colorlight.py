"""Colorlight i5 (25F) and i9 (45F): LED receiver cards with 8 MiB of SDRAM, 32 bits wide, on a carrier with a serial
port."""

from dataclasses import replace

from litedram.modules import M12L64322A
from litedram.phy import GENSDRPHY
from litex.soc.cores.uart import UARTPHY
from litex_boards.platforms import colorlight_i5
from migen import Signal

from sentei.boards.board import Board
from sentei.boards.ecp5.clocks import SDRClocks
from sentei.boards.ecp5.flow import ECP5Flow
from sentei.boards.ecp5.presets import DEVICES
from sentei.gateware.soc.dram import DRAM
from sentei.gateware.soc.soc import MAIN_RAM_BASE
from sentei.overlay.geometry import Geometry
from sentei.overlay.manifest import MEMORY_MODELS
from sentei.overlay.serial_bridge import BAUD

CARDS = {"25F": ("i5", "7.0"), "45F": ("i9", "7.2")}


def parts(device: str, geometry: Geometry, clock_hz: int):
    card, revision = CARDS[device]
    platform = colorlight_i5.Platform(board=card, revision=revision, toolchain="trellis")
    clocks = SDRClocks(
        platform.request("clk25"),
        25e6,
        clock_hz,
        platform.request("sdram_clock"),
        180,
        reset=~platform.request("cpu_reset_n"),
    )
    phy = GENSDRPHY(platform.request("sdram"), clock_hz)
    memory = DRAM(phy, M12L64322A(clock_hz, "1:1"), MAIN_RAM_BASE, geometry.bus_bits, clock_hz)
    led = Signal()
    clocks.comb += platform.request("user_led_n").eq(~led)
    return platform, clocks, memory, UARTPHY(platform.request("serial"), clock_hz, BAUD), led


# Builds for a ULX3S's clocks reached 63 and 57 MHz.
CLOCKS = {"25F": 60_000_000, "45F": 50_000_000}
PRESETS = {device: replace(DEVICES[device], clock_hz=clock_hz) for device, clock_hz in CLOCKS.items()}
BOARD = Board("colorlight", PRESETS, MEMORY_MODELS["colorlight-sdram"], ECP5Flow(), parts)
