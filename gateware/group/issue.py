"""The issue point: the one place where a group waits. Behind it everything has a fixed latency.

A step is issued when all groups have reached the epoch that it waits for and, if it ends a pass, when it is granted the
result bus. What stands there, and what it waits for, is the IssuePoint's; whether it goes is decided by Issue.
"""

from migen import *

from sentei.gateware.group.drain import DrainPort
from sentei.gateware.group.epochs import Awaited
from sentei.gateware.group.fetch import Fetch, Word
from sentei.gateware.memory.table import Table
from sentei.gateware.record import fields_of, record_of
from sentei.overlay.geometry import WEIGHT_BITS, Geometry
from sentei.overlay.instructions import EPOCH_BITS, HEADER0, HEADER1, STEP, STEP_WEIGHTS_OFFSET, TILE


class IssuePoint(Module):
    """The step at the issue point, its `weights`, its `tile`, and its task's header, `task` and `place`.

    `reached`: all groups have reached its epoch. `epochs` and `arrivals` as in Awaited.
    """

    def __init__(self, geometry: Geometry, fetch: Fetch, stream: Table, tiles: Table, epochs, arrivals):
        self.step = fields_of(self, STEP, fetch.word)
        self.weights = fetch.word[STEP_WEIGHTS_OFFSET : STEP_WEIGHTS_OFFSET + WEIGHT_BITS * geometry.group_columns]
        self.tile = fields_of(self, TILE, fetch.tile)
        self.task, self.place = record_of(HEADER0), record_of(HEADER1)

        # # #

        self.submodules.awaited = awaited = Awaited(epochs, arrivals)
        self.reached = awaited.reached
        header = fetch.header
        step, tile = fields_of(self, STEP, stream.data), fields_of(self, TILE, tiles.data)  # that come next
        changes = Signal()
        task_epoch, next_epoch = Signal(EPOCH_BITS), Signal(EPOCH_BITS)  # less 1, as the run's
        late = Signal(HEADER1["late"].width)
        self.comb += [
            changes.eq(fetch.soon.valid & fetch.soon.first),
            awaited.advance.eq(fetch.advance),
            awaited.soon.eq(next_epoch + Mux(step.late, late, tile.epoch)),
            next_epoch.eq(task_epoch),
            late.eq(self.place.late),
            If(
                changes,
                next_epoch.eq(Mux(fetch.soon.starts_run, fetch.run_epoch, task_epoch) + header.first.epoch),
                late.eq(header.second.late),
            ),
        ]
        self.sync += If(
            fetch.advance & changes,
            self.task.eq(header.first),
            self.place.eq(header.second),
            task_epoch.eq(next_epoch),
        )


class Issue(Module):
    """Decides what goes. `issue`: a step does, `ends`: it ends a pass, `fresh`: it begins a sum.

    `epoch` is the group's counter, `arrives` pulses when it goes up by 1 because a section's last result is written.
    In every cycle one of `issue`, `draining` (wait for the result bus), `waiting` (for an epoch), `preparing` (headers,
    filling the pipeline) and `idle` (nothing to do) is 1. `layer_ends` pulses with the layer's last cycle, which waits
    for `record_taken`. `busy` falls when all results are written; at most `most_results` are under way.
    """

    def __init__(self, fetch: Fetch, point: IssuePoint, drain: DrainPort, epoch, arrives, most_results: int):
        self.issue = Signal()
        self.ends = Signal()
        self.fresh = Signal(reset=1)
        self.draining = Signal()
        self.waiting = Signal()
        self.preparing = Signal()
        self.idle = Signal()
        self.layer_ends = Signal()
        self.record_taken = Signal(reset=1)
        self.busy = Signal()

        # # #

        here, step = fetch.here, point.step
        outstanding = Signal(max=most_results + 1)  # drains issued whose results are not all written
        is_step, is_empty = Signal(), Signal()
        ready, stall, passes = Signal(), Signal(), Signal()
        self.comb += [
            is_step.eq(here.valid & (here.kind == Word.STEP)),
            is_empty.eq(here.valid & (here.kind == Word.EMPTY)),
            self.ends.eq(step.last | step.join),
            ready.eq(point.reached & (self.record_taken | ~here.ends_layer)),
            drain.request.eq(is_step & self.ends & ready & ~drain.hold),
            drain.columns.eq(point.task.columns),
            drain.join.eq(step.join),
            drain.wide.eq(point.task.wide),
            drain.reduce.eq(point.task.reduce),
            self.waiting.eq((is_step & ~ready) | (is_empty & ((outstanding != 0) | ~self.record_taken))),
            self.draining.eq(is_step & ready & (drain.hold | (self.ends & ~drain.grant))),
            stall.eq(self.waiting | self.draining),
            self.issue.eq(is_step & ~stall),
            passes.eq(is_empty & ~stall),
            fetch.advance.eq(~stall),
            self.idle.eq(fetch.idle),
            self.preparing.eq(~self.idle & ~is_step & ~self.waiting),
            self.busy.eq(~self.idle | (outstanding != 0)),
            self.layer_ends.eq((self.issue | passes) & here.ends_layer),
            arrives.eq(drain.written & drain.signal),
        ]
        self.sync += [
            If(self.issue, self.fresh.eq(self.ends)),
            outstanding.eq(outstanding + (self.issue & step.last) - drain.written),
            epoch.eq(epoch + arrives + Mux(passes, point.place.steps, 0)),
        ]
