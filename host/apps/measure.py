"""Measurements that need a target: does it compute what the reference computes, and in how many cycles?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sentei.driver import SenteiOverlay
from sentei.host.network import reference
from sentei.host.network.ir import Network
from sentei.overlay.program import Program
from sentei.overlay.registers import PROFILE_WORDS

PER_PATCH = {"cycles", *PROFILE_WORDS}  # of a profile's record

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
    return rng.integers(source.low, source.high + 1, (count, *program.input_shape))


def first_difference(
    overlay: SenteiOverlay, network: Network, images: np.ndarray, progress: Progress | None = None
) -> Difference | None:
    """Compares every element of every layer for every picture; None if all are equal. The program must be loaded."""
    pictures = overlay.program.pictures
    for start in range(0, len(images), pictures):
        batch = images[start : start + pictures]
        expected = reference.run(network, batch)
        measured = overlay.trace(batch)
        for op in network.ops:
            ours, theirs = measured[op.output], expected[op.output]
            unequal = np.argwhere(ours != theirs)
            if len(unequal):
                picture, channel, row, column = place = tuple(int(v) for v in unequal[0])
                values = (int(ours[place]), int(theirs[place]))
                return Difference(start + picture, op.name, op.output, channel, row, column, *values, len(unequal))
        if progress is not None:
            progress(start + len(batch), len(images))
    return None


@dataclass(frozen=True)
class Benchmark:
    """Cycles of one picture on a target, in a batch: its share of them.

    `layers` has a dict for each layer: name, kind, the profile's words, bound_cycles and utilisation (bound / cycles);
    or none, if the target's profile has no room for as many.
    """

    cycles: float
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
            "batch": program.pictures,
            "geometry": program.geometry.to_dict(),
            "memory_model": dict(memory.__dict__),
            "cycles": self.cycles,
            "bound_cycles": self.bound_cycles,
            "utilisation": self.utilisation,
            "fps_100mhz": 1e8 / self.cycles,
            "simulated_khz": self.simulated_khz,
            "layers": self.layers,
        }


def benchmark(overlay: SenteiOverlay, jobs: int = 4, seed: int = 0) -> Benchmark:
    """Runs random pictures and reads cycles and profile of the last job; of four or more, so that jobs overlap."""
    program = overlay.program
    batches = max(-(-jobs * stage.input.pictures // (stage.jobs * program.pictures)) for stage in program.stages)
    images = random_images(program, batches * program.pictures, seed)
    simulator = getattr(overlay.device, "simulator", None)
    start_cycles = simulator.cycles if simulator else 0
    layers: list[dict] = []
    tensors, seconds = program.given(images), 0.0
    for number, stage in enumerate(program.stages):
        start = time.perf_counter()
        tensors |= overlay.run_stage(number, tensors)
        seconds += time.perf_counter() - start
        profile = overlay.profile()  # nothing, if the stage has too many layers
        for info, own in zip(stage.layers[: len(profile)], profile, strict=True):
            record = {
                name: stage.share(value, of_patch=True) if name in PER_PATCH else value for name, value in own.items()
            }
            bound = info.bound_cycles
            extra = {"kind": info.kind, "macs": info.macs, "dense_macs": info.dense_macs, "bound_cycles": bound}
            layers.append(record | {"layer": len(layers)} | extra | {"utilisation": bound / record["cycles"]})
    if len(layers) < len(program.layers):
        layers = []
    simulated = (simulator.cycles - start_cycles if simulator else 0) / seconds / 1e3
    bound = sum(info.bound_cycles for info in program.layers)
    return Benchmark(overlay.picture_cycles, bound, layers, simulated)
