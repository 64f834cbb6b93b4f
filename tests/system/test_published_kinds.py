"""Networks as BNN-PYNQ and others publish them (CNV, TFC, LeNet), with random weights: every layer equals the reference
on the Verilated 32x32 engine, and the outputs are qonnx's."""

import numpy as np
import onnx
import pytest

pytest.importorskip("sentei.driver.quiet_pynq")
pytest.importorskip("litex")

from helpers.qonnx_execution import execute
from helpers.random_networks import QUANT_DOMAIN, ModelWriter, random_images

from sentei.driver import SenteiOverlay
from sentei.host.apps.measure import first_difference
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.geometry import PRESETS


class Net(ModelWriter):
    """Layers of BNN-PYNQ: weights and activations of one bit are signs, of two bits -1 to 1."""

    def __init__(self, weight_bits: int, activation_bits: int):
        super().__init__()
        self.random = np.random.default_rng(0)
        self.weight_bits, self.activation_bits = weight_bits, activation_bits

    def limited(self, source: str, bits: int, scale: float = 1.0) -> str:
        if bits == 1:
            return self.node("BipolarQuant", source, self.constant(scale), domain=QUANT_DOMAIN)
        return self.quant(source, scale, bits, True, narrow=True)

    def weights(self, *shape: int) -> str:
        return self.limited(self.constant(self.random.normal(size=shape)), self.weight_bits)

    def activation(self, source: str, channels: int, reach: float) -> str:
        """A batch norm, then a quantizer."""
        statistics = (
            self.random.choice([-1, 1, 1], channels) * self.random.uniform(0.5, 1.5, channels),
            self.random.normal(size=channels) / 4,
            self.random.normal(size=channels) * reach / 4,
            np.full(channels, reach**2),
        )
        name = self.node("BatchNormalization", source, *map(self.constant, statistics))
        return self.limited(name, self.activation_bits)


def cnv(weight_bits: int, activation_bits: int) -> onnx.ModelProto:
    net = Net(weight_bits, activation_bits)
    name = net.node("Sub", net.node("Mul", "input", net.constant(2.0)), net.constant(1.0))
    name, inputs = net.quant(name, 2.0**-7, 8, True, narrow=True), 3
    for number, outputs in enumerate((64, 64, 128, 128, 256, 256)):
        conv = net.node("Conv", name, net.weights(outputs, inputs, 3, 3))
        name, inputs = net.activation(conv, outputs, np.sqrt(9 * inputs)), outputs
        if number in (1, 3):
            name = net.node("MaxPool", name, kernel_shape=[2, 2], strides=[2, 2])
    name = net.node("Flatten", name)
    for outputs in (512, 512):
        name = net.activation(net.node("MatMul", name, net.weights(inputs, outputs)), outputs, np.sqrt(inputs))
        inputs = outputs
    return net.model((1, 3, 32, 32), net.node("MatMul", name, net.weights(inputs, 10)), 2)


def tfc(weight_bits: int, activation_bits: int) -> onnx.ModelProto:
    net = Net(weight_bits, activation_bits)
    name = net.node("Reshape", "input", net.constant([1, -1], np.int64))
    name = net.node("Sub", net.node("Mul", name, net.constant(2.0)), net.constant(1.0))
    name, inputs = net.limited(name, activation_bits), 784
    for outputs in (64, 64, 64):
        name = net.activation(net.node("MatMul", name, net.weights(inputs, outputs)), outputs, np.sqrt(inputs))
        inputs = outputs
    return net.model((1, 1, 28, 28), net.node("MatMul", name, net.weights(inputs, 10)), 2)


def lenet(weight_bits: int, activation_bits: int) -> onnx.ModelProto:
    net = Net(weight_bits, activation_bits)
    name, inputs = net.quant("input", 2.0**-8, 8, False), 1
    for outputs, pads in ((6, 2), (16, 0)):
        conv = net.node("Conv", name, net.weights(outputs, inputs, 5, 5), pads=[pads] * 4)
        name = net.node("MaxPool", net.activation(conv, outputs, 5.0), kernel_shape=[2, 2], strides=[2, 2])
        inputs = outputs
    name, inputs = net.node("Flatten", name), 400
    for outputs in (120, 84):
        name = net.activation(net.node("MatMul", name, net.weights(inputs, outputs)), outputs, np.sqrt(inputs))
        inputs = outputs
    return net.model((1, 1, 28, 28), net.node("MatMul", name, net.weights(inputs, 10)), 2)


KINDS = {
    "CNV w1a1": (cnv, 1, 1),
    "CNV w1a2": (cnv, 1, 2),
    "CNV w2a2": (cnv, 2, 2),
    "TFC w1a1": (tfc, 1, 1),
    "TFC w1a2": (tfc, 1, 2),
    "TFC w2a2": (tfc, 2, 2),
    "LeNet w4a4": (lenet, 4, 4),
}


@pytest.fixture(scope="module")
def overlay(overlay_path):
    with SenteiOverlay(overlay_path("32x32")) as opened:
        yield opened


@pytest.mark.parametrize("name", KINDS)
def test_a_published_kind_of_network(overlay, name):
    make, *bits = KINDS[name]
    model = make(*bits)
    network = load(model)
    program = compile_network(network, PRESETS["32x32"])
    overlay.load(program)
    images = random_images(0, network, 1)
    assert first_difference(overlay, network, images) is None
    outputs = overlay.run(images)
    expected = execute(model, network, images)
    assert np.array_equal(outputs.model.reshape(expected.shape), expected) or network.doubts
    bound = sum(layer.bound_cycles for layer in program.layers)
    print(f"{name}: {overlay.last_cycles} cycles, bound {bound:.0f}; {program.meaning}")
