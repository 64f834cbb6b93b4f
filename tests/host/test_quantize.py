"""`sentei quantize`: a float model after training becomes one of 4 bits that compiles."""

import json
import sys

import numpy as np
import onnx
import pytest
from helpers.random_networks import ModelWriter
from onnx import numpy_helper
from PIL import Image

from sentei.host.apps.quantize import best_scales
from sentei.host.commands import cli
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.geometry import PRESETS

HEIGHT, WIDTH, CLASSES = 12, 12, 4


def float_model(random: np.random.Generator) -> onnx.ModelProto:
    """Convolutions, batch norms, a residual, pools and a Gemm, all of floats."""
    writer = ModelWriter()

    def conv(source: str, outputs: int, inputs: int) -> str:
        weights = random.normal(size=(outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
        bias = writer.constant(random.normal(size=outputs) / 9)
        name = writer.node("Conv", source, writer.constant(weights), bias, pads=[1] * 4)
        statistics = (np.ones(outputs), np.zeros(outputs), np.zeros(outputs), np.full(outputs, 0.3))
        return writer.node("BatchNormalization", name, *map(writer.constant, statistics))

    first = writer.node("Relu", conv("input", 8, 3))
    first = writer.node("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2])
    branch = conv(writer.node("Relu", conv(first, 8, 8)), 8, 8)
    name = writer.node("Relu", writer.node("Add", branch, first))
    name = writer.node("Flatten", writer.node("GlobalAveragePool", name))
    weights = writer.constant(random.normal(size=(8, CLASSES)))
    bias = writer.constant(random.normal(size=CLASSES))
    return writer.model((1, 3, HEIGHT, WIDTH), writer.node("Gemm", name, weights, bias), 2)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(3)
    onnx.save(float_model(random), tmp_path / "float.onnx")
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        pixels = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((20, 15)).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path


@pytest.fixture
def sentei(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sentei", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("normalized", [False, True])
def test_a_float_model_is_quantized_compiled_and_near_to_what_it_was(sentei, folder, normalized):
    options = ("--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3") if normalized else ()
    arguments = (folder / "float.onnx", "--calibrate", folder / "pictures", "--json", folder / "figures.json", *options)
    code, text, said = sentei("quantize", *arguments)
    assert (code, said) == (0, ""), said
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["pictures"] == 12 and figures["relative_error"] < 0.35, figures
    assert "same answer as the float model" in text
    network = load(folder / "float-int4.onnx")
    program = compile_network(network, PRESETS["8x8"])
    assert len(program.pixels[0]) == 256 if normalized else program.pixels is None
    bits = {tensor.name: tensor.bits for tensor in network.tensors.values()}
    assert bits[network.input] == 8 and max(bits[op.output] for op in network.ops[:-1]) == 4
    initializers = onnx.load(folder / "float-int4.onnx").graph.initializer
    widths = [numpy_helper.to_array(value) for value in initializers if value.name.endswith("quantized: bits")]
    assert sorted(map(int, widths)) == [4] * (len(widths) - 3) + [8] * 3  # the input, the first and the last weights


def test_what_cannot_be_quantized_is_named(sentei, folder):
    (folder / "empty").mkdir()
    code, _, said = sentei("quantize", folder / "float.onnx", "--calibrate", folder / "empty")
    assert code == 2 and "empty: has no pictures" in said
    code, _, said = sentei("quantize", folder / "float.onnx", "--calibrate", folder / "pictures", "--mean", "a,b")
    assert code == 2 and "--mean must be numbers with commas, one for each channel, not 'a,b'" in said
    np.save(folder / "wrong.npy", np.zeros((2, 3, 5, 5)))
    code, _, said = sentei("quantize", folder / "float.onnx", "--calibrate", folder / "wrong.npy")
    assert code == 2 and "the model does not take pictures of shape (3, 5, 5)" in said
    sentei("quantize", folder / "float.onnx", "--calibrate", folder / "pictures")
    code, _, said = sentei("quantize", folder / "float-int4.onnx", "--calibrate", folder / "pictures")
    assert code == 2 and "is quantized already; compile it" in said


def test_a_float_model_is_refused_with_the_way_on(sentei, folder):
    code, _, said = sentei("compile", folder / "float.onnx")
    assert code == 2 and "`sentei quantize MODEL --calibrate PICTURES` makes integers of them" in said


def test_the_range_of_weights_is_that_which_loses_least():
    rows = np.array([[0.1, -0.1, 0.1, 1.0], [0.7, -0.7, 0.3, 0.1]])
    scales = best_scales(rows, 4)
    assert scales[0] < 1 / 7 and scales[1] == np.float32(0.1)
