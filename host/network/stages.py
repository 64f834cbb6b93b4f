"""Divides a network that the activation memory has no room for into stages, which run one after the other.

A stage is a part of the network between two tensors that are all there is at that point. It runs whole, or in patches
(host/network/patches.py): then its layers' maps need no room at once, and the tensors between stages lie in main
memory. The more layers a stage has, the less moves there; the fewer, the less its patches overlap. A part that is not
the same everywhere, a pool over the whole map, say, may be one that runs whole.

    input --> [ patches of 3 layers ] --> map --> [ patches of 5 layers ] --> map --> [ the rest, whole ] --> output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

import numpy as np

from sentei.host.network.ir import WIDE, Network
from sentei.host.network.patches import tilings
from sentei.host.network.reference import operands
from sentei.overlay.layout import Tiling


@dataclass(frozen=True, eq=False)
class Way:
    """To run a part of a network: jobs do `job`, which is `part` or one of its patches. `cycles` is an estimate."""

    part: Network
    job: Network
    cuts: Mapping[str, Tiling]
    cycles: float


def divisions(network: Network) -> list[int]:
    """Numbers of operators before which one tensor is all that later ones read; 0 and the number of all, too."""
    last = {name: index for index, op in enumerate(network.ops) for name in operands(op)}
    last[network.output] = len(network.ops)
    places, living = [0], {network.input}
    for index, op in enumerate(network.ops[:-1]):
        living = {name for name in {*living, op.output} if last.get(name, -1) > index}
        if living == {op.output} and network.tensors[op.output].bits != WIDE:
            places.append(index + 1)
    return [*places, len(network.ops)]


def part_of(network: Network, first: int, end: int) -> Network:
    """Its operators from number `first` up to `end`, both of `divisions`, as a network."""
    ops = network.ops[first:end]
    source = network.input if first == 0 else network.ops[first - 1].output
    part = replace(
        network,
        ops=ops,
        input=source,
        tensors={name: network.tensors[name] for name in (source, *(op.output for op in ops))},
    )
    if end == len(network.ops):
        return part
    output = network.tensors[ops[-1].output]
    channels = np.ones(output.shape.channels, np.float32)
    return replace(part, output=output.name, output_scale=channels * output.scale, output_offset=channels * 0)


def ways(part: Network, fits: Callable[[Network], bool]) -> Iterator[tuple[Network, dict[str, Tiling]]]:
    """What jobs can do of a part, each the network of a job and how its tensors make the whole."""
    if fits(part):
        yield part, {}
    else:
        yield from tilings(part, fits)


def best_stages(network: Network, way: Callable[[int, int], Way | None]) -> list[Way] | None:
    """The stages that take the fewest cycles together; `way` is the best one for the operators from one of `divisions`
    to another. None if there are none."""
    places = divisions(network)
    reached: dict[int, tuple[float, int]] = {0: (0.0, 0)}  # by place: cycles, the place before
    for end in places[1:]:
        best = (inf, 0)
        for first in reversed(places[: places.index(end)]):
            before, _ = reached[first]
            if before < best[0] and (found := way(first, end)) is not None:
                best = min(best, (before + found.cycles, first))
        reached[end] = best
    if reached[places[-1]][0] == inf:
        return None
    chain = [places[-1]]
    while chain[-1]:
        chain.append(reached[chain[-1]][1])
    chosen = [way(first, end) for first, end in pairwise(reversed(chain))]
    return [stage for stage in chosen if stage is not None]
