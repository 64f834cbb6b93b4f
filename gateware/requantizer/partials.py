"""The partial memory: what a pass leaves of each column until the next pass of the same sum joins it."""

from migen import *

from sentei.gateware.common import delay
from sentei.gateware.technologies.lanes import VALUE, Lanes
from sentei.overlay.geometry import Geometry


class Partials(Module):
    """Shows `lanes` the partial at `address` when they want it, and keeps their value in its place if `keeps`, which
    comes a cycle after the address. `address` is that of a column in the cycle before its cycle 0."""

    def __init__(self, geometry: Geometry, depth: int, lanes: Lanes):
        self.address = Signal(max=depth)
        self.keeps = Signal()

        # # #

        reads = lanes.spread(self, self.address, 1, geometry.lanes)
        writes = lanes.spread(self, Cat(delay(self, self.address, 1), self.keeps), VALUE, geometry.lanes)
        for (sector, address), (_, write) in zip(reads, writes, strict=True):
            bits = slice(geometry.wide_bits * sector.start, geometry.wide_bits * sector.stop)
            memory = Memory(bits.stop - bits.start, depth)
            read_port = memory.get_port(mode=READ_FIRST)
            write_port = memory.get_port(write_capable=True, mode=READ_FIRST)
            self.specials += memory, read_port, write_port
            self.comb += [
                read_port.adr.eq(address),
                lanes.partials[bits].eq(read_port.dat_r),
                write_port.adr.eq(write[:-1]),
                write_port.we.eq(write[-1]),
                write_port.dat_w.eq(lanes.values[bits]),
            ]
