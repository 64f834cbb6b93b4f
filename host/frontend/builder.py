"""The network that is being made: `Builder` collects its tensors and operators.

`quantize` emits what an `Activation` waits for, and makes a plain one of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from sentei.host.arithmetic.float_chain import Chain, Leak, Offset, Quantizer, start_of_tensor
from sentei.host.arithmetic.halves import NIBBLE, low_nibble, nibbles, worth
from sentei.host.arithmetic.real_thresholds import requantize_as_meant, requantize_sum_as_meant
from sentei.host.arithmetic.thresholds import Piece, identity, quiet_offsets, requantize
from sentei.host.errors import InexactModel, MissingScale, UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.axes import Axes, map_axes, sizes, tidy, to_model
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.sums import (
    COARSE,
    FINER,
    absorbed,
    remainder,
    remainder_factors,
    terms_of,
    with_room,
)
from sentei.host.frontend.values import QUANTIZE_IT, Activation, Tail, Value, Wide
from sentei.host.network.ir import (
    WIDE,
    Conv,
    InputOrder,
    Pads,
    Pool,
    Preprocessing,
    Shape,
    Tensor,
    Term,
    accumulator_range,
    map_of,
)
from sentei.overlay.program import Doubt

T = TypeVar("T")


def required(value: T | None, what: str) -> T:
    """An input that is not left out; of the LookupError, `frontend.load` makes one that names the node."""
    if value is None:
        raise LookupError(f"{what} is left out")
    return value


def quantized_tensor(name: str, shape: Shape, quantizer: Quantizer) -> Tensor:
    """The tensor of a quantizer's levels."""
    scale = float(quantizer.scale) if quantizer.worth is None else quantizer.worth
    return Tensor(name, shape, quantizer.bits, quantizer.signed, scale, quantizer.narrow, quantizer.zero_point)


