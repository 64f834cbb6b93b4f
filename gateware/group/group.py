"""One group: a stream of tasks, an aligner port, and `group_columns` columns of the array.

The group reads tasks from its stream memory (see overlay/instructions.py) and issues one step a cycle, tile after tile
and task after task. The next task's header is read in the last tile of the task before it. At the issue point a step
waits until all groups have reached its epoch, and one that ends a pass until it has the result bus; only there can the
group stall. Behind it everything has a fixed latency and never waits:

    stream, tile --> issue --> tap --> mask --> aligner --> array --> columns, emptied by the requantizer
    memory           point     table   table                          when `drain` says so
      (fetch)       (issue)        (operands)                                ^
                       |                                                     |
                       +-- drain parameters ------ queue --------------------+
                                  (drain)
"""

from litex.soc.interconnect import stream
from migen import *

from sentei.gateware.group.aligner import Aligner
from sentei.gateware.group.drain import DrainPort, DrainQueue, result_queue_depth
from sentei.gateware.group.fetch import RUN_QUEUE_DEPTH, Fetch, run_layout
from sentei.gateware.group.issue import Issue, IssuePoint
from sentei.gateware.group.operands import OperandPath
from sentei.gateware.memory.table import StreamTable, Table
from sentei.gateware.technologies.technology import PORTABLE, Technology
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import TAP, TILE


def table_prefix(group: int) -> str:
    """Of the names of a group's tables in the Verilog."""
    return f"group{group}_"


class Group(Module):
    """Does the runs that come in through `runs`; `todo` counts those not finished, that is, not read to their end.

    `epochs` and `arrivals` are the lists of all groups' counters and of whether each is about to go one up; this
    group's, of that `number`, count the sections that it has passed. `stream`, `tiles`, `taps`, `masks` are the tables
    that the loader writes. `stepping`, `draining`, `waiting`, `preparing` and `idle` say what each cycle is spent on,
    `layer_ends` and `record_taken` when a layer ends, `busy` whether results are under way: see Issue.
    """

    def __init__(
        self, geometry: Geometry, activation_port, number, epochs, arrivals, technology: Technology = PORTABLE
    ):
        prefix = table_prefix(number)
        self.submodules.stream = StreamTable(geometry, prefix + "stream")
        self.submodules.tiles = Table(TILE.width, geometry.tile_entries, prefix + "tiles")
        self.submodules.taps = Table(TAP.width, geometry.tap_entries, prefix + "taps")
        self.submodules.masks = Table(geometry.lanes, geometry.mask_entries, prefix + "masks")
        self.submodules.aligner = aligner = Aligner(geometry, activation_port)
        self.submodules.array = array = technology.group_array(geometry)
        self.submodules.queue = runs = stream.SyncFIFO(run_layout(geometry), RUN_QUEUE_DEPTH)
        self.runs = runs.sink
        self.todo = runs.level
        self.drain = drain = DrainPort(array)

        # # #

        self.submodules.fetch = fetch = Fetch(geometry, runs.source, self.stream, self.tiles)
        self.submodules.point = point = IssuePoint(geometry, fetch, self.stream, self.tiles, epochs, arrivals)
        self.submodules.issue = issue = Issue(
            fetch, point, drain, epochs[number], arrivals[number], result_queue_depth(geometry)
        )
        self.submodules.drains = drains = DrainQueue(point, drain)
        self.submodules.operands = operands = OperandPath(geometry, point, self.taps, self.masks, aligner, array)
        self.comb += [
            drains.enter.eq(issue.issue & issue.ends),
            operands.issue.eq(issue.issue),
            operands.fresh.eq(issue.fresh),
        ]
        self.stepping, self.draining, self.waiting = issue.issue, issue.draining, issue.waiting
        self.preparing, self.idle = issue.preparing, issue.idle
        self.layer_ends, self.record_taken, self.busy = issue.layer_ends, issue.record_taken, issue.busy
