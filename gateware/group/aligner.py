"""Pipelined aligner: every cycle one vector of `lanes` pixels, from any pixel address, padding included.

A vector that starts in the middle of a word straddles two words; both are read in one cycle. The vector is a whole
word's worth of lanes in any case, so each position of a word is taken from one of the two, and then rotated into place.
Lanes outside the map (mask bit 0) read the step's pad value instead:

    pixel address --> even and odd word --> choose by position --> rotate left     --> mask --> vector
                       LATENCY of the memory                      coarse, then fine

    lanes 4, offset 1:   low  3 2 1 .     high . . . 4     chosen 3 2 1 4     rotated 4 3 2 1     (lane 0 to the right)

One vector may start every cycle; there is no back-pressure.
"""

from migen import *

from sentei.gateware.common import delay, nibble
from sentei.gateware.memory.activation_memory import ActivationPort
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry


def rotate(module, word, amount, first_bit: int):
    """`word` rotated down by `amount` << `first_bit` lanes, one multiplexer a bit of `amount`."""
    for bit, enable in enumerate(amount, first_bit):
        distance = ACTIVATION_BITS << bit
        rotated = Signal(len(word))
        module.comb += rotated.eq(Mux(enable, Cat(word[distance:], word[:distance]), word))
        word = rotated
    return word


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

        # A position takes the word of the vector's last lanes if it lies before the first lane's.
        fine_bits = (lane_bits + 1) // 2
        self.comb += port.word.eq(self.address[lane_bits:])
        address = delay(self, self.address[: lane_bits + 1], ActivationPort.LATENCY - 1)
        rotation = delay(self, address[:lane_bits], 1)
        from_odd = Signal(lanes, reset_less=True)
        self.sync += [
            from_odd[position].eq(address[-1] ^ (address[:lane_bits] > position)) for position in range(lanes)
        ]
        even, odd = port.banks
        chosen = Signal(ACTIVATION_BITS * lanes)
        self.comb += [
            nibble(chosen, position).eq(Mux(from_odd[position], nibble(odd, position), nibble(even, position)))
            for position in range(lanes)
        ]
        coarse = delay(self, rotate(self, chosen, rotation[fine_bits:], fine_bits), 1)
        aligned = rotate(self, coarse, delay(self, rotation[:fine_bits], 1), 0)
        self.sync += [
            nibble(self.vector, lane).eq(Mux(self.mask[lane], nibble(aligned, lane), self.pad)) for lane in range(lanes)
        ]
