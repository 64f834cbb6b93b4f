"""Clocks of ECP5 boards: for an SDRAM of single data rate, and for DDR3 behind LiteDRAM's ECP5DDRPHY.

Both make the domains "sys" and "cpu", and reset them when the reset input is 1, when the SoC wishes so (`rst`) and
until the PLL has locked.
"""

from litex.build.io import DDROutput
from litex.gen import LiteXModule
from litex.soc.cores.clock import ECP5PLL
from migen import ClockDomain, ClockSignal, If, Instance, Signal
from migen.genlib.resetsync import AsyncResetSynchronizer

SETTLING_CYCLES = 1 << 16  # of the oscillator, after power-up


class SDRClocks(LiteXModule):
    """From `oscillator`, of `oscillator_hz`; `sdram_clock`, the SDRAM's, lags by `phase` degrees."""

    def __init__(self, oscillator, oscillator_hz: float, clock_hz: int, sdram_clock, phase: float, reset):
        self.rst = Signal()
        self.cd_sys = ClockDomain()
        self.cd_sys_ps = ClockDomain(reset_less=True)
        self.cd_cpu = ClockDomain(reset_less=True)

        # # #

        self.pll = pll = ECP5PLL()
        self.comb += [pll.reset.eq(reset | self.rst), self.cd_cpu.clk.eq(ClockSignal("sys"))]
        pll.register_clkin(oscillator, oscillator_hz)
        pll.create_clkout(self.cd_sys, clock_hz, margin=1e-3)
        pll.create_clkout(self.cd_sys_ps, clock_hz, phase=phase, margin=1e-3)
        self.specials += DDROutput(1, 0, sdram_clock, ClockSignal("sys_ps"))


class DDRClocks(LiteXModule):
    """ "sys" is half of "sys2x", an edge clock that the PHY stops (`stop`) and divides anew (`reset`) to align itself.

    `bridged`: the PLL's output reaches the edge clock of the DRAM's side through the bridge in the middle of the chip.
    """

    def __init__(self, oscillator, oscillator_hz: float, clock_hz: int, reset, bridged: bool):
        self.rst = Signal()
        self.stop = Signal()
        self.reset = Signal()
        self.cd_init = ClockDomain()
        self.cd_settling = ClockDomain(reset_less=True)
        self.cd_sys = ClockDomain()
        self.cd_sys2x = ClockDomain(reset_less=True)
        self.cd_sys2x_i = ClockDomain(reset_less=True)
        self.cd_cpu = ClockDomain(reset_less=True)

        # # #

        waited = Signal(max=SETTLING_CYCLES + 1)
        settled = Signal()
        self.comb += [self.cd_settling.clk.eq(oscillator), settled.eq(waited == SETTLING_CYCLES)]
        self.sync.settling += If(~settled, waited.eq(waited + 1))

        self.pll = pll = ECP5PLL()
        self.comb += [pll.reset.eq(~settled | reset | self.rst), self.cd_cpu.clk.eq(ClockSignal("sys"))]
        pll.register_clkin(oscillator, oscillator_hz)
        pll.create_clkout(self.cd_sys2x_i, 2 * clock_hz)
        pll.create_clkout(self.cd_init, 25e6)
        fast = self.cd_sys2x_i.clk
        if bridged:
            crossed = Signal()
            self.specials += Instance("ECLKBRIDGECS", i_CLK0=fast, i_SEL=0, o_ECSOUT=crossed)
            fast = crossed
        self.specials += [
            Instance("ECLKSYNCB", i_ECLKI=fast, i_STOP=self.stop, o_ECLKO=self.cd_sys2x.clk),
            Instance(
                "CLKDIVF", p_DIV="2.0", i_ALIGNWD=0, i_CLKI=self.cd_sys2x.clk, i_RST=self.reset, o_CDIVX=self.cd_sys.clk
            ),
            AsyncResetSynchronizer(self.cd_sys, ~pll.locked | self.reset),
        ]
