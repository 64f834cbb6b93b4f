"""What the cells of the array and of the requantizer's lanes are made of. All else is the same on all devices."""

from dataclasses import dataclass

from sentei.gateware.array import GroupArray
from sentei.gateware.ecp5 import ECP5GroupArray
from sentei.gateware.ecp5_lanes import ECP5Lanes
from sentei.gateware.lanes import Lanes
from sentei.overlay.geometry import Geometry


@dataclass(frozen=True)
class Technology:
    """`multipliers`: blocks of the device that the arrays of all groups may use together."""

    name: str
    multipliers: int = 0

    def group_array(self, geometry: Geometry) -> GroupArray:
        """The array of one group; the groups share the multipliers evenly."""
        if self.name == "ecp5":
            return ECP5GroupArray(geometry, self.multipliers // geometry.groups)
        return GroupArray(geometry)

    def lanes(self, geometry: Geometry, sources) -> Lanes:
        """The datapath of one requantizer."""
        return (ECP5Lanes if self.name == "ecp5" else Lanes)(geometry, sources)


PORTABLE = Technology("portable")
ECP5_85F = Technology("ecp5", multipliers=156)
