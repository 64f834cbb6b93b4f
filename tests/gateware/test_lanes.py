"""Forms of the requantizer's lanes against the portable one: the same nibbles and values in the same cycles,
for random inputs, whether an entry could be one or not. At most one source has its turn in a cycle. Most of the time
sums and distances are small, so that the last decision of a search depends on every bit.
"""

import random
from functools import reduce
from operator import or_

import pytest

pytest.importorskip("litex")

from helpers.forms_compared import differing_cycles
from helpers.tiers import hardware
from migen import Array, Cat, If, Module, Replicate, Signal

from sentei.gateware.technologies import ecp5_lanes
from sentei.gateware.technologies.ecp5_lanes import ECP5Lanes
from sentei.gateware.technologies.lanes import Lanes
from sentei.gateware.technologies.packed import SelectingLanes
from sentei.overlay.geometry import ACTIVATION_BITS, Geometry

pytestmark = hardware

CYCLES = 50_000
ENTRY = ("constant", "distance", "carries", "late_odd", "late_even", "low", "span", "flip")
INPUTS = ("join", "by_nibble", "partials", "sum_lanes", *ENTRY, "wide", "residuals", "use_residual")


class Comparison(Module):
    """`differs` has a bit for each of `kinds`: whether its outputs are not those of Lanes in this cycle."""

    def __init__(self, geometry: Geometry, kinds: list[type[Lanes]], seed: int):
        groups, columns = geometry.groups_per_requantizer, geometry.group_columns
        sources = [Signal(geometry.accumulator_bits * geometry.lanes) for _ in range(groups * columns)]
        sources += [Signal(ACTIVATION_BITS * geometry.lanes) for _ in range(groups)]
        self.submodules.portable = portable = Lanes(geometry, sources)
        forms = [kind(geometry, sources) for kind in kinds]
        self.submodules += forms
        self.differs = Signal(len(forms))

        # # #

        targets = [*sources, *(getattr(portable, name) for name in INPUTS)]
        rng = random.Random(seed)
        words = [Signal(32, reset=rng.randrange(1, 1 << 32)) for _ in range(2 + sum(map(len, targets)) // 32)]
        for word in words:  # xorshift32
            a, b = Signal(32), Signal(32)
            self.comb += [a.eq(word ^ (word << 13)), b.eq(a ^ (a >> 17))]
            self.sync += word.eq(b ^ (b << 5))
        bits = Signal(32 * len(words))
        self.comb += bits.eq(Cat(*words))
        number = Signal(9)
        small = Signal()
        self.comb += small.eq(number[-2:] != 0)
        self.sync += number.eq(number + 1)
        masks = {id(portable.join): 0, id(portable.constant): 31, id(portable.distance): 31}
        for sums in sources[:-groups]:
            masks[id(sums)] = sum(15 << geometry.accumulator_bits * lane for lane in range(geometry.lanes))
        begin = 32
        for target in targets:
            drawn = bits[begin : begin + len(target)]
            begin += len(target)
            mask = masks.get(id(target), (1 << len(target)) - 1)
            self.comb += target.eq(drawn & (Replicate(~small, len(target)) | mask))
        turns = Signal(len(sources))
        turn = Signal(max=2 * len(sources))
        self.comb += [turn.eq(bits), If(turn < len(sources), Array(turns)[turn].eq(1))]
        for form in (portable, *forms):
            self.comb += form.turns.eq(turns)
        for form in forms:
            self.comb += [getattr(form, name).eq(getattr(portable, name)) for name in INPUTS]
        for index, form in enumerate(forms):
            pairs = [(portable.nibbles, form.nibbles), (portable.values, form.values)]
            self.comb += self.differs[index].eq(reduce(or_, [ours != theirs for ours, theirs in pairs]))


class Wrong(ECP5Lanes):
    """Its last step takes the distance up for the distance down."""

    def search_last(self, rest, up, down, carries, reached):
        return ECP5Lanes.search_last(self, rest, down, up, carries, reached)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(lanes=4),
        Geometry(lanes=8, columns=16, groups=2, requantizers=2, accumulator_bits=14, wide_bits=20, search_bits=17),
        Geometry(lanes=4, columns=2, groups=2, requantizers=1, accumulator_bits=12, wide_bits=16, search_bits=12),
    ],
    ids=["sixteen-columns", "eight-columns", "two-columns"],
)
def test_other_forms_of_lanes_equal_the_portable_ones(geometry, request):
    name = f"lanes-{request.node.callspec.id}"
    kinds = [ECP5Lanes, SelectingLanes, Wrong]
    vendor, selecting, wrong = differing_cycles(Comparison(geometry, kinds, 1), name, CYCLES)
    assert not vendor and not selecting
    assert wrong, "the comparison must notice a wrong step"


def test_a_lookup_has_the_bits_of_its_function():
    assert ecp5_lanes.TAKE == 0xF888
    assert ecp5_lanes.CHOOSE == 0xCACA
