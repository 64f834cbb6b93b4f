"""Training goes on from a model that was written: what it computes is taken over, and other files are refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

import onnx
from helpers.random_pictures import CLASSES, SEED, data_set
from helpers.training import GROUP, PLAN, head, inputs_of, tiny
from onnx import numpy_helper
from torch import nn

from sentei.host.frontend.importer import load
from sentei.host.network.ir import kept_density
from sentei.host.train.checkpoint import CheckpointError
from sentei.host.train.export import export, take_over
from sentei.host.train.networks import NETWORKS, conv_norm
from sentei.host.train.pipeline import Plan, prune_and_retrain
from sentei.host.train.quantize import quantize
from sentei.host.train.quantizers import Precision

HALF = (Fraction(1, 2),)
QUARTER = (Fraction(1, 4),)
DENSE = (Fraction(1),)
SHAPE = (1, 3, 32, 32)
UNTRAINED = replace(PLAN, epochs=0)


def written(path: Path, network: nn.Module, keeps=HALF, plan: Plan = PLAN, **options) -> Path:
    """The model of the last density."""
    points = list(prune_and_retrain(network, data_set(), keeps, plan, pretrained=True, **options))
    export(points[-1].network, path, SHAPE)
    return path


def weights(model: Path) -> dict[str, np.ndarray]:
    """The integers of all kernels and matrices."""
    graph = onnx.load(model).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.name: np.rint(constants[node.input[0]] / constants[node.input[1]])
        for node in graph.node
        if node.op_type == "Quant" and node.input[0] in constants
    }


def with_square_matrix() -> nn.Module:
    convolutions = conv_norm(3, 8), nn.ReLU(), conv_norm(8, 8), nn.ReLU()
    return nn.Sequential(*convolutions, *head(8)[:2], nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))


MAKERS = {"tiny": tiny, "resnet8": lambda: NETWORKS["resnet8"](3, CLASSES), "square matrix": with_square_matrix}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_is_taken_over_computes_what_the_model_does(make, tmp_path):
    """Also where the float network that is quantized is another one, which wants other scales."""
    torch.manual_seed(SEED)
    (point,) = prune_and_retrain(make(), data_set(), HALF, PLAN, pretrained=True)
    export(point.network, tmp_path / "model.onnx", SHAPE)
    torch.manual_seed(SEED + 1)
    other = make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(5)
    inputs = inputs_of()
    network = quantize(other, inputs)
    take_over(network, tmp_path / "model.onnx", [inputs])
    expected = point.network(inputs)
    assert not torch.allclose(quantize(other, inputs)(inputs), expected)
    torch.testing.assert_close(network(inputs), expected, rtol=0, atol=1e-4)
    network.train()  # where norms take the statistics of what they see: the same inputs
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    assert torch.isclose(network(inputs), expected, rtol=0, atol=1e-3).float().mean() > 0.9


def test_training_goes_on_with_the_models_weights_and_masks(tmp_path):
    model = written(tmp_path / "half.onnx", tiny())
    again = written(tmp_path / "again.onnx", tiny(), plan=UNTRAINED, start=model)
    quarter = written(tmp_path / "quarter.onnx", tiny(), QUARTER, start=model)
    assert weights(model).keys() == weights(again).keys() == weights(quarter).keys()
    for name, before in weights(model).items():
        np.testing.assert_array_equal(before, weights(again)[name])
        assert not (weights(quarter)[name].any(axis=0) & ~before.any(axis=0)).any() or before.ndim == 2
    assert kept_density(load(quarter), GROUP) < 0.3


def test_checkpoints_of_another_start_are_refused(tmp_path):
    model = written(tmp_path / "half.onnx", tiny())
    work = tmp_path / "work"
    written(tmp_path / "one.onnx", tiny(), work=work, start=model)
    with pytest.raises(CheckpointError, match="start is"):
        written(tmp_path / "two.onnx", tiny(), work=work, resume=True)


def plain(channels: int) -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), nn.ReLU(), conv_norm(8, channels), nn.ReLU(), *head(channels))


@pytest.mark.parametrize(
    "network, precision, text",
    [
        (tiny(), Precision(), "is no model of this network: where it has smaller_.*, the file has Mul"),
        (plain(24), Precision(), r"is no model of this network: _4|_6 has the shape .*24.*, not \(16"),
        (plain(16), Precision(weights=3), "has 4 bits there and 3 here"),
    ],
)
def test_models_of_other_networks_are_refused(network, precision, text, tmp_path):
    model = written(tmp_path / "model.onnx", plain(16), DENSE)
    with pytest.raises(CheckpointError, match=text):
        take_over(quantize(network, inputs_of(), precision), model, [inputs_of()])


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "no.onnx").write_text("no")
    with pytest.raises(CheckpointError, match=r"no\.onnx is no ONNX file"):
        take_over(quantize(tiny(), inputs_of()), tmp_path / "no.onnx", [])
    with pytest.raises(CheckpointError, match=r"none\.onnx is no ONNX file"):
        list(prune_and_retrain(tiny(), data_set(), HALF, PLAN, pretrained=True, start=tmp_path / "none.onnx"))
