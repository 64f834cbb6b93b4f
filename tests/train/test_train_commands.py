"""`sentei train`, `sentei curve` and `sentei accuracy`, on a data set of a few random pictures in CIFAR-10's format.

ResNet-8 fits the 8x8 engine, so cycles come from its simulator; where a test says nothing about cycles, none are run.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")
pytest.importorskip("sentei.driver.quiet_pynq")

import onnx
from helpers.random_pictures import write_cifar10
from helpers.small_model import small_model
from PIL import Image
from rich.console import Console

from sentei.host.commands import cli, training_options, training_run
from sentei.host.compiler.compile import compile_network
from sentei.host.datasets import catalogue
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.host.network.ir import kept_density
from sentei.host.train.loop import Moment
from sentei.host.train.pipeline import Plan
from sentei.overlay.errors import InputError
from sentei.overlay.geometry import PRESETS

ROOT = Path(__file__).resolve().parents[2]
SEED = 20210823
TRAIN, TEST = 60, 20
SHORT = ("--epochs", 1, "--float-epochs", 1, "--float-cycles", 1, "--train-images", 40, "--geometry", "8x8")
UNTRAINED = ("--epochs", 0, "--float-epochs", 0, "--float-cycles", 1, "--train-images", 24, "--geometry", "8x8")
GROUP = PRESETS["8x8"].group_columns

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    print(f"seed {SEED}")


def sentei(*arguments) -> tuple[int, str, str]:
    """The command in this process, called in the repository's root: (exit code, what it printed, what as an error)."""
    code = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", ["sentei", *map(str, arguments)])
        patch.chdir(ROOT)
        with redirect_stderr(io.StringIO()) as said:
            try:
                cli.main()
            except SystemExit as info:
                code = info.code or 0
    return code, out.getvalue(), said.getvalue()


