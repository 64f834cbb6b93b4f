"""Reads pictures as a program's integer input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sentei.host.pictures import NoPictureError, fitted, open_picture, planes
from sentei.overlay.errors import InputError
from sentei.overlay.program import Program

FITS = ("resize", "crop", "pad")


def read_pictures(
    paths: list[Path], program: Program, fit: str | None = None, notice: Callable[[str], None] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Pictures (N, C, H, W) from .npy files (integers, one picture or a batch each) and image files, and their names.

    An image file is converted to the network's one or three channels of 8 bits and made to `fit` its size: "resize"
    changes its proportions, "crop" cuts off what is too much, "pad" puts black around it. Without `fit` it is resized,
    and `notice` hears of it.
    """
    if fit is not None and fit not in FITS:
        raise InputError(f"--fit must be {', '.join(FITS[:-1])} or {FITS[-1]}, not {fit!r}")
    batches, names = [], []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such file")
        batch = read_array(path) if path.suffix == ".npy" else read_image(path, program, fit, notice)[None]
        batch = batch[None] if batch.ndim == 3 else batch
        try:
            program.pack_input(batch)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        batches.append(batch)
        names += [path.name] if len(batch) == 1 else [f"{path.name}[{number}]" for number in range(len(batch))]
    return np.concatenate(batches), names


def read_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: is not a .npy file of numbers ({error})") from error


def read_image(
    path: Path, program: Program, fit: str | None = None, notice: Callable[[str], None] | None = None
) -> np.ndarray:
    """One image file as integers (C, H, W)."""
    source = program.input
    if source.channels not in (1, 3):
        raise InputError(f"{path}: the network takes {source.channels} channels, not 1 or 3; give a .npy file")
    if program.pixels == ():
        raise InputError(
            f"{path}: the model's input is normalized by numbers that the model does not have; give a .npy file of the "
            f"integers that it takes, {source.low} to {source.high}"
        )
    picture = open_picture(path, source.channels)
    size = program.input_shape[:0:-1]
    if picture.size != size and fit is None and notice is not None:
        notice(f"{path.name}: {picture.width}x{picture.height} pixels, resized to {size[0]}x{size[1]}; --fit says how")
    values = planes(fitted(picture, size, fit or "resize")).astype(np.int64)
    if program.pixels is None:
        return values
    tables = np.broadcast_to(np.array(program.pixels, np.int64), (source.channels, 256))
    return np.stack([table[channel] for table, channel in zip(tables, values, strict=True)])


def read_floats(path: Path, model: Path, white: float) -> np.ndarray:
    """float32 pictures (N, ...) for a float model: an .npy file as it is, or a folder's pictures, from 0 to
    `white`, in the size of the model's input."""
    if path.suffix == ".npy":
        return read_array(path).astype(np.float32)
    from sentei.host.frontend.model_file import read_file

    sizes = [dim.dim_value for dim in read_file(model).graph.input[0].type.tensor_type.shape.dim][1:]
    if len(sizes) != 3 or sizes[0] not in (1, 3):
        raise InputError(f"{model}: takes {tuple(sizes)}, no pictures (1 or 3, height, width); give an .npy file")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    pictures = []
    for file in files:
        try:
            picture = open_picture(file, sizes[0])
        except NoPictureError:
            continue
        values = planes(fitted(picture, (sizes[2], sizes[1]), "crop"))
        pictures.append(values.astype(np.float32) * np.float32(white / 255))
    if not pictures:
        raise InputError(f"{path}: has no pictures; give a folder of some that the model was trained on")
    return np.stack(pictures)
