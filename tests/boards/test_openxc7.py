"""A PYNQ's bitstream by openXC7's tools: the calls that they get, with stand-ins on the PATH that write them down."""

import json
import sys

import pytest

pytest.importorskip("litex_boards")

from helpers.tiers import hardware

from sentei.boards import board_named
from sentei.boards.xilinx import openxc7
from sentei.gateware.tools.yowasp import yosys
from sentei.overlay.errors import BuildError, InputError
from sentei.overlay.manifest import Manifest

pytestmark = hardware

STAND_IN = """#!{python}
import json, sys
from pathlib import Path
name, given = Path(sys.argv[0]).name, sys.argv[1:]
if given == ["--version"]:
    sys.exit(print(f"{{name}} 0.8-stand-in"))
with open({calls!r}, "a") as calls:
    print(json.dumps([name, *given]), file=calls)
if name == "nextpnr-xilinx":
    print("Info: Max frequency for clock 'clk': 12.00 MHz (FAIL at 50.00 MHz)")
    print("Info: Max frequency for clock               'clk': {mhz} MHz (at 50.00 MHz)")
    Path(given[given.index("--fasm") + 1]).write_text("features")
elif name == "xc7frames2bit":
    Path(given[given.index("--output_file") + 1]).write_bytes(b"bits")
else:
    Path(given[-1]).write_text("frames")
"""


@pytest.fixture
def board():
    return board_named("pynq_z2").with_flow("openxc7")


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Puts the stand-ins on the PATH, which reach so many MHz; returns what reads their calls."""
    calls = tmp_path / "calls"
    folder = tmp_path / "bin"
    folder.mkdir()

    def install(mhz: float = 60.0):
        for program in openxc7.PROGRAMS:
            (folder / program).write_text(STAND_IN.format(python=sys.executable, calls=str(calls), mhz=mhz))
            (folder / program).chmod(0o755)
        (folder / "xc7z020clg400.bin").touch()
        (folder / "zynq7").mkdir(exist_ok=True)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setenv("CHIPDB", str(folder))
        monkeypatch.setenv("PRJXRAY_DB_DIR", str(folder))
        return lambda: [json.loads(line) for line in calls.read_text().splitlines()]

    return install


def netlist(*kinds: str):
    """A yosys that makes cells of these types."""

    def made(script, directory):
        for name in ("sentei.v", "processing_system.v"):
            assert (directory / name).exists() and f"read_verilog {name}" in script
        cells = {str(number): {"type": kind} for number, kind in enumerate(kinds)}
        (directory / "sentei.json").write_text(json.dumps({"modules": {openxc7.TOP: {"cells": cells}}}))

    return made


def test_without_the_tools_the_error_names_them_and_where_they_are(board, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError) as error:
        board.build("7020", tmp_path)
    for word in (*openxc7.PROGRAMS, "CHIPDB", "xc7z020clg400.bin", "PRJXRAY_DB_DIR", openxc7.PROJECT, "Vivado"):
        assert word in str(error.value)
    assert "bit" not in Manifest.load(tmp_path).files


def test_the_tools_get_the_design(board, tools, tmp_path, monkeypatch):
    monkeypatch.setattr(openxc7, "yosys", netlist("LUT6", "DSP48E1", "PS7", "RAMB36E1", "$scopeinfo"))
    calls = tools()
    figures = board.build("7020", tmp_path / "made", seed=5)
    nextpnr, frames, bits = calls()
    chips, part = str(tmp_path / "bin" / "xc7z020clg400.bin"), "xc7z020clg400-1"
    assert nextpnr[:7] == ["nextpnr-xilinx", "--chipdb", chips, "--xdc", "sentei.xdc", "--json", "sentei.json"]
    assert nextpnr[7:] == ["--fasm", "sentei.fasm", "--freq", "50", "--seed", "5", "--timing-allow-fail"]
    base = str(tmp_path / "bin" / "zynq7")
    assert frames == ["fasm2frames", "--part", part, "--db-root", base, "sentei.fasm", "sentei.frames"]
    assert bits[:5] == ["xc7frames2bit", "--part_file", f"{base}/{part}/part.yaml", "--part_name", part]
    assert bits[5:] == ["--frm_file", "sentei.frames", "--output_file", "sentei.bit"]
    assert figures["clocks"] == {"sys": {"target_mhz": 50.0, "achieved_mhz": 60.0}}
    assert figures["tools"]["nextpnr-xilinx"] == "nextpnr-xilinx 0.8-stand-in"
    assert figures["command"] == "sentei build pynq_z2 --device 7020 --flow openxc7 --clock 50 --seed 5"
    manifest = Manifest.load(tmp_path / "made")
    assert manifest.name == "pynq_z2-7020-openxc7" and manifest.file("bit").read_bytes() == b"bits"
    assert manifest.geometry.columns == 16, "what nextpnr-xilinx has room for"


def test_a_missed_clock_and_unknown_cells_are_errors(board, tools, tmp_path, monkeypatch):
    tools(41.5)
    monkeypatch.setattr(openxc7, "yosys", netlist("LUT6"))
    with pytest.raises(BuildError, match=r"reaches 41\.5 MHz of 50\. What may help: build it .*, --clock 41, or an"):
        board.build("7020", tmp_path / "made")
    monkeypatch.setattr(openxc7, "yosys", netlist("LUT6", "RAM64X12S", "URAM288"))
    with pytest.raises(BuildError, match="does not know cells of type RAM64X12S, URAM288"):
        board.build("7020", tmp_path / "made")
    assert not (tmp_path / "made" / "manifest.json").exists()
    with pytest.raises(BuildError, match="tells no clock's frequency"):
        openxc7.slowest_clock(["Info: Routing complete"])


def test_the_processing_system_is_wired_to_ports_that_a_ps7_has(board, tmp_path):
    board.write_verilog("7020", tmp_path)
    verilog = (tmp_path / "sentei.v").read_text()
    (tmp_path / "processing_system.v").write_text(openxc7.processing_system(verilog))
    yosys("read_verilog processing_system.v; read_verilog -lib +/xilinx/cells_xtra.v +/xilinx/cells_sim.v; "
          "hierarchy -check -top ps7; check -assert", tmp_path)  # fmt: skip
    openxc7.keep_places(tmp_path / "sentei.xdc")
    kept = (tmp_path / "sentei.xdc").read_text().splitlines()
    assert all(line.startswith("set_property") for line in kept)


def test_a_board_without_that_flow_says_so():
    with pytest.raises(InputError, match="ulx3s: --flow must be none but its own, not 'openxc7'"):
        board_named("ulx3s").with_flow("openxc7")
    with pytest.raises(InputError, match="pynq_z1: --flow must be openxc7, not 'ise'"):
        board_named("pynq_z1").with_flow("ise")
