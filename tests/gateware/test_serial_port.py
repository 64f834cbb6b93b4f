"""The serial port that firmware and bridge share, on LiteX's own PHY: no byte is lost, doubled or misplaced."""

import pytest

pytest.importorskip("litex")

from litex.gen.sim import run_simulation
from litex.soc.cores.uart import RS232PHYTX, Stream2Wishbone
from litex.soc.interconnect import stream
from migen import Module, Record, Signal

from sentei.gateware.soc.serial_port import SerialPort

BIT_CYCLES = 4
LIMIT_CYCLES = 1000
WORD = 0x11223344
BYTES = [("data", 8)]
READ_A_WORD = bytes((2, 1, 0, 0, 0, 0))


class Streams:
    """Streams of bytes in the place of a PHY or a UART."""

    def __init__(self, sink=None):
        self.source, self.sink = stream.Endpoint(BYTES), sink or stream.Endpoint(BYTES)


class System(Module):
    """The port, its transmitter, a UART that is never read, and a bus whose words are all alike."""

    def __init__(self):
        self.pads = Record([("tx", 1)])
        self.submodules.transmitter = RS232PHYTX(self.pads, Signal(32, reset=(1 << 32) // BIT_CYCLES))
        self.phy = Streams(self.transmitter.sink)
        self.uart = Streams()
        self.submodules.bridge = Stream2Wishbone(clk_freq=10_000)
        self.submodules.port = SerialPort(self.phy, self.uart, self.bridge)
        bus = self.bridge.wishbone
        self.comb += [bus.ack.eq(bus.cyc & bus.stb), bus.dat_r.eq(WORD)]


def put(endpoint, content: bytes):
    for byte in content:
        yield endpoint.valid.eq(1)
        yield endpoint.data.eq(byte)
        yield
        waited = 0
        while not (yield endpoint.ready):
            yield
            waited += 1
            assert waited < LIMIT_CYCLES, "nobody takes the byte"
    yield endpoint.valid.eq(0)


def sent(received: bytes, text: bytes, cycles: int) -> bytes:
    """What leaves while `received` arrives at once and the firmware writes `text`."""
    system = System()
    said = bytearray()

    def listen():
        for _ in range(cycles):
            if not (yield system.pads.tx):
                for _ in range(BIT_CYCLES + BIT_CYCLES // 2):
                    yield
                byte = 0
                for bit in range(8):
                    byte |= (yield system.pads.tx) << bit
                    for _ in range(BIT_CYCLES):
                        yield
                said.append(byte)
            yield

    run_simulation(system, [put(system.phy.source, received), put(system.uart.source, text), listen()])
    return bytes(said)


def test_answers_stay_whole_beside_text():
    answer, text = WORD.to_bytes(4, "big"), b"firmware talks"
    said = sent(3 * READ_A_WORD, text, 4000)
    assert said.count(answer) == 3
    assert said.replace(answer, b"") == text


def test_text_that_nobody_reads_does_not_block_the_bridge():
    assert sent(b"x" * 64 + READ_A_WORD, b"", 2000) == WORD.to_bytes(4, "big")
