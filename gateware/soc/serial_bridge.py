"""The SoC's end of the serial port: carries out the requests that arrive whole, and answers them.

    sink --> unescape --+--> frame memory --> Stream2Wishbone (LiteX) --> bus
                        `--> CRC                     |
    source <-- escape <-- START, data, CRC, END <-- register

A frame is kept until its CRC is right; nothing of it reaches the bus before. The formats and the rules are
overlay/serial_bridge.py's. Half a frame that does not go on for a tenth of a second is forgotten.
"""

from functools import reduce
from operator import xor

from litex.gen import LiteXModule
from litex.soc.cores.uart import Stream2Wishbone
from litex.soc.interconnect import stream
from migen import FSM, READ_FIRST, Cat, If, Memory, Mux, NextState, NextValue, Signal
from migen.genlib.misc import WaitTimer

from sentei.overlay.serial_bridge import (
    CRC_BYTES,
    CRC_POLYNOMIAL,
    CRC_RESIDUE,
    END,
    ESCAPE,
    ESCAPED_BIT,
    FRAME_WORDS,
    GREETING,
    HEADER_BYTES,
    READ,
    START,
    WINDOW,
)

LARGEST_BYTES = HEADER_BYTES + 4 * FRAME_WORDS + CRC_BYTES
BEGIN = (1 << 32) - 1  # of a CRC register


def crc_after(register, byte) -> Cat:
    """CRC-32's register after a byte. Each bit is the exclusive or of a set of bits of the two."""
    bits = [{place} for place in range(32)]
    for number in range(8):
        last = bits[0] ^ {32 + number}
        bits = [
            (bits[place + 1] if place < 31 else set()) ^ (last if CRC_POLYNOMIAL >> place & 1 else set())
            for place in range(32)
        ]
    given = Cat(register, byte)
    return Cat(*(reduce(xor, (given[place] for place in sorted(places))) for places in bits))


class SerialBridge(LiteXModule):
    """`sink`, `source`: streams of bytes. `wishbone`: the master. `idle`: between a frame and the next."""

    def __init__(self, clock_hz: int):
        self.sink, self.source = stream.Endpoint([("data", 8)]), stream.Endpoint([("data", 8)])
        self.idle = Signal()

        # # #

        sink, source = self.sink, self.source
        self.bus = bus = Stream2Wishbone(clk_freq=clock_hz)
        self.wishbone = bus.wishbone
        self.read = read = stream.Buffer(bus.source.description, pipe_valid=True, pipe_ready=True)
        frame = Memory(8, LARGEST_BYTES, name="frame")  # no attribute: LiteX would map it among the registers
        arrival, departure = (frame.get_port(write_capable=writes, mode=READ_FIRST) for writes in (True, False))
        self.specials += frame, arrival, departure
        self.fsm = fsm = FSM(reset_state="IDLE")
        self.silence = silence = WaitTimer(int(clock_hz / 10))

        # What arrives.
        count, escaped = Signal(max=LARGEST_BYTES + 2), Signal()
        number, command, tail, crc = Signal(8), Signal(8), Signal(8 * CRC_BYTES), Signal(32)
        byte = Signal(8)
        self.comb += [
            byte.eq(sink.data ^ Mux(escaped, ESCAPED_BIT, 0)),
            arrival.adr.eq(count),
            arrival.dat_w.eq(byte),
            silence.wait.eq(fsm.ongoing("RECEIVE") & ~sink.valid),
            self.idle.eq(fsm.ongoing("IDLE")),
        ]
        begin = [NextValue(count, 0), NextValue(escaped, 0), NextValue(crc, BEGIN), NextState("RECEIVE")]
        fsm.act("IDLE", sink.ready.eq(1), If(sink.valid & (sink.data == START), *begin))
        fsm.act(
            "RECEIVE",
            sink.ready.eq(1),
            If(silence.done, NextState("IDLE")),
            If(
                sink.valid,
                If(sink.data == START, *begin)
                .Elif(sink.data == END, NextState("JUDGE"))
                .Elif(sink.data == ESCAPE, NextValue(escaped, 1))
                .Elif(
                    count <= LARGEST_BYTES,
                    arrival.we.eq(count < LARGEST_BYTES),
                    NextValue(escaped, 0),
                    NextValue(count, count + 1),
                    NextValue(crc, crc_after(crc, byte)),
                    NextValue(tail, Cat(tail[8:], byte)),
                    If(count == 0, NextValue(number, byte)),
                    If(count == 1, NextValue(command, byte)),
                ),
            ),
        )

        # What is done about it.
        greeted, expected, age, place = Signal(), Signal(8), Signal(8), Signal.like(count)
        whole = (crc == CRC_RESIDUE) & (count >= HEADER_BYTES + CRC_BYTES) & (count <= LARGEST_BYTES)
        self.comb += [
            age.eq(expected - number),
            departure.adr.eq(place),
            bus.sink.data.eq(departure.dat_r),
            bus.source.connect(read.sink),
        ]
        fsm.act(
            "JUDGE",
            NextValue(escaped, 0),
            NextValue(crc, ~tail),
            NextValue(place, 1),
            NextState("IDLE"),
            If(
                whole & (command == GREETING),
                NextValue(greeted, 1),
                NextValue(expected, number + 1),
                NextState("ANSWER"),
            )
            .Elif(
                whole & greeted & (age == 0),
                NextValue(expected, expected + 1),
                NextState("FETCH"),
            )
            .Elif(
                whole & greeted & (age <= WINDOW),
                If(command == READ, NextState("FETCH")).Else(NextState("ANSWER")),
            ),
        )
        fsm.act("FETCH", NextState("CARRY-OUT"))
        fsm.act(
            "CARRY-OUT",
            bus.sink.valid.eq(1),
            If(
                bus.sink.ready,
                NextValue(place, place + 1),
                If(place == count - CRC_BYTES - 1, NextState("ANSWER")).Else(NextState("FETCH")),
            ),
        )

        # The answer.
        left, checksum = Signal(max=CRC_BYTES), Signal(8)
        self.comb += checksum.eq(~crc[:8])
        fsm.act(
            "ANSWER",
            source.valid.eq(1),
            source.data.eq(START),
            NextValue(left, CRC_BYTES - 1),
            If(source.ready, NextState("DATA")),
        )
        fsm.act(
            "DATA",
            *self.escape(
                read.source.valid,
                read.source.data,
                escaped,
                read.source.ready.eq(1),
                NextValue(crc, crc_after(crc, read.source.data)),
            ),
            If(bus.fsm.ongoing("RECEIVE-CMD") & ~read.source.valid, NextState("SUM")),
        )
        fsm.act(
            "SUM",
            *self.escape(
                1,
                checksum,
                escaped,
                NextValue(crc, crc[8:]),
                NextValue(left, left - 1),
                If(left == 0, NextState("END")),
            ),
        )
        fsm.act("END", source.valid.eq(1), source.data.eq(END), If(source.ready, NextState("IDLE")))

    def escape(self, valid, byte, escaped, *taken) -> list:
        """Statements that offer a byte to `source`, as two if it must be; `taken` are carried out with its last."""
        special = (byte == START) | (byte == END) | (byte == ESCAPE)
        return [
            self.source.valid.eq(valid),
            If(
                special & ~escaped,
                self.source.data.eq(ESCAPE),
                If(valid & self.source.ready, NextValue(escaped, 1)),
            ).Else(
                self.source.data.eq(byte ^ Mux(escaped, ESCAPED_BIT, 0)),
                If(valid & self.source.ready, NextValue(escaped, 0), *taken),
            ),
        ]
