"""Pruning keeps blocks aligned and balanced; what is exported computes what was trained."""

from __future__ import annotations

import contextlib
import gzip
from fractions import Fraction

import numpy as np
import pytest

from sentei.host.train import data

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

from brevitas.nn.quant_layer import QuantNonLinearActLayer  # noqa: E402

from sentei.host import frontend, reference  # noqa: E402
from sentei.host.train.evaluate import qonnx_logits, weight_densities  # noqa: E402
from sentei.host.train.export import ExportError, export, freeze, scale_of  # noqa: E402
from sentei.host.train.loop import (  # noqa: E402
    CheckpointError,
    Images,
    Recipe,
    estimate_norms,
    fit,
    to_input,
)
from sentei.host.train.model import FashionNet  # noqa: E402
from sentei.host.train.prune import PruneError, SlotPruner, cubic_density, largest_slots, slot_importance  # noqa: E402
from sentei.host.train.quant import calibrate  # noqa: E402

SEED = 20210822
GROUP = 8
KEEP = Fraction(1, 9)


def random_images(count: int) -> Images:
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
    return Images(images, torch.arange(count) % 10)


def activations(network) -> list[tuple[str, torch.nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, QuantNonLinearActLayer)]


@pytest.fixture(scope="module")
def trained():
    """A narrow network pruned to 1/9 in four quantized steps, frozen, and what the pruner said it kept."""
    torch.manual_seed(SEED)
    network = FashionNet(channels=16).eval()
    images = random_images(64)
    calibrate(network, to_input(images.images))
    pruner = SlotPruner(network.prunable(), KEEP, GROUP)
    fit(
        network,
        images,
        images,
        Recipe(epochs=1, learning_rate=0.05, batch=16),
        seed=SEED,
        name="tiny",
        before_step=lambda progress: pruner.update(progress / 0.5),
    )
    density = pruner.density()
    pruner.finish()
    freeze(network, network.residual_adds())
    return network, density


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "tiny.onnx"
    export(trained[0], path, (1, 1, 28, 28))
    return path


def test_every_block_keeps_the_same_number_of_slots(trained):
    network, density = trained
    assert density == {name: pytest.approx(1 / 9) for name in network.prunable()}
    for name, layer in network.prunable().items():
        slots = layer.weight.unflatten(0, (-1, GROUP)).ne(0).any(1).flatten(1).sum(1)
        assert (slots <= layer.in_channels).all(), f"{name}: {slots.tolist()} of {layer.in_channels} slots in use"


def test_the_channels_of_a_block_share_their_slots():
    torch.manual_seed(SEED)
    layer = torch.nn.Conv2d(4, 16, 3)
    pruner = SlotPruner({"layer": layer}, Fraction(1, 4), GROUP)
    pruner.update(1.0)
    used = layer.weight.unflatten(0, (2, GROUP)).ne(0)
    assert (used == used[:, :1]).all()
    assert used[:, 0].flatten(1).sum(1).tolist() == [9, 9]


def test_kept_slots_are_the_largest_of_each_block():
    weight = torch.full((8, 2, 1, 1), 0.1)
    weight[:, 1] = 1.0
    assert largest_slots(slot_importance(weight, 8), 1).flatten().tolist() == [False, True]


def test_final_masks_stay():
    torch.manual_seed(SEED)
    layer = torch.nn.Conv2d(4, 8, 3)
    pruner = SlotPruner({"layer": layer}, KEEP, GROUP)
    pruner.update(1.0)
    before = layer.parametrizations.weight[0].kept.clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(torch.randn(8, 4, 3, 3))
    pruner.update(0.5)
    pruner.update(1.0)
    assert torch.equal(layer.parametrizations.weight[0].kept, before)


def test_schedule_falls_from_dense_to_the_kept_fraction():
    densities = [cubic_density(progress / 20, 1 / 9) for progress in range(21)]
    assert densities[0] == 1.0
    assert densities[-1] == pytest.approx(1 / 9)
    assert densities == sorted(densities, reverse=True)


def test_a_layer_that_does_not_divide_into_blocks_is_refused():
    with pytest.raises(PruneError, match="conv: output channels must be a multiple of group 8, not 12"):
        SlotPruner({"conv": torch.nn.Conv2d(4, 12, 3)}, KEEP, GROUP)


def test_keep_must_be_a_fraction_of_the_slots():
    with pytest.raises(PruneError, match=r"keep must be in \(0, 1\], not 2"):
        SlotPruner({}, Fraction(2), GROUP)


def test_weight_scales_are_powers_of_two_and_weights_fit_four_bits():
    torch.manual_seed(SEED)
    layer = FashionNet(channels=16).conv2.conv
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight) * torch.logspace(-3, 2, 16).view(-1, 1, 1, 1))
    quantized = layer.quant_weight()
    integers = quantized.value / quantized.scale
    assert quantized.scale.shape == (16, 1, 1, 1)
    assert torch.equal(torch.log2(quantized.scale), torch.log2(quantized.scale).round())
    assert torch.equal(integers, integers.round())
    assert integers.abs().amax((1, 2, 3)).min() >= 6
    assert integers.abs().max() <= 7


