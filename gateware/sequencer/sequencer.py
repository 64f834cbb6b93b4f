"""Instruction sequencer: takes jobs from the doorbell's queue and carries out a program with no help from a CPU.

    doorbell --> queue --> [load instructions] --> fetch --> LOAD / RUN / SYNC ------------> next job
                                                     ^______________|   STORE, END --> queue --> storer --> interrupt

LOAD, STORE and RUN only start their unit, and a job's END waits in a queue behind its STOREs: while the groups compute
one picture, the sequencer loads the next. An error from any unit, an unknown opcode or the watchdog stops everything
and stays in `error` until a reset.
"""

from functools import reduce
from operator import and_

from litex.soc.interconnect import stream
from migen import *
from migen.genlib.fsm import FSM, NextState, NextValue

from sentei.gateware.common import fields_of
from sentei.gateware.engine.dma import command_layout
from sentei.gateware.group.group import Epochs, run_layout
from sentei.overlay.geometry import LOAD_BITS, Geometry
from sentei.overlay.instructions import (
    EPOCH_BITS,
    INSTRUCTION,
    INSTRUCTION_LOAD_WORDS,
    Base,
    Opcode,
    Start,
    Until,
    load_words,
)
from sentei.overlay.instructions import Memory as Target
from sentei.overlay.registers import JOB_QUEUE_DEPTH, ErrorCode

JOB = [("entry", 16), ("load", 1), ("program", 32), ("program_words", 16), ("input", 32), ("output", 32)]


STORE = [("end", 1), ("word", 16), ("words", 16), ("address", 32), ("length", 24), ("epoch", EPOCH_BITS)]
STORE_QUEUE_DEPTH = 8


