"""A pynq Device in front of a SoC that is no Zynq, so that pynq's own classes work on it unchanged.

Of a Verilated SoC, registers go through the bus, buffers lie in its main memory (no copies), and its interrupt line
stands where pynq expects a UIO device. Simulated time passes only during register accesses and while someone waits.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from sentei.driver.allocator import Allocator
from sentei.driver.quiet_pynq import Metadata, pynq
from sentei.driver.simulator import Simulator
from sentei.overlay.manifest import Manifest

SLICE_CYCLES = 20_000  # simulated at once, before other tasks of the event loop get their turn
_numbers = itertools.count()


class WallClock:
    """Time for limits on boards: seconds."""

    unit = "s"
    poll_seconds = 0.05
    limit = 10.0  # of one job

    def now(self) -> float:
        return time.monotonic()


class CycleClock:
    """Time for limits on a simulated SoC: its clock cycles."""

    unit = "cycles"
    poll_seconds = 0.0
    limit = 50_000_000  # of one job

    def __init__(self, simulator: Simulator):
        self._simulator = simulator

    def now(self) -> int:
        return self._simulator.cycles


class InterruptLine:
    """Stands in for pynq's UioController. `interrupted` waits a while for a high line, and says whether it is."""

    def __init__(self, interrupted: Callable[[], Awaitable[bool]]):
        self._interrupted = interrupted
        self._events: list = []
        self._pump: asyncio.Task | None = None
        self.count = 0  # times that the line was seen high

    def add_event(self, event, number: int) -> None:
        self._events.append(event)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._run())

    def forget(self) -> None:
        """Nobody waits any more."""
        self._events.clear()
        if self._pump is not None and not self._pump.get_loop().is_closed():
            self._pump.cancel()
        self._pump = None

    async def _run(self) -> None:
        while self._events:
            if await self._interrupted():
                self.count += 1
                events, self._events = self._events, []
                for event in events:
                    event.set()
                await asyncio.sleep(0)


class Buffer(pynq.buffer.PynqBuffer):
    """pynq's buffer, with NumPy 2 too: there every array has a `device` of its own, which pynq could not set."""

    device: pynq.Device | None = None


class SoCDevice(pynq.Device):
    """What all devices share that hand out main memory themselves. `interrupt_line` stands where pynq wants UIO."""

    capabilities = {"REGISTER_RW": True}  # noqa: RUF012 (pynq's convention)
    interrupt_line: InterruptLine

    def __init__(self, kind: str, manifest: Manifest, memory_bytes: int):
        super().__init__(f"sentei_{kind}_{next(_numbers)}")
        self.manifest = manifest
        self._memory_base = manifest.addresses["main_ram"]
        self._allocator = Allocator(memory_bytes)

    def activate(self) -> None:
        """Make this the device that pynq's global functions use, and its interrupt line the one they find."""
        pynq.Device.active_device = self
        for controller in self.interrupt_controllers.values():
            pynq.interrupt._InterruptController._uio_devices[controller["raw_irq"]] = self.interrupt_line

    def forget_interrupts(self) -> None:
        """Drop every wait that is still registered."""
        self.interrupt_line.forget()
        pynq.interrupt._InterruptController._controllers.clear()

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False):
        description = Metadata(input=str(Path(bitfile_name).with_suffix(".hwh")))
        metadata = pynq.metadata.runtime_metadata_parser.RuntimeMetadataParser(description)
        metadata.clock_dict = {}  # its clock needs no setting
        return metadata

    def allocate(self, shape, dtype="u4", **_) -> pynq.buffer.PynqBuffer:
        """A buffer in main memory; it is free again when nothing refers to it. OutOfMemoryError if there is no room."""
        dtype = np.dtype(dtype)
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        offset = self._allocator.allocate(length)
        piece = self._piece(offset, length)
        weakref.finalize(piece, self._allocator.free, offset, length).atexit = False
        return Buffer(
            shape,
            dtype,
            buffer=piece,
            device=self,
            device_address=self._memory_base + offset,
            bo=offset,
            coherent=False,
        )

    def _piece(self, offset: int, length: int) -> ctypes.Array[ctypes.c_uint8]:
        """Where the host keeps `length` bytes of main memory."""
        raise NotImplementedError

    @property
    def free_bytes(self) -> int:
        """Bytes of main memory that no buffer has."""
        return self._allocator.free_bytes

    def close(self) -> None:
        """Let go of the SoC."""
        raise NotImplementedError


class SimulatedDevice(SoCDevice):
    """`simulator` is powered up when the device is made and reset by every download."""

    def __init__(self, manifest: Manifest | str | Path):
        self.simulator = Simulator(manifest)
        super().__init__("simulated", self.simulator.manifest, len(self.simulator.memory))
        self.clock = CycleClock(self.simulator)
        self.interrupt_line = InterruptLine(self._interrupted)

    async def _interrupted(self) -> bool:
        await asyncio.sleep(0)
        return self.simulator.run_until_interrupt(SLICE_CYCLES)

    def read_registers(self, address: int, length: int) -> bytes:
        words = (self.simulator.read(address + i).to_bytes(4, "little") for i in range(0, length, 4))
        return b"".join(words)

    def write_registers(self, address: int, data) -> None:
        data = bytes(data)
        for i in range(0, len(data), 4):
            self.simulator.write(address + i, int.from_bytes(data[i : i + 4], "little"))

    def download(self, bitstream, parser=None) -> None:
        """As configuring an FPGA: the SoC starts from reset, buffers keep their content."""
        self.simulator.reset()
        self.forget_interrupts()
        self.post_download(bitstream, parser)

    def _piece(self, offset: int, length: int) -> ctypes.Array[ctypes.c_uint8]:
        return (ctypes.c_uint8 * length).from_buffer(self.simulator.content, offset)

    def flush(self, bo, offset, vaddr, nbytes) -> None:
        """Nothing to do: host and SoC see the same bytes."""

    def invalidate(self, bo, offset, vaddr, nbytes) -> None:
        """Nothing to do: host and SoC see the same bytes."""

    def close(self) -> None:
        self.forget_interrupts()
        self.simulator.close()
