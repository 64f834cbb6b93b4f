"""Activation memory: words of one nibble per lane, in two banks so that two neighbouring words come in one cycle.

Every reader has a copy of its own (true multi-port memory does not exist on FPGAs); a write goes to all copies. Even
words lie in bank 0, odd words in bank 1:

    writers  --> arbiter --> bank 0 write, bank 1 write        one word a bank and cycle
                               |             |                 two registers, on the way to the copies
            copy 0:          [bank 0]     [bank 1]  --> reader 0
            copy 1:          [bank 0]     [bank 1]  --> reader 1 ...
"""

from functools import reduce
from itertools import pairwise
from operator import or_

from migen import *

from sentei.gateware.technologies.technology import PORTABLE, Technology
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry

MEMORY_PREFIX = "activations"  # of the names of banks in the Verilog


class ActivationPort(Module):
    """Reader of the words `word` and `word + 1`. `low` and `high` show them LATENCY cycles after `word`.

    `banks` shows the same two words, but the even-numbered one first: for a reader that shifts them anyway.
    """

    LATENCY = 3  # address register, memory, output register

    def __init__(self, geometry: Geometry, writes, number: int):
        width, depth = ACTIVATION_BITS * geometry.lanes, geometry.activation_words
        self.word = Signal(max=depth)
        self.low = Signal(width)
        self.high = Signal(width)

        # # #

        odd = [Signal() for _ in range(self.LATENCY)]
        self.sync += [after.eq(before) for before, after in pairwise([self.word[0], *odd])]
        self.banks = []
        for bank, write in enumerate(writes):
            memory = Memory(width, depth // 2, name=f"{MEMORY_PREFIX}_{number}_{bank}")
            write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
            read_port = memory.get_port(mode=READ_FIRST)
            self.specials += memory, write_port, read_port
            address = Signal(max=depth // 2)
            output = Signal(width, reset_less=True)
            self.sync += [
                address.eq((self.word + 1)[1:] if bank == 0 else self.word[1:]),
                output.eq(read_port.dat_r),
            ]
            self.comb += [
                read_port.adr.eq(address),
                write_port.adr.eq(write.address),
                write_port.dat_w.eq(write.data),
                write_port.we.eq(write.valid),
            ]
            self.banks.append(output)
        even_word, odd_word = self.banks
        self.comb += If(odd[-1], self.low.eq(odd_word), self.high.eq(even_word)).Else(
            self.low.eq(even_word), self.high.eq(odd_word)
        )


class Writer:
    """One source of writes: `valid`, `word` and `data` until `ready`."""

    def __init__(self, geometry: Geometry):
        self.valid = Signal()
        self.ready = Signal()
        self.word = Signal(max=geometry.activation_words)
        self.data = Signal(ACTIVATION_BITS * geometry.lanes)


class BankWrite:
    """What one bank writes in this cycle: a word, or nothing if all bits are 0."""

    def __init__(self, geometry: Geometry, bits):
        addresses = log2_int(geometry.activation_words // 2)
        self.valid, self.address, self.data = bits[0], bits[1 : 1 + addresses], bits[1 + addresses :]


class ActivationMemory(Module):
    """`readers` copies and `writers` sources; of several writers to one bank, the first in the list is served.

    `ports[i]` is reader i, `writers[i]` is source i. A write is visible to reads that start WRITE_LATENCY + 1 cycles
    after it was served.
    """

    WRITE_LATENCY = 2

    def __init__(self, geometry: Geometry, readers: int, writers: int, technology: Technology = PORTABLE):
        self.writers = [Writer(geometry) for _ in range(writers)]

        # # #

        banks = []  # of each, a copy for each reader
        for bank in range(2):
            taken = C(0)
            chosen = []  # (address, data), zero unless served: cheaper to join than by priority
            for writer in self.writers:
                wants = Signal()
                served = Signal()
                self.comb += [
                    wants.eq(writer.valid & (writer.word[0] == bank)),
                    served.eq(wants & ~taken),
                    If(served, writer.ready.eq(1)),
                ]
                offer = Cat(1, writer.word[1:], writer.data)
                chosen.append(offer & Replicate(served, len(offer)))
                taken = taken | wants
            write = Signal(len(chosen[0]))
            self.comb += write.eq(reduce(or_, chosen))
            copies = technology.spread(self, write, self.WRITE_LATENCY, readers)
            banks.append([BankWrite(geometry, bits) for users, bits in copies for _ in users])
        self.ports = [
            ActivationPort(geometry, writes, number) for number, writes in enumerate(zip(*banks, strict=True))
        ]
        self.submodules += self.ports
