"""Words by the names of their fields, in and out."""

import random

from migen import Module, Signal, run_simulation

from sentei.gateware.record import fields_of, record_of
from sentei.overlay.fields import Layout
from sentei.overlay.instructions import HEADER0, HEADER1, STEP, TAP, TILE

LAYOUTS = (HEADER0, HEADER1, STEP, TILE, TAP)
SEED = 1


def random_fields(layout: Layout, rng: random.Random) -> dict[str, int]:
    """A value for each field, often an extreme one."""
    values = {}
    for field in layout.fields.values():
        half = 1 << (field.width - 1)
        low, high = (-half, half - 1) if field.signed else (0, 2 * half - 1)
        values[field.name] = rng.choice([low, high, rng.randint(low, high)])
    return values


def test_a_record_shows_the_fields_that_the_overlay_packed():
    rng = random.Random(SEED)
    for layout in LAYOUTS:
        top = Module()
        word = Signal(layout.width)
        shown, made = fields_of(top, layout, word), record_of(layout)
        top.comb += made.eq(shown)

        def bench(layout=layout, word=word, shown=shown, made=made):
            for _ in range(50):
                values = random_fields(layout, rng)
                yield word.eq(layout.pack(**values))
                yield
                found = {}
                for name in layout.fields:
                    found[name] = yield getattr(shown, name)
                assert found == values, f"seed {SEED}: {layout.name}"
                assert layout.unpack((yield made.raw_bits())) == values

        run_simulation(top, bench())
