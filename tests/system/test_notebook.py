"""The notebook, cell by cell in a kernel of its own, against the simulator."""

import os
from pathlib import Path

import pytest

pytest.importorskip("sentei.driver.quiet_pynq")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

from sentei.host.commands.console import classes_of
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.geometry import PRESETS

ROOT = Path(__file__).resolve().parents[2]


def test_the_notebook_classifies_pictures(overlay_path, tmp_path, monkeypatch):
    model, program = ROOT / "models" / "fmnist-ninth.onnx", tmp_path / "fmnist-ninth.sentei"
    compile_network(load(model), PRESETS["8x8"], classes_of(model)).save(program)
    monkeypatch.setitem(os.environ, "SENTEI_OVERLAY", str(overlay_path()))
    monkeypatch.setitem(os.environ, "SENTEI_PROGRAM", str(program))
    monkeypatch.setitem(os.environ, "SENTEI_PICTURES", str(ROOT / "models" / "pictures"))
    notebook = nbformat.read(ROOT / "overlay" / "notebooks" / "classify.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    resources = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs)
    pictures = sorted((ROOT / "models" / "pictures").glob("*.png"))
    for picture in pictures:
        label = picture.stem.replace("-", " ")
        assert f"{picture.name}: {label}".lower() in said.lower()
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "cycles a picture" in said
