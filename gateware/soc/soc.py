"""The SoC around the engine: a small RISC-V with its firmware, main memory, interrupt controller, a host bridge.

    host          --+                 +-- ROM (firmware), SRAM
    serial bridge --+-- Wishbone -----+-- CSRs: engine, interrupts, uart, system
    VexRiscv      --+                 +-- main memory <==AXI== engine

Any platform, any memory: what is given as `memory` has an AXI slave `axi` as wide as the geometry's bus, a Wishbone
slave `bus` and `size_bytes`; a DRAM also the `parts` that the SoC gives registers, and a C `header` that says how to
initialise it. `host` is a Wishbone master that the board wires to whatever it has, and `led` an output for a
lamp (gateware/soc/status_led.py); every board has the bridge, which shares the serial port with the firmware
(gateware/soc/serial_port.py).

The CPU's clock may be stopped while `cpu_idle` is 1 (domain "cpu", otherwise the same clock as "sys"): its firmware has
nothing to do and no bus access is under way. A byte on the UART wakes it.
"""

from importlib.metadata import version
from pathlib import Path

from litex.gen import LiteXModule
from litex.soc.cores.uart import UART
from litex.soc.integration import export
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from litex.soc.interconnect import wishbone
from litex.soc.interconnect.csr import CSRStorage
from migen import ClockSignal, If, ResetSignal, Signal, bits_for

from sentei.gateware.firmware.build import build_firmware
from sentei.gateware.soc.interrupt import InterruptController
from sentei.gateware.soc.serial_bridge import SerialBridge
from sentei.gateware.soc.serial_port import SerialPort
from sentei.gateware.soc.status_led import StatusLED
from sentei.overlay import image
from sentei.overlay.errors import SenteiError
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import fingerprint
from sentei.overlay.registers import INTERRUPT_REGISTERS, MEMORY_FLASHES, REGISTERS, SYSTEM_REGISTERS, MemoryState

CSR_BASE = 0xF000_0000
CSR_PAGE_BYTES = 0x800
CSR_PAGES = {"ctrl": 0, "engine": 1, "interrupts": 2, "uart": 3, "system": 4, "sdram": 5, "ddrphy": 6}
MAIN_RAM_BASE = 0x4000_0000
SRAM_BASE = 0x1000_0000
SRAM_BYTES = 2048
ROM_BYTES = 16384
UART_REGISTERS = ("rxtx", "txfull", "rxempty", "ev_status", "ev_pending", "ev_enable")
ENGINE_INTERRUPT = 0  # input of the interrupt controller


def csr_address(page: str) -> int:
    """First address of a module's registers, as CPU and host see it."""
    return CSR_BASE + CSR_PAGES[page] * CSR_PAGE_BYTES


class RegisterMapError(SenteiError):
    """Gateware was generated whose registers are not where the contract says."""


class AnswerRegister(LiteXModule):
    """Registers between the bus and one of the CPU's two masters, "ibus" or "dbus": a slave's answer reaches it a cycle
    later. Else the longest paths of the SoC would lead from the slaves, through the bus and the CPU."""

    def __init__(self, cpu, name: str):
        bus = getattr(cpu, name)
        prefix = f"{name[0]}BusWishbone_"
        self.cycle = cycle = Signal()  # the CPU's, until it has the answer
        strobe, acknowledge, error = (Signal() for _ in range(3))
        data = Signal(len(bus.dat_r))
        cpu.cpu_params |= {f"o_{prefix}CYC": cycle, f"o_{prefix}STB": strobe, f"i_{prefix}ACK": acknowledge}
        cpu.cpu_params |= {f"i_{prefix}ERR": error, f"i_{prefix}DAT_MISO": data}

        # # #

        answered = acknowledge | error
        self.comb += [bus.cyc.eq(cycle & ~answered), bus.stb.eq(strobe & ~answered)]
        self.sync += [acknowledge.eq(bus.cyc & bus.ack), error.eq(bus.cyc & bus.err), data.eq(bus.dat_r)]


class System(LiteXModule):
    """What the firmware says of the SoC: that it has nothing to do, and how main memory is.

    `wake`: input, 1 ends the sleep. `asleep`: output.
    """

    def __init__(self):
        self.sleep = CSRStorage(1, write_from_dev=True, description="1: the CPU's clock may stop until a byte arrives.")
        self.memory = CSRStorage(2, description="MemoryState")
        self.wake = Signal()
        self.asleep = Signal()

        # # #

        self.comb += [
            self.asleep.eq(self.sleep.storage & ~self.wake),
            self.sleep.we.eq(self.wake),
            self.sleep.dat_w.eq(0),
        ]