def refused(*arguments, text: str) -> None:
    """The command exits with 2 and says so in one line that holds `text`."""
    code, _, said = sentei(*arguments)
    assert code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n"), said
    assert re.search(text, said), said


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder with the files of CIFAR-10, of 60 and 20 pictures."""
    folder = tmp_path_factory.mktemp("cifar")
    write_cifar10(folder, TRAIN // 5, TEST, SEED)
    return folder


@pytest.fixture(scope="module")
def trained(cifar, tmp_path_factory, overlay_path):
    """A model from `sentei train`, with its card: its folder, and what was printed."""
    overlay_path("8x8")
    folder = tmp_path_factory.mktemp("trained")
    code, text, said = sentei(
        "train",
        "resnet8",
        "-o",
        folder / "out" / "tiny.onnx",
        "--keep",
        "1/9",
        "--folder",
        cifar,
        "--work",
        folder / "work",
        *SHORT,
    )
    assert (code, said) == (0, ""), said
    return folder, text


@pytest.fixture(scope="module")
def curve(cifar, trained, tmp_path_factory):
    """Two models from `sentei curve`, from the float network of `trained`: their folder, and what was printed."""
    folder = tmp_path_factory.mktemp("curve")
    code, text, said = sentei(
        "curve",
        "resnet8",
        "-o",
        folder / "models",
        "--report",
        folder / "report" / "curve.png",
        "--keep",
        "1/3,1/9",
        "--name",
        "tiny",
        "--float",
        trained[0] / "work" / "resnet8-cifar10" / "float.pt",
        "--folder",
        cifar,
        "--work",
        folder / "work",
        *SHORT,
    )
    assert (code, said) == (0, ""), said
    return folder, text


@pytest.fixture
def no_cycles(monkeypatch):
    """The simulator is not asked."""
    monkeypatch.setattr(training_run.TrainingRun, "_cycles", lambda run, path: 12345)


def labels_of(model: Path, cifar: Path) -> np.ndarray:
    return reference.predict(load(model), catalogue.load_split("cifar10", "test", cifar).images).argmax(1)


def share_right(model: Path, cifar: Path) -> float:
    return float((labels_of(model, cifar) == catalogue.load_split("cifar10", "test", cifar).labels).mean())


# Training


def test_train_writes_a_model_and_its_card(cifar, trained):
    folder, text = trained
    model = folder / "out" / "tiny.onnx"
    card = json.loads(model.with_suffix(".json").read_text())
    program = compile_network(load(model), PRESETS["8x8"])
    assert card["file"] == "tiny.onnx" and card["data"] == "cifar10" and card["train_images"] == 40
    assert tuple(card["classes"]) == catalogue.KINDS["cifar10"].classes and card["keep"] == "1/9"
    assert card["accuracy"] == share_right(model, cifar)
    assert card["accuracy_by"] == f"integer reference, {TEST} test images"
    assert card["first_labels"] == labels_of(model, cifar).tolist()
    assert 0 <= card["float_accuracy"] <= 1 and card["float_accuracy"] * TEST == int(card["float_accuracy"] * TEST)
    assert card["density"] == pytest.approx(kept_density(load(model), GROUP), abs=1e-12)
    assert abs(card["density"] - 1 / 9) < 0.002 and len(card["layers"]) == 8
    assert all(density < 0.2 for density in card["layers"].values())
    assert sum(layer.bound_cycles for layer in program.layers) <= card["cycles"] < 2e5
    assert card["cycles_on"] == "8x8, simulated control, memory zynq-hp"
    plan = Plan(float_epochs=1, float_cycles=1, epochs=(1,), group=GROUP)
    assert card["plan"] == json.loads(json.dumps(plan.settings()))
    assert card["packages"]["torch"] == version("torch") and "brevitas" in card["packages"]
    assert card["python"].count(".") == 2 and card["seconds"] >= 0
    repeated = shlex.split(card["command"])
    assert repeated[:3] == ["sentei", "train", "resnet8"] and repeated[-2:] == ["--geometry", "8x8"]
    assert (
        f"{model}: {card['accuracy']:.2%}, {card['float_accuracy']:.2%} in float; {card['density']:.3f} of the "
        f"kernel elements, {card['cycles']} cycles\n"
    ) in text
    assert sorted(path.name for path in model.parent.iterdir()) == ["tiny.json", "tiny.onnx"]
    assert f"figures: {model.with_suffix('.json')}\n" in text
    work = folder / "work" / "resnet8-cifar10"
    assert sorted(path.name for path in work.iterdir()) == ["float.pt", "keep-1-9.pt"]


def test_train_resumes_and_repeats_nothing_that_is_done(cifar, trained, tmp_path, no_cycles):
    folder, _ = trained
    before = {path: path.read_bytes() for path in (folder / "work").rglob("*.pt")}
    options = ("--keep", "1/9", "--folder", cifar, "--work", folder / "work", "--resume", *SHORT)
    assert sentei("train", "resnet8", "-o", tmp_path / "again.onnx", *options)[::2] == (0, "")
    cards = [json.loads(path.read_text()) for path in (folder / "out" / "tiny.json", tmp_path / "again.json")]
    differing = {key for key in cards[0] if cards[0][key] != cards[1][key]}
    assert differing == {"file", "command", "cycles"}
    assert before == {path: path.read_bytes() for path in (folder / "work").rglob("*.pt")}
    images = catalogue.load_split("cifar10", "test", cifar).images
    np.testing.assert_array_equal(
        *(reference.predict(load(path), images) for path in (folder / "out" / "tiny.onnx", tmp_path / "again.onnx"))
    )
    other = ("--epochs", 2, "--float-epochs", 1, "--float-cycles", 1, "--train-images", 40, "--geometry", "8x8")
    refused(
        "train",
        "resnet8",
        "-o",
        tmp_path / "other.onnx",
        *options[: -len(SHORT)],
        *other,
        text=r"keep-1-9\.pt is of another run: epochs is 1 there and 2 here.*\. Repeat that run's options, name an",
    )
    refused(
        "train",
        "resnet8",
        "-o",
        tmp_path / "other.onnx",
        *options[: -len(SHORT) - 1],
        *SHORT,
        text=r"float\.pt is there already, from an earlier run: continue it \(--resume\), name another folder",
    )
    assert before == {path: path.read_bytes() for path in (folder / "work").rglob("*.pt")}


def test_restart_begins_anew(cifar, trained, tmp_path, no_cycles):
    shutil.copytree(trained[0] / "work", tmp_path / "work")
    options = ("--keep", "1", "--folder", cifar, "--work", tmp_path / "work", *SHORT)
    model = tmp_path / "model.onnx"
    refused("train", "resnet8", "-o", model, *options, "--restart", "--resume", text="exclude each other")
    code, text, said = sentei("train", "resnet8", "-o", model, *options, "--restart")
    assert (code, said) == (0, "")
    assert sorted(path.name for path in (tmp_path / "work").rglob("*.pt")) == ["float.pt", "keep-1.pt"]
    assert re.search(r"^float, epoch 1/1: loss \d\.\d+, accuracy \d+\.\d+%, density 1\.000$", text, re.M)
    assert "keep 1, epoch 1/1: " in text, "off a terminal each epoch is a line"


def test_train_goes_on_from_a_model(cifar, trained, tmp_path, no_cycles):
    folder, _ = trained
    start, float_weights = folder / "out" / "tiny.onnx", folder / "work" / "resnet8-cifar10" / "float.pt"
    options = ("--keep", "1/9", "--folder", cifar, "--work", tmp_path / "work", "--weights", float_weights, *SHORT)
    assert sentei("train", "resnet8", "-o", tmp_path / "on.onnx", "--start", start, *options)[::2] == (0, "")
    before, card = (json.loads(path.with_suffix(".json").read_text()) for path in (start, tmp_path / "on.onnx"))
    assert card["start"] == {
        "file": "tiny.onnx",
        "sha256": hashlib.sha256(start.read_bytes()).hexdigest(),
        **{name: before[name] for name in ("command", "seconds", "machine")},
    }
    assert card["layers"] == before["layers"] and "cores" in card["machine"]
    missing = tmp_path / "none.onnx"
    refused("train", "resnet8", "-o", tmp_path / "no.onnx", "--start", missing, *options, text="is no ONNX file")


def test_train_options_reach_the_plan(cifar, tmp_path, no_cycles):
    code, text, said = sentei(
        "train",
        "resnet8",
        "-o",
        tmp_path / "model.onnx",
        "--keep",
        "1/4",
        "--layer",
        "*shortcut*=1/2",
        "--layer",
        "blocks.2.conv*=x3/2",
        "--group",
        16,
        "--unstructured",
        "--holdout",
        4,
        "--seed",
        7,
        "--weight-bits",
        3,
        "--activation-bits",
        2,
        "--first",
        7,
        "--last",
        6,
        "--folder",
        cifar,
        "--learning-rate",
        0.01,
        "--float-learning-rate",
        0.3,
        "--work",
        tmp_path / "work",
        *UNTRAINED,
    )
    assert (code, said) == (0, "")
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["train_images"] == 20 and 0 <= card["holdout_accuracy"] <= 1
    assert f"{card['accuracy']:.2%} ({card['holdout_accuracy']:.2%} of those held out), " in text
    expected = {
        "group": 16,
        "aligned": False,
        "holdout": 4,
        "seed": 7,
        "floors": {"*shortcut*": "1/2"},
        "factors": {"blocks.2.conv*": "3/2"},
        "epochs": [0],
        "learning_rate": 0.01,
        "float_learning_rate": 0.3,
    }
    assert {name: card["plan"][name] for name in expected} == expected
    assert card["plan"]["precision"] == {"weights": 3, "activations": 2, "first": 7, "last": 6, "image": 8}
    shortcuts = {name: value for name, value in card["layers"].items() if "shortcut" in name}
    assert set(shortcuts.values()) == {0.5} and len(shortcuts) == 2 and max(card["layers"].values()) == 0.5
    network = load(tmp_path / "model.onnx")
    assert kept_density(network, 1) < 0.26 < 0.5 < kept_density(network, GROUP), "single weights must be pruned"
    assert 1 < max(np.abs(op.weights).max() for op in network.ops[1:-1] if hasattr(op, "weights")) <= 3


# The user's own pictures and network

OWN_NETWORK = """
import layers
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(*layers.block(3, 8), *layers.block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.last(self.layers(x))


def small():
    return Net(2)


def grey(in_channels, classes):
    return nn.Conv2d(1, classes, 3)
"""
OWN_LAYERS = """
from torch import nn


def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a user's network, and with pictures of three classes, more of one than of another, of all sizes."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(OWN_NETWORK)
    (folder / "layers.py").write_text(OWN_LAYERS)
    rng = np.random.default_rng(SEED)
    for channel, (name, count) in enumerate({"grass": 30, "sea": 20, "tomato": 15}.items()):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(count):
            picture = rng.integers(0, 128, (*rng.integers(9, 40, 2), 3), dtype=np.uint8)
            picture[..., (1, 2, 0)[channel]] += 100
            Image.fromarray(picture).save(folder / "pictures" / name / f"{number:02}.png")
    return folder


def test_own_pictures_and_own_network_become_a_label(own, tmp_path, overlay_path):
    """From a folder of pictures to the names of classes by `sentei run`, without a line of Python."""
    overlay_path("8x8")
    model = tmp_path / "net.onnx"
    network = ("--network", f"{own / 'net.py'}:Net")
    short = ("--epochs", 4, "--float-epochs", 12, "--float-cycles", 1, "--geometry", "8x8", "--work", tmp_path / "work")
    data = ("--data", own / "pictures", "--size", "12x16")
    code, text, said = sentei("train", *network, *data, *short, "-o", model)
    assert (code, said) == (0, ""), said
    card = json.loads(model.with_suffix(".json").read_text())
    assert card["classes"] == ["grass", "sea", "tomato"] and card["data"] == "pictures" and card["train_images"] == 52
    assert card["accuracy"] > 0.9 and card["plan"]["max_shift"] == 1 and card["plan"]["mirror"]
    assert load(model).tensors[load(model).input].shape == (3, 12, 16)
    pictures = [own / "pictures" / name / f"{number:02}.png" for name in card["classes"] for number in (0, 5)]
    figures = tmp_path / "run.json"
    code, text, said = sentei("run", model, *pictures, "--geometry", "8x8", "--json", figures)
    assert (code, said) == (0, ""), said
    labels = [result["label"] for result in json.loads(figures.read_text())["pictures"]]
    split = catalogue.load_split(str(own / "pictures"), "test", shape=(3, 12, 16))
    predicted = reference.predict(load(model), split.images).argmax(1)
    assert labels == [card["classes"][predicted[number]] for number in (0, 1, 6, 7, 10, 11)]
    assert sum(label == path.parent.name for label, path in zip(labels, pictures, strict=True)) >= 5
    code, text, said = sentei("accuracy", model, "--data", own / "pictures", "--compare", 13, "--json", figures)
    assert (code, said) == (0, "") and "13 test images" in text
    assert json.loads(figures.read_text())["models"]["net"]["accuracy"] == card["accuracy"]
    shutil.copy(tmp_path / "work" / "Net-pictures" / "float.pt", tmp_path / "mine.pt")
    again = ("--weights", tmp_path / "mine.pt", "--restart", "--no-mirror")
    code, text, said = sentei("train", *network, *data, *short, *again, "-o", tmp_path / "again.onnx")
    assert (code, said) == (0, "") and "float" not in text.partition("again.onnx")[0], "the float network is there"
    assert not json.loads((tmp_path / "again.json").read_text())["plan"]["mirror"]
    assert [path.name for path in (tmp_path / "work" / "Net-pictures").iterdir()] == ["keep-1.pt"]


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ("net.py:None", r"net\.py:None makes no network .*: AttributeError: .* has no attribute 'None'"),
        ("net.py:small", "must make 3 numbers of an image, one for each class, not \\(2,\\); a parameter `classes`"),
        ("net.py:grey", "makes no network for images .*: RuntimeError: "),
        ("missing.py:Net", "--network must be FILE.py:NAME, a file and a class or function in it, not "),
        ("net.py", "--network must be FILE.py:NAME"),
    ],
)
def test_own_networks_that_cannot_be_are_refused(own, tmp_path, network, text):
    options = ("--data", own / "pictures", "-o", tmp_path / "model.onnx", "--work", tmp_path)
    refused("train", "--network", own / network, *options, text=text)