@dataclass
class Builder:
    """Tensors and operators of the network so far."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Conv | Pool] = field(default_factory=list)
    quantized: dict[tuple, Activation] = field(default_factory=dict)  # by value and quantizer: each is emitted once
    maxima: dict[Pool, str] = field(default_factory=dict)
    strict: bool = False  # refuse what float32 execution may decide otherwise
    avoid_ties: bool = False  # move offsets so that it does not
    moved: dict[str, np.ndarray] = field(default_factory=dict)  # by how much before Quant nodes, named by their outputs
    doubts: list[Doubt] = field(default_factory=list)
    preprocessing: Preprocessing | None = None
    input_order: InputOrder | None = None

    def add_input(
        self, name: str, order: InputOrder, quantizer: Quantizer, label: str, axes: Axes, found: Preprocessing | None
    ) -> Activation:
        """The network's input, which comes in `order` and preprocessed as `found`."""
        self.tensors[name] = quantized_tensor(name, Shape(*order.elements.shape), quantizer)
        self.input_order, self.preprocessing = order, found
        return self.activation_of(name, label, axes)

    def is_fresh_input(self, activation: Activation) -> bool:
        """Whether it is the network's input, which nothing has read so far."""
        return not self.ops and list(self.tensors) == [activation.source]

    def turn_input(self, activation: Activation, parts: tuple[int, int, int], values: dict[str, Value]) -> Activation:
        """Let the input's channels, rows and columns be those `parts` of what they were so far, in all `values`."""
        name = activation.source
        tensor, order = self.tensors[name], required(self.input_order, "the input")
        shape = Shape(*(tensor.shape[part] for part in parts))
        self.tensors[name] = replace(tensor, shape=shape)
        self.input_order = replace(order, elements=order.elements.transpose(parts))
        if (known := self.preprocessing) is not None:
            if (known.table != known.table[:1]).any():
                raise UnsupportedOperator(f"{activation.label}: what is done before it varies over the map")
            table, reached = (np.repeat(part[:1], shape.channels, 0) for part in (known.table, known.reached))
            self.preprocessing = replace(known, table=table, reached=reached)

        def turned(value: Activation) -> Activation:
            axes = tuple(tuple(parts.index(part) for part in axis) for axis in value.axes)
            if not value.plain:
                raise UnsupportedOperator(f"{value.label}: comes before the input is transposed: transpose it first")
            return self.activation_of(name, value.label, axes)

        values.update({key: turned(value) for key, value in values.items() if isinstance(value, Activation)})
        self.quantized.update({key: turned(value) for key, value in self.quantized.items()})
        return turned(activation)

    def rename_input(
        self, activation: Activation, quantizer: Quantizer, label: str, values: dict[str, Value]
    ) -> Activation | None:
        """The network's input, so far unused, as another quantizer's levels; None if it cannot be that.

        What the model makes of the input's levels becomes part of its preprocessing.
        """
        name = activation.source
        tensor = self.tensors[name]
        if not self.is_fresh_input(activation) or not 4 < quantizer.bits <= 8:
            return None
        if activation.op is not None or activation.maximum is not None or activation.chain.residual:
            return None
        channels = np.ones(tensor.shape.channels)
        known = self.preprocessing or Preprocessing.of_steps(tensor.integers, channels * tensor.scale, 0 * channels)
        levels = np.broadcast_to(np.array(tensor.integers), known.table.shape)
        moved = quantizer(activation.chain(levels, np.zeros_like(levels)))
        self.tensors[name] = quantized_tensor(name, tensor.shape, quantizer)
        self.preprocessing = known.then(self.tensors[name].integers, moved)
        twice = UnsupportedOperator(f"{label}: the graph's input is quantized in two ways: use one Quant node on it")
        for key, value in values.items():
            if isinstance(value, Activation):
                values[key] = Tail(value, (), sizes(value.axes, value.shape), twice)
        self.quantized.clear()
        return self.activation_of(name, label, activation.axes)

    def activation_of(self, name: str, label: str, axes: Axes) -> Activation:
        """The plain activation of an IR tensor."""
        tensor = self.tensors[name]
        chain = Chain(start_of_tensor(tensor.scale, tensor.shape.channels))
        return Activation(name, tensor.shape, chain, label, axes=tidy(axes, tensor.shape))

    def free_name(self, wanted: str, taken: set[str]) -> str:
        """`wanted`, or `wanted_2`, `wanted_3`... if it is taken."""
        count, name = 1, wanted
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        return name

    def op_name(self, wanted: str) -> str:
        return self.free_name(wanted, {op.name for op in self.ops})

    def operator_of(self, activation: Activation, name: str) -> Conv | Pool:
        """The operator that computes the activation's accumulator; without one, a sum over 1x1 windows."""
        op = activation.op or Pool(name, activation.source, "", "sum", (1, 1))
        return replace(op, name=self.op_name(op.name))

    def quantize(self, activation: Activation, quantizer: Quantizer, name: str, node: Node) -> Activation:
        """Emit what `activation` waits for and requantize it to the tensor `name`; a plain activation."""
        op = self.requantized(activation, quantizer, node)
        if activation.maximum is not None:
            self.require_rising(activation, activation.maximum, node)
        name = self.free_name(name, set(self.tensors))
        first = f"{name} before {activation.maximum.name}" if activation.maximum else name
        tensor = quantized_tensor(first, self.extent_of(op), quantizer)
        self.emit(op, tensor)
        if activation.maximum is not None:
            pool = replace(activation.maximum, name=self.op_name(activation.maximum.name), input=first)
            self.emit(replace(pool, requantize=identity(tensor)), replace(tensor, name=name, shape=activation.shape))
        return self.activation_of(name, str(node), activation.axes)

    def requantized(self, activation: Activation, quantizer: Quantizer, node: Node) -> Conv | Pool:
        """The operator that `activation` waits for, with its `Requantize`.

        A tensor that is added is the requantizer's residual if its steps are as large as the result's. Else it becomes
        a term of the sum.
        """
        op = self.operator_of(activation, node.name)
        place = f"{node} after {op.name!r}"
        residual = self.tensors.get(activation.chain.residual or "")
        if self.avoid_ties:
            offsets = quiet_offsets(place, activation.chain, quantizer, *self.reach(op), residual)
            if offsets.any():
                self.moved[node.outputs[0]] = to_model(
                    offsets[:, None, None], activation.axes, Shape(len(offsets), 1, 1)
                )
                activation = activation.then(Offset(offsets))
        arguments = (place, activation.chain, quantizer, *self.reach(op), residual)
        try:
            return self.in_pieces(op, requantize(*arguments), quantizer)
        except InexactModel as error:
            merged = None if residual is None else self.merged(activation, quantizer, node, place)
            if merged is not None:
                return merged
            if self.strict:
                raise
            refusal = error
        try:
            pieces, doubt = requantize_as_meant(*arguments)
        except InexactModel as error:
            if residual is None:
                raise
            refusal, doubt = error, None
        else:
            if residual is None or not (doubt and doubt.ties):
                return self.in_pieces(op, pieces, quantizer, doubt)
        try:
            joined, base, factors = with_room(self.without_maximum(place, activation), self.tensors)
        except UnsupportedOperator:
            raise refusal from None
        limits = self.reach(op)
        pieces, doubt = requantize_sum_as_meant(place, activation.chain, quantizer, limits, residual, base, factors)
        return self.in_pieces(replace(joined, name=op.name), pieces, quantizer, doubt)

    def merged(self, activation: Activation, quantizer: Quantizer, node: Node, place: str) -> Conv | Pool | None:
        """The operator if what its chain adds can be a term of its sum, provably as float32 has it; else None."""
        try:
            whole = absorbed(place, activation, self.tensors)
            op = self.operator_of(whole, node.name)
            pieces = requantize(place, whole.chain, quantizer, *self.reach(op), None)
        except (InexactModel, UnsupportedOperator):
            return None
        return self.in_pieces(op, pieces, quantizer)

    def in_pieces(
        self, op: Conv | Pool, pieces: list[Piece], quantizer: Quantizer, doubt: Doubt | None = None
    ) -> Conv | Pool:
        """The operator with its `Requantize`; if there are several, the sum of as many operators, which are emitted."""
        self.doubts += [replace(doubt, layer=op.name)] if doubt else []
        if len(pieces) == 1:
            return replace(op, requantize=pieces[0].spec)
        names = []
        for number, piece in enumerate(pieces, 1):
            part = self.op_name(f"{op.name} part {number}")
            tensor = quantized_tensor(self.free_name(part, set(self.tensors)), self.extent_of(op), quantizer)
            self.emit(replace(op, name=part, requantize=piece.spec), tensor)
            names.append(tensor.name)
        channels = tensor.shape.channels
        pixels = np.eye(channels, dtype=np.int64)[:, :, None, None]
        first, *others = (Term(name, pixels, groups=channels) for name in names)
        # All but the first piece count the levels below them once more.
        extra = sum(piece.first - quantizer.bias for piece in pieces[1:])
        spec = identity(tensor)
        total = Conv(op.name, first.input, "", pixels, addends=tuple(others), groups=channels)
        return replace(total, requantize=replace(spec, thresholds=spec.thresholds + extra))

    def quantize_wide(self, activation: Activation, quantizer: Quantizer, name: str, node: Node) -> Activation:
        """Emit what `activation` waits for, requantized to two nibbles; the sum of both."""
        place = str(node)
        if (maximum := activation.maximum) is not None:
            self.require_rising(activation, maximum, node)
            before = tidy(map_axes(activation.axes), self.extent_of(self.operator_of(activation, place)))
            whole = self.quantize_wide(replace(activation, maximum=None, axes=before), quantizer, name, node)
            return self.wide_maximum(whole, maximum, node)
        activation = self.without_maximum(place, activation)
        if activation.chain.residual is not None:
            activation = absorbed(place, activation, self.tensors)
        if any(isinstance(operation, Leak) for operation in activation.chain.operations):
            raise UnsupportedBitWidth(f"{node}: behind a LeakyRelu there are at most 4 bits, not {quantizer.bits}")
        op = self.rising(self.operator_of(activation, node.name), activation)
        chain = activation.chain.rising()
        of_high, of_low = nibbles(quantizer)
        arguments = (f"{place} after {op.name!r}", chain, of_high, *self.reach(op), None)
        try:
            pieces, doubt = requantize(*arguments), None
        except InexactModel:
            if self.strict:
                raise
            pieces, doubt = requantize_as_meant(*arguments)
        shape = self.extent_of(op)
        first = self.in_pieces(replace(op, name=self.op_name(f"{op.name} high")), pieces, of_high, doubt)
        high = quantized_tensor(self.free_name(f"{name} high", set(self.tensors)), shape, of_high)
        self.emit(first, high)
        bases, factors, pieces, doubt = self.exact_remainder(place, op, quantizer, chain)
        rest = remainder(place, op, chain, high.name, bases, factors)
        if doubt and self.strict:
            raise InexactModel(
                f"{place}: float32 rounding can decide {doubt.sums} sums otherwise: use scales on one grid"
            )
        second = self.in_pieces(replace(rest, name=self.op_name(f"{op.name} low")), pieces, of_low, doubt)
        low = quantized_tensor(self.free_name(f"{name} low", set(self.tensors)), shape, of_low)
        self.emit(second, low)
        wide = Wide(quantized_tensor(name, shape, quantizer), high.name, low.name)
        return self.sum_of_nibbles(wide, op.name, place, activation.axes)

    def exact_remainder(
        self, place: str, op: Conv | Pool, quantizer: Quantizer, chain: Chain
    ) -> tuple[np.ndarray, np.ndarray, list[Piece], Doubt | None]:
        """Of each channel the coarsest remainder (`remainder_factors`) behind which every low nibble comes out as
        meant, or the coarsest of all, where none does; and the low nibble."""
        limits = self.reach(op)
        bases, factors = remainder_factors(place, quantizer, chain, limits, COARSE)
        pieces, doubt, wrong = low_nibble(op.name, chain, quantizer, limits, bases, factors)
        for finest in FINER:
            if not wrong.any():
                break
            finer = remainder_factors(place, quantizer, chain, limits, finest)
            *_, left = low_nibble(op.name, chain, quantizer, limits, *finer)
            better = (wrong > 0) & (left == 0)
            if better.any():
                bases, factors = (np.where(better, new, old) for new, old in zip(finer, (bases, factors), strict=True))
                pieces, doubt, wrong = low_nibble(op.name, chain, quantizer, limits, bases, factors)
        return bases, factors, pieces, doubt

    def sum_of_nibbles(self, wide: Wide, name: str, label: str, axes: Axes) -> Activation:
        """The activation of a tensor of two nibbles."""
        shape = wide.whole.shape
        pixels = np.eye(shape.channels, dtype=np.int64)[:, :, None, None]
        addends = (Term(wide.low, pixels, groups=shape.channels),)
        total = Conv(name, wide.high, "", NIBBLE * pixels, addends=addends, groups=shape.channels)
        start = Chain(start_of_tensor(wide.whole.scale, shape.channels))
        return Activation(wide.high, shape, start, label, total, tidy(axes, shape), wide=wide)

    def wide_maximum(self, activation: Activation, pool: Pool, node: Node) -> Activation:
        """The maximum of a tensor of two nibbles: that of the high ones; and of the low ones where the high one is the
        maximum."""
        wide = required(activation.stored_wide, "the tensor")
        high, low = self.tensors[wide.high], self.tensors[wide.low]
        extent = self.extent(pool, high.shape)
        sides = zip(pool.kernel, pool.stride, extent[1:], high.shape[1:], strict=True)
        if any(pool.pads) or any(
            window * count != size or (count > 1 and window != step) for window, step, count, size in sides
        ):
            raise UnsupportedOperator(
                f"{node}: a MaxPool of more than 4 bits must cut the map into windows side by side, not {pool.kernel} "
                f"at strides {pool.stride} of {tuple(high.shape)}: quantize to 4"
            )

        def stored(op: Conv | Pool, name: str, like: Tensor, shape: Shape) -> str:
            tensor = replace(like, name=self.free_name(name, set(self.tensors)), shape=shape)
            self.emit(replace(op, name=self.op_name(name), requantize=identity(like)), tensor)
            return tensor.name

        highest = stored(replace(pool, input=high.name), f"{pool.name} high", high, extent)
        everywhere = Pool(pool.name, highest, "", "sum", (1, 1), zoom=pool.kernel)
        everywhere_name = stored(everywhere, f"{pool.name} high everywhere", high, high.shape)
        channels = high.shape.channels
        pixels = np.eye(channels, dtype=np.int64)[:, :, None, None]
        addends = (Term(low.name, pixels, groups=channels), Term(everywhere_name, -NIBBLE * pixels, groups=channels))
        rest = Conv(pool.name, high.name, "", NIBBLE * pixels, addends=addends, groups=channels)
        rest_name = stored(rest, f"{pool.name} rest", low, low.shape)
        lowest = stored(replace(pool, input=rest_name), f"{pool.name} low", low, extent)
        whole = replace(wide.whole, name=f"{wide.whole.name} after {pool.name}", shape=extent)
        return self.sum_of_nibbles(Wide(whole, highest, lowest), pool.name, str(node), map_axes(activation.axes))

    def without_maximum(self, place: str, activation: Activation) -> Activation:
        """The activation as a sum: a maximum of a tensor is emitted, and read."""
        if not isinstance(activation.op, Pool) or activation.op.kind != "max":
            return activation
        stored = self.as_plain(replace(activation, chain=Chain(activation.chain.start)), place)
        return replace(stored.then(*activation.chain.operations), label=activation.label)

    def absorb(self, place: str, activation: Activation) -> Activation:
        """The activation with what its chain adds as a term of its sum."""
        return absorbed(place, self.without_maximum(place, activation), self.tensors)

    def rising(self, op: Conv | Pool, activation: Activation) -> Conv | Pool:
        """The operator with the sign of each channel's sum such that the model's number rises with it."""
        sign = np.where(worth(activation.chain) < 0, -1, 1)
        if (sign > 0).all():
            return op
        terms = terms_of(replace(activation, op=op))
        turned = (replace(term, weights=term.weights * sign[:, None, None, None]) for term in terms)
        return Conv.of_terms(op.name, turned)

    def extent_of(self, op: Conv | Pool) -> Shape:
        return self.extent(op, self.tensors[op.input].shape)

    def reach(self, op: Conv | Pool) -> tuple[np.ndarray, np.ndarray]:
        return accumulator_range(op, self.tensors)

    def require_rising(self, activation: Activation, maximum: Pool, node: Node) -> None:
        """A maximum can be taken after requantization only if what lies between the two keeps the order."""
        for operation in activation.chain.operations[activation.before :]:
            if not operation.rises().all():
                raise UnsupportedOperator(
                    f"{node}: a negative factor lies between MaxPool {maximum.name!r} and this Quant: "
                    "put the Quant node before the MaxPool"
                )

    def wide(self, activation: Activation, name: str) -> str:
        """Emit what `activation` waits for as the network's wide output; the tensor's name."""
        op = self.operator_of(activation, name)
        name = self.free_name(name, set(self.tensors))
        self.emit(op, Tensor(name, self.extent_of(op), WIDE, True))
        return name

    def emit(self, op: Conv | Pool, target: Tensor) -> None:
        self.tensors[target.name] = target
        self.ops.append(replace(op, output=target.name))

    def extent(self, op: Conv | Pool, source: Shape) -> Shape:
        """The shape that an operator yields."""
        return Shape(len(op.weights) if isinstance(op, Conv) else source.channels, *map_of(op, source))

    def enlarged(self, activation: Activation, zoom: tuple[int, int], node: Node) -> Activation:
        """A quantized tensor with each pixel repeated, emitted."""

        def repeat(source: str) -> Pool:
            return Pool("", source, "", "sum", (1, 1), zoom=zoom)

        return self.moved_pixels(activation, repeat, node)

    def moved_pixels(self, activation: Activation, move: Callable[[str], Conv | Pool], node: Node) -> Activation:
        """A quantized tensor whose integers `move`, of a tensor's name, puts elsewhere, emitted; of one of two nibbles
        either."""
        plain = self.as_plain(activation, str(node))
        wide = plain.stored_wide
        if any(plain.pads) or (wide is None and self.tensors[plain.source].bits > 4):
            raise UnsupportedOperator(f"{node}: must read a quantized tensor behind a layer: {QUANTIZE_IT}")

        def moved(name: str) -> Tensor:
            source, op = self.tensors[name], move(name)
            shape = self.extent(op, source.shape)
            target = replace(source, name=self.free_name(node.outputs[0], set(self.tensors)), shape=shape)
            self.emit(replace(op, name=self.op_name(node.name), requantize=identity(target)), target)
            return target

        axes = map_axes(plain.axes)
        if wide is None:
            return self.activation_of(moved(plain.source).name, str(node), axes)
        high, low = moved(wide.high), moved(wide.low)
        whole = replace(wide.whole, name=f"{wide.whole.name} after {node.name}", shape=high.shape)
        return self.sum_of_nibbles(Wide(whole, high.name, low.name), node.name, str(node), axes)

    def as_plain(self, activation: Activation, reader: str) -> Activation:
        """The activation as a quantized tensor (padding may wait); emits a maximum of one, refuses anything else."""
        if replace(activation, pads=Pads()).plain or activation.stored_wide is not None:
            return activation
        source, pool = self.tensors[activation.source], activation.op
        if not isinstance(pool, Pool) or not activation.stored_maximum or source.bits > 4:
            raise MissingScale(
                f"{reader}: reads the result of {activation.label}, which is not quantized: {QUANTIZE_IT}"
            )
        if pool not in self.maxima:
            name = self.free_name(f"{activation.source} after {pool.name}", set(self.tensors))
            op = self.operator_of(activation, pool.name)
            target = replace(source, name=name, shape=self.extent(op, source.shape))
            self.emit(replace(op, requantize=identity(source)), target)
            self.maxima[pool] = name
        return self.activation_of(self.maxima[pool], activation.label, activation.axes)
