"""Builds the tile, tap, mask and channel tables (formats in overlay/instructions.py). Equal rows are stored once.

Tables that have no room for a whole network are cut into pages, which are loaded in turn. A tile is one word of an
output plane. For each kernel coordinate its row of the tap table says how many pixels away the coordinate's pixels lie,
and which lanes of them are inside the map. Where tensors are packed, a tile may have pixels of several phases, and a
coordinate's lie at several distances: then it has as many taps, each with some of the lanes. Tiles with the same number
of taps for each coordinate are a class, and have steps of their own; there are a few at most, the nearest are one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeAlias

import numpy as np

from sentei.host.network.ir import Conv, Pool, Term, kernel_of
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import STEP, TAP, TILE
from sentei.overlay.layout import PlaneLayout

MAX_TAPS = 1 << STEP["tap"].width

Row: TypeAlias = tuple[tuple[int, int], ...]  # of each tap: offset in pixels, a bit for each lane inside the map


@dataclass(frozen=True)
class Tile:
    """One tile of an operator: its `row` of taps, `source` and `target` are words within a plane, `reads` (words of the
    input plane,) bool says for each of the operator's terms which of them it needs. `parts` are the taps of each of the
    row's coordinates, if they are windows'."""

    row: Row
    source: int
    target: int
    reads: list[np.ndarray]
    parts: tuple[int, ...] = ()


def row_of(taps: list[tuple[int, np.ndarray]]) -> Row:
    """A row of taps from their offsets and bool (lanes,)."""
    return tuple((offset, sum(1 << int(lane) for lane in np.flatnonzero(lanes))) for offset, lanes in taps)


class PageFull(Exception):
    """A table has no room left; the text says which."""


@dataclass
class Page:
    """The tables while they grow, as far as they are on chip at the same time: lists of packed entries, `channels` one
    for each requantizer."""

    geometry: Geometry
    channels: list[list[int]] = field(init=False)
    tiles: list[int] = field(default_factory=list)
    taps: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    known_tiles: dict[tuple, int] = field(default_factory=dict)
    known_taps: dict[tuple, int] = field(default_factory=dict)
    known_masks: dict[int, int] = field(default_factory=dict)
    known_channels: dict[tuple, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.channels = [[] for _ in range(self.geometry.requantizers)]

    def channel_list(self, unit: int, entries: list[int]) -> int:
        """First entry of consecutive entries of a requantizer's channel table."""
        key = unit, tuple(entries)
        if key not in self.known_channels:
            table = self.channels[unit]
            self._need("channel_entries", len(table) + len(entries))
            self.known_channels[key] = len(table)
            table += entries
        return self.known_channels[key]

    def mask(self, lanes: int) -> int:
        """Index of a mask."""
        if lanes not in self.known_masks:
            self._need("mask_entries", len(self.masks) + 1)
            self.known_masks[lanes] = len(self.masks)
            self.masks.append(lanes)
        return self.known_masks[lanes]

    def tap_row(self, row: Row) -> int:
        """First entry of a row of taps."""
        if row not in self.known_taps:
            entries = [TAP.pack(offset=offset, mask=self.mask(lanes)) for offset, lanes in row]
            self._need("tap_entries", len(self.taps) + len(row))
            self.known_taps[row] = len(self.taps)
            self.taps += entries
        return self.known_taps[row]

    def tile(self, tile: Tile, epoch: int, signal: bool) -> int:
        """A packed TILE entry."""
        taps = self.tap_row(tile.row)
        return TILE.pack(taps=taps, input=tile.source, output=tile.target, epoch=epoch, signal=int(signal))

    def tile_list(self, entries: tuple[int, ...]) -> int:
        """First entry of consecutive packed TILE entries."""
        if entries not in self.known_tiles:
            self._need("tile_entries", len(self.tiles) + len(entries))
            self.known_tiles[entries] = len(self.tiles)
            self.tiles += entries
        return self.known_tiles[entries]

    def _need(self, memory: str, entries: int) -> None:
        available = getattr(self.geometry, memory)
        if entries > available:
            raise PageFull(f"needs more than {available} {memory}")


