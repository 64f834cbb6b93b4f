"""A folder of pictures with a folder for each class, as torchvision's ImageFolder has it.

FOLDER/CLASS/PICTURE          every fifth picture of a class, by name, is for testing
FOLDER/train/CLASS/PICTURE    those for testing lie in FOLDER/test/CLASS, or FOLDER/val/CLASS
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sentei.host.datasets.dataset import DatasetFormatError, DatasetMissingError, Split
from sentei.host.pictures import NoPictureError, fitted, open_picture, planes

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TESTING = ("test", "val")  # names of folders; the first that there is
EVERY = 5  # of a class's pictures one is for testing, where no folder says which
ORDER_SEED = 0  # of the order of all classes' pictures


def classes_of(root: Path) -> tuple[str, ...]:
    """The names of the classes: of the folders, sorted. DatasetError if there are fewer than two."""
    names = tuple(sorted(path.name for path in _top(root, "train").iterdir() if path.is_dir()))
    if len(names) < 2:
        raise DatasetFormatError(
            f"{_top(root, 'train')} must hold a folder of pictures for each class, at least two, not "
            f"{', '.join(names) or 'none'}"
        )
    return names


def read_split(root: Path, split: str, shape: tuple[int, int, int], progress: Callable[[int, int], object]) -> Split:
    """The "train" or the "test" pictures in the folder `root`, resized to (C, H, W), in an order without order; those
    for testing in that of their names. DatasetError for a folder without classes, a class without pictures, a file that
    is no picture."""
    classes = classes_of(root)
    top = _top(root, split)
    if unknown := sorted({path.name for path in top.iterdir() if path.is_dir()} - {*classes}):
        raise DatasetFormatError(f"{top} must hold no classes but those to train on, not {', '.join(unknown)}")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        of_class = sorted(path for path in (top / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if top == root:
            of_class = [path for number, path in enumerate(of_class) if (number % EVERY == 0) == (split == "test")]
        if not of_class and split == "train":
            raise DatasetFormatError(
                f"{top / name} must hold pictures ({', '.join(sorted(SUFFIXES))})"
                + (", at least two: one in five is for testing" if top == root else "")
            )
        files += [(path, label) for path in of_class]
    if not files:
        raise DatasetFormatError(f"{top} must hold pictures in folders named {', '.join(classes)}")
    channels, height, width = shape
    images, labels = np.empty((len(files), *shape), np.uint8), np.empty(len(files), np.int64)
    order = np.random.default_rng(ORDER_SEED).permutation(len(files)) if split == "train" else range(len(files))
    for place, number in enumerate(order):
        path, labels[place] = files[number]
        try:
            images[place] = planes(fitted(open_picture(path, channels), (width, height), "resize"))
        except NoPictureError as error:
            raise DatasetFormatError(f"{error}; mend it or take it away") from error
        progress(place + 1, len(files))
    return Split(images, labels)


def _top(root: Path, split: str) -> Path:
    """Where the classes' folders of a split lie."""
    if not (root / "train").is_dir():
        return root
    if split == "train":
        return root / "train"
    for name in TESTING:
        if (root / name).is_dir():
            return root / name
    raise DatasetMissingError(f"{root} has pictures to train on, but none for testing: {TESTING[0]}/ is not there")
