"""The class that users meet: an overlay that runs programs.

    overlay = SenteiOverlay("build/sim/32x32-zynq-hp")     # an overlay's directory or manifest
    overlay.load("resnet8.sentei")
    outputs = overlay.run(images)                          # int32 (N, C, H, W); outputs.logits: float32

It is a pynq.Overlay: `overlay.engine` is the EngineDriver, `overlay.ip_dict` and the rest are pynq's. After any error
the next run resets the engine and loads the program again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from sentei.driver.device import SimulatedDevice, SoCDevice
from sentei.driver.engine import EngineDriver  # noqa: F401 (importing it binds it to its VLNV)
from sentei.driver.errors import DeviceError, FingerprintMismatch
from sentei.driver.quiet_pynq import pynq
from sentei.overlay.errors import InputError
from sentei.overlay.manifest import Manifest
from sentei.overlay.program import Program, Stage
from sentei.overlay.registers import JOB_QUEUE_DEPTH, PROFILE_CAUSES, PROFILE_WORDS

MOST_PICTURES = 4  # that a stage does before the next one, so that what lies between them has room
NOT_LOADED = "a program must be loaded before it can run: call load(program)"


class Outputs(np.ndarray):
    """int32 (N, C, H, W), or (C, H, W) from `stream`; `logits` are the float32 numbers behind the model's last layer.

    `logits` has the same shape, without height and width where both are 1. `model` is the model's own output, without N
    from `stream`: the same numbers after what the model computes of them (a softmax, say), in the model's order.
    """

    logits: np.ndarray
    model: np.ndarray

    @staticmethod
    def of(program: Program, integers: np.ndarray) -> Outputs:
        """From the last stage's output, int32 (N, C, H, W)."""
        outputs = integers.view(Outputs)
        outputs.logits = program.dequantize(np.asarray(outputs))
        outputs.model = program.model_output(np.asarray(outputs))
        if outputs.shape[2:] == (1, 1):
            outputs.logits = outputs.logits[:, :, 0, 0]
        return outputs

    def single(self, number: int) -> Outputs:
        """One picture's, without the axis of pictures."""
        outputs = np.asarray(self)[number].view(Outputs)
        outputs.logits, outputs.model = self.logits[number], self.model[number]
        return outputs


