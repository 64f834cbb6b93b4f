"""A Zynq's bus without a Zynq: registers at the addresses of its `.hwh`, and a Verilated SoC behind them."""

from __future__ import annotations

from sentei.driver.device import SimulatedDevice
from sentei.driver.errors import BusAccessError
from sentei.gateware.soc.soc import CSR_PAGE_BYTES
from sentei.overlay.manifest import Manifest


class MockZynq(SimulatedDevice):
    """`manifest`: of the Zynq's overlay. `simulator`: manifest of a simulator of the same geometry."""

    def __init__(self, manifest, simulator):
        super().__init__(simulator)
        self._zynq = Manifest.load(manifest)

    def _behind(self, address: int) -> int:
        """Where the simulated SoC has what the Zynq has at `address`."""
        for page in ("engine", "interrupts"):
            offset = address - self._zynq.addresses[page]
            if 0 <= offset < CSR_PAGE_BYTES:
                return self.manifest.addresses[page] + offset
        raise BusAccessError(f"nothing lies at {address:#010x}")

    def read_registers(self, address: int, length: int) -> bytes:
        return super().read_registers(self._behind(address), length)

    def write_registers(self, address: int, data) -> None:
        super().write_registers(self._behind(address), data)
