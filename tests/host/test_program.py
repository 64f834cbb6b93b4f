"""The program file: what was saved comes back, and nothing but that; the packing of pictures refuses what is wrong."""

import hashlib
import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
from helpers.changed_stage import with_stage
from helpers.small_model import small_model, small_pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.overlay.errors import InputError, ProgramError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.layout import PlaneLayout
from sentei.overlay.program import FILE_VERSION, MAGIC, PREFIX, LayerInfo, Program, Stage, TensorInfo

REMEDIES = ("copy it again", "compile the model again with `sentei compile`")
FLIPS = 600
finite = st.floats(-1e6, 1e6, width=32)
count = st.integers(0, 1 << 40)


@pytest.fixture(scope="module")
def program():
    return compile_network(load(small_model()), PRESETS["8x8"], ("a", "b", "ç", "d", "e"))


@pytest.fixture(scope="module")
def content(program):
    return program.to_bytes()


def refused(content: bytes, *texts: str) -> str:
    """The text of the ProgramError that loading `content` raises; it names the file, each of `texts` and a remedy."""
    __tracebackhide__ = True
    with pytest.raises(ProgramError) as info:
        Program.from_bytes(content, "model.sentei")
    said = str(info.value)
    assert said.startswith("model.sentei: ") and said.endswith(REMEDIES), said
    assert all(text in said for text in texts), said
    return said


def with_header(program: Program, change) -> bytes:
    """The file of a program whose header went through `change`, with all lengths and the checksum right."""
    header = json.dumps(change(json.loads(json.dumps(program.header())))).encode()
    return seal(header, program.data)


def of_stage(change):
    """A change of a header's first stage, for `with_header`."""
    return lambda values: values | {"stages": [change(values["stages"][0]), *values["stages"][1:]]}


def seal(header: bytes, data: bytes) -> bytes:
    digest = hashlib.sha256(header + data).digest()
    version = struct.unpack_from("<I", Program.to_bytes(SMALLEST), 8)[0]
    return PREFIX.pack(MAGIC, version, len(header), len(data), digest) + header + data


def small_program(geometry=PRESETS["8x8"], data=bytes(16), **changes) -> Program:
    layout = PlaneLayout(2, 3, 4, 4, False, geometry.lanes, (), 4, 3)
    stage = Stage(
        data_offset=0,
        data_bytes=len(data),
        instruction_load_words=2,
        prologue=0,
        body=0,
        trace=0,
        inputs=(TensorInfo("x", layout, 0),),
        input_bytes=layout.words * geometry.word_bytes,
        outputs=(TensorInfo("y", layout, 0),),
        output_bytes=layout.words * geometry.word_bytes,
        trace_tensors=(),
        trace_bytes=0,
        patches_a_job=1,
        layers=(),
    )
    program = Program("small", geometry, data, (stage,), 1.0, (1.0, 1.0), (0.0, 0.0))
    of_stage = {name: value for name, value in changes.items() if name in vars(stage)}
    rest = {name: value for name, value in changes.items() if name not in of_stage}
    return replace(with_stage(program, **of_stage), **rest)


SMALLEST = small_program()
programs = st.builds(
    small_program,
    geometry=st.sampled_from([*PRESETS.values(), replace(PRESETS["8x8"], stream_words=512, bus_bits=128)]),
    data=st.binary(min_size=16, max_size=200),
    name=st.text(max_size=20),
    prologue=count,
    body=count,
    trace=count,
    input_scale=finite,
    output_scale=st.lists(finite, max_size=4).map(tuple),
    output_offset=st.lists(finite, max_size=4).map(tuple),
    layers=st.lists(st.builds(LayerInfo, st.text(), st.text(), st.text(), count, count, finite), max_size=3).map(tuple),
    classes=st.lists(st.text(), max_size=3).map(tuple),
)


# Layouts