@dataclass(frozen=True)
class OutputWord:
    """A word of a plane that holds pixels: its number, and each lane's pixel.

    `picture`, `y`, `x` are int64 (lanes,); lanes without a pixel have y = -1.
    """

    word: int
    picture: np.ndarray
    y: np.ndarray
    x: np.ndarray


def output_words(layout: PlaneLayout) -> list[OutputWord]:
    """The words of a plane that hold pixels.

    Words of the upper part of the map come first, whatever their phase: so that the next operator's first tiles read
    what was written early.
    """
    pixels = np.full((3, layout.plane_words * layout.lanes), -1)
    pixels[:, layout.positions().ravel()] = np.mgrid[: layout.pictures, : layout.height, : layout.width].reshape(3, -1)
    words = [OutputWord(word, *of) for word, of in enumerate(pixels.reshape(3, -1, layout.lanes).swapaxes(0, 1))]

    def order(here: OutputWord) -> tuple[int, ...]:
        lane = int(np.argmax(here.y >= 0))
        (y, phase_y), (x, phase_x) = (
            divmod(int(of[lane]), modulus) for of, modulus in zip((here.y, here.x), layout.modulus, strict=True)
        )
        position = int(here.picture[lane]) * layout.picture_pitch + y * layout.pitch + x
        return position // layout.lanes, phase_y, phase_x

    return sorted((here for here in words if (here.y >= 0).any()), key=order)


def window_tiles(
    sources: list[PlaneLayout],
    target: PlaneLayout,
    terms: Sequence[Conv | Pool | Term],
    coordinates: list[np.ndarray],
    limit: int,
) -> list[Tile]:
    """Tiles of sliding windows, one of each term, of at most `limit` classes. Taps are numbered by term, ky, kx, among
    the term's `coordinates`, bool (rows * columns,). CapacityError if there are too many."""
    words, taps, reads = output_words(target), [], []
    positions = [source.positions() for source in sources]
    for here in words:
        found = [
            window_taps(here, term, source, position, used)
            for term, source, position, used in zip(terms, sources, positions, coordinates, strict=True)
        ]
        taps.append([of for of_term, _ in found for of in of_term])
        reads.append([read for _, read in found])
    tiles = []
    for here, own, read, parts in zip(
        words, taps, reads, classes([[*map(len, of)] for of in taps], limit), strict=True
    ):
        nothing = (0, np.zeros(target.lanes, bool))
        row = [tap for of, count in zip(own, parts, strict=True) for tap in (*of, *[nothing] * (count - len(of)))]
        row = row or [nothing]
        if len(row) > MAX_TAPS:
            raise CapacityError(f"its windows have {len(row)} taps, more than {MAX_TAPS}; use a smaller kernel")
        tiles.append(Tile(row_of(row), here.word, here.word, read, parts))
    return tiles


