"""The firmware with no host driver: a terminal on the serial port and a memory image, nothing else."""

import re
import struct
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("litex")

from helpers.changed_stage import with_stage
from helpers.small_model import small_model, small_pictures
from helpers.terminal import Terminal

from sentei.driver import SenteiOverlay, Simulator
from sentei.host.apps import demo
from sentei.host.compiler.compile import compile_network
from sentei.host.datasets.catalogue import load_split
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.overlay.errors import InputError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.image import ALIGNMENT_BYTES, HEADER_BYTES, WORDS, memory_image, sealed

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = ("cat", "dog", "bird", "fish", "cow")
DEMO_PICTURES = 8
TESTED = "main memory: 32 MiB, 0 of 1024 tested words wrong\nselftest passed\n"


@pytest.fixture(scope="module")
def terminal(overlay_path):
    with closing(Simulator(overlay_path())) as simulator:
        yield Terminal(simulator)


@pytest.fixture(scope="module")
def classifier():
    """(network, program, pictures) whose labels differ."""
    network = load(small_model())
    return network, compile_network(network, PRESETS["8x8"]), small_pictures(5)


def place(terminal: Terminal, image: bytes) -> None:
    terminal.simulator.memory[: len(image)] = np.frombuffer(image, np.uint8)


def test_it_says_which_engine_it_is(terminal):
    manifest = terminal.simulator.manifest
    geometry = manifest.geometry
    expected = (
        f"Sentei {version('sentei')}, engine {manifest.fingerprint:08x}: {geometry.lanes} lanes x "
        f"{geometry.columns} columns, {geometry.groups} groups\n"
        f"main memory: {manifest.memory_bytes >> 20} MiB, not tested\n"
    )
    assert terminal.greeting == terminal.type("info") == expected
    assert terminal.type("") == ""


def test_a_selftest_needs_no_image(terminal):
    place(terminal, bytes(64))
    assert terminal.type("selftest") == TESTED
    assert terminal.type("run").startswith("there is no image")


def test_classes_without_a_name_get_their_number(terminal, classifier):
    network, program, pictures = classifier
    place(terminal, memory_image(program, pictures, NAMES[:1]))
    names = [*NAMES[:1], "1", "2", "3", "4"]
    labels = [names[label] for label in reference.predict(network, pictures).argmax(1)]
    assert re.findall(r"picture \d+: (\w+),", terminal.type("run")) == labels


def test_lines_can_be_corrected_and_what_is_unknown_is_explained(terminal):
    assert "Sentei" in terminal.type("inx\x7ffo")
    assert "classify the pictures" in terminal.type("x" * 200)
    assert "Sentei" in terminal.type("info")


def test_pictures_get_the_references_labels_in_the_drivers_cycles(terminal, classifier, overlay_path):
    network, program, pictures = classifier
    place(terminal, memory_image(program, pictures, NAMES))
    labels = reference.predict(network, pictures).argmax(1)
    with SenteiOverlay(overlay_path()) as overlay:
        overlay.load(program)
        cycles = [overlay.last_cycles for _ in overlay.stream(pictures)]
    expected = [
        f"picture {number}: {NAMES[label]}, {own} cycles\n"
        for number, (label, own) in enumerate(zip(labels, cycles, strict=True))
    ]
    assert terminal.type("run") == "".join(expected)
    assert terminal.type("selftest") == TESTED
    assert terminal.type("run") == "".join(expected), "a test of the memory leaves what it holds"


def test_the_demos_pictures_get_the_same_labels_in_the_same_cycles(overlay_path):
    pictures = load_split(demo.DATA, "test").images[:DEMO_PICTURES]
    path = overlay_path(demo.GEOMETRY, demo.MEMORY)
    program = compile_network(load(MODELS / "fmnist-ninth.onnx"), PRESETS[demo.GEOMETRY], demo.CLASSES)
    with SenteiOverlay(path) as overlay:
        overlay.load(program)
        expected = [
            (demo.CLASSES[values.logits.argmax()], str(overlay.last_cycles)) for values in overlay.stream(pictures)
        ]
    with closing(Simulator(path)) as simulator:
        terminal = Terminal(simulator)
        place(terminal, memory_image(program, pictures, demo.CLASSES))
        assert re.findall(r"picture \d+: (.*), (\d+) cycles\n", terminal.type("run")) == expected


def test_scales_and_offsets_decide_the_label(terminal, classifier):
    network, program, pictures = classifier
    scales = tuple(0.5 - 0.25 * number for number in range(5))
    program = type(program)(**{**vars(program), "output_scale": scales, "output_offset": (-1e6,) * 5})
    place(terminal, memory_image(program, pictures, ()))
    logits = program.dequantize(reference.run(network, pictures)[network.output])
    found = re.findall(r"picture \d+: (\d+),", terminal.type("run"))
    assert [int(label) for label in found] == logits.reshape(len(pictures), -1).argmax(1).tolist()


@pytest.mark.parametrize(
    "word, value, message",
    [
        ("magic", 0, "there is no image at 40000000; `sentei pack` makes one\n"),
        ("bytes", 4, "there is no image at 40000000; `sentei pack` makes one\n"),
        ("bytes", 1 << 30, "there is no image at 40000000; `sentei pack` makes one\n"),
        ("fingerprint", 0x12345678, "the image is for an engine 12345678\n"),
        ("crc", 1, "the image is damaged: its CRC differs\n"),
        ("memory_bytes", 1 << 30, "there is no image at 40000000; `sentei pack` makes one\n"),
        ("picture_table", 0x20000000, "the engine stopped with error 1 at instruction "),
    ],
)
def test_what_is_wrong_is_said_and_the_next_image_runs(terminal, classifier, word, value, message):
    _, program, pictures = classifier
    good = memory_image(program, pictures, NAMES)
    bad = bytearray(good)
    struct.pack_into("<I", bad, 4 * WORDS.index(word), value)
    place(terminal, bytes(bad) if word == "crc" else sealed(bytes(bad)))
    assert terminal.type("run").startswith(message)
    place(terminal, good)
    assert terminal.type("run").count("picture") == len(pictures)


def test_an_image_is_aligned_and_says_its_size(classifier):
    _, program, pictures = classifier
    image = memory_image(program, pictures, NAMES)
    header = dict(zip(WORDS, struct.unpack_from(f"<{len(WORDS)}I", image), strict=True))
    assert header["bytes"] == header["outputs"] == len(image)
    for name in ("program", "class_table", "names", "picture_table", "outputs"):
        assert header[name] % ALIGNMENT_BYTES == 0 and header[name] >= HEADER_BYTES


def test_only_classifiers_fit_into_an_image(classifier):
    _, program, pictures = classifier
    batched = with_stage(
        program, inputs=(replace(program.stages[0].inputs[0], layout=replace(program.input, pictures=2)),)
    )
    with pytest.raises(InputError, match="one picture a job"):
        memory_image(batched, pictures, NAMES)
