"""Data sets: those that are known by name, where they are found and where to get them, and folders of pictures.

load("cifar10", "cifar-10-batches-bin")     ->  DataSet(train, test, classes)
load("flowers/", shape=(3, 64, 64))         ->  the same of a folder with a folder for each class
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sentei.host.datasets import cifar10, idx
from sentei.host.datasets import folder as pictures
from sentei.host.datasets.dataset import DataSet, DatasetError, DatasetMissingError, Split


@dataclass(frozen=True)
class Kind:
    """A data set that :func:`load` knows: where it is found, where to get it, and what its classes are called."""

    classes: tuple[str, ...]
    source: str
    variable: str  # environment variable that names its folder
    read: Callable[[Path, str], Split]  # the "train" or "test" images in a folder
    mirror: bool = True  # whether a mirrored image is still one of its class
    folder: Path | None = None  # where a package manager installs it


KINDS = {
    "cifar10": Kind(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and unpack it",
        "SENTEI_CIFAR10",
        cifar10.read_split,
    ),
    "fashion-mnist": Kind(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "install Debian's dataset-fashion-mnist, or download the four *-ubyte.gz files of "
        "https://github.com/zalandoresearch/fashion-mnist",
        "SENTEI_FASHION_MNIST",
        idx.read_split,
        folder=Path("/usr/share/datasets/fashion-mnist"),
    ),
    "mnist": Kind(
        tuple("0123456789"),
        "download the four *-ubyte.gz files of http://yann.lecun.com/exdb/mnist/",
        "SENTEI_MNIST",
        idx.read_split,
        mirror=False,
    ),
}

Progress = Callable[[int, int], object]
PICTURE_SHAPE = (3, 32, 32)


def ignore(done: int, total: int) -> None:
    """For callers that do not want to be told."""


def folder_of(kind: str) -> Path | None:
    """Where a data set is if nobody names a folder; None if it may be anywhere."""
    named = os.environ.get(KINDS[kind].variable)
    return Path(named) if named else KINDS[kind].folder


def load(
    kind: str,
    folder: str | os.PathLike[str] | None = None,
    shape: tuple[int, int, int] | None = None,
    progress: Progress = ignore,
) -> DataSet:
    """The data set `kind`: a key of KINDS, or a folder of pictures (datasets/folder.py), which are resized to `shape`,
    (C, H, W). DatasetError if a file is missing or not what it should be.

    The folder of a known one is the argument, else what the kind's environment variable names, else where a package
    installs it.
    """
    train, test = (load_split(kind, split, folder, shape, progress) for split in ("train", "test"))
    if kind in KINDS:
        return DataSet(kind, train, test, KINDS[kind].classes)
    return DataSet(Path(kind).resolve().name, train, test, pictures.classes_of(Path(kind)))


def load_split(
    kind: str,
    split: str,
    folder: str | os.PathLike[str] | None = None,
    shape: tuple[int, int, int] | None = None,
    progress: Progress = ignore,
) -> Split:
    """The "train" or the "test" images of a data set alone; arguments and errors as for :func:`load`."""
    if split not in ("train", "test"):
        raise DatasetError(f"split must be 'train' or 'test', not {split!r}")
    if kind in KINDS:
        return _known(kind, split, folder)
    if not Path(kind).is_dir():
        raise DatasetError(
            f"the data set must be one of {', '.join(KINDS)}, or a folder with a folder of pictures for each class, "
            f"not {kind!r}"
        )
    if folder is not None:
        raise DatasetError(f"the pictures lie in {kind}, so no other folder ({folder}) can be named for them")
    return pictures.read_split(Path(kind), split, shape or PICTURE_SHAPE, progress)


def _known(kind: str, split: str, folder: str | os.PathLike[str] | None) -> Split:
    known = KINDS[kind]
    root = Path(folder) if folder else folder_of(kind)
    if root is None:
        raise DatasetMissingError(
            f"no folder is named for {kind}: {known.source}; then name the folder, or set {known.variable} to it"
        )
    try:
        return known.read(root, split)
    except FileNotFoundError as error:
        raise DatasetMissingError(
            f"{error.filename} does not exist: {known.source}; then name the folder, or set {known.variable} to it"
        ) from None
    except OSError as error:
        raise DatasetError(f"{error.filename or root} cannot be read: {error.strerror}") from error
