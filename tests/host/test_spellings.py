"""Other spellings of the same network: NHWC, lines, QuantizeLinear, zero points, thresholds, and what hosts compute."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.qonnx_execution import execute
from helpers.random_networks import QUANT_DOMAIN, ModelWriter, random_images
from onnx import TensorProto, helper

from sentei.host.errors import UnsupportedAttribute, UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.importer import load
from sentei.host.frontend.model_file import quiet
from sentei.host.network import reference
from sentei.host.network.ir import Network

RANDOM = np.random.default_rng(4)


def assert_equal(model: onnx.ModelProto, tolerance: float = 0.0, count: int = 3, **options) -> Network:
    """The network of `model` computes what qonnx does."""
    network = load(model, **options)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    for seed in range(count):
        images = random_images(seed, network, batch)
        expected, found = execute(model, network, images), reference.predict(network, images)
        assert found.shape == expected.shape
        assert np.abs(expected - found).max() <= tolerance, f"seed {seed}"
    return network


class Net(ModelWriter):
    def weights(self, *shape: int, bits: int = 4, scale: float = 0.125) -> str:
        limit = 1 << (bits - 1)
        return self.quant(self.constant(RANDOM.integers(1 - limit, limit, shape) * scale), scale, bits, True)

    def levels(self, *shape: int) -> str:
        return self.constant(RANDOM.integers(-7, 8, shape), np.int8)

    def quant4(self, source: str, scale: float = 0.25) -> str:
        return self.quant(source, scale, 4, False)


# Axes


def test_a_graph_of_tensorflow_is_read_as_what_it_is():
    """NHWC outside, Transposes around each convolution, a flattened map of channels last."""
    net = Net()
    name = net.node("Transpose", net.quant("input", 2.0**-8, 8, False), perm=[0, 3, 1, 2])
    name = net.quant4(net.node("Conv", name, net.weights(5, 3, 3, 3), pads=[1, 1, 1, 1]))
    name = net.node("Transpose", name, perm=[0, 2, 3, 1])
    name = net.node("Mul", name, net.constant(np.array([1.0, 2, 4, 8, 16])))
    name = net.node("Transpose", net.quant4(name, 1.0), perm=[0, 3, 1, 2])
    name = net.node("Transpose", net.node("MaxPool", name, kernel_shape=[2, 2], strides=[2, 2]), perm=[0, 2, 3, 1])
    name = net.node("Reshape", name, net.constant([2, -1], np.int64))
    network = assert_equal(net.model((2, 6, 4, 3), net.node("MatMul", name, net.weights(30, 7)), 2))
    assert network.tensors["input"].shape == (3, 6, 4)
    assert network.input_order.sizes == (6, 4, 3)


def test_an_output_with_its_channels_last_is_handed_out_so():
    net = Net()
    name = net.node("Conv", net.quant("input", 2.0**-8, 8, False), net.weights(5, 3, 2, 2))
    network = assert_equal(net.model((1, 3, 4, 5), net.node("Transpose", name, perm=[0, 2, 3, 1]), 4))
    assert network.model_output(np.zeros((2, 5, 3, 4), np.int32)).shape == (2, 3, 4, 5)


def test_convolutions_and_pools_of_lines():
    net = Net()
    name = net.node("Conv", net.quant("input", 2.0**-7, 8, True), net.weights(4, 2, 5), strides=[2], pads=[2, 1])
    name = net.node("MaxPool", net.quant4(name), kernel_shape=[3], strides=[2], pads=[1, 0])
    name = net.quant4(net.node("Conv", name, net.weights(6, 4, 3), auto_pad="SAME_UPPER"))
    name = net.quant4(net.node("Conv", name, net.weights(6, 6, 3), dilations=[2], pads=[2, 2]), 0.5)
    name = net.node("AveragePool", name, kernel_shape=[2], strides=[2])
    name = net.quant4(name, 0.5)
    name = net.node("Conv", name, net.weights(6, 1, 3), group=6)
    name = net.node("Flatten", net.quant4(name, 0.5))
    network = assert_equal(net.model((2, 2, 64), net.node("MatMul", name, net.weights(36, 3)), 2))
    assert network.tensors["input"].shape == (2, 1, 64)


def test_a_line_made_of_a_map_and_back():
    net = Net()
    name = net.quant4(net.node("Conv", net.quant("input", 2.0**-7, 8, False), net.weights(4, 1, 10, 4)))
    line = net.node("Squeeze", name, net.constant([2], np.int64))
    line = net.quant4(net.node("Conv", line, net.weights(4, 4, 3), pads=[1, 1]))
    name = net.node("Unsqueeze", line, net.constant([2], np.int64))
    assert_equal(net.model((1, 1, 10, 9), net.node("Conv", name, net.weights(3, 4, 1, 2)), 4))


def test_an_input_may_be_split_before_it_is_quantized():
    net = Net()
    name = net.node("Reshape", "input", net.constant([1, 1, 7, 6], np.int64))
    name = net.node("Conv", net.quant(name, 2.0**-7, 8, True), net.weights(4, 1, 3, 3))
    network = assert_equal(net.model((1, 42), name, 4))
    assert network.tensors["input"].shape == (1, 7, 6)


def test_a_matrix_product_of_the_channels_is_a_convolution_of_pixels():
    net = Net()
    name = net.node("Transpose", net.quant("input", 2.0**-7, 8, True), perm=[0, 2, 3, 1])
    assert_equal(net.model((2, 3, 4, 5), net.node("MatMul", name, net.weights(3, 6)), 4))


def test_what_would_move_channels_to_rows_is_refused():
    net = Net()
    name = net.quant4(net.node("Conv", net.quant("input", 2.0**-7, 8, True), net.weights(4, 3, 1, 1)))
    name = net.node("Reshape", name, net.constant([1, 2, 8, 5], np.int64))
    with pytest.raises(UnsupportedAttribute, match=r"shape \(N, 2, 8, 5\) cuts through channels, rows or columns"):
        load(net.model((1, 3, 4, 5), name, 4))
    mixed = net.node("Transpose", name, perm=[1, 0, 2, 3])
    with pytest.raises(UnsupportedAttribute, match="cuts through"):
        load(net.model((1, 3, 4, 5), mixed, 4))


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.3])
def test_joined_tensors_are_terms_of_one_sum(scale):
    """As in SqueezeNet and in a U-Net: everything that may stand between a Concat and the layers behind it."""
    net = Net()
    picture = net.quant("input", 2.0**-7, 8, True)
    left = net.quant4(net.node("Relu", net.node("Conv", picture, net.weights(3, 2, 3, 3), pads=[1] * 4)))
    right = net.quant4(net.node("Relu", net.node("Conv", picture, net.weights(5, 2, 1, 1))), scale)
    name = net.node("Concat", left, right, axis=1)
    name = net.node("MaxPool", name, kernel_shape=[2, 2], strides=[2, 2])
    bias = net.constant(RANDOM.integers(-9, 9, 6) / 8)
    conv = net.node("Conv", name, net.weights(6, 8, 3, 3), bias, pads=[1] * 4)
    again = net.node("Concat", name, net.quant4(net.node("Relu", conv), 1.0), axis=-3)
    statistics = [net.constant(RANDOM.uniform(0.5, 2, 14)) for _ in range(4)]
    again = net.node("BatchNormalization", again, *statistics)
    again = net.node("Mul", again, net.constant(RANDOM.uniform(0.5, 2, (14, 1, 1))))
    again = net.quant4(net.node("Relu", again), 0.5)
    again = net.quant4(net.node("Conv", again, net.weights(14, 1, 3, 3), group=14, pads=[1] * 4), 0.5)
    flat = net.node("Reshape", again, net.constant([2, -1], np.int64))
    model = net.model((2, 2, 6, 8), net.node("MatMul", flat, net.weights(14 * 12, 5)), 2)
    network = load(model)
    for seed in range(3):
        images = random_images(seed, network, 2)
        expected, found = execute(model, network, images), reference.predict(network, images)
        if network.doubts:
            assert np.isclose(expected, found, rtol=1e-4, atol=1e-4).mean() > 0.9
        else:
            assert np.array_equal(expected, found)
    assert not network.doubts or scale == 0.3


def test_joined_tensors_that_the_array_cannot_take_are_named():
    net = Net()
    picture = net.quant4("input")
    with pytest.raises(UnsupportedAttribute, match="must join channels of equal maps, not axis 2"):
        load(net.model((2, 3, 4, 5), net.node("Concat", picture, picture, axis=2), 4))
    name = net.node("Concat", picture, picture, axis=1)
    with pytest.raises(UnsupportedOperator, match="is a Concat: put a convolution behind it"):
        load(net.model((2, 3, 4, 5), name, 4))
    with pytest.raises(UnsupportedOperator, match="Softmax of a Concat is not supported"):
        load(net.model((2, 3, 4, 5), net.node("Softmax", name, axis=1), 4))


@pytest.mark.parametrize("kind", ["asymmetric", "half_pixel", "sizes", "Upsample"])
def test_enlarged_maps(kind):
    """The shape of a U-Net: strided down, repeated up, joined with what came before."""
    net = Net()
    first = net.quant4(net.node("Conv", net.quant("input", 2.0**-7, 8, False), net.weights(4, 3, 3, 3), pads=[1] * 4))
    name = net.quant4(net.node("Conv", first, net.weights(5, 4, 3, 3), pads=[1] * 4, strides=[2, 2]))
    none = net.constant([])
    scales = net.constant([1.0, 1.0, 2.0, 2.0])
    if kind == "Upsample":
        name = net.node("Upsample", name, scales)
    elif kind == "sizes":
        sizes = net.constant([2, 5, 6, 8], np.int64)
        name = net.node("Resize", name, "", "", sizes, coordinate_transformation_mode="half_pixel")
    else:
        more = {"nearest_mode": "floor"} if kind == "asymmetric" else {}
        name = net.node("Resize", name, none, scales, coordinate_transformation_mode=kind, **more)
    name = net.quant4(net.node("Conv", net.node("Concat", name, first, axis=1), net.weights(6, 9, 3, 3), pads=[1] * 4))
    model = net.model((2, 3, 6, 8), net.node("Conv", name, net.weights(2, 6, 1, 1)), 4, 9 if kind == "Upsample" else 13)
    assert_equal(model)


# Quantizers


@pytest.mark.parametrize("zero_point", [0, 3, 8, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_zero_points_of_activations(zero_point, signed):
    zero_point -= 8 * signed
    net = Net()

    def quant(source: str, scale: float, bits: int, zero: float) -> str:
        parameters = (net.constant(scale), net.constant(float(zero)), net.constant(float(bits)))
        return net.node("Quant", source, *parameters, domain=QUANT_DOMAIN, signed=int(signed), narrow=0)

    picture = quant("input", 2.0**-7, 8, zero_point * 16)
    hidden = quant(net.node("Conv", picture, net.weights(6, 3, 3, 3), pads=[1, 0, 0, 1]), 0.25, 4, zero_point)
    pooled = net.node("MaxPool", hidden, kernel_shape=[2, 2], strides=[2, 2])
    hidden = quant(net.node("Conv", pooled, net.weights(6, 6, 3, 3), pads=[1, 1, 1, 1]), 0.25, 4, zero_point)
    total = quant(net.node("Add", hidden, pooled), 0.25, 4, zero_point)
    assert_equal(net.model((2, 3, 6, 7), net.node("Conv", total, net.weights(5, 6, 1, 1)), 4))


@pytest.mark.parametrize("kind", ["uint8", "int8", "clipped", "signed"])
def test_quantize_linear_and_dequantize_linear(kind):
    net = Net()

    def through(source: str, scale: float, clip: tuple[int, int] | None, dtype: type, zero: int = 0) -> str:
        scale, point = net.constant(scale), net.constant(zero, dtype)
        levels = net.node("QuantizeLinear", source, scale, point)
        if clip is not None:
            levels = net.node("Clip", levels, *(net.constant(limit, dtype) for limit in clip))
        return net.node("DequantizeLinear", levels, scale, point)

    first = {"uint8": (np.uint8, 7), "int8": (np.int8, -128), "clipped": (np.uint8, 128), "signed": (np.int8, 3)}[kind]
    picture = through("input", 2.0**-7, None, *first)
    scales = 2.0 ** RANDOM.integers(-5, -2, 6)
    point = net.constant(np.zeros(6), np.int8)
    weights = net.node("DequantizeLinear", net.levels(6, 3, 3, 3), net.constant(scales), point, axis=0)
    bias = net.constant(RANDOM.integers(-900, 900, 6), np.int32)
    bias = net.node(
        "DequantizeLinear", bias, net.constant(scales * 2.0**-7), net.constant(np.zeros(6), np.int32), axis=0
    )
    limits = {"clipped": ((0, 15), np.uint8), "signed": ((-8, 7), np.int8)}.get(kind, ((0, 15), np.uint8))
    hidden = through(net.node("Conv", picture, weights, bias), 0.25, *limits)
    name = net.node("Flatten", hidden)
    weights = net.node("DequantizeLinear", net.levels(6 * 16, 5), net.constant(0.125), net.constant(0, np.int8))
    assert_equal(net.model((2, 3, 6, 6), net.node("Gemm", name, weights), 2))


def test_a_clip_that_leaves_sixteen_values_is_one_of_four_bits():
    net = Net()
    picture = net.quant("input", 2.0**-7, 8, True)
    scale, point = net.constant(0.25), net.constant(-2, np.int8)
    levels = net.node("QuantizeLinear", net.node("Conv", picture, net.weights(6, 3, 3, 3)), scale, point)
    levels = net.node("Clip", levels, net.constant(-7, np.int8), net.constant(8, np.int8))
    hidden = net.node("DequantizeLinear", levels, scale, point)
    network = assert_equal(net.model((2, 3, 6, 6), net.node("Conv", hidden, net.weights(4, 6, 1, 1)), 4))
    assert network.tensors[network.ops[1].input].low == -5


def test_quantize_linear_to_four_bits():
    """Types int4 and uint4 of opset 21, which qonnx cannot hand from node to node: onnxruntime executes the whole."""
    net = Net()
    scale, point = net.constant(2.0**-7), net.constant(0, np.uint8)
    picture = net.node("DequantizeLinear", net.node("QuantizeLinear", "input", scale, point), scale, point)
    levels = RANDOM.integers(-8, 8, 162).astype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4))
    net.initializers.append(helper.make_tensor("w", TensorProto.INT4, (6, 3, 3, 3), levels))
    net.initializers.append(helper.make_tensor("z", TensorProto.UINT4, (), [3]))
    weights = net.node("DequantizeLinear", "w", net.constant(0.125))
    levels = net.node("QuantizeLinear", net.node("Conv", picture, weights), net.constant(0.5), "z")
    hidden = net.node("DequantizeLinear", levels, net.constant(0.5), "z")
    weights = net.node("DequantizeLinear", net.levels(4, 6, 1, 1), net.constant(0.125))
    model = net.model((2, 3, 6, 6), net.node("Conv", hidden, weights), 4, 21)
    del model.opset_import[1]
    model.ir_version = 10
    network = load(model)
    images = random_images(0, network, 2)
    session = onnxruntime.InferenceSession(model.SerializeToString(), quiet())
    (expected,) = session.run(None, {"input": network.model_input(images)})
    assert np.array_equal(reference.predict(network, images), expected.reshape(2, -1))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_model_may_take_integers(kind):
    net = Net()
    point = net.constant(3, np.dtype(kind))
    picture = net.node("DequantizeLinear", "input", net.constant(2.0**-7), point)
    model = net.model((2, 3, 5, 5), net.node("Conv", picture, net.weights(4, 3, 3, 3)), 4)
    model.graph.input[0].type.tensor_type.elem_type = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}[kind]
    assert_equal(model)
    net = Net()
    scaled = net.node("Mul", net.node("Cast", "input", to=TensorProto.FLOAT), net.constant(2.0**-8))
    name = net.quant4(net.node("Conv", net.quant(scaled, 2.0**-8, 8, kind == "int8"), net.weights(4, 3, 3, 3)))
    model = net.model((2, 3, 5, 5), name, 4)
    model.graph.input[0].type.tensor_type.elem_type = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}[kind]
    assert_equal(model)


def test_wide_quantize_linear_is_refused_by_its_bits():
    net = Net()
    scale, point = net.constant(0.25), net.constant(0, np.uint16)
    levels = net.node("QuantizeLinear", net.node("Conv", net.quant4("input"), net.weights(6, 3, 3, 3)), scale, point)
    hidden = net.node("Conv", net.node("DequantizeLinear", levels, scale, point), net.weights(4, 6, 1, 1))
    with pytest.raises(UnsupportedBitWidth, match="activations must have at most 8 bits, not 16: quantize to 4"):
        load(net.model((2, 3, 6, 6), hidden, 4))


def test_quantize_linear_of_eight_bits_throughout():
    """As PyTorch, onnxruntime and TensorFlow quantize: every tensor 8 bits, biases of 32."""
    net = Net()

    def through(source: str, scale: float, dtype: type, zero: int) -> str:
        parameters = (net.constant(scale), net.constant(zero, dtype))
        return net.node("DequantizeLinear", net.node("QuantizeLinear", source, *parameters), *parameters)

    def conv(source: str, outputs: int, inputs: int, **more) -> str:
        weights = net.constant(RANDOM.integers(-127, 128, (outputs, inputs, 3, 3)), np.int8)
        weights = net.node("DequantizeLinear", weights, net.constant(2.0**-8), net.constant(0, np.int8))
        bias = net.node(
            "DequantizeLinear", net.constant(RANDOM.integers(-9, 9, outputs), np.int32), net.constant(0.125)
        )
        return net.node("Conv", source, weights, bias, pads=[1] * 4, **more)

    picture = through("input", 2.0**-7, np.int8, 5)
    first = through(net.node("Relu", conv(picture, 4, 3)), 2.0**-4, np.uint8, 0)
    second = through(conv(first, 4, 4), 2.0**-3, np.int8, -30)
    total = through(net.node("Relu", net.node("Add", first, second)), 2.0**-3, np.uint8, 0)
    pooled = through(net.node("GlobalAveragePool", total), 2.0**-4, np.uint8, 0)
    weights = net.constant(RANDOM.integers(-127, 128, (4, 5)), np.int8)
    weights = net.node("DequantizeLinear", weights, net.constant(2.0**-7), net.constant(0, np.int8))
    flat = net.node("Reshape", pooled, net.constant([2, 4], np.int64))
    output = through(net.node("Gemm", flat, weights), 2.0**-3, np.int8, 7)
    assert not assert_equal(net.model((2, 3, 4, 4), output, 2)).doubts


@pytest.mark.parametrize("output", [(1.0, 0.0), (1.0, -8.0), (2.0, -1.0), (0.5, 0.0)])
def test_thresholds_of_finn(output):
    scale, bias = output
    net = Net()
    count = 1 if scale == 2 else 15
    integers = net.constant(RANDOM.integers(-7, 8, (6, 3, 3, 3)).astype(float))  # whole numbers are levels
    slopes, starts = RANDOM.uniform(2, 9, (6, 1)), RANDOM.uniform(-40, 10, (6, 1))
    table = np.ceil(starts + slopes * np.arange(count))
    more = {"out_scale": scale, "out_bias": bias, "out_dtype": "INT4"}
    sums = net.node("Conv", net.quant("input", 1.0, 4, False), integers)
    name = net.node("MultiThreshold", sums, net.constant(table), domain=QUANT_DOMAIN, **more)
    hidden = net.node("Conv", name, net.weights(6, 6, 1, 1))
    name = net.node(
        "MultiThreshold", hidden, net.constant(np.arange(1, 1 + min(count, 7.0))[None]), domain=QUANT_DOMAIN, **more
    )
    assert_equal(net.model((2, 3, 6, 6), net.node("Conv", name, net.weights(4, 6, 1, 1)), 4))


def test_thresholds_on_numbers_that_float32_rounds():
    net = Net()
    sums = net.node("Conv", net.quant("input", 1 / 15, 4, False), net.weights(6, 3, 3, 3, scale=0.11))
    table = RANDOM.uniform(0.1, 0.2, (6, 1)) * np.arange(1, 16)
    name = net.node("MultiThreshold", sums, net.constant(table), domain=QUANT_DOMAIN, out_dtype="UINT4")
    assert_equal(net.model((2, 3, 6, 6), net.node("Conv", name, net.weights(4, 6, 1, 1)), 4))


def test_trunc_after_an_average_as_brevitas_exports_it():
    net = Net()
    hidden = net.quant4(net.node("Conv", net.quant("input", 1.0, 4, False), net.weights(6, 3, 3, 3)), 0.5)
    summed = net.node("Mul", net.node("AveragePool", hidden, kernel_shape=[4, 4]), net.constant(16.0))
    parameters = [net.constant(value) for value in (0.5, 0.0, 8.0, 4.0)]
    name = net.node("Trunc", summed, *parameters, domain=QUANT_DOMAIN, rounding_mode="FLOOR")
    assert_equal(net.model((2, 3, 6, 6), net.node("Conv", name, net.weights(4, 6, 1, 1)), 4))


def test_signed_one_bit_is_a_sign():
    net = Net()
    weights = net.quant(net.constant(RANDOM.normal(size=(6, 3, 3, 3))), 0.5, 1, True)
    hidden = net.quant(net.node("Conv", net.quant("input", 1.0, 4, False), weights), 0.25, 1, True)
    assert_equal(net.model((2, 3, 6, 6), net.node("Conv", hidden, net.weights(4, 6, 1, 1)), 4))


@pytest.mark.parametrize("kind", ["LeakyRelu", "PRelu"])
@pytest.mark.parametrize("signed", [False, True])
def test_leaky_activations(kind, signed):
    net = Net()
    name = net.node("Conv", net.quant("input", 2.0**-7, 8, False), net.weights(6, 3, 3, 3))
    slopes = net.constant(RANDOM.uniform(0, 0.5, (6, 1, 1)))
    name = net.node(kind, name, slopes) if kind == "PRelu" else net.node(kind, name, alpha=0.1)
    name = net.node("MaxPool", net.quant(name, 0.125, 4, signed), kernel_shape=[2, 2])
    name = net.node("LeakyRelu", net.node("Conv", name, net.weights(4, 6, 1, 1)), alpha=0.2)
    assert_equal(net.model((2, 3, 6, 7), name, 4), strict=True)


# What the host computes


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(
    ("kinds", "tolerance"),
    [
        (["Softmax"], 1e-6),
        (["LogSoftmax"], 2e-5),
        (["Sigmoid"], 1e-6),
        (["Tanh"], 1e-6),
        (["ArgMax"], 0),
        (["Relu"], 0),
        (["Mul", "Mul"], 0),
        (["Mul", "Add", "Mul", "Sub", "Div", "Relu", "Sigmoid", "Mul", "Add"], 1e-5),
        (["quant8"], 0),
        (["quant8", "Softmax"], 1e-6),
    ],
)
def test_the_end_of_a_network(kinds, tolerance, opset):
    net = Net()
    name = net.node("Flatten", net.quant4(net.node("Conv", net.quant("input", 0.5, 4, True), net.weights(6, 3, 3, 3))))
    name = net.node("MatMul", name, net.weights(24, 7))
    for kind in kinds:
        if kind == "quant8":
            name = net.quant(name, 0.3, 8, True)
        elif kind in ("Add", "Div", "Mul", "Sub"):
            name = net.node(kind, name, net.constant(RANDOM.uniform(0.3, 1.9, 7)))
        else:
            name = net.node(kind, name, **({"axis": 1} if kind in ("ArgMax", "Softmax", "LogSoftmax") else {}))
    model = net.model((2, 3, 4, 4), name, 2, opset)
    if kinds == ["ArgMax"]:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert assert_equal(model, tolerance).tail is not None


def test_indices_of_the_best_classes():
    net = Net()
    name = net.node("Flatten", net.node("Conv", net.quant("input", 0.5, 4, True), net.weights(9, 3, 4, 4)))
    net.nodes.append(helper.make_node("TopK", [name, net.constant([2], np.int64)], ["best", "which"], name="top"))
    model = net.model((2, 3, 4, 4), "which", 2)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert_equal(model)


def test_a_sigmoid_between_layers_is_refused():
    net = Net()
    name = net.node("Sigmoid", net.node("Conv", net.quant("input", 0.5, 4, True), net.weights(6, 3, 3, 3)))
    name = net.node("Conv", net.quant4(name), net.weights(4, 6, 1, 1))
    with pytest.raises(UnsupportedOperator, match="Sigmoid is computed by the host, hence only behind the last layer"):
        load(net.model((2, 3, 4, 4), name, 4))
