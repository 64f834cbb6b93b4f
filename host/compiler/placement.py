"""Places every tensor: phases, pitch, and address in activation memory.

A window of stride s reads consecutive pixels if its input's modulus is s times its output's (overlay/layout.py); where
pixels are repeated, the output's is so many times the input's. That
relation, and the equality of a residual with the output it is added to, are solved for the whole network, so that no
layer ever rearranges pixels. Maps of one row (or column) are free of it: there is nothing to stride over.

Phases of small maps leave much of their words empty. *Packed*, they follow one another without a gap, and a tile has
pixels of several. The splits of all strides in turn keep a window's coordinate one offset for nearly all of them; where
it is several, the tile reads as often (host/compiler/tables.py). What takes fewer steps is chosen.

Addresses: first fit in order of execution, over the words that no living tensor occupies; or in order of size, which
leaves fewer gaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import product
from math import lcm, prod

from sentei.host.network.ir import WIDE, Network, operands, terms_of
from sentei.host.network.patches import twice
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry
from sentei.overlay.layout import PlaneLayout

LARGEST_MODULUS = 1 << 12
WORTHWHILE = 0.9  # of the words, that packed tensors may take to be tried at all


class Packed(Enum):
    """Which tensors' phases follow one another without a gap."""

    NONE = 0
    INPUT = 1
    ALL = 2


@dataclass(frozen=True)
class Placement:
    """Where a tensor lies: `layout`, from word `address` on."""

    layout: PlaneLayout
    address: int


