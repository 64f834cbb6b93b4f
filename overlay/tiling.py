"""Pictures larger than the activation memory are done in patches of one size that overlap: one job each.

    whole   |----------------------------------------|
    patch 0 |----------------|                            each patch begins `offsets[k]` into the whole; what it gives
    patch 1             |----------------|                to it are the elements from `begins[k]` to `begins[k + 1]`,
    patch 2                        |-----------------|    far enough from those of its edges that are not the whole's

So it is for the model's input, and for every tensor behind it, each with numbers of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True)
class Cuts:
    """One axis: where its patches begin, and what each gives to the whole. `begins` has one more, the whole's end."""

    offsets: tuple[int, ...]
    begins: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True)
class Tiling:
    """A tensor's patches, in the order of rows of patches."""

    rows: Cuts
    columns: Cuts

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def whole(self) -> tuple[int, int]:
        """(height, width)"""
        return self.rows.begins[-1], self.columns.begins[-1]

    def cut(self, whole: np.ndarray, height: int, width: int) -> np.ndarray:
        """(N, C, H, W) to patches (N * patches, C, height, width)."""
        patches = [
            whole[:, :, y : y + height, x : x + width] for y, x in product(self.rows.offsets, self.columns.offsets)
        ]
        return np.stack(patches, 1).reshape(-1, whole.shape[1], height, width)

    def join(self, patches: np.ndarray) -> np.ndarray:
        """Patches (N * patches, C, height, width) to (N, C, H, W)."""
        channels = patches.shape[1]
        by_place = patches.reshape(-1, len(self), *patches.shape[1:])
        whole = np.empty((len(by_place), channels, *self.whole), patches.dtype)
        for place, (row, column) in enumerate(product(range(len(self.rows)), range(len(self.columns)))):
            (y, of_rows), (x, of_columns) = provided(self.rows, row), provided(self.columns, column)
            whole[:, :, y, x] = by_place[:, place, :, of_rows, of_columns]
        return whole

    def to_dict(self) -> dict:
        return {axis: dict(cuts.__dict__) for axis, cuts in self.__dict__.items()}

    @staticmethod
    def from_dict(values: dict) -> Tiling:
        """ValueError unless the parts cover the whole, one behind the other."""
        rows, columns = (
            Cuts(*(tuple(values[axis][name]) for name in ("offsets", "begins"))) for axis in ("rows", "columns")
        )
        for cuts in (rows, columns):
            numbers = (*cuts.offsets, *cuts.begins)
            if any(type(number) is not int or number < 0 for number in numbers) or not cuts.offsets:
                raise ValueError(f"a tiling must have numbers, not {numbers}")
            if len(cuts.begins) != len(cuts.offsets) + 1 or cuts.begins[0] or sorted(cuts.begins) != list(cuts.begins):
                raise ValueError(f"a tiling must begin at 0 and go on, not {cuts.begins}")
            if any(begin < offset for begin, offset in zip(cuts.begins, cuts.offsets, strict=False)):
                raise ValueError("a patch must provide what it has")
        return Tiling(rows, columns)


def provided(cuts: Cuts, number: int) -> tuple[slice, slice]:
    """What a patch provides: its place in the whole, and in the patch."""
    begin, end, offset = cuts.begins[number], cuts.begins[number + 1], cuts.offsets[number]
    return slice(begin, end), slice(begin - offset, end - offset)
