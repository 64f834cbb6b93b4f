"""Quantizing keeps the function of a network, and is Brevitas' own."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

from brevitas.nn import QuantIdentity
from brevitas.quant.fixed_point import Int8ActPerTensorFixedPoint, Uint8ActPerTensorFixedPoint
from helpers.random_pictures import SEED, split_of
from helpers.training import (
    GROUP,
    OPERATIONS,
    Call,
    Join,
    check_export,
    first,
    head,
    inputs_of,
    is_power_of_two,
    is_signed,
    layers_of,
    logits_of,
    named_operation,
    quantizers_of,
    tiny,
    with_statistics,
    without_quantizers,
)
from torch import nn
from torch.nn import functional as F

from sentei.host.train.export import freeze
from sentei.host.train.images import Images
from sentei.host.train.kernel_size import hold_kernel_sizes
from sentei.host.train.loop import Recipe, fit
from sentei.host.train.networks import conv_norm
from sentei.host.train.prune import (
    Pruner,
)
from sentei.host.train.quantize import quantize
from sentei.host.train.quantizers import (
    ActivationQuantizer,
    Precision,
    UnsupportedNetworkError,
    best_size,
    quantization_error,
)
from sentei.host.train.traced import ChannelBias, residual_adds


@pytest.mark.parametrize("name", OPERATIONS)
def test_quantizing_keeps_the_function_but_for_the_rounding(name):
    """With the quantizers out, what biases and kernels became computes what the float network does."""
    network, inputs = named_operation(name), inputs_of()
    quantized = quantize(network, inputs)
    plain = without_quantizers(quantized).double()
    expected = copy.deepcopy(network).double()(inputs.double())
    slack = 2e-4 if name == "norm without weights" else 1e-6  # the norm's epsilon is not made up for
    torch.testing.assert_close(plain(inputs.double()), expected, rtol=1e-5, atol=slack)
    difference = torch.from_numpy(logits_of(quantized, inputs)).double() - expected
    assert 0 < difference.abs().mean() < 0.5 * expected.std(), "quantization changes more than rounding explains"


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_scale_is_a_power_of_two_and_every_value_an_integer_in_range(name):
    inputs = inputs_of()
    network = quantize(named_operation(name), inputs)
    quantizers, layers, seen = quantizers_of(network), layers_of(network), {}
    for place, quantizer in quantizers.items():
        quantizer.register_forward_hook(lambda _, __, output, place=place: seen.update({place: output.detach()}))
    logits_of(network, inputs)
    source, *others = quantizers
    assert quantizers[source].scale == 2.0**-8 and torch.equal(seen[source], inputs)
    assert set(seen) == set(quantizers)
    for place in others:
        scale, values = quantizers[place].scale, seen[place] / quantizers[place].scale
        low, high = (-8, 7) if is_signed(quantizers[place]) else (0, 15)
        assert is_power_of_two(scale), f"{place}: {scale}"
        assert torch.equal(values, values.round()) and low <= values.min() and values.max() <= high, place
        assert values.abs().max() >= high // 4, f"{place}: the scale is too large"
    for index, (place, layer) in enumerate(layers.items()):
        weight = layer.quant_weight()
        values, limit = weight.value / weight.scale, 127 if index in (0, len(layers) - 1) else 7
        assert weight.scale.numel() == 1 and is_power_of_two(weight.scale.item()), place
        assert torch.equal(values, values.round()) and values.abs().max() <= limit, place
        assert values.abs().max() > limit // 2, f"{place}: the scale is too large"
        assert layer.bias is None


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_exported_equals_the_torch_model(name, tmp_path):
    network = quantize(named_operation(name), inputs_of())
    freeze(network)
    check_export(network, tmp_path / "model.onnx")


def test_an_activation_quantizer_is_brevitas_own():
    """The faster quantizer of constant scales computes what Brevitas' does, gradients included, ties and all."""
    x = torch.cat([torch.randn(1000) * 4, torch.arange(-40, 41) / 8])
    for signed, base in ((False, Uint8ActPerTensorFixedPoint), (True, Int8ActPerTensorFixedPoint)):
        theirs = QuantIdentity(
            act_quant=base.let(bit_width=4, scaling_impl_type="const", scaling_init=0.25 * 2 ** (4 - signed))
        )
        results = []
        for quantizer in (ActivationQuantizer(4, signed, 0.25), theirs):
            leaf = x.clone().requires_grad_()
            output = quantizer(leaf)
            (output * torch.arange(len(x))).sum().backward()
            results.append((output.detach(), leaf.grad))
        inside = (x > (-2 if signed else 0)) & (x < (1.75 if signed else 3.75))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1][inside], results[1][1][inside])
        assert (results[0][1][x > 4] == 0).all() and (results[0][1][x < -2.1] == 0).all()


