"""Cuts runs of 64-bit words into the bursts that the bus moves.

A transfer is cut into INCR bursts of at most 16 beats that end at multiples of 16 beats, so that none crosses a 4 KiB
border. Base addresses must be multiples of the bus width.
"""

from litex.soc.interconnect import stream
from migen import *

from sentei.overlay.geometry import LOAD_BITS

BURST_BEATS = 16
WORDS_BITS = 24  # of a transfer's number of 64-bit words


def command_layout():
    """`address`: first byte, a multiple of the bus width; `words`: 64-bit words, at least 1."""
    return [("address", 32), ("words", WORDS_BITS)]


class BurstCutter(Module):
    """Turns a command into bursts: `source` gives `address`, `beats` (1 to 16) and `last`."""

    def __init__(self, bus_bits: int):
        self.sink = sink = stream.Endpoint(command_layout())
        self.source = source = stream.Endpoint([("address", 32), ("beats", 5)])
        self.clear = Signal()

        # # #

        bus_bytes = bus_bits // 8
        beat_shift = log2_int(bus_bytes)
        address = Signal(32)
        remaining = Signal(26)  # beats
        busy = Signal()
        room = Signal(5)
        self.comb += [
            sink.ready.eq(~busy),
            room.eq(BURST_BEATS - address[beat_shift : beat_shift + log2_int(BURST_BEATS)]),
            source.valid.eq(busy),
            source.address.eq(address),
            source.last.eq(remaining <= room),
            source.beats.eq(Mux(source.last, remaining, room)),
        ]
        if bus_bits <= LOAD_BITS:
            beats = sink.words << log2_int(LOAD_BITS // bus_bits)
        else:
            beats = (sink.words + bus_bits // LOAD_BITS - 1) >> log2_int(bus_bits // LOAD_BITS)
        self.sync += [
            If(sink.valid & sink.ready, address.eq(sink.address), remaining.eq(beats), busy.eq(1)),
            If(
                source.valid & source.ready,
                address.eq(address + (source.beats << beat_shift)),
                remaining.eq(remaining - source.beats),
                busy.eq(~source.last),
            ),
            If(self.clear, busy.eq(0)),
        ]
