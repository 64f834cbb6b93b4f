"""STOREs wait in a queue until their epoch is reached, and a job's END behind them: the sequencer goes on at once."""

from litex.soc.interconnect import stream
from migen import *

from sentei.gateware.group.epochs import Epochs
from sentei.gateware.memory.bursts import WORDS_BITS, command_layout
from sentei.overlay.instructions import EPOCH_BITS, INSTRUCTION

STORE = [
    ("end", 1),
    ("word", INSTRUCTION["address"].width),
    ("words", INSTRUCTION["count"].width),
    ("address", 32),
    ("length", WORDS_BITS),
    ("epoch", EPOCH_BITS),
]
STORE_QUEUE_DEPTH = 8


class Stores(Module):
    """`sink` takes STOREs and ENDs. A STORE goes to the DMA through `command`; with `start` the storer is to read
    `words` words from `word` on. `done` pulses for an END. Nothing begins while `busy` (the DMA writes) or `stopped`.

    `empty`: nothing waits. `epochs` are the groups' counters.
    """

    def __init__(self, epochs):
        self.sink = stream.Endpoint(STORE)
        self.command = stream.Endpoint(command_layout())
        self.start = Signal()
        self.word = Signal(INSTRUCTION["address"].width)
        self.words = Signal(INSTRUCTION["count"].width)
        self.busy = Signal()
        self.stopped = Signal()
        self.done = Signal()
        self.empty = Signal()

        # # #

        self.submodules.queue = queue = stream.SyncFIFO(STORE, STORE_QUEUE_DEPTH)
        self.submodules.reached = reached = Epochs(epochs)
        first = queue.source
        may = ~self.busy & ~self.stopped
        self.comb += [
            self.sink.connect(queue.sink),
            reached.wanted.eq(first.epoch),
            self.command.valid.eq(first.valid & ~first.end & reached.reached & may),
            self.command.address.eq(first.address),
            self.command.words.eq(first.length),
            self.start.eq(self.command.valid & self.command.ready),
            self.word.eq(first.word),
            self.words.eq(first.words),
            self.done.eq(first.valid & first.end & may),
            first.ready.eq(self.start | self.done),
            self.empty.eq(~first.valid),
        ]
