"""One group of the Cartesian-product MAC array: `lanes` pixels times `group_columns` output channels.

Every cycle the outer product of one activation vector and one weight vector is added in place (output stationary).
Activations move one column a cycle, so column c works c cycles behind column 0, finishes c cycles later, and one
result bus empties the columns one after the other while the next tile's steps already follow:

    cycle            t          t+1        t+2        t+3
    activations -> [col 0] -> [col 1] -> [col 2] -> ...         one register a column: its operand register
    weight c comes to column c LEAD cycles before its vector
    column 0:      operands   product    sum        visible     next tile may overwrite

Activations are unsigned nibbles (0 to 15), weights are signed (-8 to 7). The compiler proves that no sum leaves
`accumulator_bits`. Besides the MACs, one vector of maxima serves max pooling; it is read like column 0.

`GroupArray` is the portable form, made of `*`. A vendor's form (gateware/technologies/ecp5.py) replaces its cells and
nothing else: ports and latencies are the same, and tests/gateware/test_mac.py compares the two cycle by cycle.
"""

from itertools import pairwise

from migen import *

from sentei.gateware.common import delay, delay_valid, nibble, spread
from sentei.overlay.geometry import ACTIVATION_BITS, WEIGHT_BITS, Geometry


class Operands:
    """What one column is given, and, in `activations_held`, its operand register. All that comes with a weight is LEAD
    cycles early, so that a vendor's form has time to bring it to all lanes."""

    def __init__(self, activations, activations_held, weights, valid, fresh):
        self.activations = activations
        self.activations_held = activations_held  # one cycle later
        self.weights = weights  # this column's, and those of the columns behind it; early, as all that follow
        self.valid = valid
        self.fresh = fresh  # start a new sum


class GroupArray(Module):
    """`group_columns` columns in a row and the maxima.

    A step enters with `valid`, its activations LEAD cycles later; `columns[c]` shows its sums LATENCY + c cycles after
    these, `maxima` shows its maxima LATENCY cycles after. There is no back-pressure: who feeds steps must empty sums in
    time.
    """

    LEAD = 2
    LATENCY = 3  # operands, product, sum

    spread = staticmethod(spread)

    def __init__(self, geometry: Geometry):
        lanes = geometry.lanes
        self.geometry = geometry
        self.activations = Signal(ACTIVATION_BITS * lanes)
        self.weights = Signal(WEIGHT_BITS * geometry.group_columns)
        self.valid = Signal()
        self.fresh = Signal()
        self.maximum = Signal()
        self.columns = [Signal(geometry.accumulator_bits * lanes) for _ in range(geometry.group_columns)]
        self.maxima = Signal(ACTIVATION_BITS * lanes, reset_less=True)

        # # #

        # The vector, as it is 0, 1, 2 ... cycles after it entered.
        vectors = [self.activations]
        for _ in range(max(geometry.group_columns, self.LATENCY - 1)):
            vectors.append(delay(self, vectors[-1], 1))
        multiply = Signal()
        self.comb += multiply.eq(self.valid & ~self.maximum)
        weights, valid, fresh = self.weights, multiply, self.fresh
        operands = []
        for vector, held in list(pairwise(vectors))[: geometry.group_columns]:
            operands.append(Operands(vector, held, weights, valid, fresh))
            if len(weights) > WEIGHT_BITS:
                rest = Signal(len(weights) - WEIGHT_BITS)
                self.comb += rest.eq(weights[WEIGHT_BITS:])
                weights = delay(self, rest, 1)
                valid, fresh = delay_valid(self, valid, 1), delay_valid(self, fresh, 1)
        self.add_cells(operands)

        vector = vectors[self.LATENCY - 1]
        update = Signal()
        self.comb += update.eq(self.valid & self.maximum)
        delays = self.LEAD + self.LATENCY - 1
        for sector, flags in self.spread(self, Cat(update, self.fresh), delays, lanes):
            update, restart = flags
            pairs = [(nibble(vector, lane), nibble(self.maxima, lane)) for lane in sector]
            self.sync += If(update, *[If(restart | (new > largest), largest.eq(new)) for new, largest in pairs])

    def add_cells(self, operands: list[Operands]):
        """Drive `columns` from the operands of each column."""
        for sums, here in zip(self.columns, operands, strict=True):
            self.comb += sums.eq(Cat(*self.sums_of(here, range(self.geometry.lanes))))

    def held(self, here: Operands):
        """A column's weight, valid and fresh in the cycle of `activations_held`."""
        weight = Signal((WEIGHT_BITS, True))
        self.comb += weight.eq(delay(self, here.weights[:WEIGHT_BITS], self.LEAD + 1))
        return weight, delay_valid(self, here.valid, self.LEAD + 1), delay_valid(self, here.fresh, self.LEAD + 1)

    def sums_of(self, here: Operands, lanes):
        """Accumulators of these lanes of a column."""
        weight, valid, fresh = self.held(here)
        totals = []
        multiply, start, accumulate = [], [], []
        for lane in lanes:
            product = Signal((ACTIVATION_BITS + WEIGHT_BITS, True), reset_less=True)
            total = Signal((self.geometry.accumulator_bits, True), reset_less=True)
            multiply.append(product.eq(nibble(here.activations_held, lane) * weight))
            start.append(total.eq(product))
            accumulate.append(total.eq(total + product))
            totals.append(total)
        self.sync += If(valid, *multiply)
        valid, fresh = delay_valid(self, valid, 1), delay_valid(self, fresh, 1)
        self.sync += If(valid, If(fresh, *start).Else(*accumulate))
        return totals
