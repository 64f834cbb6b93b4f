"""What is wrong with a board that was just connected: for `sentei doctor --target`.

From the outside in, each step on what the one before has found: the overlay's files, the port, the rate, the firmware,
main memory, the engine's identity, its results. The first that fails says what to do, and ends it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sentei.driver import SenteiOverlay
from sentei.driver.errors import DeviceError, FingerprintMismatch
from sentei.host.apps.target import open_target
from sentei.host.compiler.compile import compile_network
from sentei.host.network import reference
from sentei.host.network.ir import WIDE, Conv, Network, Pads, Requantize, Shape, Tensor
from sentei.host.network.law import check
from sentei.overlay.errors import InputError, SenteiError
from sentei.overlay.geometry import Geometry
from sentei.overlay.manifest import Manifest
from sentei.overlay.serial_bridge import BAUD

RATES = (115_200, 230_400, 460_800, 500_000, 921_600, 2_000_000, 3_000_000)  # that are tried besides a board's own
TESTED_BYTES = 1 << 16
PICTURES = 3
SIZE = 12  # of the self-test's maps
SLOWER = "build with a lower --clock, or another --seed; if that does not help, the chip or its supply is at fault"


@dataclass(frozen=True)
class Check:
    """One step: what was found, or what is wrong and what helps."""

    name: str
    found: str
    wrong: str = ""
    remedy: str = ""


class _Ended(Exception):
    """A step has failed."""

    def __init__(self, check: Check):
        self.check = check


def examine_board(target: str, step: Callable) -> Iterator[Check]:
    """The steps' findings, each as soon as it is there; `step(text)` is the context of one."""
    try:
        with ExitStack() as opened:
            yield from _steps(target, step, opened)
    except _Ended as ended:
        yield ended.check


def _steps(target: str, step: Callable, opened: ExitStack) -> Iterator[Check]:
    directory, _, port = target.partition(":")
    if target == "predict":
        raise InputError("the target 'predict' computes nothing; use 'sim', or a board's")
    if target != "sim":
        manifest = _of_files(directory)
        yield Check("overlay", f"{manifest.name}: {manifest.geometry}, {manifest.clock_hz / 1e6:g} MHz")
        if manifest.target == "bridge":
            with step("looking for the board's port"):
                port = _port(port, manifest)
            yield Check("port", port)
            target = f"{directory}:{port}"
    with step("starting the SoC anew"):
        overlay = opened.enter_context(_opened(target))
    yield Check("firmware", "runs; main memory is initialised")
    yield Check("engine", f"{overlay.manifest.fingerprint:#010x}, as the overlay says")
    with step(f"writing and reading {TESTED_BYTES >> 10} KiB of main memory"):
        found = _memory(overlay)
    yield found
    with step("running a network"):
        found = _self_test(overlay)
    yield found


def _of_files(directory: str) -> Manifest:
    try:
        manifest = Manifest.load(directory)
        for role in manifest.files:
            manifest.file(role)
    except SenteiError as error:
        remedy = "build it with `sentei build`; `sentei build --help` tells how"
        raise _Ended(Check("overlay", "", str(error), remedy)) from error
    return manifest


def serial_ports() -> list[str]:
    """Paths of this machine's serial ports on USB."""
    from serial.tools import list_ports

    return sorted(port.device for port in list_ports.comports() if port.vid is not None)


def _port(named: str, manifest: Manifest) -> str:
    """The port at which the board answers: the one that is named, or of this machine's."""
    from sentei.driver.serial_link import Link

    def answers(port: str) -> str:
        """ "" if there is a SoC; else what is wrong."""
        try:
            with closing(Link(port)) as link:
                link.read(manifest.addresses["ctrl"])
        except (SenteiError, OSError) as error:
            return str(error)
        return ""

    path, _, rate = named.partition("@")
    candidates = [named] if named else serial_ports()
    if not candidates:
        remedy = "connect the board's USB port (a cable for data, not for power alone); `ls /dev/serial/by-id` shows it"
        raise _Ended(Check("port", "", "no serial port is on USB here", remedy))
    if path.startswith("/") and not os.access(path, os.R_OK | os.W_OK):
        if not Path(path).exists():
            others = ", ".join(serial_ports()) or "none; is the board connected, with a cable for data?"
            raise _Ended(Check("port", "", f"{path} does not exist", f"this machine's are {others}"))
        remedy = "sudo usermod -aG dialout $USER, and log in again"
        raise _Ended(Check("port", "", f"{path} may not be used by this user", remedy))
    wrong = {port: answers(port) for port in candidates}
    if working := next((port for port, text in wrong.items() if not text), None):
        return working
    if len(candidates) == 1 and not rate and not candidates[0].startswith("tcp:"):
        for other in RATES:
            if not answers(f"{candidates[0]}@{other}"):
                remedy = (
                    f"name it as {candidates[0]}@{other}. Is the bitstream the overlay's, and its clock "
                    f"{manifest.clock_hz / 1e6:g} MHz? The rate is {BAUD} then"
                )
                raise _Ended(Check("rate", "", f"the board answers at {other} baud, not at {BAUD}", remedy))
    bit = manifest.directory / manifest.files["bit"]["name"] if "bit" in manifest.files else manifest.directory
    remedy = (
        f"load the bitstream, {bit} (openFPGALoader -b BOARD {bit}). Its LED is then lit, and beats once a second when "
        "main memory works; dark, the FPGA has no bitstream or no clock. Close terminals that use the port"
    )
    raise _Ended(Check("port", "", "; ".join(wrong.values()), remedy))


