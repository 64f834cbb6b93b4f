"""What LOAD instructions do with the DMA's 64-bit words.

A LOAD collects the words of an entry, lowest first, and writes the entry into one kind of memory, in all units whose
bit is set.

    DMA words --> | word n | ... | word 1 | word 0 | --> stream / its weights / tile / tap / mask / channel memory,
                                                         activation memory
"""

from litex.soc.interconnect import stream
from migen import *

from sentei.overlay.geometry import ACTIVATION_BITS, LOAD_BITS, Geometry
from sentei.overlay.instructions import INSTRUCTION, load_words
from sentei.overlay.instructions import Memory as Target


class Loader(Module):
    """`start` takes `target`, `units` and `address`; then every entry in `sink` is written to the next address.

    `tables[target]` lists the tables of that kind, unit by unit. `writer` is a source of the activation memory.
    """

    def __init__(self, geometry: Geometry, tables, writer):
        self.start = Signal()
        self.target = Signal(INSTRUCTION["memory"].width)
        self.units = Signal(INSTRUCTION["units"].width)
        self.address = Signal(INSTRUCTION["address"].width)
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
                selected = units[unit] if kind in (Target.STREAM, Target.WEIGHTS, Target.CHANNEL) else 1
                self.comb += [
                    table.write.eq(full & (target == kind) & selected),
                    table.write_address.eq(address),
                    table.write_data.eq(entry[: len(table.write_data)]),
                ]
