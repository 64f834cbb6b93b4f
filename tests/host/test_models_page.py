"""docs/models.md and its catalogue: every operator that has a handler, attributes, refusals, worked examples."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.random_networks import QUANT_DOMAIN, ModelWriter
from helpers.tiers import hardware
from onnx import TensorProto
from qonnx.custom_op.registry import getCustomOp

from sentei.host.errors import SenteiError
from sentei.host.frontend.catalogue import OPERATORS, QUANTIZERS
from sentei.host.frontend.importer import HANDLERS, load
from sentei.host.frontend.operators import quantizers, thresholding

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
EXAMPLES = re.findall(r"## (From [^\n]*)\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
REFUSALS = [
    (name, attribute, value)
    for name, operator in (OPERATORS | QUANTIZERS).items()
    for attribute, value in operator.refused.items()
]


def test_the_catalogue_has_every_operator_that_has_a_handler():
    assert set(OPERATORS) == set(HANDLERS)
    assert set(QUANTIZERS) == {*quantizers.HANDLERS, *thresholding.HANDLERS}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_catalogue_has_every_attribute_that_onnx_defines(name):
    every = onnx.defs.get_all_schemas_with_history()
    schemas = [schema for schema in every if (schema.name, schema.domain) == (name, "")]
    assert schemas and set(OPERATORS[name].attributes) == {key for schema in schemas for key in schema.attributes}


@pytest.mark.parametrize("name", ["BipolarQuant", "IntQuant", "MultiThreshold", "Quant", "Trunc"])
def test_the_catalogue_has_every_attribute_that_qonnx_defines(name):
    node = onnx.helper.make_node(name, ["x"], ["y"], domain=QUANT_DOMAIN)
    assert set(getCustomOp(node).get_nodeattr_types()) <= set(QUANTIZERS[name].attributes)


def model_with(name: str, attribute: str, value) -> onnx.ModelProto:
    """A model in which an operator has this attribute."""
    writer = ModelWriter()
    random = np.random.default_rng(0)
    source = writer.quant("input", 0.25, 4, True)

    def weights(*shape: int) -> str:
        return writer.quant(writer.constant(random.normal(size=shape)), 0.25, 4, True)

    conv = writer.node("Conv", source, weights(4, 3, 3, 3))
    attributes = {"kernel_shape": [2, 2]} if name in ("AveragePool", "MaxPool") else {}
    attributes |= {attribute: value}
    if name in QUANTIZERS:
        table = (writer.constant(np.arange(5.0)[None]),) if name == "MultiThreshold" else ()
        parameters = table or tuple(writer.constant(number) for number in (0.5, 0.0, 4.0))
        output = writer.node(name, conv, *parameters, domain=QUANT_DOMAIN, **attributes)
    elif name == "BatchNormalization":
        output = writer.node(name, conv, *(writer.constant(np.ones(4)) for _ in range(4)), **attributes)
    elif name == "Gemm":
        output = writer.node(name, writer.node("Flatten", source), weights(48, 5), **attributes)
    elif name == "Pad":
        amounts = writer.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        output = writer.node("Conv", writer.node(name, source, amounts, **attributes), weights(4, 3, 1, 1))
    elif name == "Resize":
        small = writer.node("Quant", conv, *map(writer.constant, (0.5, 0.0, 4.0)), domain=QUANT_DOMAIN)
        scales = writer.constant([1.0, 1.0, 2.0, 2.0])
        output = writer.node(name, small, writer.constant([]), scales, **{"mode": "nearest", **attributes})
    elif name == "TopK":
        output = writer.node(name, writer.node("Flatten", conv), writer.constant([2], np.int64), **attributes)
    else:
        inputs = conv if name in ("ArgMax", "LogSoftmax", "Softmax", "Flatten", "Cast", "Transpose") else source
        output = writer.node(name, inputs, **attributes)
    return writer.model((1, 3, 4, 4), output, 4, 15)


@pytest.mark.parametrize(("name", "attribute", "value"), REFUSALS)
def test_what_the_catalogue_says_is_refused_is_refused(name, attribute, value):
    with pytest.raises(SenteiError) as caught:
        load(model_with(name, attribute, value))
    assert f"{name} '" in str(caught.value)


@hardware
@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_a_worked_example_works(tmp_path, monkeypatch, title, code):
    if "import torch" in code:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, title, "exec"), {"__name__": "example"})


def test_there_is_an_example_for_each_source():
    assert len(EXAMPLES) == 4
    assert TensorProto.FLOAT == 1  # what Cast's catalogue entry says
