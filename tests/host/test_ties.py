"""`sentei compile --avoid-ties`: offsets moved so far that float32 execution decides every sum as it is meant."""

import sys

import numpy as np
import onnx
import pytest
from helpers.qonnx_execution import execute
from helpers.random_networks import ModelWriter, random_images

from sentei.host.apps.ties import without_ties
from sentei.host.commands import cli
from sentei.host.frontend.importer import load
from sentei.host.network import reference


def model_with_ties(flat: bool = False) -> onnx.ModelProto:
    """Odd multiples of 0.1 * 0.25 lie on ties of the scale 0.05: float32's rounding decides them."""
    writer = ModelWriter()
    source = writer.quant("input", 0.1, 8, False)
    levels = np.random.default_rng(0).integers(-7, 8, (48, 5) if flat else (5, 3, 3, 3))
    weights = writer.quant(writer.constant(levels * 0.25), 0.25, 4, True)
    sums = (
        writer.node("MatMul", writer.node("Flatten", source), weights) if flat else writer.node("Conv", source, weights)
    )
    return writer.model((4, 3, 4, 4), writer.quant(sums, 2.05, 4, True), 2 if flat else 4)


@pytest.mark.parametrize("flat", [False, True])
def test_a_model_whose_offsets_were_moved_is_decided_as_it_is_meant(tmp_path, flat):
    onnx.save(model_with_ties(flat), tmp_path / "ties.onnx")
    assert load(tmp_path / "ties.onnx").doubts
    model, moved = without_ties(tmp_path / "ties.onnx")
    network = load(model, strict=True)
    (offset,) = moved.values()
    assert 0 < offset < 0.025
    images = random_images(0, network, 4)
    assert np.array_equal(execute(model, network, images), reference.predict(network, images))


def test_the_command_writes_the_model_and_says_what_moved(tmp_path, monkeypatch, capsys):
    onnx.save(model_with_ties(), tmp_path / "ties.onnx")
    arguments = [
        "compile",
        tmp_path / "ties.onnx",
        "--avoid-ties",
        tmp_path / "moved.onnx",
        "-o",
        tmp_path / "p.sentei",
    ]
    monkeypatch.setattr(sys, "argv", ["sentei", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out
    assert (
        end.value.code == 0 and "moved: " in said and "equal to the model's float32 execution for every input" in said
    )
    assert not load(tmp_path / "moved.onnx").doubts
