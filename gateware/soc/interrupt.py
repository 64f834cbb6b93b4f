"""Interrupt controller with the registers of the Xilinx AXI INTC (PG099), which pynq drives.

Each input is a pulse (captured on its rising edge); the output is a level:

    inputs --edge--> isr (pending) --and ier--> ipr --any, and mer.me--> irq

Registers stand in the order of `overlay.registers.INTERRUPT_REGISTERS`. As in PG099, inputs are captured only once
mer.hie is set, isr can be written (to raise interrupts by software) only before, and hie stays set until reset.
"""

from litex.gen import LiteXModule
from litex.soc.interconnect.csr import CSR, CSRStatus
from migen import Cat, If, Signal

from sentei.overlay.registers import INTERRUPT_REGISTERS

NOTHING_PENDING = 0xFFFFFFFF  # value of ivr


class InterruptController(LiteXModule):
    """`inputs`: one Signal for each source, number 0 first. `irq`: level, high while an enabled one is pending."""

    def __init__(self, inputs: list):
        self.irq = Signal()
        count = len(inputs)
        for name in INTERRUPT_REGISTERS:
            register = CSRStatus(32, name=name) if name == "ivr" else CSR(32, name=name)
            setattr(self, name, register)

        # # #

        pending, enabled, active = Signal(count), Signal(count), Signal(count)
        master, hardware = Signal(), Signal()
        before, edges = Signal(count), Signal(count)
        self.comb += [
            edges.eq(Cat(*inputs) & ~before),
            active.eq(pending & enabled),
            self.irq.eq(master & (active != 0)),
            self.isr.w.eq(pending),
            self.ipr.w.eq(active),
            self.ier.w.eq(enabled),
            self.mer.w.eq(Cat(master, hardware)),
            self.ivr.status.eq(NOTHING_PENDING),
            *[If(active[number], self.ivr.status.eq(number)) for number in reversed(range(count))],
        ]
        acknowledged, raised = Signal(count), Signal(count)
        self.comb += [
            If(self.iar.re, acknowledged.eq(self.iar.r)),
            If(hardware, raised.eq(edges)).Elif(self.isr.re, raised.eq(self.isr.r)),
        ]
        self.sync += [
            before.eq(Cat(*inputs)),
            pending.eq((pending & ~acknowledged) | raised),
            If(self.ier.re, enabled.eq(self.ier.r)),
            If(self.sie.re, enabled.eq(enabled | self.sie.r)),
            If(self.cie.re, enabled.eq(enabled & ~self.cie.r)),
            If(self.mer.re, master.eq(self.mer.r[0]), hardware.eq(hardware | self.mer.r[1])),
        ]
