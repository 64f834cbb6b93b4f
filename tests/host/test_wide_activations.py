"""Activations of five to eight bits: two nibbles each, computed one after the other."""

import numpy as np
import pytest
from helpers.qonnx_execution import execute
from helpers.random_networks import QUANT_DOMAIN, ModelWriter, random_images

from sentei.host.errors import UnsupportedBitWidth, UnsupportedOperator
from sentei.host.frontend.importer import load
from sentei.host.network import reference

RANDOM = np.random.default_rng(7)


class Net(ModelWriter):
    def weights(self, *shape: int, scale: float = 0.125, bits: int = 4) -> str:
        limit = 1 << (bits - 1)
        return self.quant(self.constant(RANDOM.integers(1 - limit, limit, shape) * scale), scale, bits, True)

    def wide(self, source: str, scale: float, bits: int = 8, signed: bool = False, zero: float = 0.0) -> str:
        parameters = (self.constant(scale), self.constant(zero), self.constant(float(bits)))
        return self.node("Quant", source, *parameters, domain=QUANT_DOMAIN, signed=int(signed), narrow=0)


def model(net: Net, bits: int, signed: bool, scale: float = 2.0**-4, grow: float = 2.0):
    """Convolutions, a residual, an average, a matrix product, all of such activations."""
    picture = net.quant("input", 2.0**-7, 8, True)
    zero = 0.0 if signed else 3.0
    first = net.wide(net.node("Conv", picture, net.weights(4, 3, 3, 3), pads=[1] * 4), scale, bits, signed, zero)
    second = net.node("Conv", first, net.weights(4, 4, 3, 3), pads=[1] * 4)
    second = net.node("Mul", second, net.constant(RANDOM.choice([-0.5, 0.5, 1.0], (4, 1, 1))))
    total = net.wide(net.node("Add", second, first), grow * scale, bits, signed)
    pooled = net.node("AveragePool", total, kernel_shape=[2, 2], strides=[2, 2])
    pooled = net.wide(pooled, grow * grow * scale / 2, bits, signed)
    depthwise = net.node("Conv", pooled, net.weights(4, 1, 3, 3), group=4, pads=[1] * 4)
    mixed = net.quant(net.node("Relu", depthwise), 0.5, 4, False)
    joined = net.wide(net.node("Add", mixed, pooled), 0.25, bits, signed)
    flat = net.node("Flatten", joined)
    return net.model((2, 3, 6, 8), net.node("MatMul", flat, net.weights(48, 5)), 2)


@pytest.mark.parametrize("bits", [5, 6, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_wide_activations_are_exact(bits, signed):
    net = Net()
    network = load(model(net, bits, signed))
    for seed in range(3):
        images = random_images(seed, network, 2)
        expected = execute(net.model((2, 3, 6, 8), net.nodes[-1].output[0], 2), network, images)
        assert np.array_equal(reference.predict(network, images), expected)
    assert not network.doubts


@pytest.mark.parametrize("seed", range(6))
def test_wide_activations_of_scales_on_no_grid(seed):
    """Sums that are decided otherwise are named, and few; so outputs are near."""
    net = Net()
    made = model(net, 8, bool(seed % 2), 0.0613 + seed / 100, 1.713)
    network = load(made)
    images = random_images(seed, network, 2)
    expected, found = execute(made, network, images), reference.predict(network, images)
    assert np.isclose(found, expected, rtol=0.02, atol=0.02 * np.abs(expected).max()).all()


@pytest.mark.parametrize("seed", range(4))
def test_one_wide_activation_after_another_is_exact(seed):
    """With any factors between the two: a remainder is taken as finely as that needs."""
    random, net = np.random.default_rng(seed), Net()
    picture = net.quant("input", 2.0**-7, 8, True)
    first = net.wide(net.node("Conv", picture, net.weights(128, 3, 1, 1)), 0.5, 8, True)
    scaled = net.node("Mul", first, net.constant(random.uniform(0.05, 0.3, (128, 1, 1))))
    moved = net.node("Add", scaled, net.constant(random.uniform(-1, 3, (128, 1, 1))))
    second = net.wide(net.node("Relu", moved), 2.0**-5)
    made = net.model((4, 3, 6, 8), net.node("Conv", second, net.weights(3, 128, 1, 1)), 4)
    network = load(made)
    assert not any(doubt.nearest for doubt in network.doubts), f"seed {seed}"
    images = random_images(seed, network, 4)
    differing = (execute(made, network, images) != reference.predict(network, images).reshape(4, -1)).sum()
    assert differing == 0 or network.doubts, f"seed {seed}"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_maxima_of_wide_activations(late, signed):
    net = Net()
    conv = net.node("Conv", net.quant("input", 2.0**-7, 8, True), net.weights(4, 3, 3, 3), pads=[1] * 4)
    if late:
        name = net.wide(net.node("MaxPool", conv, kernel_shape=[2, 2], strides=[2, 2]), 2.0**-4, 8, signed)
    else:
        name = net.node("MaxPool", net.wide(conv, 2.0**-4, 8, signed), kernel_shape=[2, 2], strides=[2, 2])
    name = net.node("GlobalMaxPool", net.wide(net.node("Conv", name, net.weights(5, 4, 1, 1)), 2.0**-3, 7, signed))
    made = net.model((2, 3, 6, 8), net.node("Conv", name, net.weights(3, 5, 1, 1)), 4)
    network = load(made)
    images = random_images(1, network, 2)
    assert not network.doubts
    assert np.array_equal(execute(made, network, images), reference.predict(network, images))


def test_what_wide_activations_cannot_do_is_named():
    net = Net()
    picture = net.quant("input", 2.0**-7, 8, True)
    pooled = net.node("MaxPool", net.node("Conv", picture, net.weights(4, 3, 3, 3)), kernel_shape=[2, 2])
    name = net.node("Conv", net.wide(pooled, 0.1), net.weights(4, 4, 1, 1))
    with pytest.raises(
        UnsupportedOperator, match="a MaxPool of more than 4 bits must cut the map into windows side by"
    ):
        load(net.model((2, 3, 6, 8), name, 4))
    wider = net.wide(net.node("Conv", picture, net.weights(4, 3, 3, 3)), 0.01, 9)
    with pytest.raises(UnsupportedBitWidth, match="activations must have at most 8 bits, not 9"):
        load(net.model((2, 3, 6, 8), net.node("Conv", wider, net.weights(4, 4, 1, 1)), 4))
