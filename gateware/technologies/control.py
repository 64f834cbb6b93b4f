"""The engine's control alone: the whole engine's cycles, for a fraction of the time that simulating it takes.

When something happens never depends on a pixel or a weight. So here the array has no cells and the requantizer no
lanes: every result is 0, and every cycle is spent on what the whole engine spends it on.
"""

from sentei.gateware.engine.engine import Engine
from sentei.gateware.technologies.array import GroupArray
from sentei.gateware.technologies.lanes import Lanes
from sentei.gateware.technologies.technology import Technology
from sentei.overlay.geometry import Geometry


class NoCells(GroupArray):
    def add_cells(self, operands):
        pass


class NoLanes(Lanes):
    def add_logic(self, sources):
        pass


class ControlEngine(Engine):
    """In place of PackedEngine, in a simulator that only counts cycles."""

    def __init__(self, geometry: Geometry):
        Engine.__init__(self, geometry, Technology("control", NoCells, NoLanes))