class SenteiSoC(SoCCore):
    """`engine` is the Engine (or a stand-in with the same ports); `phy` the serial port's streams of bytes; `crg` makes
    the clock domains "sys", of `clock_hz`, and "cpu". The bridge forgets half a frame after `frame_cycles`; by
    default that is a tenth of a second. :meth:`install_firmware` comes last."""

    mem_map = SoCCore.mem_map | {"sram": SRAM_BASE, "main_ram": MAIN_RAM_BASE, "csr": CSR_BASE}

    def __init__(
        self, platform, geometry: Geometry, engine, memory, phy, crg, clock_hz: int, frame_cycles: int | None = None
    ):
        self.csr_map = dict(CSR_PAGES)
        self.geometry = geometry
        self.crg = crg
        SoCCore.__init__(
            self,
            platform,
            clock_hz,
            cpu_type="vexriscv",
            cpu_variant="minimal",
            integrated_rom_size=ROM_BYTES,
            integrated_sram_size=SRAM_BYTES,
            csr_paging=CSR_PAGE_BYTES,
            with_uart=False,
            with_timer=False,
            bus_timeout=1024,
        )
        self.cpu.cpu_params["i_clk"] = ClockSignal("cpu")
        for name in ("ibus", "dbus"):
            self.add_module(f"{name}_answer", AnswerRegister(self.cpu, name))

        # LiteX would map every Memory inside the engine among the CSRs; the contract has registers only.
        engine.get_memories = lambda sort=False: []
        self.engine = engine
        self.interrupts = InterruptController([engine.irq])
        self.uart = UART()
        self.bridge = SerialBridge(10 * frame_cycles if frame_cycles else clock_hz)
        self.phy = phy
        self.serial = SerialPort(phy, self.uart, self.bridge)
        self.system = System()
        self.status_led = status = StatusLED(clock_hz, error_bits=bits_for(MEMORY_FLASHES))
        self.led = status.led
        self.memory = memory
        self.memory_bytes = memory.size_bytes
        pages = ("ctrl", "engine", "interrupts", "system")
        self.addresses = {"main_ram": MAIN_RAM_BASE} | {page: csr_address(page) for page in pages}
        for name, part in memory.parts.items():
            self.add_module(name, part)
        self.host = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        self.cpu_idle = Signal()

        # # #

        self.irq.add("uart")
        self.bus.add_master("host", self.host)
        self.bus.add_master("bridge", self.bridge.wishbone)
        self.bus.add_slave("main_ram", memory.bus, SoCRegion(origin=MAIN_RAM_BASE, size=memory.size_bytes, mode="rwx"))
        self.comb += [
            engine.bus.connect(memory.axi),
            self.system.wake.eq(~self.uart._rxempty.status),
            status.ready.eq(self.system.memory.storage == MemoryState.READY),
            If(self.system.memory.storage == MemoryState.FAILED, status.error.eq(MEMORY_FLASHES)).Else(
                status.error.eq(engine.error)
            ),
            # A reset needs its clock.
            self.cpu_idle.eq(self.system.asleep & ~self.ibus_answer.cycle & ~self.dbus_answer.cycle & ~ResetSignal()),
        ]

    def add_csr_bridge(self, *arguments, **options):
        """With registers, whatever the memory: the profile's data come two cycles after their index."""
        super().add_csr_bridge(*arguments, **options | {"register": True})

    def install_firmware(self, directory: Path):
        """Finalize the SoC, compile its firmware in `directory` and put it into the ROM."""
        self.finalize()
        self.check_registers()
        headers = {
            "csr.h": export.get_csr_header(self.csr_regions, self.constants, csr_base=CSR_BASE),
            "mem.h": export.get_mem_header(self.mem_regions),
            "soc.h": export.get_soc_header(self.constants),
            "sdram_phy.h": self.memory.header,
        }
        constants = firmware_constants(self.geometry, self.memory_bytes)
        words = build_firmware(constants, directory, headers if self.memory.header else {})
        self.init_rom("rom", contents=words, auto_size=False)

    def check_registers(self):
        """Compare the generated CSRs, name by name, with the contract."""
        for page, names in (
            ("engine", tuple(REGISTERS)),
            ("interrupts", INTERRUPT_REGISTERS),
            ("uart", UART_REGISTERS),
            ("system", SYSTEM_REGISTERS),
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


def firmware_constants(geometry: Geometry, memory_bytes: int) -> dict[str, int | str]:
    """Numbers that the firmware is compiled with: addresses, places in registers and images, and, to compare with the
    engine's, the fingerprint."""
    status, control, doorbell = (REGISTERS[name].layout.fields for name in ("status", "control", "doorbell"))
    constants: dict[str, int | str] = {
        "VERSION": version("sentei"),
        "UART_RXTX": csr_address("uart") + 4 * UART_REGISTERS.index("rxtx"),
        "UART_TXFULL": csr_address("uart") + 4 * UART_REGISTERS.index("txfull"),
        "UART_RXEMPTY": csr_address("uart") + 4 * UART_REGISTERS.index("rxempty"),
        "UART_EV_PENDING": csr_address("uart") + 4 * UART_REGISTERS.index("ev_pending"),
        "SYSTEM_SLEEP": csr_address("system") + 4 * SYSTEM_REGISTERS.index("sleep"),
        "SYSTEM_MEMORY": csr_address("system") + 4 * SYSTEM_REGISTERS.index("memory"),
        "MEMORY_READY": MemoryState.READY,
        "MEMORY_FAILED": MemoryState.FAILED,
        "EXPECTED_FINGERPRINT": fingerprint(geometry),
        "ROM_BYTES": ROM_BYTES,
        "SRAM_BASE": SRAM_BASE,
        "SRAM_BYTES": SRAM_BYTES,
        "MAIN_RAM_BASE": MAIN_RAM_BASE,
        "MAIN_RAM_BYTES": memory_bytes,
        "STATUS_ERROR_SHIFT": status["error"].offset,
        "STATUS_ERROR_MASK": (1 << status["error"].width) - 1,
        "CONTROL_RESET": 1 << control["reset"].offset,
        "DOORBELL_LOAD": 1 << doorbell["load"].offset,
        "IMAGE_MAGIC_VALUE": image.MAGIC,
        "IMAGE_HEADER_BYTES": image.HEADER_BYTES,
        "IMAGE_SEALED": 4 * image.WORDS.index("bytes"),  # first byte that the CRC covers
        "CLASS_WORDS": len(image.CLASS_WORDS),
    }
    constants |= {f"IMAGE_{name.upper()}": number for number, name in enumerate(image.WORDS)}
    constants |= {f"CLASS_{name.upper()}": number for number, name in enumerate(image.CLASS_WORDS)}
    for name, register in REGISTERS.items():
        constants[f"ENGINE_{name.upper()}"] = csr_address("engine") + register.offset
    return constants
