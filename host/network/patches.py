"""Cuts pictures that the activation memory has no room for into patches (overlay/layout.py), the whole depth of a
network at a time.

A patch is a picture of the same network, of a smaller input. Near an edge that is not the picture's own it computes
with zeros in the place of its neighbours' pixels: so far, the *margin*, its results are wrong, and another patch, which
overlaps it, has them. Where a patch's edge is the picture's, so are its zeros.

    input   |-------------------------|
    3x3     x|-----------------------|x          margins grow with every window, shrink with strides
    3x3     xx|---------------------|xx

That needs operators that do the same everywhere: a global pool, or a matrix product over the map, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import ceil, floor, lcm

from sentei.host.network.ir import Conv, Network, Pool, Shape, Term, kernel_of, map_of
from sentei.overlay.layout import Cuts, Tiling

MOST_PATCHES = 32  # in a row, or one below the other


@dataclass(frozen=True)
class Reach:
    """Of a tensor's axis: `pace`, its elements for each of the input's, and how many at the beginning and at the end of
    a patch are wrong."""

    pace: Fraction
    before: int = 0
    after: int = 0


def tilings(network: Network, fits: Callable[[Network], bool]) -> Iterator[tuple[Network, dict[str, Tiling]]]:
    """The ways to cut pictures such that a patch `fits`, those with the least work first: the network of one patch, and
    how each tensor's patches make the whole. None of a patch that contains one that does not fit is tried."""
    source = network.tensors[network.input].shape
    found = []
    for rows, columns in product(axis_cuts(network, 0), axis_cuts(network, 1)):
        (height, of_rows), (width, of_columns) = rows, columns
        patches = len(of_rows[network.input]) * len(of_columns[network.input])
        if patches > 1:
            found.append((patches * height * width, height, width, of_rows, of_columns))
    too_large: list[tuple[int, int]] = []
    for _, height, width, of_rows, of_columns in sorted(found, key=lambda way: way[0]):
        if any(height >= rows and width >= columns for rows, columns in too_large):
            continue
        patch = cropped(network, Shape(source.channels, height, width))
        if not fits(patch):
            too_large.append((height, width))
            continue
        yield patch, {name: Tiling(of_rows[name], of_columns[name]) for name in network.tensors}


def axis_cuts(network: Network, axis: int) -> list[tuple[int, dict[str, Cuts]]]:
    """For each number of patches along an axis, the smallest size that they can have, and each tensor's cuts; only the
    whole, if the network cannot be cut there."""
    size = network.tensors[network.input].shape[1 + axis]
    whole = {name: Cuts((0,), (0, tensor.shape[1 + axis])) for name, tensor in network.tensors.items()}
    ways: list[tuple[int, dict[str, Cuts]]] = [(size, whole)]
    paces = paces_of(network, axis)
    if paces is None:
        return ways
    step = lcm(*(pace.denominator for pace in paces.values()))
    smallest = size
    for count in range(2, MOST_PATCHES + 1):
        for extent in range(-(-size // count) // step * step + size % step, smallest, step):
            cuts = cuts_of(network, axis, extent, count, step)
            if cuts is not None:
                ways.append((extent, cuts))
                smallest = extent
                break
        else:
            break
    return ways


def paces_of(network: Network, axis: int) -> dict[str, Fraction] | None:
    """Of every tensor its elements for each of the input's; None if an operator does not the same everywhere."""
    paces = {network.input: Fraction(1)}
    for op in network.ops:
        terms = op.terms if isinstance(op, Conv) else (op,)
        own = {paces[term.input] / term.stride[axis] * term.zoom[axis] for term in terms}
        if op.requantize is not None and op.requantize.residual is not None:
            own.add(paces[op.requantize.residual])
        if len(own) > 1:
            return None
        paces[op.output] = own.pop()
    return paces


def cuts_of(network: Network, axis: int, extent: int, count: int, step: int) -> dict[str, Cuts] | None:
    """Each tensor's cuts for so many patches of that extent, whose places are multiples of `step`; None if they do not
    provide all of every tensor."""
    whole = network.tensors[network.input].shape[1 + axis]
    sizes = sizes_of(network, axis, extent)
    if sizes is None or extent >= whole:
        return None
    origins = [step * round(number * (whole - extent) / step / (count - 1)) for number in range(count)]
    found = {}
    for name, reach in reaches_of(network, axis, sizes).items():
        size, own = network.tensors[name].shape[1 + axis], sizes[name]
        if size - own != (whole - extent) * reach.pace:
            return None
        offsets = tuple(int(origin * reach.pace) for origin in origins)
        begins = (0, *(offset + reach.before for offset in offsets[1:]), size)
        ends = (*(offset + own - reach.after for offset in offsets[:-1]), size)
        if any(end < begin for begin, end in zip(begins[1:], ends, strict=True)) or sorted(begins) != list(begins):
            return None
        found[name] = Cuts(offsets, begins)
    return found


def sizes_of(network: Network, axis: int, extent: int) -> dict[str, int] | None:
    """The size of every tensor of a patch of that extent; None if a window does not fit."""
    sizes = {network.input: extent}
    for op in network.ops:
        terms = op.terms if isinstance(op, Conv) else (op,)
        own = {map_of(term, Shape(1, sizes[term.input], sizes[term.input]))[axis] for term in terms}
        if op.requantize is not None and op.requantize.residual is not None:
            own.add(sizes[op.requantize.residual])
        if len(own) > 1 or min(own) < 1:
            return None
        sizes[op.output] = own.pop()
    return sizes


def reaches_of(network: Network, axis: int, sizes: dict[str, int]) -> dict[str, Reach]:
    """How far from a patch's edges every tensor is wrong, if the picture goes on there."""
    reaches = {network.input: Reach(Fraction(1))}
    for op in network.ops:
        terms = op.terms if isinstance(op, Conv) else (op,)
        own = [reach_behind(term, axis, reaches[term.input], sizes[term.input], sizes[op.output]) for term in terms]
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


def cropped(network: Network, source: Shape) -> Network:
    """The network of pictures of another size, which `sizes_of` must know."""
    tensors = {network.input: replace(network.tensors[network.input], shape=source)}
    for op in network.ops:
        whole = network.tensors[op.output]
        shape = Shape(whole.shape.channels, *map_of(op, tensors[op.input].shape))
        tensors[op.output] = replace(whole, shape=shape)
    return replace(network, tensors=tensors)
