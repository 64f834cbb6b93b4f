"""Other forms of the array, vendors' and the one that simulates fast, against the portable one: the same sums in the
same cycles.

Small arrays are proved equal by yosys for all sequences of steps. Then both forms stand in one Verilated module that
makes its own stimulus: every input of a 2x2 piece, each as a sum of its own, and random steps with random pauses, new
sums and maxima.
"""

import random
from dataclasses import replace
from functools import reduce
from operator import or_

import pytest

pytest.importorskip("litex")

from helpers.forms_compared import differing_cycles, empty_folder, multiplier_model
from helpers.tiers import hardware
from migen import Cat, If, Instance, Module, Mux, Replicate, Signal
from migen.fhdl import verilog

from sentei.gateware.common import delay
from sentei.gateware.technologies import ecp5
from sentei.gateware.technologies.array import GroupArray
from sentei.gateware.technologies.ecp5 import ECP5GroupArray
from sentei.gateware.technologies.packed import PackedGroupArray
from sentei.gateware.technologies.technology import ECP5_85F, PORTABLE
from sentei.gateware.technologies.xilinx import XilinxGroupArray
from sentei.gateware.tools.yowasp import yosys
from sentei.overlay.errors import BuildError
from sentei.overlay.geometry import ACTIVATION_BITS, WEIGHT_BITS, Geometry

pytestmark = hardware

PIECE_INPUTS = 1 << 2 * (ACTIVATION_BITS + WEIGHT_BITS)
PIECE = Geometry(lanes=4, columns=2, groups=1, requantizers=1)
COLUMN = Geometry(lanes=4, columns=2, groups=2, requantizers=1, accumulator_bits=13)


