"""LiteDRAM in front of models of chips: the firmware initialises it, the bridge reaches it, results are right."""

import threading
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("litex")

from helpers.small_model import small_model, small_pictures
from helpers.terminal import Terminal

from sentei.driver import SenteiOverlay, Simulator
from sentei.driver.bridge import BridgeDevice
from sentei.driver.serve import listen, serve
from sentei.host.apps import measure
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.geometry import PRESETS
from sentei.overlay.manifest import LITEDRAM, LITEDRAM_DDR3
from sentei.overlay.registers import SYSTEM_REGISTERS, MemoryState

COUNT = 3


@pytest.fixture(
    scope="module",
    params=[("8x8", LITEDRAM), (replace(PRESETS["8x8"], bus_bits=128), LITEDRAM_DDR3)],
    ids=["SDRAM", "DDR3"],
)
def path(overlay_path, request):
    return overlay_path(*request.param)


@pytest.fixture(scope="module")
def terminal(path):
    simulator = Simulator(path)
    yield Terminal(simulator)
    simulator.close()


def test_the_firmware_initialises_the_memory(terminal):
    assert terminal.greeting.startswith("Sentei") and " 0 of 1024 tested words wrong" in terminal.greeting
    address = terminal.simulator.manifest.addresses["system"] + 4 * SYSTEM_REGISTERS.index("memory")
    assert terminal.simulator.read(address) == MemoryState.READY
    assert " 0 of 1024 tested words wrong" in terminal.type("selftest")


def test_results_are_the_references(terminal, path):
    network = load(small_model())
    listener = listen()
    server = threading.Thread(target=serve, args=(terminal.simulator, listener, 1), daemon=True)
    server.start()
    device = BridgeDevice(path, f"tcp:localhost:{listener.getsockname()[1]}")
    with SenteiOverlay(path, device=device) as overlay:
        overlay.load(compile_network(network, overlay.manifest.geometry))
        assert measure.first_difference(overlay, network, np.asarray(small_pictures(COUNT))) is None
    server.join(10)
    assert not server.is_alive()