def test_one_network_must_be_named(own, tmp_path):
    for network in ((), ("resnet8", "--network", own / "net.py:Net")):
        refused("train", *network, "-o", tmp_path / "model.onnx", text="name one network: one of the project's, or")


# The curve


def test_curve_writes_models_cards_and_a_picture(cifar, trained, curve):
    folder, text = curve
    figures = json.loads((folder / "report" / "curve.json").read_text())
    cards = [json.loads((folder / "models" / f"tiny-{name}.json").read_text()) for name in ("third", "ninth")]
    assert figures["points"] == [
        {key: card[key] for key in ("file", "keep", "density", "accuracy", "cycles")} for card in cards
    ]
    assert [point["file"] for point in figures["points"]] == ["tiny-third.onnx", "tiny-ninth.onnx"]
    assert [point["keep"] for point in figures["points"]] == ["1/3", "1/9"]
    assert figures["network"] == "resnet8" and figures["data"] == "cifar10" and figures["geometry"] == "8x8"
    assert figures["float_accuracy"] == json.loads((trained[0] / "out" / "tiny.json").read_text())["float_accuracy"]
    for point in figures["points"]:
        model = folder / "models" / point["file"]
        assert point["accuracy"] == share_right(model, cifar)
        assert point["density"] == pytest.approx(kept_density(load(model), GROUP), abs=1e-12)
        assert abs(point["density"] - Fraction(point["keep"])) < 0.002
        bound = sum(layer.bound_cycles for layer in compile_network(load(model), PRESETS["8x8"]).layers)
        assert bound <= point["cycles"] < 2 * bound
    with Image.open(folder / "report" / "curve.png") as picture:
        assert picture.format == "PNG" and min(picture.size) >= 400
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    assert f"picture: {folder / 'report' / 'curve.png'}\n" in text
    assert sorted(path.name for path in (folder / "work" / "resnet8-cifar10").iterdir()) == [
        "keep-1-3.pt",
        "keep-1-9.pt",
    ], "a float network that is given must not be trained"


