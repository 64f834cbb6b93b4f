"""Every board, elaborated: its pins exist, its registers are where the contract says, its firmware fits, its clock can
be made. The engine is a small one in all of them. Place and route is `make ulx3s-12f`."""

import json
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest

pytest.importorskip("litex_boards")

from helpers.tiers import hardware

from sentei.boards import BOARDS, board_named
from sentei.boards.ecp5 import flow as ecp5
from sentei.boards.flow import Device, Flow
from sentei.boards.xilinx import estimate, vivado
from sentei.host.apps.target import build_board
from sentei.overlay.errors import BuildError, InputError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.manifest import Manifest

pytestmark = hardware

DEVICES = [(board, device) for board in BOARDS if board != "sim" for device in board_named(board).devices]
SMALL = Device(PRESETS["8x8"], 16, 75_000_000)


def small(board: str):
    """The board, with a small engine whatever its device."""
    description = board_named(board)
    return replace(description, devices=dict.fromkeys(description.devices, SMALL))


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_has_a_flow_and_builds_nothing_among_the_sources(board):
    description = board_named(board)
    assert isinstance(description.flow, Flow)
    assert {description.directory(device).parts[0] for device in description.devices} == {"build"}


@pytest.mark.parametrize("board, device", DEVICES)
def test_a_board_elaborates(board, device, tmp_path):
    description = small(board)
    soc, platform, _ = description.write_verilog(device, tmp_path / "work")
    assert soc.memory_bytes >= 8 << 20
    assert device.removeprefix("7").rstrip("FT") in platform.device
    assert (tmp_path / "work" / "sentei.v").read_text().count("endmodule")
    for page in ("engine", "interrupts"):
        assert soc.csr.regions[page].origin & 0xFFFF == soc.addresses[page] & 0xFFFF
    if description.target == "bridge":
        assert soc.rom.mem.init[0], "the firmware is in the ROM"
        assert soc.bus.regions["main_ram"].size == soc.memory_bytes


