"""CIFAR-10's binary version: records of one label byte and 3 x 32 x 32 pixels, in the files data_batch_1.bin to
data_batch_5.bin and test_batch.bin (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sentei.host.datasets.dataset import DatasetFormatError, Split

_CIFAR_SHAPE = (3, 32, 32)


def read_split(root: Path, split: str) -> Split:
    """The "train" or "test" images in the folder `root`."""
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
