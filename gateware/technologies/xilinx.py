"""The array's cells on a Xilinx 7 series: two MACs in each DSP48E1, accumulators included; the others in LUTs.

*In a DSP48E1* two lanes of a column share its weight, so two products come from one multiplication, and two sums from
one addition:

    (a0 + a1 * 2**bits) * w  =  a0 w + a1 w * 2**bits
    P                        =  | ... | sum 1 | sum 0 + 2**(bits - 1) |

The lower sum begins at half its range: it never gets negative, so it borrows nothing from the upper one, and its
highest bit is the sum's, inverted.

    cycle            t           t+1      t+2     t+3
                  operands  -->  A, B --> M   --> P         registers of the DSP48E1; CEP and OPMODE say what to add

*In LUTs* a product is two partial products, by the weight's lower half (0 to 3) and by its upper one (-2 to 1). Each of
their bits is a function of 6 bits, a LUT. The accumulator adds three numbers in one carry chain: the sum, if it is not
to begin anew, and both partial products. A LUT of its chain first adds the three bits, then its neighbour's carry:

    O5 = majority of the three     O6 = their XOR ^ O5 of the bit below     chain: O6 + O5 of the bit below

Cost: 10 LUTs a product, 1 a bit of the accumulator: 26 a MAC.
"""

from itertools import islice, product

from migen import *

from sentei.gateware.common import delay, delay_valid, nibble
from sentei.gateware.technologies.array import GroupArray, Operands
from sentei.overlay.geometry import ACTIVATION_BITS, WEIGHT_BITS, Geometry

A_BITS, B_BITS, P_BITS = 25, 18, 48
PORT_A_BITS = 30  # the highest ones do not reach the multiplier
ADD_TO_P, ADD_TO_C = 0b010_0101, 0b011_0101  # OPMODE: P or C, plus the product
LUT_INPUTS = 6
HALF_BITS = WEIGHT_BITS // 2
PARTIAL_BITS = ACTIVATION_BITS + HALF_BITS


def lut(*functions) -> int:
    """INIT of a LUT6 that computes function(inputs); of a LUT6_2 for two functions of 5 inputs: of O5, of O6."""
    inputs = LUT_INPUTS + 1 - len(functions)
    values = product((0, 1), repeat=inputs)
    rows = [tuple(reversed(row)) for row in values]
    return sum(function(row) << index for index, (function, row) in enumerate(product(functions, rows)))


def times(activation: tuple[int, ...], half: int, bit: int) -> int:
    """A bit of the product of an activation, its bits given, and half a weight."""
    return sum(value << index for index, value in enumerate(activation)) * half >> bit & 1


def lower(low: int, high: int) -> int:
    return low + 2 * high


def upper(low: int, high: int) -> int:
    return low - 2 * high


def add_three(row: tuple[int, ...]) -> int:
    total, keep, low, high, carry = row
    return total & keep ^ low ^ high ^ carry


def majority(row: tuple[int, ...]) -> int:
    total, keep, low, high, _ = row
    return int((total & keep) + low + high > 1)


