"""The serial port that firmware and bridge share, on LiteX's own PHY: no byte is lost, doubled or misplaced, and what
is damaged is not carried out."""

import zlib

import pytest

pytest.importorskip("litex")

from helpers.tiers import hardware
from litex.gen.sim import run_simulation
from litex.soc.cores.uart import RS232PHYTX
from litex.soc.interconnect import stream
from migen import Module, Record, Signal

from sentei.driver.serial_link import ESCAPED, ESCAPED_BIT, _frame
from sentei.gateware.soc.serial_bridge import SerialBridge
from sentei.gateware.soc.serial_port import SerialPort
from sentei.overlay.serial_bridge import END, ESCAPE, FRAME_WORDS, GREETING, READ, START, WINDOW, WRITE

pytestmark = hardware

BIT_CYCLES = 2
LIMIT_CYCLES = 20_000
BYTES = [("data", 8)]
WORD = 0x11223344
SILENCE_CYCLES = 1000


class Streams:
    """Streams of bytes in the place of a PHY or a UART."""

    def __init__(self, sink=None):
        self.source, self.sink = stream.Endpoint(BYTES), sink or stream.Endpoint(BYTES)


class System(Module):
    """The port, its transmitter, a UART that is never read, and a bus on which each word is WORD + its address."""

    def __init__(self, silence_cycles: int):
        self.pads = Record([("tx", 1)])
        self.submodules.transmitter = RS232PHYTX(self.pads, Signal(32, reset=(1 << 32) // BIT_CYCLES))
        self.phy = Streams(self.transmitter.sink)
        self.uart = Streams()
        self.submodules.bridge = SerialBridge(10 * silence_cycles)
        self.submodules.port = SerialPort(self.phy, self.uart, self.bridge)
        bus = self.bridge.wishbone
        self.comb += [bus.ack.eq(bus.cyc & bus.stb), bus.dat_r.eq(WORD + bus.adr)]


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


def exchange(*received: bytes | int, text: bytes = b"", cycles: int = 2500, silence_cycles: int = 1 << 16):
    """(what leaves, writes to the bus) while `received` arrives, numbers of cycles of silence among it, and the
    firmware writes `text`."""
    system = System(silence_cycles)
    said = bytearray()
    writes = []

    def send():
        for part in received:
            if isinstance(part, int):
                for _ in range(part):
                    yield
            else:
                yield from put(system.phy.source, part)

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

    def watch():
        bus = system.bridge.wishbone
        for _ in range(cycles):
            yield
            if (yield bus.cyc) and (yield bus.we):
                writes.append(((yield bus.adr), (yield bus.dat_w)))

    run_simulation(system, [send(), put(system.uart.source, text), listen(), watch()])
    return bytes(said), writes


def body(number: int, command: int, place: int = 0, words: tuple | int = 1) -> bytes:
    count = words if isinstance(words, int) else len(words)
    data = b"" if isinstance(words, int) else b"".join(word.to_bytes(4, "big") for word in words)
    return bytes((number, command, count)) + place.to_bytes(4, "big") + data


def framed(content: bytes) -> bytes:
    return _frame(content + zlib.crc32(content).to_bytes(4, "little"))


def answer(request: bytes, data: bytes = b"") -> bytes:
    return _frame(data + zlib.crc32(data, zlib.crc32(request)).to_bytes(4, "little"))


HELLO = body(6, GREETING, 0, 0)


def words_at(place: int, count: int) -> bytes:
    return b"".join((WORD + place + number).to_bytes(4, "big") for number in range(count))


def test_answers_stay_whole_beside_text():
    asked = [body(7 + number, READ, 0, 2) for number in range(WINDOW)]
    text = b"firmware talks"
    said, _ = exchange(framed(HELLO), *map(framed, asked), text=text)
    for request in asked:
        assert said.count(answer(request, words_at(0, 2))) == 1
        said = said.replace(answer(request, words_at(0, 2)), b"")
    assert said.replace(answer(HELLO), b"") == text


def test_text_that_nobody_reads_does_not_block_the_bridge():
    request = body(7, READ)
    said, _ = exchange(b"x" * 64, framed(HELLO), framed(request))
    assert said == answer(HELLO) + answer(request, words_at(0, 1))


def test_writes_arrive_with_all_the_bytes_there_are():
    special = (START | END << 8 | ESCAPE << 16 | (START ^ ESCAPED_BIT) << 24, 0xFFFFFFFF, 0)
    largest = tuple(0x01041000 + 0x01010101 * number & 0xFFFFFFFF for number in range(FRAME_WORDS))
    first, second = body(7, WRITE, 0x10, special), body(8, WRITE, 0x0104, largest)
    said, writes = exchange(framed(HELLO), framed(first), framed(second), cycles=4000)
    assert said == answer(HELLO) + answer(first) + answer(second)
    assert writes == [(0x10 + n, w) for n, w in enumerate(special)] + [(0x104 + n, w) for n, w in enumerate(largest)]


def test_an_answer_may_be_as_long_as_a_frame():
    request = body(7, READ, START << 8, FRAME_WORDS)
    said, _ = exchange(framed(HELLO), framed(request), cycles=14_000)
    assert said == answer(HELLO) + answer(request, words_at(START << 8, FRAME_WORDS))
    content = ESCAPED.sub(lambda found: bytes((found[1][0] ^ ESCAPED_BIT,)), said[len(answer(HELLO)) + 1 : -1])
    assert content[: 4 * FRAME_WORDS] == words_at(START << 8, FRAME_WORDS)


def test_nothing_is_carried_out_before_a_greeting_twice_or_out_of_order():
    write, late = body(7, WRITE, 1, (5,)), body(9, WRITE, 2, (6,))
    assert exchange(framed(write)) == (b"", [])
    said, writes = exchange(framed(HELLO), framed(write), framed(write), framed(late))
    assert said == answer(HELLO) + 2 * answer(write) and writes == [(1, 5)]
    old = [body(7 + number, READ) for number in range(WINDOW + 1)]
    said, _ = exchange(framed(HELLO), *map(framed, old), framed(old[1]), framed(old[0]))
    answers = [answer(request, words_at(0, 1)) for request in old]
    assert said == answer(HELLO) + b"".join(answers) + answers[1], "the last ones are answered again"


@pytest.mark.parametrize("damage", ["flip", "lose", "double", "cut"])
def test_what_is_damaged_is_not_carried_out_and_may_be_sent_again(damage):
    write = body(7, WRITE, 3, (0xCAFE0000, 0x1234))
    whole = framed(write)
    places = range(1, len(whole))
    damaged = {
        "flip": [whole[:place] + bytes((whole[place] ^ 0x40,)) + whole[place + 1 :] for place in places],
        "lose": [whole[:place] + whole[place + 1 :] for place in range(len(whole))],
        # An END twice is one and nothing, an ESCAPE twice is one.
        "double": [whole[: place + 1] + whole[place:] for place in places if whole[place] not in (END, ESCAPE)],
        "cut": [whole[:place] for place in places],
    }[damage]
    assert all(whole not in frame for frame in damaged)
    frames = b"".join(damaged)
    assert exchange(framed(HELLO), frames, cycles=3000) == (answer(HELLO), [])
    said, writes = exchange(framed(HELLO), frames, whole, cycles=3000)
    assert said == answer(HELLO) + answer(write) and writes == [(3, 0xCAFE0000), (4, 0x1234)]


def test_half_a_frame_is_forgotten_after_a_silence():
    text = b"typed"
    request = body(7, READ)
    said, _ = exchange(
        framed(HELLO),
        framed(request)[:5],
        SILENCE_CYCLES + 20,
        text,
        framed(request),
        text=b"printed",
        silence_cycles=SILENCE_CYCLES,
    )
    for whole in (answer(HELLO), answer(request, words_at(0, 1))):
        assert said.count(whole) == 1
        said = said.replace(whole, b"")
    assert said == b"printed"
    said, _ = exchange(framed(HELLO), framed(request)[:5], text=b"printed", silence_cycles=SILENCE_CYCLES)
    assert said.replace(answer(HELLO), b"") == b"printed"
    with pytest.raises(AssertionError, match="nobody takes the byte"):
        exchange(framed(HELLO), framed(request)[:5], text=b"printed", silence_cycles=2 * LIMIT_CYCLES)


def test_more_than_a_frame_can_hold_is_dropped():
    long = body(7, WRITE, 0, tuple(range(FRAME_WORDS + 40)))
    request = body(7, READ)
    said, writes = exchange(framed(HELLO), framed(long), framed(request), cycles=3000)
    assert said == answer(HELLO) + answer(request, words_at(0, 1)) and writes == []
