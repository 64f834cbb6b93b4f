"""Instruction sequencer: takes jobs from the doorbell's queue and carries out a program with no help from a CPU.

    doorbell --> queue --> [load instructions] --> fetch --> LOAD / RUN / SYNC ------------> next job
                                 ^                   ^______________|   STORE, END --> queue --> storer --> interrupt
                                 |___ PAGE _________________________|

LOAD, STORE and RUN only start their unit, and a job's END waits in a queue behind its STOREs: while the groups compute
one picture, the sequencer loads the next. A program that has more instructions than there is room for turns pages, and
leaves the first one to the next job. An error from any unit, an unknown opcode or the watchdog stops everything
and stays in `error` until a reset.
"""

from litex.soc.interconnect import stream
from migen import *
from migen.genlib.fsm import FSM, NextState, NextValue

from sentei.gateware.group.fetch import run_layout
from sentei.gateware.memory.bursts import WORDS_BITS, command_layout
from sentei.gateware.record import fields_of
from sentei.gateware.sequencer.instruction_memory import InstructionMemory
from sentei.gateware.sequencer.job_queue import DOORBELL, STATUS, JobQueue
from sentei.gateware.sequencer.stores import Stores
from sentei.gateware.sequencer.sync import Sync, bit_of, is_for
from sentei.gateware.sequencer.watchdog import Watchdog
from sentei.overlay.geometry import LOAD_BITS, Geometry
from sentei.overlay.instructions import (
    EPOCH_BITS,
    INSTRUCTION,
    INSTRUCTION_LOAD_WORDS,
    Base,
    Opcode,
    Start,
    load_words,
)
from sentei.overlay.instructions import Memory as Target
from sentei.overlay.registers import ErrorCode


