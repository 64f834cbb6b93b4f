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
        beats, last = Signal(5), Signal()  # of the next burst
        self.comb += [
            sink.ready.eq(~busy),
            source.valid.eq(busy),
            source.address.eq(address),
            source.last.eq(last),
            source.beats.eq(beats),
        ]
        if bus_bits <= LOAD_BITS:
            whole = sink.words << log2_int(LOAD_BITS // bus_bits)
        else:
            whole = (sink.words + bus_bits // LOAD_BITS - 1) >> log2_int(bus_bits // LOAD_BITS)
        # Of what is left behind the burst that is taken: all bursts but the first begin at multiples.
        left, room = Signal.like(remaining), Signal.like(beats)
        self.comb += [
            left.eq(remaining - beats),
            room.eq(BURST_BEATS),
            If(
                ~busy,
                left.eq(whole),
                room.eq(BURST_BEATS - sink.address[beat_shift : beat_shift + log2_int(BURST_BEATS)]),
            ),
        ]
        self.sync += [
            If(sink.valid & sink.ready, address.eq(sink.address), busy.eq(1)),
            If(source.valid & source.ready, address.eq(address + (beats << beat_shift)), busy.eq(~last)),
            If(
                (sink.valid & sink.ready) | (source.valid & source.ready),
                remaining.eq(left),
                last.eq(left <= room),
                beats.eq(Mux(left <= room, left, room)),
            ),
            If(self.clear, busy.eq(0)),
        ]
