"""Shares the blocks and tiles of an operator among the groups, so that all finish together."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from sentei.host.compiler.blocks import Block
from sentei.overlay.geometry import Geometry

HEADER_CYCLES = 2  # a group's cycles for a task's header


@dataclass
class Task:
    """`block` on some tiles of the operator, by number and in order."""

    block: Block
    tiles: list[int]

    @property
    def steps(self) -> int:
        return self.block.steps * len(self.tiles)

    @property
    def words(self) -> int:
        """Of the stream: its header and the steps of a tile."""
        return HEADER_CYCLES + self.block.steps


def spread(blocks: list[Block], tiles: list[int], load: list[int], geometry: Geometry) -> list[list[Task]]:
    """Shares blocks, each on the same tiles, among groups so that their `load`, which it adds to, comes out even.

    Whole blocks first, as many for each group; what remains is cut into tiles, dealt out in turn: so all groups are
    at about the same tile at any time. Of groups with equal loads, one whose result bus has less to do is preferred.
    """
    groups, share = geometry.groups, geometry.groups_per_requantizer
    shares: list[list[Task]] = [[] for _ in range(groups)]

    def next_group(candidates: range | list[int]) -> int:
        def business(group: int) -> tuple[int, int, int]:
            bus = group // share * share
            return load[group], sum(load[bus : bus + share]), group

        return min(candidates, key=business)

    rest = len(blocks) % groups
    whole = len(blocks) - rest
    for start in range(0, whole, groups):
        waiting = list(range(groups))
        for block in blocks[start : start + groups]:
            group = next_group(waiting)
            waiting.remove(group)
            shares[group].append(Task(block, list(tiles)))
            load[group] += block.steps * len(tiles) + HEADER_CYCLES
    parts = min(groups // gcd(groups, rest), len(tiles)) if rest else 1
    waiting = list(range(groups))
    for block in blocks[whole:]:
        members = []
        for _ in range(parts):
            if not waiting:
                waiting = list(range(groups))
            members.append(next_group(waiting))
            waiting.remove(members[-1])
            load[members[-1]] += HEADER_CYCLES
        numbers: dict[int, list[int]] = {group: [] for group in members}
        for tile in tiles:
            group = next_group(members)
            numbers[group].append(tile)
            load[group] += block.steps
        for group, own in numbers.items():
            if own:
                shares[group].append(Task(block, own))
    return shares