def test_curve_names_models_by_their_density(cifar, tmp_path, monkeypatch):
    """Nothing is trained: what a run would yield and write is made up."""

    def card(run, point, path):
        density = float(point.keep)
        return {
            "file": path.name,
            "keep": str(point.keep),
            "density": density,
            "accuracy": 0.5 + density / 4,
            "cycles": round(1000 * density),
            "float_accuracy": 0.9,
        }

    monkeypatch.setattr(
        training_run.TrainingRun, "points", lambda run, keeps: [SimpleNamespace(keep=keep) for keep in keeps]
    )
    monkeypatch.setattr(training_run.TrainingRun, "write", card)
    for keep, names in (
        ((), ("dense", "half", "third", "quarter", "sixth", "ninth", "twelfth")),
        (("--keep", "0.5,1/7"), ("half", "keep-1-7")),
    ):
        report = ("--report", tmp_path / "c.png")
        code, _, said = sentei("curve", "resnet8", "-o", tmp_path, *report, *keep, "--folder", cifar)
        assert (code, said) == (0, "")
        files = [point["file"] for point in json.loads((tmp_path / "c.json").read_text())["points"]]
        assert files == [f"resnet8-cifar10-{name}.onnx" for name in names]
        assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


# Accuracy


def test_accuracy_is_that_of_the_reference(cifar, curve, tmp_path):
    models = [curve[0] / "models" / f"tiny-{name}.onnx" for name in ("third", "ninth")]
    code, text, said = sentei(
        "accuracy",
        *models,
        "--folder",
        cifar,
        "--geometry",
        "8x8",
        "--compare",
        TEST,
        "--json",
        tmp_path / "accuracy.json",
    )
    assert (code, said) == (0, "")
    figures = json.loads((tmp_path / "accuracy.json").read_text())
    assert figures["data"] == "cifar10" and list(figures["models"]) == ["tiny-third", "tiny-ninth"]
    for model in models:
        values, card = figures["models"][model.stem], json.loads(model.with_suffix(".json").read_text())
        assert values["accuracy"] == share_right(model, cifar) == card["accuracy"]
        assert values["density"] == kept_density(load(model), GROUP)
        assert values["images"] == TEST and values["float_accuracy"] == card["float_accuracy"]
        assert values["labels_equal"] == {"qonnx": True, "pytorch": True} and values["labels_compared"] == TEST
        assert re.search(
            rf"{model.stem} .*{values['accuracy']:.2%} .*{values['density']:.2%} .*"
            rf"{values['float_accuracy']:.2%}",
            text,
        )


