"""What STORE instructions do: activation words become 64-bit words for the DMA, read through a port that is shared: in
cycles in which nobody else wants it.
"""

from litex.soc.interconnect import stream
from migen import *
from migen.genlib.fifo import SyncFIFO

from sentei.gateware.common import delay_valid
from sentei.gateware.memory.activation_memory import ActivationPort
from sentei.overlay.geometry import ACTIVATION_BITS, LOAD_BITS, Geometry
from sentei.overlay.instructions import INSTRUCTION


class Storer(Module):
    """`start` takes `address` and `count`; `source` then gives the activation words as 64-bit words.

    `port` is read in cycles in which `port_taken` is 0; words read wait in a queue, which always has room for them.
    """

    QUEUE_DEPTH = 8

    def __init__(self, geometry: Geometry, port, port_taken):
        width = ACTIVATION_BITS * geometry.lanes
        self.start = Signal()
        self.address = Signal(INSTRUCTION["address"].width)
        self.count = Signal(INSTRUCTION["count"].width)
        # Whether there is room in the DMA depends on much; the storer hears of it a cycle later.
        self.submodules.outlet = outlet = stream.PipeReady([("data", LOAD_BITS)])
        self.source = outlet.source
        self.word = Signal(max=geometry.activation_words)  # what to read from the port when it is free

        # # #

        source = outlet.sink
        words = geometry.load_words_per_activation
        self.submodules.queue = queue = ResetInserter()(SyncFIFO(width, self.QUEUE_DEPTH))
        remaining = Signal.like(self.count)
        room = Signal(max=self.QUEUE_DEPTH + 1, reset=self.QUEUE_DEPTH)
        piece = Signal(max=max(2, words))
        held = Signal(LOAD_BITS * words)
        ask = Signal()
        taken = Signal()
        self.comb += [
            ask.eq((remaining != 0) & (room != 0) & ~port_taken),
            queue.we.eq(delay_valid(self, ask, ActivationPort.LATENCY)),
            queue.din.eq(port.low),
            queue.reset.eq(self.start),
            held.eq(queue.dout),
            source.valid.eq(queue.readable),
            Case(piece, {k: source.data.eq(held[LOAD_BITS * k : LOAD_BITS * (k + 1)]) for k in range(words)}),
            taken.eq(source.valid & source.ready & (piece == words - 1)),
            queue.re.eq(taken),
        ]
        self.sync += [
            room.eq(room - ask + taken),
            If(ask, remaining.eq(remaining - 1), self.word.eq(self.word + 1)),
            If(source.valid & source.ready, If(taken, piece.eq(0)).Else(piece.eq(piece + 1))),
            If(
                self.start,
                self.word.eq(self.address),
                remaining.eq(self.count),
                piece.eq(0),
                room.eq(self.QUEUE_DEPTH),
            ),
        ]