def test_without_vivado_the_project_and_the_description_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(vivado.shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=r"vivado must be installed .* pynq_z2-7020's bitstream\. Its project"):
        small("pynq_z2").build("7020", tmp_path)
    manifest = Manifest.load(tmp_path)
    assert manifest.target == "pynq" and manifest.file("hwh").exists() and "bit" not in manifest.files
    tcl = (tmp_path / "work" / "sentei.tcl").read_text()
    assert "synth_design" in tcl and "processing_system7" in tcl and "xc7z020" in tcl
    assert "ps7" not in (tmp_path / "work" / "sentei.xdc").read_text()
    assert str(tmp_path) not in tcl, "it must work on another machine"
    verilog = (tmp_path / "work" / "sentei.v").read_text()
    assert "USB0_VBUS" not in verilog, "a PS7 without USB has no such port"
    bit = tmp_path / "elsewhere.bit"
    bit.write_bytes(b"made by Vivado")
    command = [sys.executable, "-m", "sentei.boards", "pynq_z2", "--output", str(tmp_path), "--bit", str(bit)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"overlay: {tmp_path}\n"
    assert Manifest.load(tmp_path).file("bit").read_bytes() == b"made by Vivado"


TIMING = """
| Design Timing Summary
| ---------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints
    -------      -------  ---------------------  -------------------
      {slack}        0.000                      0                 4711
"""


@pytest.mark.parametrize("slack", ["0.250", "-0.500"])
def test_vivados_slack_decides(tmp_path, monkeypatch, slack):
    def vivado_run(command, directory):
        (directory / "sentei_timing.rpt").write_text(TIMING.format(slack=slack))
        (directory / "sentei.bit").write_bytes(b"bits")

    monkeypatch.setattr(vivado.shutil, "which", lambda name: "vivado")
    monkeypatch.setattr(vivado, "run", vivado_run)
    monkeypatch.setattr(vivado.VivadoFlow, "tools", lambda self: {"vivado": "2099.1"})
    board = small("pynq_z2")
    if slack.startswith("-"):
        with pytest.raises(BuildError, match=r"pynq_z2-7020 misses its clock: it reaches 72\.29 MHz of 75\.0"):
            board.build("7020", tmp_path)
        assert not (tmp_path / "manifest.json").exists()
    else:
        figures = board.build("7020", tmp_path)
        assert figures["clocks"] == {"sys": {"target_mhz": 75.0, "achieved_mhz": 76.43}}
        assert figures["tools"]["vivado"] == "2099.1"
        assert Manifest.load(tmp_path).file("bit").read_bytes() == b"bits"
    with pytest.raises(BuildError, match="no summary of slacks"):
        vivado.worst_slack("nothing")


def test_an_estimate_counts_what_yosys_maps(tmp_path, monkeypatch):
    def yosys(script, directory):
        assert {"sentei.v", "processing_system.v"} <= {path.name for path in directory.iterdir()}
        cells = {str(number): {"type": kind} for number, kind in enumerate(["LUT6", "LUT2", "FDRE", "RAMB18E1"])}
        (directory / "sentei.json").write_text(json.dumps({"modules": {"sentei": {"cells": cells}}}))

    monkeypatch.setattr(estimate, "yosys", yosys)
    figures = estimate.estimate(small("pynq_z2"), "7020", tmp_path)
    assert (figures["luts"], figures["ffs"], figures["dsps"], figures["brams"]) == (2, 1, 0, 0.5) and figures["fits"]
    assert "module ps7(" in (tmp_path / "processing_system.v").read_text()


def test_cells_of_a_xilinx_device_are_counted():
    cells = Counter({"LUT6": 5, "RAM32M": 2, "FDRE": 7, "FDCE": 1, "DSP48E1": 3, "RAMB36E1": 2, "RAMB18E1": 1})
    assert estimate.count(cells) == {"luts": 13, "ffs": 8, "dsps": 3, "brams": 2.5}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ulx4s"], "board must be sim or one of ulx3s"),
        (["ulx3s", "--device", "99F"], "--device must be one of 12F"),
        (["ulx3s"], "--device must be one of 12F"),
        (["pynq_z2", "--bit", "none.bit"], "build the overlay again"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, message, tmp_path):
    with pytest.raises(BuildError, match=message):
        build_board([*arguments, "--output", str(tmp_path)], nullcontext)
    assert not list(tmp_path.iterdir())


def test_a_report_says_what_was_reached():
    cells = {"TRELLIS_COMB": {"used": 10, "available": 20}, "MULT18X18D": {"used": 3, "available": 2}}
    fmax = {"$glbnet$sys_clk": {"constraint": 75.0, "achieved": 80.123}}
    figures = ecp5.report({"utilization": cells, "fmax": fmax})
    assert figures["clocks"] == {"sys_clk": {"target_mhz": 75.0, "achieved_mhz": 80.12}}
    assert not figures["fits"] and figures["luts"] == 10


def missing(clocks: dict[str, float]):
    """A nextpnr that reaches these of 75 MHz, and says on its way what the real one says."""

    def nextpnr(arguments, directory, watch, limit_s):
        assert limit_s == 60 * ecp5.LIMIT_MINUTES
        for line in LOG:
            watch(line)
        fmax = {name: {"constraint": 75.0, "achieved": achieved} for name, achieved in clocks.items()}
        (directory / "report.json").write_text(json.dumps({"utilization": {}, "fmax": fmax}))

    return nextpnr


LOG = (
    "Info: Packing FFs...",
    "Info:     at iteration #3, type ALL: wirelen solved = 1, spread = 2, legal = 3; time = 4.70s",
    "Info: iter=87 steplen=0.653513 a=45.450672 penalty=[0.00, 0.00, 0.00, 0.00]",
    "Info:   at iteration #10: temp = 0.000000, timing cost = 410, wirelen = 231074 ",
    "Info:     iter=9 wires=518198 overused=1938 overuse=1948 archfail=NA",
    "Info:     158000 |    26470     126256 |   93   907 |     11160|       0.92     220.10|",
)


def test_a_build_says_how_far_nextpnr_is(monkeypatch):
    assert [ecp5.progress_of(line) for line in LOG] == [
        None,
        "placing, round 3",
        "placing, step 87",
        "refining the placement, round 10",
        "routing, round 9: 1938 wires are used twice",
        "routing, 11160 connections are left",
    ]
    shown = []
    monkeypatch.setattr(ecp5, "SHOW_S", -1)
    for line in LOG:
        ecp5.watcher(shown.append)(line)
        ecp5.watcher(None)(line)
    assert len(shown) == 5


@pytest.mark.parametrize(
    "clocks, remedy",
    [
        (
            {"$glbnet$sys_clk": 74.5},
            r"sys_clk reaches 74\.5 MHz of 75\.0; .*: build it .*, --clock 70, or an",
        ),
        (
            {"$glbnet$sys_clk": 80, "sys2x_clk": 70},
            r"sys2x_clk reaches 70 MHz of 75\.0; .* help: another --seed",
        ),
    ],
)
def test_a_missed_clock_is_an_error(monkeypatch, tmp_path, clocks, remedy):
    monkeypatch.setattr(ecp5, "yosys", lambda script, directory: None)
    monkeypatch.setattr(ecp5, "nextpnr_ecp5", missing(clocks))
    with pytest.raises(BuildError, match="ulx3s-12F misses a clock: " + remedy):
        small("ulx3s").build("12F", tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_board_is_built_for_another_clock(monkeypatch, tmp_path):
    monkeypatch.setattr(ecp5, "yosys", lambda script, directory: None)
    monkeypatch.setattr(ecp5, "nextpnr_ecp5", missing({"$glbnet$sys_clk": 80}))
    monkeypatch.setattr(ecp5, "ecppack", lambda arguments, directory: (directory / "sentei.bit").write_bytes(b"bits"))
    figures = small("ulx3s").at_clock("12F", 60_000_000).build("12F", tmp_path, seed=3)
    assert figures["command"] == "sentei build ulx3s --device 12F --clock 60 --seed 3"
    assert figures["seconds"] >= 0 and figures["machine"].endswith("cores")
    assert Manifest.load(tmp_path).clock_hz == 60_000_000
    with pytest.raises(BuildError, match=r"ulx3s-12F: its PLL cannot make 74 MHz, but --clock 70$"):
        small("ulx3s").at_clock("12F", 74_000_000).build("12F", tmp_path)
    with pytest.raises(InputError, match=r"--clock must be 5 to 400 \(MHz\), not 3"):
        small("ulx3s").at_clock("12F", 3_000_000)
