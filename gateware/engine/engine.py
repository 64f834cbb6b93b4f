"""The engine: everything between the registers and the bus.

                        +-----------+   LOAD    +--------+
    main memory <=====> |    DMA    | --------> | loader | --> stream, tile, tap, mask, channel tables
       (AXI)            +-----------+           +--------+             |
                          ^                          |                 v
                    STORE |                          v           +------------+   sums    +-------------+
                     +--------+              +------------+      | group 0..n | --------> | requantizer |
    doorbell         | storer | <----------- | activation | ---> |  aligner   |           |    0..m     |
       |             +--------+              |   memory   |      |  columns   |           +-------------+
       v                  ^                  +------------+      +------------+                  |
    sequencer ------------+------ RUN ------------- ^ -----------------^-------------------------+

Registers are described in overlay/registers.py, what the sequencer reads in overlay/instructions.py. `bus` is an AXI
master, `irq` pulses when a job ends or an error stops the engine.
"""

from functools import reduce
from operator import and_, or_

from litex.soc.interconnect.axi import AXIInterface
from litex.soc.interconnect.csr import AutoCSR, CSRStatus, CSRStorage
from migen import *

from sentei.gateware.common import delay_valid
from sentei.gateware.engine.activation_memory import ActivationMemory
from sentei.gateware.engine.dma import DMAReader, DMAWriter
from sentei.gateware.engine.loader import Loader, Storer
from sentei.gateware.group.group import Group
from sentei.gateware.requantizer.requantizer import Requantizer
from sentei.gateware.sequencer.sequencer import Sequencer
from sentei.gateware.technologies.technology import PORTABLE, Technology
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import EPOCH_BITS, INSTRUCTION, fingerprint
from sentei.overlay.instructions import Memory as Target
from sentei.overlay.registers import PROFILE_WORDS, REGISTERS, ErrorCode


class Profile(Module):
    """Counts what every cycle of a group was spent on, and keeps a record of each layer of each (PROFILE_WORDS).

    `bytes_moved` is the number of bytes that the bus moves in this cycle. `index` selects record * 8 + word; `data`
    shows it two cycles later. A full memory takes no more records.
    """

    COUNTER_BITS = 24

    def __init__(self, geometry: Geometry, groups, bytes_moved):
        self.clear = Signal()
        self.count = Signal(max=geometry.profile_entries + 1)
        self.index = Signal(32)
        self.data = Signal(32)

        # # #

        # All a cycle later: what a group does in a cycle is decided late in it.
        clear = delay_valid(self, self.clear, 1)
        clock = Signal(32)
        transferred = Signal(32)
        writing = Signal()
        self.sync += [
            If(clear, clock.eq(0)).Else(clock.eq(clock + 1)),
            If(writing | clear, transferred.eq(bytes_moved)).Else(transferred.eq(transferred + bytes_moved)),
        ]
        written = {name: Signal(32) for name in PROFILE_WORDS}
        busy = C(0)
        for number, group in enumerate(groups):
            causes = dict(
                steps=group.stepping,
                drain_stalls=group.draining,
                waits=group.waiting,
                setup=group.preparing,
                idle=group.idle,
            )
            causes = {name: delay_valid(self, cause, 1) for name, cause in causes.items()}
            ends = delay_valid(self, group.layer_ends, 1)
            taken, pending = Signal(), Signal()
            end = Signal(32)
            self.comb += [
                group.record_taken.eq(~ends & ~pending),
                taken.eq(pending & ~busy),
                If(taken, written["group"].eq(number), written["end"].eq(end)),
            ]
            self.sync += [
                If(taken, pending.eq(0)),
                If(ends, pending.eq(1), end.eq(clock + 1)),
                If(clear, pending.eq(0)),
            ]
            for name, cause in causes.items():
                counter, total, record = (Signal(self.COUNTER_BITS) for _ in range(3))
                self.comb += [total.eq(counter + cause), If(taken, written[name].eq(record))]
                self.sync += [
                    counter.eq(total),
                    If(ends, record.eq(total), counter.eq(0)),
                    If(clear, counter.eq(0)),
                ]
            busy = busy | pending
        memory = Memory(32 * len(PROFILE_WORDS), geometry.profile_entries)
        read_port = memory.get_port(mode=READ_FIRST)
        write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
        self.specials += memory, read_port, write_port
        word_bits = log2_int(len(PROFILE_WORDS))
        select = Signal(word_bits)
        room = Signal()
        self.sync += [
            If(writing & room, self.count.eq(self.count + 1)),
            If(clear, self.count.eq(0)),
            select.eq(self.index[:word_bits]),
        ]
        self.comb += [
            writing.eq(busy),
            room.eq(self.count != geometry.profile_entries),
            written["bytes"].eq(transferred),
            write_port.adr.eq(self.count),
            write_port.dat_w.eq(Cat(*[written[name] for name in PROFILE_WORDS])),
            write_port.we.eq(writing & room),
            read_port.adr.eq(self.index[word_bits:]),
        ]
        self.sync += Case(
            select,
            {k: self.data.eq(read_port.dat_r[32 * k : 32 * (k + 1)]) for k in range(len(PROFILE_WORDS))},
        )


