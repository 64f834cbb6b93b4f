"""The program's instructions on chip: filled with 64-bit words from main memory, read a whole instruction at a time."""

from migen import *

from sentei.overlay.geometry import LOAD_BITS, Geometry
from sentei.overlay.instructions import INSTRUCTION_LOAD_WORDS


class InstructionMemory(Module):
    """With `fill`, `data` becomes the next word, number `filled`; `clear` begins again at word 0.

    `instruction` is the one at `pointer` a cycle later. Each of an instruction's words has a memory of its own.
    """

    def __init__(self, geometry: Geometry, pointer):
        self.data = Signal(LOAD_BITS)
        self.fill = Signal()
        self.clear = Signal()
        self.filled = Signal(max=geometry.instruction_words + 1)
        self.instruction = Signal(INSTRUCTION_LOAD_WORDS * LOAD_BITS)

        # # #

        part_bits = log2_int(INSTRUCTION_LOAD_WORDS)
        parts = []
        for part in range(INSTRUCTION_LOAD_WORDS):
            memory = Memory(LOAD_BITS, geometry.instruction_words // INSTRUCTION_LOAD_WORDS)
            read_port = memory.get_port(mode=READ_FIRST)
            write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
            self.specials += memory, read_port, write_port
            self.comb += [
                write_port.adr.eq(self.filled[part_bits:]),
                write_port.dat_w.eq(self.data),
                write_port.we.eq(self.fill & (self.filled[:part_bits] == part)),
                read_port.adr.eq(pointer),
            ]
            parts.append(read_port.dat_r)
        self.comb += self.instruction.eq(Cat(*parts))
        self.sync += If(self.clear, self.filled.eq(0)).Elif(self.fill, self.filled.eq(self.filled + 1))
