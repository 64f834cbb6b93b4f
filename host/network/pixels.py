"""Which integer of a network's input a pixel of a picture becomes.

A model says which floats it takes; what these are of a pixel's 0 to 255 is a convention. They are told apart by the
range that the model's input has: the pixel itself (less 128 if half of them are negative), a fraction of 255, or from
-1 to 1.
"""

from __future__ import annotations

import numpy as np

from sentei.host.network.ir import Network

PIXELS = np.arange(256)
AS_THEY_ARE = 32  # an input that reaches so far takes pixels as they are
LARGEST_FRACTION = 1.5  # reach of one that takes fractions


def pixel_levels(network: Network) -> tuple[tuple[int, ...], ...] | None:
    """The integer of each of 256 pixel values, for each channel; None if it is the pixel itself, () if nobody knows,
    because the model's input is normalized by numbers that the model does not have."""
    tensor, found = network.tensors[network.input], network.preprocessing
    steps = 1 / tensor.scale
    if found is None and (tensor.low, tensor.high) == (0, 255) and (steps == 1 or 254.5 < steps < 256.5):
        return None
    low = tensor.low if found is None else found.low
    numbers = np.arange(low, tensor.high + 1) * tensor.scale
    table = np.broadcast_to(numbers, (tensor.shape.channels, len(numbers))) if found is None else found.table
    usable = np.ones(table.shape, bool) if found is None else found.reached
    lowest, highest = float(table[usable].min()), float(table[usable].max())
    if highest >= AS_THEY_ARE:
        floats = PIXELS - (128.0 if lowest < -AS_THEY_ARE else 0.0)
    elif found is not None or (highest <= LARGEST_FRACTION and lowest >= 0):
        floats = PIXELS / 255  # a model that normalizes its input itself takes fractions
    elif max(highest, -lowest) <= LARGEST_FRACTION:
        floats = PIXELS / 127.5 - 1
    else:
        return ()
    levels = []
    for own, reached in zip(table, usable, strict=True):
        candidates = np.flatnonzero(reached)
        nearest = np.abs(own[candidates].astype(float) - floats[:, None]).argmin(1)
        levels.append(tuple(int(level) for level in low + candidates[nearest]))
    return tuple(levels[:1] if len({*levels}) == 1 else levels)
