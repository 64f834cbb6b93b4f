"""Random networks (IR) of pictures that a small activation memory has no room for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from helpers.random_layers import random_requantize, random_weights

from sentei.host.arithmetic.thresholds import identity
from sentei.host.network.ir import (
    WIDE,
    Conv,
    Network,
    Pads,
    Pool,
    Shape,
    Tensor,
    Term,
    map_of,
)
from sentei.host.network.law import check


def large_network(seed: int, largest: int = 60) -> tuple[Network, np.ndarray]:
    """(network of convolutions, transposed ones, pools, residuals and sums of two; two pictures)."""
    rng = np.random.default_rng(seed)
    channels = int(rng.integers(1, 9))
    extents = (int(v) for v in rng.integers(largest // 2, largest + 1, 2))
    tensors = {"x": Tensor("x", Shape(channels, *extents), int(rng.choice([4, 4, 8])), bool(rng.random() < 0.4))}
    ops: list = []
    name = "x"
    for number in range(int(rng.integers(1, 6))):
        source = tensors[name].shape
        kind = rng.choice(["conv", "conv", "conv", "pool", "transposed", "zoom"])
        kernel = tuple(int(v) for v in rng.integers(1, 6, 2))
        pads = Pads(*(int(rng.integers(0, k)) for k in kernel * 2))
        stride = tuple(int(v) for v in rng.choice([1, 1, 2, 3], 2))
        output = f"t{number}"
        if kind in ("pool", "zoom") and tensors[name].bits > 4:
            kind = "conv"
        if kind == "pool":
            op = Pool(output, name, output, str(rng.choice(["max", "sum"])), kernel, stride, pads)
        elif kind == "zoom":
            op = Pool(output, name, output, "sum", (1, 1), zoom=(2, 1))
        else:
            zoom = tuple(int(v) for v in rng.integers(1, 3, 2)) if kind == "transposed" else (1, 1)
            weights = random_weights(rng, (int(rng.integers(1, 9)), source.channels, *kernel), 4, 8)
            op = Conv(output, name, output, weights, (1, 1) if kind == "transposed" else stride, pads, zoom=zoom)
        shape = Shape(len(op.weights) if isinstance(op, Conv) else source.channels, *map_of(op, source))
        if min(shape[1:]) < 8 or max(shape[1:]) > 2 * largest:
            continue
        tensors[output] = Tensor(output, shape, 4, bool(rng.random() < 0.4))
        alike = [other for other in ops if tensors[other.output].shape == shape]
        residual = str(rng.choice([other.output for other in alike])) if alike and rng.random() < 0.5 else None
        if isinstance(op, Conv) and alike and residual is None:
            pixels = np.eye(shape.channels, dtype=np.int64)[:, :, None, None] * int(rng.integers(-3, 4))
            op = replace(op, addends=(Term(alike[0].output, pixels),))
        if kind == "zoom":
            tensors[output] = replace(tensors[name], name=output, shape=shape)
            op = replace(op, requantize=identity(tensors[name]))
        else:
            op = replace(op, requantize=random_requantize(rng, op, tensors, residual))
        ops.append(op)
        name = output
    last = random_weights(rng, (3, tensors[name].shape.channels, 3, 3), 4, 8)
    op = Conv("last", name, "y", last, pads=Pads(1, 1, 1, 1))
    tensors["y"] = Tensor("y", Shape(3, *map_of(op, tensors[name].shape)), WIDE, True)
    network = Network(f"large{seed}", tensors, (*ops, op), "x", "y", np.ones(3, np.float32), np.zeros(3, np.float32))
    source = tensors["x"]
    return check(network), rng.integers(source.low, source.high + 1, (2, *source.shape))


def network_with_tail(seed: int, largest: int = 60) -> tuple[Network, np.ndarray]:
    """The same, and behind it a path down and up, beside which there is a shorter one; a pool over the whole map, and a
    matrix product: no patch can do these."""
    network, images = large_network(seed, largest)
    rng = np.random.default_rng([seed, 1])
    ops, tensors = list(network.ops[:-1]), {name: of for name, of in network.tensors.items() if name != network.output}
    name = ops[-1].output if ops else network.input
    channels, *extents = tensors[name].shape

    def add(op: Conv | Pool, bits: int = 4) -> None:
        shape = Shape(len(op.weights) if isinstance(op, Conv) else channels, *map_of(op, tensors[op.input].shape))
        tensors[op.output] = Tensor(op.output, shape, bits, bool(rng.random() < 0.4))
        ops.append(replace(op, requantize=random_requantize(rng, op, tensors, None)))

    beside = Term(name, random_weights(rng, (channels, tensors[name].shape.channels, 1, 1), 4, 8))
    own = (channels, channels)
    add(Conv("down", name, "down", random_weights(rng, (*own, 3, 3), 4, 8), (2, 2), Pads(1, 1, 1, 1)))
    add(Pool("up", "down", "up", "sum", (1, 1), zoom=(2, 2)))
    kernel = tuple(1 + extent % 2 for extent in extents)
    add(Conv("both", "up", "both", random_weights(rng, (*own, *kernel), 4, 8), addends=(beside,)))
    name = "both"
    pool = Pool("mean", name, "mean", "sum", tuple(extents))
    tensors["mean"] = Tensor("mean", Shape(channels, 1, 1), 4, False)
    pool = replace(pool, requantize=random_requantize(rng, pool, tensors, None))
    tensors["y"] = Tensor("y", Shape(5, 1, 1), WIDE, True)
    last = Conv("last", "mean", "y", random_weights(rng, (5, channels, 1, 1), 4, 8))
    ones = np.ones(5, np.float32)
    tailed = replace(
        network,
        name=f"tailed{seed}",
        ops=(*ops, pool, last),
        tensors=tensors,
        output_scale=ones,
        output_offset=0 * ones,
    )
    return check(tailed), images
