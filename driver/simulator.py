"""A Verilated SoC in this process: registers, main memory as a numpy array, time under the caller's control.

The SoC stands still between calls; every call that lets it run has a limit in clock cycles.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sentei.driver.errors import BusAccessError, DeviceNotResponding
from sentei.overlay.manifest import Manifest

ACCESS_LIMIT_CYCLES = 4096
_BUS_ERROR, _TIMED_OUT = 1, 2
_INTERRUPT, _ENGINE_PULSE = 0, 1
_STALLS, _WITHHOLD, _FROZEN = 0, 1, 2
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    # name: (result, arguments after the handle)
    "destroy": (None, []),
    "reset": (None, []),
    "cycles": (ctypes.c_uint64, []),
    "read": (ctypes.c_int, [ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint64]),
    "write": (ctypes.c_int, [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64]),
    "run": (ctypes.c_uint64, [ctypes.c_uint64]),
    "run_until": (ctypes.c_int, [ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64]),
    "engine_pulses": (ctypes.c_uint64, []),
    "interrupt": (ctypes.c_int, []),
    "set": (None, [ctypes.c_int, ctypes.c_uint32]),
    "uart_read": (ctypes.c_uint32, [ctypes.c_char_p, ctypes.c_uint32]),
    "uart_write": (None, [ctypes.c_char_p, ctypes.c_uint32]),
    "memory": (ctypes.c_void_p, [ctypes.POINTER(ctypes.c_uint64)]),
}


class Simulator:
    """One powered-up SoC. `manifest`: a Manifest, or the path of one or of its directory."""

    def __init__(self, manifest: Manifest | str | Path):
        self.manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
        library = ctypes.CDLL(str(self.manifest.file("library")))
        library.sentei_create.restype = ctypes.c_void_p
        self._functions: dict[str, Callable[..., Any]] = {}
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, f"sentei_{name}")
            function.restype, function.argtypes = result, [ctypes.c_void_p, *arguments]
            self._functions[name] = function
        self._handle = library.sentei_create()

        size = ctypes.c_uint64()
        address = self._call("memory", ctypes.byref(size))
        content = (ctypes.c_uint8 * size.value).from_address(address or 0)
        # The SoC lives as long as any array that looks into its memory.
        weakref.finalize(content, self._functions["destroy"], self._handle).atexit = False
        self.content: ctypes.Array[ctypes.c_uint8] | None = content
        self.memory: np.ndarray | None = np.frombuffer(memoryview(content), np.uint8)

    def _call(self, name: str, *arguments):
        return self._functions[name](self._handle, *arguments)

    @property
    def cycles(self) -> int:
        """Clock cycles since the SoC was created."""
        return self._call("cycles")

    def reset(self) -> None:
        """As after power-up, except that main memory keeps its content."""
        self._call("reset")

    def read(self, address: int, limit_cycles: int = ACCESS_LIMIT_CYCLES) -> int:
        """32-bit word at `address`, through the SoC's bus."""
        data = ctypes.c_uint32()
        self._check(self._call("read", address, ctypes.byref(data), limit_cycles), "read", address, limit_cycles)
        return data.value

    def write(self, address: int, data: int, limit_cycles: int = ACCESS_LIMIT_CYCLES) -> None:
        self._check(self._call("write", address, int(data), limit_cycles), "write", address, limit_cycles)

    def _check(self, status: int, kind: str, address: int, limit_cycles: int) -> None:
        if status == _BUS_ERROR:
            raise BusAccessError(f"{kind} at {address:#010x} was answered with a bus error")
        if status == _TIMED_OUT:
            raise DeviceNotResponding(f"{kind} at {address:#010x} got no answer within {limit_cycles} cycles")

    def run(self, cycles: int) -> int:
        """Let time pass; returns the cycles run (0 if the clock is frozen)."""
        return self._call("run", cycles)

    def run_until_interrupt(self, limit_cycles: int) -> bool:
        """Run until the interrupt controller's line is high. False: it was not within the limit."""
        return bool(self._call("run_until", _INTERRUPT, 0, limit_cycles))

    def run_until_engine_pulse(self, seen: int, limit_cycles: int) -> bool:
        """Run until the engine has pulsed its interrupt more than `seen` times since reset (see `engine_pulses`)."""
        return bool(self._call("run_until", _ENGINE_PULSE, seen, limit_cycles))

    @property
    def engine_pulses(self) -> int:
        return self._call("engine_pulses")

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt controller's line."""
        return bool(self._call("interrupt"))

    def uart(self) -> bytes:
        """What the firmware has said since the last call."""
        data = ctypes.create_string_buffer(65536)
        count = self._call("uart_read", data, len(data))
        return data.raw[:count]

    def send_uart(self, data: bytes) -> None:
        self._call("uart_write", data, len(data))

    def stall_memory(self, seed: int) -> None:
        """Nonzero: main memory's port hesitates at random on every channel. 0: it does not."""
        self._call("set", _STALLS, seed)

    def withhold_memory(self, withheld: bool) -> None:
        """True: main memory takes requests but answers none, until False."""
        self._call("set", _WITHHOLD, withheld)

    def freeze(self, frozen: bool) -> None:
        """True: the clock stands still, and so does every access, until False."""
        self._call("set", _FROZEN, frozen)

    def close(self) -> None:
        """Let go of the SoC; it ends with the last array that looks into its memory."""
        self._functions = dict.fromkeys(_FUNCTIONS, _closed)
        self.memory = self.content = None


def _closed(*_):
    raise DeviceNotResponding("the simulator is closed; create another one")
