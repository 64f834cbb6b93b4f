"""The program file: a compiled model, as the driver loads it.

    offset  bytes
    0       8       magic "SENTEI\\r\\n" (a transfer that changes line ends breaks it)
    8       4       format version, little endian
    12      4       length h of the header
    16      8       length d of the data
    24      32      SHA-256 of everything that follows
    56      h       header: JSON (UTF-8), see `Program`
    56+h    d       data: what is copied to main memory; of each stage the instructions, then what LOAD reads

A stage's addresses are relative to its part of the data, so that it runs wherever it is placed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path

import numpy as np

from sentei.overlay.errors import InputError, ProgramError
from sentei.overlay.geometry import ALIGNMENT_BYTES, Geometry
from sentei.overlay.instructions import fingerprint
from sentei.overlay.layout import PlaneLayout, Tiling
from sentei.overlay.tail import OutputTail

FILE_VERSION = 6  # of the header; what the gateware reads has the fingerprint
MAGIC = b"SENTEI\r\n"
PREFIX = struct.Struct("<8sIIQ32s")
REMEDY = "compile the model again with `sentei compile`"


@dataclass(frozen=True)
class LayerInfo:
    """What reports say of a layer, for one picture.

    A MAC survives pruning if its slot is kept, that is, if any of the output channels that share the slot has a weight
    there. 8-bit operands count as their nibble passes.
    """

    name: str
    kind: str
    output: str  # tensor
    macs: int  # surviving
    dense_macs: int
    bound_cycles: float  # surviving MACs / array size


@dataclass(frozen=True)
class Doubt:
    """A layer that computes what its model means, while float32 execution of the model may decide otherwise, for
    `sums` of its accumulators (counted for each channel, level and residual) in so many `channels`.

    Of these, `nearest` lie between what is meant and the nearest threshold that the array can express: they come out a
    level beside it. `ties` lie exactly between two levels of a residual addition: the model rounds them to even, the
    array up. `outputs`: its sums are handed out whole, and what float32 makes of them differs by its rounding.
    """

    layer: str
    sums: int
    channels: int
    ties: int = 0
    outputs: bool = False
    nearest: int = 0


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the input or output buffer.

    A wide output's sums are two's complement; `correction` (one a channel, empty otherwise) is subtracted from them.
    `layout` is that of a patch, if there is a `tiling`.
    """

    name: str
    layout: PlaneLayout
    offset_bytes: int
    correction: tuple[int, ...] = ()
    tiling: Tiling | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture's."""
        whole = (self.layout.height, self.layout.width) if self.tiling is None else self.tiling.whole
        return self.layout.channels, *whole

    def pack(self, values: np.ndarray, word_bytes: int) -> np.ndarray:
        """Integers (N, C, H, W) to uint8 (jobs, bytes of a tensor)."""
        if self.tiling is not None:
            values = self.tiling.cut(values, self.layout.height, self.layout.width)
        return self.layout.pack(values, word_bytes)

    def read(self, data: np.ndarray, word_bytes: int) -> np.ndarray:
        """uint8 (jobs, output bytes) to int32 (N, C, H, W)."""
        end = self.offset_bytes + self.layout.words * word_bytes
        values = self.layout.unpack(data[:, self.offset_bytes : end], word_bytes)
        if self.correction:
            unused = 32 - self.layout.bits
            values = (values << unused >> unused) - np.array(self.correction, np.int32)[:, None, None]
        return values if self.tiling is None else self.tiling.join(values)


TENSORS = ("inputs", "outputs", "trace_tensors")  # of a Stage


