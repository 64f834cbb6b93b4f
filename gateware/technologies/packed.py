"""An array that simulates fast: one 64-bit multiplication and addition does the MACs of several lanes.

The lanes of a column share a weight. So with their activations in fields of one number, a[0] + a[1] * 2**16 + ...,
one product has all their products, and one sum all their sums; a negative one borrows from the field above it. The
accumulators begin with half the range of a sum in every field: then each field is positive again after every addition,
and its highest bit is the sum's, inverted.
"""

from migen import *

from sentei.gateware.common import delay, delay_valid, nibble
from sentei.gateware.technologies.array import GroupArray, Operands
from sentei.gateware.technologies.lanes import Lanes
from sentei.overlay.geometry import ACTIVATION_BITS, WEIGHT_BITS

WORD = 64  # bits that the simulating machine multiplies at once


class PackedGroupArray(GroupArray):
    """GroupArray with the same ports and latencies."""

    def add_cells(self, operands: list[Operands]):
        bits = self.geometry.accumulator_bits
        lanes_a_word = WORD // bits
        numbers = range(self.geometry.lanes)
        words = []
        for first in numbers[::lanes_a_word]:
            word = Signal(WORD)
            padding = C(0, bits - ACTIVATION_BITS)
            lanes = numbers[first : first + lanes_a_word]
            self.comb += word.eq(Cat(*[Cat(nibble(self.activations, lane), padding) for lane in lanes]))
            words.append(word)
        half = sum(1 << bits * field + bits - 1 for field in range(lanes_a_word))
        for sums, here in zip(self.columns, operands, strict=True):
            weight, valid, fresh = self.held(here)
            factor = Cat(weight, Replicate(weight[-1], WORD - WEIGHT_BITS))
            words = [delay(self, word, 1) for word in words]
            products = [Signal(WORD, reset_less=True) for _ in words]
            totals = [Signal(WORD, reset=half, reset_less=True) for _ in words]
            self.sync += If(valid, *[product.eq(word * factor) for product, word in zip(products, words, strict=True)])
            valid, fresh = delay_valid(self, valid, 1), delay_valid(self, fresh, 1)
            pairs = list(zip(totals, products, strict=True))
            self.sync += If(
                valid,
                If(fresh, *[total.eq(half + product) for total, product in pairs]).Else(
                    *[total.eq(total + product) for total, product in pairs]
                ),
            )
            used = bits * lanes_a_word
            self.comb += sums.eq(Cat(*[(total ^ half)[:used] for total in totals]))


class SelectingLanes(Lanes):
    """Lanes with one register for all sources: of those in it, only the one whose turn it is is read."""

    def take(self, sources, turns):
        lanes = len(sources[0]) // self.sum_bits
        register = Signal(self.sum_bits * lanes, reset_less=True)
        statement = register.eq(0)
        for source, turn in zip(sources, turns, strict=True):
            statement = If(turn, register.eq(self.as_sums(source, lanes))).Else(statement)
        self.sync += statement
        return [register]