def test_accuracy_compares_every_layer_with_the_hardware(cifar, curve, tmp_path):
    model = curve[0] / "models" / "tiny-ninth.onnx"
    code, _, said = sentei(
        "accuracy", model, "--folder", cifar, "--geometry", "8x8", "--simulate", 1, "--json", tmp_path / "accuracy.json"
    )
    assert (code, said) == (0, "")
    values = json.loads((tmp_path / "accuracy.json").read_text())["models"]["tiny-ninth"]
    assert values["images_simulated"] == 1 and values["every_layer_equal"] is True


def test_accuracy_ends_with_one_where_labels_differ(cifar, curve, tmp_path):
    """The card of one of two models says that PyTorch gave another label."""
    for name in ("third", "ninth"):
        for suffix in (".onnx", ".json"):
            (tmp_path / f"{name}{suffix}").write_bytes((curve[0] / "models" / f"tiny-{name}{suffix}").read_bytes())
    card = json.loads((tmp_path / "ninth.json").read_text())
    card["first_labels"][-1] = (card["first_labels"][-1] + 1) % 10
    (tmp_path / "ninth.json").write_text(json.dumps(card))
    arguments = ("accuracy", tmp_path / "third.onnx", tmp_path / "ninth.onnx", "--folder", cifar)
    code, text, said = sentei(*arguments, "--compare", TEST)
    assert (code, said) == (1, "") and "different: ninth\n" in text
    code, text, _ = sentei(*arguments, "--compare", TEST - 1)
    assert code == 0 and "different" not in text
    (tmp_path / "ninth.json").unlink()
    code, text, _ = sentei(*arguments, "--compare", TEST, "--json", tmp_path / "figures.json")
    assert code == 0, "PyTorch's labels are not known"
    figures = json.loads((tmp_path / "figures.json").read_text())["models"]
    labels = {name: model["labels_equal"] for name, model in figures.items()}
    assert labels == {"third": {"qonnx": True, "pytorch": True}, "ninth": {"qonnx": True, "pytorch": None}}


