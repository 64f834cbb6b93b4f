"""The array's cells on a Lattice ECP5: as many MACs as possible in MULT18X18D, the others in carry chains (CCU2C).

A weight becomes a sign and a magnitude (0 to 8) once for a whole column. So all products are unsigned, fit 7 bits (at
most 15 * 8 = 120), and the accumulator adds or subtracts them.

*Products in a multiplier*: those of 2 lanes and 2 columns lie side by side in one block and never overlap, 7 bits each:

    (a0 + a1 * 2**14) * (m0 + m1 * 2**7)  =  | a1 m1 | a1 m0 | a0 m1 | a0 m0 |

    The block's input registers stand beside the columns' operand registers, its output registers hold the products.
    Those of the second column are a cycle early, and wait in a register.

*Products in LUTs*: two short adders stand for four rows of AND gates and three adders:

    low     = m[0] a + 2 m[1] a                        6 bits, registered in the place of the operands
    product = low, or 4a + low, or 8a                  7 bits, registered; 8a is 4a + 4a

*Accumulator*: an adder that also starts a new sum (`keep` = 0) and subtracts:

    sum = (keep ? sum : 0) + (negative ? ~product : product) + negative

How a LUT of a carry chain holds an adder's gates, too: half a CCU2C computes S = P ^ carry and passes the carry on if
P, else it passes G; P is any function of its inputs A, B, C, D, and G is P at C = D = 0. It adds y(A, B) and
x(A, B, C, D) if x is 0 at C = D = 0: then G = y, which is the carry wherever x = y. `adder` checks this rule.

Before each adder stands half a CCU2C whose P is 0: its S is the carry out of the adder before, a bit of that sum, and
its G is the carry into the next one: 0, or `negative`. So a chain needs no carry in, on which nextpnr would spend a
CCU2C and a wire. Inputs without use are 1, which costs no wire either.

*Wires* across a large device take most of a cycle. So what all lanes of a column need comes LEAD cycles early, and
every SECTOR lanes have registers of their own for it.

Cost in LUT4 (2 a CCU2C): 17 a MAC in a multiplier, 28 a MAC in LUTs.
"""

from itertools import islice, product

from migen import *

from sentei.gateware.common import delay, nibble
from sentei.gateware.technologies.array import GroupArray, Operands
from sentei.overlay.geometry import ACTIVATION_BITS, WEIGHT_BITS, Geometry

PRODUCT_BITS = 7  # 15 * 8 = 120
MULTIPLY_HALVES = 12  # of a chain, for a product
SECTOR = 4  # lanes
CHAIN_HALVES = 34  # two accumulators, or a MAC in LUTs; longer chains cost less, but are hard to place


def lut4(function) -> int:
    """INIT of a LUT4 that computes function(a, b, c, d) of four bits."""
    return sum(function(a, b, c, d) << (a | b << 1 | c << 2 | d << 3) for a, b, c, d in product((0, 1), repeat=4))


def adder(y, x) -> int:
    """INIT of half a CCU2C that adds the bits y(a, b) and x(a, b, c, d)."""
    if any(x(a, b, 0, 0) for a, b in product((0, 1), repeat=2)):
        raise ValueError("the second operand of a carry chain must be 0 where c = d = 0")
    return lut4(lambda a, b, c, d: y(a, b) ^ x(a, b, c, d))


SEPARATE = 0  # P = G = 0
CARRY_A = lut4(lambda a, b, c, d: a & (1 - c) & (1 - d))  # P = 0 as long as c and d are 1, G = a
ADD_ROWS = adder(lambda a, b: a & b, lambda a, b, c, d: c & d)
ADD_FIRST_ROW = adder(lambda a, b: a & b, lambda a, b, c, d: 0)
ADD_SECOND_ROW = adder(lambda a, b: 0, lambda a, b, c, d: c & d)
ADD_HIGH = adder(lambda a, b: a & b, lambda a, b, c, d: a if b and d else c)  # activation, four or more, low, eight
ACCUMULATE = adder(lambda a, b: a & b, lambda a, b, c, d: c ^ d)  # sum, keep, product, negative
ACCUMULATE_SIGN = adder(lambda a, b: a & b, lambda a, b, c, d: d)  # sum, keep, any, negative