class Comparison(Module):
    """`differs` has a bit for each of `forms`: whether its outputs are not those of GroupArray in this cycle."""

    def __init__(self, geometry: Geometry, forms: list[GroupArray], seed: int, exhaustive: bool):
        self.submodules.portable = portable = GroupArray(geometry)
        self.submodules += forms
        self.differs = Signal(len(forms))

        # # #

        sizes = [len(portable.activations), len(portable.weights), 16]
        rng = random.Random(seed)
        words = [Signal(32, reset=rng.randrange(1, 1 << 32)) for _ in range(-(-sum(sizes) // 32))]
        for word in words:  # xorshift32
            a, b = Signal(32), Signal(32)
            self.comb += [a.eq(word ^ (word << 13)), b.eq(a ^ (a >> 17))]
            self.sync += word.eq(b ^ (b << 5))
        bits = Signal(sum(sizes))
        self.comb += bits.eq(Cat(*words))
        activations, weights, choice = (bits[sum(sizes[:k]) : sum(sizes[: k + 1])] for k in range(3))
        number = Signal(max=PIECE_INPUTS + 1, reset=0 if exhaustive else PIECE_INPUTS)
        ordered = Signal()
        self.comb += ordered.eq(number != PIECE_INPUTS)
        self.sync += If(ordered, number.eq(number + 1))
        pair = Cat(number[: 2 * ACTIVATION_BITS])
        vector = Signal(sizes[0])
        late = delay(self, vector, GroupArray.LEAD)
        self.comb += If(ordered, vector.eq(Replicate(pair, geometry.lanes // 2))).Else(
            vector.eq(Mux(choice[0:3] == 0, Replicate(1, sizes[0]), activations))
        )
        for form in (portable, *forms):
            self.comb += [
                form.activations.eq(late),
                If(
                    ordered,
                    form.weights.eq(number[2 * ACTIVATION_BITS :]),
                    form.valid.eq(1),
                    form.fresh.eq(1),
                ).Else(
                    form.weights.eq(Mux(choice[3:6] == 0, Replicate(0b1000, geometry.group_columns), weights)),
                    form.valid.eq(choice[6:8] != 0),
                    form.fresh.eq(choice[8:12] == 0),
                    form.maximum.eq(choice[12:14] == 0),
                ),
            ]
        for index, form in enumerate(forms):
            pairs = zip([*portable.columns, portable.maxima], [*form.columns, form.maxima], strict=True)
            self.comb += self.differs[index].eq(reduce(or_, [ours != theirs for ours, theirs in pairs]))


def prove_equal(form: GroupArray, name: str, vendor: str = "ecp5"):
    """yosys proves, by induction over time, that the sums of `form` are GroupArray's whatever the steps; or fails."""
    directory = empty_folder(name)
    (directory / "multiplier.v").write_text(multiplier_model())
    for module, array in (("portable", GroupArray(form.geometry)), ("vendor", form)):
        ports = {array.activations, array.weights, array.valid, array.fresh, array.maximum, *array.columns}
        (directory / f"{module}.v").write_text(str(verilog.convert(array, ios=ports, name=module)))
    commands = [
        "read_verilog portable.v vendor.v multiplier.v",
        f"read_verilog -overwrite -I/share/{vendor} +/{vendor}/cells_sim.v",  # /share is the package's
        "hierarchy -check; proc; flatten; opt -full",
        "miter -equiv -flatten portable vendor both; hierarchy -top both; opt -full",
        "sat -verify -tempinduct -maxsteps 16 -set in_sys_rst 0 -prove trigger 0 both",
    ]
    yosys("; ".join(commands), directory)


@pytest.fixture
def wrong(monkeypatch):
    """wrong(geometry): an array in LUTs whose accumulators do not subtract."""

    def build(geometry: Geometry) -> GroupArray:
        with monkeypatch.context() as patch:
            patch.setattr(ecp5, "ACCUMULATE", ecp5.adder(lambda a, b: a & b, lambda a, b, c, d: c))
            form = ECP5GroupArray(geometry, 0)
            form.finalize()
        return form

    return build


@pytest.mark.parametrize(("geometry", "multipliers"), [(PIECE, 0), (PIECE, 1), (COLUMN, 0)])
def test_sums_are_proved_to_equal_the_portable_form_s(geometry, multipliers):
    prove_equal(ECP5GroupArray(geometry, multipliers), f"proof-{geometry.groups}-{multipliers}")


@pytest.mark.parametrize("geometry", [PIECE, COLUMN], ids=str)
def test_sums_in_a_xilinx_device_s_luts_are_proved_to_equal_the_portable_form_s(geometry):
    prove_equal(XilinxGroupArray(geometry, 0), f"proof-xilinx-{geometry.groups}", "xilinx")


@pytest.mark.parametrize("bits", [13, 16, 24])
def test_packed_sums_stay_apart_wherever_their_fields_end(bits):
    """Also where the last word is not full."""
    geometry = replace(PIECE, lanes=8, accumulator_bits=bits)
    forms = [PackedGroupArray(geometry)]
    assert differing_cycles(Comparison(geometry, forms, 5, exhaustive=False), f"packed-{bits}", 20_000) == [[]]


def test_a_proof_fails_for_a_wrong_cell(wrong):
    with pytest.raises(BuildError, match="proof did fail"):
        prove_equal(wrong(PIECE), "proof-wrong")


def test_a_piece_equals_the_portable_form_for_every_input_and_for_random_steps(wrong):
    forms = [ECP5GroupArray(PIECE, 1), ECP5GroupArray(PIECE, 2), PackedGroupArray(PIECE), wrong(PIECE)]
    *right, faulty = differing_cycles(Comparison(PIECE, forms, 1, exhaustive=True), "piece", PIECE_INPUTS + 100_000)
    assert right == [[], [], []]
    assert faulty and faulty[0] < PIECE_INPUTS, "the comparison must notice a wrong cell"


def test_a_xilinx_device_s_cells_equal_the_portable_form_for_every_input_and_for_random_steps():
    """A DSP48E1 from the first sums on: before, its register shows half the range of a sum."""
    forms = [XilinxGroupArray(PIECE, multipliers) for multipliers in (4, 3, 0)]
    comparison = Comparison(PIECE, forms, 1, exhaustive=True)
    found = differing_cycles(comparison, "xilinx", PIECE_INPUTS + 100_000, ("xilinx",))
    before = list(range(GroupArray.LEAD + GroupArray.LATENCY + PIECE.group_columns - 1))
    assert found == [before, before, []]


def test_a_whole_group_equals_the_portable_form_for_random_steps():
    geometry = Geometry()
    forms = [ECP5_85F.group_array(geometry), PackedGroupArray(geometry)]
    differences = differing_cycles(Comparison(geometry, forms, 3, exhaustive=False), "group", 10_000)
    assert differences == [[], []]


def instances(form: GroupArray) -> dict[str, int]:
    kinds = [special.of for special in form.get_fragment().specials if isinstance(special, Instance)]
    return {kind: kinds.count(kind) for kind in set(kinds)}


def test_cells_cost_what_their_description_says():
    assert instances(ECP5GroupArray(PIECE, 2)) == {"MULT18X18D": 2, "CCU2C": 8 * 17 // 2, "TRELLIS_FF": 14}
    assert instances(ECP5GroupArray(PIECE, 0)) == {"CCU2C": 8 * 28 // 2, "TRELLIS_FF": 14}
    form = ECP5_85F.group_array(Geometry())
    assert instances(form) == {
        "MULT18X18D": 39,
        "CCU2C": (4 * 39 * 17 + (256 - 4 * 39) * 28) // 2,
        "TRELLIS_FF": 32 // ecp5.SECTOR * (4 * 8 + 8 * 2 + 2),  # pieces' magnitudes, columns' flags, the maxima's
    }
    assert instances(XilinxGroupArray(PIECE, 0)) == {"LUT6": 8 * 8, "LUT6_2": 8 * (2 + 16), "CARRY4": 8 * 4}
    assert instances(XilinxGroupArray(PIECE, 4)) == {"DSP48E1": 4}
    assert instances(PORTABLE.group_array(PIECE)) == {}


def test_a_carry_chain_refuses_an_operand_that_its_generate_input_cannot_see():
    with pytest.raises(ValueError, match="must be 0 where c = d = 0"):
        ecp5.adder(lambda a, b: a, lambda a, b, c, d: b)
