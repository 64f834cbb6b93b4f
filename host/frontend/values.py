"""What a value of the float model is in integers, while the frontend walks the graph.

A `Stream` is an IR tensor, an operator on it that is not emitted yet, and the float chain that follows; a Quant node
makes an IR tensor of it. A *plain* stream is a quantized tensor as it left its Quant node: only plain streams can be
read by a convolution or summed by a pool.

    plain --Conv--> op, chain --Mul, Add, Relu--> op, longer chain --Quant--> plain     (Builder.quantize emits op)

`Builder` collects the tensors and operators of the network that is being made.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sentei.host.errors import MissingScale, UnsupportedOperator
from sentei.host.frontend.float_chain import Chain, Quantizer, Step, start_of_tensor
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.thresholds import identity, requantize
from sentei.host.network.ir import (
    WIDE,
    Conv,
    Pads,
    Pool,
    Shape,
    Tensor,
    accumulator_range,
    kernel_of,
    output_extent,
)

QUANTIZE_IT = "put a Quant node of at most 4 bits in between"


@dataclass(frozen=True)
class Stream:
    """A value of the model (see above). `shape` is (C, H, W) as the next node sees it, padding included."""

    source: str  # IR tensor
    shape: Shape
    chain: Chain
    label: str  # the node that made it, for errors
    op: Conv | Pool | None = None  # on `source`; its output and requantize are not known yet
    flat: bool = False  # the model has it as (N, C * H * W)
    pads: Pads = Pads()  # zeros around a plain stream, for the next convolution or sum
    maximum: Pool | None = None  # taken of the values after the first `before` steps of the chain
    before: int = 0

    @property
    def plain(self) -> bool:
        return self.op is None and not self.chain.steps and not any(self.pads) and self.maximum is None

    @property
    def stored_maximum(self) -> bool:
        """Whether it is the maximum of a quantized tensor and nothing else, hence one itself."""
        pooled = isinstance(self.op, Pool) and self.op.kind == "max"
        return pooled and not self.chain.steps and self.maximum is None

    def then(self, *steps: Step) -> Stream:
        return replace(self, chain=self.chain.then(*steps))


@dataclass
class Builder:
    """Tensors and operators of the network so far."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Conv | Pool] = field(default_factory=list)
    quantized: dict[tuple, Stream] = field(default_factory=dict)  # by value and quantizer: each is emitted once
    maxima: dict[Pool, str] = field(default_factory=dict)

    def add_input(self, name: str, shape: Shape, quantizer: Quantizer, label: str, flat: bool) -> Stream:
        self.tensors[name] = Tensor(name, shape, quantizer.bits, quantizer.signed, float(quantizer.scale))
        return self.stream_of(name, label, flat)

    def stream_of(self, name: str, label: str, flat: bool) -> Stream:
        """The plain stream of an IR tensor."""
        tensor = self.tensors[name]
        return Stream(name, tensor.shape, Chain(start_of_tensor(tensor.scale, tensor.shape.channels)), label, flat=flat)

    def free_name(self, wanted: str, taken: set[str]) -> str:
        """`wanted`, or `wanted_2`, `wanted_3`... if it is taken."""
        count, name = 1, wanted
        while name in taken:
            count += 1
            name = f"{wanted}_{count}"
        return name

    def op_name(self, wanted: str) -> str:
        return self.free_name(wanted, {op.name for op in self.ops})

    def operator_of(self, stream: Stream, name: str) -> Conv | Pool:
        """The operator that computes the stream's accumulator; without one, a sum over 1x1 windows."""
        op = stream.op or Pool(name, stream.source, "", "sum", (1, 1))
        return replace(op, name=self.op_name(op.name))

    def quantize(self, stream: Stream, quantizer: Quantizer, name: str, node: Node) -> Stream:
        """Emit what `stream` waits for and requantize it to the tensor `name`; a plain stream."""
        op = self.operator_of(stream, node.name)
        low, high = accumulator_range(op, self.tensors[op.input])
        residual = self.tensors.get(stream.chain.residual or "")
        spec = requantize(f"{node} after {op.name!r}", stream.chain, quantizer, low, high, residual)
        if stream.maximum is not None:
            self.require_rising(stream, stream.maximum, node)
        name = self.free_name(name, set(self.tensors))
        first = f"{name} before {stream.maximum.name}" if stream.maximum else name
        extent = self.extent(op, self.tensors[op.input].shape)
        tensor = Tensor(first, extent, quantizer.bits, quantizer.signed, float(quantizer.scale))
        self.emit(replace(op, requantize=spec), tensor)
        if stream.maximum is not None:
            pool = replace(stream.maximum, name=self.op_name(stream.maximum.name), input=first)
            self.emit(replace(pool, requantize=identity(tensor)), replace(tensor, name=name, shape=stream.shape))
        return self.stream_of(name, str(node), stream.flat)

    def require_rising(self, stream: Stream, maximum: Pool, node: Node) -> None:
        """A maximum can be taken after requantization only if what lies between the two keeps the order."""
        for step in stream.chain.steps[stream.before :]:
            if not step.rises().all():
                raise UnsupportedOperator(
                    f"{node}: a negative factor lies between MaxPool {maximum.name!r} and this Quant: "
                    "put the Quant node before the MaxPool"
                )

    def wide(self, stream: Stream, name: str) -> str:
        """Emit what `stream` waits for as the network's wide output; the tensor's name."""
        op = self.operator_of(stream, name)
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

    def as_plain(self, stream: Stream, reader: str) -> Stream:
        """The stream as a quantized tensor (padding may wait); emits a maximum of one, refuses anything else."""
        if replace(stream, pads=Pads()).plain:
            return stream
        source, pool = self.tensors[stream.source], stream.op
        if not isinstance(pool, Pool) or not stream.stored_maximum or source.bits > 4:
            raise MissingScale(f"{reader}: reads the result of {stream.label}, which is not quantized: {QUANTIZE_IT}")
        if pool not in self.maxima:
            name = self.free_name(f"{stream.source} after {pool.name}", set(self.tensors))
            op = self.operator_of(stream, pool.name)
            target = replace(source, name=name, shape=self.extent(op, source.shape))
            self.emit(replace(op, requantize=identity(source)), target)
            self.maxima[pool] = name
        return self.stream_of(self.maxima[pool], stream.label, stream.flat)
