"""What is meant, sum by sum: the integer requantization equals the chain in fractions for every accumulator and
residual, and float32 differs from it for no more sums than are counted."""

import random
from fractions import Fraction

import numpy as np
import pytest
from helpers.tiers import seeds
from qonnx.custom_op.general.intquant import resolve_rounding_mode

from sentei.host.arithmetic.float_chain import (
    AddTensor,
    Chain,
    Clamp,
    Divide,
    Offset,
    Quantizer,
    Scale,
    start_of_sum,
    start_of_tensor,
)
from sentei.host.arithmetic.real_thresholds import requantize_as_meant
from sentei.host.network.ir import Requantize, Shape, Tensor

MODES = ("ROUND", "CEIL", "FLOOR", "HALF_UP", "HALF_DOWN", "UP", "DOWN")


def decided(spec: Requantize, signed: bool, channel: int, accumulator: int, code: int) -> int:
    """A `Requantize`, as its docstring says."""
    reached = int((accumulator >= spec.thresholds[channel]).sum())
    index = 15 - reached if spec.descending[channel] else reached - 16
    limited = min(max(index + code, 0), int(spec.span[channel]))
    return (-8 if signed else 0) + int(spec.low[channel]) + limited


def random_chain(rng: random.Random, channels: int, residual: Tensor | None, scale: float, powers: bool) -> Chain:
    def numbers(low, high):
        if powers:
            return np.array([2.0 ** rng.randint(-4, 0) for _ in range(channels)], np.float32)
        return np.array([rng.uniform(low, high) for _ in range(channels)], np.float32)

    unit = numbers(0.01, 0.2)
    bias = None
    if rng.random() < 0.5:
        step = 0.125 if powers else 1e-3
        bias = np.array([rng.randint(-20, 20) * step for _ in range(channels)], np.float32)
    size = np.full(channels, 500)
    chain = Chain(start_of_sum(rng.choice([0.5, 0.25] if powers else [0.37, 0.113]), unit, size, size, bias))
    if residual is None:
        for _ in range(rng.randint(0, 3)):
            kind = rng.choice([Scale, Divide, Offset, Clamp])
            if kind is Clamp:
                chain = chain.then(Clamp(np.float32(0), np.float32(np.inf)))
            elif kind is Offset:
                chain = chain.then(Offset(np.array([rng.uniform(-1, 1) for _ in range(channels)], np.float32)))
            else:
                chain = chain.then(kind(numbers(0.3, 2) * np.float32(rng.choice([1, 1, -1]))))
        return chain
    if rng.random() < 0.7 and not powers:
        chain = chain.then(Scale(numbers(0.3, 2)), Offset(numbers(-1, 1)))
    return chain.then(AddTensor(residual.name, Chain(start_of_tensor(scale, channels))))


@pytest.mark.parametrize("seed", seeds(60, 2000))
def test_every_sum_is_decided_as_it_is_meant_and_those_that_float32_decides_otherwise_are_counted(seed):
    rng = random.Random(seed)
    channels, powers, signed = 3, rng.random() < 0.3, rng.random() < 0.5
    scale = rng.choice([0.5, 0.25]) if powers else rng.uniform(0.1, 0.6)
    scale = float(np.float32(scale))
    residual = Tensor("added", Shape(channels, 1, 1), rng.choice([2, 4]), rng.random() < 0.5, scale)
    residual = residual if rng.random() < 0.4 else None
    mode = "ROUND" if residual else rng.choice(MODES)
    quantizer = Quantizer(np.float32(scale), 4, signed, rng.random() < 0.3, resolve_rounding_mode(mode))
    chain = random_chain(rng, channels, residual, scale, powers)
    low, high = np.full(channels, -rng.randint(1, 300)), np.full(channels, rng.randint(1, 300))
    pieces, doubt = requantize_as_meant("test", chain, quantizer, low, high, residual)
    codes = range(residual.low, residual.high + 1) if residual else range(1)
    bias = 8 if residual is not None and residual.signed else 0
    differing = ties = 0
    for channel in range(channels):
        for integer in codes:
            code = integer + bias if residual else 8
            sums = np.arange(low[channel], high[channel] + 1)
            everywhere = np.broadcast_to(sums, (channels, len(sums)))
            by_float = quantizer(chain(everywhere, np.full(everywhere.shape, integer)))[channel]
            for accumulator, floated in zip(sums, by_float, strict=True):
                number = chain.exact(int(accumulator), channel, integer)
                position = number / Fraction(float(quantizer.scale))
                meant = quantizer.exact(number, channel)
                found = sum(decided(piece.spec, signed, channel, int(accumulator), code) for piece in pieces)
                found -= sum(piece.first - (8 if signed else 0) for piece in pieces[1:])
                if found != meant:
                    assert (2 * position).denominator == 1 and position.denominator == 2, f"seed {seed}: no tie"
                    ties += 1
                differing += int(found != floated)
    counted = doubt.sums if doubt else 0
    assert ties <= (doubt.ties if doubt else 0), f"seed {seed}"
    assert differing <= counted, f"seed {seed}: {differing} of {counted}"


@pytest.mark.parametrize(
    ("position", "level"),
    [
        (Fraction(5, 2), 2),
        (Fraction(7, 2), 4),
        (Fraction(5, 2) + Fraction(1, 10**30), 3),
        (Fraction(5, 2) - Fraction(1, 10**30), 2),
        (Fraction(99), 15),
        (Fraction(-99), 0),
    ],
)
def test_the_smallest_distance_from_a_tie_decides(position, level):
    quantizer = Quantizer(np.float32(1), 4, False, False, resolve_rounding_mode("ROUND"))
    assert quantizer.exact(position, 0) == level
    assert quantizer.exact(Fraction(5, 2), 0, ties_up=True) == 3