class Sequencer(Module):
    """Drives the loader through `start_load`, the storer through `stores`, the groups that `run_is_for` names through
    `run`.

    `jobs` is the doorbell's sink. `read_command` and `write_command` go to the DMA; while `fetching` is 1 the words
    read are instructions and come in through `instructions`. `instruction` is the one in hand (a job that begins with
    loading is a PAGE), `word` the same in one piece. `epochs` are the groups'
    counters, `arrivals` say which of them are about to go one up, `todo` are the numbers of runs that each has not
    finished.
    """

    def __init__(self, geometry: Geometry, epochs, arrivals, todo):
        self.read_command = stream.Endpoint(command_layout())
        self.instructions = stream.Endpoint([("data", LOAD_BITS)])
        self.fetching = Signal()
        self.start_load = Signal()
        self.run = run = stream.Endpoint(run_layout(geometry))
        self.run_is_for = [Signal() for _ in epochs]
        self.load_busy = Signal()
        self.store_busy = Signal()
        self.results_busy = Signal()  # results are under way to the activation memory
        self.fault = Signal(STATUS["error"].width)  # an ErrorCode from the DMA or the doorbell; 0: none
        self.error = Signal(STATUS["error"].width)
        self.busy = Signal()
        self.pointer = Signal(DOORBELL["entry"].width)

        # # #

        self.submodules.queue = queue = JobQueue()
        self.submodules.memory = memory = InstructionMemory(geometry, self.pointer)
        self.word = word = Signal(INSTRUCTION_LOAD_WORDS * LOAD_BITS)
        self.instruction = here = fields_of(self, INSTRUCTION, word)
        first_epoch = Signal(EPOCH_BITS)  # of the picture
        self.submodules.stores = stores = Stores(epochs)
        self.submodules.sync_unit = sync = Sync(here, first_epoch, epochs, arrivals, todo)
        self.submodules.watchdog = watchdog = Watchdog()
        self.jobs, self.queued, self.done = queue.sink, queue.count, stores.done  # done: a job ended
        self.write_command = stores.command
        self.job = job = queue.source
        # Where in main memory the instruction in hand begins to read or write, and how many 64-bit words.
        self.address, self.length = Signal(32), Signal(WORDS_BITS)
        coming = fields_of(self, INSTRUCTION, memory.instruction)
        base, length = Signal(32), Signal(WORDS_BITS)
        lengths = {int(target): length.eq(coming.count * load_words(target, geometry)) for target in Target}
        bases = {int(Base.PROGRAM): base.eq(job.program), int(Base.INPUT): base.eq(job.input)}
        self.comb += [
            Case(coming.base, {**bases, "default": base.eq(job.output)}),
            Case(coming.memory, {**lengths, "default": length.eq(0)}),
            queue.done.eq(self.done),
            memory.data.eq(self.instructions.data),
            stores.sink.end.eq(here.opcode == Opcode.END),
            stores.sink.word.eq(here.address),
            stores.sink.words.eq(here.count),
            stores.sink.address.eq(self.address),
            stores.sink.length.eq(self.length),
            stores.sink.epoch.eq(first_epoch + here.epoch),
            stores.busy.eq(self.store_busy),
            stores.stopped.eq(self.error != 0),
            sync.loading.eq(self.load_busy),
            sync.storing.eq(~stores.empty | self.store_busy),
            sync.results.eq(self.results_busy),
            run.address.eq(here.address),
            run.resume.eq(here.units[bit_of(Start.RESUME)]),
            run.layer.eq(here.units[bit_of(Start.LAYER)]),
            run.epoch.eq(first_epoch + here.epoch),
            *[chosen.eq(is_for(here.count, group)) for group, chosen in enumerate(self.run_is_for)],
            self.busy.eq(queue.count != 0),
            watchdog.busy.eq(self.busy),
            watchdog.done.eq(self.done),
        ]
        self.submodules.fsm = fsm = FSM(reset_state="AWAIT-JOB")
        self.stop = [NextValue(self.error, ErrorCode.BAD_INSTRUCTION), NextState("STOP")]
        self._load_instructions(fsm, geometry)
        fsm.act("FETCH", NextState("DECODE"))
        fsm.act(
            "DECODE",
            NextValue(word, memory.instruction),
            NextValue(self.address, base + coming.offset),
            NextValue(self.length, length),
            NextState("EXECUTE"),
        )
        self._execute(fsm, first_epoch)
        fsm.act("STOP")
        self._stop_on_faults(fsm)
        self.comb += watchdog.stopped.eq(fsm.ongoing("STOP"))

    def _load_instructions(self, fsm: FSM, geometry: Geometry):
        job, memory, read = self.job, self.memory, self.read_command
        fsm.act(
            "AWAIT-JOB",
            NextValue(self.pointer, job.entry),
            memory.clear.eq(1),
            If(
                job.valid,
                If(~job.load, NextState("FETCH")).Elif(
                    self.sync_unit.everything,
                    NextValue(self.word, Cat(C(0, INSTRUCTION["count"].offset), job.program_words)),
                    NextValue(self.address, job.program),
                    NextState("REQUEST-INSTRUCTIONS"),
                ),
            ),
        )
        words = self.instruction.count
        fsm.act(
            "REQUEST-INSTRUCTIONS",
            read.valid.eq(1),
            read.address.eq(self.address),
            read.words.eq(words),
            If(
                (words == 0) | (words > geometry.instruction_words),
                read.valid.eq(0),
                *self.stop,
            ).Elif(read.ready, NextState("TAKE-INSTRUCTIONS")),
        )
        fsm.act(
            "TAKE-INSTRUCTIONS",
            self.fetching.eq(1),
            self.instructions.ready.eq(1),
            If(
                self.instructions.valid,
                memory.fill.eq(1),
                If(memory.filled == words - 1, NextState("FETCH")),
            ),
        )

    def _execute(self, fsm: FSM, first_epoch):
        here, read, stores = self.instruction, self.read_command, self.stores.sink
        advance = [NextValue(self.pointer, self.pointer + 1), NextState("FETCH")]
        end = [self.job.ready.eq(1), NextValue(first_epoch, first_epoch + here.count), NextState("AWAIT-JOB")]
        load = [read.valid.eq(1), If(read.ready, self.start_load.eq(1), *advance)]
        store = [stores.valid.eq(1), If(stores.ready, *advance)]
        turn = [NextValue(self.pointer, here.address), NextState("REQUEST-INSTRUCTIONS")]
        cases = {
            Opcode.END: [stores.valid.eq(1), If(stores.ready, *end)],
            Opcode.SYNC: If(self.sync_unit.satisfied, *advance),
            Opcode.LOAD: If(self.length == 0, *self.stop).Elif(~self.load_busy, *load),
            Opcode.STORE: If(self.length == 0, *self.stop).Else(*store),
            Opcode.RUN: [self.run.valid.eq(1), If(self.run.ready, *advance)],
            Opcode.PAGE: [self.memory.clear.eq(1), If(~self.load_busy, *turn)],
        }
        fsm.act(
            "EXECUTE",
            read.address.eq(self.address),
            read.words.eq(self.length),
            Case(here.opcode, {**{int(opcode): actions for opcode, actions in cases.items()}, "default": self.stop}),
        )

    def _stop_on_faults(self, fsm: FSM):
        """Whatever the state, a fault or a late job ends in STOP; only a reset leads out."""
        halt = Signal.like(self.fault)
        self.comb += If(self.fault != 0, halt.eq(self.fault)).Elif(self.watchdog.late, halt.eq(ErrorCode.WATCHDOG))
        for state in list(fsm.actions):
            if state != "STOP":
                fsm.act(state, If(halt != 0, NextValue(self.error, halt), NextState("STOP")))
