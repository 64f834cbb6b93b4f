"""Image files as arrays: grey or RGB, 8 bits a channel, in the size that is wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sentei.overlay.errors import InputError


class NoPictureError(InputError):
    """A file is no picture that can be read."""


def open_picture(path: Path, channels: int) -> Image.Image:
    """The picture in a file, grey (1 channel) or RGB (3). NoPictureError; InputError for pixels of other than 8 or 16
    bits."""
    try:
        with Image.open(path) as opened:
            return eight_bits(opened, path).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise NoPictureError(f"{path}: is not a picture that can be read ({error})") from error


def eight_bits(picture: Image.Image, path: Path) -> Image.Image:
    """A picture whose channels have 8 bits; those of 16 lose the lower half."""
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{path}: has pixels from {values.min()} to {values.max()}; save it with 8 or 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if picture.mode == "F":
        raise InputError(f"{path}: has floating-point pixels; save it with 8 or 16 bits")
    return picture


def fitted(picture: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """The picture with `size`, (width, height)."""
    if picture.size == size:
        return picture
    if fit == "crop":
        return ImageOps.fit(picture, size)
    return ImageOps.pad(picture, size) if fit == "pad" else picture.resize(size)


def planes(picture: Image.Image) -> np.ndarray:
    """A picture of :func:`open_picture` as uint8 (C, H, W)."""
    values = np.asarray(picture)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
