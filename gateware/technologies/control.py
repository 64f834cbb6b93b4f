"""No cells: the engine's control alone, which spends the whole engine's cycles and takes a fraction of the time to
simulate.

When something happens never depends on a pixel or a weight. So here the array has no cells and the requantizer no
lanes: every result is 0, and every cycle is spent on what the whole engine spends it on.
"""

from sentei.gateware.technologies.array import GroupArray
from sentei.gateware.technologies.lanes import Lanes


class NoCells(GroupArray):
    def add_cells(self, operands):
        pass


class NoLanes(Lanes):
    def add_logic(self, sources):
        pass
