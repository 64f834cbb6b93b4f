"""Model files with something wrong in them: each is refused by a SenteiError, or compiles. 2,000 by night."""

import numpy as np
import onnx
import pytest
from helpers.float_networks import Layer, build
from helpers.random_networks import ModelWriter, random_model
from helpers.tiers import seeds
from onnx import TensorProto, helper, numpy_helper

from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import HANDLERS, load
from sentei.host.frontend.operators import quantizers
from sentei.overlay.errors import SenteiError
from sentei.overlay.geometry import PRESETS

MUTATED = (100, 2000)
OPERATORS = [*HANDLERS, *quantizers.HANDLERS, "Concat", "Sqrt", "NoSuchOperator"]


def line_model(random: np.random.Generator) -> onnx.ModelProto:
    """A model of a line, with QuantizeLinear, a Transpose, and a softmax behind it."""
    writer = ModelWriter()
    scale, point = writer.constant(0.25), writer.constant(0, np.uint8)
    name = writer.node("Transpose", writer.quant("input", 2.0**-7, 8, True), perm=[0, 2, 1])
    weights = writer.quant(writer.constant(random.normal(size=(4, 2, 3))), 0.1, 4, True)
    levels = writer.node("QuantizeLinear", writer.node("Conv", name, weights), scale, point)
    levels = writer.node("Clip", levels, writer.constant(0, np.uint8), writer.constant(15, np.uint8))
    name = writer.node("Flatten", writer.node("DequantizeLinear", levels, scale, point))
    weights = writer.quant(writer.constant(random.normal(size=(24, 3))), 0.1, 4, True)
    name = writer.node("Softmax", writer.node("MatMul", name, weights), axis=1)
    return writer.model((1, 8, 2), name, 2)


def some_model(random: np.random.Generator) -> onnx.ModelProto:
    kind = random.integers(3)
    if kind == 0:
        return random_model(int(random.integers(1000)))[0]
    if kind == 1:
        return line_model(random)
    layer = Layer(3, 4, True, 4, True, "before", True, "ROUND", 1, True, 0.1)
    return build(random, [layer, layer], "Gemm", False, 1 / 255)


def mutated(random: np.random.Generator, model: onnx.ModelProto) -> bytes:
    """The model's file with one to three mistakes."""
    for _ in range(random.integers(1, 4)):
        random.choice([node_mistake, value_mistake, graph_mistake])(random, model.graph)
    content = bytearray(model.SerializeToString())
    if random.random() < 0.3:
        for position in random.integers(len(content), size=3):
            content[position] = random.integers(256)
    return bytes(content)


def node_mistake(random: np.random.Generator, graph: onnx.GraphProto) -> None:
    node = graph.node[random.integers(len(graph.node))]
    names = [name for other in graph.node for name in (*other.input, *other.output)]
    kind = random.integers(7)
    if kind == 0:
        node.op_type = str(random.choice(OPERATORS))
    elif kind == 1 and node.input:
        node.input[random.integers(len(node.input))] = str(random.choice(["", "nowhere", *names]))
    elif kind == 2 and node.input:
        del node.input[random.integers(len(node.input))]
    elif kind == 3 and node.attribute:
        del node.attribute[random.integers(len(node.attribute))]
    elif kind == 4:
        name = str(random.choice(["axis", "axes", "kernel_shape", "pads", "strides", "perm", "group", "dilations"]))
        values = random.integers(-3, 9, random.integers(0, 5)).tolist()
        value = values if random.random() < 0.7 else int(random.integers(-9, 9))
        for attribute in [attribute for attribute in node.attribute if attribute.name == name]:
            node.attribute.remove(attribute)
        if value != []:
            node.attribute.append(helper.make_attribute(name, value))
    elif kind == 5:
        node.domain = str(random.choice(["", "qonnx.custom_op.general", "com.example"]))
    elif node.output:
        node.output[0] = str(random.choice(names))


def value_mistake(random: np.random.Generator, graph: onnx.GraphProto) -> None:
    tensor = graph.initializer[random.integers(len(graph.initializer))]
    array = numpy_helper.to_array(tensor)
    kind = random.integers(6)
    if kind == 0:
        number = random.choice([0, -1, np.inf, -np.inf, np.nan, 1e30, 1e-30, 300])
        array = np.full(array.shape, number).astype(np.float32)
    elif kind == 1:
        array = array.reshape(-1)
    elif kind == 2:
        array = np.stack([array, array])
    elif kind == 3:
        array = array.reshape(-1)[: array.size // 2]
    elif kind == 4:
        array = array.astype(random.choice([np.int8, np.int64, np.float64, np.uint8, bool]))
    else:
        array = array * np.float32(random.choice([1e4, 1e-4, -1]))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def graph_mistake(random: np.random.Generator, graph: onnx.GraphProto) -> None:
    kind = random.integers(5)
    dims = graph.input[0].type.tensor_type.shape.dim
    if kind == 0 and dims:
        dims[random.integers(len(dims))].dim_value = int(random.choice([0, -1, 1, 2, 7, 100_000]))
    elif kind == 1:
        del dims[-1:]
    elif kind == 2:
        graph.input[0].type.tensor_type.elem_type = int(random.choice([TensorProto.UINT8, TensorProto.INT64, 0, 77]))
    elif kind == 3:
        del graph.node[random.integers(len(graph.node))]
    else:
        graph.output[0].name = str(random.choice([name for node in graph.node for name in node.output]))


@pytest.mark.parametrize("seed", seeds(*MUTATED))
def test_a_file_with_mistakes_compiles_or_is_refused_in_words(tmp_path, seed):
    random = np.random.default_rng(seed)
    (tmp_path / "model.onnx").write_bytes(mutated(random, some_model(random)))
    with np.errstate(all="ignore"):
        try:
            compile_network(load(tmp_path / "model.onnx"), PRESETS["8x8"])
        except SenteiError as error:
            assert len(str(error)) > 20
