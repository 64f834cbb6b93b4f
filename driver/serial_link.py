"""Reads and writes the bus of a SoC through its serial port; what is damaged or lost on the way is sent again.

    Link("/dev/ttyUSB0")             a board's serial port, at 1 Mbaud
    Link("/dev/ttyUSB0@115200")      at another rate
    Link("tcp:localhost:1234")       a simulated SoC's (`sentei serve`)

Frames and rules are overlay/serial_bridge.py's: the SoC carries out what arrives whole, in order, and nothing twice. A
few requests are on their way at any time; those that have no answer after a while are sent again.
"""

from __future__ import annotations

import re
import secrets
import socket
import time
import zlib
from collections import deque
from dataclasses import dataclass

import numpy as np

from sentei.driver.errors import DeviceError, DeviceNotResponding
from sentei.overlay.errors import InputError
from sentei.overlay.serial_bridge import (
    BAUD,
    CRC_BYTES,
    END,
    ESCAPE,
    ESCAPED_BIT,
    FRAME_WORDS,
    GREETING,
    READ,
    START,
    WINDOW,
    WRITE,
)

LIMIT_S = 4.0  # without an answer, after which the device is given up
PATIENCE_S = 0.25  # after which an answer is asked for again
CHUNK_BYTES = 4096
MOST_BYTES = 1 << 16  # without an end, of which the last are kept
SPECIAL = re.compile(b"[%c%c%c]" % (START, END, ESCAPE))
ESCAPED = re.compile(b"%c(.)" % ESCAPE, re.DOTALL)


