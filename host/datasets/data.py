"""Data sets from the files they are published as, with numpy alone: CIFAR-10's binary version, and IDX files.

    load("cifar10", "cifar-10-batches-bin")  ->  DataSet(train, test, classes)

Both formats are described where they come from:

CIFAR-10  https://www.cs.toronto.edu/~kriz/cifar.html ("binary version"): records of one label byte and 3 x 32 x 32
          pixels, in the files data_batch_1.bin to data_batch_5.bin and test_batch.bin.
IDX       http://yann.lecun.com/exdb/mnist/: two zero bytes, an element type, the number of dimensions, each dimension
          as a big-endian 32-bit word, then the elements in C order; often gzip-compressed (.gz).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sentei.overlay.errors import SenteiError

_UNSIGNED_BYTE = 0x08
_CIFAR_SHAPE = (3, 32, 32)


class DatasetError(SenteiError):
    """A data set cannot be used as it is on this machine."""


class DatasetMissingError(DatasetError, FileNotFoundError):
    """A file of the data set does not exist."""


class DatasetFormatError(DatasetError, ValueError):
    """A file of the data set is not what it should be."""


@dataclass(frozen=True)
class Kind:
    """A data set that :func:`load` knows: where it is found, where to get it, and what its classes are called."""

    classes: tuple[str, ...]
    source: str
    variable: str  # environment variable that names its folder
    mirror: bool = True  # whether a mirrored image is still one of its class
    folder: Path | None = None  # where a package manager installs it


KINDS = {
    "cifar10": Kind(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and unpack it",
        "SENTEI_CIFAR10",
    ),
    "fashion-mnist": Kind(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "install Debian's dataset-fashion-mnist, or download the four *-ubyte.gz files of "
        "https://github.com/zalandoresearch/fashion-mnist",
        "SENTEI_FASHION_MNIST",
        folder=Path("/usr/share/datasets/fashion-mnist"),
    ),
    "mnist": Kind(
        tuple("0123456789"),
        "download the four *-ubyte.gz files of http://yann.lecun.com/exdb/mnist/",
        "SENTEI_MNIST",
        mirror=False,
    ),
}


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64. DatasetError if they are anything else."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DatasetError(
                f"images must be uint8 (N, C, H, W), pixels from 0 to 255, not {images.dtype} {images.shape}"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DatasetError(
                f"labels must be int64 ({len(images)},), one for each image, not {labels.dtype} {labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

    def __post_init__(self):
        for split in (self.train, self.test):
            if not len(split) or not 0 <= split.labels.min() <= split.labels.max() < len(self.classes):
                raise DatasetError(
                    f"{self.name} must hold images whose labels are 0 to {len(self.classes) - 1}, one "
                    f"for each class, not {sorted(set(split.labels.tolist()))[:20]}"
                )

    def digest(self) -> str:
        """SHA-256 of all images and labels."""
        content = hashlib.sha256()
        for split in (self.train, self.test):
            for array in (split.images, split.labels):
                content.update(np.ascontiguousarray(array).data)
        return content.hexdigest()


def load(kind: str, folder: str | os.PathLike[str] | None = None) -> DataSet:
    """The data set `kind`, a key of KINDS. DatasetError if a file is missing or not what it should be.

    Its folder is the argument, else what the kind's environment variable names, else where a package installs it.
    """
    return DataSet(kind, load_split(kind, "train", folder), load_split(kind, "test", folder), KINDS[kind].classes)


def load_split(kind: str, split: str, folder: str | os.PathLike[str] | None = None) -> Split:
    """The "train" or the "test" images of a data set alone; arguments and errors as for :func:`load`."""
    if kind not in KINDS:
        raise DatasetError(f"the data set must be one of {', '.join(KINDS)}, not {kind!r}")
    if split not in ("train", "test"):
        raise DatasetError(f"split must be 'train' or 'test', not {split!r}")
    known = KINDS[kind]
    chosen = folder or os.environ.get(known.variable) or known.folder
    if chosen is None:
        raise DatasetMissingError(
            f"no folder is named for {kind}: {known.source}; then name the folder, or set {known.variable} to it"
        )
    root = Path(chosen)
    try:
        return _cifar10(root, split) if kind == "cifar10" else _idx_split(root, split)
    except FileNotFoundError as error:
        raise DatasetMissingError(
            f"{error.filename} does not exist: {known.source}; then name the folder, or set {known.variable} to it"
        ) from None
    except OSError as error:
        raise DatasetError(f"{error.filename or root} cannot be read: {error.strerror}") from error


def _cifar10(root: Path, split: str) -> Split:
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if split == "train" else ["test_batch.bin"]
    record = 1 + int(np.prod(_CIFAR_SHAPE))
    parts = []
    for path in [root / name for name in names]:
        raw = np.fromfile(path, np.uint8)
        if not raw.size or raw.size % record:
            raise DatasetFormatError(
                f"{path} must hold records of {record} bytes, not {raw.size} bytes; download the binary version again"
            )
        parts.append(raw.reshape(-1, record))
    records = np.concatenate(parts)
    if records[:, 0].max() > 9:
        raise DatasetFormatError(
            f"{root} must hold labels from 0 to 9, not {records[:, 0].max()}; download the binary version again"
        )
    return Split(records[:, 1:].reshape(-1, *_CIFAR_SHAPE), records[:, 0].astype(np.int64))


def _idx_split(root: Path, split: str) -> Split:
    prefix = "train" if split == "train" else "t10k"
    images, labels = (
        load_idx(_plain_or_gz(root / f"{prefix}-{name}")) for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DatasetFormatError(
            f"{root} must hold (N, H, W) images and (N,) labels, not {images.shape} and {labels.shape}"
        )
    if not labels.size or labels.max() > 9:
        raise DatasetFormatError(
            f"{root} must hold labels from 0 to 9, not {labels.max(initial=0)} among {labels.size}; download it again"
        )
    return Split(images[:, None], labels.astype(np.int64))


def _plain_or_gz(path: Path) -> Path:
    return path if path.exists() else path.with_name(path.name + ".gz")


def load_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The uint8 array in an IDX file, plain or gzip-compressed (by its ``.gz`` suffix)."""
    path = Path(path)
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DatasetFormatError(f"{path} must be a complete gzip file, but: {error}; download it again") from error
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DatasetFormatError(f"{path} must start with 00 00 08 (IDX, unsigned bytes), not {raw[:3].hex(' ')!r}")
    header_bytes = 4 + 4 * raw[3]
    if len(raw) < header_bytes:
        raise DatasetFormatError(f"{path} ends inside its header; download it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header_bytes])
    elements = np.frombuffer(raw, np.uint8, offset=header_bytes)
    if elements.size != np.prod(shape, dtype=np.int64):
        raise DatasetFormatError(f"{path} must hold {shape} elements, not {elements.size}; download it again")
    return elements.reshape(shape)
