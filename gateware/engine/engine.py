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

from litex.soc.interconnect.axi import AXIInterface
from litex.soc.interconnect.csr import AutoCSR, CSRStatus, CSRStorage
from migen import *

from sentei.gateware.common import OwnReset
from sentei.gateware.engine.core import Core
from sentei.gateware.memory.dma_reader import DMAReader
from sentei.gateware.memory.dma_writer import DMAWriter
from sentei.gateware.technologies.technology import PORTABLE, Technology
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import fingerprint
from sentei.overlay.registers import REGISTERS, ErrorCode


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
        reset = Signal(reset=1)  # a register: it has a long way to go; 1 from the domain's reset to a cycle after it
        self.submodules.core = OwnReset()(core)
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
            sequencer.watchdog.limit.eq(registers["watchdog"].storage),
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
        self.error = sequencer.error
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
            job_cycles=sequencer.watchdog.last_cycles,
            profile_count=profile.count,
            profile_data=profile.data,
        )
        for name, value in values.items():
            self.comb += registers[name].status.eq(value)
