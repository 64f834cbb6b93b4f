"""QONNX to the integer IR: `load` walks a model's graph once and refuses, by name, what the array cannot compute.

    file --> model_file.read_graph --> one handler for each operator --> outputs.finish --> Network, checked
                                       (operators/)

Quant nodes say which values are integers: the one on the graph's input defines what the network is fed (integers; the
model's own input is integer * scale), those on weights the kernels, those on activations where a convolution or pool
ends. The float32 operations in between become thresholds that equal them for every reachable accumulator (see
`host/arithmetic/thresholds.py`). The model's arithmetic is that of qonnx's node by node execution: each node one
onnxruntime call, so nothing is fused and each elementwise operation rounds once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from sentei.host.arithmetic.float_chain import Quantizer
from sentei.host.errors import MissingScale, ModelFileError, SenteiError, UnsupportedAttribute
from sentei.host.frontend.builder import Builder
from sentei.host.frontend.finn import expand
from sentei.host.frontend.inputs import InputType, input_type
from sentei.host.frontend.model_file import Graph, read_graph
from sentei.host.frontend.operators import (
    elementwise,
    joins,
    pools,
    products,
    quantize_linear,
    quantizers,
    shapes,
    tails,
    thresholding,
)
from sentei.host.frontend.outputs import finish
from sentei.host.frontend.translator import Translator
from sentei.host.frontend.values import Constant, RawInput
from sentei.host.network.ir import Network
from sentei.host.network.law import check

FAMILIES = (elementwise, joins, pools, products, quantize_linear, shapes, tails)
HANDLERS = {name: handler for family in FAMILIES for name, handler in family.HANDLERS.items()}


def load(source: str | Path | onnx.ModelProto, strict: bool = False, input: str | None = None) -> Network:
    """The integer network of a QONNX file, `ModelProto` or qonnx `ModelWrapper`; raises a `SenteiError`.

    It computes what the model means: its integers and scales in real numbers. Where float32 execution of the model
    may decide otherwise, `Network.doubts` says so; `strict` refuses such a model (`InexactModel`). `input` says which
    integers the model's input holds if the model does not: "uint8", or "int8:1/128" with what one step means.
    """
    return walk(read(source), Builder(strict=strict), input)


def read(source: str | Path | onnx.ModelProto) -> Graph:
    """The graph of a file, in ONNX's and QONNX's operators."""
    graph = read_graph(source)
    constants = dict(graph.constants)
    return replace(graph, nodes=tuple(expand([*graph.nodes], constants)), constants=constants)


def walk(graph: Graph, builder: Builder, input: str | None) -> Network:
    """The network that `builder` makes of the graph."""
    constants = {name: Constant(array) for name, array in graph.constants.items()}
    quantizing = quantizers.HANDLERS | thresholding.HANDLERS
    batch = graph.input_shape[0] or 1
    translator = Translator(
        graph.opsets, constants, HANDLERS, quantizing, tails.BEHIND_TAILS, joins.distribute, batch, builder
    )
    require_quantized(graph)
    translator.values[graph.input] = raw_input(graph)
    said = input_type(input) if input else graph.input_type
    if said is not None:
        translator.values[graph.input] = said_input(translator, graph, said)
    for node in graph.nodes:
        try:
            translator.translate(node)
        except SenteiError:
            raise
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{node}: its attributes or inputs are not valid ONNX ({error}): damaged file?"
            ) from error
    return check(finish(translator.builder, graph, translator.values[graph.output]))


def require_quantized(graph: Graph) -> None:
    """MissingScale for a model of floats and nothing else."""
    quantizing = {*quantizers.HANDLERS, *thresholding.HANDLERS, *quantize_linear.HANDLERS}
    products_of = [node for node in graph.nodes if node.op_type in ("Conv", "Gemm", "MatMul") and len(node.inputs) > 1]
    weights = [graph.constants[node.inputs[1]] for node in products_of if node.inputs[1] in graph.constants]
    if any(node.op_type in quantizing for node in graph.nodes) or not weights:
        return
    if any((array != np.round(array)).any() for array in weights):
        raise MissingScale(
            f"{graph.name}: the model is not quantized, all its numbers are floats: `sentei quantize MODEL --calibrate "
            "PICTURES` makes integers of them, at some loss of accuracy; training with Quant nodes loses less"
        )


def raw_input(graph: Graph) -> RawInput:
    """The graph's input, with a known shape apart from the batch."""
    dims = graph.input_shape[1:]
    sizes = tuple(size for size in dims if size is not None)
    if len(graph.input_shape) not in (2, 3, 4) or len(sizes) != len(dims):
        shape = ", ".join("?" if size is None else str(size) for size in graph.input_shape)
        raise UnsupportedAttribute(
            f"{graph.name}: input {graph.input!r} must have a fixed shape (N, C, H, W), (N, C, L) or (N, features), "
            f"not ({shape}): set it when exporting, or with onnx.tools.update_model_dims"
        )
    return RawInput(graph.input, np.arange(int(np.prod(sizes))).reshape(sizes), sizes, graph.integers)


def said_input(translator: Translator, graph: Graph, said: InputType):
    """The input as a user or an annotation says that it is."""
    quantizer = Quantizer(np.float32(said.scale), said.bits, said.signed, False, np.round)
    raw = translator.values[graph.input]
    return quantizers.quantize_input(translator, f"input {graph.input!r}", raw, quantizer)