def test_accuracy_needs_no_card(cifar, trained, tmp_path):
    (tmp_path / "alone.onnx").write_bytes((trained[0] / "out" / "tiny.onnx").read_bytes())
    for card in (None, "no JSON", '["a list"]'):
        if card is not None:
            (tmp_path / "alone.json").write_text(card)
        arguments = ("--folder", cifar, "--json", tmp_path / "figures.json")
        code, _, said = sentei("accuracy", tmp_path / "alone.onnx", *arguments)
        assert (code, said) == (0, "")
        values = json.loads((tmp_path / "figures.json").read_text())["models"]["alone"]
        assert values["accuracy"] == share_right(tmp_path / "alone.onnx", cifar) and values["float_accuracy"] is None


# Mistakes


@pytest.mark.parametrize(
    "options, text",
    [
        (("--keep", "0"), r"density must be above 0\.\d+, .* and at most 1, not 0"),
        (("--keep", "3/2"), "and at most 1, not 3/2"),
        (("--keep", "1/1000"), "and at most 1, not 1/1000"),
        (("--keep", "few"), "a density must be a number such as 1/9 or 0.25, not 'few'"),
        (("--keep", "1/0"), "a density must be a number such as 1/9 or 0.25, not '1/0'"),
        (("--layer", "shortcut"), "--layer must be NAME=DENSITY or NAME=xFACTOR, not 'shortcut'"),
        (("--layer", "nowhere*=1/2"), r"layer 'nowhere\*': the name must match one of stem\.0, "),
        (("--layer", "*=2"), r"layer '\*': the density must lie between 0 and 1, not be 2"),
        (("--group", "5", "--layer", "blocks.0.*=1/2"), r"blocks\.0\.conv1\.0, .*do not divide into blocks of 5"),
        (("--weight-bits", "9"), "weights must be quantized to between 2 and 8 bits, not 9"),
        (("--activation-bits", "8"), "activations must be quantized to between 2 and 4 bits, not 8"),
        (("--data", "imagenet"), "the data set must be one of cifar10, .*, or a folder .*, not 'imagenet'"),
        (("--folder", "/nowhere"), r"/nowhere/data_batch_1\.bin does not exist: download .*; then name the folder"),
        (("--geometry", "9x9", "--group", "8"), "geometry must be one of 32x32, 16x16, 8x8, .*not '9x9'"),
        (("--memory", "fast"), "memory must be one of zynq-hp, ulx3s-sdram, .*not 'fast'"),
        (("--holdout", "24"), "24 of 24 training images cannot be held out"),
        (("--float", "/nowhere/float.pt"), r"/nowhere/float\.pt does not exist"),
        (("--float", ROOT / "README.md"), r"README\.md is no checkpoint of this program"),
        (("-o", "model.bin"), r"model\.bin: the file's name must end in \.onnx"),
    ],
)
def test_an_option_that_cannot_be_is_named(cifar, tmp_path, no_cycles, options, text):
    defaults = ("-o", tmp_path / "model.onnx", "--folder", cifar, "--work", tmp_path / "work", *UNTRAINED)
    refused("train", "resnet8", *defaults, *options, text=text)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--seed", -1),
        ("--train-images", 0),
        ("--group", 0),
        ("--holdout", -1),
        ("--float-epochs", "many"),
        ("--float-epochs", -3),
    ],
)
def test_numbers_out_of_range_are_usage_errors(tmp_path, options):
    code, _, said = sentei("train", "resnet8", "-o", tmp_path / "model.onnx", *options)
    assert code == 2 and "Usage: sentei train" in said and options[0] in said and "Traceback" not in said