@pytest.mark.parametrize("seed", range(40))
def test_what_a_layout_packs_it_unpacks(seed):
    """Every value of every picture has a place of its own."""
    rng = np.random.default_rng(seed)
    channels, height, width, lanes = (int(v) for v in (*rng.integers(1, 9, 3), rng.choice([8, 32])))
    splits = tuple((int(rows), int(columns)) for rows, columns in rng.integers(1, 4, (int(rng.integers(0, 3)), 2)))
    modulus = [int(np.prod([split[axis] for split in splits], initial=1)) for axis in (0, 1)]
    pitch, rows = -(-width // modulus[1]) + int(rng.integers(0, 3)), -(-height // modulus[0])
    batch = int(rng.integers(1, 6))
    bits, signed = int(rng.integers(1, 9)), bool(rng.integers(0, 2))
    layout = PlaneLayout(
        channels, height, width, bits, signed, lanes, splits, pitch, 0, batch, rows * pitch + int(rng.integers(0, 3))
    )
    layout = replace(layout, packed=bool(rng.integers(0, 2)))
    layout = replace(layout, stride=layout.plane_words + int(rng.integers(0, 2)))
    values = rng.integers(layout.low, layout.high + 1, (3 * batch, channels, height, width))
    packed = layout.pack(values, lanes // 2)
    assert packed.shape == (3, layout.words * lanes // 2)
    np.testing.assert_array_equal(layout.unpack(packed, lanes // 2), values, err_msg=f"seed {seed}")


# Saving and loading


@settings(max_examples=150, deadline=None)
@given(program=programs)
def test_any_program_comes_back_as_it_was(program):
    assert Program.from_bytes(program.to_bytes()) == program


def test_a_compiled_program_comes_back_from_its_file(program, tmp_path):
    path = tmp_path / "model.sentei"
    program.save(path)
    assert Program.load(path) == program and Program.load(str(path)) == program
    assert path.stat().st_mode & 0o777 == 0o644


def test_equal_programs_make_equal_files(program, content):
    assert compile_network(load(small_model()), PRESETS["8x8"], program.classes).to_bytes() == content


def test_saving_again_replaces_the_file(program, tmp_path):
    path = tmp_path / "model.sentei"
    path.write_text("something else")
    program.save(path)
    assert Program.load(path) == program and os.listdir(tmp_path) == ["model.sentei"]


class FullDisk:
    """A file that takes the first 100 bytes."""

    def __init__(self, handle, mode):
        self.handle = handle

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.handle)

    def write(self, content):
        os.write(self.handle, content[:100])
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_old_file(program, tmp_path, monkeypatch):
    path = tmp_path / "model.sentei"
    SMALLEST.save(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", FullDisk)
        with pytest.raises(ProgramError, match=r"model.sentei: cannot be written: No space left on device; write it"):
            program.save(path)
    assert Program.load(path) == SMALLEST and os.listdir(tmp_path) == ["model.sentei"]


@pytest.mark.parametrize("function", ["chmod", "replace"])
def test_an_interrupted_save_leaves_the_old_file(program, tmp_path, monkeypatch, function):
    path = tmp_path / "model.sentei"
    SMALLEST.save(path)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, function, interrupt)
        with pytest.raises(KeyboardInterrupt):
            program.save(path)
    assert Program.load(path) == SMALLEST and os.listdir(tmp_path) == ["model.sentei"]


def test_a_path_that_cannot_be_used_is_named(program, tmp_path):
    with pytest.raises(ProgramError, match=r"none/model.sentei: cannot be written: No such file or directory; write"):
        program.save(tmp_path / "none" / "model.sentei")
    with pytest.raises(ProgramError, match=r"none.sentei: cannot be read: No such file or directory; compile"):
        Program.load(tmp_path / "none.sentei")
    with pytest.raises(ProgramError, match=r"cannot be read: Is a directory; compile"):
        Program.load(tmp_path)


# Damage


def test_an_empty_file_is_refused():
    refused(b"", "is not a Sentei program file")


def test_every_truncation_is_refused(content):
    random = np.random.default_rng(1)
    lengths = [*range(PREFIX.size + 40), *random.integers(PREFIX.size, len(content), 200), len(content) - 1]
    for length in lengths:
        cause = "is not a Sentei program" if length < PREFIX.size else f"has {length} bytes, its header says"
        refused(content[:length], cause)


@pytest.mark.parametrize("extra", [b"\0", b"\n", bytes(64), b"SENTEI\r\n" * 20])
def test_trailing_bytes_are_refused(content, extra):
    refused(content + extra, f"has {len(content) + len(extra)} bytes, its header says {len(content)}")


def cause_at(position: int) -> str:
    """What is said of damage to the byte at `position`."""
    borders = ((8, "is not a Sentei program file"), (12, "has format version"), (24, "its header says"))
    return next((cause for end, cause in borders if position < end), "is damaged, its checksum does not match")


def test_every_flipped_bit_of_the_prefix_is_refused(content):
    for bit in range(8 * PREFIX.size):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(bytes(damaged), cause_at(bit // 8))


@pytest.mark.parametrize("part", ["header", "data"])
def test_flipped_bits_are_refused(content, program, part):
    border = len(content) - len(program.data)
    low, high = (PREFIX.size, border) if part == "header" else (border, len(content))
    seed = len(part)
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    for bit in [8 * low, 8 * high - 1, *(int(b) for b in random.integers(8 * low, 8 * high, FLIPS))]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(bytes(damaged), "is damaged, its checksum does not match; copy it again")


def test_swapped_blocks_are_refused(content):
    half = len(content) // 2
    refused(content[:half] + content[half + 512 :] + content[half : half + 512], "checksum")


@pytest.mark.parametrize("change", [(b"\r\n", b"\n"), (b"\n", b"\r\n")], ids=["to-unix", "to-dos"])
def test_a_transfer_that_changes_line_ends_is_refused(content, change):
    refused(content.replace(*change), "is not a Sentei program file")


@pytest.mark.parametrize("version", [0, FILE_VERSION - 1, FILE_VERSION + 1, 0xFFFFFFFF])
def test_another_version_is_refused_with_both_numbers(content, version):
    damaged = content[:8] + struct.pack("<I", version) + content[12:]
    refused(damaged, f"has format version {version}, this software reads {FILE_VERSION}; compile the model again")


def test_other_files_are_refused():
    for text in (b"\x7fELF" + bytes(100), b"PK\x03\x04" + bytes(200), b"SENTEI\n" + bytes(100), MAGIC):
        refused(text, "is not a Sentei program file; compile the model again")


# Headers whose checksum is right and whose content is not


@pytest.mark.parametrize(
    "header",
    [b"", b"\xff\xfe", b"{", b"null", b"5", b"[]", b'"text"', b"{}", b"[" * 100_000, b"NaN"],
    ids=["empty", "binary", "open", "null", "number", "list", "text", "object", "deep", "nan"],
)
def test_a_header_that_is_no_description_is_refused(program, header):
    refused(seal(header, program.data), "its header does not describe a program (")


def test_every_missing_field_is_refused(program):
    for whole, where in ((program.header(), lambda change: change), (program.stages[0].to_dict(), of_stage)):
        for name in whole:
            change = where(lambda values, name=name: {k: v for k, v in values.items() if k != name})
            refused(with_header(program, change), "does not describe a program", name)


def test_unknown_fields_are_refused(program):
    for where in (lambda change: change, of_stage):
        change = where(lambda values: values | {"extra": 1})
        refused(with_header(program, change), "does not describe a program", "extra")


@pytest.mark.parametrize("value", [None, "text", [], {}, 1.5, True])
def test_fields_of_a_wrong_type_are_refused(program, value):
    for name in ("fingerprint", "geometry", "stages"):
        refused(with_header(program, lambda values, name=name: values | {name: value}), "does not describe a program")
    for name in ("inputs", "outputs", "trace_tensors", "layers", "output_bytes", "body", "data_offset"):
        if value in ([], {}) and name in ("trace_tensors", "layers"):
            continue
        change = of_stage(lambda values, name=name: values | {name: value})
        refused(with_header(program, change), "does not describe a program")


def test_sizes_that_do_not_fit_the_data_are_refused(program):
    words = len(program.data) // 8 + 1
    for values, text in (
        ({"instruction_load_words": words}, f"{words} instruction words do not lie in its data"),
        ({"instruction_load_words": 0}, "0 instruction words do not lie in its data"),
        ({"output_bytes": 1}, "does not lie in its 1 bytes"),
        ({"trace_bytes": 64}, "does not lie in its 64 bytes"),
        ({"prologue": -1}, "prologue must be a number, not -1"),
        ({"patches_a_job": 2}, "a job must do one of 1 patches, or all, not 2"),
        ({"data_offset": 64}, "at 64 do not lie in its data"),
        ({"data_bytes": len(program.data) + 1}, "at 0 do not lie in its data"),
    ):
        change = of_stage(lambda stage, values=values: stage | values)
        refused(with_header(program, change), text)


def test_stages_that_do_not_follow_one_another_are_refused(program):
    twice = with_header(program, lambda values: values | {"stages": values["stages"] * 2})
    refused(twice, "two of its stages make the same tensor")
    second = dict(program.stages[0].to_dict(), inputs=[{**program.stages[0].to_dict()["inputs"][0], "name": "else"}])
    unknown = with_header(program, lambda values: values | {"stages": [*values["stages"], second]})
    refused(unknown, "a stage takes 'else', which none before it makes")


@pytest.mark.parametrize(
    "name, change, text",
    [
        ("inputs", {"offset_bytes": 0.0}, "must lie behind the one before it, not at 0.0"),
        ("outputs", {"offset_bytes": 1}, "must lie behind the one before it, not at 1"),
        ("outputs", {"correction": [1, 2]}, "must have a correction for each channel"),
    ],
)
def test_tensors_that_do_not_lie_where_they_can_are_refused(program, name, change, text):
    def changed(stage):
        first, *others = stage[name]
        return stage | {name: [first | change, *others]}

    refused(with_header(program, of_stage(changed)), text)


def test_buffers_larger_than_their_tensors_are_refused(program):
    large = with_header(program, of_stage(lambda stage: stage | {"input_bytes": 1 << 50}))
    refused(large, "bytes are more than its tensors need")


def test_other_formats_are_refused_with_both_fingerprints(program):
    damaged = with_header(program, lambda values: values | {"fingerprint": 0x12345678})
    refused(damaged, f"(fingerprint 0x12345678, this software's {program.fingerprint:#010x}); compile the model again")


def test_a_geometry_that_does_not_match_the_fingerprint_is_refused(program):
    def widen(values):
        return values | {"geometry": values["geometry"] | {"lanes": 16}}

    refused(with_header(program, widen), "was compiled with other formats", f"{program.fingerprint:#010x}")


def test_an_impossible_geometry_is_refused_with_its_rule(program):
    def break_rule(values):
        return values | {"geometry": values["geometry"] | {"lanes": 7}}

    refused(with_header(program, break_rule), "lanes must be a power of two from 4 to 64, not 7")


# Pictures


@pytest.mark.parametrize(
    "images, message",
    [
        (small_pictures(1)[0], r"shape \(N, 1, 10, 12\), N at least 1, not \(1, 10, 12\)"),
        (small_pictures(1).swapaxes(2, 3), r"shape \(N, 1, 10, 12\), N at least 1, not \(1, 1, 12, 10\)"),
        (small_pictures(0), r"N at least 1, not \(0, 1, 10, 12\)"),
        (np.zeros((2, 3, 10, 12), int), r"not \(2, 3, 10, 12\)"),
        (7, r"not \(\)"),
        ([[[[1, 2]]], [[[1]]]], r"shape \(N, 1, 10, 12\), not different ones"),
        (small_pictures(1) / 255, "must be integers \\(8 bits\\), not float64; do not normalise"),
        (small_pictures(1).astype(np.float32), "not float32; do not normalise"),
        (small_pictures(1) > 7, "must be integers .* not bool"),
        (small_pictures(1).astype(object), "must be integers .* not object"),
        (small_pictures(1) + 1 - small_pictures(1).min() + 255, "values must be 0 to 255, not 256 to "),
        (small_pictures(1) - 256, "values must be 0 to 255, not -"),
        (np.full((1, 1, 10, 12), 1 << 63, np.uint64), "values must be 0 to 255, not 9223372036854775808"),
    ],
)
def test_wrong_pictures_are_refused(program, images, message):
    with pytest.raises(InputError, match=message):
        program.pack_input(images)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint64, ">i4"])
def test_pictures_of_every_integer_type_pack_alike(program, dtype):
    images = small_pictures(3)
    packed = program.pack_input(images.astype(dtype))
    assert packed.shape == (3, program.input_bytes) and packed.dtype == np.uint8
    assert np.array_equal(program.input.unpack(packed, program.geometry.word_bytes), images)


def test_signed_pictures_have_their_own_range():
    program = with_stage(SMALLEST, inputs=(TensorInfo("x", replace(SMALLEST.input, signed=True), 0),))
    for value in (-8, 7):
        program.pack_input(np.full((1, 2, 3, 4), value))
    for value in (-9, 8):
        with pytest.raises(InputError, match=f"values must be -8 to 7, not {value} to {value}"):
            program.pack_input(np.full((1, 2, 3, 4), value))
