"""Small helpers that several modules share."""

from migen import *
from migen.fhdl.tools import list_targets


def delay(module, signal, cycles):
    """`signal` as it was `cycles` clock cycles ago; adds the registers to `module`."""
    for _ in range(cycles):
        register = Signal((len(signal), getattr(signal, "signed", False)), reset_less=True)
        module.sync += register.eq(signal)
        signal = register
    return signal


def delay_valid(module, signal, cycles):
    """Like `delay`, for a flag that must be 0 after reset."""
    for _ in range(cycles):
        register = Signal()
        module.sync += register.eq(signal)
        signal = register
    return signal


def spread(module, signal, cycles, users):
    """`signal` as it was `cycles` clock cycles ago, for `users` places: (range of users, their copy) pairs.

    This form has one copy for all. A vendor's form has more where wires across the device are slow.
    """
    return [(range(users), delay(module, signal, cycles))]


def nibble(word, index):
    """Lane `index` of an activation word."""
    return word[4 * index : 4 * index + 4]


class OwnReset(ResetInserter):
    """Gives a module a `reset` of its own; that of its clock domain it has no more."""

    def transform_fragment_insert(self, i, f, to_insert):
        ResetInserter.transform_fragment_insert(self, i, f, to_insert)
        for _, domain in to_insert:
            for register in list_targets(f.sync[domain]):
                register.reset_less = True