class Core(Module):
    """The engine without its registers: everything that a soft reset clears, but for the DMA's bus side."""

    def __init__(self, geometry: Geometry, technology: Technology, reader: DMAReader, writer: DMAWriter):
        self.submodules.memory = memory = ActivationMemory(
            geometry,
            readers=geometry.groups + geometry.requantizers,
            writers=geometry.requantizers + 1,
            technology=technology,
        )
        self.epochs = [Signal(EPOCH_BITS, name=f"epoch{number}") for number in range(geometry.groups)]
        arrivals = [Signal() for _ in self.epochs]
        self.groups = [
            Group(geometry, memory.ports[number], number, self.epochs, arrivals, technology)
            for number in range(geometry.groups)
        ]
        self.submodules += self.groups
        self.submodules.sequencer = sequencer = Sequencer(
            geometry, self.epochs, arrivals, [group.todo for group in self.groups]
        )
        requantizers = range(geometry.requantizers)
        share = geometry.groups_per_requantizer
        self.requantizers = [
            Requantizer(
                geometry,
                [group.drain for group in self.groups[share * index : share * (index + 1)]],
                memory.ports[geometry.groups + index],
                memory.writers[index],
                technology,
            )
            for index in requantizers
        ]
        self.submodules += self.requantizers
        tables = {
            Target.STREAM: [group.stream for group in self.groups],
            Target.TILE: [group.tiles for group in self.groups],
            Target.TAP: [group.taps for group in self.groups],
            Target.MASK: [group.masks for group in self.groups],
            Target.CHANNEL: [requantizer.channels for requantizer in self.requantizers],
        }
        self.submodules.loader = loader = Loader(geometry, tables, memory.writers[-1])

        # The storer borrows requantizer 0's residual port.
        shared_port = memory.ports[geometry.groups]
        borrower = self.requantizers[0]
        self.submodules.storer = storer = Storer(geometry, shared_port, borrower.residual_busy)
        self.comb += shared_port.word.eq(Mux(borrower.residual_busy, borrower.residual_word, storer.word))
        for index in requantizers[1:]:
            self.comb += memory.ports[geometry.groups + index].word.eq(self.requantizers[index].residual_word)

        # # #

        here = {
            field.name: sequencer.fields[field.offset : field.offset + field.width]
            for field in INSTRUCTION.fields.values()
        }
        self.groups_busy = Signal(8)
        self.comb += [
            self.groups_busy.eq(Cat(*[group.busy for group in self.groups])),
            sequencer.results_busy.eq(
                (self.groups_busy != 0) | reduce(or_, [requantizer.busy for requantizer in self.requantizers])
            ),
            sequencer.read_command.connect(reader.sink),
            sequencer.write_command.connect(writer.sink),
            If(
                sequencer.fetching,
                reader.source.connect(sequencer.instructions, omit={"first", "last"}),
            ).Else(
                reader.source.connect(loader.sink, omit={"first", "last"}),
            ),
            storer.source.connect(writer.data, omit={"first", "last"}),
            loader.start.eq(sequencer.start_load),
            loader.target.eq(here["memory"]),
            loader.units.eq(here["units"]),
            loader.address.eq(here["address"]),
            storer.start.eq(sequencer.start_store),
            storer.address.eq(sequencer.store_word),
            storer.count.eq(sequencer.store_words),
            sequencer.load_busy.eq(reader.busy | loader.busy),
            sequencer.store_busy.eq(writer.busy),
            sequencer.run.ready.eq(reduce(and_, [group.runs.ready for group in self.groups])),
        ]
        for group in self.groups:
            self.comb += [
                sequencer.run.connect(group.runs, omit={"valid", "ready"}),
                group.runs.valid.eq(sequencer.run.valid & sequencer.run.ready),
            ]
        bus_bytes = geometry.bus_bits // 8
        moved = Signal(max=2 * bus_bytes + 1)
        self.comb += moved.eq(Mux(reader.beat, bus_bytes, 0) + Mux(writer.beat, bus_bytes, 0))
        self.submodules.profile = Profile(geometry, self.groups, moved)