def test_an_unknown_network_is_named_with_the_known_ones(tmp_path):
    text = "the network must be one of resnet20, resnet8, fashion, not 'vgg'; your own is --network FILE.py:NAME"
    refused("train", "vgg", "-o", tmp_path / "model.onnx", text=text)
    refused("curve", "vgg", "-o", tmp_path, "--report", tmp_path / "curve.png", text=text)


def test_curves_that_cannot_be_are_refused(cifar, tmp_path, no_cycles):
    defaults = ("curve", "resnet8", "-o", tmp_path, "--folder", cifar, "--work", tmp_path / "work", *UNTRAINED)
    report = ("--report", tmp_path / "curve.png")
    for keep in ("1/9,1/3", "1/3,1/3"):
        refused(*defaults, *report, "--keep", keep, text=f"the densities must fall, not be {keep.replace(',', ', ')}")
    refused(*defaults, *report, "--keep", "1/3,", text="a density must be a number such as 1/9 or 0.25, not ''")
    refused(*defaults, "--report", tmp_path / "curve.txt", text=r"curve\.txt: the file's name must end in \.png")
    assert not list(tmp_path.glob("*.onnx")) and not (tmp_path / "work").exists()


def test_weights_of_another_network_are_refused_in_one_line(cifar, tmp_path):
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "other.pt")
    refused(
        "train",
        "resnet8",
        "-o",
        tmp_path / "model.onnx",
        "--folder",
        cifar,
        "--float",
        tmp_path / "other.pt",
        *UNTRAINED,
        text=r"other\.pt does not hold the weights of this network: ",
    )


def test_what_cannot_be_written_is_named(cifar, tmp_path, no_cycles):
    (tmp_path / "file").write_text("")
    text = "cannot be written: (Not a directory|File exists); "
    refused(
        "train",
        "resnet8",
        "-o",
        tmp_path / "file" / "model.onnx",
        "--folder",
        cifar,
        "--work",
        tmp_path / "work",
        *UNTRAINED,
        text=rf"/file/model\.onnx: {text}write it elsewhere",
    )
    refused(
        "train",
        "resnet8",
        "-o",
        tmp_path / "model.onnx",
        "--folder",
        cifar,
        "--work",
        tmp_path / "file",
        "--train-images",
        8,
        "--epochs",
        1,
        "--float-epochs",
        1,
        "--float-cycles",
        1,
        "--geometry",
        "8x8",
        text=rf"/file/resnet8-cifar10/float\.pt {text}what it held before is intact",
    )


