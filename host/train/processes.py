"""Processes that train one network together, as torchrun starts them: each takes its share of every batch.

    torchrun --standalone --nproc-per-node 2 --no-python sentei train resnet20 -o ninth.onnx --keep 1/9

They end with the weights that one process would have, but for the order of sums. Without torchrun there is one process,
and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def join() -> None:
    """Join the others, if torchrun has started this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if gpu else "gloo")


def count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process; the first, 0, is the one that writes files."""
    return distributed.get_rank() if count() > 1 else 0


def wait() -> None:
    """Until all are here."""
    if count() > 1:
        distributed.barrier()


def share(items: Tensor) -> Tensor:
    """Every so many-th item, for this process."""
    return items[rank() :: count()]


def total(value: Tensor) -> Tensor:
    """The sum of all processes' values."""
    if count() == 1:
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value


def with_common_gradients(network: nn.Module) -> nn.Module:
    """The network, to call in its place: gradients become the mean of all processes'."""
    return DistributedDataParallel(network, forward_sync_buffers=False) if count() > 1 else network


class _Total(torch.autograd.Function):
    """`total`, whose gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


class CommonBatchNorm(nn.BatchNorm2d):
    """A batch norm over the batch of all processes, on any device (torch's SyncBatchNorm runs on GPUs alone)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        images = values.numel() // values.shape[1] * count()
        mean = _Total.apply(values.sum(axes)) / images
        values = values - mean.view(shape)
        variance = _Total.apply(values.square().sum(axes)) / images
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * images / max(1, images - 1), momentum)
        values = values * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            values = values * self.weight.view(shape) + self.bias.view(shape)
        return values.to(x.dtype)


@contextmanager
def common_norms(network: nn.Module) -> Iterator[None]:
    """Within it, the network's batch norms are over the batch of all processes."""
    norms = [module for module in network.modules() if type(module) is nn.BatchNorm2d] if count() > 1 else []
    for norm in norms:
        norm.__class__ = CommonBatchNorm
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d