class Engine(Module, AutoCSR):
    """The engine as a LiteX module: `bus` (AXI master), `irq` (pulse), and one CSR for each of REGISTERS, in order."""

    def __init__(self, geometry: Geometry, technology: Technology = PORTABLE):
        self.bus = bus = AXIInterface(data_width=geometry.bus_bits, address_width=32, id_width=1)
        self.irq = Signal()
        registers = {}
        for name, register in REGISTERS.items():
            if register.access == "ro":
                csr = CSRStatus(32, name=name, description=register.description)
            else:
                csr = CSRStorage(32, name=name, reset=register.reset, description=register.description)
            registers[name] = csr
            setattr(self, name, csr)

        # # #

        self.submodules.reader = reader = DMAReader(bus)
        self.submodules.writer = writer = DMAWriter(bus)
        core = Core(geometry, technology, reader, writer)
        reset = Signal()  # a register: it has a long way to go
        self.submodules.core = ResetInserter()(core)
        sequencer, profile = core.sequencer, core.profile

        def written_bit(register: str, field: str):
            return registers[register].storage[REGISTERS[register].layout[field].offset]

        doorbell = registers["doorbell"]
        entry = REGISTERS["doorbell"].layout["entry"]
        overflow = Signal()
        self.comb += [
            core.reset.eq(reset),
            profile.clear.eq(registers["control"].re & written_bit("control", "clear_profile")),
            profile.index.eq(registers["profile_index"].storage),
            sequencer.jobs.valid.eq(doorbell.re),
            sequencer.jobs.entry.eq(doorbell.storage[entry.offset : entry.offset + entry.width]),
            sequencer.jobs.load.eq(written_bit("doorbell", "load")),
            sequencer.jobs.program.eq(registers["program_base"].storage),
            sequencer.jobs.program_words.eq(registers["program_words"].storage),
            sequencer.jobs.input.eq(registers["input_base"].storage),
            sequencer.jobs.output.eq(registers["output_base"].storage),
            sequencer.watchdog.eq(registers["watchdog"].storage),
            overflow.eq(doorbell.re & ~sequencer.jobs.ready),
            If(reader.error, sequencer.fault.eq(ErrorCode.READ_FAILED))
            .Elif(writer.error, sequencer.fault.eq(ErrorCode.WRITE_FAILED))
            .Elif(overflow, sequencer.fault.eq(ErrorCode.QUEUE_OVERFLOW)),
        ]

        # An error stops the DMA at once; a reset too.
        failed = Signal()
        failed_before = Signal()
        error_address = Signal(32)
        completed = Signal(32)
        self.comb += [
            failed.eq(sequencer.error != 0),
            reader.abort.eq(reset | (failed & ~failed_before)),
            writer.abort.eq(reader.abort),
            self.irq.eq(sequencer.done | (failed & ~failed_before)),
        ]
        self.sync += [
            reset.eq(registers["control"].re & written_bit("control", "reset")),
            failed_before.eq(failed),
            If(sequencer.done, completed.eq(completed + 1)),
            If(reset, completed.eq(0), error_address.eq(0))
            .Elif(~failed & reader.error, error_address.eq(reader.address))
            .Elif(~failed & writer.error, error_address.eq(writer.oldest)),
        ]
        sizes = dict(
            lanes=geometry.lanes,
            columns=geometry.columns,
            groups=geometry.groups,
            requantizers=geometry.requantizers,
        )
        status = Signal(32)
        state = dict(
            busy=sequencer.busy | reader.busy | writer.busy,
            error=sequencer.error,
            queued=sequencer.queued,
            loading=reader.busy,
            storing=writer.busy,
            groups_busy=core.groups_busy,
        )
        for name, value in state.items():
            field = REGISTERS["status"].layout[name]
            self.comb += status[field.offset : field.offset + field.width].eq(value)
        values = dict(
            fingerprint=C(fingerprint(geometry), 32),
            geometry=C(REGISTERS["geometry"].layout.pack(**sizes), 32),
            status=status,
            completed=completed,
            instruction_pointer=sequencer.pointer,
            epochs=Cat(*[(epoch[:8]) for epoch in core.epochs[:4]]),
            error_address=error_address,
            read_address=reader.address,
            write_address=writer.address,
            job_cycles=sequencer.last_cycles,
            profile_count=profile.count,
            profile_data=profile.data,
        )
        for name, value in values.items():
            self.comb += registers[name].status.eq(value)
