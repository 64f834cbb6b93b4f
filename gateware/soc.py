"""The SoC around the engine: a small RISC-V with its firmware, main memory, interrupt controller, a host bridge.

    host bridge --+                 +-- ROM (firmware), SRAM
    VexRiscv    --+-- Wishbone -----+-- CSRs: engine, interrupts, uart, power
                                    +-- main memory <==AXI== engine

Any platform, any memory: what is given as `memory` has an AXI slave `axi` as wide as the geometry's bus, a Wishbone
slave `bus` and `size_bytes`. The host bridge is a Wishbone master, `host`, that the board wires to whatever it has.

The CPU's clock may be stopped while `cpu_idle` is 1 (domain "cpu", otherwise the same clock as "sys"): its firmware has
nothing to do and no bus access is under way. A byte on the UART wakes it.
"""

from litex.gen import LiteXModule
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from litex.soc.interconnect import wishbone
from litex.soc.interconnect.csr import CSRStorage
from migen import ClockSignal, Signal

from sentei.gateware.interrupt import InterruptController
from sentei.overlay.errors import SenteiError
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import fingerprint
from sentei.overlay.registers import INTERRUPT_REGISTERS, REGISTERS

CLOCK_HZ = 100_000_000
CSR_BASE = 0xF000_0000
CSR_PAGE_BYTES = 0x800
CSR_PAGES = {"ctrl": 0, "engine": 1, "interrupts": 2, "uart": 3, "power": 4}
MAIN_RAM_BASE = 0x4000_0000
SRAM_BASE = 0x1000_0000
SRAM_BYTES = 2048
ROM_BYTES = 4096
UART_REGISTERS = ("rxtx", "txfull", "rxempty", "ev_status", "ev_pending", "ev_enable")
ENGINE_INTERRUPT = 0  # input of the interrupt controller


def csr_address(page: str) -> int:
    """First address of a module's registers, as CPU and host see it."""
    return CSR_BASE + CSR_PAGES[page] * CSR_PAGE_BYTES


class RegisterMapError(SenteiError):
    """Gateware was generated whose registers are not where the contract says."""


class Power(LiteXModule):
    """Lets the firmware say that it has nothing to do. `wake`: input, 1 ends the sleep. `asleep`: output."""

    def __init__(self):
        self.sleep = CSRStorage(1, write_from_dev=True, description="1: the CPU's clock may stop until a byte arrives.")
        self.wake = Signal()
        self.asleep = Signal()

        # # #

        self.comb += [
            self.asleep.eq(self.sleep.storage & ~self.wake),
            self.sleep.we.eq(self.wake),
            self.sleep.dat_w.eq(0),
        ]


class SenteiSoC(SoCCore):
    """`engine` is the Engine (or a stand-in with the same ports); `firmware` the words of the ROM."""

    mem_map = SoCCore.mem_map | {"sram": SRAM_BASE, "main_ram": MAIN_RAM_BASE, "csr": CSR_BASE}

    def __init__(self, platform, geometry: Geometry, engine, memory, firmware: list[int], uart_name: str, crg):
        self.csr_map = dict(CSR_PAGES)
        self.geometry = geometry
        self.crg = crg
        SoCCore.__init__(
            self,
            platform,
            CLOCK_HZ,
            cpu_type="vexriscv",
            cpu_variant="minimal",
            integrated_rom_size=ROM_BYTES,
            integrated_rom_init=firmware,
            integrated_sram_size=SRAM_BYTES,
            csr_paging=CSR_PAGE_BYTES,
            uart_name=uart_name,
            with_timer=False,
            bus_timeout=1024,
        )
        self.cpu.cpu_params["i_clk"] = ClockSignal("cpu")

        # LiteX would map every Memory inside the engine among the CSRs; the contract has registers only.
        engine.get_memories = lambda sort=False: []
        self.engine = engine
        self.interrupts = InterruptController([engine.irq])
        self.power = Power()
        self.memory = memory
        self.host = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        self.cpu_idle = Signal()

        # # #

        self.bus.add_master("host", self.host)
        self.bus.add_slave("main_ram", memory.bus, SoCRegion(origin=MAIN_RAM_BASE, size=memory.size_bytes, mode="rwx"))
        self.comb += [
            engine.bus.connect(memory.axi),
            self.power.wake.eq(~self.uart._rxempty.status),
            self.cpu_idle.eq(self.power.asleep & ~self.cpu.ibus.cyc & ~self.cpu.dbus.cyc),
        ]

    def check_registers(self):
        """Compare the generated CSRs, name by name, with the contract. Call after finalization."""
        for page, names in (
            ("engine", tuple(REGISTERS)),
            ("interrupts", INTERRUPT_REGISTERS),
            ("uart", UART_REGISTERS),
        ):
            region = self.csr.regions[page]
            generated = tuple(csr.name for csr in region.obj)
            if region.origin != csr_address(page) or generated[: len(names)] != names:
                raise RegisterMapError(
                    f"registers of {page} must be {names} at {csr_address(page):#x}, "
                    f"not {generated} at {region.origin:#x}"
                )
            wide = [csr.name for csr in region.obj if csr.size > 32]
            if wide:
                raise RegisterMapError(f"registers of {page} must have at most 32 bits, unlike {wide}")


def firmware_constants(geometry: Geometry) -> dict[str, int]:
    """Numbers that the firmware is compiled with: addresses and, to compare with the engine's, the fingerprint."""
    constants = {
        "UART_RXTX": csr_address("uart") + 4 * UART_REGISTERS.index("rxtx"),
        "UART_TXFULL": csr_address("uart") + 4 * UART_REGISTERS.index("txfull"),
        "UART_RXEMPTY": csr_address("uart") + 4 * UART_REGISTERS.index("rxempty"),
        "UART_EV_PENDING": csr_address("uart") + 4 * UART_REGISTERS.index("ev_pending"),
        "POWER_SLEEP": csr_address("power"),
        "EXPECTED_FINGERPRINT": fingerprint(geometry),
        "SRAM_BASE": SRAM_BASE,
        "SRAM_BYTES": SRAM_BYTES,
    }
    for name, register in REGISTERS.items():
        constants[f"ENGINE_{name.upper()}"] = csr_address("engine") + register.offset
    return constants