def test_activation_scales_stay_in_training():
    network = FashionNet(channels=16).eval()
    calibrate(network, to_input(random_images(64).images))
    before = {name: module.act_quant.scale() for name, module in activations(network)}
    images = random_images(32)
    fit(network, images, images, Recipe(epochs=1, learning_rate=0.5, batch=16), seed=SEED, name="tiny")
    assert before == {name: module.act_quant.scale() for name, module in activations(network)}
    assert before.pop("input") == 2.0**-8
    assert all(np.frexp(scale.item())[0] == 0.5 for scale in before.values()), before


def test_estimated_norms_are_the_mean_over_the_batches():
    torch.manual_seed(SEED)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    batches = torch.randn(5, 4, 3, 6, 6) + 7.0
    estimate_norms(network, batches)
    torch.testing.assert_close(network[0].running_mean, batches.mean((0, 1, 3, 4)))
    assert not network.training


def test_residual_constants_are_snapped(trained):
    network, _ = trained
    block = network.conv5
    scale = (block.conv.quant_weight().scale * scale_of(network.conv4.act)).flatten().double()
    m, b = block.norm.m.flatten().double(), block.norm.b.flatten().double()
    ratio = 16 * scale_of(network.conv3.act).double() / (scale * m)
    assert torch.allclose(ratio, ratio.round(), rtol=1e-6, atol=0)
    assert (ratio.round().abs() <= 32767).all()
    assert torch.allclose((b * 16 / (scale * m)) % 1.0, torch.tensor(0.25, dtype=torch.float64), atol=0.01)


def test_a_residual_coarser_than_the_output_is_refused():
    torch.manual_seed(SEED)
    network = FashionNet(channels=16).eval()
    torch.nn.init.constant_(network.conv3.norm.weight, 64.0)
    calibrate(network, to_input(random_images(16).images))
    with pytest.raises(ExportError, match=r"must be at least the residual's, 0\.5, not 0\.25"):
        freeze(network, network.residual_adds())


def test_qonnx_execution_equals_the_torch_model(trained, exported):
    inputs = to_input(random_images(8).images)
    with torch.no_grad():
        expected = trained[0](inputs).numpy()
    np.testing.assert_array_equal(qonnx_logits(exported, inputs.numpy(), batch=4), expected)


def test_the_exported_file_compiles_to_the_same_logits(exported):
    images = random_images(8).images
    network = frontend.load(exported)
    logits = reference.predict(network, images.unsqueeze(1).numpy())
    np.testing.assert_array_equal(logits, qonnx_logits(exported, to_input(images).numpy(), batch=4))


def test_exported_weights_have_the_asked_density(exported):
    densities = list(weight_densities(exported).values())
    assert len(densities) == 5
    assert all(0 < density <= 1 / 9 for density in densities[1:]), densities


def test_training_resumes_where_it_stopped(tmp_path):
    images = random_images(32)
    recipe = Recipe(epochs=2, learning_rate=0.05, batch=16)

    def train(checkpoint, *, stop: bool = False, resume: bool = False):
        torch.manual_seed(SEED)
        network = FashionNet(channels=16).eval()
        calibrate(network, to_input(images.images))
        calls = []

        def interrupt(progress):
            calls.append(progress)
            if stop and progress >= 0.5:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            fit(
                network,
                images,
                images,
                recipe,
                seed=SEED,
                name="tiny",
                checkpoint=checkpoint,
                resume=resume,
                before_step=interrupt,
            )
        return network, calls

    whole, _ = train(tmp_path / "whole.pt")
    train(tmp_path / "parts.pt", stop=True)
    resumed, calls = train(tmp_path / "parts.pt", resume=True)
    assert calls == [0.5, 0.75]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    images = random_images(16)
    arguments = (FashionNet(channels=16), images, images, Recipe(epochs=1, learning_rate=0.05, batch=16))
    checkpoint = tmp_path / "net.pt"
    fit(*arguments, seed=0, name="tiny", checkpoint=checkpoint, settings={"seed": 0})
    with pytest.raises(CheckpointError, match=r"must come from a run with {'seed': 1}, not {'seed': 0}"):
        fit(*arguments, seed=1, name="tiny", checkpoint=checkpoint, settings={"seed": 1}, resume=True)


def test_idx_round_trip(tmp_path):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes()))
    np.testing.assert_array_equal(data.load_idx(path), images)


def test_missing_data_names_the_remedy(tmp_path):
    with pytest.raises(data.DatasetMissingError, match=r"does not exist: install Debian's dataset-fashion-mnist"):
        data.fashion_mnist("test", tmp_path)


def test_truncated_data_is_refused(tmp_path):
    path = tmp_path / "labels.idx"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 2, 3]))
    with pytest.raises(data.DatasetFormatError, match=r"must hold \(5,\) elements, not 3"):
        data.load_idx(path)


def test_unknown_split_is_refused():
    with pytest.raises(data.DatasetError, match="split must be one of 'train', 'test', not 'validation'"):
        data.fashion_mnist("validation")