class SenteiOverlay(pynq.Overlay):
    """`path`: an overlay's directory or manifest. A simulated overlay makes its own device unless given one."""

    def __init__(self, path: str | Path, device=None, download: bool = True, **options):
        self.manifest = Manifest.load(path)
        self.program: Program | None = None
        self.last_cycles: int | None = None  # of the last job
        self._program_buffer: pynq.buffer.PynqBuffer | None = None
        self._slots: list[tuple] = []
        self._on_chip: Stage | None = None  # whose weights are there, if the engine is in a known state
        self._profiled: Stage | None = None  # whose jobs ran last
        self._load_cycles: dict[int, int] = {}  # by the number of the stage: what brought it on chip,
        self._stage_cycles: dict[int, float] = {}  # and a picture's share of its jobs
        if self.manifest.target == "sim":
            device = device or SimulatedDevice(self.manifest)
        if self.manifest.target == "bridge" and device is None:
            raise InputError(
                f"{path}: what it describes is behind a serial port; name that, too, as in {path}:/dev/ttyUSB0"
            )
        if device is not None:
            pynq.Device.active_device = device
        self.manifest.file("hwh")
        super().__init__(str(self.manifest.file("bit").resolve()), device=device, download=download, **options)
        self._activate()
        self._check_fingerprints(None)

    # Loading ----------------------------------------------------------------------------------------------------------

    def load(self, program: Program | str | Path) -> SenteiOverlay:
        """Make `program`, or the file at that path, the one that runs; its weights move on chip.

        A program that is refused leaves the one before it loaded; if main memory has no room, none is loaded.
        """
        program = program if isinstance(program, Program) else Program.load(program)
        self._activate()
        self._check_fingerprints(program)
        self._on_chip, self._profiled, self.last_cycles = None, None, None
        self._load_cycles, self._stage_cycles = {}, {}
        self.program, self._program_buffer, self._slots = None, None, []
        buffer = pynq.allocate((len(program.data),), np.uint8)
        buffer[:] = np.frombuffer(program.data, np.uint8)
        buffer.flush()
        slots = self._allocate_slots(program.input_bytes, program.output_bytes)
        self.program, self._program_buffer, self._slots = program, buffer, slots
        _complete(self._prepare(program.stages[0]))
        return self

    @property
    def _loaded(self) -> Program:
        """The program that runs; InputError if there is none."""
        if self.program is None:
            raise InputError(NOT_LOADED)
        return self.program

    def _allocate_slots(self, *sizes: int) -> list[tuple]:
        """Buffers of these sizes, for a job's input and output, for each job in flight."""
        return [tuple(pynq.allocate((size,), np.uint8) for size in sizes) for _ in range(JOB_QUEUE_DEPTH)]

    def _activate(self) -> None:
        if hasattr(self.device, "activate"):
            self.device.activate()

    def _check_fingerprints(self, program: Program | None) -> None:
        device = self.engine.get("fingerprint")
        wanted = {self.manifest.fingerprint} | ({program.fingerprint} if program else set())
        if wanted != {device}:
            of_program = f"{program.fingerprint:#010x} ({program.geometry})" if program else "none loaded"
            raise FingerprintMismatch(
                f"device, overlay and program must have the same fingerprint, not: device {device:#010x}, "
                f"overlay {self.manifest.fingerprint:#010x} ({self.manifest.geometry}), program {of_program}; compile "
                f"the model for this overlay's geometry with `sentei compile`, or build its overlay with `sentei build`"
            )

    async def _prepare(self, stage: Stage) -> None:
        """Bring a stage's weights on chip and the engine into a known state, whatever happened before."""
        buffer = self._program_buffer
        if self._on_chip is stage:
            return
        if buffer is None:  # its load ran out of memory
            raise InputError(NOT_LOADED)
        if self._on_chip is None:
            try:
                clean = self.engine.reset()
            except DeviceError:
                clean = False
            if not clean:
                self.download()
                self._activate()
                self.engine.jobs = 0
                buffer.flush()
        self._on_chip = None
        self.engine.register_map.program_base = buffer.device_address + stage.data_offset
        self.engine.register_map.program_words = stage.instruction_load_words
        await self.engine.wait(self.engine.start(stage.prologue, load=True))
        self._on_chip = stage
        number = next(number for number, own in enumerate(self._loaded.stages) if own is stage)
        self._load_cycles[number] = self.engine.get("job_cycles")

    # Running ----------------------------------------------------------------------------------------------------------

    def run(self, images: np.ndarray | list[np.ndarray]) -> Outputs:
        """Integer pictures (N, C, H, W) to outputs (N, C, H, W)."""
        return _complete(self.run_async(images))

    async def run_async(self, images: np.ndarray | list[np.ndarray]) -> Outputs:
        """As `run`, leaving the event loop to others while it waits."""
        self._activate()
        program = self._loaded
        values = program.checked_input(images)
        at_a_time = MOST_PICTURES // program.pictures * program.pictures if program.stages[1:] else len(values)
        at_a_time = max(at_a_time, program.pictures)
        parts = []
        for first in range(0, len(values), at_a_time):
            part = values[first : first + at_a_time]
            tensors = program.given(part)
            for number in range(len(program.stages)):
                tensors |= await self._run_stage(number, tensors)
                read = {tensor.name for later in program.stages[number + 1 :] for tensor in later.inputs}
                tensors = {name: own for name, own in tensors.items() if name in read | {program.output.name}}
            parts.append(tensors[program.output.name])
        return Outputs.of(program, np.concatenate(parts)[: len(images)])

    def run_stage(self, number: int, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One stage of the program: its inputs, integers (N, C, H, W), to its outputs, int32 (N, C, H, W), by name."""
        self._activate()
        return _complete(self._run_stage(number, tensors))

    async def _run_stage(self, number: int, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        program = self._loaded
        stage, word_bytes = program.stages[number], program.geometry.word_bytes
        packed = stage.pack(tensors, word_bytes)
        await self._prepare(stage)
        data = await self._run_jobs(stage, packed, stage.body, self._slots, stage.job_output_bytes)
        self._stage_cycles[number] = stage.share(self.last_cycles or 0)
        return stage.unpack(data, word_bytes)

    @property
    def picture_cycles(self) -> float:
        """Of a picture, in the last run: its share of a batch's job, or all jobs of its patches, in every stage. If
        there are several, its share of what brings each on chip is in it, as if batches ran one by one."""
        program = self._loaded
        if len(program.stages) == 1:
            return program.stages[0].share(self.last_cycles or 0)
        return sum(self._stage_cycles.values()) + sum(self._load_cycles.values()) / program.pictures

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Outputs]:
        """Pictures (C, H, W), one after the other, to outputs in the same order; a few jobs are in flight at a time."""
        self._activate()
        stage, *others = self._loaded.stages
        if others:
            pictures = iter(images)
            for batch in iter(lambda: list(islice(pictures, self._loaded.pictures)), []):
                outputs = self.run(batch)
                yield from (outputs.single(number) for number in range(len(batch)))
            return
        _complete(self._prepare(stage))
        self._on_chip = None
        counts: deque[int] = deque()
        parts: list[np.ndarray] = []
        for part in self._stream_jobs(stage, images, counts):
            parts.append(part)
            if len(parts) == stage.jobs:
                count = counts.popleft()
                integers = stage.unpack(np.stack(parts), self._loaded.geometry.word_bytes)[stage.output.name]
                outputs = Outputs.of(self._loaded, integers[:count])
                parts = []
                yield from (outputs.single(number) for number in range(count))
        self._on_chip = stage

    def _stream_jobs(self, stage: Stage, images: Iterable[np.ndarray], counts: deque[int]) -> Iterator[np.ndarray]:
        """What each job stores, as pictures come in; how many pictures their jobs have done goes to `counts`."""
        waiting: deque[tuple] = deque()
        pictures = iter(images)
        number = 0
        for batch in iter(lambda: list(islice(pictures, self._loaded.pictures)), []):
            counts.append(len(batch))
            for packed in self._loaded.pack_input(batch):
                if len(waiting) == len(self._slots):
                    yield _complete(self._collect(*waiting.popleft()))
                slot = self._slots[number % len(self._slots)]
                waiting.append(self._start(packed, stage.body, slot, stage.job_output_bytes))
                number += 1
        while waiting:
            yield _complete(self._collect(*waiting.popleft()))

    def trace(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures (N, C, H, W) to every tensor of the program, int32 (N, C, H, W) each, by name."""
        self._activate()
        program = self._loaded
        word_bytes = program.geometry.word_bytes
        given = program.given(images)
        found: dict[str, np.ndarray] = {}

        async def run():
            slots = self._allocate_slots(program.input_bytes, program.trace_bytes)
            for stage in program.stages:
                packed = stage.pack_patches(given | found, word_bytes)
                await self._prepare(stage)
                data = await self._run_jobs(stage, packed, stage.trace, slots, stage.trace_bytes)
                found.update({tensor.name: tensor.read(data, word_bytes) for tensor in stage.trace_tensors})

        _complete(run())
        return {name: tensor[: len(images)] for name, tensor in found.items()}

    def profile(self) -> list[dict]:
        """What the groups did in each layer of the last job of the stage that ran last, if its records all fit into the
        profile.

        A dict for each layer: its name; group cycles, added up over the groups, by what they were spent on: steps,
        drain_stalls, waits, setup, idle; `cycles`, which is their sum divided by the number of groups; and the bytes
        moved on the bus meanwhile. Layers overlap in time; their cycles add up to those of the job.
        """
        stage, groups = self._profiled or self._loaded.stages[0], self._loaded.geometry.groups
        records: list[list[dict]] = [[] for _ in range(groups)]
        for record in self.engine.profile():
            records[record["group"]].append(record)
        count = len(stage.layers)
        last = min(len(own) // count for own in records) - 1
        if last < 0:
            return []
        layers = []
        for number, info in enumerate(stage.layers):
            own = [each[last * count + number] for each in records]
            sums = {word: sum(record[word] for record in own) for word in PROFILE_WORDS if word not in ("group", "end")}
            cycles = sum(sums[cause] for cause in PROFILE_CAUSES) / groups
            layers.append({"name": info.name, "layer": number, "cycles": cycles, **sums})
        return layers

    def _start(self, packed: np.ndarray, entry: int, slot: tuple, output_bytes: int) -> tuple:
        """Queue one batch; returns what `_collect` needs."""
        source, target = slot
        source[: len(packed)] = packed
        source.flush()
        return self.engine.start(entry, source.device_address, target.device_address), target, output_bytes

    async def _collect(self, job: int, target, output_bytes: int) -> np.ndarray:
        """Wait for a job; returns a copy of its output."""
        await self.engine.wait(job)
        self.last_cycles = self.engine.get("job_cycles")
        target.invalidate()
        return np.array(target[:output_bytes], np.uint8)

    async def _run_jobs(
        self, stage: Stage, packed: np.ndarray, entry: int, slots: list[tuple], output_bytes: int
    ) -> np.ndarray:
        results = np.empty((len(packed), output_bytes), np.uint8)
        self._on_chip, self._profiled = None, stage  # until all jobs have ended well
        self.engine.clear_profile()
        waiting: deque[tuple] = deque()
        collected = 0
        for number, job in enumerate(packed):
            if len(waiting) == len(slots):
                results[collected] = await self._collect(*waiting.popleft())
                collected += 1
            waiting.append(self._start(job, entry, slots[number % len(slots)], output_bytes))
        while waiting:
            results[collected] = await self._collect(*waiting.popleft())
            collected += 1
        self._on_chip = stage
        return results

    # Ending -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up buffers and, if simulated, the SoC."""
        self.program = self._program_buffer = None
        self._slots = []
        if isinstance(self.device, SoCDevice):
            self.device.close()

    def __enter__(self) -> SenteiOverlay:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _complete(coroutine):
    """Run a coroutine to its end from ordinary code, also where an event loop already runs (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop = _event_loop()
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        except BaseException:
            # An interrupt from the keyboard must not leave a task behind that goes on in the next run.
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                loop.run_until_complete(task)
            raise
    future = asyncio.run_coroutine_threadsafe(coroutine, _background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _background_loop() -> asyncio.AbstractEventLoop:
    """A loop in a thread of its own, for callers whose own loop is busy. One for all: pynq registers a board's
    interrupts with the loop that waits for the first."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="sentei", daemon=True).start()
    return loop


def _event_loop() -> asyncio.AbstractEventLoop:
    """This thread's event loop: on a board, the one that pynq's UIO devices are registered with."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            loop = asyncio.get_event_loop()
    except RuntimeError:
        loop = None
    if loop is None or loop.is_closed():
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop
