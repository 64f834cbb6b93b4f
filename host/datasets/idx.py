"""IDX files (http://yann.lecun.com/exdb/mnist/): two zero bytes, an element type, the number of dimensions, each
dimension as a big-endian 32-bit word, then the elements in C order; often gzip-compressed (.gz).
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from sentei.host.datasets.dataset import DatasetFormatError, Split

_UNSIGNED_BYTE = 0x08


def read_split(root: Path, split: str) -> Split:
    """The "train" or "test" images of MNIST, or of a data set in its files, in the folder `root`."""
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
