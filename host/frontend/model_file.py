"""Opens an ONNX file and hands out what the frontend walks: nodes in order, constants, one input, one output.

Whatever is wrong with the file itself is found here: `ModelFileError` says what and how to get a good one. Nodes
that the output does not depend on are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from sentei.host.errors import ModelFileError, UnsupportedModel, UnsupportedOperator
from sentei.host.frontend.inputs import InputType, input_type

OPSETS = range(7, 26)
STANDARD_DOMAINS = ("", "ai.onnx")
IR_VERSION = 8  # that every onnxruntime reads


@dataclass(frozen=True)
class Node:
    """One ONNX operator; `str` gives the words by which errors call it."""

    op_type: str
    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    proto: onnx.NodeProto

    def __str__(self) -> str:
        return f"{self.op_type} {self.name!r}"


@dataclass(frozen=True)
class Graph:
    """The part of a model on which its single output depends. `input_shape` has None where the file names no size."""

    name: str
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    input: str
    input_shape: tuple[int | None, ...]
    output: str
    opsets: tuple[onnx.OperatorSetIdProto, ...]
    input_type: InputType | None = None  # of the integers that the file says the input holds
    integers: InputType | None = None  # of those that it has instead of floats


def read_graph(source: str | Path | onnx.ModelProto) -> Graph:
    """The graph of an ONNX file, of a `ModelProto`, or of anything whose `model` is one (qonnx's `ModelWrapper`)."""
    if isinstance(source, (str, Path)):
        model, name = read_file(Path(source)), Path(source).stem
    else:
        inner = getattr(source, "model", source)
        if not isinstance(inner, onnx.ModelProto):
            raise ModelFileError(f"a model must be a path or an onnx.ModelProto, not {type(source).__name__}")
        model, name = inner, inner.graph.name or "model"
    check_opset(name, model)
    constants = read_constants(name, model)
    read = {value for node in model.graph.node for value in node.input}
    inputs = [value for value in model.graph.input if value.name not in constants and value.name in read]
    for what, values in (("input", inputs), ("output", model.graph.output)):
        if len(values) != 1:
            names = ", ".join(repr(value.name) for value in values) or "none"
            raise UnsupportedModel(f"{name}: the model must have one {what}, not {len(values)} ({names})")
    kind = dict(map(reversed, onnx.TensorProto.DataType.items())).get(inputs[0].type.tensor_type.elem_type, "?").lower()
    if kind not in ("float", "uint8", "int8"):
        raise UnsupportedModel(
            f"{name}: input {inputs[0].name!r} must be float (float32), uint8 or int8, not {kind}: export float32"
        )
    output = model.graph.output[0].name
    nodes = live_nodes([read_node(proto) for proto in model.graph.node], output)
    check_connected(name, nodes, {inputs[0].name, *constants}, output)
    dims = inputs[0].type.tensor_type.shape.dim
    opsets = tuple(model.opset_import)
    shape = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims)
    integers = None if kind == "float" else input_type(kind)
    said = annotated(model, inputs[0].name)
    return Graph(name, nodes, constants, inputs[0].name, shape, output, opsets, said, integers)


def annotated(model: onnx.ModelProto, name: str) -> InputType | None:
    """The integers that FINN's annotation names for a tensor, if it does."""
    for annotation in model.graph.quantization_annotation:
        if annotation.tensor_name == name:
            for entry in annotation.quant_parameter_tensor_names:
                if entry.key == "finn_datatype" and entry.value.lower().startswith(("int", "uint")):
                    return input_type(entry.value)
    return None


def read_file(path: Path) -> onnx.ModelProto:
    """Parse `path`, or say why it is not an ONNX model."""
    remedy = "give the path of a QONNX model, for instance one written by brevitas' export_qonnx"
    if not path.exists():
        raise ModelFileError(f"{path}: no such file: {remedy}")
    if path.is_dir():
        raise ModelFileError(f"{path}: is a directory, not an ONNX file: {remedy}")
    try:
        model = onnx.load(path)
    except (DecodeError, ParseError, ValueError, OSError, onnx.checker.ValidationError) as error:
        raise ModelFileError(f"{path}: not a readable ONNX file ({error}): {remedy}") from error
    if not model.graph.node:
        raise ModelFileError(f"{path}: not an ONNX model, it holds no operators: {remedy}")
    return model


def read_constants(name: str, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers as arrays."""
    constants = {}
    for tensor in model.graph.initializer:
        try:
            constants[tensor.name] = numpy_helper.to_array(tensor)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{name}: initializer {tensor.name!r} is unreadable ({error}): damaged file?"
            ) from error
    return constants


def check_opset(name: str, model: onnx.ModelProto) -> None:
    """Refuse operator sets whose operators may mean something else."""
    versions = [opset.version for opset in model.opset_import if opset.domain in STANDARD_DOMAINS]
    if len(versions) != 1 or versions[0] not in OPSETS:
        found = ", ".join(map(str, versions)) or "none"
        raise UnsupportedModel(
            f"{name}: ONNX opset must be {OPSETS[0]} to {OPSETS[-1]}, not {found}: "
            "export with another opset or convert with onnx.version_converter"
        )


def read_node(proto: onnx.NodeProto) -> Node:
    """A `Node`, named after its first output where it has no name."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in proto.attribute}
    texts = {key: value.decode(errors="replace") for key, value in attributes.items() if isinstance(value, bytes)}
    name = proto.name or (proto.output[0] if proto.output else "")
    inputs, outputs = tuple(proto.input), tuple(proto.output)
    op_type, name, domain = (
        text if isinstance(text, str) else text.decode(errors="replace") for text in (proto.op_type, name, proto.domain)
    )
    return Node(op_type, name, domain, inputs, outputs, attributes | texts, proto)


def live_nodes(nodes: list[Node], output: str) -> tuple[Node, ...]:
    """The nodes, in order, on which `output` depends."""
    needed, live = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            live.append(node)
    return tuple(reversed(live))


def check_connected(name: str, nodes: tuple[Node, ...], known: set[str], output: str) -> None:
    """Refuse a graph that reads values nobody computes, or reads them too early."""
    known = known | {""}
    for node in nodes:
        for value in node.inputs:
            if value not in known:
                raise ModelFileError(f"{name}: {node} reads {value!r}, which nothing before it computes: damaged file?")
        known.update(node.outputs)
    if output not in known or not output:
        raise ModelFileError(f"{name}: nothing computes the output {output!r}: damaged file?")


def evaluate(node: Node, arrays: list[np.ndarray | None], opsets: tuple[onnx.OperatorSetIdProto, ...]) -> np.ndarray:
    """The first output of a standard operator whose inputs are all constants (None: left out), by onnxruntime, as
    qonnx's execution has it; by ONNX's own evaluator where that does not know the types."""
    feeds = {name: array for name, array in zip(node.inputs, arrays, strict=True) if array is not None}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=node.outputs[0])]
    graph = helper.make_graph([node.proto], "constant", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    try:
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), quiet(), ["CPUExecutionProvider"])
            (result,) = session.run(None, feeds)
        except Exception:  # onnxruntime's own have no common base
            (result,) = ReferenceEvaluator(model).run(None, feeds)
        return np.asarray(result)
    except Exception as error:
        raise UnsupportedOperator(f"{node}: computing this constant failed ({error}): fold it before export") from error


def quiet() -> onnxruntime.SessionOptions:
    """Options of a session on one thread that prints nothing."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return options
