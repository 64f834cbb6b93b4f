"""What both ends of a board's serial port must agree on: frames whose bytes are checked.

    START | request | CRC | END        request: number | command | words | word address (4) | data (4 each, to write)
    START | answer  | CRC | END        answer:  data (4 each, of a read)

Words are most significant byte first, a CRC (CRC-32, as in Ethernet) least significant first. START, END and ESCAPE
occur nowhere else: ESCAPE and the byte with ESCAPED_BIT flipped stand for it. What is between frames is text, of the
terminal or of the firmware.

The SoC carries out what arrives whole, in the order of the numbers (modulo 256), each write once, and answers it. What
is damaged, or comes after something that did not arrive, has no answer: it must be sent again. A request that was
answered already, one of the last WINDOW, is answered again. GREETING says that numbers begin anew after its own; until
then nothing is carried out. The CRC of an answer goes on from that of its request, so that it fits no other.
"""

BAUD = 1_000_000
SIMULATED_FRAME_CYCLES = 100_000  # after which a simulated SoC forgets half a frame; a board waits for 0.1 s

START, END, ESCAPE = 0x01, 0x04, 0x10  # control characters that nobody types
ESCAPED_BIT = 0x20
GREETING, WRITE, READ = 0x00, 0x01, 0x02  # commands; addresses count up
HEADER_BYTES = 7  # number, command, words, address
CRC_BYTES = 4
CRC_POLYNOMIAL = 0xEDB88320  # reflected
CRC_RESIDUE = 0xDEBB20E3  # of a CRC register, after the bytes of its own complement
FRAME_WORDS = 128
WINDOW = 3  # requests on their way; together less than the 2 KiB that the smallest known buffer holds
