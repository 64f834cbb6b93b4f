"""From a column's sums to nibbles: what the requantizer does for each lane, the same in all of them.

    cycle  0        1        2               3     4    5    6      7            8         9         10
    sums, gated --> any --> constant    --> +-8d +-4d +-2d +-d --> + residual   above     clamp --> nibbles
    by turns       of them  - sum - 1  |    five decisions: n                   span?     + low
                            + partial  +--> `values`, to the partial memory; the top nibble, if `wide`

Turns come one at a time: a column's sums are taken in its turn and read as 0 in all others, so columns are merged by
OR. The thresholds T_1 .. T_31 of a channel are *even*: points of a line, rounded up to integers. So no table of them
is needed. A value is a threshold minus the sum minus 1, hence negative if the sum has reached it. The first threshold
is T_16; then, four times, the one in the middle of those that remain: it lies a distance D, D/2, D/4, D/8 (rounded
down) above or below the one before, or 1 more (`carries`). This is non-restoring division with a carry for each digit.
Of each channel's entry (overlay/instructions.py):

    constant   T_16, or what it leaves to one pass of a joined sum
    distance   D = T_24 - T_16, or 1 less
    carries    a bit for each threshold but T_16, added to D (it is more than D above the one before) or to D inverted
               (0: it is more than D below): 2 for the first step, then 4, 8, 16. Within a step they are numbered by
               the decisions so far, the first one highest, 1 being "reached"
    late_odd   thresholds of odd number lie up to 1 higher than the line says. So does a quantizer that rounds ties to
               even levels
    late_even  those of even number do

With n the number of thresholds reached, i = n - 16 or, if `flip`, 15 - n:

    nibble = low + min(max(i + residual, 0), span)           where there is no residual, it is 8

Values are `wide_bits` wide, the search `search_bits`. Values too large for that become 3/4 of the largest, or more.

`Lanes` is the portable form. A vendor's form replaces some of its methods, which all are combinational.
"""

from functools import reduce
from operator import or_

from migen import *

from sentei.gateware.common import delay, delay_valid, nibble, spread
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry
from sentei.overlay.instructions import CARRY_BITS, LANE_SUM_BITS, NIBBLE_SHIFT, NO_RESIDUAL, SEARCH_LEVELS

SUM = 2  # cycles from a turn to the merged sums
VALUE = SUM + 1
DECIDED = VALUE + SEARCH_LEVELS
RESIDUAL = DECIDED - 1
LATENCY = DECIDED + 3
NIBBLE = (1 << ACTIVATION_BITS) - 1
assert NO_RESIDUAL == 1 << (ACTIVATION_BITS - 1)


