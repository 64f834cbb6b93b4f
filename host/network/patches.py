"""Cuts pictures that the activation memory has no room for into patches (overlay/layout.py), the whole depth of a
network, or of a part of one, at a time.

A patch is a picture of the same network, of a smaller input. Near an edge that is not the picture's own it computes
with zeros in the place of its neighbours' pixels: so far, the *margin*, its results are wrong, and another patch, which
overlaps it, has them. Where a patch's edge is the picture's, so are its zeros.

    input   |-------------------------|
    3x3     x|-----------------------|x          margins grow with every window, shrink with strides
    3x3     xx|---------------------|xx

That needs operators that do the same everywhere: a global pool, or a matrix product over the map, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import ceil, floor, lcm

from sentei.host.network.ir import Conv, Network, Pool, Shape, Term, kernel_of, map_of, terms_of
from sentei.overlay.layout import Cuts, Tiling

MOST_PATCHES = 32  # in a row, or one below the other
SECOND = " of the second patch"


@dataclass(frozen=True)
class Reach:
    """Of a tensor's axis: `pace`, its elements for each of the input's, and how many at the beginning and at the end of
    a patch are wrong."""

    pace: Fraction
    before: int = 0
    after: int = 0


@dataclass(frozen=True)
class AxisCuts:
    """One way to cut one axis: by tensor a patch's size and the whole's cuts."""

    sizes: dict[str, int]
    cuts: dict[str, Cuts]


def tilings(network: Network, fits: Callable[[Network], bool]) -> Iterator[tuple[Network, dict[str, Tiling]]]:
    """The ways to cut pictures such that a patch `fits`, those with the least work first: the network of one patch, and
    how each tensor's patches make the whole. None of a patch that contains one that does not fit is tried."""
    name = network.input
    ways = [way for way in product(axis_cuts(network, 0), axis_cuts(network, 1)) if jobs_of(name, *way) > 1]
    too_large: list[tuple[int, int]] = []
    for rows, columns in sorted(ways, key=lambda way: jobs_of(name, *way) * way[0].sizes[name] * way[1].sizes[name]):
        height, width = rows.sizes[name], columns.sizes[name]
        if any(height >= other_height and width >= other_width for other_height, other_width in too_large):
            continue
        patch = cropped(network, rows.sizes, columns.sizes)
        if not fits(patch):
            too_large.append((height, width))
            continue
        yield patch, {name: Tiling(rows.cuts[name], columns.cuts[name]) for name in network.tensors}


def jobs_of(name: str, rows: AxisCuts, columns: AxisCuts) -> int:
    return len(rows.cuts[name]) * len(columns.cuts[name])


