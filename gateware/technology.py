"""What the array's cells are made of. Everything else in the gateware is the same on all devices."""

from dataclasses import dataclass

from sentei.gateware.array import GroupArray
from sentei.gateware.ecp5 import ECP5GroupArray
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


PORTABLE = Technology("portable")
ECP5_85F = Technology("ecp5", multipliers=156)