class Lanes(Module):
    """`sources` are the vectors that have turns: sums, signed, `accumulator_bits` a lane, or maxima, a nibble a lane.

    Inputs, each in its cycle from the turn on: `turns` (-1), 1 before a source's turn; `join` and `by_nibble` (0) add
    `partials` (1); the entry's fields and `wide` (SUM); `residuals` with `use_residual` (RESIDUAL). Outputs: `values`
    (VALUE), `nibbles` (LATENCY).

    What leaves the OR with `sum_lanes` (SUM) comes again `reduce_delay` cycles later, in lane 0, as the sum of all
    lanes' lowest LANE_SUM_BITS, unsigned.
    """

    spread = staticmethod(spread)

    def __init__(self, geometry: Geometry, sources):
        self.lanes, self.wide_bits, self.sum_bits = geometry.lanes, geometry.wide_bits, geometry.accumulator_bits
        self.bits = geometry.search_bits
        self.reduce_delay = log2_int(self.lanes) + 1
        self.turns = Signal(len(sources))
        self.join = Signal()
        self.by_nibble = Signal()
        self.partials = Signal(self.wide_bits * self.lanes)
        self.sum_lanes = Signal()
        self.constant = Signal(self.wide_bits)
        self.distance = Signal(self.bits - 1)
        self.carries = Signal(CARRY_BITS)
        self.late_odd = Signal()
        self.late_even = Signal()
        self.low = Signal(ACTIVATION_BITS)
        self.span = Signal(ACTIVATION_BITS)
        self.flip = Signal()
        self.wide = Signal()  # hand out the value's top nibble, inverted, instead
        self.residuals = Signal(ACTIVATION_BITS * self.lanes)
        self.use_residual = Signal()
        self.values = Signal(self.wide_bits * self.lanes)
        self.nibbles = Signal(ACTIVATION_BITS * self.lanes)

        # # #

        self.add_logic(sources)

    def add_logic(self, sources):
        # Cycles 0 and 1: the column whose turn it is, and the partial in one of two positions; the other is all ones.
        parts = []
        for sector, turns in self.spread(self, self.turns, 1, self.lanes):
            own = []
            for source in sources:
                bits = len(source) // self.lanes
                own.append(source[bits * sector.start : bits * sector.stop])
            parts.append(reduce(or_, [self.as_sums(taken, len(sector)) for taken in self.take(own, turns)]))
        merged = Signal(self.sum_bits * self.lanes)
        self.comb += merged.eq(Cat(*parts))
        sums = Signal(self.sum_bits * self.lanes, reset_less=True)
        ones = 2 ** len(self.partials) - 1  # also as reset value: only so it is the one that a flip-flop's reset gives
        plain = Signal(len(self.partials), reset=ones, reset_less=True)
        shifted = Signal(len(self.partials), reset=ones, reset_less=True)
        self.sync += sums.eq(merged)
        joins = Signal(2)
        self.comb += joins.eq(Cat(self.join & ~self.by_nibble, self.join & self.by_nibble))
        for sector, flags in self.spread(self, joins, 1, self.lanes):
            bits = slice(self.wide_bits * sector.start, self.wide_bits * sector.stop)
            for flag, register in zip(flags, (plain, shifted), strict=True):
                self.sync += If(flag, register[bits].eq(self.partials[bits])).Else(register[bits].eq(ones))

        self.sum_over_lanes(merged, sums)

        # Cycle 2: values. The constant's bits are all ones where a partial stands.
        covers_low, covers_high = Signal(), Signal()
        joined = delay(self, Cat(self.join, self.by_nibble), 2)
        constant = Signal(self.wide_bits)
        self.comb += [
            covers_low.eq(joined[0] & (~joined[1] | self.wide)),
            covers_high.eq(joined[0]),
            constant.eq(
                self.constant
                | Cat(Replicate(covers_low, NIBBLE_SHIFT), Replicate(covers_high, self.wide_bits - NIBBLE_SHIFT))
            ),
        ]
        values = []
        for lane in range(self.lanes):
            field = slice(self.wide_bits * lane, self.wide_bits * (lane + 1))
            moved = Cat(C(NIBBLE, NIBBLE_SHIFT), shifted[field][:-NIBBLE_SHIFT])
            total = sums[self.sum_bits * lane : self.sum_bits * (lane + 1)]
            value = Signal(self.wide_bits, reset_less=True)
            self.sync += value.eq(self.subtract(total, constant, plain[field], moved))
            values.append(value)
        self.comb += self.values.eq(Cat(*values))

        # Cycles 3 to 6: the search. The decisions so far are a number, the last one its lowest bit.
        carries = delay(self, self.carries, 1)
        distance, wide = delay(self, self.distance, 1), delay_valid(self, self.wide, 1)
        late_odd, late_even = (delay(self, bit, SEARCH_LEVELS - 1) for bit in (self.late_odd, self.late_even))
        hand_out = wide
        rests = [self.narrowed(value) for value in values]
        reached = [value[-1:] for value in values]
        for level in range(SEARCH_LEVELS):
            own = carries[: 2 << level]
            if level == SEARCH_LEVELS - 2:
                # The last step goes from a threshold of even number to one of odd number.
                step = distance[level + 1 :]
                up, down = Signal(self.bits, reset_less=True), Signal(self.bits, reset_less=True)
                self.sync += [up.eq(step - late_even), down.eq(step - late_odd)]
            for lane in range(self.lanes):
                rest = Signal(self.bits)
                if level < SEARCH_LEVELS - 1:
                    self.comb += rest.eq(self.search(rests[lane], distance[level:], own, reached[lane]))
                else:
                    self.comb += rest.eq(self.search_last(rests[lane], up, down, own, reached[lane]))
                if level < SEARCH_LEVELS - 1:
                    rests[lane] = delay(self, rest, 1)
                    decisions = Signal(2 + level)
                    self.comb += decisions.eq(Cat(rests[lane][-1], delay(self, reached[lane], 1)))
                else:
                    # A nibble that is handed out takes the residual's place, and n is 16.
                    decisions = Signal(1 + SEARCH_LEVELS, reset=1 << SEARCH_LEVELS, reset_less=True)
                    self.sync += If(wide, decisions.eq(decisions.reset)).Else(
                        decisions.eq(Cat(rest[-1], reached[lane]))
                    )
                reached[lane] = decisions
            if level < SEARCH_LEVELS - 1:
                carries = delay(self, carries[2 << level :], 1)
                distance, wide = delay(self, distance, 1), delay_valid(self, wide, 1)

        # Cycle 6: residuals. Cycle 7: their sum with i. Cycle 8: where it lies. Cycle 9: the nibble.
        flip = delay(self, self.flip, DECIDED - SUM)
        span = delay(self, self.span, DECIDED + 1 - SUM)
        low = delay(self, self.low, DECIDED + 2 - SUM)
        results = []
        for lane in range(self.lanes):
            lower, upper = Signal(ACTIVATION_BITS - 1, reset_less=True), Signal(reset_less=True)
            residual = Cat(lower, upper)  # NO_RESIDUAL, where there is none; all ones, if `wide`
            stored = nibble(self.residuals, lane)
            handed_out = Signal(ACTIVATION_BITS, reset_less=True)
            self.sync += [
                If(wide | self.use_residual, lower.eq(stored[:-1] | Replicate(wide, len(lower)))).Else(lower.eq(0)),
                upper.eq(stored[-1] | ~self.use_residual),
                If(hand_out, handed_out.eq(values[lane][-ACTIVATION_BITS:])).Else(handed_out.eq(0)),
            ]
            handed_out = delay(self, handed_out, DECIDED - VALUE - 1)
            total = Signal(ACTIVATION_BITS + 2, reset_less=True)  # 16 more than i + residual
            code = Signal(ACTIVATION_BITS, reset_less=True)
            above = Signal(reset_less=True)
            result = Signal(ACTIVATION_BITS, reset_less=True)
            self.sync += [
                total.eq(self.add_residual(reached[lane], flip, residual, handed_out)),
                code.eq(Mux(total[4], total[:4], 0)),
                above.eq(total[5] | (total[4] & (total[:4] > span))),
                result.eq(self.clamped(low, delay(self, span, 1), code, above)),
            ]
            results.append(result)
        self.comb += self.nibbles.eq(Cat(*results))

    def sum_over_lanes(self, merged, sums):
        """Sums of all lanes go to lane 0 of `sums`: a tree of registered adders, each as wide as its sum."""
        field = [slice(self.sum_bits * lane, self.sum_bits * lane + LANE_SUM_BITS) for lane in range(self.lanes)]
        # Lane 0 of `sums` may be taken by the sum of an earlier column.
        tree = [delay(self, merged[field[0]], 1), *(sums[bits] for bits in field[1:])]
        while len(tree) > 1:
            totals = [Signal(len(tree[0]) + 1, reset_less=True) for _ in tree[::2]]
            self.sync += [
                total.eq(left + right) for total, left, right in zip(totals, tree[::2], tree[1::2], strict=True)
            ]
            tree = totals
        self.sync += If(delay_valid(self, self.sum_lanes, log2_int(self.lanes)), sums[: self.sum_bits].eq(tree[0]))

    def narrowed(self, value):
        """`value` in `bits`; one that does not fit keeps its sign and gets at least 3/4 of the largest magnitude."""
        sign, kept = value[-1], self.bits - 3
        fits = Signal()
        upper = value[self.bits - 1 :]
        self.comb += fits.eq((upper == 0) | (upper == 2 ** len(upper) - 1))
        return Cat(value[:kept], Mux(fits, value[kept : kept + 2], Replicate(~sign, 2)), sign)

    def as_sums(self, vector, lanes):
        """Maxima are sums of one nibble."""
        if len(vector) == self.sum_bits * lanes:
            return vector
        padding = C(0, self.sum_bits - ACTIVATION_BITS)
        return Cat(*[Cat(nibble(vector, lane), padding) for lane in range(lanes)])

    # What a vendor's form does better than a synthesis tool finds out.

    def take(self, sources, turns):
        """Registers whose OR is what the source has whose turn it is. `sources` are parts of some lanes."""
        return [self.taken(source, turn) for source, turn in zip(sources, turns, strict=True)]

    def taken(self, source, turn):
        register = Signal(len(source), reset_less=True)
        self.sync += If(turn, register.eq(source)).Else(register.eq(0))
        return register

    def subtract(self, total, constant, plain, shifted):
        """(constant & plain & shifted) - total - 1."""
        return (constant & plain & shifted) + ~Cat(total, Replicate(total[-1], self.wide_bits - self.sum_bits))

    def chosen(self, carries, reached):
        """The bit of `carries` that the decisions choose."""
        chosen = Signal()
        self.comb += chosen.eq(carries >> reached)
        return chosen

    def search(self, rest, distance, carries, reached):
        """`rest` plus (minus, if not `reached`) distance and a bit of `carries`, which the decisions choose."""
        step = Cat(distance, C(0, self.bits - len(distance)))
        return rest + (step ^ Replicate(~reached[0], self.bits)) + self.chosen(carries, reached)

    def search_last(self, rest, up, down, carries, reached):
        """The same with two distances."""
        return rest + Mux(reached[0], up, ~down) + self.chosen(carries, reached)

    def add_residual(self, reached, flip, residual, handed_out):
        """n, or 31 - n if `flip`, plus the residual, or plus the nibble that is handed out inverted. Six bits."""
        return (reached ^ Replicate(flip, len(reached))) + (residual & ~handed_out)

    def clamped(self, low, span, code, above):
        return low + Mux(above, span, code)
