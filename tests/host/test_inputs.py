"""What a model's input holds: as the graph says it, with preprocessing or without, or as the user says it."""

import numpy as np
import onnx
import pytest
from helpers.qonnx_execution import execute
from helpers.random_networks import QUANT_DOMAIN, ModelWriter, random_images
from onnx import helper

from sentei.host.errors import InexactModel, MissingScale, UnsupportedBitWidth
from sentei.host.frontend.importer import load
from sentei.host.frontend.inputs import input_type
from sentei.host.network import reference
from sentei.overlay.errors import InputError

SHAPE = (2, 3, 5, 5)


class Picture:
    """A model whose input goes through what a test says, and then through a convolution."""

    def __init__(self):
        self.writer = ModelWriter()
        random = np.random.default_rng(1)
        levels = random.integers(-7, 8, (4, 3, 3, 3)) / 8
        self.weights = self.writer.quant(self.writer.constant(levels), 0.125, 4, True)

    def channels(self, *values: float) -> str:
        return self.writer.constant(np.array(values, np.float32).reshape(1, -1, 1, 1))

    def model(self, source: str) -> onnx.ModelProto:
        name = self.writer.quant(self.writer.node("Conv", source, self.weights), 0.25, 4, True)
        return self.writer.model(SHAPE, name, 4)


def assert_equal(model: onnx.ModelProto, **options) -> None:
    network = load(model, **options)
    images = random_images(0, network, SHAPE[0])
    assert np.array_equal(execute(model, network, images), reference.predict(network, images))


def test_pixels_divided_by_255_are_the_pixels():
    net = Picture()
    scaled = net.writer.node("Div", "input", net.writer.constant(255.0))
    model = net.model(net.writer.quant(scaled, 1 / 255, 8, False))
    pixels = load(model).model_input(np.full((1, 3, 1, 1), 7))
    assert np.array_equal(np.round(pixels, 4), np.full((1, 3, 1, 1), 7.0))
    (doubt,) = load(model).doubts  # 1/255 is no float32
    assert doubt.channels <= 4 and not doubt.ties and not doubt.outputs


def test_mean_and_deviation_of_each_channel_are_part_of_the_input():
    net = Picture()
    centred = net.writer.node("Sub", "input", net.channels(0.5, 0.25, 0.125))
    scaled = net.writer.node("Mul", centred, net.channels(2.0, 4.0, 1.0))
    assert_equal(net.model(net.writer.quant(scaled, 2.0**-6, 8, True)))


@pytest.mark.parametrize("kind", ["Relu", "Neg", "Clip"])
def test_other_preprocessing(kind):
    net = Picture()
    limits = (net.writer.constant(0.0), net.writer.constant(1.0)) if kind == "Clip" else ()
    assert_equal(net.model(net.writer.quant(net.writer.node(kind, "input", *limits), 2.0**-8, 8, kind == "Neg")))


def test_preprocessing_may_leave_some_levels_only():
    net = Picture()
    limits = (net.writer.constant(0.0), net.writer.constant(0.5))
    model = net.model(net.writer.quant(net.writer.node("Clip", "input", *limits), 2.0**-8, 8, False))
    assert load(model).preprocessing.reached.sum(1).tolist() == [129] * 3
    assert_equal(model)
    nothing = net.model(net.writer.quant(net.writer.node("Clip", "input", limits[1], limits[1]), 2.0**-8, 8, False))
    with pytest.raises(InexactModel, match="the preprocessing before it leaves less than two levels of some channel"):
        load(nothing)


def test_narrow_and_signed_inputs():
    net = Picture()
    model = net.model(net.writer.quant("input", 2.0**-7, 8, True, True))
    assert load(model).tensors["input"].low == -127
    assert_equal(model)


def test_an_input_that_was_quantized_twice_has_the_last_scale():
    net = Picture()
    pixels = net.writer.quant("input", 1.0, 8, False)
    model = net.model(net.writer.quant(net.writer.node("Div", pixels, net.writer.constant(256.0)), 2.0**-8, 8, False))
    network = load(model)
    assert network.tensors["input"].scale == 2.0**-8
    assert_equal(model)


def test_what_the_model_does_not_say_the_user_says():
    net = Picture()
    model = net.model("input")
    with pytest.raises(MissingScale, match=r"Conv 'Conv_\d+': reads the graph's input 'input'.* --input int8:1/128"):
        load(model)
    assert_equal(model, input="int8:1/128")
    assert load(model, input="uint4:0.25").tensors["input"].high == 15


def test_finns_annotation_says_it_too():
    net = Picture()
    model = net.model("input")
    annotation = onnx.TensorAnnotation(tensor_name="input")
    annotation.quant_parameter_tensor_names.add(key="finn_datatype", value="UINT8")
    model.graph.quantization_annotation.append(annotation)
    tensor = load(model).tensors["input"]
    assert (tensor.bits, tensor.signed, tensor.scale) == (8, False, 1.0)


@pytest.mark.parametrize("text", ["float32", "uint", "int8:0", "int8:1/0", "int8:x", ""])
def test_texts_that_say_nothing_are_refused(text):
    with pytest.raises(InputError, match="the input must be given as uint8, int8 or int8:1/128, not "):
        input_type(text)


def test_wide_inputs_are_refused_by_their_width():
    with pytest.raises(UnsupportedBitWidth, match="must have 1 to 8 bits, not 16"):
        input_type("int16")


def test_an_input_that_nothing_reads_is_no_input():
    net = Picture()
    model = net.model(net.writer.quant("input", 2.0**-8, 8, False))
    model.graph.input.append(helper.make_tensor_value_info("unused", onnx.TensorProto.FLOAT, [1]))
    assert load(model).input == "input"


def test_signs_are_weights_and_activations():
    """BipolarQuant: -1 below 0, else 1."""
    writer = ModelWriter()
    random = np.random.default_rng(2)

    def sign(source: str, scale: float) -> str:
        return writer.node("BipolarQuant", source, writer.constant(scale), domain=QUANT_DOMAIN)

    picture = writer.quant("input", 2.0**-7, 8, True)
    weights = sign(writer.constant(random.normal(size=(4, 3, 3, 3))), 0.5)
    hidden = sign(writer.node("Add", writer.node("Conv", picture, weights), writer.constant(0.01)), 0.25)
    weights = sign(writer.constant(random.normal(size=(5, 4, 1, 1))), 1.0)
    assert_equal(writer.model(SHAPE, writer.node("Conv", hidden, weights), 4))


def test_a_network_may_end_in_an_average():
    net = Picture()
    hidden = net.writer.quant(net.writer.node("Conv", "input", net.weights), 0.25, 4, False)
    model = net.writer.model(SHAPE, net.writer.node("GlobalAveragePool", hidden), 4)
    network = load(model, input="uint8:1/256")
    assert not network.doubts
    images = random_images(0, network, SHAPE[0])
    difference = execute(model, network, images) - reference.predict(network, images)
    assert np.abs(difference).max() <= np.spacing(np.float32(4)), "float32's last bit"
