"""The engines that boards get, made of their vendor's cells, on random layers: the reference's results, and the cycles
of the form that is simulated elsewhere."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("litex_boards")

from helpers.forms_compared import multiplier_model
from helpers.random_layers import describe, fitting_layer
from helpers.tiers import campaign, hardware

from sentei.boards.ecp5.presets import DEVICES as ECP5
from sentei.boards.ecp5.presets import LARGE, MEDIUM, SMALL
from sentei.boards.sim import VerilatorFlow, device_of, simulated
from sentei.boards.xilinx.presets import DEVICES as XILINX
from sentei.boards.xilinx.presets import OPENXC7_7020
from sentei.driver import SenteiOverlay
from sentei.gateware.technologies.technology import ecp5, xilinx
from sentei.gateware.tools.yowasp import yosys_package
from sentei.host.network import reference
from sentei.overlay.manifest import MEMORY_MODELS

pytestmark = hardware

FORMS = {
    "12F": (SMALL, ecp5(ECP5["12F"].multipliers)),
    "45F": (MEDIUM, ecp5(ECP5["45F"].multipliers)),
    "85F": (LARGE, ecp5(ECP5["85F"].multipliers)),
    "7020": (XILINX["7020"].geometry, xilinx(XILINX["7020"].multipliers)),
    "7020-openxc7": (OPENXC7_7020.geometry, xilinx(OPENXC7_7020.multipliers)),
}
LAYERS = {"12F": (6, 300), "45F": (0, 300), "85F": (0, 300), "7020": (0, 100), "7020-openxc7": (0, 100)}


@dataclass(frozen=True)
class VendorFlow(VerilatorFlow):
    """Verilator, with models of the vendor's cells beside the SoC."""

    def write_verilog(self, soc, platform, work):
        share = yosys_package() / "share"
        vendor = "ecp5" if self.datapath.name == "ecp5" else "xilinx"
        for path in (share / vendor).glob("*.vh"):
            shutil.copy(path, work)
        cells = [share / vendor / "cells_sim.v"]
        if vendor == "ecp5":
            cells.append(work / "multiplier.v")
            cells[-1].write_text(multiplier_model())
        return [*super().write_verilog(soc, platform, work), *cells]


def vendor_path(name: str) -> Path:
    """Manifest of the simulator of that preset, of its vendor's cells."""
    geometry, technology = FORMS[name]
    flow = VendorFlow(technology, fast=False)
    directory = Path(__file__).resolve().parents[2] / "build" / "sim" / f"{name}-{technology.name}"
    simulated({name: device_of(geometry)}, MEMORY_MODELS["zynq-hp"], flow).build(name, directory)
    return directory / "manifest.json"


@pytest.fixture(scope="module")
def overlays(overlay_path):
    """overlays(name): the SoC of the vendor's cells, and the one of plain Verilog."""
    opened: dict[str, tuple[SenteiOverlay, SenteiOverlay]] = {}

    def get(name):
        if name not in opened:
            opened[name] = tuple(SenteiOverlay(path) for path in (vendor_path(name), overlay_path(FORMS[name][0])))
        return opened[name]

    yield get
    for pair in opened.values():
        for overlay in pair:
            overlay.close()


@pytest.mark.parametrize(("name", "seed"), campaign(LAYERS))
def test_the_vendors_cells_compute_the_same_in_the_same_cycles(overlays, name, seed):
    geometry = FORMS[name][0]
    network, images, program = fitting_layer(seed, geometry, large=seed % 4 == 0)
    expected = reference.run(network, images)
    cycles = []
    for overlay in overlays(name):
        overlay.device.simulator.stall_memory(seed + 1 if seed % 3 == 0 else 0)
        overlay.load(program)
        measured = overlay.trace(images)
        for op in network.ops:
            text = f"{name}, seed {seed}: {describe(network)}: {op.name}"
            np.testing.assert_array_equal(measured[op.output], expected[op.output], err_msg=text)
        cycles.append(overlay.last_cycles)
    assert cycles[0] == cycles[1], f"{name}, seed {seed}: {describe(network)}"
