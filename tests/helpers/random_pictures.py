"""Pictures of four coloured patches with some noise, and their labels; random numbers come from SEED."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sentei.host.datasets import dataset

SEED = 20210822
SIZE = 8
CLASSES = 4


def split_of(count: int, seed: int = SEED) -> dataset.Split:
    """Pictures of four coloured patches with some noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 224, (count, 3, 2, 2)).repeat(SIZE // 2, 2).repeat(SIZE // 2, 3)
    images = (patches + rng.integers(0, 32, patches.shape)).astype(np.uint8)
    return dataset.Split(images, np.arange(count) % CLASSES)


def data_set(train: int = 32, test: int = 16) -> dataset.DataSet:
    return dataset.DataSet("random", split_of(train), split_of(test, SEED + 1), tuple("abcd"))


def write_cifar10(folder: Path, each: int, test: int, seed: int) -> None:
    """The files of CIFAR-10, of random pictures: `each` in a file to train on, `test` for testing."""
    rng = np.random.default_rng(seed)
    for name, count in [(f"data_batch_{number}", each) for number in range(1, 6)] + [("test_batch", test)]:
        records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = rng.integers(0, 10, count)
        records.tofile(folder / f"{name}.bin")
