"""The driver on a Verilated SoC, in process, behind the bridge to its serial port, and at the addresses of pynq_z2's
`.hwh`: pynq's own classes at work, answers that are right, errors that leave it usable.
"""

import asyncio
import functools
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

pynq = pytest.importorskip("sentei.driver.quiet_pynq").pynq

from helpers.copy_program import CHANNELS, HEIGHT, WIDTH, copy_program
from helpers.mock_zynq import MockZynq

from sentei.driver import (
    DeviceNotResponding,
    EngineDriver,
    EngineError,
    EngineTimeout,
    FingerprintMismatch,
    OutOfMemoryError,
    SenteiOverlay,
)
from sentei.driver.allocator import Allocator
from sentei.driver.bridge import BridgeDevice
from sentei.driver.serve import listen, serve
from sentei.driver.simulator import Simulator
from sentei.overlay.errors import InputError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.manifest import Manifest, ManifestError
from sentei.overlay.registers import REGISTERS, VLNV, ErrorCode

LIMIT_CYCLES = 100_000
LIMIT_S = 1.0


class Shared:
    """A simulator that two threads use: the one that serves it, and the test."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator
        self._lock = threading.Lock()

    def __getattr__(self, name: str):
        value = getattr(self._simulator, name)
        if not callable(value):
            return value

        @functools.wraps(value)
        def alone(*arguments):
            with self._lock:
                return value(*arguments)

        return alone


@pytest.fixture(scope="module")
def pynq_z2(tmp_path_factory):
    """Overlay of a small engine, built as for the board; in Vivado's place stands a script that makes an empty file."""
    pytest.importorskip("litex_boards")
    from sentei.boards.flow import NAME, Device
    from sentei.boards.xilinx.pynq_z2 import BOARD

    directory = tmp_path_factory.mktemp("pynq_z2")
    vivado = directory / "vivado"
    vivado.write_text(f"""#!/bin/sh
[ "$1" = -version ] && exit
: > {NAME}.bit
printf 'WNS(ns)\\n-------\\n  0.100\\n' > {NAME}_timing.rpt
""")
    vivado.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(directory), prepend=os.pathsep)
        replace(BOARD, devices={"small": Device(PRESETS["8x8"], 16, 100_000_000)}).build("small", directory / "overlay")
    return directory / "overlay"


@pytest.fixture(scope="module", params=["in process", "bridge", "pynq_z2"])
def overlay(overlay_path, request):
    if request.param == "in process":
        with SenteiOverlay(overlay_path()) as overlay:
            overlay.engine.clock.limit = LIMIT_CYCLES
            yield overlay
        return
    if request.param == "pynq_z2":
        path = request.getfixturevalue("pynq_z2")
        with SenteiOverlay(path, device=MockZynq(path, overlay_path())) as overlay:
            overlay.engine.clock.limit = LIMIT_CYCLES
            yield overlay
        return
    simulator = Shared(Simulator(overlay_path()))
    listener = listen()
    server = threading.Thread(target=serve, args=(simulator, listener, 1), daemon=True)
    server.start()
    device = BridgeDevice(overlay_path(), f"tcp:localhost:{listener.getsockname()[1]}")
    with SenteiOverlay(overlay_path(), device=device) as overlay:
        overlay.engine.clock.limit = LIMIT_S
        device.simulator = simulator
        yield overlay
    server.join(10)
    assert not server.is_alive()
    simulator.close()


@pytest.fixture
def loaded(overlay):
    """An overlay that runs the copy program; simulated faults end with the test."""
    overlay.load(copy_program(overlay.manifest.geometry))
    yield overlay
    simulator = overlay.device.simulator
    simulator.withhold_memory(False)
    simulator.freeze(False)
    simulator.stall_memory(0)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 16, (count, CHANNELS, HEIGHT, WIDTH))


def test_pynq_itself_is_used(loaded):
    assert isinstance(loaded, pynq.Overlay) and loaded.is_loaded()
    assert loaded.ip_dict["engine"]["type"] == VLNV
    assert loaded.ip_dict["engine"]["driver"] is EngineDriver
    assert isinstance(loaded.engine, EngineDriver) and isinstance(loaded.engine, pynq.DefaultIP)
    assert set(REGISTERS) <= set(dir(loaded.engine.register_map))
    assert int(loaded.engine.register_map.geometry.lanes) == loaded.manifest.geometry.lanes


def test_an_interrupt_wait_goes_through_pynq(loaded, monkeypatch):
    """On a busy machine the job may end before the driver first looks: here it looks when the interrupt has come."""
    waits = []
    original, finished = pynq.Interrupt.wait, EngineDriver.finished
    before = loaded.device.interrupt_line.count

    async def wait(self):
        waits.append(self)
        await original(self)

    def finished_by_interrupt(self, job):
        return loaded.device.interrupt_line.count > before and finished(self, job)

    monkeypatch.setattr(pynq.Interrupt, "wait", wait)
    monkeypatch.setattr(EngineDriver, "finished", finished_by_interrupt)
    loaded.run(pictures(1))
    assert waits and loaded.device.interrupt_line.count > before


