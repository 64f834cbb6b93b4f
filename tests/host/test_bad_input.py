"""Bad input of every kind, on one simulated SoC: a typed error that names the cause, and a correct run directly after.

Every wait here is bounded: LIMIT_CYCLES for a job, and the simulator's own limit for a register access.
"""

import asyncio
import dataclasses
import gc
import struct

import numpy as np
import pytest

pytest.importorskip("sentei.driver.quiet_pynq")

from helpers.changed_stage import with_stage
from helpers.random_networks import ModelWriter
from helpers.small_model import small_model, small_pictures

from sentei.driver import (
    DeviceNotResponding,
    EngineError,
    EngineTimeout,
    FingerprintMismatch,
    OutOfMemoryError,
    SenteiOverlay,
)
from sentei.driver.device import SLICE_CYCLES
from sentei.host.compiler.compile import compile_network
from sentei.host.errors import (
    InexactModel,
    MissingScale,
    ModelFileError,
    UnsupportedAttribute,
    UnsupportedBitWidth,
    UnsupportedOperator,
)
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.overlay.errors import CapacityError, InputError, ProgramError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.instructions import INSTRUCTION, INSTRUCTION_LOAD_WORDS, Base, Opcode
from sentei.overlay.program import Program
from sentei.overlay.registers import JOB_QUEUE_DEPTH, REGISTERS, ErrorCode

GEOMETRY = PRESETS["8x8"]
LIMIT_CYCLES = 30_000
INSTRUCTION_BYTES = 8 * INSTRUCTION_LOAD_WORDS
OUTSIDE = 0x2000_0000  # added to any buffer's address, it lies outside main memory
NETWORK = load(small_model())
GOOD = compile_network(NETWORK, GEOMETRY)


class Bench:
    """An overlay, and the question whether it computes what the reference does."""

    def __init__(self, overlay: SenteiOverlay):
        self.overlay = overlay
        self.simulator = overlay.device.simulator
        self.seed = 0

    def calm(self) -> None:
        """End every simulated fault."""
        self.simulator.withhold_memory(False)
        self.simulator.freeze(False)
        self.simulator.stall_memory(0)

    def assert_right(self, count: int = 2, note: str = "") -> None:
        """The next run's outputs are the reference's; pictures never seen before."""
        __tracebackhide__ = True
        self.seed += 1
        images = small_pictures(count, self.seed)
        expected = reference.run(NETWORK, images)[NETWORK.output]
        np.testing.assert_array_equal(self.overlay.run(images), expected, err_msg=f"pictures {self.seed} {note}")

    def assert_right_after_loading(self, note: str = "") -> None:
        __tracebackhide__ = True
        self.overlay.load(GOOD)
        self.assert_right(note=note)

    def job_cycles(self, job) -> int:
        """Cycles that pass on the SoC during `job()`."""
        before = self.simulator.cycles
        job()
        return self.simulator.cycles - before

    def strike(self, monkeypatch, after_cycles: int, fault) -> None:
        """Call `fault()` once, when `after_cycles` more have passed and the driver waits for an interrupt."""
        run_until, struck = self.simulator.run_until_interrupt, []
        at = self.simulator.cycles + after_cycles

        def run(limit_cycles: int) -> bool:
            if not struck:
                if run_until(max(1, at - self.simulator.cycles)):
                    return True
                struck.append(True)
                fault()
            return run_until(limit_cycles)

        monkeypatch.setattr(self.simulator, "run_until_interrupt", run)


@pytest.fixture(scope="module")
def module_bench(overlay_path):
    with SenteiOverlay(overlay_path("8x8")) as overlay:
        overlay.engine.clock.limit = LIMIT_CYCLES
        yield Bench(overlay)


@pytest.fixture
def bench(module_bench):
    """A bench that runs GOOD."""
    module_bench.calm()
    module_bench.overlay.load(GOOD)
    yield module_bench
    module_bench.calm()