def _opened(target: str) -> SenteiOverlay:
    try:
        return open_target(target)
    except FingerprintMismatch as error:
        raise _Ended(Check("engine", "", str(error), "load the bitstream that lies beside this manifest")) from error
    except DeviceError as error:
        remedy = "its LED counts: lit, memory is being initialised; flashes and a pause, an error. Power it off and on"
        raise _Ended(Check("firmware", "", str(error), f"{remedy}; a lower --clock may help")) from error


def _memory(overlay: SenteiOverlay) -> Check:
    from sentei.driver.quiet_pynq import pynq

    content = np.random.default_rng().integers(0, 256, TESTED_BYTES, np.uint8)
    buffer = pynq.allocate((TESTED_BYTES,), np.uint8)
    try:
        buffer[:] = content
        buffer.flush()
        if overlay.manifest.target == "bridge":  # where the buffer is a copy
            buffer[:] = 0
        buffer.invalidate()
    except DeviceError as error:
        raise _Ended(Check("main memory", "", str(error), SLOWER)) from error
    wrong = int(np.count_nonzero(np.asarray(buffer) != content))
    if wrong:
        raise _Ended(Check("main memory", "", f"{wrong} of {TESTED_BYTES} bytes are wrong", SLOWER))
    return Check("main memory", f"{TESTED_BYTES} bytes written and read, none wrong")


def _self_test(overlay: SenteiOverlay) -> Check:
    network = self_test_network(overlay.manifest.geometry)
    images = np.random.default_rng(1).integers(0, 16, (PICTURES, *network.tensors[network.input].shape))
    try:
        overlay.load(compile_network(network, overlay.manifest.geometry))
        outputs = overlay.run(images)
    except DeviceError as error:
        raise _Ended(Check("results", "", str(error), SLOWER)) from error
    expected = reference.run(network, images)[network.output]
    wrong = int(np.count_nonzero(np.asarray(outputs) != expected))
    if wrong:
        raise _Ended(Check("results", "", f"{wrong} of {expected.size} numbers differ from the reference", SLOWER))
    return Check(
        "results", f"{PICTURES} pictures, {overlay.last_cycles} cycles each, all {expected.size} numbers right"
    )


def self_test_network(geometry: Geometry) -> Network:
    """Two convolutions that use every lane and column, with sums of all sizes."""
    random = np.random.default_rng(0)
    channels, inner = 8, 2 * geometry.columns

    def weights(outputs: int, inputs: int) -> np.ndarray:
        return random.integers(-8, 8, (outputs, inputs, 3, 3)).astype(np.int16)

    tensors = {
        "picture": Tensor("picture", Shape(channels, SIZE, SIZE), 4, False),
        "inner": Tensor("inner", Shape(inner, SIZE, SIZE), 4, False),
        "result": Tensor("result", Shape(channels, SIZE, SIZE), WIDE, True),
    }
    line = (np.arange(1, 32) - 16) * random.integers(20, 200, (inner, 1)) + random.integers(-300, 300, (inner, 1))
    requantize = Requantize(line, np.zeros(inner, bool), np.zeros(inner, np.int64), np.full(inner, 15))
    pads = Pads(1, 1, 1, 1)
    ops = (
        Conv("first", "picture", "inner", weights(inner, channels), pads=pads, requantize=requantize),
        Conv("second", "inner", "result", weights(channels, inner), pads=pads),
    )
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return check(Network("self-test", tensors, ops, "picture", "result", ones, zeros))
