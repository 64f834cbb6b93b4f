"""What follows the last layer and is left to the host: each handler appends a step to a `Tail` (overlay/tail.py)."""

from __future__ import annotations

import numpy as np

from sentei.host.errors import UnsupportedAttribute, UnsupportedOperator
from sentei.host.frontend.axes import sizes
from sentei.host.frontend.builder import required
from sentei.host.frontend.model_file import Node
from sentei.host.frontend.translator import Handler, Translator, is_constant
from sentei.host.frontend.values import Tail, Value
from sentei.overlay.tail import TailStep


def tail(translator: Translator, node: Node) -> Tail:
    """The node's input, from here on computed by the host."""
    value = translator.values[node.inputs[0]]
    if isinstance(value, Tail):
        return value
    activation = translator.bare_activation(node)
    refusal = UnsupportedOperator(
        f"{node}: {node.op_type} is computed by the host, hence only behind the last layer: use Relu or Clip between "
        "layers"
    )
    return Tail(activation, (), sizes(activation.axes, activation.shape), refusal)


def function(name: str) -> Handler:
    """The handler of an operator without attributes."""
    return lambda translator, node: tail(translator, node).then(TailStep(name))


def over_axis(name: str) -> Handler:
    """The handler of an operator along one axis. Before opset 13, all axes from that one on count as one."""

    def handler(translator: Translator, node: Node) -> Value:
        value = tail(translator, node)
        version = next(opset.version for opset in translator.opsets if opset.domain in ("", "ai.onnx"))
        rank = 1 + len(value.sizes)
        axis = node.attributes.get("axis", -1 if version >= 13 else 1) % rank
        if axis == 0 or (version < 13 and any(size != 1 for size in value.sizes[axis:])):
            raise UnsupportedAttribute(f"{node}: axis must be that of the channels, not {axis} of {rank}")
        return value.then(TailStep(name, {"axis": axis}))

    return handler


def arg_max(translator: Translator, node: Node) -> Value:
    value = tail(translator, node)
    axis = axis_of(node, value, 0)
    keepdims, last = bool(node.attributes.get("keepdims", 1)), bool(node.attributes.get("select_last_index", 0))
    return value.then(TailStep("largest", {"axis": axis, "count": 1, "keepdims": keepdims, "last": last}))


def top_k(translator: Translator, node: Node) -> dict[str, Value]:
    value = tail(translator, node)
    axis = axis_of(node, value, -1)
    count = translator.array(node, 1, "K")
    number = int(node.attributes.get("k", 1) if count is None else count.reshape(-1)[0])
    if not node.attributes.get("largest", 1) or not 1 <= number <= value.sizes[axis - 1]:
        raise UnsupportedAttribute(f"{node}: must find the largest, 1 to {value.sizes[axis - 1]} of them, not {number}")
    found: dict[str, Value] = {node.outputs[0]: value.then(TailStep("top", {"axis": axis, "count": number}))}
    if len(node.outputs) > 1:
        step = TailStep("largest", {"axis": axis, "count": number, "keepdims": True})
        found[node.outputs[1]] = value.then(step)
    return found


def axis_of(node: Node, value: Tail, default: int) -> int:
    axis = node.attributes.get("axis", default) % (1 + len(value.sizes))
    if axis == 0:
        raise UnsupportedAttribute(f"{node}: axis must not be that of the batch, 0")
    return axis


def binary(name: str) -> Handler:
    """The handler of Add, Mul... of the host's numbers and a constant."""

    def handler(translator: Translator, node: Node) -> Value:
        index = int(is_constant(translator.values[node.inputs[0]]))
        if index and name == "divide":
            raise UnsupportedOperator(f"{node}: divides a constant by activations: only division by constants works")
        value = translator.values[node.inputs[index]]
        if not is_constant(translator.values[node.inputs[1 - index]]):
            raise next(of.refusal for of in map(translator.values.get, node.inputs) if isinstance(of, Tail))
        constant = required(translator.array(node, 1 - index, "operand"), "operand").astype(np.float32)
        if not isinstance(value, Tail) or constant.size != max(constant.shape, default=1):
            raise UnsupportedOperator(f"{node}: {node.op_type} behind the last layer takes one number for each channel")
        by_size = [1] * (1 + len(value.sizes) - constant.ndim) + list(constant.shape)
        if node.op_type == "Sub" and index:
            value = value.then(TailStep("multiply", {"values": [-1.0], "sizes": [1] * len(value.sizes)}))
        elif node.op_type == "Sub":
            constant = -constant
        step = TailStep(name, {"values": [float(number) for number in constant.ravel()], "sizes": by_size[1:]})
        return value.then(step)

    return handler


def relu(translator: Translator, node: Node) -> Value:
    return tail(translator, node).then(TailStep("clip", {"low": 0.0, "high": None}))


HANDLERS: dict[str, Handler] = {
    "ArgMax": arg_max,
    "LogSoftmax": over_axis("log_softmax"),
    "Sigmoid": function("sigmoid"),
    "Softmax": over_axis("softmax"),
    "Tanh": function("tanh"),
    "TopK": top_k,
}
BEHIND_TAILS: dict[str, Handler] = HANDLERS | {
    "Add": binary("add"),
    "Div": binary("divide"),
    "Mul": binary("multiply"),
    "Relu": relu,
    "Sub": binary("add"),
}
