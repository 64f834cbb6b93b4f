"""Main memory on a board: a DRAM behind LiteDRAM, with an AXI port for the engine and a Wishbone port for the rest.

    axi --> registers --> LiteDRAM's AXI front end --+
                                                     +--> crossbar --> controller --> PHY --> pads
    bus --> registers --> its Wishbone front end ----+

The registers keep LiteDRAM's handshakes apart from the engine's, a cycle each way in all five channels, and from the
CPU's.

The firmware initialises the DRAM before anything else, with LiteX's own liblitedram. So controller and PHY have the
names that it knows: the SoC takes them as its parts "sdram" and "ddrphy".
"""

from litedram.core import LiteDRAMCore
from litedram.frontend.axi import LiteDRAMAXI2Native
from litedram.frontend.wishbone import LiteDRAMWishbone2Native
from litedram.init import get_sdram_phy_c_header
from litex.gen import LiteXModule
from litex.soc.interconnect import axi, stream, wishbone
from migen import If, Signal

DDR3_BUS_BITS = 128  # what LiteDRAM moves in a cycle with 16 bits of DDR3: narrower ports would wait for each word


class WishboneRegister(LiteXModule):
    """Hands each access of `slave` on to `master`, a cycle later, and its answer back, a cycle later."""

    def __init__(self):
        self.slave = slave = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        self.master = master = wishbone.Interface(data_width=32, address_width=32, addressing="word")

        # # #

        under_way, answered, given_up = Signal(), Signal(), Signal()
        self.comb += [master.cyc.eq(under_way), master.stb.eq(under_way), slave.ack.eq(answered)]
        self.sync += [
            answered.eq(0),
            If(
                under_way,
                # Whoever gave up gets no answer, nor does an access that came since.
                If(~slave.cyc, given_up.eq(1)),
                If(master.ack, under_way.eq(0), answered.eq(slave.cyc & ~given_up), slave.dat_r.eq(master.dat_r)),
            ).Elif(
                slave.cyc & slave.stb & ~answered,
                under_way.eq(1),
                given_up.eq(0),
                *[getattr(master, name).eq(getattr(slave, name)) for name in ("adr", "dat_w", "sel", "we")],
            ),
        ]


class DRAM(LiteXModule):
    """A `module` of litedram.modules behind `phy`, at `base`; `axi` is `bus_bits` wide, `bus` 32 bits."""

    def __init__(self, phy, module, base: int, bus_bits: int, clock_hz: int):
        settings = module.geom_settings
        self.size_bytes = 2 ** (settings.bankbits + settings.rowbits + settings.colbits) * phy.settings.databits // 8
        self.axi = axi.AXIInterface(data_width=bus_bits, address_width=32, id_width=1)
        self.bus_register = register = WishboneRegister()
        self.bus = register.slave

        # # #

        core = LiteDRAMCore(phy, settings, module.timing_settings, clock_hz)
        inner = axi.AXIInterface(data_width=bus_bits, address_width=32, id_width=1)
        for name, source, sink in (
            ("aw", self.axi.aw, inner.aw),
            ("w", self.axi.w, inner.w),
            ("b", inner.b, self.axi.b),
            ("ar", self.axi.ar, inner.ar),
            ("r", inner.r, self.axi.r),
        ):
            buffer = stream.Buffer(source.description, pipe_valid=True, pipe_ready=True)
            self.add_module(name, buffer)
            self.comb += [source.connect(buffer.sink), buffer.source.connect(sink)]
        ports = [core.crossbar.get_port(data_width=width) for width in (bus_bits, 32)]
        self.axi_port = LiteDRAMAXI2Native(inner, ports[0], base_address=base)
        self.bus_port = LiteDRAMWishbone2Native(register.master, ports[1], base_address=base)
        self.parts = {"sdram": core, "ddrphy": phy}
        self.header = get_sdram_phy_c_header(phy.settings, module.timing_settings, settings)
