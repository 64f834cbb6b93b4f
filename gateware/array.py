"""One group of the Cartesian-product MAC array: `lanes` pixels times `group_columns` output channels.

Every cycle the outer product of one activation vector and one weight vector is added in place (output stationary).
Activations move one column a cycle, so column c works c cycles behind column 0, finishes c cycles later, and one
result bus empties the columns one after the other while the next tile's steps already follow:

    cycle            t        t+1       t+2       t+3
    activations -> [col 0] -> [col 1] -> [col 2] -> ...        128 bits, one register a column
    weight c enters column c with its vector
    column 0:      product   sum       visible    next tile may overwrite

Activations are unsigned nibbles (0 to 15), weights are signed (-8 to 7). The compiler proves that no sum leaves
`accumulator_bits`. Besides the MACs, one vector of maxima serves max pooling; it is read like column 0.
"""

from migen import *

from sentei.gateware.common import delay, delay_valid, nibble
from sentei.overlay.geometry import ACTIVATION_BITS, WEIGHT_BITS, Geometry


class MacColumn(Module):
    """`lanes` multiply-accumulate cells that share one weight. `sums` shows a step's result `LATENCY` cycles later."""

    LATENCY = 2

    def __init__(self, lanes: int, accumulator_bits: int):
        self.activations = Signal(ACTIVATION_BITS * lanes)
        self.weight = Signal((WEIGHT_BITS, True))
        self.valid = Signal()
        self.fresh = Signal()  # start a new sum
        self.sums = Signal(accumulator_bits * lanes)

        # # #

        valid, fresh = Signal(), Signal()
        self.sync += [valid.eq(self.valid), fresh.eq(self.fresh)]
        sums = []
        multiply, start, accumulate = [], [], []
        for lane in range(lanes):
            product = Signal((ACTIVATION_BITS + WEIGHT_BITS, True), reset_less=True)
            total = Signal((accumulator_bits, True), reset_less=True)
            multiply.append(product.eq(nibble(self.activations, lane) * self.weight))
            start.append(total.eq(product))
            accumulate.append(total.eq(total + product))
            sums.append(total)
        self.sync += If(self.valid, *multiply)
        self.sync += If(valid, If(fresh, *start).Else(*accumulate))
        self.comb += self.sums.eq(Cat(*sums))


class GroupArray(Module):
    """`group_columns` columns in a row and the maxima.

    A step enters with `valid`; `columns[c]` shows its sums MacColumn.LATENCY + c cycles later, `maxima` shows its
    maxima MacColumn.LATENCY cycles later. There is no back-pressure: who feeds steps must empty sums in time.
    """

    def __init__(self, geometry: Geometry):
        lanes = geometry.lanes
        self.activations = Signal(ACTIVATION_BITS * lanes)
        self.weights = Signal(WEIGHT_BITS * geometry.group_columns)
        self.valid = Signal()
        self.fresh = Signal()
        self.maximum = Signal()
        self.columns = []
        self.maxima = Signal(ACTIVATION_BITS * lanes)

        # # #

        multiply = Signal()
        self.comb += multiply.eq(self.valid & ~self.maximum)
        activations, weights, valid, fresh = self.activations, self.weights, multiply, self.fresh
        for index in range(geometry.group_columns):
            column = MacColumn(lanes, geometry.accumulator_bits)
            self.submodules += column
            self.comb += [
                column.activations.eq(activations),
                column.weight.eq(weights[:WEIGHT_BITS]),
                column.valid.eq(valid),
                column.fresh.eq(fresh),
            ]
            self.columns.append(column.sums)
            if index + 1 < geometry.group_columns:
                rest = Signal(len(weights) - WEIGHT_BITS)
                self.comb += rest.eq(weights[WEIGHT_BITS:])
                activations, weights = delay(self, activations, 1), delay(self, rest, 1)
                valid, fresh = delay_valid(self, valid, 1), delay_valid(self, fresh, 1)

        vector = delay(self, self.activations, MacColumn.LATENCY - 1)
        update = delay_valid(self, self.valid & self.maximum, MacColumn.LATENCY - 1)
        restart = delay_valid(self, self.fresh, MacColumn.LATENCY - 1)
        larger = [
            If(
                restart | (nibble(vector, lane) > nibble(self.maxima, lane)),
                nibble(self.maxima, lane).eq(nibble(vector, lane)),
            )
            for lane in range(lanes)
        ]
        self.sync += If(update, *larger)
