"""The engine without its registers: groups, requantizers, memories, sequencer, and how they are wired."""

from functools import reduce
from operator import and_, or_

from migen import *

from sentei.gateware.engine.profile import Profile
from sentei.gateware.group.group import Group
from sentei.gateware.memory.activation_memory import ActivationMemory
from sentei.gateware.memory.dma_reader import DMAReader
from sentei.gateware.memory.dma_writer import DMAWriter
from sentei.gateware.memory.loader import Loader
from sentei.gateware.memory.storer import Storer
from sentei.gateware.requantizer.requantizer import Requantizer
from sentei.gateware.sequencer.sequencer import Sequencer
from sentei.gateware.technologies.technology import Technology
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import EPOCH_BITS
from sentei.overlay.instructions import Memory as Target
from sentei.overlay.registers import REGISTERS


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
            Target.WEIGHTS: [group.stream.pairs for group in self.groups],
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

        instruction, stores = sequencer.instruction, sequencer.stores
        self.groups_busy = Signal(REGISTERS["status"].layout["groups_busy"].width)
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
            loader.target.eq(instruction.memory),
            loader.units.eq(instruction.units),
            loader.address.eq(instruction.address),
            storer.start.eq(stores.start),
            storer.address.eq(stores.word),
            storer.count.eq(stores.words),
            sequencer.load_busy.eq(reader.busy | loader.busy),
            sequencer.store_busy.eq(writer.busy),
            sequencer.run.ready.eq(
                reduce(
                    and_,
                    [
                        group.runs.ready | ~chosen
                        for group, chosen in zip(self.groups, sequencer.run_is_for, strict=True)
                    ],
                )
            ),
        ]
        for group, chosen in zip(self.groups, sequencer.run_is_for, strict=True):
            self.comb += [
                sequencer.run.connect(group.runs, omit={"valid", "ready"}),
                group.runs.valid.eq(sequencer.run.valid & sequencer.run.ready & chosen),
            ]
        bus_bytes = geometry.bus_bits // 8
        moved = Signal(max=2 * bus_bytes + 1)
        self.comb += moved.eq(Mux(reader.beat, bus_bytes, 0) + Mux(writer.beat, bus_bytes, 0))
        self.submodules.profile = Profile(geometry, self.groups, moved)
