"""From the issue point to the array: which pixels and which weights a step multiplies.

    plane, tap --> tap table --> pixel address --> mask table --> aligner --> array's activations
    weights    --> delayed so that they come GroupArray.LEAD cycles before

Nothing here ever waits.
"""

from migen import *

from sentei.gateware.common import delay, delay_valid
from sentei.gateware.group.aligner import Aligner
from sentei.gateware.memory.table import TABLE_LATENCY, Table
from sentei.gateware.record import fields_of
from sentei.gateware.technologies.array import GroupArray
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import TAP

TAP_DELAY = 1 + TABLE_LATENCY  # issue to tap entry: address register, table
PIXEL_DELAY = TAP_DELAY + 1  # issue to pixel address
ARRAY_DELAY = PIXEL_DELAY + Aligner.LATENCY  # issue to the array's activations
WEIGHT_DELAY = ARRAY_DELAY - GroupArray.LEAD  # issue to the array's weights


class OperandPath(Module):
    """`issue`: the step at the IssuePoint `point` is issued, and begins a sum if `fresh`. Its operands reach the
    `array` through `taps`, `masks` and the `aligner`."""

    def __init__(self, geometry: Geometry, point, taps: Table, masks: Table, aligner: Aligner, array: GroupArray):
        self.issue = Signal()
        self.fresh = Signal()

        # # #

        step, tile = point.step, point.tile
        lane_bits = log2_int(geometry.lanes)
        plane = Signal(max=geometry.activation_words)
        base = Signal.like(plane)
        self.comb += base.eq(step.plane + tile.input)
        self.sync += [taps.address.eq(tile.taps + step.tap), plane.eq(base)]
        plane = delay(self, plane, TAP_DELAY - 1)
        tap = fields_of(self, TAP, taps.data)
        self.sync += aligner.address.eq(Cat(C(0, lane_bits), plane) + tap.offset)
        mask_ready = TAP_DELAY + TABLE_LATENCY
        mask_needed = PIXEL_DELAY + Aligner.MASK_DELAY
        self.comb += [
            masks.address.eq(tap.mask),
            aligner.mask.eq(delay(self, masks.data, mask_needed - mask_ready)),
            aligner.pad.eq(delay(self, step.pad, mask_needed)),
            array.activations.eq(aligner.vector),
            array.weights.eq(delay(self, point.weights, WEIGHT_DELAY)),
            array.valid.eq(delay_valid(self, self.issue, WEIGHT_DELAY)),
            array.fresh.eq(delay(self, self.fresh, WEIGHT_DELAY)),
            array.maximum.eq(delay(self, step.maximum, WEIGHT_DELAY)),
        ]
