"""The bridge over lines that are bad, silent or cut: each answer is right, or an error says so."""

import socket
import threading

import numpy as np
import pytest

pytest.importorskip("litex")

from helpers.copy_program import CHANNELS, HEIGHT, WIDTH, copy_program
from helpers.noisy_line import NoisyLine

from sentei.driver import SenteiOverlay, Simulator, serial_link
from sentei.driver.bridge import BridgeDevice
from sentei.driver.errors import DeviceNotResponding
from sentei.driver.serial_link import Link
from sentei.driver.serve import listen, serve
from sentei.overlay.errors import InputError

EVERY = 400  # bytes; one of them suffers
INFERENCES = 30
LIMIT_S = 20.0


@pytest.fixture
def served(overlay_path):
    """TCP port of a simulated SoC's serial port."""
    simulator, listener = Simulator(overlay_path()), listen()
    server = threading.Thread(target=serve, args=(simulator, listener, 1), daemon=True)
    server.start()
    yield listener.getsockname()[1]
    server.join(10)
    assert not server.is_alive()
    simulator.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_no_inference_over_a_noisy_line_is_wrong(overlay_path, served, seed):
    line = NoisyLine(served, EVERY, seed)
    chance = np.random.default_rng(seed)
    with SenteiOverlay(overlay_path(), device=BridgeDevice(overlay_path(), f"tcp:localhost:{line.port}")) as overlay:
        overlay.engine.clock.limit = LIMIT_S
        overlay.load(copy_program(overlay.manifest.geometry))
        for _ in range(INFERENCES):
            picture = chance.integers(0, 16, (1, CHANNELS, HEIGHT, WIDTH))
            assert np.array_equal(overlay.run(picture), picture), seed
    assert {"flip", "lose", "double", "delay"} <= set(line.suffered), "it was a bad line"


@pytest.fixture
def peer():
    """(TCP port, the other end once it is connected)."""
    listener = socket.create_server(("localhost", 0))
    listener.settimeout(10)
    yield listener.getsockname()[1], lambda: listener.accept()[0]
    listener.close()


def test_a_port_that_says_nothing_is_given_up(peer, monkeypatch):
    monkeypatch.setattr(serial_link, "LIMIT_S", 0.5)
    link = Link(f"tcp:localhost:{peer[0]}")
    with pytest.raises(DeviceNotResponding, match=r"gives no answer within 0\.5 s; is the board configured"):
        link.read(0)
    link.close()


def test_a_port_that_only_talks_is_given_up(peer, monkeypatch):
    monkeypatch.setattr(serial_link, "LIMIT_S", 0.5)
    port, connect = peer
    link = Link(f"tcp:localhost:{port}")
    other, silent = connect(), threading.Event()

    def talk():
        while not silent.wait(0.01):
            other.sendall(b"\x01not an answer\x04 ... \x04\x01\x01")

    talker = threading.Thread(target=talk)
    talker.start()
    with pytest.raises(DeviceNotResponding, match="gives no answer"):
        link.read(0)
    silent.set()
    talker.join()
    link.close()
    other.close()


def test_a_line_that_is_cut_is_an_error(peer):
    port, connect = peer
    link = Link(f"tcp:localhost:{port}")
    connect().close()
    with pytest.raises(DeviceNotResponding, match="failed: "):
        link.read(0)
    link.close()


@pytest.mark.parametrize("port, error", [("tcp:localhost:x", InputError), ("/dev/none", DeviceNotResponding)])
def test_a_port_that_does_not_exist_is_refused(port, error):
    with pytest.raises(error, match=port):
        Link(port)
