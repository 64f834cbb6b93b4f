"""`sentei` from the command line: what it prints, writes and exits with; errors are one line that names the cause.

Most tests call the entry point in this process; some start it as a user does.
"""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("sentei.driver.quiet_pynq")

from helpers.random_networks import ModelWriter
from helpers.small_model import CLASSES, HEIGHT, WIDTH, small_model, small_pictures
from PIL import Image

from sentei.driver import SenteiOverlay
from sentei.host.apps import measure
from sentei.host.commands import cli, console
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.host.network.ir import Network
from sentei.overlay.geometry import PRESETS
from sentei.overlay.program import Program
from sentei.overlay.registers import PROFILE_CAUSES

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "compile",
    "run",
    "verify",
    "bench",
    "info",
    "quantize",
    "doctor",
    "build",
    "pack",
    "upload",
    "serve",
    "demo",
    "train",
    "curve",
    "accuracy",
)
NAMES = ("shirt", "shoe", "bag", "coat", "[hat]")
GEOMETRY = ("--geometry", "8x8")


@pytest.fixture(scope="module")
def simulator(overlay_path):
    """The 8x8 simulator that the commands find; its directory."""
    return overlay_path("8x8").parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model, its card, a program for 8x8, and pictures; commands run in the repository's root."""
    monkeypatch.chdir(ROOT)
    onnx.save(small_model(), tmp_path / "small.onnx")
    (tmp_path / "small.json").write_text(json.dumps({"classes": NAMES}))
    pictures = small_pictures(3)
    np.save(tmp_path / "batch.npy", pictures)
    np.save(tmp_path / "single.npy", pictures[1].astype(np.uint8))
    Image.fromarray(pictures[2, 0].astype(np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(pictures[2, 0].astype(np.uint8)).convert("RGB").save(tmp_path / "color.png")
    return tmp_path


@pytest.fixture
def sentei(monkeypatch, capsys):
    """sentei(*arguments): (exit code, what was printed, what was printed as an error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sentei", *map(str, arguments)])
        with pytest.raises(SystemExit) as info:
            cli.main()
            sys.exit(0)
        printed = capsys.readouterr()
        return info.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def refused(sentei):
    """refused(*arguments, text=...): the command exits with 2 and says so in one line that holds `text`."""

    def call(*arguments, text):
        code, _, said = sentei(*arguments)
        assert code == 2, said
        assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n"), said
        assert re.search(text, said), said

    return call


def processed(*arguments, cwd=ROOT):
    """As a user calls it, in a process of its own."""
    command = [sys.executable, "-m", "sentei.host.commands.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


# Help


def test_without_a_command_the_commands_are_listed():
    result = processed()
    assert all(re.search(rf"^\s*{name} +\S", result.stdout + result.stderr, re.M) for name in COMMANDS)
    assert "Traceback" not in result.stdout + result.stderr


def test_every_command_and_every_option_is_explained(sentei):
    _, text, _ = sentei("--help")
    listed = re.findall(r"^  ([a-z]+)  +(\S.*)$", text, re.M)
    assert [name for name, _ in listed] == list(COMMANDS)
    for name in COMMANDS:
        code, text, _ = sentei(name, "--help")
        assert code == 0 and f"Usage: sentei {name}" in text
        options = re.findall(r"^  (?:-\w, )?(--[a-z-]+)(?: [A-Z][A-Z_]*)?(?: RANGE)?(.*(?:\n {10,}.*)*)", text, re.M)
        assert "--help" in dict(options)
        for option, explanation in options:
            assert re.search(r"[a-z]{3}", re.sub(r"\[[^]]*\]", "", explanation)), f"{name} {option}: {explanation!r}"


def test_an_unknown_command_or_option_is_a_usage_error(sentei):
    for arguments in (("frobnicate",), ("info",), ("info", "--frobnicate", "x"), ("verify", "x", "--images", "many")):
        code, _, said = sentei(*arguments)
        assert code == 2 and "Usage: sentei" in said, said


# Compiling and describing


def test_compile_writes_a_program_with_the_names_of_the_classes(sentei, folder):
    code, text, said = sentei("compile", folder / "small.onnx", *GEOMETRY, "--json", folder / "out" / "figures.json")
    assert (code, said) == (0, "")
    program = Program.load(folder / "small.sentei")
    assert program.classes == NAMES and program.geometry == PRESETS["8x8"]
    assert f"program: {folder / 'small.sentei'} ({(folder / 'small.sentei').stat().st_size} bytes)\n" in text
    figures = json.loads((folder / "out" / "figures.json").read_text())
    assert figures["fingerprint"] == f"{program.fingerprint:#010x}" and figures["data_bytes"] == len(program.data)
    assert [layer["name"] for layer in figures["layers"]] == [layer.name for layer in program.layers]
    assert 0 < figures["macs"] <= figures["dense_macs"]
    assert figures["bound_cycles"] == pytest.approx(figures["macs"] / 64)
    assert all(layer.name in text and layer.kind in text for layer in program.layers)


def test_compile_writes_where_it_is_told(sentei, folder):
    output = folder / "elsewhere.sentei"
    assert sentei("compile", folder / "small.onnx", "-o", output)[0] == 0
    assert Program.load(output).geometry == PRESETS["32x32"]


def test_info_says_the_same_of_a_model_and_of_its_program(sentei, folder):
    sentei("compile", folder / "small.onnx", *GEOMETRY)
    figures = {}
    for name in ("small.onnx", "small.sentei"):
        code, text, _ = sentei("info", folder / name, *GEOMETRY, "--json", folder / "info.json")
        assert code == 0
        figures[name] = json.loads((folder / "info.json").read_text())
        identity, size = figures[name]["fingerprint"], figures[name]["data_bytes"]
        assert f"fingerprint {identity}, {size} bytes of instructions and weights\n" in text
    assert figures["small.onnx"] == figures["small.sentei"]


def test_info_knows_a_program_by_its_content(sentei, folder):
    sentei("compile", folder / "small.onnx", *GEOMETRY, "-o", folder / "program.bin")
    code, text, _ = sentei("info", folder / "program.bin")
    assert code == 0 and "for 8x8, 2 groups" in text


def test_info_describes_an_overlay(sentei, simulator):
    for path in (simulator, simulator / "manifest.json"):
        code, text, _ = sentei("info", path)
        assert code == 0 and "overlay 8x8-zynq-hp: 8x8, 2 groups, fingerprint 0x" in text and "clock 100 MHz" in text


def test_build_finds_the_simulator(sentei, simulator, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, text, _ = sentei("build", "sim", *GEOMETRY)
    assert code == 0 and f"overlay: {simulator.relative_to(ROOT)}\n" in text


# Running


def expected_logits(folder, images):
    network = load(folder / "small.onnx")
    return reference.predict(network, images)


@pytest.mark.parametrize("model", ["small.onnx", "small.sentei"])
def test_run_reads_arrays_and_pictures(sentei, simulator, folder, model):
    sentei("compile", folder / "small.onnx", *GEOMETRY)
    files = ("batch.npy", "single.npy", "gray.png", "color.png")
    arguments = ("run", folder / model, *(folder / name for name in files), *GEOMETRY, "--json", folder / "run.json")
    code, text, said = sentei(*arguments)
    assert (code, said) == (0, "")
    images = small_pictures(3)[[0, 1, 2, 1, 2, 2]]
    logits = expected_logits(folder, images)
    shown_names = ("batch.npy[0]", "batch.npy[1]", "batch.npy[2]", "single.npy", "gray.png", "color.png")
    figures = json.loads((folder / "run.json").read_text())
    assert figures["cycles_per_image"] > 0 and f"{figures['cycles_per_image']} cycles a picture" in text
    assert len(figures["pictures"]) == len(images)
    for number, result in enumerate(figures["pictures"]):
        assert result["picture"] == number and result["outputs"] == [float(v) for v in logits[number]]
        assert result["index"] == int(logits[number].argmax()) and result["label"] == NAMES[result["index"]]
        assert 1 / CLASSES <= result["confidence"] <= 1
        assert result["file"] == shown_names[number]
        assert [best["index"] for best in result["best"]] == np.argsort(-logits[number], kind="stable")[:5].tolist()
        shown = rf"{re.escape(result['file'])} .*{re.escape(result['label'])} .*{result['confidence']:.1%}"
        assert re.search(shown, text)


def test_run_makes_pictures_fit_and_says_so(sentei, refused, simulator, folder):
    Image.new("RGB", (2 * WIDTH, HEIGHT)).save(folder / "wide.jpg")
    code, text, _ = sentei("run", folder / "small.onnx", folder / "wide.jpg", *GEOMETRY, "-o", folder / "out.npy")
    assert code == 0
    assert f"wide.jpg: {2 * WIDTH}x{HEIGHT} pixels, resized to {WIDTH}x{HEIGHT}; --fit says how" in text
    zeros = np.zeros((1, 1, HEIGHT, WIDTH), int)
    assert np.array_equal(np.load(folder / "out.npy").reshape(1, -1), expected_logits(folder, zeros))
    code, text, _ = sentei("run", folder / "small.onnx", folder / "wide.jpg", *GEOMETRY, "--fit", "crop")
    assert code == 0 and "resized" not in text
    text = "--fit must be resize, crop or pad, not 'squeeze'"
    refused("run", folder / "small.onnx", folder / "wide.jpg", *GEOMETRY, "--fit", "squeeze", text=text)


def test_run_takes_an_overlay_as_target(sentei, simulator, folder):
    arguments = (folder / "small.onnx", folder / "single.npy", "--target", simulator, "--json", folder / "run.json")
    assert sentei("run", *arguments)[0] == 0
    outputs = json.loads((folder / "run.json").read_text())["pictures"][0]["outputs"]
    assert outputs == [float(v) for v in expected_logits(folder, small_pictures(3)[1:2])[0]]


def test_run_without_a_card_names_classes_by_number(sentei, simulator, folder):
    for card in (None, "no JSON", '["a list"]'):
        (folder / "small.json").unlink(missing_ok=True)
        if card is not None:
            (folder / "small.json").write_text(card)
        arguments = (folder / "small.onnx", folder / "single.npy", *GEOMETRY, "--json", folder / "run.json")
        assert sentei("run", *arguments)[0] == 0
        result = json.loads((folder / "run.json").read_text())["pictures"][0]
        assert result["label"] == str(result["index"])


# Comparing and measuring


def test_verify_finds_target_and_reference_equal(sentei, simulator, folder):
    code, text, said = sentei(
        "verify", folder / "small.onnx", *GEOMETRY, "--images", 3, "--seed", 5, "--json", folder / "verify.json"
    )
    network = load(folder / "small.onnx")
    assert (code, said) == (0, "") and f"equal: all {len(network.ops)} layers of 3 pictures" in text
    figures = json.loads((folder / "verify.json").read_text())
    assert figures == {
        "model": network.name,
        "images": 3,
        "seed": 5,
        "layers": len(network.ops),
        "bit_exact": True,
        "difference": None,
        "meaning": "equal to the model's float32 execution for every input",
        "doubts": [],
    }


def with_another_weight(network: Network, layer: int) -> Network:
    """The network with one weight of channel 2 of a layer changed."""
    op = network.ops[layer]
    weights = op.weights.copy()
    weights[2, -1, 1, 1] += 5 if weights[2, -1, 1, 1] < 3 else -5
    changed = dataclasses.replace(op, weights=weights)
    return dataclasses.replace(network, ops=(*network.ops[:layer], changed, *network.ops[layer + 1 :]))


def test_verify_names_layer_channel_and_pixel_that_differ(sentei, simulator, folder, monkeypatch):
    """The target runs the model, the reference one with another weight."""
    network = load(folder / "small.onnx")
    changed = with_another_weight(network, 1)
    first_difference = measure.first_difference

    def compare(overlay, network, images, progress):
        return first_difference(overlay, changed, images, progress)

    monkeypatch.setattr(measure, "first_difference", compare)
    code, text, said = sentei("verify", folder / "small.onnx", *GEOMETRY, "--seed", 1, "--json", folder / "verify.json")
    assert (code, said) == (1, "")
    found = json.loads((folder / "verify.json").read_text())
    assert found["bit_exact"] is False
    difference = found["difference"]
    op = network.ops[1]
    image = np.random.default_rng(1).integers(0, 256, (4, 1, HEIGHT, WIDTH))[difference["image"]]
    ours, theirs = (reference.run(each, image[None])[op.output][0] for each in (network, changed))
    places = np.argwhere(ours != theirs)
    place = (difference["channel"], difference["row"], difference["column"])
    assert difference["layer"] == op.name and place == tuple(places[0]) and place[0] == 2
    assert (difference["target"], difference["reference"]) == (ours[place], theirs[place])
    assert difference["differing"] == len(places)
    line = (
        f"different: picture {difference['image']}, layer {op.name}: channel 2, row {place[1]}, column {place[2]} is "
        f"{ours[place]}, must be {theirs[place]} ({len(places)} elements of '{op.output}' differ)\n"
    )
    assert line in text and "equal" not in text


def test_the_first_layer_that_differs_is_found(overlay_path, folder):
    network = load(folder / "small.onnx")
    with SenteiOverlay(overlay_path("8x8")) as overlay:
        overlay.load(console.read_model(folder / "small.onnx")(PRESETS["8x8"]))
        seen = []
        images = small_pictures(2)
        assert measure.first_difference(overlay, network, images, lambda *now: seen.append(now)) is None
        assert seen == [(1, 2), (2, 2)]
        for layer in (0, 1):
            found = measure.first_difference(overlay, with_another_weight(network, layer), images)
            assert found is not None and found.layer == network.ops[layer].name and found.channel == 2


def test_bench_says_that_the_profile_has_no_room_for_a_network(sentei, simulator, folder, monkeypatch):
    monkeypatch.setattr(SenteiOverlay, "profile", lambda overlay: [])
    code, text, said = sentei("bench", folder / "small.onnx", *GEOMETRY, "--json", folder / "bench.json")
    assert (code, said) == (0, "")
    assert "no figures of the layers: the profile has room for 1024 of" in " ".join(text.split())
    figures = json.loads((folder / "bench.json").read_text())
    assert figures["layers"] == [] and figures["cycles"] > figures["bound_cycles"] > 0


@pytest.mark.parametrize("model", ["small.onnx", "small.sentei"])
def test_bench_measures_every_layer_and_draws_a_chart(sentei, simulator, folder, model):
    sentei("compile", folder / "small.onnx", *GEOMETRY)
    chart = folder / "charts" / "small.png"
    code, text, said = sentei(
        "bench", folder / model, *GEOMETRY, "--chart", chart, "--json", folder / "figures" / "bench.json"
    )
    assert (code, said) == (0, "")
    program = Program.load(folder / "small.sentei")
    figures = json.loads((folder / "figures" / "bench.json").read_text())
    assert [layer["name"] for layer in figures["layers"]] == [layer.name for layer in program.layers]
    for layer, known in zip(figures["layers"], program.layers, strict=True):
        assert layer["macs"] == known.macs and layer["bound_cycles"] == known.bound_cycles <= layer["cycles"]
        assert layer["utilisation"] == pytest.approx(known.bound_cycles / layer["cycles"])
        spent = sum(layer[name] for name in PROFILE_CAUSES)
        assert spent == program.geometry.groups * layer["cycles"]
        assert known.name in text
    assert figures["cycles"] == pytest.approx(sum(layer["cycles"] for layer in figures["layers"]), rel=0.05)
    assert figures["bound_cycles"] == pytest.approx(sum(layer.bound_cycles for layer in program.layers))
    assert figures["utilisation"] == pytest.approx(figures["bound_cycles"] / figures["cycles"])
    assert 0 < figures["utilisation"] < 1
    assert figures["fps_100mhz"] == pytest.approx(1e8 / figures["cycles"])
    assert figures["memory_model"]["name"] == "zynq-hp" and figures["geometry"] == program.geometry.to_dict()
    assert figures["simulated_khz"] > 0 and "utilisation" in text and str(figures["cycles"]) in text
    with Image.open(chart) as picture:
        assert picture.format == "PNG" and min(picture.size) >= 400
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    assert f"chart: {chart}\n" in text


def test_a_batch_shares_its_cycles(sentei, simulator, folder):
    figures = {}
    for batch in (1, 3):
        file = folder / "figures" / "batch.json"
        code, _, said = sentei("bench", folder / "small.onnx", *GEOMETRY, "--batch", batch, "--json", file)
        assert (code, said) == (0, "")
        figures[batch] = json.loads(file.read_text())
        assert figures[batch]["batch"] == batch
        assert figures[batch]["cycles"] == pytest.approx(sum(v["cycles"] for v in figures[batch]["layers"]), rel=0.05)
    assert figures[1]["bound_cycles"] == figures[3]["bound_cycles"] < figures[3]["cycles"] < figures[1]["cycles"]
    assert sentei("verify", folder / "small.onnx", *GEOMETRY, "--batch", 3, "--images", 4)[0] == 0


# Mistakes


def test_a_program_has_its_own_batch(sentei, refused, folder):
    sentei("compile", folder / "small.onnx", *GEOMETRY)
    refused("bench", folder / "small.sentei", *GEOMETRY, "--batch", 2, text=r"/small.sentei: is a program, whose batch")


@pytest.mark.parametrize("command", ["run", "verify"])
def test_results_are_not_to_be_had_from_a_prediction(refused, folder, command):
    more = (folder / "batch.npy",) if command == "run" else ()
    text = r"the target 'predict' counts cycles and computes nothing; use 'sim'"
    refused(command, folder / "small.onnx", *more, *GEOMETRY, "--target", "predict", text=text)


@pytest.mark.parametrize("command", ["compile", "run", "verify", "bench", "info"])
def test_a_missing_model_is_named(refused, folder, command):
    more = (folder / "batch.npy",) if command == "run" else ()
    refused(command, folder / "none.onnx", *more, *GEOMETRY, text=r"/none.onnx: .*no such file")
    if command in ("run", "bench", "info"):
        text = r"/none.sentei: cannot be read: No such file or directory"
        refused(command, folder / "none.sentei", *more, *GEOMETRY, text=text)


@pytest.mark.parametrize("command", ["compile", "run", "verify", "bench", "info"])
def test_a_file_that_is_not_onnx_is_named(refused, folder, command):
    (folder / "small.onnx").write_bytes(b"\x89PNG\r\n\x1a\n")
    more = (folder / "batch.npy",) if command == "run" else ()
    refused(command, folder / "small.onnx", *more, *GEOMETRY, text="/small.onnx: not a readable ONNX file")


@pytest.mark.parametrize("command", ["run", "bench", "info"])
def test_a_damaged_program_is_named(refused, sentei, folder, command):
    sentei("compile", folder / "small.onnx", *GEOMETRY)
    content = (folder / "small.sentei").read_bytes()
    (folder / "small.sentei").write_bytes(content[:-1])
    more = (folder / "batch.npy",) if command == "run" else ()
    refused(command, folder / "small.sentei", *more, *GEOMETRY, text=r"/small.sentei: has \d+ bytes, its header says")


def test_a_program_for_another_geometry_is_refused(refused, sentei, simulator, folder):
    sentei("compile", folder / "small.onnx", "--geometry", "16x16")
    text = "must have the same fingerprint.*compile the model for this overlay's geometry with `sentei compile`"
    refused("run", folder / "small.sentei", folder / "batch.npy", *GEOMETRY, text=text)


def test_a_network_that_does_not_fit_is_named(refused, folder):
    writer = ModelWriter()
    weights = writer.quant(writer.constant(np.ones((2, 1, 3, 3)) * 0.125), 0.125, 4, True)
    output = writer.quant(writer.node("Conv", writer.quant("input", 0.25, 4, False), weights), 0.25, 4, False)
    output = writer.node("GlobalAveragePool", output)  # behind it, patches of the picture are no use
    onnx.save(writer.model((1, 1, 500, 500), output, 4), folder / "big.onnx")
    refused("compile", folder / "big.onnx", *GEOMETRY, text=r"big: input: tensor 'input' needs \d+ activation words")
    assert not (folder / "big.sentei").exists()


@pytest.mark.parametrize("command", ["compile", "run", "verify", "bench", "info", "build"])
def test_an_unknown_geometry_is_named_with_the_known_ones(refused, folder, command):
    more = {"build": ("sim",), "run": (folder / "small.onnx", folder / "batch.npy")}
    arguments = more.get(command, (folder / "small.onnx",))
    refused(command, *arguments, "--geometry", "9x9", text="geometry must be one of 32x32, 16x16, 8x8, .*not '9x9'")


@pytest.mark.parametrize("command", ["verify", "bench", "build"])
def test_an_unknown_memory_is_named_with_the_known_ones(refused, folder, command):
    more = () if command == "build" else (folder / "small.onnx",)
    text = "memory must be one of zynq-hp, ulx3s-sdram, .*not 'fast'"
    refused(command, *more, *GEOMETRY, "--memory", "fast", text=text)


def test_an_unknown_board_is_named(refused):
    refused("build", "pynq-z9", text="board must be sim or one of ulx3s, .*not 'pynq-z9'")


def test_a_target_that_is_no_overlay_is_named(refused, folder):
    text = r"manifest.json: cannot be read: No such file or directory; build the overlay again with `sentei build`"
    refused("bench", folder / "small.onnx", "--target", folder, text=text)
    refused("info", folder, text=text)


@pytest.mark.parametrize(
    "name, text",
    [
        ("none.npy", "none.npy: there is no such file"),
        ("none.png", "none.png: there is no such file"),
        ("text.npy", "text.npy: is not a .npy file of numbers"),
        ("objects.npy", "objects.npy: is not a .npy file of numbers"),
        ("empty.npy", "empty.npy: is not a .npy file of numbers"),
        ("text.png", "text.png: is not a picture that can be read"),
        ("folder.png", "folder.png: is not a picture that can be read"),
        ("folder.npy", "folder.npy: is not a .npy file of numbers"),
        ("wide.npy", r"wide.npy: pictures must have shape \(N, 1, 10, 12\), N at least 1, not \(1, 1, 10, 13\)"),
        ("flat.npy", r"flat.npy: pictures must have shape .* not \(120,\)"),
        ("none-in-it.npy", r"none-in-it.npy: .* N at least 1, not \(0, 1, 10, 12\)"),
        ("float.npy", "float.npy: pictures must be integers .*, not float64; do not normalise"),
        ("large.npy", "large.npy: values must be 0 to 255, not 0 to 256"),
    ],
)
def test_a_picture_that_does_not_fit_is_named(refused, simulator, folder, name, text):
    (folder / "text.npy").write_text("no array")
    (folder / "text.png").write_text("no picture")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "folder.png").mkdir()
    (folder / "folder.npy").mkdir()
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "wide.npy", np.zeros((1, 1, HEIGHT, WIDTH + 1), int))
    np.save(folder / "flat.npy", np.zeros(HEIGHT * WIDTH, int))
    np.save(folder / "none-in-it.npy", small_pictures(0))
    np.save(folder / "float.npy", small_pictures(1) / 255)
    large = np.zeros((3, 1, HEIGHT, WIDTH), int)
    large[2, 0, 0, 0] = 256
    np.save(folder / "large.npy", large)
    refused("run", folder / "small.onnx", folder / "batch.npy", folder / name, *GEOMETRY, text=text)


def test_an_output_that_cannot_be_written_is_named(refused, simulator, folder):
    (folder / "file").write_text("")
    below = folder / "file" / "x"
    model = folder / "small.onnx"
    refused("compile", model, *GEOMETRY, "-o", below, text=r"/file/x: cannot be written: Not a directory; wr")
    refused("info", model, *GEOMETRY, "--json", below, text=r"/file/x: cannot be written: .*; write it elsewhere")
    refused("bench", model, *GEOMETRY, "--chart", below, text=r"/file/x: cannot be written: .*; write it elsewhere")
    refused("info", model, *GEOMETRY, "--json", folder, text=r"cannot be written: Is a directory; write it elsewhere")


def test_a_process_of_its_own_ends_with_one_line_and_two(folder):
    result = processed("info", folder / "[none].onnx")
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"error: .*/\[none\]\.onnx: .*no such file.*\n", result.stderr), result.stderr


def test_a_process_of_its_own_compiles_in_any_folder(folder):
    result = processed("compile", "small.onnx", *GEOMETRY, cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert Program.load(folder / "small.sentei").classes == NAMES


def test_the_console_script_is_the_entry_point():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'sentei = "sentei.host.commands.cli:main"' in text
