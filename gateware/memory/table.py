"""A small memory that the loader writes and one unit reads: streams, tiles, taps, masks, channel entries."""

from migen import *

from sentei.overlay.geometry import WEIGHT_BITS, Geometry
from sentei.overlay.instructions import STEP_WEIGHTS_OFFSET, stream_bits

TABLE_LATENCY = 2  # memory and its output register


def bank(module, depth: int, name: str, write, write_address, write_data, address):
    """A memory as wide as `write_data`; returns what it shows a cycle after `address`, if the module is enabled."""
    memory = Memory(len(write_data), depth, name=name)
    write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
    read_port = memory.get_port(has_re=True, mode=READ_FIRST)
    module.specials += memory, write_port, read_port
    module.comb += [
        write_port.we.eq(write),
        write_port.adr.eq(write_address),
        write_port.dat_w.eq(write_data),
        read_port.adr.eq(address),
        read_port.re.eq(module.enable),
    ]
    return read_port.dat_r


class WritePort:
    """`data` goes to entry `address` in a cycle with `write`."""

    def __init__(self, width: int, depth: int):
        self.write = Signal()
        self.write_address = Signal(max=depth)
        self.write_data = Signal(width)


class Table(Module):
    """A memory with one write port and one read port; `data` shows entry `address` TABLE_LATENCY cycles later.

    With `enable` at 0 the output stands still.
    """

    def __init__(self, width: int, depth: int, name: str):
        self.write = Signal()
        self.write_address = Signal(max=depth)
        self.write_data = Signal(width)
        self.enable = Signal(reset=1)
        self.address = Signal(max=depth)
        self.data = Signal(width, reset_less=True)

        # # #

        read = bank(self, depth, name, self.write, self.write_address, self.write_data, self.address)
        self.sync += If(self.enable, self.data.eq(read))


class StreamTable(Module):
    """A group's stream: a Table of stream words. `pairs` writes the weights of two steps at once: those of the words 2a
    and 2a + 1, whose control stays as it is.

    So control and weights lie apart, and weights in two banks:

        word 2a      control 2a      weights  even a
        word 2a + 1  control 2a + 1  weights  odd a
    """

    def __init__(self, geometry: Geometry, name: str):
        width, depth = stream_bits(geometry), geometry.stream_words
        own = WEIGHT_BITS * geometry.group_columns
        self.write, self.write_address, self.write_data = Signal(), Signal(max=depth), Signal(width)
        self.pairs = WritePort(2 * own, depth // 2)
        self.enable = Signal(reset=1)
        self.address = Signal(max=depth)
        self.data = Signal(width, reset_less=True)

        # # #

        control, rest = self.write_data[:STEP_WEIGHTS_OFFSET], self.write_data[STEP_WEIGHTS_OFFSET:]
        controls = bank(self, depth, f"{name}_control", self.write, self.write_address, control, self.address)
        weights = []
        for half, which in enumerate(("even", "odd")):
            write, address, data = Signal(), Signal(max=depth // 2), Signal(len(rest))
            self.comb += [
                write.eq(self.pairs.write | (self.write & (self.write_address[0] == half))),
                address.eq(Mux(self.pairs.write, self.pairs.write_address, self.write_address[1:])),
                data.eq(Mux(self.pairs.write, self.pairs.write_data[own * half : own * (half + 1)], rest)),
            ]
            weights.append(bank(self, depth // 2, f"{name}_{which}", write, address, data, self.address[1:]))
        odd = Signal()
        self.sync += If(
            self.enable, odd.eq(self.address[0]), self.data.eq(Cat(controls, Mux(odd, weights[1], weights[0])))
        )
