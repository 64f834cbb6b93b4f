"""Fashion-MNIST from its gzip-compressed IDX files, with numpy alone.

IDX (http://yann.lecun.com/exdb/mnist/): two zero bytes, an element type, the number of dimensions, each dimension as a
big-endian 32-bit word, then the elements in C order.  The data set is Debian's ``dataset-fashion-mnist`` (MIT licence).
"""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np

from sentei.overlay.errors import SenteiError

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FOLDER_VARIABLE = "SENTEI_FASHION_MNIST"

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)

_PREFIXES = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08


class DatasetError(SenteiError):
    """A data set cannot be used as it is on this machine."""


class DatasetMissingError(DatasetError, FileNotFoundError):
    """A file of the data set does not exist."""


class DatasetFormatError(DatasetError, ValueError):
    """A file of the data set is not what it should be."""


def load_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The uint8 array in an IDX file, plain or gzip-compressed (by its ``.gz`` suffix)."""
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise DatasetMissingError(
            f"{path} does not exist: install Debian's dataset-fashion-mnist, or set {FOLDER_VARIABLE} to the folder "
            "that holds the four *-ubyte.gz files of https://github.com/zalandoresearch/fashion-mnist"
        ) from None
    except (EOFError, gzip.BadGzipFile) as error:
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


def fashion_mnist(split: str, folder: str | os.PathLike[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,), both uint8, of the "train" (N = 60,000) or "test" (N = 10,000) split.

    The folder is the argument, else the environment variable SENTEI_FASHION_MNIST, else where Debian installs it.
    """
    if split not in _PREFIXES:
        raise DatasetError(f"split must be one of {', '.join(map(repr, _PREFIXES))}, not {split!r}")
    root = Path(folder or os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    prefix = _PREFIXES[split]
    images = load_idx(root / f"{prefix}-images-idx3-ubyte.gz")
    labels = load_idx(root / f"{prefix}-labels-idx1-ubyte.gz")
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DatasetFormatError(
            f"{root} must hold (N, 28, 28) images and (N,) labels, not {images.shape} and {labels.shape}"
        )
    return images, labels
