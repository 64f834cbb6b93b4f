"""A small memory that the loader writes and one unit reads: streams, tiles, taps, masks, channel entries."""

from migen import *

TABLE_LATENCY = 2  # memory and its output register


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

        memory = Memory(width, depth, name=name)
        write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
        read_port = memory.get_port(has_re=True, mode=READ_FIRST)
        self.specials += memory, write_port, read_port
        self.comb += [
            write_port.we.eq(self.write),
            write_port.adr.eq(self.write_address),
            write_port.dat_w.eq(self.write_data),
            read_port.adr.eq(self.address),
            read_port.re.eq(self.enable),
        ]
        self.sync += If(self.enable, self.data.eq(read_port.dat_r))
