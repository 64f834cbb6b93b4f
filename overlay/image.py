"""A memory image: a program and pictures, as the soft CPU's firmware finds them in main memory or in flash.

32-bit words, little endian, the first ones named in `WORDS`; all offsets are in bytes from the image's begin, which
lies at a multiple of 64. The firmware runs all pictures and prints their labels: the class of the largest output.

    | header | program | classes: CLASS_WORDS each | names, each ended by a zero byte | pictures | room for the outputs,
    and for a word each: its cycles |
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from sentei.overlay.errors import InputError
from sentei.overlay.geometry import ALIGNMENT_BYTES
from sentei.overlay.program import Program

MAGIC = 0x314D4953  # "SIM1"
WORDS = (
    "magic",
    "crc",  # CRC-32 of all that follows
    "bytes",  # of the whole image, without the room behind it
    "fingerprint",  # of the geometry that the program is for
    "program",  # offset
    "program_words",  # register program_words
    "prologue",  # instruction to start at, once
    "body",  # instruction to start at, for each picture
    "classes",  # how many
    "class_table",  # offset
    "names",  # offset
    "planes",  # nibble planes of an output, lowest first
    "plane_nibbles",  # from one plane to the next
    "sign_shift",  # an output's unused high bits, of 32; 0 if outputs are not two's complement
    "bias",  # what is subtracted from every output
    "pictures",  # how many
    "picture_bytes",  # from one to the next
    "picture_table",  # offset
    "outputs",  # offset of the room for outputs
    "output_bytes",  # from one to the next
    "cycles",  # offset of the room for cycles
    "memory_bytes",  # of the image and of all room
)
CLASS_WORDS = (
    "nibble",  # place of the lowest nibble in an output, even ones being the low half of a byte
    "correction",  # subtracted from the integer, too
    "scale",  # float32: logit = integer * scale + offset
    "offset",
)


HEADER_BYTES = -(-4 * len(WORDS) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def memory_image(program: Program, pictures: np.ndarray, names: tuple[str, ...]) -> bytes:
    """The image of a classifier and pictures, integers (N, C, H, W). Classes without a name get their number."""
    layout, stage = program.output.layout, program.stages[0]
    if program.jobs != 1:
        raise InputError(
            f"the firmware runs classifiers that do a picture in one job, not in {program.jobs}: smaller pictures, or "
            "a geometry with more activation_words, need fewer"
        )
    if layout.height != 1 or layout.width != 1 or program.pictures != 1:
        shape = (layout.channels, layout.height, layout.width)
        raise InputError(
            "the firmware runs classifiers, one picture a job: outputs must be (classes, 1, 1), not "
            f"{shape}, and a batch 1, not {program.pictures}"
        )
    word_nibbles = 2 * program.geometry.word_bytes
    corrections = program.output.correction or (0,) * layout.channels
    table = b"".join(
        struct.pack(
            "<Iiff",
            2 * program.output.offset_bytes + number * layout.nibbles * layout.stride * word_nibbles,
            correction,
            scale,
            offset,
        )
        for number, (correction, scale, offset) in enumerate(
            zip(corrections, program.output_scale, program.output_offset, strict=True)
        )
    )
    labels = [*names, *map(str, range(len(names), layout.channels))]
    packed = program.pack_input(pictures)
    step, output_step = _aligned(packed.shape[1]), _aligned(program.output_bytes)
    pieces = {
        "program": program.data,
        "class_table": table,
        "names": b"".join(name.encode() + b"\0" for name in labels),
        "picture_table": np.pad(packed, ((0, 0), (0, step - packed.shape[1]))).tobytes(),
    }
    offsets, content = {}, b""
    for name, piece in pieces.items():
        offsets[name] = HEADER_BYTES + len(content)
        content += piece + bytes(_aligned(len(piece)) - len(piece))
    size = HEADER_BYTES + len(content)
    cycles = size + len(pictures) * output_step
    values = offsets | {
        "magic": MAGIC,
        "bytes": size,
        "crc": 0,
        "fingerprint": program.fingerprint,
        "program_words": stage.instruction_load_words,
        "prologue": stage.prologue,
        "body": stage.body,
        "classes": layout.channels,
        "planes": layout.nibbles,
        "plane_nibbles": layout.stride * word_nibbles,
        "sign_shift": 32 - layout.bits if program.output.correction else 0,
        "bias": layout.bias,
        "pictures": len(pictures),
        "picture_bytes": step,
        "outputs": size,
        "output_bytes": output_step,
        "cycles": cycles,
        "memory_bytes": cycles + 4 * len(pictures),
    }
    header = struct.pack(f"<{len(WORDS)}I", *(values[name] for name in WORDS))
    return sealed(header + bytes(HEADER_BYTES - len(header)) + content)


def sealed(image: bytes) -> bytes:
    """The image with the CRC that it must have."""
    begin = 4 * WORDS.index("crc")
    return image[:begin] + struct.pack("<I", zlib.crc32(image[begin + 4 :])) + image[begin + 4 :]


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
