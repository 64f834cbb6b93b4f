"""A program made by hand: copies the picture through activation memory, so that the output is the picture."""

from sentei.overlay.fields import Layout
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import EVERYTHING, INSTRUCTION, INSTRUCTION_LOAD_WORDS, Base, Memory, Opcode
from sentei.overlay.layout import PlaneLayout
from sentei.overlay.program import Program, Stage, TensorInfo

CHANNELS, HEIGHT, WIDTH = 3, 7, 5


def encode(instructions: list[dict], layout: Layout = INSTRUCTION) -> bytes:
    return b"".join(layout.pack(**fields).to_bytes(8 * INSTRUCTION_LOAD_WORDS, "little") for fields in instructions)


def copy_program(
    geometry: Geometry, input_offset: int = 0, output_offset: int = 0, opcode: int = Opcode.END
) -> Program:
    """`input_offset` and `output_offset` send the transfers elsewhere; `opcode` stands at the end of the body."""
    pitch = WIDTH + 1
    words = -(-HEIGHT * pitch // geometry.lanes)
    layout = PlaneLayout(CHANNELS, HEIGHT, WIDTH, 4, False, geometry.lanes, (), pitch, words)
    count = layout.words
    load = {"opcode": Opcode.LOAD, "memory": Memory.ACTIVATION, "address": 5, "count": count, "base": Base.INPUT}
    store = {"opcode": Opcode.STORE, "address": 5, "count": count, "base": Base.OUTPUT}
    wait = {"opcode": Opcode.SYNC, "units": EVERYTHING}
    instructions = [
        {"opcode": Opcode.END},
        wait,
        load | {"offset": input_offset},
        wait,
        store | {"offset": output_offset},
        {"opcode": opcode},
    ]
    data = encode(instructions)
    tensor = TensorInfo("picture", layout, 0)
    stage = Stage(
        data_offset=0,
        data_bytes=len(data),
        instruction_load_words=len(data) // 8,
        prologue=0,
        body=1,
        trace=1,
        inputs=(tensor,),
        input_bytes=count * geometry.word_bytes,
        outputs=(tensor,),
        output_bytes=count * geometry.word_bytes,
        trace_tensors=(tensor,),
        trace_bytes=count * geometry.word_bytes,
        patches_a_job=1,
        layers=(),
    )
    return Program("copy", geometry, data, (stage,), 1.0, (0.5,) * CHANNELS, (1.0,) * CHANNELS)
