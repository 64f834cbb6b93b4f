"""Reads pictures as a program's integer input."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sentei.overlay.errors import InputError
from sentei.overlay.program import Program


def read_pictures(paths: list[Path], program: Program) -> np.ndarray:
    """Pictures (N, C, H, W) from .npy files (integers, one picture or a batch each) and image files.

    An image file is converted to the network's one or three channels; its size must be the network's.
    """
    batches = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such file")
        batches.append(read_array(path) if path.suffix == ".npy" else read_image(path, program)[None])
        if batches[-1].ndim == 3:
            batches[-1] = batches[-1][None]
        try:
            program.pack_input(batches[-1])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return np.concatenate(batches)


def read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: is not a .npy file of numbers ({error})") from error


def read_image(path: Path, program: Program) -> np.ndarray:
    """One image file as integers (C, H, W)."""
    from PIL import Image, UnidentifiedImageError

    source = program.input
    if source.channels not in (1, 3) or source.signed or source.bits != 8:
        raise InputError(
            f"{path}: the network takes {source.channels} channels of {source.bits} bits; give a .npy file"
        )
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture.convert("L" if source.channels == 1 else "RGB"), np.int64)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: is not a picture that can be read ({error})") from error
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if values.shape[1:] != (source.height, source.width):
        raise InputError(
            f"{path}: is {values.shape[2]}x{values.shape[1]} pixels, must be {source.width}x{source.height}; resize it"
        )
    return values
