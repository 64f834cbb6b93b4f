"""Puts a simulated SoC's serial port on TCP: for the bridge's driver, or a terminal.

Simulated time passes while bytes come or go, and for a moment after.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time

from sentei.driver.simulator import Simulator
from sentei.overlay.errors import InputError
from sentei.overlay.serial_bridge import SIMULATED_FRAME_CYCLES

SLICE_CYCLES = 200  # simulated between two looks at the connection
AWAKE_S = 0.1  # after the last byte
CHUNK_BYTES = 4096


def listen(port: int = 0) -> socket.socket:
    """A listening socket on this machine alone; 0 chooses a free port."""
    try:
        listener = socket.create_server(("localhost", port))
    except OSError as error:
        raise InputError(f"TCP port {port} cannot be used ({error.strerror}); choose another") from error
    listener.settimeout(0.2)
    return listener


def serve(simulator: Simulator, listener: socket.socket, connections: int | None = None) -> None:
    """Serve one connection after the other, so many in all; without a number, until interrupted."""
    served = 0
    while served != connections:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            simulator.run(SIMULATED_FRAME_CYCLES)  # whatever half a frame the one before has left is forgotten
            with contextlib.suppress(ConnectionError):  # the other end is gone; the next may come
                _serve(simulator, connection)
        served += 1


def _serve(simulator: Simulator, connection: socket.socket) -> None:
    last = time.monotonic()
    while True:
        awake = time.monotonic() - last < AWAKE_S
        if select.select([connection], [], [], 0 if awake else None)[0]:
            data = connection.recv(CHUNK_BYTES)
            if not data:
                return
            simulator.send_uart(data)
            last = time.monotonic()
        simulator.run(SLICE_CYCLES)
        if said := simulator.uart():
            connection.sendall(said)
            last = time.monotonic()
