"""A serial line that flips, loses, doubles and delays bytes at random: a proxy between two TCP connections."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter

DELAY_S = 0.05  # at most


class NoisyLine:
    """Listens on `port`, for one connection, and hands it on to `target`, a TCP port of this machine. One byte of
    `every` suffers, on average, in either direction. `suffered` counts what happened."""

    def __init__(self, target: int, every: int, seed: int):
        self.suffered: Counter[str] = Counter()
        self._every, self._seed = every, seed
        self._listener = socket.create_server(("localhost", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, args=(target,), daemon=True).start()

    def _serve(self, target: int) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("localhost", target))
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._carry, args=(far, near, random.Random(self._seed + 1)), daemon=True)
        back.start()
        self._carry(near, far, random.Random(self._seed))
        back.join()

    def _carry(self, source: socket.socket, sink: socket.socket, chance: random.Random) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                sink.sendall(self._spoil(data, chance))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _spoil(self, data: bytes, chance: random.Random) -> bytes:
        spoilt = bytearray()
        for byte in data:
            kind = chance.choice(("flip", "lose", "double", "delay")) if chance.randrange(self._every) == 0 else ""
            self.suffered[kind] += 1
            if kind == "flip":
                byte ^= 1 << chance.randrange(8)
            if kind != "lose":
                spoilt += bytes((byte,)) * (2 if kind == "double" else 1)
            if kind == "delay":
                time.sleep(chance.uniform(0, DELAY_S))
        return bytes(spoilt)
