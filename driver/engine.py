"""Drives the engine's registers: pynq binds `EngineDriver` to the IP of that VLNV in a `.hwh`.

Every wait has a limit, in clock cycles on a simulated SoC and in seconds on a board.
"""

from __future__ import annotations

import asyncio

from sentei.driver.device import WallClock
from sentei.driver.errors import DeviceError, EngineError, EngineTimeout
from sentei.driver.quiet_pynq import pynq
from sentei.overlay.registers import PROFILE_WORDS, REGISTERS, VLNV, ErrorCode

RESET_POLLS = 1000
PROFILE_STRIDE = 8  # profile_index = record * 8 + word
ERROR_TEXTS = {
    ErrorCode.READ_FAILED: "reading main memory failed at {error_address:#010x}",
    ErrorCode.WRITE_FAILED: "writing main memory failed at {error_address:#010x}",
    ErrorCode.BAD_INSTRUCTION: "there is no such instruction at {instruction_pointer}; is the program damaged?",
    ErrorCode.WATCHDOG: "the job took more cycles than the watchdog allows",
    ErrorCode.QUEUE_OVERFLOW: "a job was started while the queue was full",
}
STATE_REGISTERS = (
    "completed",
    "instruction_pointer",
    "epochs",
    "error_address",
    "read_address",
    "write_address",
)


class EngineDriver(pynq.DefaultIP):
    """One engine. `jobs` counts the doorbells rung since reset; registers are in `register_map`."""

    bindto = [VLNV]  # noqa: RUF012 (pynq's convention)

    def __init__(self, description):
        super().__init__(description)
        self.clock = getattr(self.device, "clock", None) or WallClock()
        self.jobs = 0

    def get(self, name: str) -> int:
        """Value of a register."""
        return int(getattr(self.register_map, name)[:])

    def fields(self, name: str) -> dict[str, int]:
        """Fields of a register, read at once."""
        return REGISTERS[name].layout.unpack(self.get(name))

    def state(self) -> dict[str, int]:
        """What the engine is doing, for messages; empty if its registers cannot be read."""
        try:
            return self.fields("status") | {name: self.get(name) for name in STATE_REGISTERS}
        except DeviceError:
            return {}

    def reset(self) -> bool:
        """Stop everything. False: the engine still waits for main memory to answer what it has asked."""
        control = REGISTERS["control"].layout
        self.register_map.control = control.pack(reset=1)
        self.register_map.control = 0
        self.jobs = 0
        return any(not self.get("status") for _ in range(RESET_POLLS))

    def clear_profile(self) -> None:
        self.register_map.control = REGISTERS["control"].layout.pack(clear_profile=1)
        self.register_map.control = 0

    def start(self, entry: int, input_address: int = 0, output_address: int = 0, load: bool = False) -> int:
        """Queue a job; returns its number, for `wait`."""
        self.register_map.input_base = input_address
        self.register_map.output_base = output_address
        self.register_map.doorbell = REGISTERS["doorbell"].layout.pack(entry=entry, load=int(load))
        self.jobs += 1
        return self.jobs

    def finished(self, job: int) -> bool:
        """True once job number `job` has ended; EngineError if the engine has stopped."""
        if self.get("completed") >= job:
            return True
        code = self.fields("status")["error"]
        if code != ErrorCode.NONE:
            state = self.state()
            known = code in ErrorCode._value2member_map_
            text = ERROR_TEXTS[ErrorCode(code)] if known else "the engine gives error code {error}"
            raise EngineError(text.format(**(state or {"error_address": 0, "error": code})), code, state)
        return False

    async def wait(self, job: int, limit: float | None = None) -> None:
        """Until job number `job` has ended, woken by its interrupt. `limit` in the clock's unit."""
        limit = self.clock.limit if limit is None else limit
        deadline = self.clock.now() + limit
        while not self.finished(job):
            # A new object each time: pynq's belongs to one event loop and to one download.
            interrupt = asyncio.ensure_future(pynq.Interrupt(self._interrupts["irq"]["fullpath"]).wait())
            try:
                while not interrupt.done():
                    await asyncio.wait({interrupt}, timeout=self.clock.poll_seconds)
                    # Also without an interrupt: it may have come before pynq enabled it, or the clock may stand still.
                    if not interrupt.done():
                        if self.finished(job):
                            break
                        if self.clock.now() >= deadline:
                            raise EngineTimeout(f"job {job} did not end within {limit} {self.clock.unit}", self.state())
                else:
                    interrupt.result()
            finally:
                if not interrupt.done():
                    interrupt.cancel()
                    self._forget_interrupts()

    def _forget_interrupts(self) -> None:
        if hasattr(self.device, "forget_interrupts"):
            self.device.forget_interrupts()
        else:
            pynq.interrupt._InterruptController._controllers.clear()

    def profile(self) -> list[dict[str, int]]:
        """The profile's records, oldest first: one for each layer and group since it was cleared."""
        records = []
        for record in range(self.get("profile_count")):
            values = {}
            for word, name in enumerate(PROFILE_WORDS):
                self.register_map.profile_index = record * PROFILE_STRIDE + word
                values[name] = self.get("profile_data")
            records.append(values)
        return records