def test_accuracy_names_what_it_cannot_use(cifar, tmp_path, trained):
    model = trained[0] / "out" / "tiny.onnx"
    refused("accuracy", tmp_path / "none.onnx", "--folder", cifar, text=r"none\.onnx: .*no such file")
    refused("accuracy", model, "--folder", tmp_path, text=r"test_batch\.bin does not exist: download .* SENTEI_CIFAR10")
    refused("accuracy", model, "--folder", cifar, "--geometry", "9x9", text="geometry must be one of 32x32")
    refused("accuracy", model, model, "--folder", cifar, text="the models must have different names")
    refused("accuracy", model, "--data", "cifar", text="must be one of cifar10, .*, or a folder .*, not 'cifar'")
    onnx.save(small_model(), tmp_path / "small.onnx")
    refused("accuracy", tmp_path / "small.onnx", "--folder", cifar, text=r"images must have shape \(N, 1, 10, 12\)")
    (tmp_path / "file").write_text("")
    refused(
        "accuracy",
        model,
        "--folder",
        cifar,
        "--json",
        tmp_path / "file" / "x.json",
        text=r"x\.json: cannot be written: (Not a directory|File exists); write it elsewhere",
    )


def without_torch(*arguments) -> subprocess.CompletedProcess:
    """The command in a process in which PyTorch is not installed."""
    program = "import sys; sys.modules['torch'] = None; from sentei.host.commands.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_without_pytorch_training_says_what_to_install(cifar, tmp_path):
    result = without_torch("train", "resnet8", "-o", tmp_path / "model.onnx", "--folder", cifar)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch("error: training needs PyTorch .*make setup-train.*\n", result.stderr), result.stderr


def test_without_pytorch_accuracy_is_measured(cifar, trained, tmp_path):
    model = trained[0] / "out" / "tiny.onnx"
    result = without_torch("accuracy", model, "--folder", cifar, "--json", tmp_path / "figures.json")
    assert (result.returncode, result.stderr) == (0, "")
    values = json.loads((tmp_path / "figures.json").read_text())["models"]["tiny"]
    assert values["accuracy"] == share_right(model, cifar)


# Parts


def test_densities_are_read_as_people_write_them():
    known = {"1": Fraction(1), "1/9": Fraction(1, 9), "0.25": Fraction(1, 4), "1/4.5": Fraction(2, 9)}
    assert {text: training_options.density_of(text) for text in known} == known
    for text in ("", "x", "1/0", "1//2", "nan", "inf", "-"):
        with pytest.raises(InputError, match=r"a density must be a number such as 1/9 or 0\.25"):
            training_options.density_of(text)


def test_epochs_are_one_number_or_several():
    assert training_options.epochs_of("20") == (20,) and training_options.epochs_of("20,8, 0") == (20, 8, 0)
    assert training_options.epochs_of("16, 24+16 ,6") == (16, (24, 16), 6)
    for text in ("", "-1", "many", "20,", "2.5", "20;8", "20+", "+8", "20,8+-4"):
        with pytest.raises(InputError, match=r"epochs must be a number such as 20, or several such as 20,8 or 20,8\+4"):
            training_options.epochs_of(text)


def test_the_bar_of_a_training_counts_all_epochs(monkeypatch):
    """On a terminal: before the first step, during the float stage, at a density."""
    written = io.StringIO()
    monkeypatch.setattr(training_run, "console", Console(file=written, force_terminal=True, width=160))
    with training_run._training_bar(5) as watch:
        watch(Moment("earlier", 1, 1, 0, 10, math.nan, 0.5))
        watch(Moment("float", 1, 2, 5, 10, 0.25, None))
        watch(Moment("keep 1/9", 0, 2, 10, 10, 0.125, 0.5, 0.75))
        watch(Moment("keep 1/9", 1, 2, 10, 10, 0.0625, 0.875, 0.1111))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())
    assert re.search(r"keep 1/9 +epoch 2/2 +loss 0\.062 +accuracy 87\.50% +density 0\.111", text), text
    assert "0:00:00" in text.splitlines()[-1]
