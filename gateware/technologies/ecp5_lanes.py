"""The requantizer's lanes on a Lattice ECP5: gates in front of an adder move into the adder's carry chain.

Half a CCU2C computes S = P ^ carry and passes on the carry if P, else G: P is any function of A, B, C, D, and G is P at
C = D = 0. So it adds the bits y(A, B) and x(A, B, C, D) if x is 0 at C = D = 0; then G = y.

    value        y = ~sum             x = constant & plain & shifted
    search       y = rest             x = distance ^ ~reached
    the last     y = rest             x = reached ? up : ~down
    its carry    S is not used; carries (reached ? one : another)
    residual     y = n ^ flip         x = residual & ~handed out
    clamping     y = low              x = above ? span : code

Where many become one, the outputs of LUT4s go through the slices' own multiplexers (PFUMX, L6MUX21), which are free.
"""

from migen import *

from sentei.gateware.technologies.ecp5 import SEPARATE, CarryChain, adder, lut4, spread
from sentei.gateware.technologies.lanes import Lanes
from sentei.overlay.geometry import ACTIVATION_BITS

# Inputs of each are A, B, C, D.
SUBTRACT = adder(lambda a, b: 1 ^ a, lambda a, b, c, d: b & c & d)  # sum, constant, plain, shifted
SEARCH = adder(lambda a, b: a, lambda a, b, c, d: d & (b ^ c ^ 1))  # rest, distance, reached, 1
SEARCH_HIGH = adder(lambda a, b: a, lambda a, b, c, d: d & (c ^ 1))  # rest, any, reached, 1
SEARCH_LAST = adder(lambda a, b: a, lambda a, b, c, d: b if c else d)  # rest, up, reached, down inverted
SEARCH_CARRY = lut4(lambda a, b, c, d: 1 ^ (c if a else d))  # reached, any, carry if reached, carry if not
ADD_RESIDUAL = adder(lambda a, b: a ^ b, lambda a, b, c, d: c & (1 ^ d))  # reached, flip, residual, handed out
CLAMP = adder(lambda a, b: a, lambda a, b, c, d: b if d else c)  # low, span, code, above
TAKE = lut4(lambda a, b, c, d: a & b | c & d)  # sum, its turn, another sum, its turn
CHOOSE = lut4(lambda a, b, c, d: b if c else a)


def carry_chain(module, halves):
    """Sums of one chain, no carry in. `halves`: (INIT, [A, B, C, D])."""
    module.submodules += (chain := CarryChain())
    chain.add(SEPARATE)
    sums = [chain.add(init, *inputs) for init, inputs in halves]
    if len(chain.halves) % 2:
        chain.add(SEPARATE)
    return Cat(*sums)


def lookup(module, init, inputs):
    """Output of one LUT4."""
    output = Signal()
    ports = {f"i_{name}": bit for name, bit in zip("ABCD", [*inputs, 0, 0, 0], strict=False)}
    module.specials += Instance("LUT4", p_INIT=C(init, 16), o_Z=output, **ports)
    return output


def choose(module, lookups, selects):
    """One of 1, 2, 4, 8 LUT4 outputs, each used nowhere else; `selects` has its number, lowest bit first."""
    for level, select in enumerate(selects):
        chosen = []
        for low, high in zip(lookups[::2], lookups[1::2], strict=True):
            output = Signal()
            if level == 0:
                module.specials += Instance("PFUMX", i_ALUT=high, i_BLUT=low, i_C0=select, o_Z=output)
            else:
                module.specials += Instance("L6MUX21", i_D0=low, i_D1=high, i_SD=select, o_Z=output)
            chosen.append(output)
        lookups = chosen
    return lookups[0]


class ECP5Lanes(Lanes):
    """`Lanes` in ECP5 primitives: same ports, same cycles."""

    spread = staticmethod(spread)

    def take(self, sources, turns):
        """A register for four sources of sums: of the two pairs, a multiplexer chooses the one that has a turn."""
        sums = [number for number, source in enumerate(sources) if len(source) == len(sources[0])]
        if len(sums) % 4:
            return Lanes.take(self, sources, turns)
        registers = []
        for numbers in zip(*[iter(sums)] * 4, strict=True):
            four = [(sources[number], turns[number]) for number in numbers]
            second = Signal()
            self.comb += second.eq(four[2][1] | four[3][1])
            register = Signal(len(four[0][0]), reset_less=True)
            for bit in range(len(register)):
                pairs = [[(source[bit], turn) for source, turn in four[first : first + 2]] for first in (0, 2)]
                lookups = [lookup(self, TAKE, [value for pair in both for value in pair]) for both in pairs]
                self.sync += register[bit].eq(choose(self, lookups, [second]))
            registers.append(register)
        maxima = [number for number in range(len(sources)) if number not in sums]
        return [*registers, *(self.taken(sources[number], turns[number]) for number in maxima)]

    def subtract(self, total, constant, plain, shifted):
        halves = []
        for bit in range(self.wide_bits):
            term = total[min(bit, self.sum_bits - 1)]
            halves.append((SUBTRACT, [term, constant[bit], plain[bit], shifted[bit]]))
        return carry_chain(self, halves)

    def search(self, rest, distance, carries, reached):
        halves = [self.start(carries, reached)]
        for bit in range(self.bits):
            if bit < len(distance):
                halves.append((SEARCH, [rest[bit], distance[bit], reached[0], 1]))
            else:
                halves.append((SEARCH_HIGH, [rest[bit], 1, reached[0], 1]))
        return carry_chain(self, halves)[1:]

    def search_last(self, rest, up, down, carries, reached):
        inverted = Signal(len(down))
        self.comb += inverted.eq(~down)
        halves = [self.start(carries, reached)]
        for bit in range(self.bits):
            halves.append((SEARCH_LAST, [rest[bit], up[bit], reached[0], inverted[bit]]))
        return carry_chain(self, halves)[1:]

    def start(self, carries, reached):
        """The half that makes a search's carry."""
        last, before = reached[0], [reached[bit] for bit in range(1, len(reached))]
        chosen = []
        for bits in (carries[0::2], carries[1::2]):
            if before:
                lookups = [
                    lookup(self, CHOOSE, [bits[number], bits[number + 1], before[0]])
                    for number in range(0, len(bits), 2)
                ]
                chosen.append(choose(self, lookups, before[1:]))
            else:
                chosen.append(bits[0])
        return SEARCH_CARRY, [last, 1, chosen[1], chosen[0]]

    def add_residual(self, reached, flip, residual, handed_out):
        halves = [(ADD_RESIDUAL, [bit, flip, 1, 1]) for bit in reached]
        for number in range(ACTIVATION_BITS):
            halves[number][1][2:] = [residual[number], handed_out[number]]
        return carry_chain(self, [*halves, (SEPARATE, [])])

    def clamped(self, low, span, code, above):
        halves = [(CLAMP, [low[bit], span[bit], code[bit], above]) for bit in range(ACTIVATION_BITS)]
        return carry_chain(self, halves)