def classes(counts: list[list[int]], limit: int) -> list[tuple[int, ...]]:
    """Of each tile, the taps of each coordinate in its class, at least its own `counts`; at most `limit` classes."""
    members: dict[tuple[int, ...], int] = Counter(map(tuple, counts))
    of_class = {parts: parts for parts in members}
    while len(members) > limit:

        def cost(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
            joined = sum(map(max, *pair))
            return sum(members[parts] * (joined - sum(parts)) for parts in pair)

        pair = min(combinations(members, 2), key=cost)
        joined = tuple(map(max, *pair))
        total = sum(members.pop(parts) for parts in pair)
        members[joined] = members.get(joined, 0) + total
        of_class = {parts: joined if of in pair else of for parts, of in of_class.items()}
    return [of_class[tuple(parts)] for parts in counts]


def window_taps(
    here: OutputWord, term: Conv | Pool | Term, source: PlaneLayout, positions: np.ndarray, used: np.ndarray
) -> tuple[list[list[tuple[int, np.ndarray]]], np.ndarray]:
    """The taps of an output word for each of the `used` coordinates, and which words of the input plane (words,) bool
    they read."""
    taps = []
    reads = np.zeros(source.plane_words, bool)
    columns = kernel_of(term)[1]
    repeats = term.zoom if isinstance(term, Pool) else (1, 1)
    rows_apart, columns_apart = (1, 1) if isinstance(term, Pool) else term.zoom
    corner = [
        of // factor * stride - pad
        for of, factor, stride, pad in zip(
            (here.y, here.x), repeats, term.stride, (term.pads.top, term.pads.left), strict=True
        )
    ]
    for coordinate in np.flatnonzero(used).tolist():
        y, between_rows = np.divmod(corner[0] + coordinate // columns, rows_apart)
        x, between_columns = np.divmod(corner[1] + coordinate % columns, columns_apart)
        inside = (here.y >= 0) & (y >= 0) & (y < source.height) & (x >= 0) & (x < source.width)
        inside &= (between_rows == 0) & (between_columns == 0)
        lanes = np.flatnonzero(inside)
        read = positions[here.picture[lanes], y[lanes], x[lanes]]
        reads[read // source.lanes] = True
        distance = np.zeros(len(inside), np.int64)
        distance[lanes] = read - lanes - here.word * source.lanes
        # A tile of a transposed convolution does without the coordinates that only others need.
        offsets = sorted({*distance[lanes].tolist()}) or [0] * (rows_apart == columns_apart == 1)
        taps.append([(offset, inside & (distance == offset)) for offset in offsets])
    return taps, reads


def picture_starts(sources: list[PlaneLayout]) -> list[int]:
    """A number for each layout, from 0 on: those whose pictures begin at the same places have the same one."""
    pitches = [source.picture_pitch for source in sources]
    different = list(dict.fromkeys(pitches))
    return [different.index(pitch) for pitch in pitches]


def single_pixel_tiles(sources: list[PlaneLayout], target: PlaneLayout) -> list[Tile]:
    """The tile of each picture whose 1x1 output map is read pixel by pixel: tap l brings lane l of a word to lane 0,
    counted from where the picture begins in the first term's tensor. Terms whose pictures begin elsewhere have taps of
    their own behind these."""
    lanes = target.lanes
    first = np.arange(lanes) == 0
    pitches = list(dict.fromkeys(source.picture_pitch for source in sources))
    tiles = []
    for picture in range(target.pictures):
        word = picture * sources[0].picture_pitch // lanes
        begins = [picture * pitch - word * lanes for pitch in pitches]
        row = row_of([(begin + tap, first) for begin in begins for tap in range(lanes)])
        reads = [words_of(source, picture) for source in sources]
        tiles.append(Tile(row, word, target_word(target, picture), reads))
    return tiles


def whole_plane_tiles(source: PlaneLayout, target: PlaneLayout) -> tuple[list[Tile], list[int]]:
    """The tile of each picture whose planes are read word by word; and the words to read, counted from the word in
    which the picture begins. Tap t belongs to the t-th."""
    firsts = [picture * source.picture_pitch // source.lanes for picture in range(source.pictures)]
    reads = [words_of(source, picture) for picture in range(source.pictures)]
    words = sorted(
        {int(word) - first for first, read in zip(firsts, reads, strict=True) for word in np.flatnonzero(read)}
    )
    positions = source.positions().reshape(source.pictures, -1)
    tiles = []
    for picture, (first, read) in enumerate(zip(firsts, reads, strict=True)):
        inside = np.zeros((source.plane_words + words[-1], source.lanes), bool)
        inside.reshape(-1)[positions[picture]] = True
        row = row_of([(0, inside[first + word]) for word in words])
        tiles.append(Tile(row, first, target_word(target, picture), [read]))
    return tiles, words


def words_of(layout: PlaneLayout, picture: int) -> np.ndarray:
    """bool (words of a plane,): which of them hold pixels of a picture."""
    words = np.zeros(layout.plane_words, bool)
    words[layout.positions()[picture].ravel() // layout.lanes] = True
    return words


def target_word(target: PlaneLayout, picture: int) -> int:
    """The word of a plane whose lane 0 is a picture's only pixel."""
    word, lane = divmod(picture * target.picture_pitch, target.lanes)
    assert lane == 0, "a result of one pixel must be in lane 0"
    return word
