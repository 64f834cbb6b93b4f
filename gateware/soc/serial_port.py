"""One serial port for two: a terminal talks to the firmware, a host program reads and writes the bus.

    bytes in  --> FIFO --+--> the CPU's UART                   a packet's first byte is 1 to 4, control characters that
                         +--> bridge --> Wishbone master       nobody types; what follows belongs to it until its end
    bytes out <-- register <--+--- both

What is typed faster than the firmware reads is dropped: it must not stand in the bridge's way. The bridge is LiteX's
own UARTBone: command, number of words, word address, data, all most significant byte first. A packet that does not go
on for a tenth of a second is dropped.
"""

from litex.gen import LiteXModule
from litex.soc.cores.uart import (
    CMD_READ_BURST_FIXED,
    CMD_READ_BURST_INCR,
    CMD_WRITE_BURST_FIXED,
    CMD_WRITE_BURST_INCR,
    UART,
    Stream2Wishbone,
)
from litex.soc.interconnect import stream
from migen import If, Signal

COMMANDS = (CMD_WRITE_BURST_INCR, CMD_READ_BURST_INCR, CMD_WRITE_BURST_FIXED, CMD_READ_BURST_FIXED)
FIFO_BYTES = 16  # that arrive while the bridge is on the bus


class SerialPort(LiteXModule):
    """Joins `phy`, whose streams of bytes are `source` (in) and `sink` (out), with a UART and a bridge."""

    def __init__(self, phy, uart: UART, bridge: Stream2Wishbone):
        self.received = received = stream.SyncFIFO([("data", 8)], FIFO_BYTES)
        # A PHY sends a byte long before it says that it has taken it: it must not be offered another meanwhile.
        self.sending = sending = stream.Buffer([("data", 8)])

        # # #

        first, between_packets, for_bridge = received.source.data, Signal(), Signal()
        self.comb += [
            phy.source.connect(received.sink),
            between_packets.eq(bridge.fsm.ongoing("RECEIVE-CMD")),
            for_bridge.eq(~between_packets | (first >= min(COMMANDS)) & (first <= max(COMMANDS))),
            If(for_bridge, received.source.connect(bridge.sink)).Else(
                received.source.connect(uart.sink, omit={"ready"}), received.source.ready.eq(1)
            ),
            # No answer is torn apart: the UART waits for the end of a packet.
            If(between_packets, uart.source.connect(sending.sink)).Else(bridge.source.connect(sending.sink)),
            sending.source.connect(phy.sink),
        ]
