"""The manifest: what an overlay is, written beside its files when it is built and checked when it is loaded.

JSON, one object; every address is in bytes as the host sees it, every file is listed with its SHA-256:

    {"format": 1, "name": "8x8-zynq-hp", "target": "sim", "geometry": {...}, "fingerprint": 305419896,
     "memory": {"name": "zynq-hp", ...}, "clock_hz": 100000000, "addresses": {"main_ram": ..., "engine": ...},
     "memory_bytes": 33554432, "files": {"library": {"name": "...", "sha256": "..."}, "hwh": ..., "bit": ...},
     "inputs": "sha256 of everything the build depends on"}
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sentei.overlay.errors import SenteiError
from sentei.overlay.geometry import Geometry
from sentei.overlay.instructions import fingerprint

MANIFEST_FORMAT = 1
MANIFEST_NAME = "manifest.json"
ADDRESSES = ("main_ram", "ctrl", "engine", "interrupts")  # base addresses that every overlay has
REMEDY = "build the overlay again with `sentei build`"


class ManifestError(SenteiError, ValueError):
    """An overlay cannot be used: its manifest is missing or damaged, or a file is not the one that was built."""


@dataclass(frozen=True)
class MemoryModel:
    """How main memory behaves, seen from the engine's port; cycles are those of the engine's clock.

    A word is `width_bits` wide. A read burst's first beat comes `latency_cycles` after its address was taken, a
    write's answer as long after its last beat; latencies of bursts that wait together overlap. Words follow every
    `cycles_per_word`; reads and writes do so at the same time if `duplex`, else they share. A bus narrower than a
    word carries one bus word in the time of a memory word. Refresh and row misses are not modelled.
    """

    name: str
    width_bits: int
    latency_cycles: int
    cycles_per_word: int
    duplex: bool

    def beat_cycles(self, bus_bits: int) -> int:
        """Cycles from one beat of `bus_bits` to the next."""
        return max(1, -(-bus_bits * self.cycles_per_word // self.width_bits))

    def bytes_per_cycle(self, bus_bits: int) -> float:
        """Peak bandwidth in one direction."""
        return bus_bits / 8 / self.beat_cycles(bus_bits)

    def __str__(self) -> str:
        sharing = "each way" if self.duplex else "shared by reads and writes"
        pace = "a cycle" if self.cycles_per_word == 1 else f"every {self.cycles_per_word} cycles"
        return f"{self.name}: {self.width_bits} bits {pace} {sharing}, latency {self.latency_cycles} cycles"


LITEDRAM, LITEDRAM_DDR3 = "litedram", "litedram-ddr3"  # simulated: a chip's model behind LiteDRAM, which refreshes it
MEMORY_MODELS = {
    model.name: model
    for model in (
        MemoryModel("zynq-hp", width_bits=64, latency_cycles=20, cycles_per_word=1, duplex=True),
        MemoryModel("ulx3s-sdram", width_bits=16, latency_cycles=10, cycles_per_word=1, duplex=False),
        MemoryModel("colorlight-sdram", width_bits=32, latency_cycles=10, cycles_per_word=1, duplex=False),
        MemoryModel("ddr3", width_bits=128, latency_cycles=20, cycles_per_word=1, duplex=False),
        MemoryModel(LITEDRAM, width_bits=16, latency_cycles=10, cycles_per_word=1, duplex=False),
        MemoryModel(LITEDRAM_DDR3, width_bits=128, latency_cycles=20, cycles_per_word=1, duplex=False),
    )
}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """One built overlay. `directory` is where it was read from; `file()` gives checked paths."""

    name: str
    target: str
    geometry: Geometry
    memory: MemoryModel
    clock_hz: int
    addresses: dict[str, int]
    memory_bytes: int
    files: dict[str, dict[str, str]]
    inputs: str
    directory: Path

    @property
    def fingerprint(self) -> int:
        return fingerprint(self.geometry)

    def file(self, role: str) -> Path:
        """Path of the file that plays `role`; ManifestError if it is missing or not the one that was built."""
        if role not in self.files:
            raise ManifestError(f"{self.directory}: the overlay has no {role} file; {REMEDY}")
        path = self.directory / self.files[role]["name"]
        if not path.is_file():
            raise ManifestError(f"{path}: is missing; {REMEDY}")
        if sha256_of(path) != self.files[role]["sha256"]:
            raise ManifestError(f"{path}: is not the file that was built (SHA-256 differs); {REMEDY}")
        return path

    def save(self) -> Path:
        """Write the manifest into `directory`."""
        values = {k: v for k, v in self.__dict__.items() if k != "directory"}
        values.update(
            format=MANIFEST_FORMAT,
            fingerprint=self.fingerprint,
            geometry=self.geometry.to_dict(),
            memory=asdict(self.memory),
        )
        path = self.directory / MANIFEST_NAME
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        temporary.replace(path)
        return path

    @staticmethod
    def load(path: str | Path) -> Manifest:
        """Read a manifest, or the one in a directory. Its files are checked when `file()` asks for them."""
        path = Path(path)
        path = path / MANIFEST_NAME if path.is_dir() else path
        try:
            values = json.loads(path.read_text())
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read: {error.strerror}; {REMEDY}") from error
        except ValueError as error:
            raise ManifestError(f"{path}: is not JSON ({error}); {REMEDY}") from error
        try:
            version = values.pop("format")
            if version != MANIFEST_FORMAT:
                raise ManifestError(f"{path}: has format {version!r}, this software reads {MANIFEST_FORMAT}; {REMEDY}")
            stored = values.pop("fingerprint")
            values["geometry"] = Geometry(**values["geometry"])
            values["memory"] = MemoryModel(**values["memory"])
            manifest = Manifest(directory=path.parent, **values)
            missing = [name for name in ADDRESSES if name not in manifest.addresses]
        except ManifestError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{path}: does not describe an overlay ({error}); {REMEDY}") from error
        if missing:
            raise ManifestError(f"{path}: lacks the address of {', '.join(missing)}; {REMEDY}")
        if stored != manifest.fingerprint:
            raise ManifestError(
                f"{path}: was built with other formats (fingerprint {stored:#010x}, "
                f"this software's {manifest.fingerprint:#010x}); {REMEDY}"
            )
        return manifest