class CarryChain(Module):
    """CCU2Cs in a row. There is no carry in: the first half's P must be 0."""

    def __init__(self):
        self.halves = []

    def add(self, init: int, a=1, b=1, c=1, d=1):
        """Appends half a CCU2C; returns its S."""
        output = Signal()
        self.halves.append((init, (a, b, c, d), output))
        return output

    def do_finalize(self):
        halves = iter(self.halves)
        carry = {}
        while cell := list(islice(halves, 2)):
            carry_out = Signal()
            ports = carry | {"o_COUT": carry_out}
            for number, (init, inputs, output) in enumerate(cell):
                ports |= {f"i_{name}{number}": bit for name, bit in zip("ABCD", inputs, strict=True)}
                ports |= {f"p_INIT{number}": C(init, 16), f"p_INJECT1_{number}": "NO", f"o_S{number}": output}
            self.specials += Instance("CCU2C", **ports)
            carry = {"i_CIN": carry_out}


def multiplier(left, right):
    """A multiplier of two unsigned numbers (lists of at most 18 bits), and the 36-bit product two cycles later: it has
    registers at its inputs and outputs."""
    result = Signal(36)
    ports = {"i_CLK0": ClockSignal(), "i_CE0": 1, "i_RST0": 0, "p_GSR": "DISABLED"}
    for name, bits in (("A", left), ("B", right), ("C", [])):
        ports |= {f"i_{name}{index}": bit for index, bit in enumerate([*bits, *[0] * (18 - len(bits))])}
    ports |= {f"o_P{index}": result[index] for index in range(36)}
    ports |= {f"i_{name}": 0 for name in ("SIGNEDA", "SIGNEDB", "SOURCEA", "SOURCEB")}
    for name in ("INPUTA", "INPUTB", "OUTPUT"):
        ports |= {f"p_REG_{name}_CLK": "CLK0", f"p_REG_{name}_CE": "CE0", f"p_REG_{name}_RST": "RST0"}
    return Instance("MULT18X18D", **ports), result


def copy(module, signal):
    """`signal` a cycle later, in flip-flops that synthesis does not merge with others that hold the same."""
    copied = Signal(len(signal))
    for bit, held in zip(signal, copied, strict=True):
        module.specials += Instance(
            "TRELLIS_FF",
            p_GSR="DISABLED",
            p_CEMUX="1",
            p_CLKMUX="CLK",
            p_LSRMUX="LSR",
            p_REGSET="RESET",
            i_CLK=ClockSignal(),
            i_LSR=0,
            i_DI=bit,
            o_Q=held,
        )
    return copied


def spread(module, signal, cycles, users, sector=SECTOR):
    """`signal` as it was `cycles` cycles ago, with a copy for every `sector` users: (range of users, copy) pairs."""
    signal = delay(module, signal, cycles - 1)
    firsts = range(0, users, sector)
    return [(range(first, min(first + sector, users)), copy(module, signal)) for first in firsts]


class Weight:
    """One column's weight as a sector's cells want it; zero, and `keep`, in a cycle without a step.

    With the operands: `magnitude`, and `following`, the next column's, for the first column of a piece. A cycle later:
    `four_or_more`, `eight`. Two cycles later, with the product: `negative` subtracts it, `keep` = 0 starts a new sum.
    """

    def __init__(self, module, magnitudes, flags):
        self.magnitude, self.following = magnitudes[:WEIGHT_BITS], magnitudes[WEIGHT_BITS:]
        self.negative, self.keep = flags
        self.four_or_more, self.eight = Signal(reset_less=True), Signal(reset_less=True)
        module.sync += [
            self.four_or_more.eq(self.magnitude[2] | self.magnitude[3]),
            self.eight.eq(self.magnitude[3]),
        ]


