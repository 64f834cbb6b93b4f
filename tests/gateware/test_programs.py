"""Programs are tested by using them: one that is there and does not work is missing, too."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("litex")

from sentei.gateware.firmware.build import build_firmware
from sentei.gateware.soc.soc import firmware_constants
from sentei.gateware.tools import programs
from sentei.overlay.errors import BuildError, ToolMissingError
from sentei.overlay.geometry import PRESETS


@pytest.fixture(autouse=True)
def afresh():
    """What earlier trials found is forgotten, before and after."""
    programs.fault.cache_clear()
    yield
    programs.fault.cache_clear()


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_what_works_is_found_by_its_path(name):
    assert os.access(programs.require(name), os.X_OK)


def test_a_missing_compiler_is_named_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = "riscv64-unknown-elf-gcc must be installed .*: sudo apt-get install gcc-riscv64-unknown-elf"
    with pytest.raises(ToolMissingError, match=message):
        build_firmware(firmware_constants(PRESETS["8x8"], 1 << 20), tmp_path)


def test_a_perl_without_modules_is_named_with_what_it_says(monkeypatch, tmp_path):
    perl = tmp_path / "perl"
    perl.write_text('#!/bin/sh\necho "Can\'t locate FindBin.pm in @INC" >&2\nexit 2\n')
    perl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    message = r"perl does not work: Can't locate FindBin\.pm in @INC; install it: sudo apt-get install perl$"
    with pytest.raises(ToolMissingError, match=message):
        programs.require("perl")


def test_a_program_that_never_ends_does_not_work(monkeypatch, tmp_path):
    (tmp_path / "make").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(programs, "TRIAL_S", 0.1)
    with pytest.raises(ToolMissingError, match=r"make does not work: .* timed out"):
        programs.require("make")


def test_each_line_that_a_program_prints_can_be_watched(tmp_path):
    lines = []
    programs.run(["sh", "-c", "echo one; echo two >&2"], tmp_path, lines.append)
    assert sorted(lines) == ["one\n", "two\n"]
    with pytest.raises(BuildError, match=r"sh failed in .* \(exit code 3\):\nwhy$"):
        programs.run(["sh", "-c", "echo why; exit 3"], tmp_path)


def test_a_program_that_is_not_done_in_time_is_stopped(tmp_path):
    with pytest.raises(BuildError, match=r"(?s)sh was stopped in .*: not done after 0\.3 s; at last it said\nbusy$"):
        programs.run(["sh", "-c", "echo busy; exec sleep 60"], tmp_path, limit_s=0.3)


def test_the_module_tells_of_every_program():
    said = subprocess.run([sys.executable, "-m", "sentei.gateware.tools.programs"], capture_output=True, text=True)
    found = json.loads(said.stdout)
    assert list(found) == list(programs.PROGRAMS)
    for name, values in found.items():
        assert values["fault"] is None and os.access(values["path"], os.X_OK)
        assert values["remedy"] == f"sudo apt-get install {programs.PROGRAMS[name].package}"
