"""QONNX to the integer IR: `load` walks a model's graph once and refuses, by name, what the array cannot compute.

    file --> model_file.read_graph --> one handler for each operator --> Network, checked
                                 (elementwise, pools, products, quantizers, shapes)

Quant nodes say which values are integers: the one on the graph's input defines what the network is fed (integers; the
model's own input is integer * scale), those on weights the kernels, those on activations where a convolution or pool
ends. The float32 operations in between become thresholds that equal them for every reachable accumulator (see
`host/arithmetic/thresholds.py`). The model's arithmetic is that of qonnx's node by node execution: each node one
onnxruntime call, so nothing is fused and each elementwise operation rounds once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from sentei.host.arithmetic.float_chain import Divide, Offset, Operation, Quantizer, Scale, is_power_of_two
from sentei.host.errors import (
    InexactModel,
    ModelFileError,
    SenteiError,
    UnsupportedAttribute,
    UnsupportedModel,
    UnsupportedOperator,
)
from sentei.host.frontend import elementwise, pools, products, quantizers, shapes
from sentei.host.frontend.builder import Builder
from sentei.host.frontend.inputs import input_type
from sentei.host.frontend.model_file import Graph, read_graph
from sentei.host.frontend.translator import Constant, RawInput, Translator
from sentei.host.frontend.values import Activation
from sentei.host.network.ir import Network, Shape, accumulator_range
from sentei.host.network.law import check
from sentei.overlay.program import Doubt

HANDLERS = elementwise.HANDLERS | pools.HANDLERS | products.HANDLERS | shapes.HANDLERS


OUTPUT_REMEDY = "end the network with at most one Mul and one Add, or with a Quant node of at most 4 bits"


def load(source: str | Path | onnx.ModelProto, strict: bool = False, input: str | None = None) -> Network:
    """The integer network of a QONNX file, `ModelProto` or qonnx `ModelWrapper`; raises a `SenteiError`.

    It computes what the model means: its integers and scales in real numbers. Where float32 execution of the model
    may decide otherwise, `Network.doubts` says so; `strict` refuses such a model (`InexactModel`). `input` says which
    integers the model's input holds if the model does not: "uint8", or "int8:1/128" with what one step means.
    """
    graph = read_graph(source)
    constants = {name: Constant(array) for name, array in graph.constants.items()}
    translator = Translator(graph.opsets, constants, HANDLERS, quantizers.HANDLERS, Builder(strict=strict))
    raw = raw_input(graph)
    translator.values[graph.input] = raw
    said = input_type(input) if input else graph.input_type
    if said is not None:
        quantizer = Quantizer(np.float32(said.scale), said.bits, said.signed, False, np.round)
        label = f"input {graph.input!r}"
        translator.values[graph.input] = translator.builder.add_input(raw.name, raw.shape, quantizer, label, raw.flat)
    for node in graph.nodes:
        try:
            translator.translate(node)
        except SenteiError:
            raise
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{node}: its attributes or inputs are not valid ONNX ({error}): damaged file?"
            ) from error
    output = translator.values[graph.output]
    builder = translator.builder
    if not isinstance(output, Activation) or not (builder.ops or output.op or output.chain.operations):
        raise UnsupportedModel(f"{graph.name}: the output {graph.output!r} must come from a convolution or a pool")
    name, scale, offset = network_output(builder, output, graph.output)
    ops, doubts = tuple(builder.ops), tuple(builder.doubts)
    return check(
        Network(graph.name, builder.tensors, ops, graph.input, name, scale, offset, doubts, builder.preprocessing)
    )


def raw_input(graph: Graph) -> RawInput:
    """The graph's input, with a known shape apart from the batch."""
    extents = graph.input_shape[1:]
    if len(graph.input_shape) not in (2, 4) or None in extents:
        shape = ", ".join("?" if size is None else str(size) for size in graph.input_shape)
        raise UnsupportedAttribute(
            f"{graph.name}: input {graph.input!r} must have a fixed shape (N, C, H, W) or (N, features), not "
            f"({shape}): set it when exporting, or with onnx.tools.update_model_dims"
        )
    flat = len(extents) == 1
    return RawInput(graph.input, Shape(*extents, 1, 1) if flat else Shape(*extents), flat, graph.input_shape[0] or 1)