def test_a_bias_goes_into_the_norm_or_behind_the_sums():
    network = quantize(named_operation("biases"), inputs_of())
    biases = [name for name, module in network.named_modules() if isinstance(module, ChannelBias)]
    assert len(biases) == 4 and not any(name.startswith("_2") for name in biases), biases
    assert all(network.get_submodule(name).bias.requires_grad for name in biases)


def test_the_best_size_has_the_least_error():
    """Against what is published for as many levels (Max 1960, table II: steps of 0.3352 for 16, 0.5860 for 8)."""
    weights = torch.randn(1, 1 << 20, dtype=torch.float64)
    for bits in (2, 3, 4, 8):
        best = best_size(bits)
        errors = [
            quantization_error(weights * best * factor, 1.0, bits, True, True) / factor**2
            for factor in (1.0, 0.93, 1.07)
        ]
        assert errors[0] < min(errors[1:]), bits
    assert 1 / 0.5860 < best_size(4) < 1 / 0.3352


def test_kernels_are_moved_to_the_grid_of_their_layer():
    """The channels' sizes differ by powers of ten; quantizing makes them those that fit the layer's grid."""
    network = nn.Sequential(*first(), conv_norm(8, 16), nn.ReLU(), *head(16)).eval()
    with torch.no_grad():
        network[2][0].weight.mul_(torch.logspace(-2, 2, 16).view(-1, 1, 1, 1))
    expected = network[2](torch.ones(1, 8, 4, 4))
    quantized = quantize(network, inputs_of())
    layer, norm = quantized.get_submodule("2.0"), quantized.get_submodule("2.1")
    sizes = layer.weight.flatten(1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(sizes, torch.full_like(sizes, best_size(4) * layer.quant_weight().scale.item()))
    changed = norm(F.conv2d(torch.ones(1, 8, 4, 4), layer.weight, padding=1))
    torch.testing.assert_close(changed, expected, rtol=1e-3, atol=1e-5)


def test_kernels_keep_the_size_that_fits_their_grid():
    """Holding changes nothing at first; what is left of a pruned kernel has its size, whatever training does to it."""
    network = quantize(tiny().eval(), inputs_of())
    expected = network(inputs_of())
    pruner = Pruner(network, GROUP)
    hold_kernel_sizes(network)
    torch.testing.assert_close(network(inputs_of()), expected)
    pruner.begin(Fraction(1, 2))
    pruner.update(1.0)
    layers = {node: module for node, module in layers_of(network).items() if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        for layer in layers.values():
            layer.parametrizations.weight.original[0] *= 100
            layer.parametrizations.weight.original[1] = 0
    network(inputs_of()).square().sum().backward()
    for name, layer in layers.items():
        original = layer.parametrizations.weight.original
        assert original.grad.isfinite().all() and original.grad[0].any(), name
        weight = layer.weight.detach().flatten(1)
        kept = weight.ne(0)
        if name in pruner.layers:
            assert kept[0].float().mean() < 0.6, name
        sizes = weight.square().sum(dim=1) / kept.sum(dim=1)
        size = best_size(8 if layer is next(iter(layers.values())) else 4) * layer.quant_weight().scale.item()
        torch.testing.assert_close(sizes[2:].sqrt(), torch.full_like(sizes[2:], size))
        assert not kept[1].any() and math.isclose(sizes[0].sqrt(), size, rel_tol=1e-5)


def test_relu6_clips_near_six_and_relu_where_its_values_end():
    scales = {}
    for relu in (nn.ReLU(), nn.ReLU6(), Call(F.relu6)):
        network = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        nn.init.constant_(network[0].weight, 20.0)
        *_, quantizer, _ = quantizers_of(quantize(network, inputs_of())).values()
        scales[relu] = quantizer.scale
    relu, *bounded = scales.values()
    assert relu * 15 > 20 and all(4 < scale * 15 < 8 for scale in bounded), scales


def test_shortcuts_are_quantized_once_and_projections_with_a_sign():
    identity = quantize(named_operation("identity shortcut"), inputs_of())
    projection = quantize(named_operation("projection shortcut"), inputs_of())
    signs = [[is_signed(q) for q in quantizers_of(network).values()] for network in (identity, projection)]
    assert [sum(each) for each in signs] == [0, 1], signs
    assert len(signs[1]) == len(signs[0]) + 1
    (add,) = residual_adds(projection)
    signed = next(q for q in quantizers_of(projection).values() if is_signed(q))
    assert add.residual_scale == signed.scale == add.output_scale
    assert add.norm.endswith("left.2.1"), "the 3x3 convolution is the sum, the projection the residual"


def test_bits_are_chosen_by_the_layers_place(tmp_path):
    network = nn.Sequential(*first(), conv_norm(8, 8), nn.ReLU(), conv_norm(8, 8), nn.ReLU(), *head(8))
    precision = Precision(weights=3, activations=2, first=6, last=5)
    quantized = quantize(with_statistics(network), inputs_of(), precision)
    limits = [int((w.value / w.scale).abs().max()) for w in (m.quant_weight() for m in layers_of(quantized).values())]
    assert 15 < limits[0] <= 31 and limits[1:3] == [3, 3] and 7 < limits[3] <= 15, limits
    _, *others = quantizers_of(quantized).values()
    assert {int((q(torch.full((1,), 99.0)) / q.scale).item()) for q in others} == {3}
    freeze(quantized)
    check_export(quantized, tmp_path / "model.onnx")


@pytest.mark.parametrize("precision", [{"weights": 9}, {"activations": 8}, {"first": 1}, {"last": 0}])
def test_bits_that_the_array_lacks_are_refused(precision):
    ((name, bits),) = precision.items()
    text = f"{name} must be quantized to between 2 and [48] bits, not {bits}$"
    with pytest.raises(UnsupportedNetworkError, match=text):
        Precision(**precision)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x, y):
        return self.conv(x) + y


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.mean() > 0.5 else x


class Twice(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.first, self.layer = conv_norm(3, 8), layer

    def forward(self, x):
        return self.layer(F.relu(self.layer(F.relu(self.first(x)))))


def plain_block() -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1)


@pytest.mark.parametrize(
    "network, text",
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()), "_1: Sigmoid cannot be quantized; convolut"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Call(F.silu)), "silu cannot be quantized"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Call(lambda x: x.clamp(0, 1))), "clamp cannot be quantized"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2)), "no convolution and no linear layer"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4)), "BatchNorm1d cannot be quantized"),
        (Branching, "cannot be traced: .*control flow; its forward must not depend on the values of tensors"),
        (TwoInputs, "y: a network has one input, an image"),
        (lambda: Join(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), lambda x, y: torch.cat([x, y])), "cat cannot be quant"),
        (
            lambda: nn.Sequential(*first(), Join(plain_block(), nn.Identity()), nn.ReLU()),
            "add: one operand of an addition must be a convolution with a batch norm behind it, the other a tensor",
        ),
        (lambda: nn.Sequential(*first(), Join(nn.BatchNorm2d(8), nn.Identity()), nn.ReLU()), "add: one operand of an"),
        (lambda: nn.Sequential(*first(), conv_norm(8, 8), Call(lambda x: x + 1)), "add: one operand of an addition"),
        (lambda: nn.Sequential(*first(), Join(conv_norm(8, 8), nn.Identity())), "add: a ReLU, a pooling, .* must read"),
        (
            lambda: nn.Sequential(*first(), Join(conv_norm(8, 8), nn.Identity()), nn.Dropout(), nn.ReLU()),
            "add: a ReLU, a pooling, a convolution or another addition must read the sum, at once",
        ),
        (nn.Flatten, "no convolution and no linear layer: nothing to quantize"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
            "_0: padding must be numbers of "
            r"zeros, not reflect \(1, 1\)",
        ),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same")), "padding must be numbers of zeros, not zeros same"),
        (lambda: Twice(plain_block()), "layer_1: layer is called twice; each call needs its own layer"),
        (lambda: Twice(nn.BatchNorm2d(8)), "layer_1: layer is called twice"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
            "_1: a batch norm must track its running statistics",
        ),
    ],
)
def test_what_cannot_be_quantized_is_named(network, text):
    with pytest.raises(UnsupportedNetworkError, match=text):
        quantize(network().eval(), inputs_of(8))


