"""Commands on hardware, built or simulated: build, pack, upload, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from sentei.host.commands.console import (
    GeometryName,
    MemoryName,
    ModelOrProgram,
    read_model,
    say,
    step,
    writing,
)
from sentei.overlay.errors import InputError


def build(
    board: Annotated[
        str,
        typer.Argument(help="sim, or a board: ulx3s, pynq_z2, ...; one that does not exist is answered with the list"),
    ] = "sim",
    device: Annotated[
        str | None,
        typer.Option(help="which FPGA the board has, as 85F, if it comes with several; it decides the engine's size"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="folder (default: build/BOARD-DEVICE)"),
    ] = None,
    flow: Annotated[
        str | None, typer.Option(help="other tools than the board's own: openxc7 makes a PYNQ's bitstream, not Vivado")
    ] = None,
    clock: Annotated[
        float | None,
        typer.Option(
            min=1, help="MHz (default: the device's); a build that misses its clock says which one it reaches"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the placement; another may be faster")] = 1,
    bit: Annotated[
        Path | None,
        typer.Option(help="build nothing: add this bitstream, which Vivado has made of the project in the folder"),
    ] = None,
    geometry: GeometryName = "32x32",
    memory: MemoryName = "zynq-hp",
    report: Annotated[Path | None, typer.Option(help="file of the boards' figures (JSON) to add these to")] = None,
) -> None:
    """Build an overlay: the bitstream of a board, and the manifest that the driver reads.

    `sim` is the Verilated SoC, of any --geometry and --memory; other commands build it by themselves when they need it.
    A board's build ends with an error if the design does not fit or misses its clock.
    """
    from sentei.host.apps.target import build_board, build_simulator

    if board == "sim":
        with step(f"building the {geometry} simulator"):
            directory = build_simulator(geometry, memory)
    else:
        options = {
            "--device": device,
            "--output": output,
            "--flow": flow,
            "--seed": seed,
            "--clock": clock,
            "--bit": bit,
            "--report": report,
        }
        given = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
        directory = build_board([board, *given], step)
    say(f"overlay: {directory}")


def pack(
    model: ModelOrProgram,
    pictures: Annotated[list[Path], typer.Argument(help="image files, or .npy files of integers (N, C, H, W)")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="memory image (default: MODEL.image)")] = None,
    geometry: GeometryName = "32x32",
) -> None:
    """Put a program and pictures into one file for the soft CPU's firmware.

    Loaded to the begin of main memory, the command `run` on the serial port classifies the pictures, without a host.
    """
    from sentei.host.apps.pictures import read_pictures
    from sentei.host.apps.target import geometry_named
    from sentei.overlay.image import memory_image

    program = read_model(model)(geometry_named(geometry))
    image = memory_image(program, read_pictures(pictures, program)[0], program.classes)
    output = output or model.with_suffix(".image")
    with writing(output):
        output.write_bytes(image)
    say(f"memory image: {output} ({len(image)} bytes)")


def upload(
    image: Annotated[Path, typer.Argument(help="memory image (of `sentei pack`)")],
    target: Annotated[str, typer.Argument(help="a board's overlay and its port, as build/ulx3s-12F:/dev/ttyUSB0")],
) -> None:
    """Bring a memory image into a board's memory, where the firmware's `run` finds it."""
    from sentei.driver.bridge import BridgeDevice

    directory, _, port = target.partition(":")
    if not port:
        raise InputError(f"{target}: the board's serial port must follow, as in {target}:/dev/ttyUSB0")
    try:
        content = image.read_bytes()
    except OSError as error:
        raise InputError(f"{image}: cannot be read: {error.strerror}") from error
    device = BridgeDevice(directory, port)
    try:
        with step(f"{len(content)} bytes to {port}"):
            device.upload(content)
    finally:
        device.close()
    say("now type `run` in a terminal on that port")


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port on this machine; 0 chooses a free one")] = 1234,
    image: Annotated[Path | None, typer.Option(help="memory image (of `sentei pack`) to load first")] = None,
    geometry: GeometryName = "32x32",
    memory: MemoryName = "zynq-hp",
) -> None:
    """Simulate a SoC and put its serial port on TCP, until interrupted.

    A terminal talks to the firmware (nc localhost 1234), other commands use it as a board: --target
    build/sim/32x32-zynq-hp:tcp:localhost:1234
    """
    from sentei.driver.serve import listen
    from sentei.driver.serve import serve as serve_simulator
    from sentei.driver.simulator import Simulator
    from sentei.host.apps.target import build_simulator

    content = image.read_bytes() if image else b""
    with step(f"opening the {geometry} simulator"):
        directory = build_simulator(geometry, memory)
        simulator = Simulator(directory)
    if len(content) > len(simulator.memory):
        raise InputError(f"{image} must have at most {len(simulator.memory)} bytes, not {len(content)}")
    simulator.memory[: len(content)] = np.frombuffer(content, np.uint8)
    listener = listen(port)
    say(f"serial port: tcp:localhost:{listener.getsockname()[1]}")
    try:
        serve_simulator(simulator, listener)
    except KeyboardInterrupt:
        say("stopped")
