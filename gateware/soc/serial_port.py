"""One serial port for two: a terminal talks to the firmware, a host program reads and writes the bus.

    bytes in --> FIFO --> register --+--> the CPU's UART
                                     +--> bridge --> Wishbone master
    bytes out <-- register <--- both

A frame begins with a control character that nobody types; what follows belongs to the bridge until the frame's end.
What is typed faster than the firmware reads is dropped: it must not stand in the bridge's way.
"""

from litex.gen import LiteXModule
from litex.soc.cores.uart import UART
from litex.soc.interconnect import stream
from migen import If, Signal

from sentei.gateware.soc.serial_bridge import SerialBridge
from sentei.overlay.serial_bridge import START

FIFO_BYTES = 64  # that arrive while the bridge is on the bus, or answers


class SerialPort(LiteXModule):
    """Joins `phy`, whose streams of bytes are `source` (in) and `sink` (out), with a UART and a bridge."""

    def __init__(self, phy, uart: UART, bridge: SerialBridge):
        self.waiting = waiting = stream.SyncFIFO([("data", 8)], FIFO_BYTES)
        self.received = received = stream.Buffer([("data", 8)])
        # A PHY sends a byte long before it says that it has taken it: it must not be offered another meanwhile.
        self.sending = sending = stream.Buffer([("data", 8)])

        # # #

        for_bridge = Signal()
        self.comb += [
            phy.source.connect(waiting.sink),
            waiting.source.connect(received.sink),
            for_bridge.eq(~bridge.idle | (received.source.data == START)),
            If(for_bridge, received.source.connect(bridge.sink)).Else(
                received.source.connect(uart.sink, omit={"ready"}), received.source.ready.eq(1)
            ),
            # No answer is torn apart: the UART waits for its end.
            If(bridge.idle, uart.source.connect(sending.sink)).Else(bridge.source.connect(sending.sink)),
            sending.source.connect(phy.sink),
        ]