class _TCP:
    def __init__(self, port: str):
        host, _, number = port.removeprefix("tcp:").rpartition(":")
        if not number.isdecimal():
            raise InputError(f"a TCP port must be tcp:HOST:NUMBER, not {port!r}")
        try:
            self._socket = socket.create_connection((host or "localhost", int(number)), LIMIT_S)
        except OSError as error:
            text = f"{port} cannot be reached ({error}); start the SoC with `sentei serve`"
            raise DeviceNotResponding(text) from error
        self._socket.settimeout(PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """What has come; none if nothing comes within a moment."""
        if hasattr(socket, "TCP_QUICKACK"):  # the kernel forgets it
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            data = self._socket.recv(CHUNK_BYTES)
        except TimeoutError:
            return b""
        if not data:
            raise ConnectionError("the other end has closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


class _Serial:
    def __init__(self, port: str):
        try:
            import serial
        except ImportError as error:
            raise DeviceError("pyserial must be installed to use a serial port: pip install pyserial") from error
        path, _, baud = port.partition("@")
        try:
            self._port = serial.Serial(path, int(baud or BAUD), timeout=PATIENCE_S, write_timeout=LIMIT_S)
        except (serial.SerialException, ValueError) as error:
            raise DeviceNotResponding(f"{port} cannot be opened: {error}") from error

    def send(self, data: bytes) -> None:
        self._port.write(data)

    def receive(self) -> bytes:
        """What has come; none if nothing comes within a moment."""
        return self._port.read(max(self._port.in_waiting, 1))

    def close(self) -> None:
        self._port.close()


@dataclass
class Request:
    """A request on its way: its frame and CRC, how many bytes answer it, and these, once they have come."""

    frame: bytes
    crc: int
    length: int
    answer: bytes | None = None


class Link:
    """One SoC's bus; addresses are in bytes, words have 32 bits. DeviceNotResponding where answers stay away."""

    def __init__(self, port: str):
        self.port = port
        self._line = _TCP(port) if port.startswith("tcp:") else _Serial(port)
        self._greeted = False  # False: the SoC does not know which number comes next
        self._number = 0
        self._open: deque[Request] = deque()  # not answered, the oldest first
        self._heard = b""  # and not understood yet
        self._asked_at = self._answered_at = 0.0

    def read(self, address: int, words: int = 1) -> np.ndarray:
        """uint32 (words,)."""
        requests = [
            self._ask(READ, address + 4 * start, min(FRAME_WORDS, words - start))
            for start in range(0, words, FRAME_WORDS)
        ]
        self.settle()
        return np.frombuffer(b"".join(request.answer or b"" for request in requests), ">u4").astype(np.uint32)

    def write(self, address: int, *words: int) -> None:
        """To registers or memory, before anything that is asked for later; `settle` waits until it has arrived."""
        self.write_block(address, np.array(words, np.uint32))

    def write_block(self, address: int, words: np.ndarray) -> None:
        """uint32 (N,), as `write`."""
        for start in range(0, len(words), FRAME_WORDS):
            part = words[start : start + FRAME_WORDS]
            self._ask(WRITE, address + 4 * start, len(part), part.astype(">u4").tobytes())

    def settle(self) -> None:
        """Wait until all that was sent has arrived."""
        while self._open:
            self._listen()

    def forget(self) -> None:
        """The SoC starts anew, and has forgotten what it was asked."""
        self._greeted = False

    def close(self) -> None:
        try:
            if self._greeted:
                self.settle()
        finally:
            self._line.close()

    def _ask(self, command: int, address: int, words: int, data: bytes = b"") -> Request:
        if not self._greeted:
            self._greet()
        while len(self._open) == WINDOW:
            self._listen()
        return self._send(command, address // 4, words, data)

    def _greet(self) -> None:
        self._open.clear()
        self._heard = b""
        self._number = secrets.randbelow(256)
        self._send(GREETING, secrets.randbelow(1 << 32), 0, b"")
        self.settle()
        self._greeted = True

    def _send(self, command: int, place: int, words: int, data: bytes) -> Request:
        body = bytes((self._number, command, words)) + place.to_bytes(4, "big") + data
        crc = zlib.crc32(body)
        request = Request(_frame(body + crc.to_bytes(CRC_BYTES, "little")), crc, 4 * words if command == READ else 0)
        self._number = (self._number + 1) % 256
        if not self._open:
            self._answered_at = time.monotonic()
        self._open.append(request)
        self._transmit(request)
        return request

    def _transmit(self, *requests: Request) -> None:
        self._asked_at = time.monotonic()
        try:
            self._line.send(b"".join(request.frame for request in requests))
        except OSError as error:
            self._give_up(f"failed: {error}", error)

    def _listen(self) -> None:
        """Take what comes; ask again for what does not."""
        try:
            self._heard += self._line.receive()
        except OSError as error:
            self._give_up(f"failed: {error}", error)
        *frames, rest = self._heard.split(bytes((END,)))
        self._heard = rest[-MOST_BYTES:]
        for frame in frames:
            self._take(frame.rpartition(bytes((START,)))[2])
        now = time.monotonic()
        if not self._open or self._open[0].answer is not None:
            while self._open and self._open[0].answer is not None:
                self._open.popleft()
            self._answered_at = now
        elif now - self._answered_at > LIMIT_S:
            self._give_up(
                f"gives no answer within {LIMIT_S} s; is the board configured, is this its serial port, and is the "
                "rate its own?"
            )
        elif now - self._asked_at > PATIENCE_S:
            self._transmit(*(request for request in self._open if request.answer is None))

    def _take(self, frame: bytes) -> None:
        """The answer to one of the open requests, unless it is damaged, or none any more."""
        content = ESCAPED.sub(lambda found: bytes((found[1][0] ^ ESCAPED_BIT,)), frame)
        data, crc = content[:-CRC_BYTES], int.from_bytes(content[-CRC_BYTES:], "little")
        for request in self._open:
            if len(data) == request.length and zlib.crc32(data, request.crc) == crc:
                request.answer = data

    def _give_up(self, what: str, cause: Exception | None = None) -> None:
        self._greeted = False
        self._open.clear()
        raise DeviceNotResponding(f"{self.port} {what}") from cause


def _frame(content: bytes) -> bytes:
    escaped = SPECIAL.sub(lambda found: bytes((ESCAPE, found[0][0] ^ ESCAPED_BIT)), content)
    return bytes((START,)) + escaped + bytes((END,))
