"""The PYNQ-style driver: the same calls for a simulated SoC in this process and for a board.

    from sentei.driver import SenteiOverlay

    with SenteiOverlay("build/sim/32x32-zynq-hp") as overlay:
        overlay.load("resnet8.sentei")
        outputs = overlay.run(images)

Names are looked up when they are used, so that this package can be imported where pynq is not installed.
"""

from importlib import import_module

from sentei.driver.errors import (
    BusAccessError,
    DeviceError,
    DeviceNotResponding,
    EngineError,
    EngineStateError,
    EngineTimeout,
    FingerprintMismatch,
    OutOfMemoryError,
    PynqMissingError,
)

_LAZY = {
    "EngineDriver": "sentei.driver.engine",
    "Outputs": "sentei.driver.overlay",
    "SenteiOverlay": "sentei.driver.overlay",
    "SimulatedDevice": "sentei.driver.device",
    "Simulator": "sentei.driver.simulator",
}

__all__ = [
    "BusAccessError",
    "DeviceError",
    "DeviceNotResponding",
    "EngineDriver",
    "EngineError",
    "EngineStateError",
    "EngineTimeout",
    "FingerprintMismatch",
    "OutOfMemoryError",
    "Outputs",
    "PynqMissingError",
    "SenteiOverlay",
    "SimulatedDevice",
    "Simulator",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