@dataclass(frozen=True)
class Stage:
    """A part of a network that runs at a time, from some tensors to others, and its part of a program's data.

    `inputs` lie side by side in a job's input buffer, `outputs` in its output buffer; those of `patches_a_job` one
    behind the other. `layers` are its own. Entries are instructions: `prologue`, once, moves weights on chip; `body`
    does a job; `trace` does a patch, or what a job does without, and stores every layer's output, `trace_tensors` tells
    where.
    """

    data_offset: int
    data_bytes: int
    instruction_load_words: int
    prologue: int
    body: int
    trace: int
    inputs: tuple[TensorInfo, ...]
    input_bytes: int
    outputs: tuple[TensorInfo, ...]
    output_bytes: int
    trace_tensors: tuple[TensorInfo, ...]
    trace_bytes: int
    patches_a_job: int  # one, or all
    layers: tuple[LayerInfo, ...]

    @property
    def input(self) -> PlaneLayout:
        return self.inputs[0].layout

    @property
    def output(self) -> TensorInfo:
        return self.outputs[0]

    @property
    def tiling(self) -> Tiling | None:
        """Of the input."""
        return self.inputs[0].tiling

    @property
    def patches(self) -> int:
        """Patches that `input.pictures` are done in; 1 if they are done whole."""
        return 1 if self.tiling is None else len(self.tiling)

    @property
    def jobs(self) -> int:
        """Jobs that `input.pictures` need."""
        return self.patches // self.patches_a_job

    @property
    def job_input_bytes(self) -> int:
        """Of all patches of a job; as `job_output_bytes`."""
        return self.patches_a_job * self.input_bytes

    @property
    def job_output_bytes(self) -> int:
        return self.patches_a_job * self.output_bytes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture."""
        return self.inputs[0].shape

    def share(self, figure: float, of_patch: bool = False) -> float:
        """A picture's share of a job's figure, or of that of all its patches' jobs; or of a patch's."""
        pictures, count = self.input.pictures, self.patches if of_patch else self.jobs
        return figure * count / pictures if count != pictures else figure

    def pack(self, values: Mapping[str, np.ndarray], word_bytes: int) -> np.ndarray:
        """Each input's integers (N, C, H, W), by name, N a multiple of `input.pictures`, to uint8 (jobs, bytes)."""
        packed = self.pack_patches(values, word_bytes)
        return packed.reshape(len(packed) // self.patches_a_job, -1)

    def pack_patches(self, values: Mapping[str, np.ndarray], word_bytes: int) -> np.ndarray:
        """The same to uint8 (patches, bytes)."""
        parts = [tensor.pack(values[tensor.name], word_bytes) for tensor in self.inputs]
        packed = np.zeros((len(parts[0]), self.input_bytes), np.uint8)
        for tensor, part in zip(self.inputs, parts, strict=True):
            packed[:, tensor.offset_bytes : tensor.offset_bytes + part.shape[1]] = part
        return packed

    def unpack(self, data: np.ndarray, word_bytes: int) -> dict[str, np.ndarray]:
        """uint8 (jobs, bytes) to each output's int32 (N, C, H, W)."""
        patches = data.reshape(len(data) * self.patches_a_job, self.output_bytes)
        return {tensor.name: tensor.read(patches, word_bytes) for tensor in self.outputs}

    def to_dict(self) -> dict:
        values = dict(self.__dict__)
        for name in TENSORS:
            values[name] = [_tensor_to_dict(tensor) for tensor in values[name]]
        values["layers"] = [layer.__dict__ for layer in self.layers]
        return values

    @staticmethod
    def from_dict(values: dict) -> Stage:
        changed = {name: tuple(_tensor_from_dict(tensor) for tensor in values[name]) for name in TENSORS}
        return Stage(**values | changed | {"layers": tuple(LayerInfo(**layer) for layer in values["layers"])})


@dataclass(frozen=True)
class Program:
    """A compiled model.

    A device runs it like this: copy `data` to main memory; then, for each of the `stages`, a job at its `prologue` with
    the load flag, and a job at its `body` for each picture (or as many as its input has), or, with a `tiling`, for each
    patch of a picture or for all of them. What stages make of a picture is the input of later ones. With one stage the
    prologue runs once.
    """

    name: str
    geometry: Geometry
    data: bytes
    stages: tuple[Stage, ...]
    input_scale: float
    output_scale: tuple[float, ...]
    output_offset: tuple[float, ...]
    classes: tuple[str, ...] = field(default=())
    doubts: tuple[Doubt, ...] = field(default=())
    tail: OutputTail | None = None  # None: the model has its output as (N, C, H, W), or flat
    # The integer of each of 256 pixel values, for all channels or each; None: the pixel itself, (): nobody knows.
    pixels: tuple[tuple[int, ...], ...] | None = None

    @property
    def fingerprint(self) -> int:
        return fingerprint(self.geometry)

    @property
    def meaning(self) -> str:
        """What is known of the program's arithmetic, in one sentence."""
        by_host = "; exponentials are the host's" if self.tail is not None and self.tail.has_exponentials else ""
        if not self.doubts:
            return "equal to the model's float32 execution for every input" + by_host
        rounded = [doubt for doubt in self.doubts if not doubt.outputs]
        sums, ties, nearest = (sum(getattr(doubt, of) for doubt in rounded) for of in ("sums", "ties", "nearest"))
        but = f" but for {nearest} sums, which come out a level beside what is meant" if nearest else ""
        parts = [f"equal in exact arithmetic{but}"]
        if rounded:
            names = ", ".join(doubt.layer for doubt in rounded)
            text = f"float32 rounding can decide otherwise for {sums} sums of {len(rounded)} layers ({names})"
            parts.append(text + (f", {ties} of them ties that the array rounds up" if ties else ""))
        if len(rounded) < len(self.doubts):
            parts.append("the outputs differ from float32 execution by its rounding")
        return "; ".join(parts) + by_host

    @property
    def input(self) -> PlaneLayout:
        return self.stages[0].input

    @property
    def output(self) -> TensorInfo:
        return self.stages[-1].output

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        return tuple(layer for stage in self.stages for layer in stage.layers)

    @property
    def pictures(self) -> int:
        """Pictures of a batch: of a job, or, where stages differ, the fewest that are whole jobs in all of them."""
        return lcm(*(stage.input.pictures for stage in self.stages))

    @property
    def jobs(self) -> int:
        """Jobs that `pictures` need, of all stages."""
        return sum(stage.jobs * self.pictures // stage.input.pictures for stage in self.stages)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture."""
        return self.stages[0].shape

    @property
    def input_bytes(self) -> int:
        """Of the largest job's input, and `output_bytes` of its output, `trace_bytes` of a patch's traced tensors."""
        return max(stage.job_input_bytes for stage in self.stages)

    @property
    def output_bytes(self) -> int:
        return max(stage.job_output_bytes for stage in self.stages)

    @property
    def trace_bytes(self) -> int:
        return max(stage.trace_bytes for stage in self.stages)

    def checked_input(self, images: np.ndarray | list[np.ndarray]) -> np.ndarray:
        """Integer pictures (N, C, H, W), N filled up to a multiple of `pictures` with empty ones; InputError for a
        wrong shape, type or range."""
        shape = self.input_shape
        wanted = f"pictures must have shape (N, {shape[0]}, {shape[1]}, {shape[2]})"
        try:
            pixels = np.asarray(images)
        except ValueError as error:
            raise InputError(f"{wanted}, not different ones ({error})") from error
        if pixels.ndim != 4 or pixels.shape[1:] != shape or not len(pixels):
            raise InputError(f"{wanted}, N at least 1, not {pixels.shape}")
        if not np.issubdtype(pixels.dtype, np.integer):
            raise InputError(
                f"pictures must be integers ({self.input.bits} bits), not {pixels.dtype}; do not normalise"
            )
        missing = -len(pixels) % self.pictures
        return np.concatenate([pixels, np.zeros((missing, *shape), pixels.dtype)]) if missing else pixels

    def given(self, images: np.ndarray | list[np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures as `checked_input` has them, by the name of their tensor: what the first stage begins with."""
        return {self.stages[0].inputs[0].name: self.checked_input(images)}

    def pack_input(self, images: np.ndarray | list[np.ndarray]) -> np.ndarray:
        """Pictures to the first stage's jobs, uint8 (jobs, bytes); InputError as `checked_input`."""
        return self.stages[0].pack(self.given(images), self.geometry.word_bytes)

    def dequantize(self, integers: np.ndarray) -> np.ndarray:
        """int32 (N, C, H, W) to the float32 numbers that the model has behind its last layer."""
        scale = np.array(self.output_scale, np.float32)[:, None, None]
        offset = np.array(self.output_offset, np.float32)[:, None, None]
        return integers.astype(np.float32) * scale + offset

    def model_output(self, integers: np.ndarray) -> np.ndarray:
        """int32 (N, C, H, W) to the model's own output, (N, ...): `dequantize`, then what the host computes."""
        numbers = self.dequantize(integers)
        return numbers if self.tail is None else self.tail(numbers)

    def header(self) -> dict:
        """Everything but the data, as JSON can hold it."""
        values = {k: v for k, v in self.__dict__.items() if k != "data"}
        values["fingerprint"] = self.fingerprint
        values["geometry"] = self.geometry.to_dict()
        values["stages"] = [stage.to_dict() for stage in self.stages]
        values["doubts"] = [doubt.__dict__ for doubt in self.doubts]
        values["tail"] = self.tail and self.tail.to_dict()
        for name, empty in (("doubts", []), ("tail", None), ("pixels", None)):
            if values[name] == empty:
                del values[name]
        return values

    def to_bytes(self) -> bytes:
        header = json.dumps(self.header(), sort_keys=True).encode()
        digest = hashlib.sha256(header + self.data).digest()
        return PREFIX.pack(MAGIC, FILE_VERSION, len(header), len(self.data), digest) + header + self.data

    def save(self, path: str | Path) -> None:
        """Write the file; an interrupted write leaves the old file, if any, untouched."""
        path = Path(path)
        content = self.to_bytes()
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ProgramError(f"{path}: cannot be written: {error.strerror}; write it elsewhere") from error
            raise

    @staticmethod
    def load(path: str | Path) -> Program:
        """Read a program file. Raises ProgramError for anything but an intact file of this version."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ProgramError(f"{path}: cannot be read: {error.strerror}; {REMEDY}") from error
        return Program.from_bytes(content, str(path))

    @staticmethod
    def from_bytes(content: bytes, source: str = "program") -> Program:
        if len(content) < PREFIX.size or content[:8] != MAGIC:
            raise ProgramError(f"{source}: is not a Sentei program file; {REMEDY}")
        _, version, header_bytes, data_bytes, digest = PREFIX.unpack_from(content)
        if version != FILE_VERSION:
            raise ProgramError(f"{source}: has format version {version}, this software reads {FILE_VERSION}; {REMEDY}")
        expected = PREFIX.size + header_bytes + data_bytes
        if len(content) != expected:
            raise ProgramError(f"{source}: has {len(content)} bytes, its header says {expected}; copy it again")
        if hashlib.sha256(content[PREFIX.size :]).digest() != digest:
            raise ProgramError(f"{source}: is damaged, its checksum does not match; copy it again")
        try:
            values = json.loads(content[PREFIX.size : PREFIX.size + header_bytes])
            stored = values.pop("fingerprint")
            values["geometry"] = Geometry(**values["geometry"])
            values["stages"] = tuple(Stage.from_dict(stage) for stage in values["stages"])
            values["doubts"] = tuple(Doubt(**doubt) for doubt in values.get("doubts", ()))
            if "pixels" in values:
                values["pixels"] = tuple(tuple(levels) for levels in values["pixels"])
            if "tail" in values:
                values["tail"] = OutputTail.from_dict(values["tail"])
            for name in ("output_scale", "output_offset", "classes"):
                values[name] = tuple(values[name])
            program = Program(data=content[PREFIX.size + header_bytes :], **values)
            _check_sizes(program, stored)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ProgramError(f"{source}: its header does not describe a program ({error}); {REMEDY}") from error
        if stored != program.fingerprint:
            raise ProgramError(
                f"{source}: was compiled with other formats (fingerprint {stored:#010x}, "
                f"this software's {program.fingerprint:#010x}); {REMEDY}"
            )
        return program


def _check_sizes(program: Program, fingerprint: object) -> None:
    """ValueError unless the header's numbers are such, what they describe lies inside data and buffers, and each
    stage's input is what the one before it makes."""
    if type(fingerprint) is not int:
        raise ValueError(f"fingerprint must be a number, not {fingerprint!r}")
    if not program.stages:
        raise ValueError("it has no stages")
    for stage in program.stages:
        check_stage(stage, program)
    if len(program.stages[0].inputs) > 1:
        raise ValueError("its first stage must take the picture alone")
    made = {tensor.name: tensor for tensor in program.stages[0].inputs}
    for stage in program.stages:
        for tensor in stage.inputs:
            if tensor.name not in made or meaning_of(made[tensor.name]) != meaning_of(tensor):
                raise ValueError(f"a stage takes {tensor.name!r}, which none before it makes")
        if {tensor.name for tensor in stage.outputs} & set(made):
            raise ValueError("two of its stages make the same tensor")
        made |= {tensor.name: tensor for tensor in stage.outputs}
        if program.stages[1:] and not {tensor.name for tensor in stage.outputs} <= {
            tensor.name for tensor in stage.trace_tensors
        }:
            raise ValueError("what a stage makes must be traced")
    if program.pixels and (
        {len(levels) for levels in program.pixels} != {256}
        or len(program.pixels) not in (1, program.input.channels)
        or any(type(level) is not int for levels in program.pixels for level in levels)
    ):
        raise ValueError("pixels must be 256 integers for each channel")
    if program.tail is not None:
        program.tail(np.zeros((1, *program.output.shape), np.float32))


def meaning_of(tensor: TensorInfo) -> tuple:
    """What must be the same where a tensor is made and where it is taken."""
    layout = tensor.layout
    return tensor.shape, layout.bits, layout.signed, layout.zero_point, tensor.correction


def check_stage(stage: Stage, program: Program) -> None:
    """ValueError unless what the stage's numbers describe lies inside the program's data, and its own buffers."""
    sizes = ("data_offset", "data_bytes", "instruction_load_words", "prologue", "body", "trace", "patches_a_job")
    rooms = [
        (stage.inputs, stage.input_bytes),
        (stage.outputs, stage.output_bytes),
        (stage.trace_tensors, stage.trace_bytes),
    ]
    if not stage.inputs or not stage.outputs:
        raise ValueError("a stage must have inputs and outputs")
    layouts = [tensor.layout for tensors, _ in rooms for tensor in tensors]
    numbers = {name: getattr(stage, name) for name in (*sizes, "input_bytes", "output_bytes", "trace_bytes")}
    for layout in layouts:
        if type(layout.zero_point) is not int:
            raise ValueError(f"zero_point must be a number, not {layout.zero_point!r}")
        not_sizes = ("splits", "signed", "zero_point", "packed")
        numbers |= {name: value for name, value in layout.__dict__.items() if name not in not_sizes}
        for name, value in numbers.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be a number, not {value!r}")
    if {layout.pictures for layout in layouts} != {max(1, stage.input.pictures)}:
        raise ValueError(f"its tensors must have the same number of pictures, not {stage.input.pictures} and others")
    check_tilings(stage)
    if stage.data_offset + stage.data_bytes > len(program.data) or stage.data_offset % ALIGNMENT_BYTES:
        raise ValueError(f"a stage's {stage.data_bytes} bytes at {stage.data_offset} do not lie in its data")
    if not 0 < 8 * stage.instruction_load_words <= stage.data_bytes:
        raise ValueError(f"{stage.instruction_load_words} instruction words do not lie in its data")
    word_bytes = program.geometry.word_bytes
    for tensors, room in rooms:
        end = 0
        for tensor in tensors:
            begin = tensor.offset_bytes
            if type(begin) is not int or begin < end or begin % ALIGNMENT_BYTES:
                raise ValueError(f"tensor {tensor.name!r} must lie behind the one before it, not at {begin!r}")
            end = begin + tensor.layout.words * word_bytes
            if end > room:
                raise ValueError(f"tensor {tensor.name!r} does not lie in its {room} bytes")
            if len(tensor.correction) not in (0, tensor.layout.channels):
                raise ValueError(f"tensor {tensor.name!r} must have a correction for each channel")
        if room > end + ALIGNMENT_BYTES or len({tensor.name for tensor in tensors}) < len(tensors):
            raise ValueError(f"{room} bytes are more than its tensors need, or two have one name")


def check_tilings(stage: Stage) -> None:
    """ValueError unless all tensors have as many patches as the input, each of which has what it provides."""
    if stage.patches_a_job not in (1, stage.patches):
        raise ValueError(f"a job must do one of {stage.patches} patches, or all, not {stage.patches_a_job}")
    for tensor in (*stage.inputs, *stage.outputs, *stage.trace_tensors):
        layout, tiling = tensor.layout, tensor.tiling
        if (1 if tiling is None else len(tiling)) != stage.patches or (tiling and stage.input.pictures != 1):
            raise ValueError(f"its tensors must have {stage.patches} patches of one picture each")
        for cuts, size in ((tiling.rows, layout.height), (tiling.columns, layout.width)) if tiling else ():
            if any(end > offset + size for offset, end in zip(cuts.offsets, cuts.begins[1:], strict=True)):
                raise ValueError(f"patches of {size} must have what they provide, not {cuts}")
            if any(offset + size > cuts.begins[-1] for offset in cuts.offsets):
                raise ValueError(f"patches of {size} must lie in the whole, not {cuts}")


def _tensor_to_dict(tensor: TensorInfo) -> dict:
    changed = {"layout": tensor.layout.to_dict(), "correction": list(tensor.correction)}
    return tensor.__dict__ | changed | {"tiling": tensor.tiling and tensor.tiling.to_dict()}


def _tensor_from_dict(values: dict) -> TensorInfo:
    tiling = values.get("tiling")
    changed = {"layout": PlaneLayout.from_dict(values["layout"]), "correction": tuple(values["correction"])}
    return TensorInfo(**values | changed | {"tiling": tiling and Tiling.from_dict(tiling)})
