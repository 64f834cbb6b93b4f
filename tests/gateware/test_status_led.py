"""What a board's LED shows."""

import pytest

pytest.importorskip("litex")

from litex.gen.sim import run_simulation

from sentei.gateware.soc.status_led import TICKS_S, StatusLED

CYCLES = 5  # of a tick
ERROR_BITS = 3


def shown(ready: int, error: int, ticks: int) -> str:
    """One character for each tick."""
    led = StatusLED(TICKS_S * CYCLES, ERROR_BITS)
    seen = []

    def watch():
        yield led.ready.eq(ready)
        yield led.error.eq(error)
        yield
        for _ in range(ticks):
            seen.append("#" if (yield led.led) else ".")
            for _ in range(CYCLES):
                yield

    run_simulation(led, watch())
    return "".join(seen)


def test_it_is_lit_until_main_memory_is_initialised():
    assert shown(0, 0, 20) == 20 * "#"


def test_it_beats_while_all_is_well():
    assert shown(1, 0, 24) == 3 * "####...."


@pytest.mark.parametrize("error", range(1, 2**ERROR_BITS))
@pytest.mark.parametrize("ready", [0, 1])
def test_it_counts_an_error(ready, error):
    once = error * "##.." + 8 * "."
    assert shown(ready, error, 2 * len(once)) == 2 * once