def patched(program: Program, change) -> Program:
    """`program` with every instruction through `change(index, fields)`, which returns the changed fields or None."""
    data = bytearray(program.data)
    for index in range(program.stages[0].instruction_load_words // INSTRUCTION_LOAD_WORDS):
        place = slice(index * INSTRUCTION_BYTES, (index + 1) * INSTRUCTION_BYTES)
        fields = INSTRUCTION.unpack(int.from_bytes(data[place], "little"))
        changed = change(index, fields)
        if changed:
            data[place] = INSTRUCTION.pack(**(fields | changed)).to_bytes(INSTRUCTION_BYTES, "little")
    assert data != program.data
    return dataclasses.replace(program, data=bytes(data))


# Program files


def damaged_files() -> dict[str, tuple[bytes, type, str]]:
    content = GOOD.to_bytes()
    flipped = {bit: bytearray(content) for bit in (3, 8 * 70 + 1, 8 * len(content) - 5)}
    for bit, damaged in flipped.items():
        damaged[bit // 8] ^= 1 << bit % 8
    other = compile_network(NETWORK, PRESETS["16x16"]).to_bytes()
    device, wrong = f"device {GOOD.fingerprint:#010x}", f"program {Program.from_bytes(other).fingerprint:#010x}"
    return {
        "empty": (b"", ProgramError, "is not a Sentei program file"),
        "truncated-prefix": (content[:50], ProgramError, "is not a Sentei program file"),
        "truncated": (content[:-100], ProgramError, f"has {len(content) - 100} bytes, its header says {len(content)}"),
        "flipped-magic": (flipped[3], ProgramError, "is not a Sentei program file"),
        "flipped-header": (flipped[8 * 70 + 1], ProgramError, "is damaged, its checksum does not match; copy it again"),
        "flipped-data": (flipped[8 * len(content) - 5], ProgramError, "is damaged, its checksum does not match"),
        "version": (content[:8] + struct.pack("<I", 9) + content[12:], ProgramError, "has format version 9, this soft"),
        "geometry": (other, FingerprintMismatch, f"{device}.*{wrong}.*compile the model for this overlay's geometry"),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_a_bad_program_file_is_refused_and_the_loaded_program_runs_on(bench, tmp_path, kind):
    content, error, message = damaged_files()[kind]
    path = tmp_path / "model.sentei"
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        bench.overlay.load(path)
    bench.assert_right()
    GOOD.save(path)
    bench.overlay.load(path)
    bench.assert_right()


def test_a_missing_program_file_is_refused_and_the_loaded_program_runs_on(bench, tmp_path):
    with pytest.raises(ProgramError, match=r"none.sentei: cannot be read: No such file or directory"):
        bench.overlay.load(tmp_path / "none.sentei")
    bench.assert_right()


# Pictures


@pytest.mark.parametrize(
    "images, message",
    [
        (small_pictures(1)[0], r"must have shape \(N, 1, 10, 12\), N at least 1, not \(1, 10, 12\)"),
        (small_pictures(2)[..., :-1], r"must have shape .* not \(2, 1, 10, 11\)"),
        (small_pictures(0), r"N at least 1, not \(0, 1, 10, 12\)"),
        (small_pictures(2).astype(np.float32), "must be integers .*, not float32; do not normalise"),
        (small_pictures(1) + 256, "values must be 0 to 255, not 2"),
        (small_pictures(1) - 256, "values must be 0 to 255, not -"),
    ],
    ids=["rank", "width", "none", "float", "above", "below"],
)
@pytest.mark.parametrize("call", ["run", "trace", "run_async"])
def test_wrong_pictures_are_refused_and_the_next_run_is_right(bench, images, message, call):
    with pytest.raises(InputError, match=message):
        result = getattr(bench.overlay, call)(images)
        asyncio.run(result)  # only run_async comes here
    bench.assert_right()


@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_wrong_picture_in_a_stream_is_refused_and_the_next_run_is_right(bench, position):
    images = [*small_pictures(4)]
    images[position] = images[position][:, 1:]
    expected = reference.run(NETWORK, small_pictures(4))[NETWORK.output]
    seen = 0
    with pytest.raises(InputError, match=r"must have shape \(N, 1, 10, 12\)"):
        for seen, output in enumerate(bench.overlay.stream(iter(images)), 1):
            np.testing.assert_array_equal(output, expected[seen - 1])
    assert seen == max(0, position + 1 - JOB_QUEUE_DEPTH)  # the others are in flight
    bench.assert_right()


# Models


def write_model(path, make) -> None:
    """`make(writer, picture)` appends to a quantized picture and returns the output's name."""
    writer = ModelWriter()
    output = make(writer, writer.quant("input", 2.0**-8, 8, False))
    path.write_bytes(writer.model((1, 1, 10, 12), output, 4).SerializeToString())


def conv(writer, source, bits=4, quantized=True, channels=3, inputs=1, kernel=3, **attributes):
    limit = 1 << (bits - 1)
    levels = np.random.default_rng(1).integers(1 - limit, limit, (channels, inputs, kernel, kernel))
    levels.flat[0] = -limit
    weights = writer.constant(levels / 8)
    if quantized:
        weights = writer.quant(weights, 0.125, bits, True)
    return writer.node("Conv", source, weights, **attributes)


def quantized(writer, source, bits=4):
    return writer.quant(writer.node("Relu", source), 0.25, bits, False)


BAD_MODELS = {
    "operator": (
        lambda w, x: quantized(w, w.node("Elu", conv(w, x))),
        UnsupportedOperator,
        r"Elu_\d",
    ),
    "attribute": (
        lambda w, x: w.node("MaxPool", quantized(w, conv(w, x)), kernel_shape=[2, 2], dilations=[2, 2]),
        UnsupportedAttribute,
        r"MaxPool_\d+.*dilations",
    ),
    "activation-bits": (
        lambda w, x: conv(w, quantized(w, conv(w, x), bits=10), inputs=3),
        UnsupportedBitWidth,
        r"Quant_\d+.* not 10",
    ),
    "weight-bits": (lambda w, x: quantized(w, conv(w, x, bits=9)), UnsupportedBitWidth, r"Conv_\d+.* not 9"),
    "activation-scale": (
        lambda w, x: conv(w, w.node("Relu", conv(w, x)), inputs=3),
        MissingScale,
        r"Conv_\d+.* not quantized",
    ),
    "residual-scale": (
        lambda w, x: quantized(w, w.node("Add", w.node("Relu", conv(w, x)), w.quant(conv(w, x), 0.5, 4, False))),
        InexactModel,
        r"Quant_\d+.* of scale 0.5, but the sum has scale 0.25.*: quantize both with the same scale",
    ),
    "weight-scale": (lambda w, x: quantized(w, conv(w, x, quantized=False)), MissingScale, r"Conv_\d+.*"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_model_that_cannot_be_mapped_is_refused_by_name_and_the_next_run_is_right(bench, tmp_path, kind):
    make, error, message = BAD_MODELS[kind]
    path = tmp_path / "model.onnx"
    write_model(path, make)
    with pytest.raises(error, match=message):
        bench.overlay.load(compile_network(load(path), GEOMETRY))
    bench.assert_right()


@pytest.mark.parametrize("content", [b"", b"not ONNX\n", GOOD.to_bytes(), small_model().SerializeToString()[:-99]])
def test_a_file_that_is_no_model_is_refused_and_the_next_run_is_right(bench, tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model.onnx"):
        bench.overlay.load(compile_network(load(path), GEOMETRY))
    bench.assert_right()


def big_network(height, width, inputs=1, channels=2, kernel=3):
    writer = ModelWriter()
    source = writer.quant("input", 0.25, 4, False)
    output = quantized(writer, conv(writer, source, channels=channels, inputs=inputs, kernel=kernel))
    output = writer.node("GlobalAveragePool", output)  # behind it, patches of the picture are no use
    return load(writer.model((1, inputs, height, width), output, 4))


@pytest.mark.parametrize(
    "network, message",
    [
        (big_network(400, 400), "input: tensor 'input' needs 20000 activation words, 16384 of 16384 are free; use a"),
        (big_network(250, 300), r"Conv_2: tensor 't\d' needs 18601 activation words, 7009 of 16384 are free; use a"),
        (
            big_network(9, 9, inputs=120, kernel=9),
            r"Conv_2: one block of output channels needs 9\d{3} stream words, the geometry has 8192; use a geometry",
        ),
    ],
    ids=["activation-input", "activation", "stream"],
)
def test_a_network_too_large_is_refused_with_operator_and_memory_and_the_next_run_is_right(bench, network, message):
    with pytest.raises(CapacityError, match=f"^random: {message}"):
        bench.overlay.load(compile_network(network, GEOMETRY))
    bench.assert_right()


# Main memory


def test_a_program_larger_than_main_memory_is_refused_and_the_next_load_works(bench):
    size = bench.overlay.manifest.memory_bytes + 8
    free = bench.overlay.device.free_bytes
    for large in (
        dataclasses.replace(GOOD, data=GOOD.data + bytes(size - len(GOOD.data))),
        with_stage(GOOD, output_bytes=size),
    ):
        with pytest.raises(OutOfMemoryError, match=rf"must have at most \d+ bytes, not {size}: main memory has"):
            bench.overlay.load(large)
        with pytest.raises(InputError, match="a program must be loaded before it can run"):
            bench.overlay.run(small_pictures(1))
        bench.assert_right_after_loading()
        gc.collect()  # tracebacks hold buffers
        assert bench.overlay.device.free_bytes == free


def test_a_program_that_leaves_no_room_for_tracing_can_still_run(bench):
    large = with_stage(GOOD, trace_bytes=bench.overlay.manifest.memory_bytes)
    bench.overlay.load(large)
    with pytest.raises(OutOfMemoryError, match=r"delete buffers, or build an overlay with more memory"):
        bench.overlay.trace(small_pictures(1))
    bench.assert_right()


# Hangs


FRACTIONS = [0.0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98]
FAULTS = {
    "withheld": (lambda simulator: simulator.withhold_memory(True), EngineTimeout, "did not end within 30000 cycles; "),
    "frozen": (lambda simulator: simulator.freeze(True), DeviceNotResponding, "got no answer within 4096 cycles"),
}


@pytest.mark.parametrize("stalls", [0, 77], ids=["calm", "stalled"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("during", ["load", "run", "trace"])
def test_an_engine_that_hangs_is_reported_in_time_and_the_next_run_is_right(bench, monkeypatch, during, fault, stalls):
    """The fault strikes at many points in time: while instructions, weights and the picture come in, while layers are
    computed, and while results go out."""
    act, error, message = FAULTS[fault]
    overlay, simulator = bench.overlay, bench.simulator
    images = small_pictures(1)
    job = {
        "load": lambda: overlay.load(GOOD),
        "run": lambda: overlay.run(images),
        "trace": lambda: overlay.trace(images),
    }[during]
    simulator.stall_memory(stalls)
    job()
    cycles = bench.job_cycles(job)
    limit = cycles + LIMIT_CYCLES + 2 * SLICE_CYCLES  # time passes in slices
    reported, doing = 0, set()
    for fraction in FRACTIONS:
        note = f"during {during}, {fault} after {int(cycles * fraction)} of {cycles} cycles, stalls {stalls}"
        simulator.stall_memory(stalls)
        before = simulator.cycles
        with monkeypatch.context() as patch:
            bench.strike(patch, int(cycles * fraction), lambda: act(simulator))
            try:
                job()
            except error as raised:
                reported += 1
                assert message in str(raised), note
                if fault == "withheld":
                    assert raised.state["busy"] == 1 and raised.state["error"] == 0, note
                    doing |= {name for name in ("loading", "storing") if raised.state[name]}
        assert simulator.cycles - before <= limit, note
        bench.calm()
        bench.assert_right(note=note)
    assert reported >= len(FRACTIONS) - 3, f"only {reported} faults were noticed"  # the last ones may come too late
    if fault == "withheld":
        assert doing == ({"loading"} if during == "load" else {"loading", "storing"})


def test_a_fault_that_stays_is_reported_by_every_run_and_the_first_run_after_it_is_right(bench):
    for fault in FAULTS.values():
        act, error, message = fault
        act(bench.simulator)
        for _ in range(3):
            with pytest.raises(error, match=message):
                bench.overlay.run(small_pictures(1))
        bench.calm()
        bench.assert_right()


def test_a_stream_that_hangs_is_reported_and_the_next_run_is_right(bench):
    def source():
        for number, image in enumerate(small_pictures(8)):
            bench.simulator.withhold_memory(number > JOB_QUEUE_DEPTH)
            yield image

    seen = 0
    with pytest.raises(EngineTimeout, match="did not end within 30000 cycles"):
        for _ in bench.overlay.stream(source()):
            seen += 1
    assert 1 <= seen <= JOB_QUEUE_DEPTH  # the first was complete, those in flight hang
    bench.calm()
    bench.assert_right()


# Programs that a damaged compiler could make


@pytest.mark.parametrize("base, code", [(Base.PROGRAM, ErrorCode.READ_FAILED), (Base.INPUT, ErrorCode.READ_FAILED)])
@pytest.mark.parametrize("stalls", [0, 5])
def test_reading_outside_main_memory_is_reported_and_the_next_run_is_right(bench, base, code, stalls):
    def change(index, fields):
        if fields["opcode"] == Opcode.LOAD and fields["base"] == base:
            return {"offset": fields["offset"] + OUTSIDE}

    bench.simulator.stall_memory(stalls)
    with pytest.raises(EngineError, match=r"^reading main memory failed at 0x6[0-9a-f]{7}; instruction \d+, ") as info:
        bench.overlay.load(patched(GOOD, change))
        bench.overlay.run(small_pictures(2))
    assert info.value.code == code == info.value.state["error"]
    assert 0x6000_0000 <= info.value.state["error_address"] < 0x6200_0000
    bench.assert_right_after_loading()


@pytest.mark.parametrize("call", ["run", "trace"])
@pytest.mark.parametrize("stalls", [0, 5])
def test_writing_outside_main_memory_is_reported_and_the_next_run_is_right(bench, call, stalls):
    def change(index, fields):
        if fields["opcode"] == Opcode.STORE:
            return {"offset": fields["offset"] + OUTSIDE}

    bench.overlay.load(patched(GOOD, change))
    bench.simulator.stall_memory(stalls)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^writing main memory failed at 0x6[0-9a-f]{7}; ") as info:
            getattr(bench.overlay, call)(small_pictures(2))
        assert info.value.code == ErrorCode.WRITE_FAILED
        assert 0x6000_0000 <= info.value.state["error_address"] < 0x6200_0000
    bench.assert_right_after_loading()


def test_a_transfer_that_leaves_main_memory_half_way_is_reported_and_the_next_run_is_right(bench):
    """Its first bursts are answered well."""
    buffer = bench.overlay._slots[0][0].device_address
    end = bench.overlay.manifest.addresses["main_ram"] + bench.overlay.manifest.memory_bytes

    def change(index, fields):
        if fields["opcode"] == Opcode.LOAD and fields["base"] == Base.INPUT:
            return {"offset": end - 64 - buffer, "count": 1000}

    bad = patched(GOOD, change)
    bench.overlay._slots = []  # so that the buffers lie where they lay
    bench.overlay.load(bad)
    assert bench.overlay._slots[0][0].device_address == buffer
    with pytest.raises(EngineError, match=rf"^reading main memory failed at {end:#010x}"):
        bench.overlay.run(small_pictures(1))
    bench.assert_right_after_loading()


ILLEGAL = {
    "opcode": lambda fields: {"opcode": 9} if fields["opcode"] == Opcode.RUN else None,
    "memory": lambda fields: {"memory": 12} if fields["base"] == Base.INPUT else None,
    "no-count": lambda fields: {"count": 0} if fields["opcode"] == Opcode.STORE else None,
}


@pytest.mark.parametrize("kind", ILLEGAL)
def test_an_illegal_instruction_is_reported_with_its_place_and_the_next_run_is_right(bench, kind):
    places = []

    def change(index, fields):
        changed = ILLEGAL[kind](fields) if index >= GOOD.stages[0].body else None
        if changed and index < GOOD.stages[0].trace:
            places.append(index)
        return changed

    bench.overlay.load(patched(GOOD, change))
    message = rf"^there is no such instruction at {places[0]}; is the program damaged\?; instruction {places[0]}, "
    with pytest.raises(EngineError, match=message) as info:
        bench.overlay.run(small_pictures(2))
    assert info.value.code == ErrorCode.BAD_INSTRUCTION
    bench.assert_right_after_loading()


@pytest.mark.parametrize("words", [0, GEOMETRY.instruction_words + 1])
def test_more_instructions_than_there_is_memory_for_are_reported_and_the_next_run_is_right(bench, words):
    with pytest.raises(EngineError, match="no such instruction") as info:
        bench.overlay.load(with_stage(GOOD, instruction_load_words=words))
    assert info.value.code == ErrorCode.BAD_INSTRUCTION
    bench.assert_right_after_loading()


@pytest.mark.parametrize("words", [0, GEOMETRY.instruction_words + 1])
def test_a_page_of_instructions_that_there_is_no_room_for_is_reported_and_the_next_run_is_right(bench, words):
    def change(index, fields):
        return {"opcode": Opcode.PAGE, "count": words} if index == GOOD.stages[0].body else None

    bench.overlay.load(patched(GOOD, change))
    with pytest.raises(EngineError, match="no such instruction") as info:
        bench.overlay.run(small_pictures(1))
    assert info.value.code == ErrorCode.BAD_INSTRUCTION
    bench.assert_right_after_loading()


@pytest.mark.parametrize("seed", range(12))
def test_random_streams_end_in_time_and_the_next_run_is_right(bench, seed):
    """Jobs and steps are noise: the groups may never end, write anywhere, or seem to work."""
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    data = np.frombuffer(GOOD.data, np.uint8).copy()
    size = GEOMETRY.instruction_words * 8
    hits = slice(None) if seed % 2 else random.integers(0, len(data) - size, 50)
    data[size:][hits] = random.integers(0, 256, len(data[size:][hits]))
    noisy = dataclasses.replace(GOOD, data=data.tobytes())
    before = bench.simulator.cycles
    ended = "well"
    try:
        bench.overlay.load(noisy)
        bench.overlay.run(small_pictures(2, seed))
    except (EngineTimeout, EngineError) as error:
        ended = type(error).__name__
    print(f"ended {ended}")
    assert bench.simulator.cycles - before < 4 * LIMIT_CYCLES
    bench.assert_right_after_loading(note=f"seed {seed}")


# Limits of the engine


def test_a_job_longer_than_the_watchdog_allows_is_reported_and_the_next_run_is_right(bench):
    registers = bench.overlay.engine.register_map
    allowed = REGISTERS["watchdog"].reset
    assert bench.overlay.engine.get("watchdog") == allowed
    for cycles in (1, 50, 1000):
        registers.watchdog = cycles
        with pytest.raises(EngineError, match=r"^the job took more cycles than the watchdog allows; instr") as info:
            bench.overlay.run(small_pictures(1))
        assert info.value.code == ErrorCode.WATCHDOG
        registers.watchdog = allowed
        bench.assert_right()


@pytest.mark.parametrize("withheld", [False, True])
def test_a_doorbell_rung_too_often_is_reported_and_the_next_run_is_right(bench, withheld):
    engine = bench.overlay.engine
    source, target = bench.overlay._slots[0]
    bench.simulator.withhold_memory(withheld)
    bench.overlay._on_chip = None  # as after any use of the engine behind the overlay's back
    jobs = [engine.start(GOOD.stages[0].body, source.device_address, target.device_address) for _ in range(5)]
    with pytest.raises(EngineError, match=r"^a job was started while the queue was full; instruction \d+") as info:
        asyncio.run(engine.wait(jobs[-1]))
    assert info.value.code == ErrorCode.QUEUE_OVERFLOW
    bench.calm()
    bench.assert_right()


def test_an_entry_behind_the_program_does_not_keep_the_next_run_from_being_right(bench):
    bench.overlay.load(with_stage(GOOD, body=GEOMETRY.instruction_words // 2 - 1))
    before = bench.simulator.cycles
    try:
        bench.overlay.run(small_pictures(1))
    except (EngineTimeout, EngineError) as error:
        print(error)
    assert bench.simulator.cycles - before < 4 * LIMIT_CYCLES
    bench.assert_right_after_loading()


# The user gives up


def test_an_interrupted_run_does_not_keep_the_next_run_from_being_right(bench, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    cycles = bench.job_cycles(lambda: bench.overlay.run(small_pictures(1)))
    for fraction in (0.0, 0.3, 0.6, 0.9):
        with monkeypatch.context() as patch:
            bench.strike(patch, int(cycles * fraction), interrupt)
            with pytest.raises(KeyboardInterrupt):
                bench.overlay.run(small_pictures(3))
        bench.assert_right(note=f"fraction {fraction}")


def test_a_cancelled_run_does_not_keep_the_next_run_from_being_right(bench):
    async def give_up(turns):
        task = asyncio.ensure_future(bench.overlay.run_async(small_pictures(4)))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for turns in (1, 2, 5):
        asyncio.run(give_up(turns))
        bench.assert_right(note=f"after {turns} turns of the event loop")
