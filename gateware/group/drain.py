"""Between a group and its requantizer: who may end a pass, when its sums are there, and where they go.

issue point --> request, grant                                        no pass ends before the result bus is free
     |
     +--> parameters --> queue --> trigger TRIGGER_LEAD cycles before the sums --> requantizer
"""

from migen import *
from migen.genlib.fifo import SyncFIFO

from sentei.gateware.common import delay_valid
from sentei.gateware.group.operands import ARRAY_DELAY
from sentei.gateware.record import record_of
from sentei.gateware.technologies.array import GroupArray
from sentei.overlay.fields import Layout
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import HEADER0, HEADER1

DRAIN_DELAY = ARRAY_DELAY + GroupArray.LATENCY  # issue to column 0's finished sums
DRAIN_QUEUE_DEPTH = 16  # at least DRAIN_DELAY + 1: a pass may end every cycle
assert DRAIN_QUEUE_DEPTH > DRAIN_DELAY

TRIGGER_LEAD = 2  # cycles by which the requantizer learns of finished sums before they are there

# What the requantizer needs to empty a group's columns: the header's fields, and where the tile's results go.
DRAIN = Layout(
    "drain",
    ("channel", HEADER0["channel"].width),
    ("columns", HEADER0["columns"].width),
    ("use_residual", 1),
    ("reduce", 1),
    ("wide", 1),
    ("output", HEADER1["output"].width),
    ("stride", HEADER1["stride"].width),
    ("residual", HEADER1["residual"].width),
    ("join", 1),  # keep as partial instead of requantizing
    ("accumulate", 1),  # add the partial
    ("nibble", 1),  # the partial counts 16 times
    ("maximum", 1),  # the maxima instead of the columns
    ("signal", 1),  # ends a section
)


def result_queue_depth(geometry: Geometry) -> int:
    """Results that a requantizer may have on their way to the memory; so many that synthesis takes a block RAM."""
    return max(64, 4 * geometry.group_columns)


class DrainPort:
    """Between a group and its requantizer.

    `request` with `columns`, `join`, `wide` and `reduce` asks for the result bus; the step is issued in the cycle of
    `grant`. `hold` stops the group while a wide result is emptied. DRAIN_DELAY cycles after the grant `sums[0]` and
    `maxima` are valid, and sums[c] is valid c cycles later. TRIGGER_LEAD cycles before, `trigger` rises for one cycle,
    in which `parameters` are valid. `written` pulses when the last result of a drain that is no join has been written,
    with `signal` as its parameter says.
    """

    def __init__(self, array: GroupArray):
        self.request = Signal()
        self.grant = Signal()
        self.hold = Signal()
        self.columns = Signal(HEADER0["columns"].width)
        self.join = Signal()
        self.wide = Signal()
        self.reduce = Signal()
        self.trigger = Signal()
        self.parameters = Signal(DRAIN.width)
        self.written = Signal()
        self.signal = Signal()
        self.sums = array.columns
        self.maxima = array.maxima


class DrainQueue(Module):
    """Keeps the parameters of each drain until its sums are ready. `enter`: the step at the IssuePoint `point` is
    issued and ends a pass."""

    def __init__(self, point, drain: DrainPort):
        self.enter = Signal()

        # # #

        step, tile, task, place = point.step, point.tile, point.task, point.place
        accumulate = Signal()  # an earlier pass of this tile left a partial
        parameters = record_of(DRAIN)
        self.submodules.queue = queue = SyncFIFO(DRAIN.width, DRAIN_QUEUE_DEPTH)
        trigger = delay_valid(self, self.enter, DRAIN_DELAY - TRIGGER_LEAD)
        self.comb += [
            parameters.channel.eq(task.channel),
            parameters.columns.eq(task.columns),
            parameters.use_residual.eq(task.residual),
            parameters.reduce.eq(task.reduce),
            parameters.wide.eq(task.wide),
            parameters.output.eq(place.output + tile.output),
            parameters.stride.eq(place.stride),
            parameters.residual.eq(place.residual + Mux(task.wide, 0, tile.output)),
            parameters.join.eq(step.join),
            parameters.accumulate.eq(accumulate),
            parameters.nibble.eq(step.shift),
            parameters.maximum.eq(step.maximum),
            parameters.signal.eq(task.signal & tile.signal),
            queue.din.eq(parameters.raw_bits()),
            queue.we.eq(self.enter),
            queue.re.eq(trigger),
            drain.trigger.eq(trigger),
            drain.parameters.eq(queue.dout),
        ]
        self.sync += If(self.enter, accumulate.eq(step.join))
