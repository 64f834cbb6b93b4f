"""Builds the tile, tap, mask and channel tables (formats in overlay/instructions.py). Equal rows are stored once.

Tables that have no room for a whole network are cut into pages, which are loaded in turn. A tile is
one word of an output phase. For each tap (kernel coordinate) its row of the tap table says how many pixels
away the tap's pixels lie, and which lanes of them are inside the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeAlias

import numpy as np

from sentei.host.network.ir import Conv, Pool, Term, kernel_of, zoom_of
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import TAP, TILE
from sentei.overlay.layout import PlaneLayout

Row: TypeAlias = tuple[tuple[int, int], ...]  # of each tap: offset in pixels, a bit for each lane inside the map


@dataclass(frozen=True)
class Tile:
    """One tile of an operator: its `row` of taps, `source` and `target` are words within a plane, `reads` (words of the
    input plane,) bool says for each of the operator's terms which of them it needs."""

    row: Row
    source: int
    target: int
    reads: list[np.ndarray]


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

    def __post_init__(self) -> None:
        self.channels = [[] for _ in range(self.geometry.requantizers)]

    def channel_list(self, unit: int, entries: list[int]) -> int:
        """First entry of consecutive entries of a requantizer's channel table."""
        table = self.channels[unit]
        self._need("channel_entries", len(table) + len(entries))
        table += entries
        return len(table) - len(entries)

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
    """A word of a plane that holds pixels: its phase, its number within the phase, and each lane's pixel.

    `picture`, `y`, `x` are int64 (lanes,); lanes without a pixel have y = -1.
    """

    phase_y: int
    phase_x: int
    word: int
    picture: np.ndarray
    y: np.ndarray
    x: np.ndarray


def output_words(layout: PlaneLayout) -> list[OutputWord]:
    """The words of a plane that hold pixels.

    Words of the upper part of the map come first, whatever their phase: so that the next operator's first tiles read
    what was written early.
    """
    words = []
    phases = product(range(min(layout.modulus[0], layout.height)), range(min(layout.modulus[1], layout.width)))
    for word, (phase_y, phase_x) in product(range(layout.phase_words), list(phases)):
        pixel = word * layout.lanes + np.arange(layout.lanes)
        picture = np.minimum(pixel // (layout.picture_pitch or len(pixel) * layout.phase_words), layout.pictures - 1)
        pixel = pixel - picture * layout.picture_pitch
        y = phase_y + layout.modulus[0] * (pixel // layout.pitch)
        x = phase_x + layout.modulus[1] * (pixel % layout.pitch)
        inside = (y < layout.height) & (x < layout.width)
        if inside.any():
            words.append(OutputWord(phase_y, phase_x, word, picture, np.where(inside, y, -1), x))
    return words


def window_tiles(
    sources: list[PlaneLayout],
    target: PlaneLayout,
    terms: Sequence[Conv | Pool | Term],
    coordinates: list[np.ndarray],
) -> list[Tile]:
    """Tiles of sliding windows, one of each term. Taps are numbered by term, ky, kx, among the term's `coordinates`,
    bool (rows * columns,)."""
    tiles = []
    positions = [source.positions() for source in sources]
    for here in output_words(target):
        taps: list[tuple[int, np.ndarray]] = []
        reads = []
        for term, source, position, used in zip(terms, sources, positions, coordinates, strict=True):
            found, read = window_taps(here, term, source, position, used)
            taps += found
            reads.append(read)
        phase = here.phase_y * target.modulus[1] + here.phase_x
        tiles.append(Tile(row_of(taps), here.word, phase * target.phase_words + here.word, reads))
    return tiles


def window_taps(
    here: OutputWord, term: Conv | Pool | Term, source: PlaneLayout, positions: np.ndarray, used: np.ndarray
) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
    """The taps of an output word, and which words of the input plane (words,) bool they read."""
    taps = []
    reads = np.zeros(source.plane_words, bool)
    stride, pads, zoom = term.stride, term.pads, zoom_of(term)
    rows, columns = kernel_of(term)
    for ky in range(rows):
        for kx in np.flatnonzero(used[ky * columns : (ky + 1) * columns]).tolist():
            row, phase_row = divmod(here.phase_y // zoom[0] * stride[0] + ky - pads.top, source.modulus[0])
            column, phase_column = divmod(here.phase_x // zoom[1] * stride[1] + kx - pads.left, source.modulus[1])
            phase = phase_row * source.modulus[1] + phase_column
            offset = phase * source.phase_pixels + row * source.pitch + column
            y, x = here.y // zoom[0] * stride[0] + ky - pads.top, here.x // zoom[1] * stride[1] + kx - pads.left
            inside = (here.y >= 0) & (y >= 0) & (y < source.height) & (x >= 0) & (x < source.width)
            # Were a tensor placed wrongly, this is where wrong pixels would be read.
            lanes = np.flatnonzero(inside)
            read = here.word * source.lanes + lanes + offset
            assert (positions[here.picture[lanes], y[lanes], x[lanes]] == read).all(), "placement, window disagree"
            reads[read // source.lanes] = True
            taps.append((offset if len(lanes) else 0, inside))
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