class Sequencer(Module):
    """Drives the loader through `start_load`, the storer through `start_store`, the groups through `run`.

    `jobs` is the doorbell's sink. `read_command` and `write_command` go to the DMA; while `fetching` is 1 the words
    read are instructions and come in through `instructions`. `epochs` are the groups' counters, `arrivals` say which of
    them are about to go one up, `todo` are the numbers of runs that each has not finished.
    """

    def __init__(self, geometry: Geometry, epochs, arrivals, todo):
        self.jobs = stream.Endpoint(JOB)
        self.queued = Signal(4)
        self.read_command = read = stream.Endpoint(command_layout())
        self.write_command = write = stream.Endpoint(command_layout())
        self.instructions = stream.Endpoint([("data", LOAD_BITS)])
        self.fetching = Signal()
        self.start_load = Signal()
        self.run = run = stream.Endpoint(run_layout(geometry))
        self.fields = Signal(INSTRUCTION.width)  # of the instruction in hand, for the loader
        self.start_store = Signal()
        self.store_word = Signal(16)
        self.store_words = Signal(16)
        self.load_busy = Signal()
        self.store_busy = Signal()
        self.results_busy = Signal()  # results are under way to the activation memory
        self.fault = Signal(3)  # an ErrorCode from the DMA or the doorbell; 0: none
        self.watchdog = Signal(32)
        self.error = Signal(3)
        self.busy = Signal()
        self.done = Signal()  # a job ended
        self.pointer = Signal(16)
        self.cycles = Signal(32)
        self.last_cycles = Signal(32)

        # # #

        self.submodules.queue = queue = stream.SyncFIFO(JOB, JOB_QUEUE_DEPTH)
        jobs_left = Signal(4)  # rung for and not ended
        self.comb += [
            self.jobs.connect(queue.sink, omit={"valid", "ready"}),
            queue.sink.valid.eq(self.jobs.valid & self.jobs.ready),
            self.jobs.ready.eq(jobs_left != JOB_QUEUE_DEPTH),
            self.queued.eq(jobs_left),
        ]
        self.sync += jobs_left.eq(jobs_left + (self.jobs.valid & self.jobs.ready) - self.done)

        # A memory for each of an instruction's words.
        job = queue.source
        filled = Signal(max=geometry.instruction_words + 1)
        fill = Signal()
        part_bits = log2_int(INSTRUCTION_LOAD_WORDS)
        fetched = []
        for part in range(INSTRUCTION_LOAD_WORDS):
            memory = Memory(LOAD_BITS, geometry.instruction_words // INSTRUCTION_LOAD_WORDS)
            fetch_port = memory.get_port(mode=READ_FIRST)
            write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
            self.specials += memory, fetch_port, write_port
            self.comb += [
                write_port.adr.eq(filled[part_bits:]),
                write_port.dat_w.eq(self.instructions.data),
                write_port.we.eq(fill & (filled[:part_bits] == part)),
                fetch_port.adr.eq(self.pointer),
            ]
            fetched.append(fetch_port.dat_r)
        word = Signal(INSTRUCTION_LOAD_WORDS * LOAD_BITS)
        here, statements = fields_of(INSTRUCTION, word)
        base = Signal(32)
        length = Signal(24)
        self.comb += [
            *statements,
            self.fields.eq(word),
            Case(
                here.base,
                {
                    int(Base.PROGRAM): base.eq(job.program),
                    int(Base.INPUT): base.eq(job.input),
                    "default": base.eq(job.output),
                },
            ),
            Case(
                here.memory,
                {
                    **{int(m): length.eq(here.count * load_words(m, geometry)) for m in Target},
                    "default": length.eq(0),
                },
            ),
        ]

        # STOREs wait for their epoch in a queue, and END behind them.
        self.submodules.stores = stores = stream.SyncFIFO(STORE, STORE_QUEUE_DEPTH)
        self.submodules.stored = stored = Epochs(epochs)
        first_epoch = Signal(EPOCH_BITS)  # of the picture
        storing = stores.source
        start = Signal()
        self.comb += [
            stores.sink.end.eq(here.opcode == Opcode.END),
            stores.sink.word.eq(here.address),
            stores.sink.words.eq(here.count),
            stores.sink.address.eq(base + here.offset),
            stores.sink.length.eq(length),
            stores.sink.epoch.eq(first_epoch + here.epoch),
            stored.wanted.eq(storing.epoch),
            start.eq(storing.valid & ~storing.end & stored.reached & ~self.store_busy & (self.error == 0)),
            write.valid.eq(start),
            write.address.eq(storing.address),
            write.words.eq(storing.length),
            self.start_store.eq(start & write.ready),
            self.store_word.eq(storing.word),
            self.store_words.eq(storing.words),
            self.done.eq(storing.valid & storing.end & ~self.store_busy & (self.error == 0)),
            storing.ready.eq(self.start_store | self.done),
        ]

        # What a SYNC waits for.
        ahead = []  # of the picture's start
        for epoch, more in zip(epochs, arrivals, strict=True):
            distance = Signal(EPOCH_BITS)
            self.sync += distance.eq(epoch + more - first_epoch)
            ahead.append(distance)
        reached = Signal()
        few_runs, none_run = Signal(), Signal()
        nothing_stored, everything = Signal(), Signal()
        satisfied = Signal()
        self.comb += [
            reached.eq(reduce(and_, [~(distance - here.epoch)[EPOCH_BITS - 1] for distance in ahead])),
            few_runs.eq(reduce(and_, [level <= here.count for level in todo])),
            none_run.eq(reduce(and_, [level == 0 for level in todo])),
            nothing_stored.eq(~storing.valid & ~self.store_busy),
            satisfied.eq(
                (reached | ~here.units[bit_of(Until.EPOCH)])
                & (~self.load_busy | ~here.units[bit_of(Until.LOADED)])
                & (nothing_stored | ~here.units[bit_of(Until.STORED)])
                & (few_runs | ~here.units[bit_of(Until.RUNS)])
                & (~self.results_busy | ~here.units[bit_of(Until.WRITTEN)])
            ),
            everything.eq(~self.load_busy & nothing_stored & none_run & ~self.results_busy),
        ]

        self.submodules.fsm = fsm = FSM(reset_state="AWAIT-JOB")
        fsm.act(
            "AWAIT-JOB",
            NextValue(self.pointer, job.entry),
            NextValue(filled, 0),
            If(
                job.valid,
                If(~job.load, NextState("FETCH")).Elif(everything, NextState("REQUEST-INSTRUCTIONS")),
            ),
        )
        fsm.act(
            "REQUEST-INSTRUCTIONS",
            read.valid.eq(1),
            read.address.eq(job.program),
            read.words.eq(job.program_words),
            If(
                (job.program_words == 0) | (job.program_words > geometry.instruction_words),
                read.valid.eq(0),
                NextValue(self.error, ErrorCode.BAD_INSTRUCTION),
                NextState("STOP"),
            ).Elif(read.ready, NextState("TAKE-INSTRUCTIONS")),
        )
        fsm.act(
            "TAKE-INSTRUCTIONS",
            self.fetching.eq(1),
            self.instructions.ready.eq(1),
            If(
                self.instructions.valid,
                fill.eq(1),
                NextValue(filled, filled + 1),
                If(filled == job.program_words - 1, NextState("FETCH")),
            ),
        )
        fsm.act("FETCH", NextState("DECODE"))
        fsm.act("DECODE", NextValue(word, Cat(*fetched)), NextState("EXECUTE"))
        advance = [NextValue(self.pointer, self.pointer + 1), NextState("FETCH")]
        stop = [NextValue(self.error, ErrorCode.BAD_INSTRUCTION), NextState("STOP")]
        self.comb += [
            run.address.eq(here.address),
            run.resume.eq(here.units[bit_of(Start.RESUME)]),
            run.layer.eq(here.units[bit_of(Start.LAYER)]),
            run.epoch.eq(first_epoch + here.epoch),
        ]
        fsm.act(
            "EXECUTE",
            read.address.eq(base + here.offset),
            read.words.eq(length),
            Case(
                here.opcode,
                {
                    int(Opcode.END): [
                        stores.sink.valid.eq(1),
                        If(
                            stores.sink.ready,
                            job.ready.eq(1),
                            NextValue(first_epoch, first_epoch + here.count),
                            NextState("AWAIT-JOB"),
                        ),
                    ],
                    int(Opcode.SYNC): If(satisfied, *advance),
                    int(Opcode.LOAD): If(length == 0, *stop).Elif(
                        ~self.load_busy,
                        read.valid.eq(1),
                        If(read.ready, self.start_load.eq(1), *advance),
                    ),
                    int(Opcode.STORE): If(length == 0, *stop).Else(
                        stores.sink.valid.eq(1), If(stores.sink.ready, *advance)
                    ),
                    int(Opcode.RUN): [run.valid.eq(1), If(run.ready, *advance)],
                    "default": stop,
                },
            ),
        )
        fsm.act("STOP")

        # A job is late if too many cycles have passed since the one before it ended, or since it was alone in coming.
        # Whatever the state, a fault or a late job ends in STOP; only a reset leads out.
        stopped = fsm.ongoing("STOP")
        halt = Signal.like(self.fault)
        self.comb += [
            self.busy.eq(jobs_left != 0),
            If(self.fault != 0, halt.eq(self.fault)).Elif(
                (self.watchdog != 0) & (self.cycles >= self.watchdog) & self.busy & ~self.done,
                halt.eq(ErrorCode.WATCHDOG),
            ),
        ]
        for state in list(fsm.actions):
            if state != "STOP":
                fsm.act(state, If(halt != 0, NextValue(self.error, halt), NextState("STOP")))
        self.sync += [
            If(self.done, self.last_cycles.eq(self.cycles + 1), self.cycles.eq(0))
            .Elif(~self.busy, self.cycles.eq(0))
            .Elif(~stopped, self.cycles.eq(self.cycles + 1)),
        ]


def bit_of(flag: int) -> int:
    """Position of the flag's one bit."""
    return int(flag).bit_length() - 1
