"""A pynq Device behind a bridge: a board that is no PYNQ, or a simulated SoC, through its serial port.

Buffers lie here and in main memory; `flush` and `invalidate`, as pynq defines them, carry the bytes across. No
interrupt reaches the host, so its controller is asked.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from pathlib import Path

import numpy as np

from sentei.driver.device import InterruptLine, SoCDevice, WallClock
from sentei.driver.errors import DeviceNotResponding
from sentei.driver.serial_link import Link
from sentei.overlay.errors import InputError
from sentei.overlay.manifest import Manifest
from sentei.overlay.registers import INTERRUPT_REGISTERS, SYSTEM_REGISTERS, MemoryState

RESET, SCRATCH = 0, 4  # registers of LiteX's controller
POLL_S = 0.001  # between two looks at the interrupt controller
MEMORY_LIMIT_S = 10.0  # after a reset
RESET_LIMIT_S = 10.0
MARK = 0x5E17E100


class BridgeDevice(SoCDevice):
    """The SoC of `manifest` behind `port` (see serial_link.Link). It must be configured already."""

    def __init__(self, manifest: Manifest | str | Path, port: str):
        manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
        super().__init__("bridge", manifest, manifest.memory_bytes)
        self.link = Link(port)
        self.clock = WallClock()
        self.interrupt_line = InterruptLine(self._interrupted)
        self._pending = manifest.addresses["interrupts"] + 4 * INTERRUPT_REGISTERS.index("ipr")

    async def _interrupted(self) -> bool:
        await asyncio.sleep(POLL_S)
        return bool(self.link.read(self._pending)[0])

    def read_registers(self, address: int, length: int) -> bytes:
        return self.link.read(address, length // 4).astype("<u4").tobytes()

    def write_registers(self, address: int, data) -> None:
        for number, word in enumerate(np.frombuffer(bytes(data), "<u4")):
            self.link.write(address + 4 * number, word)

    def download(self, bitstream, parser=None) -> None:
        """The FPGA stays configured as it is; the SoC starts from reset, and its firmware initialises main memory.

        DeviceNotResponding if main memory does not work, or the firmware does not say so within a time. What buffers
        hold there may be lost; what they hold here is not.
        """
        self._reset()
        self._await_memory()
        self.forget_interrupts()
        self.post_download(bitstream, parser)

    def _reset(self) -> None:
        """A number in a register without effect shows whether the reset, which nothing can answer, has arrived."""
        control = self.manifest.addresses["ctrl"]
        end = time.monotonic() + RESET_LIMIT_S
        while time.monotonic() < end:
            self.link.write(control + SCRATCH, MARK)
            self.link.settle()
            self.link.write(control + RESET, 1)
            self.link.forget()
            if self.link.read(control + SCRATCH)[0] != MARK:
                return
        raise DeviceNotResponding(f"{self.link.port}: the SoC does not start anew")

    def _await_memory(self) -> None:
        address = self.manifest.addresses["system"] + 4 * SYSTEM_REGISTERS.index("memory")
        end = time.monotonic() + MEMORY_LIMIT_S
        while time.monotonic() < end:
            state = self.link.read(address)[0]
            if state == MemoryState.READY:
                return
            if state == MemoryState.FAILED:
                raise DeviceNotResponding(
                    f"main memory does not work: the firmware's test of it failed; a terminal on "
                    f"{self.link.port} tells more (selftest)"
                )
        raise DeviceNotResponding(f"the firmware has not initialised main memory within {MEMORY_LIMIT_S} s")

    def upload(self, content: bytes) -> None:
        """To the begin of main memory. InputError if it does not fit."""
        if len(content) > self.manifest.memory_bytes:
            limit = self.manifest.memory_bytes
            raise InputError(f"what is uploaded must have at most {limit} bytes, not {len(content)}")
        self.link.write_block(self._memory_base, np.frombuffer(content + bytes(-len(content) % 4), "<u4"))
        self.link.settle()

    def _piece(self, offset: int, length: int) -> ctypes.Array[ctypes.c_uint8]:
        return (ctypes.c_uint8 * length)()

    def flush(self, bo, offset, vaddr, nbytes) -> None:
        """From the host's copy to main memory."""
        data = ctypes.string_at(vaddr, nbytes)
        words = np.frombuffer(data + bytes(-nbytes % 4), "<u4")
        self.link.write_block(self._memory_base + bo + offset, words)

    def invalidate(self, bo, offset, vaddr, nbytes) -> None:
        """From main memory to the host's copy."""
        words = self.link.read(self._memory_base + bo + offset, -(-nbytes // 4))
        ctypes.memmove(vaddr, words.astype("<u4").tobytes(), nbytes)

    def close(self) -> None:
        self.forget_interrupts()
        self.link.close()
