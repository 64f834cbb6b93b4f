"""How a tensor lies in activation memory: phase planes of nibbles.

A plane (one channel) is split by pixel phase, so that a strided window reads consecutive pixels. A split (sy, sx) makes
sy * sx parts of a plane, of the pixels with the same (y mod sy, x mod sx); further splits cut each of these. What is
left in the end are the phases. Pixel (y, x) of a phase is at position y * pitch + x; a phase occupies whole words of
`lanes` pixels, and phases follow one another (in a `packed` tensor without a gap):

    one split (2, 2)     A b A b          plane:  | A A A A | b b b b | c c c c | D D D D |
                         c D c D                    phase 0   phase 1   phase 2   phase 3
                         A b A b
                         c D c D

All tensors of a network share one pitch, so a window's coordinate is one offset in pixels, whatever the tile.
A batch of pictures lies like one high picture: in each phase, the next one begins `picture_pitch` pixels later.
Signed values are stored offset by half their range (-8 becomes 0), and all by their zero point. Values wider than a
nibble occupy several planes, lowest nibble first; so do the sums of a wide output.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from sentei.overlay.errors import InputError


@dataclass(frozen=True)
class PlaneLayout:
    """Places a (channels, height, width) tensor of `pictures` pictures. `stride` is the distance in words between
    nibble planes."""

    channels: int
    height: int
    width: int
    bits: int
    signed: bool
    lanes: int
    splits: tuple[tuple[int, int], ...]
    pitch: int
    stride: int
    pictures: int = 1
    picture_pitch: int = 0
    zero_point: int = 0
    packed: bool = False

    @property
    def nibbles(self) -> int:
        """Nibble planes of one channel."""
        return -(-self.bits // 4)

    @property
    def modulus(self) -> tuple[int, int]:
        """Phases in a column, and in a row."""
        return prod(rows for rows, _ in self.splits), prod(columns for _, columns in self.splits)

    @property
    def rows(self) -> int:
        """Rows of one phase."""
        return -(-self.height // self.modulus[0])

    @property
    def phases(self) -> int:
        return self.modulus[0] * self.modulus[1]

    @property
    def phase_words(self) -> int:
        """Words of one phase, if it begins a word."""
        return -(-((self.pictures - 1) * self.picture_pitch + self.rows * self.pitch) // self.lanes)

    @property
    def phase_pixels(self) -> int:
        """Pixels from one phase to the next."""
        pixels = (self.pictures - 1) * self.picture_pitch + self.rows * self.pitch
        return pixels if self.packed else self.phase_words * self.lanes

    @property
    def plane_words(self) -> int:
        """Words of one nibble plane, without the gap up to `stride`."""
        return -(-self.phases * self.phase_pixels // self.lanes)

    @property
    def words(self) -> int:
        """Words of the whole tensor."""
        return (self.channels * self.nibbles - 1) * self.stride + self.plane_words

    @property
    def bias(self) -> int:
        """What is added to a value before it is stored: half the range of its nibbles if it is signed, zero point."""
        return (1 << (4 * self.nibbles - 1) if self.signed else 0) + self.zero_point

    @property
    def low(self) -> int:
        """Smallest value."""
        return (-(1 << (self.bits - 1)) if self.signed else 0) - self.zero_point

    @property
    def high(self) -> int:
        """Largest value."""
        return self.low + (1 << self.bits) - 1

    def positions(self) -> np.ndarray:
        """Pixel index within a plane, int64 (pictures, height, width), counted in lanes from the plane's first word."""
        picture, y, x = np.mgrid[: self.pictures, : self.height, : self.width]
        phase = np.zeros_like(y)
        for rows, columns in self.splits:
            phase = (phase * rows + y % rows) * columns + x % columns
            y, x = y // rows, x // columns
        return phase * self.phase_pixels + picture * self.picture_pitch + y * self.pitch + x

    def pack(self, values: np.ndarray, word_bytes: int) -> np.ndarray:
        """Integers (N, C, H, W), N a multiple of `pictures`, to activation words, uint8 (N / pictures, words *
        word_bytes), two lanes a byte, even lane low."""
        count = len(values) // self.pictures
        if values.size and not self.low <= values.min() <= values.max() <= self.high:
            raise InputError(f"values must be {self.low} to {self.high}, not {values.min()} to {values.max()}")
        codes = values.astype(np.int64).reshape(count, self.pictures, self.channels, -1) + self.bias
        codes = codes.swapaxes(1, 2).reshape(count, self.channels, -1)
        pixels = np.zeros((count, self.channels * self.nibbles, self.stride * self.lanes), np.uint8)
        for nibble in range(self.nibbles):
            pixels[:, nibble :: self.nibbles, self.positions().ravel()] = (codes >> (4 * nibble)) & 15
        words = pixels.reshape(count, -1, self.lanes)[:, : self.words]
        packed = np.zeros((count, self.words, word_bytes), np.uint8)
        packed[:, :, : self.lanes // 2] = words[:, :, 0::2] | words[:, :, 1::2] << 4
        return packed.reshape(count, -1)

    def unpack(self, data: np.ndarray, word_bytes: int) -> np.ndarray:
        """Inverse of `pack`: uint8 (N / pictures, words * word_bytes) to int32 (N, C, H, W)."""
        count = len(data)
        packed = data.reshape(count, self.words, word_bytes)[:, :, : self.lanes // 2]
        words = np.zeros((count, self.channels * self.nibbles * self.stride, self.lanes), np.uint8)
        words[:, : self.words, 0::2] = packed & 15
        words[:, : self.words, 1::2] = packed >> 4
        pixels = words.reshape(count, self.channels, self.nibbles, -1)[..., self.positions().ravel()].astype(np.int64)
        codes = (pixels << (4 * np.arange(self.nibbles))[None, None, :, None]).sum(2) - self.bias
        codes = codes.reshape(count, self.channels, self.pictures, -1).swapaxes(1, 2)
        return codes.reshape(-1, self.channels, self.height, self.width).astype(np.int32)

    def to_dict(self) -> dict:
        values = dict(self.__dict__, splits=[list(split) for split in self.splits])
        for name in ("zero_point", "packed"):
            if not values[name]:
                del values[name]
        return values

    @staticmethod
    def from_dict(values: dict) -> PlaneLayout:
        return PlaneLayout(
            **dict(values, splits=tuple((int(rows), int(columns)) for rows, columns in values["splits"]))
        )


@dataclass(frozen=True)
class Cuts:
    """One axis: where its patches begin, and what each gives to the whole. `begins` has one more, the whole's end."""

    offsets: tuple[int, ...]
    begins: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True)
class Tiling:
    """Pictures larger than the activation memory are done in patches of one size that overlap, one job each; of a
    tensor, these, in the order of rows of patches.

        whole   |----------------------------------------|
        patch 0 |----------------|                            each begins `offsets[k]` into the whole; what it gives to
        patch 1             |----------------|                it are the elements from `begins[k]` to `begins[k + 1]`,
        patch 2                        |-----------------|    far enough from its edges that are not the whole's
    """

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
