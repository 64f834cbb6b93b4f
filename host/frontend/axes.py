"""How a model's axes run over a map's channels, rows and columns.

A model may have a map as (N, C, H, W), (N, H, W, C), (N, C, L) or flat; the network always has channels, rows and
columns. `Axes` say, for each axis of the model but the first, which of these it runs over, outermost first:

    (N, C, H, W)  ((0,), (1,), (2,))        (N, H, W, C)      ((1,), (2,), (0,))
    flattened     ((0, 1, 2),)              flattened NHWC    ((1, 2, 0),)

Extents of 1 belong to no axis, so that they may come and go.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from sentei.host.network.ir import Shape

Axes: TypeAlias = tuple[tuple[int, ...], ...]

NCHW: Axes = ((0,), (1,), (2,))
FLAT: Axes = ((0, 1, 2),)
NHWC: Axes = ((1,), (2,), (0,))


def tidy(axes: Axes, shape: Shape) -> Axes:
    """`axes` without extents of 1."""
    return tuple(tuple(part for part in axis if shape[part] != 1) for axis in axes)


def sizes(axes: Axes, shape: Shape) -> tuple[int, ...]:
    """The model's sizes, without the batch."""
    return tuple(math.prod(shape[part] for part in axis) for axis in axes)


def regroup(axes: Axes, shape: Shape, wanted: list[int]) -> Axes | None:
    """The axes after a Reshape to `wanted` sizes; None if one of them would cut through a channel, row or column."""
    parts = [part for axis in tidy(axes, shape) for part in axis]
    found = []
    for size in wanted:
        axis: list[int] = []
        while math.prod(shape[part] for part in axis) < size and parts:
            axis.append(parts.pop(0))
        if math.prod(shape[part] for part in axis) != size:
            return None
        found.append(tuple(axis))
    return None if parts else tuple(found)


def order(axes: Axes, shape: Shape) -> tuple[int, ...]:
    """Channels (0), rows (1) and columns (2) in the order in which the model has them, outermost first."""
    parts = [part for axis in axes for part in axis]
    return tuple([part for part in range(3) if part not in parts] + parts)


def to_model(values: np.ndarray, axes: Axes, shape: Shape) -> np.ndarray:
    """(..., C, H, W) as the model has it, (..., *sizes)."""
    lead = values.ndim - 3
    moved = values.transpose(*range(lead), *(lead + part for part in order(axes, shape)))
    return moved.reshape(*values.shape[:lead], *sizes(axes, shape))


def from_model(values: np.ndarray, axes: Axes, shape: Shape) -> np.ndarray:
    """(..., *sizes) as (..., C, H, W)."""
    lead = values.ndim - len(axes)
    parts = order(axes, shape)
    values = values.reshape(*values.shape[:lead], *(shape[part] for part in parts))
    return values.transpose(*range(lead), *(lead + parts.index(part) for part in range(3)))


def part_of_each(axes: Axes) -> list[int] | None:
    """Channels (0), rows (1) or columns (2) for each axis, if each is one of them; those of size 1 in their order."""
    if len(axes) not in (2, 3) or any(len(axis) > 1 for axis in axes):
        return None
    spare = [part for part in range(3) if (part,) not in axes]
    if len(axes) == 2 and axes[0] == ():
        spare = sorted(spare, key=lambda part: (part != 0, -part))
    elif len(axes) == 2:
        spare.reverse()  # a line without extent is one of columns
    return [axis[0] if axis else spare.pop(0) for axis in axes]


def channels_first(axes: Axes) -> tuple[int, int, int] | None:
    """Which of channels, rows and columns the model takes for its channels, rows and columns, if each axis is one."""
    parts = part_of_each(axes)
    if parts is None:
        return None
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    (spare,) = (part for part in range(3) if part not in parts)
    return parts[0], spare, parts[1]


def map_axes(axes: Axes) -> Axes:
    """The axes of a map's successor, whose extents may differ: (N, C, H, W), or (N, C, L) as rows or columns."""
    return NCHW if len(axes) == 3 else ((0,), axes[1] or (2,))


def is_map(axes: Axes, shape: Shape) -> bool:
    """Whether the model has channels first, then rows and columns, or one of the two."""
    return axes in [tidy(usual, shape) for usual in (NCHW, ((0,), (2,)), ((0,), (1,)))] and len(axes) > 1