class ECP5GroupArray(GroupArray):
    """GroupArray with `multipliers` of its pieces, in MULT18X18D, and all other MACs in LUTs.

    `pieces` lists the multipliers, in order of lanes, as (first lane, first column, instance).
    """

    spread = staticmethod(spread)

    def __init__(self, geometry: Geometry, multipliers: int):
        self.multipliers = multipliers
        self.pieces: list[tuple[int, int, Instance]] = []
        GroupArray.__init__(self, geometry)

    def add_cells(self, operands: list[Operands]):
        lanes, columns = self.geometry.lanes, self.geometry.group_columns
        weights: list = []
        for number, here in enumerate(operands):
            weights.append(self.weights_of(here, weights[-1] if number % 2 else None))
        totals = [[Signal(self.geometry.accumulator_bits, reset_less=True) for _ in range(lanes)] for _ in operands]
        for sums, lane_totals in zip(self.columns, totals, strict=True):
            self.comb += sums.eq(Cat(*lane_totals))
        results: dict = {}  # of multipliers, by lane and column
        pieces = list(product(range(0, lanes, 2), range(0, columns - 1, 2)))
        # Evenly over as few quarters of the lanes as can have them: multipliers lie in rows of the device.
        quarters = -(-4 * self.multipliers // max(1, len(pieces)))
        pieces = pieces[: quarters * len(pieces) // 4]
        count = min(self.multipliers, len(pieces))
        chosen = [
            piece
            for number, piece in enumerate(pieces, 1)
            if number * count // len(pieces) > (number - 1) * count // len(pieces)
        ]
        for lane, column in chosen:
            fields = self.multiply_piece(operands[column], weights[column][lane // SECTOR], lane, column)
            results |= {
                (lane + row, column + side): result
                for (row, side), result in zip(product((0, 1), repeat=2), fields, strict=True)
            }
        chain = None
        for lane, column in product(range(lanes), range(columns)):
            weight, result = weights[column][lane // SECTOR], results.get((lane, column))
            halves = self.geometry.accumulator_bits + (1 if result is not None else MULTIPLY_HALVES)
            if chain is None or len(chain.halves) + halves > CHAIN_HALVES:
                self.submodules += (chain := CarryChain())
            if result is None:
                result = self.multiply(chain, operands[column], weight, lane)
            else:
                chain.add(CARRY_A, weight.negative)
            self.accumulate(chain, totals[column][lane], weight, result)

    def weights_of(self, here: Operands, before: list[Weight] | None) -> list[Weight]:
        """This column's weight, for each sector. `before` is the column's before, if they are one piece."""
        lanes = self.geometry.lanes
        if before is None:
            early = []
            for first in range(0, min(len(here.weights), 2 * WEIGHT_BITS), WEIGHT_BITS):
                weight = here.weights[first : first + WEIGHT_BITS]
                magnitude = Signal(WEIGHT_BITS)
                self.comb += magnitude.eq(Mux(here.valid, Mux(weight[-1], -weight, weight), 0))
                early.append(magnitude)
            magnitudes = spread(self, Cat(*early), self.LEAD, lanes)
        else:
            magnitudes = [(None, delay(self, weight.following, 1)) for weight in before]
        flags = Signal(2)  # negative, keep
        self.comb += flags.eq(Cat(here.valid & here.weights[WEIGHT_BITS - 1], ~(here.valid & here.fresh)))
        flags = spread(self, flags, self.LEAD + 2, lanes)
        return [Weight(self, own, signs) for (_, own), (_, signs) in zip(magnitudes, flags, strict=True)]

    def multiply_piece(self, operands: Operands, weight: Weight, lane: int, column: int):
        """Products of two lanes, each by this column's weight and by the next one's, each in its column's cycle."""
        low, high = nibble(operands.activations, lane), nibble(operands.activations, lane + 1)
        instance, fields = multiplier(
            [*low, *[0] * (2 * PRODUCT_BITS - ACTIVATION_BITS), *high],
            [*weight.magnitude, *[0] * (PRODUCT_BITS - WEIGHT_BITS), *weight.following],
        )
        self.specials += instance
        self.pieces.append((lane, column, instance))
        return [
            delay(self, fields[PRODUCT_BITS * number : PRODUCT_BITS * (number + 1)], number % 2) for number in range(4)
        ]

    def multiply(self, chain: CarryChain, operands: Operands, weight: Weight, lane: int):
        """Product of one lane. Its last bit is a carry: `accumulate` must follow in the chain."""
        bits, held = nibble(operands.activations, lane), nibble(operands.activations_held, lane)
        one, two = weight.magnitude[0], weight.magnitude[1]
        chain.add(SEPARATE)
        low = delay(
            self,
            Cat(
                chain.add(ADD_FIRST_ROW, bits[0], one),
                *[chain.add(ADD_ROWS, bits[k], one, bits[k - 1], two) for k in range(1, ACTIVATION_BITS)],
                chain.add(ADD_SECOND_ROW, c=bits[-1], d=two),
                chain.add(SEPARATE),
            ),
            1,
        )
        high = [
            chain.add(ADD_HIGH, bit, weight.four_or_more, low[k], weight.eight) for k, bit in enumerate(held, start=2)
        ]
        carry = chain.add(CARRY_A, weight.negative)
        return delay(self, Cat(low[:2], *high, carry), 1)

    def accumulate(self, chain: CarryChain, total, weight: Weight, result):
        """Adds `result` to `total`, or subtracts it. The half before it in the chain must be CARRY_A of `negative`."""
        low = zip(total[: len(result)], result, strict=True)
        sums = [chain.add(ACCUMULATE, old, weight.keep, new, weight.negative) for old, new in low]
        sums += [chain.add(ACCUMULATE_SIGN, old, weight.keep, d=weight.negative) for old in total[len(result) :]]
        self.sync += total.eq(Cat(*sums))