def test_buffers_lie_in_main_memory(overlay):
    buffer = pynq.allocate((16,), np.uint32)
    assert isinstance(buffer, pynq.buffer.PynqBuffer)
    buffer[:] = np.arange(16) * 0x01010101
    buffer.flush()
    buffer.invalidate()  # what is asked for comes after what was sent
    simulator = overlay.device.simulator
    assert [simulator.read(buffer.device_address + 4 * i) for i in range(16)] == buffer.tolist()
    simulator.write(buffer.device_address + 8, 0x12345678)
    buffer.invalidate()
    assert buffer[2] == 0x12345678 and buffer[1:].device_address == buffer.device_address + 4


def test_run_returns_what_the_program_computes(loaded):
    images = pictures(5)
    outputs = loaded.run(images)
    assert outputs.dtype == np.int32 and np.array_equal(outputs, images)
    assert outputs.logits.dtype == np.float32 and np.array_equal(outputs.logits, images * 0.5 + 1)
    assert 0 < loaded.last_cycles < 1000


def test_run_under_random_memory_stalls(loaded):
    calm = loaded.run(pictures(1)) is not None and loaded.last_cycles
    for seed in (1, 0xDEADBEEF):
        loaded.device.simulator.stall_memory(seed)
        assert np.array_equal(loaded.run(pictures(4, seed)), pictures(4, seed)), f"seed {seed}"
        assert loaded.last_cycles > calm


def test_stream_keeps_order_and_starts_ahead(loaded):
    images = pictures(7)
    started = []

    def source():
        for number, image in enumerate(images):
            started.append(number)
            yield image

    for number, output in enumerate(loaded.stream(source())):
        assert output.shape == images.shape[1:] and np.array_equal(output, images[number])
        assert len(started) >= min(number + 2, len(images))


def test_an_abandoned_stream_does_not_disturb_the_next_run(loaded):
    stream = loaded.stream(iter(pictures(5)))
    next(stream)
    stream.close()
    assert np.array_equal(loaded.run(pictures(2, 1)), pictures(2, 1))


def test_trace_returns_every_tensor(loaded):
    images = pictures(3)
    tensors = loaded.trace(images)
    assert list(tensors) == ["picture"] and np.array_equal(tensors["picture"], images)


def test_run_async_leaves_the_loop_to_others(loaded):
    async def both():
        async def tick():
            while True:
                ticks.append(1)
                loaded.device.simulator.withhold_memory(len(ticks) < 3)
                await asyncio.sleep(0)

        ticks: list[int] = []
        loaded.device.simulator.withhold_memory(True)
        other = asyncio.ensure_future(tick())
        outputs = await loaded.run_async(pictures(3))
        other.cancel()
        return outputs, len(ticks)

    outputs, ticks = asyncio.run(both())
    assert np.array_equal(outputs, pictures(3)) and ticks >= 3


def test_run_works_inside_a_running_event_loop(loaded):
    async def notebook_cell():
        return loaded.run(pictures(2))

    assert np.array_equal(asyncio.run(notebook_cell()), pictures(2))


def test_withheld_memory_times_out_with_the_engine_state_and_the_next_run_works(loaded):
    simulator = loaded.device.simulator
    simulator.withhold_memory(True)
    message = r"did not end within (100000 cycles|1.0 s); instruction \d+, .* last read at"
    with pytest.raises(EngineTimeout, match=message) as info:
        loaded.run(pictures(1))
    assert info.value.state["busy"] == 1 and info.value.state["loading"] == 1
    assert info.value.state["completed"] == 1  # the program's load
    simulator.withhold_memory(False)
    assert np.array_equal(loaded.run(pictures(2)), pictures(2))


def test_memory_withheld_during_recovery_reloads_the_overlay(loaded):
    simulator = loaded.device.simulator
    simulator.withhold_memory(True)
    for _ in range(2):
        with pytest.raises(EngineTimeout):
            loaded.run(pictures(1))
    simulator.withhold_memory(False)
    assert np.array_equal(loaded.run(pictures(2)), pictures(2))


def test_a_frozen_clock_is_reported_and_the_next_run_works(loaded):
    simulator = loaded.device.simulator
    simulator.freeze(True)
    with pytest.raises(DeviceNotResponding, match=r"g(ot|ives) no answer within"):
        loaded.run(pictures(1))
    simulator.freeze(False)
    assert np.array_equal(loaded.run(pictures(2)), pictures(2))


@pytest.mark.parametrize("kind, code", [("input", ErrorCode.READ_FAILED), ("output", ErrorCode.WRITE_FAILED)])
def test_a_bus_error_names_the_address_and_the_next_run_works(overlay, kind, code):
    geometry = overlay.manifest.geometry
    overlay.load(copy_program(geometry, **{f"{kind}_offset": 0x2000_0000}))
    with pytest.raises(EngineError, match=r"main memory failed at 0x6[0-9a-f]{7}") as info:
        overlay.run(pictures(1))
    assert info.value.code == code and 0x6000_0000 <= info.value.state["error_address"] < 0x6200_0000
    with pytest.raises(EngineError):  # the program is still wrong, the engine is not
        overlay.run(pictures(1))
    overlay.load(copy_program(geometry))
    assert np.array_equal(overlay.run(pictures(2)), pictures(2))