def network_output(builder: Builder, activation: Activation, name: str) -> tuple[str, np.ndarray, np.ndarray]:
    """(tensor, output_scale, output_offset) of the graph's output; emits the operator that it waits for."""
    place = f"output {name!r}, after {activation.label}"
    if activation.stored_maximum:
        activation = builder.as_plain(activation, place)
    if activation.maximum is not None or activation.chain.residual is not None:
        what = "a MaxPool of unquantized values" if activation.maximum else "an unquantized residual addition"
        raise UnsupportedOperator(f"{place}: the network ends in {what}: end it with a Quant node of at most 4 bits")
    if any(activation.pads):
        raise UnsupportedOperator(f"{place}: the network ends in a Pad: remove it")
    rounded = None
    try:
        scale, offset = output_affine(activation, place)
    except InexactModel as error:
        if builder.strict:
            raise
        rounded, (scale, offset) = error, affine_as_meant(activation, place)
    tensor = builder.wide(activation, name) if activation.op is not None else activation.source
    if rounded is not None:
        op = builder.ops[-1]
        low, high = accumulator_range(op, builder.tensors[op.input])
        builder.doubts.append(Doubt(op.name, int((high - low + 1).sum()), len(low), outputs=True))
    return tensor, scale, offset


def affine_as_meant(activation: Activation, place: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 (scale, offset), each (C,), nearest to what the chain means."""
    scale, offset = activation.chain.start.unit, activation.chain.start.offset
    for operation in activation.chain.operations:
        if isinstance(operation, Scale):
            scale, offset = scale * operation.factor, offset * operation.factor
        elif isinstance(operation, Divide):
            scale, offset = scale / operation.divisor, offset / operation.divisor
        elif isinstance(operation, Offset):
            offset = offset + operation.offset
        else:
            raise cannot_follow(operation, place)
    return scale.astype(np.float32), offset.astype(np.float32)


def cannot_follow(operation: Operation, place: str) -> UnsupportedOperator:
    return UnsupportedOperator(f"{place}: a {type(operation).__name__} cannot follow the accumulator: {OUTPUT_REMEDY}")


def output_affine(activation: Activation, place: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 (scale, offset), each (C,), such that the chain is exactly `float32(integer) * scale + offset`.

    Factors that are powers of two round nothing and can be moved; of the others one is left, as is one addition.
    """
    if not activation.chain.known:
        raise InexactModel(
            f"{place}: the model's float sums are rounded, so its output is not a function of the accumulator: use "
            "power-of-two scales for input and weights, and MatMul followed by Add instead of a bias inside Gemm"
        )
    scale, offset = activation.chain.start.unit, None
    if not np.array_equal(scale.astype(np.float32), scale):
        raise InexactModel(f"{place}: input scale * weight scale is not a float32: use power-of-two scales")
    for operation in activation.chain.operations:
        if isinstance(operation, Divide) and is_power_of_two(operation.divisor).all():
            operation = Scale(1 / operation.divisor)
        if isinstance(operation, Scale):
            factor = operation.factor.astype(np.float64)
            free = is_power_of_two(factor)
            if not (free if offset is not None else free | is_power_of_two(scale)).all():
                raise InexactModel(f"{place}: multiplies by {factor[~free][0]} after another rounding: {OUTPUT_REMEDY}")
            scale = scale * factor
            offset = None if offset is None else offset * factor
        elif isinstance(operation, Offset) and offset is None:
            offset = operation.offset.astype(np.float64)
        elif isinstance(operation, Divide | Offset):
            raise InexactModel(f"{place}: rounds more than once in float32: {OUTPUT_REMEDY}")
        else:
            raise cannot_follow(operation, place)
    offset = np.zeros_like(scale) if offset is None else offset
    return scale.astype(np.float32), offset.astype(np.float32)
