"""The network's end: which tensor it hands out, and what the host makes of it.

    sums --> scale * sum + offset: `Network.dequantize` --> what else the model computes: `Network.tail`

Powers of two round nothing; so the last layer's factors and offsets become one multiplication and one addition, as far
as float32 has the same result. What remains is left to the host, node by node.
"""

from __future__ import annotations

import numpy as np

from sentei.host.arithmetic.float_chain import Chain, Clamp, Divide, Leak, Offset, Operation, Scale, is_power_of_two
from sentei.host.errors import InexactModel, UnsupportedModel, UnsupportedOperator
from sentei.host.frontend.axes import FLAT, NCHW, Axes, order, sizes, tidy
from sentei.host.frontend.builder import Builder
from sentei.host.frontend.model_file import Graph
from sentei.host.frontend.values import Activation, Joined, Tail, Value
from sentei.host.network.ir import InputOrder, Network, Shape, accumulator_range
from sentei.overlay.program import Doubt
from sentei.overlay.tail import OutputTail, TailStep


def finish(builder: Builder, graph: Graph, output: Value) -> Network:
    """The network whose output is that value of the graph's."""
    steps: tuple[TailStep, ...] = ()
    activation = output.activation if isinstance(output, Tail) else output
    if isinstance(output, Joined):
        raise UnsupportedOperator(f"{graph.name}: the output {graph.output!r} is a Concat: put a convolution behind it")
    if not isinstance(activation, Activation) or not (builder.ops or activation.op or activation.chain.operations):
        raise UnsupportedModel(f"{graph.name}: the output {graph.output!r} must come from a convolution or a pool")
    place = f"output {graph.output!r}, after {activation.label}"
    if activation.stored_maximum:
        activation = builder.as_plain(activation, place)
    if activation.maximum is not None:
        raise UnsupportedOperator(
            f"{place}: the network ends in a MaxPool of unquantized values: end it with a Quant node of at most 4 bits"
        )
    if activation.chain.residual is not None:
        activation = builder.absorb(place, activation)
    if any(activation.pads):
        raise UnsupportedOperator(f"{place}: the network ends in a Pad: remove it")
    rounded = not activation.chain.known or not fits_float32(activation.chain.start.unit)
    if rounded and builder.strict:
        raise InexactModel(
            f"{place}: the model's float sums are rounded, so its output is not a function of the accumulator: use "
            "power-of-two scales for input and weights, and MatMul followed by Add instead of a bias inside Gemm"
        )
    scale, offset, rest = (as_meant if rounded else as_computed)(activation.chain)
    steps = tuple(step_of(operation, activation.axes, activation.shape) for operation in rest)
    if isinstance(output, Tail):
        steps += output.steps
    tail = tail_of(activation.axes, activation.shape, steps)
    name = builder.wide(activation, graph.output) if activation.op is not None else activation.source
    if rounded:
        op = builder.ops[-1]
        low, high = accumulator_range(op, builder.tensors)
        builder.doubts.append(Doubt(op.name, int((high - low + 1).sum()), len(low), outputs=True))
    return Network(
        graph.name,
        builder.tensors,
        tuple(builder.ops),
        graph.input,
        name,
        scale,
        offset,
        tuple(builder.doubts),
        builder.preprocessing,
        unless_usual(builder.input_order),
        tail,
    )


def unless_usual(order: InputOrder | None) -> InputOrder | None:
    """None for (N, C, H, W)."""
    usual = order is None or (order.sizes == order.elements.shape and (np.diff(order.elements.ravel()) == 1).all())
    return None if usual else order


def fits_float32(values: np.ndarray) -> bool:
    return np.array_equal(values.astype(np.float32), values)


def as_meant(chain: Chain) -> tuple[np.ndarray, np.ndarray, tuple[Operation, ...]]:
    """float32 (scale, offset), each (C,), nearest to what the chain means, and the operations after them."""
    scale, offset = chain.start.unit, chain.start.offset
    for number, operation in enumerate(chain.operations):
        if isinstance(operation, Scale):
            scale, offset = scale * operation.factor, offset * operation.factor
        elif isinstance(operation, Divide):
            scale, offset = scale / operation.divisor, offset / operation.divisor
        elif isinstance(operation, Offset):
            offset = offset + operation.offset
        else:
            return scale.astype(np.float32), offset.astype(np.float32), chain.operations[number:]
    return scale.astype(np.float32), offset.astype(np.float32), ()


def as_computed(chain: Chain) -> tuple[np.ndarray, np.ndarray, tuple[Operation, ...]]:
    """float32 (scale, offset), each (C,), such that the chain is exactly `float32(integer) * scale + offset`, as far as
    it goes, and the operations after that.

    Factors that are powers of two round nothing and can be moved; of the others one is left, as is one addition.
    """
    scale, offset = chain.start.unit, np.zeros_like(chain.start.unit)
    added = False
    for number, operation in enumerate(chain.operations):
        if isinstance(operation, Divide) and is_power_of_two(operation.divisor).all():
            operation = Scale(1 / operation.divisor)
        if isinstance(operation, Scale):
            factor = operation.factor.astype(np.float64)
            free = is_power_of_two(factor)
            moves = bool((free if added else free | is_power_of_two(scale)).all())
            if moves and fits_float32(scale * factor) and fits_float32(offset * factor):
                scale, offset = scale * factor, offset * factor
                continue
        elif isinstance(operation, Offset) and not added:
            offset, added = operation.offset.astype(np.float64), True
            continue
        return scale.astype(np.float32), offset.astype(np.float32), chain.operations[number:]
    return scale.astype(np.float32), offset.astype(np.float32), ()


def step_of(operation: Operation, axes: Axes, shape: Shape) -> TailStep:
    """An operation of a chain as the host's step on (N, C, H, W)."""
    if isinstance(operation, Clamp):
        low, high = (float(limit) if np.isfinite(limit) else None for limit in (operation.low, operation.high))
        return TailStep("clip", {"low": low, "high": high})
    names = {
        Scale: ("multiply", "factor"),
        Divide: ("divide", "divisor"),
        Offset: ("add", "offset"),
        Leak: ("leak", "slope"),
    }
    name, field = names[type(operation)]
    values = getattr(operation, field)
    full = np.broadcast_to(values[:, None, None], shape).transpose(order(axes, shape))
    by_size = [size if 0 in axis else 1 for axis, size in zip(axes, sizes(axes, shape), strict=True)]
    return TailStep(name, {"values": constant_along(full, axes, shape, by_size), "sizes": by_size})


def constant_along(full: np.ndarray, axes: Axes, shape: Shape, by_size: list[int]) -> list[float]:
    """The numbers of a constant (in the model's order) that differ: one for each element of the axes with channels."""
    values = full.reshape(sizes(axes, shape))
    for axis, size in enumerate(by_size):
        if size == 1:
            values = values.take([0], axis)
    return [float(value) for value in values.ravel()]


def tail_of(axes: Axes, shape: Shape, steps: tuple[TailStep, ...]) -> OutputTail | None:
    """What the host computes; None if it is nothing but to flatten."""
    if not steps and axes in (tidy(NCHW, shape), tidy(FLAT, shape)):
        return None
    first, second, third = (1 + part for part in order(axes, shape))
    return OutputTail((0, first, second, third), sizes(axes, shape), steps)
