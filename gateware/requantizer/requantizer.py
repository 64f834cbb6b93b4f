"""Requantizer: empties columns, joins passes, adds residuals, and turns sums into 4-bit outputs, exactly.

                         residual word
                               v
    columns' sums --> [lanes: OR, threshold - sum, search, + residual, clamp] --> write queue
                        ^  |            ^
                   partial memory   channel table

One column (a vector of `lanes` sums) a cycle; gateware/technologies/lanes.py says how and in which cycle. The parts say
when: the result bus grants, turns begin a drain, columns count, addresses follow, partials and results come and go:

    cycle -2   `trigger` of a group's drain; its parameters
          -1   begin: addresses
           0   first column's turn; the others follow. Their partials, entries and residuals are addressed accordingly
          10   first result enters the write queue

To sum all lanes, `reduce` sends the columns through a tree of adders first; everything else happens as much later.
"""

from migen import *

from sentei.gateware.common import delay, delay_valid
from sentei.gateware.group.drain import DrainPort, result_queue_depth
from sentei.gateware.memory.activation_memory import ActivationPort
from sentei.gateware.memory.table import TABLE_LATENCY, Table
from sentei.gateware.record import fields_of
from sentei.gateware.requantizer.addresses import Addresses
from sentei.gateware.requantizer.columns import Columns
from sentei.gateware.requantizer.partials import Partials
from sentei.gateware.requantizer.result_bus import ResultBus
from sentei.gateware.requantizer.results import Results
from sentei.gateware.requantizer.turns import Turns
from sentei.gateware.technologies.lanes import RESIDUAL, SUM
from sentei.gateware.technologies.technology import PORTABLE, Technology
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import channel_layout

assert SUM == TABLE_LATENCY


class Requantizer(Module):
    """Serves the groups behind `drains`.

    `writer` is its source of the activation memory; `residual_port` its reader, where it wants `residual_word` in the
    cycles in which `residual_busy` is 1. `channels` is the table that the loader writes. `busy` falls when all results
    are written.
    """

    def __init__(
        self,
        geometry: Geometry,
        drains: list[DrainPort],
        residual_port: ActivationPort,
        writer,
        technology: Technology = PORTABLE,
    ):
        layout = channel_layout(geometry)
        depth = result_queue_depth(geometry)
        self.submodules.channels = Table(layout.width, geometry.channel_entries, "channels")
        self.submodules.lanes = lanes = technology.lanes(
            geometry, [*(sums for drain in drains for sums in drain.sums), *(drain.maxima for drain in drains)]
        )
        self.residual_word = Signal.like(residual_port.word)
        self.residual_busy = Signal()

        # # #

        self.submodules.bus = bus = ResultBus(geometry, drains, depth, lanes.reduce_delay)
        self.submodules.turns = turns = Turns(geometry, drains, lanes)
        self.submodules.columns = columns = Columns(geometry, turns, bus)
        self.submodules.addresses = addresses = Addresses(geometry, len(drains), turns, columns)
        self.submodules.partials = partials = Partials(geometry, max(2, len(drains) * geometry.group_columns), lanes)
        self.submodules.results = results = Results(drains, columns, addresses, lanes, writer, depth)
        self.busy = bus.busy
        now, active = columns.now, columns.active
        entry = fields_of(self, layout, self.channels.data)
        repeats = Signal()
        residual_cycles = RESIDUAL - ActivationPort.LATENCY
        self.comb += [
            bus.give.eq(results.written),
            repeats.eq(columns.piece != 0),
            self.channels.address.eq(addresses.channel),
            lanes.join.eq(now.accumulate | repeats),
            lanes.by_nibble.eq(now.nibble | repeats),
            lanes.wide.eq(delay(self, now.wide, SUM)),
            *[getattr(lanes, name).eq(getattr(entry, name)) for name in layout.fields],
            self.residual_word.eq(delay(self, addresses.residual, residual_cycles)),
            self.residual_busy.eq(delay_valid(self, active & now.use_residual, residual_cycles)),
            lanes.residuals.eq(residual_port.low),
            lanes.use_residual.eq(delay(self, now.use_residual, RESIDUAL)),
            partials.address.eq(Cat(columns.next_column, addresses.next_owner)),
            partials.keeps.eq(active & (now.join | now.wide)),
        ]
