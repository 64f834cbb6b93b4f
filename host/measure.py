"""Measurements that need a target: does it compute what the reference computes, and in how many cycles?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sentei.driver import SenteiOverlay
from sentei.host import reference
from sentei.host.ir import Network
from sentei.overlay.program import Program

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Difference:
    """The first element in which a target and the reference disagree."""

    image: int
    layer: str
    tensor: str
    channel: int
    row: int
    column: int
    target: int
    reference: int
    differing: int  # elements of that tensor

    def __str__(self) -> str:
        return (
            f"picture {self.image}, layer {self.layer}: channel {self.channel}, row {self.row}, column {self.column} "
            f"is {self.target}, must be {self.reference} ({self.differing} elements of {self.tensor!r} differ)"
        )


def random_images(program: Program, count: int, seed: int = 0) -> np.ndarray:
    """Pictures of uniformly random pixels over the whole range, int64 (count, C, H, W)."""
    source = program.input
    rng = np.random.default_rng(seed)
    return rng.integers(source.low, source.high + 1, (count, source.channels, source.height, source.width))


def first_difference(
    overlay: SenteiOverlay, network: Network, images: np.ndarray, progress: Progress | None = None
) -> Difference | None:
    """Compares every element of every layer for every picture; None if all are equal. The program must be loaded."""
    for number, image in enumerate(images):
        expected = reference.run(network, image[None])
        measured = overlay.trace(image[None])
        for op in network.ops:
            ours, theirs = measured[op.output][0], expected[op.output][0]
            unequal = np.argwhere(ours != theirs)
            if len(unequal):
                channel, row, column = (int(v) for v in unequal[0])
                values = (int(ours[channel, row, column]), int(theirs[channel, row, column]))
                return Difference(number, op.name, op.output, channel, row, column, *values, len(unequal))
        if progress is not None:
            progress(number + 1, len(images))
    return None


@dataclass(frozen=True)
class Benchmark:
    """Cycles of one picture on a target, from its doorbell to its result in main memory.

    `layers` has a dict for each layer: name, kind, the profile's words, bound_cycles and utilisation (bound / cycles).
    """

    cycles: int
    bound_cycles: float
    layers: list[dict]
    simulated_khz: float

    @property
    def utilisation(self) -> float:
        return self.bound_cycles / self.cycles

    def to_dict(self, program: Program, overlay: SenteiOverlay) -> dict:
        memory = overlay.manifest.memory
        return {
            "model": program.name,
            "geometry": program.geometry.to_dict(),
            "memory_model": dict(memory.__dict__),
            "cycles": self.cycles,
            "bound_cycles": self.bound_cycles,
            "utilisation": self.utilisation,
            "fps_100mhz": 1e8 / self.cycles,
            "simulated_khz": self.simulated_khz,
            "layers": self.layers,
        }


def benchmark(overlay: SenteiOverlay, images: np.ndarray) -> Benchmark:
    """Runs `images` and reads cycles and profile of the last: give four or more, so that pictures overlap."""
    program = overlay.program
    simulator = getattr(overlay.device, "simulator", None)
    start_cycles = simulator.cycles if simulator else 0
    start = time.perf_counter()
    overlay.run(images)
    seconds = time.perf_counter() - start
    simulated = (simulator.cycles - start_cycles if simulator else 0) / seconds / 1e3
    layers = []
    for info, record in zip(program.layers, overlay.profile(), strict=True):
        bound = info.bound_cycles
        extra = {"kind": info.kind, "macs": info.macs, "dense_macs": info.dense_macs, "bound_cycles": bound}
        layers.append(record | extra | {"utilisation": bound / record["cycles"]})
    bound = sum(info.bound_cycles for info in program.layers)
    return Benchmark(overlay.last_cycles, bound, layers, simulated)
