"""Divides a network that the activation memory has no room for into stages, which run one after the other.

A stage is a part of the network between places where all that is read later are a few tensors. It runs whole, or in
patches (host/network/patches.py): then its layers' maps need no room at once, and the tensors between stages lie in
main memory. The more layers a stage has, the less moves there; the fewer, the less its patches overlap. A part that is
not the same everywhere, a pool over the whole map, say, may be one that runs whole.

    input --> [ patches of 3 layers ] --> map --> [ patches of 5 layers ] --> map --> [ the rest, whole ] --> output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

import numpy as np

from sentei.host.network.ir import Network, operands
from sentei.host.network.patches import tilings
from sentei.overlay.layout import Tiling


@dataclass(eq=False)
class Way:
    """To run a part of a network: jobs do `job`, which is `part` or one of its patches; or one does all patches, in
    `pairs` that overlap in time; or so many `pictures`. `cycles` of a picture are an estimate."""

    part: Network
    job: Network
    cuts: Mapping[str, Tiling]
    pairs: bool = False
    pictures: int = 1
    cycles: float = 0.0


def divisions(network: Network, most: int = 1) -> list[int]:
    """Numbers of operators before which later ones read no more than `most` tensors; 0 and the number of all, too. What
    follows the operator that makes the output stays with it, and one whose result nobody reads with the one before."""
    places = [0]
    for place, op in enumerate(network.ops[:-1], 1):
        alive = living(network, place)
        if op.output in alive and network.output not in alive and len(alive) <= most:
            places.append(place)
    return [*places, len(network.ops)]


def living(network: Network, place: int) -> list[str]:
    """The tensors made before the operator of that number, or given, that it or later ones read, in order of making."""
    made = (network.input, *(op.output for op in network.ops[:place]))
    read = {network.output} | {name for op in network.ops[place:] for name in operands(op)}
    return [name for name in made if name in read]


def part_of(network: Network, first: int, end: int) -> Network:
    """Its operators from number `first` up to `end`, both of `divisions`, as a network. What it is given and hands out,
    besides one tensor each, is in `more_inputs` and `more_outputs`."""
    ops = network.ops[first:end]
    made, read = [op.output for op in ops], {name for op in ops for name in operands(op)}
    given = [name for name in living(network, first) if name in read]
    *others, output = [name for name in living(network, end) if name in made]
    part = replace(
        network,
        ops=ops,
        input=given[-1],
        more_inputs=tuple(given[:-1]),
        output=output,
        more_outputs=tuple(others),
        tensors={name: network.tensors[name] for name in (*given, *made)},
    )
    if output == network.output:
        return part
    tensor = network.tensors[output]
    channels = np.ones(tensor.shape.channels, np.float32)
    return replace(part, output_scale=channels * tensor.scale, output_offset=channels * 0)


def ways(
    part: Network, fits: Callable[[Network], bool], pairs: bool = False
) -> Iterator[tuple[Network, dict[str, Tiling]]]:
    """What jobs can do of a part, each the network of a job and how its tensors make the whole; `pairs`: patches only,
    and of those of one output."""
    if fits(part) and not pairs:
        yield part, {}
    elif not (pairs and part.more_outputs):
        yield from tilings(part, fits)


def best_stages(network: Network, way: Callable[[int, int], Way | None], most: int) -> list[Way]:
    """The stages that take the fewest cycles together, with at most so many tensors between them; `way` is the best one
    for the operators from one number to another. Empty if there are none.

    As few tensors as can be lie between stages, but where more inside one of them save cycles.
    """
    for number in range(1, most + 1):
        coarse = best_places(divisions(network, number), way)
        if coarse is not None:
            break
    else:
        return []
    finer = divisions(network, most)
    stages = []
    for first, end in pairwise(coarse):
        inner = best_places([place for place in finer if first <= place <= end], way)
        assert inner is not None, "at least the stage itself"
        stages += [way(*ends) for ends in pairwise(inner)]
    return [stage for stage in stages if stage is not None]


def best_places(places: Sequence[int], way: Callable[[int, int], Way | None]) -> list[int] | None:
    """Those of `places` between which stages take the fewest cycles, the first and the last among them; None if there
    are none."""
    begin = places[0]
    reached: dict[int, tuple[float, int]] = {begin: (0.0, begin)}  # by place: cycles, the place before
    for end in places[1:]:
        best = (inf, begin)
        for first in reversed(places[: places.index(end)]):
            before, _ = reached[first]
            if before < best[0] and (found := way(first, end)) is not None:
                best = min(best, (before + found.cycles, first))
        reached[end] = best
    if reached[places[-1]][0] == inf:
        return None
    chain = [places[-1]]
    while chain[-1] != begin:
        chain.append(reached[chain[-1]][1])
    return chain[::-1]
