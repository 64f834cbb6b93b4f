"""Jobs that the doorbell rang for: a queue, and how many have not ended."""

from litex.soc.interconnect import stream
from migen import *

from sentei.overlay.registers import JOB_QUEUE_DEPTH, REGISTERS

DOORBELL, STATUS = REGISTERS["doorbell"].layout, REGISTERS["status"].layout
PROGRAM_WORDS_BITS = 16
JOB = [
    ("entry", DOORBELL["entry"].width),
    ("load", DOORBELL["load"].width),
    ("program", 32),
    ("program_words", PROGRAM_WORDS_BITS),
    ("input", 32),
    ("output", 32),
]


class JobQueue(Module):
    """`sink` takes JOB_QUEUE_DEPTH jobs; `source` hands out one after the other. A job has `count`ed until `done`."""

    def __init__(self):
        self.sink = stream.Endpoint(JOB)
        self.done = Signal()
        self.count = Signal(STATUS["queued"].width)

        # # #

        self.submodules.queue = queue = stream.SyncFIFO(JOB, JOB_QUEUE_DEPTH)
        self.source = queue.source
        taken = self.sink.valid & self.sink.ready
        self.comb += [
            self.sink.connect(queue.sink, omit={"valid", "ready"}),
            queue.sink.valid.eq(taken),
            self.sink.ready.eq(self.count != JOB_QUEUE_DEPTH),
        ]
        self.sync += self.count.eq(self.count + taken - self.done)
