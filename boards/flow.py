"""What turns a board's SoC into an overlay's files: the tools of one vendor, or of the simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentei.gateware.technologies.technology import Technology
from sentei.overlay.errors import BuildError
from sentei.overlay.geometry import Geometry

NAME = "sentei"  # of all files
# stage(text) is the context of a step, and gives a function that shows how far it is, or None.
Stage = Callable[[str], AbstractContextManager[Callable[[str], object] | None]]


@contextmanager
def silent(text: str) -> Iterator[None]:
    """The context of a step that nobody watches."""
    yield None


@dataclass(frozen=True)
class Device:
    """A device that boards come with, and what is built for it: the engine, with so many of its multipliers."""

    geometry: Geometry
    multipliers: int
    clock_hz: int


@dataclass(frozen=True)
class Outcome:
    """What a flow made: files by their role in the manifest, and figures; or what was `missing` to make them."""

    files: dict[str, Path]
    figures: dict[str, Any] = field(default_factory=dict)
    missing: str = ""


class ClockMissed(BuildError):
    """A design is placed and routed, but not fast enough. `reached_mhz`: what its own clock reaches, if that one is the
    reason."""

    def __init__(self, text: str, reached_mhz: float | None):
        super().__init__(text)
        self.reached_mhz = reached_mhz


class Flow(ABC):
    """Tools, and the form that the engine has for them."""

    @abstractmethod
    def technology(self, multipliers: int) -> Technology:
        """What the datapath is made of on a device that gives it so many multipliers."""

    def constrain(self, platform: Any, device: Device, engine: Any) -> None:  # noqa: B027 (most need not)
        """Give cells of the engine places, before any Verilog is written."""

    def write_verilog(self, soc: Any, platform: Any, work: Path) -> list[Path]:
        """Write Verilog and constraints to `work`; returns all sources."""
        platform.build(soc, build_dir=str(work), build_name=NAME, run=False, **self.build_options())
        others = (Path(source) for source, *_ in platform.sources)
        return [work / f"{NAME}.v", *(path for path in others if path.name != f"{NAME}.v")]

    def build_options(self) -> dict[str, Any]:
        """Of LiteX's `platform.build`."""
        return {}

    @abstractmethod
    def implement(
        self, label: str, device: Device, platform: Any, sources: list[Path], work: Path, seed: int, stage: Stage
    ) -> Outcome:
        """Make the files from what is in `work`, each step in the context `stage(text)`. BuildError if the design does
        not fit or a clock is missed. `label` is what errors call it."""

    @abstractmethod
    def tools(self) -> dict[str, str]:
        """Names and versions."""
