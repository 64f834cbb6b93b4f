"""Which part of a random campaign runs when: some seeds in `make test`, all of them in `make test-long`.

`long` marks what only a night has time for. `hardware` marks what builds a simulator, firmware or Verilog, or takes
long: `make check` leaves it out. Tests that take the fixture `overlay_path` are marked by themselves.
"""

from collections.abc import Mapping

import pytest

long = pytest.mark.long
hardware = pytest.mark.hardware


def seeds(test: int, night: int) -> list:
    """The seeds 0 to `night` - 1, as parameters of a test; those from `test` on are long."""
    return [seed if seed < test else pytest.param(seed, marks=long) for seed in range(night)]


def campaign(counts: Mapping) -> list:
    """Parameters (name, seed), or (*name, seed) of a tuple, of each name's `seeds(*counts[name])`."""
    cases = []
    for name, (test, night) in counts.items():
        words = name if isinstance(name, tuple) else (name,)
        for seed in range(night):
            marks = long if seed >= test else ()
            cases.append(pytest.param(*words, seed, marks=marks, id="-".join(map(str, (*words, seed)))))
    return cases
