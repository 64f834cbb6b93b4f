"""What the datapath is made of: the array's cells and the requantizer's lanes. All else is the same everywhere.

PORTABLE   plain Verilog                                  PACKED    for simulators: several MACs in one multiplication
ecp5       multipliers and carry chains of an ECP5        CONTROL   no datapath: cycles, but no results
xilinx     DSPs and LUTs of the 7 series
"""

from collections.abc import Callable
from dataclasses import dataclass

from sentei.gateware import common
from sentei.gateware.technologies import ecp5 as ecp5_cells
from sentei.gateware.technologies.array import GroupArray
from sentei.gateware.technologies.control import NoCells, NoLanes
from sentei.gateware.technologies.ecp5 import ECP5GroupArray
from sentei.gateware.technologies.ecp5_lanes import ECP5Lanes
from sentei.gateware.technologies.lanes import Lanes
from sentei.gateware.technologies.packed import PackedGroupArray, SelectingLanes
from sentei.gateware.technologies.xilinx import XilinxGroupArray
from sentei.overlay.geometry import Geometry


@dataclass(frozen=True)
class Technology:
    """`group_array` makes the array of one group of a geometry, `lanes` is the class of a requantizer's datapath.
    `spread` brings a signal to many places, see gateware/common.py."""

    name: str
    group_array: Callable[[Geometry], GroupArray]
    lanes: type[Lanes]
    spread: Callable = common.spread


def ecp5(multipliers: int) -> Technology:
    """Of a Lattice ECP5 with so many multipliers, which the groups share evenly."""
    return Technology(
        "ecp5", lambda geometry: ECP5GroupArray(geometry, multipliers // geometry.groups), ECP5Lanes, ecp5_cells.spread
    )


def xilinx(multipliers: int) -> Technology:
    """Of a Xilinx 7 series device that gives the array so many DSP48E1s, which the groups share evenly."""
    return Technology("xilinx", lambda geometry: XilinxGroupArray(geometry, multipliers // geometry.groups), Lanes)


PORTABLE = Technology("portable", GroupArray, Lanes)
PACKED = Technology("packed", PackedGroupArray, SelectingLanes)
CONTROL = Technology("control", NoCells, NoLanes)
SIMULATED = {technology.name: technology for technology in (PACKED, CONTROL, PORTABLE)}
ECP5_85F = ecp5(multipliers=156)
