"""Instruction sequencer: takes jobs from the doorbell's queue and carries out a program with no help from a CPU.

    doorbell --> queue --> [load instructions] --> fetch --> LOAD / STORE / RUN / SYNC / END --> interrupt
                                                     ^__________________________|

LOAD, STORE and RUN start their unit and go on; each waits only for its own unit's previous task. An error from any
unit, an unknown opcode or the watchdog stops everything and stays in `error` until a reset.
"""

from litex.soc.interconnect import stream
from migen import *
from migen.genlib.fsm import FSM, NextState, NextValue

from sentei.gateware.common import fields_of
from sentei.gateware.dma import command_layout
from sentei.overlay.geometry import LOAD_BITS, Geometry
from sentei.overlay.instructions import INSTRUCTION, INSTRUCTION_LOAD_WORDS, Base, Opcode, load_words
from sentei.overlay.instructions import Memory as Target
from sentei.overlay.registers import JOB_QUEUE_DEPTH, ErrorCode

JOB = [("entry", 16), ("load", 1), ("program", 32), ("program_words", 16), ("input", 32), ("output", 32)]


class Sequencer(Module):
    """Drives the units through `start_load`, `start_store`, `start_run`; `load_busy` etc. come back from them.

    `jobs` is the doorbell's sink. `read_command` and `write_command` go to the DMA; while `fetching` is 1 the words
    read are instructions and come in through `instructions`.
    """

    def __init__(self, geometry: Geometry):
        self.jobs = stream.Endpoint(JOB)
        self.queued = Signal(4)
        self.read_command = read = stream.Endpoint(command_layout())
        self.write_command = write = stream.Endpoint(command_layout())
        self.instructions = stream.Endpoint([("data", LOAD_BITS)])
        self.fetching = Signal()
        self.start_load = Signal()
        self.start_store = Signal()
        self.start_run = Signal()
        self.fields = Signal(INSTRUCTION.width)  # of the instruction in hand, for the unit that starts
        self.load_busy = Signal()
        self.store_busy = Signal()
        self.run_busy = Signal()
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
        self.comb += [self.jobs.connect(queue.sink), self.queued.eq(queue.level)]

        memory = Memory(LOAD_BITS, geometry.instruction_words)
        fetch_port = memory.get_port(mode=READ_FIRST)
        write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
        self.specials += memory, fetch_port, write_port
        job = queue.source
        filled = Signal(max=geometry.instruction_words + 1)
        half = Signal()
        low = Signal(LOAD_BITS)
        word = Signal(INSTRUCTION_LOAD_WORDS * LOAD_BITS)
        here, statements = fields_of(INSTRUCTION, word)
        base = Signal(32)
        length = Signal(24)
        self.comb += [
            *statements,
            self.fields.eq(word),
            write_port.adr.eq(filled),
            write_port.dat_w.eq(self.instructions.data),
            fetch_port.adr.eq(Cat(half, self.pointer)),
            word.eq(Cat(low, fetch_port.dat_r)),
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
        all_idle = Signal()
        self.comb += all_idle.eq(~self.load_busy & ~self.store_busy & ~self.run_busy)

        self.submodules.fsm = fsm = FSM(reset_state="AWAIT-JOB")
        fsm.act(
            "AWAIT-JOB",
            NextValue(self.cycles, 0),
            NextValue(self.pointer, job.entry),
            NextValue(filled, 0),
            If(job.valid, If(job.load, NextState("REQUEST-INSTRUCTIONS")).Else(NextState("FETCH"))),
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
                write_port.we.eq(1),
                NextValue(filled, filled + 1),
                If(filled == job.program_words - 1, NextState("FETCH")),
            ),
        )
        # The memory answers one cycle after the address: low word first, then the high word.
        fsm.act("FETCH", half.eq(0), NextState("FETCH-HIGH"))
        fsm.act("FETCH-HIGH", half.eq(1), NextValue(low, fetch_port.dat_r), NextState("EXECUTE"))
        advance = [NextValue(self.pointer, self.pointer + 1), NextState("FETCH")]
        stop = [NextValue(self.error, ErrorCode.BAD_INSTRUCTION), NextState("STOP")]
        transfer = [
            command
            for unit in (read, write)
            for command in (unit.address.eq(base + here.offset), unit.words.eq(length))
        ]
        fsm.act(
            "EXECUTE",
            half.eq(1),
            *transfer,
            Case(
                here.opcode,
                {
                    int(Opcode.END): If(all_idle, NextState("FINISH")),
                    int(Opcode.SYNC): If(all_idle, *advance),
                    int(Opcode.LOAD): If(length == 0, *stop).Elif(
                        ~self.load_busy,
                        read.valid.eq(1),
                        If(read.ready, self.start_load.eq(1), *advance),
                    ),
                    int(Opcode.STORE): If(length == 0, *stop).Elif(
                        ~self.store_busy,
                        write.valid.eq(1),
                        If(write.ready, self.start_store.eq(1), *advance),
                    ),
                    int(Opcode.RUN): If(~self.run_busy, self.start_run.eq(1), *advance),
                    "default": stop,
                },
            ),
        )
        fsm.act(
            "FINISH", job.ready.eq(1), self.done.eq(1), NextValue(self.last_cycles, self.cycles), NextState("AWAIT-JOB")
        )
        fsm.act("STOP")

        # Whatever the state, a fault or an overdue job ends in STOP; only a reset leads out.
        waiting, finishing, stopped = (fsm.ongoing(state) for state in ("AWAIT-JOB", "FINISH", "STOP"))
        halt = Signal.like(self.fault)
        self.comb += [
            self.busy.eq(~waiting | job.valid),
            If(self.fault != 0, halt.eq(self.fault)).Elif(
                (self.watchdog != 0) & (self.cycles >= self.watchdog) & ~waiting & ~finishing,
                halt.eq(ErrorCode.WATCHDOG),
            ),
        ]
        for state in list(fsm.actions):
            if state != "STOP":
                fsm.act(state, If(halt != 0, NextValue(self.error, halt), NextState("STOP")))
        self.sync += If(~waiting & ~stopped, self.cycles.eq(self.cycles + 1))
