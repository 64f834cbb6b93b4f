"""Reads and writes the bus of a LiteX SoC through its serial port, with LiteX's UARTBone protocol.

    Bridge("/dev/ttyUSB0", scratch)            a board's serial port, at 1 Mbaud
    Bridge("/dev/ttyUSB0@115200", scratch)     at another rate
    Bridge("tcp:localhost:1234", scratch)      a simulated SoC's (`sentei serve`)

A packet is a command, a number of words, the first word's address / 4 and, to write, the words, all most significant
byte first. Words that are read come back; writes are not answered. So a block that is written goes in packets, each
followed by a read of its last word, and a few packets are on their way at any time: neither end's buffer overflows,
and what was lost is noticed. `scratch` is the address of a register without effect: after an error a number is written
there and read back, and what comes before it was meant for somebody else.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections import deque

import numpy as np

from sentei.driver.errors import DeviceError, DeviceNotResponding
from sentei.overlay.errors import InputError
from sentei.overlay.serial_bridge import BAUD

WRITE, READ = 0x01, 0x02  # commands: bursts, addresses count up
PACKET_WORDS = 128
PACKETS = 3  # on their way; together less than the 2 KiB that the smallest known buffer holds
LIMIT_S = 2.0  # of waiting for an answer
QUIET_S = 0.2  # after which the SoC has forgotten half a packet


class TransferDamaged(DeviceError):
    """What was written to the device is not what it holds."""


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
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, count: int) -> bytes:
        """At most `count` bytes; none if nothing came within the limit."""
        if hasattr(socket, "TCP_QUICKACK"):  # the kernel forgets it
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        try:
            data = self._socket.recv(count)
        except TimeoutError:
            return b""
        if not data:
            raise ConnectionError("the other end has closed the connection")
        return data

    def drain(self) -> None:
        self._socket.settimeout(QUIET_S)
        with contextlib.suppress(TimeoutError):
            while self._socket.recv(4096):
                pass
        self._socket.settimeout(LIMIT_S)

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
            self._port = serial.Serial(path, int(baud or BAUD), timeout=LIMIT_S, write_timeout=LIMIT_S)
        except (serial.SerialException, ValueError) as error:
            raise DeviceNotResponding(f"{port} cannot be opened: {error}") from error

    def send(self, data: bytes) -> None:
        self._port.write(data)

    def receive(self, count: int) -> bytes:
        """At most `count` bytes; none if nothing came within the limit."""
        return self._port.read(count)

    def drain(self) -> None:
        time.sleep(QUIET_S)
        self._port.reset_input_buffer()

    def close(self) -> None:
        self._port.close()


class Bridge:
    """One SoC's bus; addresses are in bytes, words have 32 bits. DeviceNotResponding where an answer stays away."""

    def __init__(self, port: str, scratch: int):
        self.port = port
        self._scratch = scratch
        self._link = _TCP(port) if port.startswith("tcp:") else _Serial(port)
        self._in_step = False  # False: the SoC may be in the middle of a packet, or have more to say

    def read(self, address: int, words: int = 1) -> np.ndarray:
        """uint32 (words,)."""
        parts: list[np.ndarray] = []
        asked: deque[int] = deque()
        with self._in_packets(address):
            for start in range(0, words, PACKET_WORDS):
                count = min(PACKET_WORDS, words - start)
                if len(asked) == PACKETS:
                    parts.append(self._answer(asked.popleft()))
                self._link.send(_packet(READ, address + 4 * start, count))
                asked.append(count)
            parts += [self._answer(count) for count in asked]
        return np.concatenate(parts)

    def write(self, address: int, word: int) -> None:
        """One word, unanswered: a register."""
        with self._in_packets(address):
            self._link.send(_packet(WRITE, address, 1) + int(word).to_bytes(4, "big"))

    def write_block(self, address: int, words: np.ndarray) -> None:
        """uint32 (N,) to memory. TransferDamaged if it does not arrive."""
        sent: deque[tuple[int, np.ndarray]] = deque()

        def check() -> None:
            place, expected = sent.popleft()
            if (held := self._answer(1)) != expected:
                raise TransferDamaged(
                    f"{self.port}: {place:#010x} must hold {expected:#010x}, not {held[0]:#010x}; "
                    "lower the baud rate, or shorten the cable"
                )

        with self._in_packets(address):
            for start in range(0, len(words), PACKET_WORDS):
                packet = words[start : start + PACKET_WORDS]
                if len(sent) == PACKETS:
                    check()
                last = address + 4 * (start + len(packet) - 1)
                data = packet.astype(">u4").tobytes()
                self._link.send(_packet(WRITE, address + 4 * start, len(packet)) + data + _packet(READ, last, 1))
                sent.append((last, packet[-1]))
            while sent:
                check()

    @contextlib.contextmanager
    def _in_packets(self, address: int):
        """Begin between two packets, and find back there after an error."""
        try:
            if not self._in_step:
                self._find_step()
            self._in_step = False
            yield
            self._in_step = True
        except OSError as error:
            raise DeviceNotResponding(f"access at {address:#010x} through {self.port} failed: {error}") from error

    def _find_step(self) -> None:
        self._link.drain()
        number = secrets.token_bytes(4)
        self._link.send(_packet(WRITE, self._scratch, 1) + number + _packet(READ, self._scratch, 1))
        said = b""
        while not said.endswith(number):
            more = self._link.receive(1)
            if not more or len(said) > 1 << 16:
                raise DeviceNotResponding(
                    f"{self.port} gives no answer within {LIMIT_S} s; is the board configured, "
                    "and is this its serial port?"
                )
            said += more

    def _answer(self, words: int) -> np.ndarray:
        data = b""
        while len(data) < 4 * words:
            more = self._link.receive(4 * words - len(data))
            if not more:
                raise DeviceNotResponding(
                    f"{self.port} gives no answer within {LIMIT_S} s ({len(data)} of {4 * words} "
                    "bytes); has the board lost its configuration?"
                )
            data += more
        return np.frombuffer(data, ">u4").astype(np.uint32)

    def forget(self) -> None:
        """The SoC starts anew: what it says next is no answer."""
        self._in_step = False

    def close(self) -> None:
        self._link.close()


def _packet(command: int, address: int, words: int) -> bytes:
    return bytes((command, words)) + (address // 4).to_bytes(4, "big")
