"""The graph's input: which integers it holds, and how a float of the model's becomes one of them.

What the graph itself says comes first: a Quant node, with preprocessing before it or not, or an annotation of FINN's. A
user says the rest: `uint8`, or `int8:1/128` with what one step means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from sentei.host.arithmetic.float_chain import Chain, Clamp, Divide, Leak, Offset, Operation, Quantizer, Scale, Start
from sentei.host.errors import InexactModel, UnsupportedBitWidth
from sentei.host.network.ir import Preprocessing
from sentei.overlay.errors import InputError

MOST_BITS = 8


@dataclass(frozen=True)
class InputType:
    """Integers of so many bits, each worth `scale`."""

    bits: int
    signed: bool
    scale: float


def input_type(text: str) -> InputType:
    """What `uint8`, `int4:0.25` or `int8:1/128` says. InputError if it says nothing."""
    match = re.fullmatch(r"(u?)int(\d+)(?::([\d.e+-]+)(?:/([\d.e+-]+))?)?", text.strip().lower())
    try:
        if match is None:
            raise ValueError
        scale = float(Fraction(match[3] or 1) / Fraction(match[4] or 1))
        if not scale > 0:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise InputError(f"the input must be given as uint8, int8 or int8:1/128, not {text!r}") from None
    bits = int(match[2])
    if not 1 <= bits <= MOST_BITS:
        raise UnsupportedBitWidth(f"the input must have 1 to {MOST_BITS} bits, not {bits}: quantize it to {MOST_BITS}")
    return InputType(bits, not match[1], scale)


def preprocessing(
    operations: tuple[Operation, ...], quantizer: Quantizer, channels: int, node: str
) -> Preprocessing | None:
    """Which floats become the quantizer's levels, after `operations`; None if level l is the float l * scale."""
    if not operations:
        return None
    step, first = np.full(channels, float(quantizer.scale)), np.zeros(channels)
    for operation in reversed(operations):
        if isinstance(operation, Scale):
            step, first = step / operation.factor, first / operation.factor
        elif isinstance(operation, Divide):
            step, first = step * operation.divisor, first * operation.divisor
        elif isinstance(operation, Offset):
            first = first - operation.offset
        elif isinstance(operation, Leak):
            raise InexactModel(f"{node}: a LeakyRelu comes before it; quantize the input first")
        elif not isinstance(operation, Clamp):
            raise TypeError(operation)
    if not (np.isfinite(step) & np.isfinite(first)).all():
        raise InexactModel(f"{node}: the preprocessing before it multiplies by 0 or overflows: use usual constants")
    found = Preprocessing.of_steps(range(quantizer.low, quantizer.high + 1), step, first)
    levels = np.broadcast_to(np.arange(quantizer.low, quantizer.high + 1), found.table.shape)
    ones = np.ones(channels)
    chain = Chain(Start(ones, 0 * ones, 0 * ones), operations)
    reached = quantizer(chain(found.table, np.zeros_like(found.table))) == levels
    if (reached.sum(1) < 2).any():
        raise InexactModel(
            f"{node}: the preprocessing before it leaves less than two levels of some channel: quantize the input over "
            "the range that it has"
        )
    return replace(found, reached=reached)
