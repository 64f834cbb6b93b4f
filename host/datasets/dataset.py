"""What a data set is: images with labels, for training and for testing, and what can be wrong with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from sentei.overlay.errors import SenteiError


class DatasetError(SenteiError):
    """A data set cannot be used as it is on this machine."""


class DatasetMissingError(DatasetError, FileNotFoundError):
    """A file of the data set does not exist."""


class DatasetFormatError(DatasetError, ValueError):
    """A file of the data set is not what it should be."""


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
