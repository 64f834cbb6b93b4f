"""Errors of running a program on a device. Every one of them leaves the device usable: the next run starts afresh."""

from __future__ import annotations

from sentei.overlay.errors import SenteiError


class DeviceError(SenteiError):
    """Base of everything that a device, rather than its user, does wrong."""


class DeviceNotResponding(DeviceError):
    """A register access got no answer within its limit."""


class BusAccessError(DeviceError):
    """The device answered a host's access with a bus error: nothing is at that address."""


class OutOfMemoryError(SenteiError, MemoryError):
    """Main memory has no free piece as large as asked for."""


class FingerprintMismatch(SenteiError):
    """Device, manifest and program do not belong together."""


class PynqMissingError(SenteiError, ImportError):
    """The pynq package is not installed."""


class EngineStateError(DeviceError):
    """An error that carries what the engine was doing.

    `state` has the fields of the status register and instruction_pointer, epochs, completed, error_address,
    read_address and write_address; it is empty if the registers could not be read either.
    """

    def __init__(self, message: str, state: dict[str, int]):
        self.state = dict(state)
        super().__init__(f"{message}; {describe(state)}")


class EngineTimeout(EngineStateError):
    """A job did not end within its limit."""


class EngineError(EngineStateError):
    """The engine stopped with an error code; `code` is an overlay.registers.ErrorCode."""

    def __init__(self, message: str, code: int, state: dict[str, int]):
        self.code = code
        super().__init__(message, state)


def describe(state: dict[str, int]) -> str:
    """State of the engine in one line."""
    if not state:
        return "its registers cannot be read"
    dma = " and ".join(name for name in ("loading", "storing") if state.get(name)) or "idle"
    return (
        f"instruction {state['instruction_pointer']}, epochs {state['epochs']:#x}, "
        f"busy {state['busy']}, queued {state['queued']}, groups busy {state['groups_busy']:#x}, "
        f"{state['completed']} jobs completed; DMA {dma}, "
        f"last read at {state['read_address']:#010x}, last write at {state['write_address']:#010x}"
    )
