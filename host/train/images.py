"""Images on the device that trains: as the network wants them, moved and mirrored by chance."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sentei.host.datasets.dataset import Split

PIXEL_SCALE = 2.0**-8
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


class Images:
    """Images (N, C, H, W) uint8 and labels (N,) int64 on a device."""

    def __init__(self, split: Split, device: torch.device | str = "cpu"):
        self.images, self.labels = (
            torch.from_numpy(np.require(array, requirements="W")).to(device) for array in (split.images, split.labels)
        )

    def __len__(self) -> int:
        return len(self.labels)


def to_input(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> the network's float32, pixel / 256."""
    return (images.float() * PIXEL_SCALE).contiguous(memory_format=torch.channels_last)


def random_moves(count: int, max_shift: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """How images are changed, (3, count) int64: rows and columns that they are moved by, and whether mirrored."""
    corner = torch.randint(0, 2 * max_shift + 1, (2, count), generator=generator)
    mirrored = torch.rand((count,), generator=generator) < 0.5 * mirror
    return torch.cat([corner, mirrored[None]])


def moved(images: Tensor, moves: Tensor, max_shift: int) -> Tensor:
    """Each image (N, C, H, W) as its column of `random_moves` says, which lies on the same device."""
    count, channels, height, width = images.shape
    padded = F.pad(images, [max_shift] * 4)
    across = torch.arange(width, device=images.device)
    row, column, mirrored = moves[..., None]
    columns = column + torch.where(mirrored > 0, across.flip(0), across)
    rows = row + torch.arange(height, device=images.device)
    sample = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def augment(images: Tensor, max_shift: int, mirror: bool, generator: torch.Generator) -> Tensor:
    """Each image (N, C, H, W) moved by up to max_shift pixels, and mirrored by chance."""
    moves = random_moves(len(images), max_shift, mirror, generator)
    return moved(images, moves.to(images.device), max_shift)


def best_device() -> torch.device:
    """A GPU where there is one (this process's own), else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def machine(device: torch.device) -> str:
    """Of the device, for cards and reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores, {name}"


def computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def keep_freed_memory() -> None:
    """Have glibc keep activations that are freed: mapping them anew takes a sixth of the time of a step on a CPU."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
