"""`sentei doctor --target`: what is wrong with a board is named, with what to do about it."""

import json
import re
import shutil
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("litex")

from sentei.driver import Simulator, serial_link
from sentei.driver.errors import DeviceNotResponding
from sentei.driver.serve import listen, serve
from sentei.host.apps import board_doctor
from sentei.host.apps.board_doctor import examine_board
from sentei.host.commands import cli
from sentei.overlay.errors import InputError
from sentei.overlay.manifest import Manifest
from sentei.overlay.serial_bridge import BAUD


def examine(target) -> list:
    return list(examine_board(str(target), lambda text: nullcontext()))


@pytest.fixture
def board(overlay_path, tmp_path):
    """Overlay of a board behind a serial port, which is a simulated SoC."""
    manifest = replace(Manifest.load(overlay_path()), target="bridge")
    for entry in manifest.files.values():
        shutil.copy(manifest.directory / entry["name"], tmp_path)
    replace(manifest, directory=tmp_path).save()
    return tmp_path


@pytest.fixture
def served(overlay_path):
    """The port of that SoC."""
    simulator, listener = Simulator(overlay_path()), listen()
    ended = threading.Event()

    def run():
        while not ended.is_set():
            serve(simulator, listener, 1)

    threading.Thread(target=run, daemon=True).start()
    yield f"tcp:localhost:{listener.getsockname()[1]}"
    ended.set()


def test_a_board_that_works_passes_every_step(board, served):
    checks = examine(f"{board}:{served}")
    assert [check.name for check in checks] == ["overlay", "port", "firmware", "engine", "main memory", "results"]
    assert not any(check.wrong for check in checks)
    assert "none wrong" in checks[-2].found and "all 3456 numbers right" in checks[-1].found


def test_the_command_prints_and_writes_what_it_finds(board, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(board_doctor, "serial_ports", list)
    monkeypatch.setattr(sys, "argv", ["sentei", "doctor", "--target", str(board), "--json", str(tmp_path / "d.json")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "port: no serial port is on USB here\n  connect the board's USB port" in capsys.readouterr().out
    figures = json.loads((tmp_path / "d.json").read_text())
    assert [check["name"] for check in figures["checks"]] == ["overlay", "port"]


def test_another_engine_is_named_with_both_fingerprints(board, served):
    manifest = Manifest.load(board)
    replace(manifest, geometry=replace(manifest.geometry, mask_entries=256)).save()
    last = examine(f"{board}:{served}")[-1]
    assert last.name == "engine" and f"device {manifest.fingerprint:#010x}" in last.wrong
    assert last.remedy == "load the bitstream that lies beside this manifest"


def test_wrong_memory_and_wrong_results_are_counted(board, served, monkeypatch):
    monkeypatch.setattr(board_doctor.reference, "run", lambda network, images: {"result": np.zeros((3, 8, 12, 12))})
    last = examine(f"{board}:{served}")[-1]
    assert last.name == "results" and last.wrong.endswith("of 3456 numbers differ from the reference")
    assert "--clock" in last.remedy

    write = serial_link.Link.write_block

    def spoilt(self, address, words):
        write(self, address, words & 0xFFFFFFFE if len(words) > 1000 else words)

    monkeypatch.setattr(serial_link.Link, "write_block", spoilt)
    last = examine(f"{board}:{served}")[-1]
    assert last.name == "main memory" and last.wrong.endswith("of 65536 bytes are wrong")


def test_an_overlay_that_is_not_whole_is_refused(board):
    (board / Manifest.load(board).files["hwh"]["name"]).unlink()
    (last,) = examine(f"{board}:/dev/none")
    assert last.name == "overlay" and "hwh" in last.wrong
    with pytest.raises(InputError, match="computes nothing"):
        examine("predict")


class FakeLink:
    """Ports, by what answers there."""

    answering: tuple = ()

    def __init__(self, port):
        self.port = port

    def read(self, address):
        if self.port not in self.answering:
            raise DeviceNotResponding(f"{self.port} gives no answer")

    def close(self):
        pass


@pytest.mark.parametrize(
    "named, answering, wrong, remedy",
    [
        ("/dev/none", (), "/dev/none does not exist", "this machine's are /dev/a, /dev/b"),
        ("tcp:x:1", (), "tcp:x:1 gives no answer", "load the bitstream, .*sentei.bit"),
        ("", (), "/dev/a gives no answer; /dev/b gives no answer", "Close terminals that use the port"),
        ("/dev/null", ("/dev/null@115200",), f"answers at 115200 baud, not at {BAUD}", "name it as /dev/null@115200"),
    ],
)
def test_a_port_without_an_answer_says_why(board, monkeypatch, named, answering, wrong, remedy):
    monkeypatch.setattr(serial_link, "Link", FakeLink)
    monkeypatch.setattr(FakeLink, "answering", answering)
    monkeypatch.setattr(board_doctor, "serial_ports", lambda: ["/dev/a", "/dev/b"])
    last = examine(f"{board}:{named}" if named else board)[-1]
    assert re.search(wrong, last.wrong) and re.search(remedy, last.remedy), last


def test_a_port_is_found_by_trying_this_machines(board, monkeypatch):
    monkeypatch.setattr(serial_link, "Link", FakeLink)
    monkeypatch.setattr(FakeLink, "answering", ("/dev/b",))
    monkeypatch.setattr(board_doctor, "serial_ports", lambda: ["/dev/a", "/dev/b"])
    monkeypatch.setattr(board_doctor, "open_target", lambda target: pytest.fail(target))
    with pytest.raises(pytest.fail.Exception, match=r":/dev/b$"):
        examine(board)
