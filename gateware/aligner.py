"""Pipelined aligner: every cycle one vector of `lanes` pixels, from any pixel address, padding included.

A vector that starts in the middle of a word straddles two words; both are read in one cycle and shifted into place.
Lanes outside the map (mask bit 0) read the step's pad value instead:

    pixel address --> word, word + 1 --> [ high | low ] >> (address mod lanes) --> mask --> vector
                       LATENCY of the memory         coarse, then fine

One vector may start every cycle; there is no back-pressure.
"""

from migen import *

from sentei.gateware.activation_memory import ActivationPort
from sentei.gateware.common import delay, nibble
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry


class Aligner(Module):
    """`vector` shows the pixels at `address` LATENCY cycles later; `mask` and `pad` enter MASK_DELAY cycles later."""

    LATENCY = ActivationPort.LATENCY + 2
    MASK_DELAY = ActivationPort.LATENCY + 1

    def __init__(self, geometry: Geometry, port: ActivationPort):
        lanes = geometry.lanes
        lane_bits = log2_int(lanes)
        self.address = Signal(log2_int(geometry.activation_words) + lane_bits)  # in pixels
        self.mask = Signal(lanes)
        self.pad = Signal(ACTIVATION_BITS)
        self.vector = Signal(ACTIVATION_BITS * lanes)

        # # #

        fine_bits = lane_bits // 2
        self.comb += port.word.eq(self.address[lane_bits:])
        rotation = delay(self, self.address[:lane_bits], ActivationPort.LATENCY)
        coarse = Signal(ACTIVATION_BITS * (lanes + (1 << fine_bits) - 1), reset_less=True)
        aligned = Signal(ACTIVATION_BITS * lanes)
        fine = delay(self, rotation[:fine_bits], 1)
        self.sync += coarse.eq(Cat(port.low, port.high) >> Cat(C(0, 2 + fine_bits), rotation[fine_bits:]))
        self.comb += aligned.eq(coarse >> Cat(C(0, 2), fine))
        self.sync += [
            nibble(self.vector, lane).eq(Mux(self.mask[lane], nibble(aligned, lane), self.pad)) for lane in range(lanes)
        ]