def test_a_relu_may_be_called_twice(tmp_path):
    network = quantize(with_statistics(nn.Sequential(Twice(nn.ReLU()), *head(8))), inputs_of())
    freeze(network)
    check_export(network, tmp_path / "model.onnx")


def test_the_float_network_stays_as_it_was():
    for name in ("biases", "projection shortcut", "linear layers"):
        network = named_operation(name)
        before = copy.deepcopy(network.state_dict())
        freeze(quantize(network, inputs_of(8)))
        after = network.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before), name


def test_scales_stay_in_training_and_weights_move():
    network = quantize(tiny().eval(), inputs_of())
    scales = {name: q.scale for name, q in quantizers_of(network).items()}
    weights = {name: m.weight.detach().clone() for name, m in layers_of(network).items()}
    images = Images(split_of(32))
    fit(network, images, images, Recipe(epochs=1, learning_rate=0.2, batch=8), seed=SEED, stage="tiny")
    assert scales == {name: q.scale for name, q in quantizers_of(network).items()}
    for name, layer in layers_of(network).items():
        assert is_power_of_two(layer.quant_weight().scale.item())
        assert not torch.equal(layer.weight, weights[name]), f"{name} is not trained"
    large = torch.full((2,), 1e6)
    assert all(
        q(large).max() == q.scale * (2**8 - 1 if index == 0 else 7 if is_signed(q) else 15)
        for index, q in enumerate(quantizers_of(network).values())
    )