def axis_cuts(network: Network, axis: int) -> list[AxisCuts]:
    """For each number of patches along an axis, the cuts into the smallest that they can be; only the whole, if the
    network cannot be cut there."""
    whole = {name: tensor.shape[1 + axis] for name, tensor in network.tensors.items()}
    ways = [AxisCuts(whole, {name: Cuts((0,), (0, size)) for name, size in whole.items()})]
    paces = paces_of(network, axis)
    if paces is None:
        return ways
    size = smallest = whole[network.input]
    step = lcm(*(pace.denominator for pace in paces.values()))
    for count in range(2, MOST_PATCHES + 1):
        for extent in range(-(-size // count) // step * step + size % step, smallest, step):
            way = cuts_of(network, axis, extent, count, step, paces)
            if way is not None:
                ways.append(way)
                smallest = extent
                break
        else:
            break
    return ways


def paces_of(network: Network, axis: int) -> dict[str, Fraction] | None:
    """Of every tensor its elements for each of the input's; None if an operator does not the same everywhere.

    Those of further inputs follow from what they are added to.
    """
    paces = {network.input: Fraction(1)}
    known = 0
    while known < len(paces):
        known = len(paces)
        for op in (*network.ops, *reversed(network.ops)):
            ratios = {term.input: Fraction(term.zoom[axis], term.stride[axis]) for term in terms_of(op)}
            if op.requantize is not None and op.requantize.residual is not None:
                ratios[op.requantize.residual] = Fraction(1)
            own = {paces[name] * ratio for name, ratio in ratios.items() if name in paces}
            own |= {paces[op.output]} if op.output in paces else set()
            if len(own) > 1:
                return None
            for pace in own:
                paces[op.output] = pace
                paces |= {name: pace / ratio for name, ratio in ratios.items()}
    return paces if len(paces) == len(network.tensors) else None


def cuts_of(
    network: Network, axis: int, extent: int, count: int, step: int, paces: Mapping[str, Fraction]
) -> AxisCuts | None:
    """The cuts for so many patches whose input has that extent, and whose places are multiples of `step`; None if they
    do not provide all of every tensor."""
    whole = network.tensors[network.input].shape[1 + axis]
    if extent >= whole:
        return None
    spared = {name: (whole - extent) * paces[name] for name in network.inputs}
    sizes = sizes_of(network, axis, {name: network.tensors[name].shape[1 + axis] - own for name, own in spared.items()})
    if sizes is None:
        return None
    origins = [step * round(number * (whole - extent) / step / (count - 1)) for number in range(count)]
    found = {}
    for name, reach in reaches_of(network, axis, sizes, paces).items():
        size, own = network.tensors[name].shape[1 + axis], sizes[name]
        if size - own != (whole - extent) * reach.pace:
            return None
        offsets = tuple(int(origin * reach.pace) for origin in origins)
        begins = (0, *(offset + reach.before for offset in offsets[1:]), size)
        ends = (*(offset + own - reach.after for offset in offsets[:-1]), size)
        if any(end < begin for begin, end in zip(begins[1:], ends, strict=True)) or sorted(begins) != list(begins):
            return None
        found[name] = Cuts(offsets, begins)
    return AxisCuts(sizes, found)


def sizes_of(network: Network, axis: int, given: Mapping[str, Fraction]) -> dict[str, int] | None:
    """The size of every tensor of a patch whose inputs have these; None if they are none, or a window does not fit."""
    if any(size < 1 or size.denominator > 1 for size in given.values()):
        return None
    sizes = {name: int(size) for name, size in given.items()}
    for op in network.ops:
        own = {map_of(term, Shape(1, sizes[term.input], sizes[term.input]))[axis] for term in terms_of(op)}
        if op.requantize is not None and op.requantize.residual is not None:
            own.add(sizes[op.requantize.residual])
        if len(own) > 1 or min(own) < 1:
            return None
        sizes[op.output] = own.pop()
    return sizes


def reaches_of(
    network: Network, axis: int, sizes: Mapping[str, int], paces: Mapping[str, Fraction]
) -> dict[str, Reach]:
    """How far from a patch's edges every tensor is wrong, if the picture goes on there."""
    reaches = {name: Reach(paces[name]) for name in network.inputs}
    for op in network.ops:
        own = [
            reach_behind(term, axis, reaches[term.input], sizes[term.input], sizes[op.output]) for term in terms_of(op)
        ]
        if op.requantize is not None and op.requantize.residual is not None:
            own.append(reaches[op.requantize.residual])
        before, after = max(reach.before for reach in own), max(reach.after for reach in own)
        reaches[op.output] = Reach(own[0].pace, before, after)
    return reaches


def reach_behind(term: Conv | Pool | Term, axis: int, source: Reach, size: int, result: int) -> Reach:
    """The reach of what a window makes of a tensor of that size, which is `result` large."""
    stride, zoom, window = term.stride[axis], term.zoom[axis], kernel_of(term)[axis]
    pace = source.pace / stride * zoom
    if isinstance(term, Pool) and zoom > 1:
        return Reach(pace, source.before * zoom, source.after * zoom)
    # The first and the last position, of those that the window slides over, behind which all is right.
    first, last = (source.before - 1) * zoom + 1, (size - source.after) * zoom - 1
    pad = term.pads[axis]
    before = max(0, ceil(Fraction(first + pad, stride)))
    after = max(0, result - 1 - floor(Fraction(last + pad - window + 1, stride)))
    return Reach(pace, before, after)


def twice(network: Network) -> tuple[Network, dict[str, str]]:
    """A network that does two patches, one after the other, and what the second one's tensors are called.

    Its inputs and outputs are the first one's, then the second one's.
    """
    second = {name: name + SECOND for name in network.tensors}
    tensors = {second[name]: replace(tensor, name=second[name]) for name, tensor in network.tensors.items()}
    inputs, outputs = network.inputs, network.outputs
    both = replace(
        network,
        tensors=network.tensors | tensors,
        ops=(*network.ops, *(renamed(op, second) for op in network.ops)),
        more_inputs=(*inputs[1:], *(second[name] for name in inputs)),
        output=second[outputs[0]],
        more_outputs=(*outputs, *(second[name] for name in outputs[1:])),
    )
    return both, second


def renamed(op: Conv | Pool, names: Mapping[str, str]) -> Conv | Pool:
    """An operator whose tensors have other names."""
    changed: dict = {"input": names[op.input], "output": names[op.output]}
    if isinstance(op, Conv):
        changed["addends"] = tuple(replace(term, input=names[term.input]) for term in op.addends)
    if op.requantize is not None and op.requantize.residual is not None:
        changed["requantize"] = replace(op.requantize, residual=names[op.requantize.residual])
    return replace(op, **changed)


def cropped(network: Network, heights: Mapping[str, int], widths: Mapping[str, int]) -> Network:
    """The network of pictures of another size; these are all tensors'."""
    tensors = {
        name: replace(tensor, shape=Shape(tensor.shape.channels, heights[name], widths[name]))
        for name, tensor in network.tensors.items()
    }
    return replace(network, tensors=tensors)