def test_an_unknown_instruction_is_reported(overlay):
    overlay.load(copy_program(overlay.manifest.geometry, opcode=15))
    with pytest.raises(EngineError, match="no such instruction at 5") as info:
        overlay.run(pictures(1))
    assert info.value.code == ErrorCode.BAD_INSTRUCTION


def test_a_program_for_another_geometry_is_refused_with_all_three_fingerprints(overlay):
    program = copy_program(PRESETS["16x16"])
    own = f"{overlay.manifest.fingerprint:#010x}"
    message = f"device {own}, overlay {own} .* program {program.fingerprint:#010x}"
    with pytest.raises(FingerprintMismatch, match=message):
        overlay.load(program)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((CHANNELS, HEIGHT, WIDTH), int), r"shape \(N, 3, 7, 5\),.* not \(3, 7, 5\)"),
        (np.zeros((1, CHANNELS, WIDTH, HEIGHT), int), r"shape \(N, 3, 7, 5\),.* not \(1, 3, 5, 7\)"),
        (np.zeros((1, CHANNELS, HEIGHT, WIDTH), np.float32), "must be integers"),
        (np.full((1, CHANNELS, HEIGHT, WIDTH), 16), "must be 0 to 15, not 16 to 16"),
    ],
)
def test_wrong_pictures_are_refused(loaded, images, message):
    with pytest.raises(InputError, match=message):
        loaded.run(images)


def test_a_board_without_its_port_is_refused(overlay_path, tmp_path):
    manifest = replace(Manifest.load(overlay_path()), target="bridge")
    for entry in manifest.files.values():
        shutil.copy(manifest.directory / entry["name"], tmp_path)
    replace(manifest, directory=tmp_path).save()
    with pytest.raises(InputError, match=r"is behind a serial port; name that, too, as in .*:/dev/ttyUSB0"):
        SenteiOverlay(tmp_path)


def test_running_without_a_program_is_refused(overlay_path):
    with SenteiOverlay(overlay_path()) as fresh, pytest.raises(InputError, match="call load"):
        fresh.run(pictures(1))


def test_two_overlays_in_one_process(loaded, overlay_path):
    with SenteiOverlay(overlay_path()) as second:
        second.load(copy_program(second.manifest.geometry))
        for seed in range(2):
            assert np.array_equal(second.run(pictures(1, seed)), pictures(1, seed))
            assert np.array_equal(loaded.run(pictures(1, seed)), pictures(1, seed))


def test_a_buffer_that_is_too_large_is_refused_and_memory_comes_back(overlay):
    free = overlay.device.free_bytes
    buffer = pynq.allocate((1000,), np.uint8)
    view = np.asarray(buffer)[10:]
    del buffer
    assert overlay.device.free_bytes == free - 1024  # the view still looks into it
    del view
    assert overlay.device.free_bytes == free
    with pytest.raises(OutOfMemoryError, match=r"must have at most .* bytes, not 1073741824"):
        pynq.allocate((1 << 30,), np.uint8)


def test_allocator_joins_neighbours():
    allocator = Allocator(4096)
    offsets = [allocator.allocate(1000) for _ in range(4)]
    assert len(set(offsets)) == 4
    with pytest.raises(OutOfMemoryError):
        allocator.allocate(1)
    for index in (1, 3, 0, 2):
        allocator.free(offsets[index], 1000)
    assert allocator.free_bytes == 4096 and allocator.allocate(4096) == 0


def test_a_manifest_whose_file_was_changed_is_refused(overlay_path, tmp_path):
    manifest = Manifest.load(overlay_path())
    for entry in manifest.files.values():
        (tmp_path / entry["name"]).write_bytes((manifest.directory / entry["name"]).read_bytes())
    (tmp_path / "manifest.json").write_text((manifest.directory / "manifest.json").read_text())
    (tmp_path / "sentei.hwh").write_text("something else")
    with pytest.raises(ManifestError, match=r"sentei.hwh: is not the file that was built"):
        SenteiOverlay(tmp_path)
    (tmp_path / "sentei.hwh").unlink()
    with pytest.raises(ManifestError, match=r"sentei.hwh: is missing; build the overlay again"):
        SenteiOverlay(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="is not JSON"):
        SenteiOverlay(tmp_path)


def test_importing_the_driver_says_nothing():
    code = "import sentei.driver; sentei.driver.SenteiOverlay"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_driver_can_be_imported_without_pynq():
    code = (
        "import sys; sys.modules['pynq'] = None\n"
        "import sentei.driver\n"
        "try: sentei.driver.SenteiOverlay\n"
        "except sentei.driver.PynqMissingError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pynq must be installed to run programs" in result.stdout, result.stderr