def solve_moduli(network: Network) -> dict[str, tuple[int, int]]:
    """Phase modulus (rows, columns) of every tensor."""
    moduli = {name: [1, 1] for name in network.tensors}
    changed = True
    while changed:
        changed = False
        for op in (*reversed(network.ops), *network.ops):
            for axis in (0, 1):
                names = [op.output]
                if op.requantize is not None and op.requantize.residual is not None:
                    names.append(op.requantize.residual)
                common = lcm(*(moduli[name][axis] for name in names))
                wanted = {}
                if network.tensors[op.output].shape[1 + axis] > 1:
                    for term in terms_of(op):
                        stride, zoom = term.stride[axis], term.zoom[axis]
                        wanted[term.input] = lcm(moduli[term.input][axis], lcm(common, zoom) // zoom * stride)
                        common = wanted[term.input] // stride * zoom
                fits = all(wanted.setdefault(name, common) == common for name in names)  # the input may be one
                for name, modulus in wanted.items():
                    changed |= moduli[name][axis] != modulus
                    moduli[name][axis] = modulus
                    if modulus > LARGEST_MODULUS or not fits:
                        raise CapacityError(
                            f"{network.name}: {op.name}: the strides of its branches do not fit together"
                        )
    return {name: (modulus[0], modulus[1]) for name, modulus in moduli.items()}


def solve_splits(network: Network, moduli: dict[str, tuple[int, int]]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Of every tensor the strides on its way to the output, the nearest first; or one split, where they do not make its
    modulus. Those of a residual are its output's."""
    family = {name: name for name in network.tensors}
    for op in network.ops:
        if op.requantize is not None and op.requantize.residual is not None:
            kept, other = family[op.output], family[op.requantize.residual]
            family = {name: kept if of == other else of for name, of in family.items()}
    splits: dict[str, tuple[tuple[int, int], ...]] = {}
    for op in reversed(network.ops):
        after = splits.setdefault(family[op.output], whole(moduli[op.output]))
        for term in terms_of(op):
            here, (rows, columns) = after, term.zoom
            if here and here[0] == (rows, columns):
                here = here[1:]
            if term.stride != (1, 1):
                here = (term.stride, *here)
            if modulus_of(here) == moduli[term.input]:
                splits.setdefault(family[term.input], here)
    return {name: splits.get(family[name], whole(moduli[name])) for name in network.tensors}


def whole(modulus: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """A modulus as one split."""
    return (modulus,) if modulus != (1, 1) else ()


def modulus_of(splits: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    return prod(rows for rows, _ in splits), prod(columns for _, columns in splits)


def make_layouts(network: Network, geometry: Geometry, batch: int, packed: Packed) -> dict[str, PlaneLayout]:
    """Layout of every tensor of `batch` pictures, all with one pitch and one picture pitch; but maps of one pixel have
    a word for each picture. Planes are an odd number of words apart, so that the results of neighbouring channels go to
    different memory banks."""
    moduli = solve_moduli(network)
    if packed is Packed.ALL:
        splits = solve_splits(network, moduli)
    else:
        splits = {name: whole(modulus) for name, modulus in moduli.items()}
    pitch = max(-(-tensor.shape.width // moduli[name][1]) for name, tensor in network.tensors.items())
    rows = max(-(-tensor.shape.height // moduli[name][0]) for name, tensor in network.tensors.items())
    layouts = {}
    for name, tensor in network.tensors.items():
        wide = tensor.bits == WIDE
        one_pixel = tensor.shape.height == tensor.shape.width == 1
        layout = PlaneLayout(
            *tensor.shape,
            bits=geometry.wide_bits if wide else tensor.bits,
            signed=tensor.signed and not wide,
            lanes=geometry.lanes,
            splits=splits[name],
            pitch=pitch,
            stride=1,
            pictures=batch,
            picture_pitch=0 if batch == 1 else geometry.lanes if one_pixel else rows * pitch,
            zero_point=tensor.zero_point,
            packed=packed is Packed.ALL or (packed is Packed.INPUT and name == network.input),
        )
        layouts[name] = PlaneLayout(**dict(layout.__dict__, stride=layout.plane_words | 1))
    return layouts


def last_uses(network: Network) -> dict[str, int]:
    """Index of the last operator that reads each tensor, or makes it; the output lives to the end."""
    uses = dict.fromkeys(network.tensors, -1)
    for index, op in enumerate(network.ops):
        uses.update(dict.fromkeys((op.output, *operands(op)), index))
    uses.update(dict.fromkeys(network.outputs, len(network.ops)))
    return uses


def placements(
    network: Network, geometry: Geometry, batch: int = 1, pairs: bool = False
) -> Iterator[tuple[dict[str, Placement], bool]]:
    """One way, or two, to place all tensors, those with the fewest tensors packed first: layout and address of each,
    and whether input and output share their words with no other. Raises CapacityError, naming the operator, if the
    memory is too small for all of them.

    `pairs`: those of `twice` of the network, inputs and outputs apart.
    """
    both, second = twice(network) if pairs else (network, {})
    residuals = {op.requantize.residual for op in network.ops if op.requantize is not None}
    failure, found, words = None, False, 0
    for packed in Packed:
        layouts = make_layouts(network, geometry, batch, packed)
        before, words = words, sum(layout.words for layout in layouts.values())
        if packed is Packed.INPUT and (found or network.input in residuals):
            words = before  # a residual is read by whole words: it lies as the output does
            continue
        if packed is Packed.ALL and words > before * WORTHWHILE:
            continue
        layouts |= {second[name]: layouts[name] for name in second}
        try:
            yield place(both, layouts, geometry, pairs)
            found = True
        except CapacityError as error:
            failure = error
    if not found:
        assert failure is not None
        raise failure


def fits(network: Network, geometry: Geometry, batch: int = 1, pairs: bool = False) -> bool:
    """Whether the activation memory has room for all tensors of so many pictures, or of a pair of patches."""
    try:
        next(placements(network, geometry, batch, pairs))
    except CapacityError:
        return False
    return True


def place(
    network: Network, layouts: dict[str, PlaneLayout], geometry: Geometry, apart: bool = False
) -> tuple[dict[str, Placement], bool]:
    """The address of every tensor, and whether inputs and outputs share their words with no other tensor; `apart`: they
    must not.

    If there is room, no tensor takes the words of one that the operator just before still reads, and input and output
    have theirs to themselves: then pictures and operators overlap in time. If that does not help, the largest tensors
    are placed first.
    """
    failure = None
    ways = [(1, True), (0, True), (0, False)]
    if apart:
        ways = [(1, True), (0, True)]
    elif network.more_outputs:  # only the last is surely made behind the last picture's stores
        ways = [(1, False), (0, False)]
    for method, (spare, exclusive) in product((in_order, by_size), ways):
        try:
            return method(network, layouts, geometry, spare, exclusive), exclusive
        except CapacityError as error:
            failure = error if method is in_order else failure
    assert failure is not None
    raise failure


def in_order(
    network: Network, layouts: dict[str, PlaneLayout], geometry: Geometry, spare: int, exclusive: bool
) -> dict[str, Placement]:
    """First fit; a tensor's words are free for others `spare` operators after its last use."""
    uses = last_uses(network)
    placed: dict[str, Placement] = {}
    alive: list[str] = []

    def put(name: str, where: str) -> None:
        words = layouts[name].words
        address = 0
        for other in sorted(alive, key=lambda n: placed[n].address):
            if address + words <= placed[other].address:
                break
            address = max(address, placed[other].address + layouts[other].words)
        if address + words > geometry.activation_words:
            raise CapacityError(
                f"{network.name}: {where}: tensor {name!r} needs {words} activation words, "
                f"{geometry.activation_words - address} of {geometry.activation_words} are free; "
                "use a geometry with more activation_words or smaller maps"
            )
        placed[name] = Placement(layouts[name], address)
        alive.append(name)

    for name in network.inputs:
        put(name, "input")
    if exclusive:
        for name in network.outputs:
            put(name, "output")
    always = list(alive) if exclusive else []
    for index, op in enumerate(network.ops):
        if op.output not in placed:
            put(op.output, op.name)
        alive[:] = [name for name in alive if name in always or uses[name] + spare > index]
    return placed


def by_size(
    network: Network, layouts: dict[str, PlaneLayout], geometry: Geometry, spare: int, exclusive: bool
) -> dict[str, Placement]:
    """First fit, the largest tensor first, beside those that live at the same time."""
    uses = last_uses(network)
    made = {op.output: index for index, op in enumerate(network.ops)} | dict.fromkeys(network.inputs, -1)
    always = {*network.inputs, *network.outputs} if exclusive else set()
    placed: dict[str, Placement] = {}

    def together(one: str, other: str) -> bool:
        first, second = sorted((one, other), key=lambda name: made[name])
        return bool(always & {one, other}) or uses[first] + spare >= made[second]

    for name in sorted(made, key=lambda name: -layouts[name].words):
        words, address = layouts[name].words, 0
        taken = [(where.address, where.layout.words) for other, where in placed.items() if together(name, other)]
        for begin, size in sorted(taken):
            if address + words <= begin:
                break
            address = max(address, begin + size)
        if address + words > geometry.activation_words:
            raise CapacityError(f"{network.name}: tensor {name!r} needs {words} activation words")
        placed[name] = Placement(layouts[name], address)
    return placed
