"""The network that is being made: `Builder` collects its tensors and operators.

`quantize` emits what an `Activation` waits for, and makes a plain one of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sentei.host.arithmetic.float_chain import Chain, Quantizer, start_of_tensor
from sentei.host.arithmetic.real_thresholds import requantize_as_meant
from sentei.host.arithmetic.thresholds import identity, requantize
from sentei.host.errors import InexactModel, MissingScale, UnsupportedOperator
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.values import QUANTIZE_IT, Activation
from sentei.host.network.ir import (
    WIDE,
    Conv,
    Pads,
    Pool,
    Preprocessing,
    Shape,
    Tensor,
    accumulator_range,
    kernel_of,
    output_extent,
)
from sentei.overlay.program import Doubt


@dataclass
class Builder:
    """Tensors and operators of the network so far."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Conv | Pool] = field(default_factory=list)
    quantized: dict[tuple, Activation] = field(default_factory=dict)  # by value and quantizer: each is emitted once
    maxima: dict[Pool, str] = field(default_factory=dict)
    strict: bool = False  # refuse what float32 execution may decide otherwise
    doubts: list[Doubt] = field(default_factory=list)
    preprocessing: Preprocessing | None = None

    def add_input(self, name: str, shape: Shape, quantizer: Quantizer, label: str, flat: bool) -> Activation:
        self.tensors[name] = Tensor(
            name, shape, quantizer.bits, quantizer.signed, float(quantizer.scale), quantizer.narrow
        )
        return self.activation_of(name, label, flat)

    def activation_of(self, name: str, label: str, flat: bool) -> Activation:
        """The plain activation of an IR tensor."""
        tensor = self.tensors[name]
        return Activation(
            name, tensor.shape, Chain(start_of_tensor(tensor.scale, tensor.shape.channels)), label, flat=flat
        )

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
        op = self.operator_of(activation, node.name)
        low, high = accumulator_range(op, self.tensors[op.input])
        residual = self.tensors.get(activation.chain.residual or "")
        arguments = (f"{node} after {op.name!r}", activation.chain, quantizer, low, high, residual)
        try:
            spec = requantize(*arguments)
        except InexactModel:
            if self.strict:
                raise
            spec, doubt = requantize_as_meant(*arguments)
            self.doubts += [replace(doubt, layer=op.name)] if doubt else []
        if activation.maximum is not None:
            self.require_rising(activation, activation.maximum, node)
        name = self.free_name(name, set(self.tensors))
        first = f"{name} before {activation.maximum.name}" if activation.maximum else name
        extent = self.extent(op, self.tensors[op.input].shape)
        tensor = Tensor(first, extent, quantizer.bits, quantizer.signed, float(quantizer.scale))
        self.emit(replace(op, requantize=spec), tensor)
        if activation.maximum is not None:
            pool = replace(activation.maximum, name=self.op_name(activation.maximum.name), input=first)
            self.emit(replace(pool, requantize=identity(tensor)), replace(tensor, name=name, shape=activation.shape))
        return self.activation_of(name, str(node), activation.flat)

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
        self.emit(op, Tensor(name, self.extent(op, self.tensors[op.input].shape), WIDE, True))
        return name

    def emit(self, op: Conv | Pool, target: Tensor) -> None:
        self.tensors[target.name] = target
        self.ops.append(replace(op, output=target.name))

    def extent(self, op: Conv | Pool, source: Shape) -> Shape:
        """The shape that an operator yields."""
        rows, columns = kernel_of(op)
        return Shape(
            len(op.weights) if isinstance(op, Conv) else source.channels,
            output_extent(source.height, rows, op.stride[0], op.pads.top, op.pads.bottom),
            output_extent(source.width, columns, op.stride[1], op.pads.left, op.pads.right),
        )

    def as_plain(self, activation: Activation, reader: str) -> Activation:
        """The activation as a quantized tensor (padding may wait); emits a maximum of one, refuses anything else."""
        if replace(activation, pads=Pads()).plain:
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
        return self.activation_of(self.maxima[pool], activation.label, activation.flat)
