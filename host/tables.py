"""Builds the tile, tap and mask tables (formats in overlay/instructions.py). Equal rows are stored once.

A tile is one word of an output phase. For each tap (kernel coordinate) its row of the tap table says how many pixels
away the tap's pixels lie, and which lanes of them are inside the map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import TAP, TILE
from sentei.overlay.layout import PlaneLayout


@dataclass(frozen=True)
class Tile:
    """One tile of an operator: `taps` is the first entry of its row, `source` and `target` are words within a plane,
    `reads` (words of the input plane,) bool says which of them it needs."""

    taps: int
    source: int
    target: int
    reads: np.ndarray

    def pack(self, epoch: int, signal: bool) -> int:
        return TILE.pack(taps=self.taps, input=self.source, output=self.target, epoch=epoch, signal=int(signal))


@dataclass
class Tables:
    """The three tables while they grow. `tiles`, `taps` and `masks` are lists of packed entries."""

    geometry: Geometry
    tiles: list[int] = field(default_factory=list)
    taps: list[int] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    known_tiles: dict[tuple, int] = field(default_factory=dict)
    known_taps: dict[tuple, int] = field(default_factory=dict)
    known_masks: dict[int, int] = field(default_factory=dict)

    def mask(self, lanes: np.ndarray) -> int:
        """Index of the mask with bit l set where lanes[l]."""
        value = int(sum(1 << int(lane) for lane in np.flatnonzero(lanes)))
        if value not in self.known_masks:
            self._need("mask_entries", len(self.masks) + 1)
            self.known_masks[value] = len(self.masks)
            self.masks.append(value)
        return self.known_masks[value]

    def tap_row(self, taps: list[tuple[int, np.ndarray]]) -> int:
        """First entry of a row of (offset in pixels, lanes inside the map)."""
        row = tuple((offset, self.mask(lanes)) for offset, lanes in taps)
        if row not in self.known_taps:
            self._need("tap_entries", len(self.taps) + len(row))
            self.known_taps[row] = len(self.taps)
            self.taps += [TAP.pack(offset=offset, mask=mask) for offset, mask in row]
        return self.known_taps[row]

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
            raise CapacityError(f"the network needs more than {available} {memory}; use a geometry with more of them")


def output_tiles(layout: PlaneLayout) -> list[tuple[int, int, int, np.ndarray, np.ndarray]]:
    """(phase row, phase column, word of the phase, y, x) of each word that holds pixels; y, x are int64 (lanes,).

    Lanes without a pixel have y = -1. Words of the upper part of the map come first, whatever their phase: so that the
    next operator's first tiles read what was written early.
    """
    tiles = []
    phases = product(range(min(layout.modulus[0], layout.height)), range(min(layout.modulus[1], layout.width)))
    for word, (phase_y, phase_x) in product(range(layout.phase_words), list(phases)):
        pixel = word * layout.lanes + np.arange(layout.lanes)
        y = phase_y + layout.modulus[0] * (pixel // layout.pitch)
        x = phase_x + layout.modulus[1] * (pixel % layout.pitch)
        inside = (y < layout.height) & (x < layout.width)
        if inside.any():
            tiles.append((phase_y, phase_x, word, np.where(inside, y, -1), x))
    return tiles


def window_tiles(
    tables: Tables,
    source: PlaneLayout,
    target: PlaneLayout,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pads: tuple[int, int],
) -> list[Tile]:
    """Tiles of a sliding window. Tap number = ky * kernel columns + kx.

    `pads` are the rows above and columns left of the map.
    """
    tiles = []
    phase_words = target.phase_words
    positions = source.positions()
    for phase_y, phase_x, word, y, x in output_tiles(target):
        taps = []
        reads = np.zeros(source.plane_words, bool)
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                row, phase_row = divmod(phase_y * stride[0] + ky - pads[0], source.modulus[0])
                column, phase_column = divmod(phase_x * stride[1] + kx - pads[1], source.modulus[1])
                phase = phase_row * source.modulus[1] + phase_column
                offset = phase * source.phase_words * source.lanes + row * source.pitch + column
                input_y, input_x = y * stride[0] + ky - pads[0], x * stride[1] + kx - pads[1]
                inside = (y >= 0) & (input_y >= 0) & (input_y < source.height)
                inside &= (input_x >= 0) & (input_x < source.width)
                # Were a tensor placed wrongly, this is where wrong pixels would be read.
                lanes = np.flatnonzero(inside)
                read = word * source.lanes + lanes + offset
                assert (positions[input_y[lanes], input_x[lanes]] == read).all(), "placement and window disagree"
                reads[read // source.lanes] = True
                taps.append((offset if len(lanes) else 0, inside))
        phase = phase_y * target.modulus[1] + phase_x
        tiles.append(Tile(tables.tap_row(taps), word, phase * phase_words + word, reads))
    return tiles


def single_pixel_tile(tables: Tables, source: PlaneLayout) -> Tile:
    """The tile of a 1x1 output map whose window is read pixel by pixel: tap l brings lane l of a word to lane 0."""
    first = np.arange(source.lanes) == 0
    row = tables.tap_row([(lane, first) for lane in range(source.lanes)])
    return Tile(row, 0, 0, np.ones(source.plane_words, bool))


def whole_plane_tile(tables: Tables, source: PlaneLayout) -> tuple[Tile, list[int]]:
    """The tile that reads a plane word by word; returns (tile, words that hold pixels). Tap t belongs to the t-th."""
    words = [
        (phase_y * source.modulus[1] + phase_x) * source.phase_words + word
        for phase_y, phase_x, word, _, _ in output_tiles(source)
    ]
    taps = [(0, y >= 0) for _, _, _, y, _ in output_tiles(source)]
    return Tile(tables.tap_row(taps), 0, 0, np.ones(source.plane_words, bool)), words
