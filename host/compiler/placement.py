"""Places every tensor: phase modulus, pitch, and address in activation memory.

A window of stride s reads consecutive pixels if its input's modulus is s times its output's (overlay/layout.py); where
pixels are repeated, the output's is so many times the input's. That
relation, and the equality of a residual with the output it is added to, are solved for the whole network, so that no
layer ever rearranges pixels. Maps of one row (or column) are free of it: there is nothing to stride over.

Addresses: first fit in order of execution, over the words that no living tensor occupies; or in order of size, which
leaves fewer gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import lcm

from sentei.host.network.ir import WIDE, Conv, Network, inputs_of, zoom_of
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import Geometry
from sentei.overlay.layout import PlaneLayout

LARGEST_MODULUS = 1 << 12


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
                    for term in op.terms if isinstance(op, Conv) else (op,):
                        stride, zoom = term.stride[axis], zoom_of(term)[axis]
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


def make_layouts(network: Network, geometry: Geometry, batch: int, packed: bool) -> dict[str, PlaneLayout]:
    """Layout of every tensor of `batch` pictures, all with one pitch and one picture pitch; but maps of one pixel have
    a word for each picture. Planes are an odd number of words apart, so that the results of neighbouring channels go to
    different memory banks. The input's may be `packed`: no tile writes them."""
    moduli = solve_moduli(network)
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
            modulus=moduli[name],
            pitch=pitch,
            stride=1,
            pictures=batch,
            picture_pitch=0 if batch == 1 else geometry.lanes if one_pixel else rows * pitch,
            zero_point=tensor.zero_point,
            packed=packed and name == network.input,
        )
        layouts[name] = PlaneLayout(**dict(layout.__dict__, stride=layout.plane_words | 1))
    return layouts


def last_uses(network: Network) -> dict[str, int]:
    """Index of the last operator that reads each tensor; the output lives to the end."""
    uses = dict.fromkeys(network.tensors, -1)
    for index, op in enumerate(network.ops):
        uses.update(dict.fromkeys(inputs_of(op), index))
        if op.requantize is not None and op.requantize.residual is not None:
            uses[op.requantize.residual] = index
    uses[network.output] = len(network.ops)
    return uses


def place(network: Network, geometry: Geometry, batch: int = 1) -> tuple[dict[str, Placement], bool]:
    """Layout and address of every tensor, and whether input and output share their words with no other tensor.

    If there is room, no tensor takes the words of one that the operator just before still reads, and input and output
    have theirs to themselves: then pictures and operators overlap in time. If that does not help, the largest tensors
    are placed first; then the input is packed. Raises CapacityError, naming the operator, if the memory is too
    small.
    """
    residuals = {op.requantize.residual for op in network.ops if op.requantize is not None}
    failure = None
    # A residual is read by whole words, so it cannot be packed.
    for packed in (False, True) if network.input not in residuals else (False,):
        layouts = make_layouts(network, geometry, batch, packed)
        for method, (spare, exclusive) in product((in_order, by_size), ((1, True), (0, True), (0, False))):
            try:
                return method(network, layouts, geometry, spare, exclusive), exclusive
            except CapacityError as error:
                failure = error if method is in_order and not packed else failure
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

    put(network.input, "input")
    if exclusive:
        put(network.output, "output")
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
    made = {op.output: index for index, op in enumerate(network.ops)} | {network.input: -1}
    always = {network.input, network.output} if exclusive else set()
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