class XilinxGroupArray(GroupArray):
    """GroupArray whose first `multipliers` pairs of lanes, row by row, are in DSP48E1s, and all other MACs in LUTs."""

    def __init__(self, geometry: Geometry, multipliers: int):
        bits = geometry.accumulator_bits
        if bits + ACTIVATION_BITS >= A_BITS or 2 * bits > P_BITS:
            raise ValueError(f"two sums of {bits} bits do not fit into a DSP48E1")
        self.multipliers = multipliers
        GroupArray.__init__(self, geometry)

    def add_cells(self, operands: list[Operands]):
        lanes = self.geometry.lanes
        pieces = set(islice(product(range(0, lanes, 2), range(len(operands))), self.multipliers))
        for column, (sums, here) in enumerate(zip(self.columns, operands, strict=True)):
            paired = [lane for lane in range(0, lanes, 2) if (lane, column) in pieces]  # the lowest ones
            totals = [self.multiply_and_add(here, lane) for lane in paired]
            rest = [lane for lane in range(lanes) if lane - lane % 2 not in paired]
            self.comb += sums.eq(Cat(*totals, *self.sums_in_luts(here, rest)))

    def multiply_and_add(self, operands: Operands, lane: int):
        """Sums of this lane and the next."""
        bits = self.geometry.accumulator_bits
        low, high = nibble(operands.activations, lane), nibble(operands.activations, lane + 1)
        weight = delay(self, operands.weights[:WEIGHT_BITS], self.LEAD)
        fresh = delay_valid(self, operands.fresh, self.LEAD + 1)
        result = Signal(P_BITS)
        self.specials += Instance(
            "DSP48E1",
            **{f"p_{name}REG": 0 for name in ("D", "AD", "INMODE", "ALUMODE", "CARRYIN", "CARRYINSEL")},
            **{f"p_{name}REG": 1 for name in ("A", "ACASC", "B", "BCASC", "C", "M", "OPMODE", "P")},
            **{f"i_CE{name}": 1 for name in ("A2", "B2", "C", "M", "CTRL")},
            **{f"i_CE{name}": 0 for name in ("A1", "B1", "D", "AD", "INMODE", "ALUMODE", "CARRYIN")},
            **{f"i_RST{name}": 0 for name in ("A", "B", "C", "M", "P", "D", "CTRL", "INMODE", "ALUMODE", "ALLCARRYIN")},
            i_CLK=ClockSignal(),
            i_A=Cat(low, C(0, bits - ACTIVATION_BITS), high, C(0, PORT_A_BITS - bits - ACTIVATION_BITS)),
            i_B=Cat(weight, Replicate(weight[-1], B_BITS - WEIGHT_BITS)),
            i_C=C(1 << bits - 1, P_BITS),
            i_OPMODE=Mux(fresh, C(ADD_TO_C, 7), C(ADD_TO_P, 7)),
            i_CEP=delay_valid(self, operands.valid, self.LEAD + 2),
            i_D=C(0, A_BITS),
            i_INMODE=C(0, 5),
            i_ALUMODE=C(0, 4),
            i_CARRYIN=0,
            i_CARRYINSEL=C(0, 3),
            i_ACIN=C(0, PORT_A_BITS),
            i_BCIN=C(0, B_BITS),
            i_PCIN=C(0, P_BITS),
            i_CARRYCASCIN=0,
            i_MULTSIGNIN=0,
            o_P=result,
        )
        return Cat(result[: bits - 1], ~result[bits - 1], result[bits : 2 * bits])

    def sums_in_luts(self, operands: Operands, lanes: list[int]):
        """Sums of these lanes."""
        weight, valid, fresh = self.held(operands)
        valid, keep = delay_valid(self, valid, 1), Signal(reset_less=True)
        self.sync += keep.eq(~fresh)
        totals = []
        for lane in lanes:
            activation = nibble(operands.activations_held, lane)
            low = delay(self, self.partial_product(activation, weight[:HALF_BITS], lower), 1)
            high = delay(self, self.partial_product(activation, weight[HALF_BITS:], upper), 1)
            total = Signal(self.geometry.accumulator_bits, reset_less=True)
            self.sync += If(valid, total.eq(self.sum_of_three(total, keep, low, high)))
            totals.append(total)
        return totals

    def partial_product(self, activation, half, value):
        """Product of an activation and half a weight, whose value is `value` of its bits."""
        result = Signal(PARTIAL_BITS)

        def of_two(bit: int):
            return lambda row: times(row[:2], value(*row[2:4]), bit)

        def of_all(bit: int):
            return lambda row: times(row[:4], value(*row[4:]), bit)

        self.specials += Instance(
            "LUT6_2",
            name="pair",  # or its name would be another LUT6's
            p_INIT=C(lut(of_two(0), of_two(1)), 1 << LUT_INPUTS),
            o_O5=result[0],
            o_O6=result[1],
            i_I0=activation[0],
            i_I1=activation[1],
            i_I2=half[0],
            i_I3=half[1],
            i_I4=0,
            i_I5=1,
        )
        for bit in range(2, PARTIAL_BITS):
            inputs = {f"i_I{index}": signal for index, signal in enumerate([*activation, *half])}
            self.specials += Instance("LUT6", p_INIT=C(lut(of_all(bit)), 1 << LUT_INPUTS), o_O=result[bit], **inputs)
        return result

    def sum_of_three(self, total, keep, low, high):
        """(keep ? total : 0) + low + 4 * high, where low is unsigned and high is signed."""
        bits = len(total)
        lows = [*low, *[0] * (bits - len(low))]
        highs = [*[0] * HALF_BITS, *high, *[high[-1]] * (bits - HALF_BITS - len(high))]
        sums, carries = [], [C(0, 1)]
        for values in zip(total, [keep] * bits, lows, highs, strict=True):
            inputs = {f"i_I{index}": signal for index, signal in enumerate([*values, carries[-1], 1])}
            add, carry = Signal(), Signal()
            self.specials += Instance(
                "LUT6_2",
                name="pair",
                p_INIT=C(lut(majority, add_three), 1 << LUT_INPUTS),
                o_O5=carry,
                o_O6=add,
                **inputs,
            )
            sums.append(add)
            carries.append(carry)
        result, carry = [], C(0, 1)
        for begin in range(0, bits, 4):
            part, carry_out = Signal(4), Signal(4)
            none = [0] * (begin + 4 - min(begin + 4, bits))
            self.specials += Instance(
                "CARRY4",
                i_CI=carry,
                i_CYINIT=0,
                i_S=Cat(*sums[begin : begin + 4], *none),
                i_DI=Cat(*carries[begin : min(begin + 4, bits)], *none),
                o_O=part,
                o_CO=carry_out,
            )
            carry = carry_out[3]
            result.append(part)
        return Cat(*result)[:bits]
