"""Loader and storer: what LOAD and STORE instructions do with the DMA's 64-bit words.

A LOAD collects the words of an entry, lowest first, and writes the entry into one kind of memory, in all units whose
bit is set. A STORE reads activation words through a port that it shares (it uses cycles that nobody else wants).

    DMA words --> | word n | ... | word 1 | word 0 | --> stream / tile / tap / mask / channel / activation memory
"""

from litex.soc.interconnect import stream
from migen import *
from migen.genlib.fifo import SyncFIFO

from sentei.gateware.common import delay_valid
from sentei.gateware.engine.activation_memory import ActivationPort
from sentei.overlay.geometry import ACTIVATION_BITS, LOAD_BITS, Geometry
from sentei.overlay.instructions import Memory as Target
from sentei.overlay.instructions import load_words


class Loader(Module):
    """`start` takes `target`, `units` and `address`; then every entry in `sink` is written to the next address.

    `tables[target]` lists the tables of that kind, unit by unit. `writer` is a source of the activation memory.
    """

    def __init__(self, geometry: Geometry, tables, writer):
        self.start = Signal()
        self.target = Signal(4)
        self.units = Signal(8)
        self.address = Signal(16)
        # Whether there is room depends on much; the DMA hears of it a cycle later.
        self.submodules.inlet = inlet = stream.PipeReady([("data", LOAD_BITS)])
        self.sink = inlet.sink
        self.busy = Signal()

        # # #

        sink = inlet.source
        lengths = {target: load_words(target, geometry) for target in Target}
        longest = max(lengths.values())
        entry = Signal(LOAD_BITS * longest)
        target = Signal.like(self.target)
        units = Signal.like(self.units)
        address = Signal.like(self.address)
        index = Signal(max=longest + 1)
        length = Signal(max=longest + 1)
        full = Signal()  # an entry waits to be written
        written = Signal()
        self.comb += [
            Case(target, {int(t): length.eq(n) for t, n in lengths.items()}),
            sink.ready.eq(~full | written),
            written.eq(full & ((target != Target.ACTIVATION) | ~writer.valid)),
            self.busy.eq(full | sink.valid | writer.valid),
        ]
        # An activation word waits in registers of its own: who writes when is decided late in the cycle.
        self.sync += [
            If(writer.ready, writer.valid.eq(0)),
            If(
                written & (target == Target.ACTIVATION),
                writer.valid.eq(1),
                writer.word.eq(address),
                writer.data.eq(entry[: ACTIVATION_BITS * geometry.lanes]),
            ),
        ]
        store = {word: entry[LOAD_BITS * word : LOAD_BITS * (word + 1)].eq(sink.data) for word in range(longest)}
        self.sync += [
            If(written, full.eq(0), address.eq(address + 1)),
            If(
                sink.valid & sink.ready,
                Case(index, store),
                If(index == length - 1, index.eq(0), full.eq(1)).Else(index.eq(index + 1)),
            ),
            If(
                self.start,
                target.eq(self.target),
                units.eq(self.units),
                address.eq(self.address),
                index.eq(0),
                full.eq(0),
            ),
        ]
        for kind, members in tables.items():
            for unit, table in enumerate(members):
                selected = units[unit] if kind in (Target.STREAM, Target.CHANNEL) else 1
                self.comb += [
                    table.write.eq(full & (target == kind) & selected),
                    table.write_address.eq(address),
                    table.write_data.eq(entry[: len(table.write_data)]),
                ]


class Storer(Module):
    """`start` takes `address` and `count`; `source` then gives the activation words as 64-bit words.

    `port` is read in cycles in which `port_taken` is 0; words read wait in a queue, which always has room for them.
    """

    QUEUE_DEPTH = 8

    def __init__(self, geometry: Geometry, port, port_taken):
        width = ACTIVATION_BITS * geometry.lanes
        self.start = Signal()
        self.address = Signal(16)
        self.count = Signal(16)
        # Whether there is room in the DMA depends on much; the storer hears of it a cycle later.
        self.submodules.outlet = outlet = stream.PipeReady([("data", LOAD_BITS)])
        self.source = outlet.source
        self.word = Signal(max=geometry.activation_words)  # what to read from the port when it is free

        # # #

        source = outlet.sink
        words = geometry.load_words_per_activation
        self.submodules.queue = queue = ResetInserter()(SyncFIFO(width, self.QUEUE_DEPTH))
        remaining = Signal.like(self.count)
        room = Signal(max=self.QUEUE_DEPTH + 1, reset=self.QUEUE_DEPTH)
        piece = Signal(max=max(2, words))
        held = Signal(LOAD_BITS * words)
        ask = Signal()
        taken = Signal()
        self.comb += [
            ask.eq((remaining != 0) & (room != 0) & ~port_taken),
            queue.we.eq(delay_valid(self, ask, ActivationPort.LATENCY)),
            queue.din.eq(port.low),
            queue.reset.eq(self.start),
            held.eq(queue.dout),
            source.valid.eq(queue.readable),
            Case(piece, {k: source.data.eq(held[LOAD_BITS * k : LOAD_BITS * (k + 1)]) for k in range(words)}),
            taken.eq(source.valid & source.ready & (piece == words - 1)),
            queue.re.eq(taken),
        ]
        self.sync += [
            room.eq(room - ask + taken),
            If(ask, remaining.eq(remaining - 1), self.word.eq(self.word + 1)),
            If(source.valid & source.ready, If(taken, piece.eq(0)).Else(piece.eq(piece + 1))),
            If(
                self.start,
                self.word.eq(self.address),
                remaining.eq(self.count),
                piece.eq(0),
                room.eq(self.QUEUE_DEPTH),
            ),
        ]
