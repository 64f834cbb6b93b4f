"""What a board shows before anybody has connected anything: one LED.

lit             the firmware initialises main memory
once a second   all is well
N flashes       and a pause: the ErrorCode of the engine's error, or MEMORY_FLASHES (overlay/registers.py)
"""

from litex.gen import LiteXModule
from migen import If, Signal

TICKS_S = 8  # a flash is two ticks long, and so is the dark after it
PAUSE_TICKS = 8


class StatusLED(LiteXModule):
    """`led`: 1 is lit. `ready`: 1 once main memory is initialised. `error`: its number; 0 for none."""

    def __init__(self, clock_hz: int, error_bits: int):
        self.ready, self.error = Signal(), Signal(error_bits)
        self.led = Signal()

        # # #

        cycles = int(clock_hz / TICKS_S)
        cycle, tick, last = Signal(max=cycles), Signal(error_bits + 3), Signal(error_bits + 3)
        self.comb += [
            If(self.error == 0, last.eq(TICKS_S - 1)).Else(last.eq(4 * self.error + PAUSE_TICKS - 1)),
            If(~self.ready & (self.error == 0), self.led.eq(1))
            .Elif(self.error == 0, self.led.eq(tick < TICKS_S // 2))
            .Else(self.led.eq(~tick[1] & (tick < 4 * self.error))),
        ]
        self.sync += [
            cycle.eq(cycle + 1),
            If(cycle == cycles - 1, cycle.eq(0), tick.eq(tick + 1), If(tick >= last, tick.eq(0))),
        ]
