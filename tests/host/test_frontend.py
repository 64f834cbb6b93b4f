"""The frontend against qonnx: equal outputs on random networks, and a refusal with its text for everything else."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from helpers.qonnx_execution import execute
from helpers.random_networks import QUANT_DOMAIN, ModelWriter, random_images, random_model
from helpers.tiers import seeds
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper

from sentei.host.errors import (
    InexactModel,
    MissingScale,
    ModelFileError,
    SenteiError,
    UnsupportedAttribute,
    UnsupportedBitWidth,
    UnsupportedModel,
    UnsupportedOperator,
)
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.host.network.ir import Network

RANDOM_NETWORKS = (160, 5000)
INEXACT_NETWORKS = 60


def assert_equal(model: onnx.ModelProto, network: Network, images: np.ndarray, message: str = "") -> None:
    __tracebackhide__ = True
    expected, found = execute(model, network, images), reference.predict(network, images)
    assert np.array_equal(expected, found), f"{message}: {np.mean(expected != found):.1%} of the outputs differ"


@pytest.mark.parametrize("seed", seeds(*RANDOM_NETWORKS))
def test_random_network_equals_qonnx(seed):
    model, description = random_model(seed)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    network = load(model)
    assert_equal(model, network, random_images(seed, network, batch), f"seed {seed}: {description}")


def test_random_network_with_inexact_scales_equals_qonnx_or_is_refused():
    refused = 0
    for seed in range(INEXACT_NETWORKS):
        model, description = random_model(seed, unit=0.7)
        batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        try:
            network = load(model, strict=True)
        except InexactModel:
            refused += 1
            continue
        assert_equal(model, network, random_images(seed, network, batch), f"seed {seed}: {description}")
    assert 0 < refused < INEXACT_NETWORKS


class Net:
    """A hand-written model: a quantized input of (1, 2, 6, 6) and whatever the test appends."""

    def __init__(self, shape=(1, 2, 6, 6), bits=8, scale=2.0**-8, signed=False, **quant):
        self.shape = shape
        self.writer = ModelWriter()
        self.input = self.writer.quant("input", scale, bits, signed, **quant)

    def weights(self, shape=(3, 2, 3, 3), bits=4, scale=2.0**-3, seed=0):
        limit = 1 << (bits - 1)
        levels = np.random.default_rng(seed).integers(-limit, limit, shape)
        return self.writer.quant(self.writer.constant(levels * scale), scale, bits, True)

    def conv(self, source=None, shape=(3, 2, 3, 3), bits=4, scale=2.0**-3, **attributes):
        return self.writer.node("Conv", source or self.input, self.weights(shape, bits, scale), **attributes)

    def quant(self, source, scale=0.25, bits=4, signed=False, **more):
        return self.writer.quant(source, scale, bits, signed, **more)

    def node(self, op_type, *inputs, **attributes):
        return self.writer.node(op_type, *inputs, **attributes)

    def constant(self, values, dtype=np.float32):
        return self.writer.constant(values, dtype)

    def model(self, output, rank=4, opset=13):
        return self.writer.model(self.shape, output, rank, opset)


def check_equal(net: Net, output: str, rank: int = 4, opset: int = 13) -> Network:
    __tracebackhide__ = True
    model = net.model(output, rank, opset)
    network = load(model)
    assert_equal(model, network, random_images(0, network, net.shape[0]))
    return network


def every_accumulator(
    factor: float, offset: float, batch_norm: bool, scale: float, mode: str, signed: bool
) -> tuple[onnx.ModelProto, np.ndarray]:
    """A 1x1 convolution fed with all 65,536 pairs of pixels, hence with every accumulator it can reach."""
    net = Net((1, 2, 256, 256))
    levels = np.array([[3, 7], [-5, 2]]).reshape(2, 2, 1, 1)
    weights = net.writer.quant(net.constant(levels * 0.125), 0.125, 4, True)
    name = net.node("Conv", net.input, weights)
    if batch_norm:
        statistics = ([factor, -factor], [offset, offset], [0.3, 0.1], [abs(factor) + 0.1, 0.7])
        name = net.node("BatchNormalization", name, *(net.constant(values) for values in statistics))
    else:
        name = net.node("Mul", name, net.constant(np.array([factor, -factor]).reshape(1, 2, 1, 1)))
        name = net.node("Add", name, net.constant(offset))
    name = net.quant(name, scale, signed=signed, mode=mode)
    pixels = np.stack(np.meshgrid(np.arange(256), np.arange(256)))[None]
    return net.model(name), pixels


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("mode", ["ROUND", "FLOOR", "CEIL", "UP", "DOWN", "HALF_UP", "HALF_DOWN", "HALF_EVEN"])
def test_every_reachable_accumulator_requantizes_as_the_model_does(mode, signed, ties, batch_norm):
    """With `ties`, some accumulators lie exactly on rounding ties. Rounding towards or away from zero makes one
    interval larger or smaller than the others, if there are negative levels: then the levels are made of two pieces."""
    seed = 16 * signed + len(mode)
    random = np.random.default_rng(seed)
    factor, offset = (2.0, 0.0625) if ties else (random.uniform(1, 2), random.normal() / 10)
    model, pixels = every_accumulator(factor, offset, batch_norm, 0.125 if ties else 0.1, mode, signed)
    network = load(model, strict=True)
    assert len(network.ops) == (3 if signed and mode in ("UP", "DOWN") else 1)
    assert_equal(model, network, pixels, f"seed {seed}")


@pytest.mark.parametrize("seed", range(12))
def test_residual_with_factors_on_no_grid_equals_the_model(seed):
    """All 4,096 pictures of three 4-bit pixels."""
    random = np.random.default_rng(seed)
    net = Net((1, 3, 64, 64), bits=4, scale=0.25, signed=bool(seed % 2))
    name = net.conv(net.input, (3, 3, 1, 1), bits=3)
    for op_type in ("Mul", "Add"):
        name = net.node(op_type, name, net.constant(random.normal(size=(1, 3, 1, 1))))
    name = net.quant(net.node("Add", name, net.input), 0.25, signed=bool(seed % 3))
    model = net.model(name)
    network = load(model)
    low = network.tensors[network.input].low
    pixels = low + np.stack(np.meshgrid(*[np.arange(16)] * 3)).reshape(1, 3, 64, 64)
    assert_equal(model, network, pixels, f"seed {seed}")


def test_residual_may_have_a_chain_of_its_own():
    net = Net(bits=4, scale=0.25)
    skip = net.node("Mul", net.input, net.constant(2.0))
    main = net.node("Add", net.conv(shape=(2, 2, 1, 1)), net.constant(0.01))
    name = net.node("Add", skip, main)
    check_equal(net, net.quant(name, scale=0.5, signed=True))


def test_weight_may_be_transposed_after_its_quant_node():
    net = Net((2, 5), bits=4, scale=1.0)
    weights = net.writer.quant(net.constant(np.arange(-8, 7).reshape(3, 5) * 0.5), np.full((3, 1), 0.5), 4, True)
    name = net.node("MatMul", net.input, net.node("Transpose", weights, perm=[1, 0]))
    network = check_equal(net, name, 2)
    assert network.ops[0].weights.shape == (3, 5, 1, 1)


@pytest.mark.filterwarnings("ignore:Output shapes disagree")  # qonnx cannot infer through Shape
def test_flatten_by_shape_arithmetic_as_exporters_write_it():
    net = Net((2, 2, 3, 3), bits=4)
    batch = net.node("Gather", net.node("Shape", net.input), net.constant(0, np.int64), axis=0)
    target = net.node(
        "Concat",
        *(net.node("Unsqueeze", part, net.constant([0], np.int64)) for part in (batch, net.constant(-1, np.int64))),
        axis=0,
    )
    flat = net.node("Reshape", net.input, target)
    check_equal(net, net.node("MatMul", flat, net.weights((18, 4))), 2)


def test_input_may_be_flattened_before_its_quant_node():
    net = Net((2, 1, 4, 4))
    flat = net.writer.quant(net.node("Flatten", "input"), 0.5, 8, False)
    check_equal(net, net.node("Gemm", flat, net.weights((16, 3))), 2)


def test_off_grid_bias_of_a_convolution_is_added_once():
    net = Net((2, 8, 6, 6))
    bias = net.constant(np.random.default_rng(0).normal(size=16))
    name = net.node("Conv", net.input, net.weights((16, 8, 3, 3)), bias)
    check_equal(net, name)


def test_dilated_convolution():
    net = Net((1, 2, 9, 9))
    network = check_equal(net, net.conv(dilations=[2, 3], pads=[1, 0, 2, 3]))
    assert network.ops[0].weights.shape == (3, 2, 5, 7)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_operators_of_every_opset(opset):
    net = Net((1, 2, 6, 6), bits=4)
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    padded = (
        net.node("Pad", net.input, net.constant(pads, np.int64))
        if opset > 10
        else net.node("Pad", net.input, pads=pads)
    )
    name = net.conv(padded)
    name = (
        net.node("Clip", name, net.constant(0), net.constant(6))
        if opset > 10
        else net.node("Clip", name, min=0.0, max=6.0)
    )
    name = net.node("Dropout", net.quant(name))
    axes = net.constant([2, 3], np.int64)
    name = (
        net.node("ReduceMean", name, axes, keepdims=0)
        if opset > 17
        else net.node("ReduceMean", name, axes=[2, 3], keepdims=0)
    )
    name = net.quant(name, 0.125)
    check_equal(net, net.node("MatMul", name, net.weights((3, 4))), 2, opset)


def test_squeeze_and_unsqueeze_of_a_pooled_map():
    net = Net(bits=4)
    name = net.quant(net.node("GlobalAveragePool", net.input), 2.0**-9)
    axes = net.constant([2, 3], np.int64)
    name = net.node("Unsqueeze", net.node("Squeeze", name, axes), axes)
    check_equal(net, net.node("Flatten", net.conv(name, (3, 2, 1, 1))), 2)


def test_maximum_is_taken_once_for_two_readers():
    net = Net(bits=4)
    pooled = net.node("MaxPool", net.input, kernel_shape=[2, 2])
    left = net.quant(net.conv(pooled, (2, 2, 1, 1)), 2.0**-7)
    right = net.node("Add", net.conv(pooled, (2, 2, 1, 1)), net.constant(2.0**-12))
    right = net.node("Add", right, left)
    network = check_equal(net, net.quant(right, 2.0**-7))
    assert [op.name for op in network.ops if op.name.startswith("MaxPool")] == ["MaxPool_1"]


def test_repeated_quant_node_costs_nothing():
    net = Net(bits=4)
    name = net.quant(net.conv(), 0.25)
    network = check_equal(net, net.quant(net.quant(name, 0.25), 0.25))
    assert len(network.ops) == 1


def test_wide_output_keeps_factor_and_offset():
    net = Net()
    name = net.node("Mul", net.conv(), net.constant(np.array([0.3, -0.7, 2.0]).reshape(1, 3, 1, 1)))
    network = check_equal(net, net.node("Sub", name, net.constant(1.1)))
    assert network.output_offset.tolist() == [np.float32(-1.1)] * 3


def test_weights_of_eight_bits():
    net = Net()
    network = check_equal(net, net.quant(net.conv(bits=8), 1.0, signed=True))
    assert np.abs(network.ops[0].weights).max() > 8


def test_model_wrapper_and_path_load_alike(tmp_path):
    net = Net()
    model = net.model(net.quant(net.conv()))
    onnx.save(model, tmp_path / "small.onnx")
    networks = load(model), load(ModelWrapper(model)), load(tmp_path / "small.onnx"), load(str(tmp_path / "small.onnx"))
    assert len({network.ops[0].requantize.thresholds.tobytes() for network in networks}) == 1
    assert networks[2].name == "small"


def refused(error: type, net: Net, output: str, *texts: str, rank: int = 4, opset: int = 13) -> None:
    """`load` raises `error`, and its text has every one of `texts`."""
    __tracebackhide__ = True
    with pytest.raises(error) as caught:
        load(net.model(output, rank, opset), strict=issubclass(error, InexactModel))
    assert issubclass(error, SenteiError)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("op_type", "remedy"),
    [
        ("Elu", "docs/models.md lists those that are"),
        ("Sqrt", "docs/models.md lists those that are"),
    ],
)
def test_unsupported_operator_is_named(op_type, remedy):
    net = Net()
    refused(
        UnsupportedOperator, net, net.node(op_type, net.conv()), f"{op_type} '{op_type}_", "is not supported", remedy
    )


def test_operator_of_another_domain_is_named():
    net = Net()
    name = net.node("FloatQuant", net.conv(), net.constant(1.0), domain=QUANT_DOMAIN)
    refused(UnsupportedOperator, net, name, "FloatQuant of domain 'qonnx.custom_op.general'", "use integer Quant nodes")
    name = net.node("Relu", net.conv(), domain="com.example")
    refused(UnsupportedOperator, net, name, "Relu of domain 'com.example' is not supported")


def test_product_of_activations_is_refused():
    net = Net()
    refused(
        UnsupportedOperator, net, net.node("Mul", net.conv(), net.conv()), "Mul of two activations is not supported"
    )
    refused(
        UnsupportedOperator, net, net.node("Sub", net.conv(), net.conv()), "Sub of two activations is not supported"
    )
    refused(UnsupportedOperator, net, net.node("Div", net.constant(1), net.conv()), "divides a constant by activations")


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"kernel_shape": [2, 2], "dilations": [2, 1]}, "dilations must be 1, not [2, 1]"),
        ({"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, "ceil_mode must be 0, not 1"),
        ({"kernel_shape": [7, 7]}, "window (7, 7) does not fit its input (2, 6, 6)"),
        (
            {"kernel_shape": [2, 2], "pads": [0, 2, 0, 0]},
            "pads must be smaller than the window (2, 2), not [0, 2, 0, 0]",
        ),
        ({"kernel_shape": [2]}, "kernel_shape must have 2 dimensions, not [2]"),
    ],
)
def test_max_pool_attributes_are_named(attributes, text):
    net = Net(bits=4)
    refused(UnsupportedAttribute, net, net.node("MaxPool", net.input, **attributes), "MaxPool 'MaxPool_1'", text)


def test_average_pool_attribute_is_named():
    net = Net(bits=4)
    name = net.node("AveragePool", net.input, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    refused(UnsupportedAttribute, net, name, "count_include_pad must be 1, not 0, with pads [1, 1, 1, 1]")


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"alpha": 2.0}, "alpha must be 1.0, not 2.0"),
        ({"beta": 0.5}, "beta must be 1.0"),
        ({"transA": 1}, "transA must be 0, not 1"),
    ],
)
def test_gemm_attributes_are_named(attributes, text):
    net = Net((1, 4), bits=4)
    refused(UnsupportedAttribute, net, net.node("Gemm", net.input, net.weights((4, 3)), **attributes), text, rank=2)


def test_shapes_are_named():
    net = Net()
    refused(UnsupportedAttribute, net, net.node("Flatten", net.input, axis=2), "Flatten", "axis must be 1, not 2")
    shape = net.constant([1, 6, 12], np.int64)
    refused(UnsupportedAttribute, net, net.node("Reshape", net.input, shape), "shape (N, 6, 12) cuts through channels")
    refused(
        UnsupportedAttribute, net, net.node("ReduceMean", net.input, axes=[1]), "axes must be those of the map, not [1]"
    )
    refused(UnsupportedAttribute, net, net.node("MatMul", net.input, net.weights((6, 3))), "put a Flatten before it")
    refused(UnsupportedAttribute, net, net.conv(shape=(3, 4, 1, 1)), "weights read 4 channels, not 2")


def test_pad_is_refused_unless_zeros_before_a_sum():
    net = Net(bits=4)
    amounts = net.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    refused(UnsupportedAttribute, net, net.node("Pad", net.input, amounts, mode="reflect"), "not mode 'reflect'")
    refused(
        UnsupportedAttribute, net, net.node("Pad", net.input, amounts, net.constant(1.0)), "value 1.0: pad with zeros"
    )
    channels = net.constant([0, 1, 0, 0, 0, 0, 0, 0], np.int64)
    refused(UnsupportedAttribute, net, net.node("Pad", net.input, channels), "height and width only")
    pooled = net.node("MaxPool", net.node("Pad", net.input, amounts), kernel_shape=[2, 2])
    refused(UnsupportedOperator, net, pooled, "a Pad can only be merged into a convolution or an average pool")


def test_constant_that_varies_over_the_map_is_refused():
    net = Net()
    name = net.node("Mul", net.conv(), net.constant(np.arange(16).reshape(4, 4)))
    refused(UnsupportedAttribute, net, name, "Mul", "must not vary over the map")
    name = net.node("Mul", net.conv(), net.constant(np.inf))
    refused(UnsupportedAttribute, net, name, "constants must be finite, not inf")
    refused(UnsupportedAttribute, net, net.node("Div", net.conv(), net.constant(0.0)), "divides by zero")


def test_training_modes_are_refused():
    net = Net()
    statistics = [net.constant(np.ones(3)) for _ in range(4)]
    name = net.node("BatchNormalization", net.conv(), *statistics, training_mode=1)
    refused(UnsupportedAttribute, net, name, "training_mode must be 0, not 1", opset=15)
    name = net.node("Dropout", net.conv(), net.constant(0.5), net.constant(True, bool))
    refused(UnsupportedAttribute, net, name, "Dropout", "training_mode must be 0, not 1")


def test_bit_widths_are_named():
    net = Net()
    wide = net.conv(net.quant(net.conv(), bits=9), (3, 3, 1, 1))
    refused(UnsupportedBitWidth, net, wide, "activations must have at most 8 bits, not 9")
    refused(UnsupportedBitWidth, net, net.conv(bits=9), "weights must have at most 8 signed bits, not 9")
    unsigned = net.writer.quant(net.constant(np.full((1, 2, 1, 1), 200.0)), 1.0, 8, False)
    refused(UnsupportedBitWidth, net, net.node("Conv", net.input, unsigned), "not 8 unsigned")
    refused(UnsupportedBitWidth, net, net.quant(net.conv(), bits=2.5), "one whole number from 1, not 2.5")
    net = Net(bits=16)
    refused(UnsupportedBitWidth, net, net.conv(), "the input must have at most 8 bits, not 16")


def test_accumulator_beyond_24_bits_is_named():
    net = Net((1, 300, 6, 6))
    weights = net.writer.quant(net.constant(np.full((1, 300, 2, 2), -128.0)), 1.0, 8, True)
    refused(
        UnsupportedBitWidth, net, net.node("Conv", net.input, weights), "Conv", "accumulator must stay below 8388607"
    )


def test_missing_quantization_is_named():
    net = Net()
    refused(
        MissingScale,
        net,
        net.node("Conv", "input", net.weights()),
        "Conv",
        "reads the graph's input 'input', and the model does not say which integers that holds",
    )
    refused(
        MissingScale,
        net,
        net.node("Conv", net.input, net.constant(np.full((3, 2, 1, 1), 0.3))),
        "weights are not quantized",
    )
    twice = net.conv(net.node("Relu", net.conv()), (3, 3, 1, 1))
    refused(
        MissingScale, net, twice, "reads the result of Conv 'Conv_", "put a Quant node of at most 4 bits in between"
    )
    scale = net.node("ReduceMax", net.conv(), keepdims=0)
    refused(
        UnsupportedOperator,
        net,
        net.node("Quant", net.conv(), scale, net.constant(0), net.constant(4), domain=QUANT_DOMAIN),
        "ReduceMax",
    )
    zero = net.quant(net.conv(), 0.0)
    refused(MissingScale, net, zero, "scale must be positive, not 0.0")
    computed = net.node("Quant", net.conv(), net.input, net.constant(0), net.constant(4), domain=QUANT_DOMAIN)
    refused(MissingScale, net, computed, "scale must be a constant, not computed by the model")


def test_quant_parameters_are_named():
    net = Net()
    shifted = net.node("Quant", net.conv(), net.constant(1), net.constant(0.5), net.constant(4), domain=QUANT_DOMAIN)
    refused(UnsupportedAttribute, net, shifted, "Quant", "zero point must be one whole number, not [0.5]")
    beyond = net.node("Quant", net.conv(), net.constant(1), net.constant(9), net.constant(4), domain=QUANT_DOMAIN)
    refused(UnsupportedAttribute, net, beyond, "zero must be one of its values, which are -16 to -2 steps")
    refused(UnsupportedAttribute, net, net.quant(net.conv(), mode="NOISE"), "rounding_mode 'NOISE' is not known")
    refused(
        UnsupportedAttribute,
        net,
        net.quant(net.conv(), np.array([1.0, 2, 3]).reshape(3, 1, 1)),
        "must be one number, not 3",
    )
    weights = net.writer.quant(net.constant(np.ones((1, 2, 1, 1))), np.array([0.5, 1]).reshape(1, 2, 1, 1), 4, True)
    refused(UnsupportedAttribute, net, net.node("Conv", net.input, weights), "must differ between output channels only")


def test_results_of_two_convolutions_are_added():
    net = Net()
    total = net.node("Add", net.conv(), net.conv(scale=2.0**-5, shape=(3, 2, 3, 3)))
    network = check_equal(net, total)  # as the network's output
    assert len(network.ops) == 1 and len(network.ops[0].terms) == 2
    network = check_equal(net, net.quant(net.node("Add", total, net.conv(scale=2.0**-2)), 0.5))
    assert not network.doubts and len(network.ops[0].terms) == 3


def test_a_tensor_is_added_to_a_sum_twice():
    net = Net(bits=4)
    once = net.node("Add", net.conv(shape=(2, 2, 1, 1)), net.input)
    check_equal(net, net.quant(net.node("Add", once, net.input), 2.0**-6))
    check_equal(net, net.node("Add", once, net.input))


def test_what_is_no_sum_any_more_is_not_added_to_another():
    net = Net(bits=4)
    bent = net.node("Relu", net.conv())
    refused(UnsupportedOperator, net, net.node("Add", bent, net.conv()), "which is no sum any more (Clamp)")
    late = net.node("MaxPool", net.conv(shape=(2, 2, 1, 1)), kernel_shape=[1, 1])
    refused(UnsupportedOperator, net, net.node("Add", late, net.input), "adds to a MaxPool of unquantized values")
    small = net.node("MaxPool", net.input, kernel_shape=[2, 2])
    refused(UnsupportedOperator, net, net.node("Add", small, net.input), "shapes (2, 5, 5) and (2, 6, 6)")


@pytest.mark.parametrize("seed", range(20))
def test_sums_of_scales_on_no_grid_are_what_they_mean(seed):
    """Two convolutions of any scales, batch norms behind both: differences are among the sums that were named."""
    random = np.random.default_rng(seed)
    net = Net((2, 2, 6, 6), bits=4, scale=0.1)
    sides = []
    for _ in range(2):
        conv = net.conv(shape=(3, 2, 3, 3), scale=float(random.uniform(0.05, 0.2)))
        sides.append(net.node("Mul", conv, net.constant(random.uniform(0.5, 2, (3, 1, 1)))))
    model = net.model(net.quant(net.node("Add", *sides), 0.07, signed=True))
    network = load(model)
    images = random_images(seed, network, 2)
    differing = int((execute(model, network, images) != reference.predict(network, images)).sum())
    assert differing <= sum(doubt.sums for doubt in network.doubts)
    assert differing <= 2


def test_negative_factor_after_a_late_maximum_is_refused():
    net = Net()
    pooled = net.node("MaxPool", net.conv(), kernel_shape=[2, 2])
    name = net.quant(net.node("Mul", pooled, net.constant(-1.0)), signed=True)
    refused(UnsupportedOperator, net, name, "a negative factor lies between MaxPool 'MaxPool_", "before the MaxPool")


def test_residual_that_does_not_move_every_threshold_alike_is_refused():
    net = Net(bits=4)
    hinge = net.node("Relu", net.node("Sub", net.input, net.constant(4 / 256)))
    name = net.quant(net.node("Add", net.conv(shape=(2, 2, 3, 3), pads=[1, 1, 1, 1]), hinge), 2.0**-8)
    refused(InexactModel, net, name, "Quant 'Quant_", "adds 'input' of scale 0.00286", "the sum has scale 0.00390")


def test_a_residual_whose_ties_would_be_rounded_up_becomes_a_term_of_the_sum():
    net = Net(bits=4, scale=0.25)
    name = net.quant(net.node("Add", net.conv(shape=(2, 2, 1, 1), scale=0.5), net.input), 0.25)
    network = check_equal(net, name)
    assert not network.doubts and network.ops[0].requantize.residual is None and len(network.ops[0].terms) == 2


@pytest.mark.parametrize("scale", [0.125, 0.3, 0.5])
def test_residual_of_another_scale_than_its_sum(scale):
    net = Net((2, 2, 6, 6), bits=4, scale=0.25)
    conv = net.conv(shape=(2, 2, 3, 3), pads=[1, 1, 1, 1])
    assert not check_equal(net, net.quant(net.node("Add", conv, net.input), scale)).doubts
    scaled = net.node("Mul", net.input, net.constant(np.array([2.0, 0.5]).reshape(2, 1, 1)))
    assert not check_equal(net, net.quant(net.node("Add", conv, scaled), scale)).doubts


@pytest.mark.parametrize("seed", range(20))
def test_residual_of_a_scale_on_no_grid(seed):
    """Sums that the array cannot decide as they are meant are counted, and few."""
    random = np.random.default_rng(seed)
    net = Net((2, 2, 6, 6), bits=4, scale=float(random.uniform(0.05, 0.3)))
    conv = net.conv(shape=(2, 2, 3, 3), scale=0.1, pads=[1, 1, 1, 1])
    model = net.model(net.quant(net.node("Add", conv, net.input), float(random.uniform(0.05, 0.3)), signed=True))
    network = load(model)
    images = random_images(seed, network, 2)
    differing = int((execute(model, network, images) != reference.predict(network, images)).sum())
    assert differing <= sum(doubt.sums for doubt in network.doubts) and differing <= 2, f"seed {seed}"


def test_rounding_noise_at_a_boundary_is_refused():
    # Odd multiples of 0.1 * 0.25 lie on ties of the scale 0.05: float rounding decides them.
    net = Net((1, 1, 1, 1), scale=0.1)
    name = net.quant(
        net.node("Conv", net.input, net.writer.quant(net.constant(np.full((1, 1, 1, 1), 0.25)), 0.25, 4, True)), 0.05
    )
    refused(InexactModel, net, name, "channel 0", "within the float32 rounding error", "power-of-two scales")


def test_output_that_is_no_affine_function_of_the_accumulator_is_refused():
    net = Net()
    refused(InexactModel, net, net.conv(scale=0.3), "power-of-two scales")
    late = net.node("MaxPool", net.conv(), kernel_shape=[2, 2])
    refused(UnsupportedOperator, net, late, "the network ends in a MaxPool of unquantized values")


def test_bias_inside_gemm_must_lie_on_the_grid_of_its_sum():
    net = Net((1, 40), bits=4, scale=0.5)
    name = net.node("Gemm", net.input, net.weights((40, 3)), net.constant([0.1, 0.2, 0.3]))
    refused(InexactModel, net, name, "MatMul followed by Add instead of a bias inside Gemm", rank=2)


def test_model_without_an_operator_is_refused():
    net = Net()
    refused(UnsupportedModel, net, net.input, "must come from a convolution or a pool")


def test_shape_of_the_input_must_be_known():
    net = Net()
    net.shape = (1, 2, None, 6)
    refused(
        UnsupportedAttribute, net, net.conv(), "input 'input' must have a fixed shape (N, C, H, W)", "not (1, 2, ?, 6)"
    )
    net.shape = (None, 2, 6, 6)
    assert load(net.model(net.conv())).tensors["input"].shape == (2, 6, 6)


def test_number_of_inputs_and_outputs_and_opset_are_checked():
    net = Net()
    model = net.model(net.conv())
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Relu", ["other"], ["nowhere"]))
    with pytest.raises(UnsupportedModel, match=r"must have one input, not 2 \('input', 'other'\)"):
        load(model)
    with pytest.raises(UnsupportedModel, match="opset must be 7 to 25, not 6"):
        load(net.model(net.conv(), opset=6))
    model = net.model(net.conv())
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(UnsupportedModel, match=r"must be float \(float32\), uint8 or int8, not double"):
        load(model)


def test_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match="no such file: give the path of a QONNX model"):
        load(tmp_path / "absent.onnx")


def test_directory(tmp_path):
    with pytest.raises(ModelFileError, match="is a directory, not an ONNX file"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"hello world\n", bytes(range(256)) * 4, b"\x89PNG\r\n\x1a\n"])
def test_garbage(tmp_path, content):
    (tmp_path / "garbage.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"garbage.onnx: not (a readable ONNX file|an ONNX model)"):
        load(tmp_path / "garbage.onnx")


def test_truncated_file(tmp_path):
    net = Net()
    content = net.model(net.quant(net.conv())).SerializeToString()
    for length in range(0, len(content), 97):
        (tmp_path / "part.onnx").write_bytes(content[:length])
        with pytest.raises((ModelFileError, UnsupportedModel), match="part"):
            load(tmp_path / "part.onnx")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_file_never_fails_without_words(tmp_path, seed):
    random = np.random.default_rng(seed)
    content = random_model(seed)[0].SerializeToString()
    for _ in range(40):
        damaged = bytearray(content)
        for position in random.integers(len(damaged), size=3):
            damaged[position] = random.integers(256)
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        with contextlib.suppress(SenteiError), np.errstate(all="ignore"):
            load(tmp_path / "damaged.onnx")


def test_graph_that_reads_what_nobody_computes():
    net = Net()
    name = net.node("Relu", "nowhere")
    with pytest.raises(ModelFileError, match="Relu 'Relu_1' reads 'nowhere', which nothing before it computes"):
        load(net.model(name))
    with pytest.raises(ModelFileError, match=r"must be a path or an onnx\.ModelProto, not int"):
        load(7)
