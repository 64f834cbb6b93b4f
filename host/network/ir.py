"""The compiler's intermediate representation: integer tensors and four operators' worth of arithmetic.

A network is a list of operators in execution order. Every value is an integer; `Tensor.scale` says what one unit
of it means in the model. An operator accumulates (`Conv`, `Pool`), then either requantizes the accumulator to at
most four bits (`Requantize`) or, for the last operator only, hands it out whole (a *wide* tensor).

    input --> Conv --> Requantize --> Pool --> ... --> Conv --> wide accumulators --> Network.dequantize
                          ^
                          +-- residual: an earlier tensor of the output's shape

Arrays are CHW for activations (one picture), OIHW for weights. `check` is the law: every pass calls it, and
`host/network/reference.py` defines what a checked network computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sentei.host.network.lines import FREE, find
from sentei.overlay.errors import SenteiError
from sentei.overlay.instructions import NO_RESIDUAL, THRESHOLDS

ACCUMULATOR_LIMIT = (1 << 23) - 1  # every accumulator is smaller


class IRError(SenteiError, ValueError):
    """A network breaks a rule of the intermediate representation; the text names the operator and the rule."""


class Shape(NamedTuple):
    """Extent of one picture's tensor: channels, height, width."""

    channels: int
    height: int
    width: int


class Pads(NamedTuple):
    """Rows and columns of zeros around a map."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


@dataclass(frozen=True)
class Tensor:
    """An integer tensor: `bits` wide, two's complement if `signed`; the value it stands for is `scale` * integer.

    Inner tensors have 1 to 4 bits, the network's input 1 to 8. `bits = WIDE` marks an accumulator handed out whole.
    """

    name: str
    shape: Shape
    bits: int
    signed: bool
    scale: float = 1.0

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


WIDE = 32


@dataclass(frozen=True)
class Requantize:
    """Maps an accumulator to at most four bits: exact, monotone, per channel.

        n   = number of k with accumulator >= thresholds[c, k]              (0 to 31)
        i   = n - 16, or 15 - n where descending[c]
        out = base + low[c] + clamp(i + r, 0, span[c])

    with base = -8 for a signed output, 0 for an unsigned one, and r = 8 without a residual, else the residual, plus 8
    if it is signed. A residual is added in units of the output: both tensors have the same scale.

    A channel's thresholds are *even*: points of a line, rounded up (see host/network/lines.py). Those that no
    accumulator or residual can make count continue the line.
    """

    thresholds: np.ndarray  # int64 (C, 31), even
    descending: np.ndarray  # bool (C,)
    low: np.ndarray  # int64 (C,), 0 to 15
    span: np.ndarray  # int64 (C,); low + span is at most 15
    residual: str | None = None


@dataclass(frozen=True)
class Conv:
    """2-D convolution (cross-correlation, as in ONNX) with zero padding. A fully connected layer is a Conv whose
    kernel covers the map. Weights have at most 4 bits, or 8 (then the array needs more passes)."""

    name: str
    input: str
    output: str
    weights: np.ndarray  # int16, OIHW
    stride: tuple[int, int] = (1, 1)
    pads: Pads = Pads()
    requantize: Requantize | None = None


@dataclass(frozen=True)
class Pool:
    """Per channel maximum or sum over a window. Average pooling is a sum whose thresholds know the divisor;
    padding contributes nothing to either. A sum over a 1x1 window with a residual is a plain addition."""

    name: str
    input: str
    output: str
    kind: str  # "max" or "sum"
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: Pads = Pads()
    requantize: Requantize | None = None


@dataclass(frozen=True)
class Network:
    """A whole network. `input_scale` belongs to the input tensor; the float32 output of the model is

        y = float32(float32(integer) * output_scale[c]) + output_offset[c]

    with `output_scale`, `output_offset` float32 of shape (C,), each step one float32 operation.
    """

    name: str
    tensors: dict[str, Tensor]
    ops: tuple[Conv | Pool, ...]
    input: str
    output: str
    output_scale: np.ndarray
    output_offset: np.ndarray

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """Integers (..., C, H, W) of the output tensor to the model's float32 output of the same shape."""
        scale = self.output_scale.astype(np.float32)[:, None, None]
        offset = self.output_offset.astype(np.float32)[:, None, None]
        return values.astype(np.float32) * scale + offset


def output_extent(size: int, kernel: int, stride: int, before: int, after: int) -> int:
    """Rows (or columns) that a window yields; ONNX's floor convention."""
    return (size + before + after - kernel) // stride + 1


def kernel_of(op: Conv | Pool) -> tuple[int, int]:
    """(rows, columns) of the operator's window."""
    if isinstance(op, Pool):
        return op.kernel
    _, _, rows, columns = op.weights.shape
    return rows, columns


def accumulator_range(op: Conv | Pool, source: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value, int64 (C,) each, that the accumulator of each output channel can reach.

    Includes padding: a padded slot contributes 0, which lies between the products' extremes or widens them.
    """
    low, high = min(source.low, 0), max(source.high, 0)
    if isinstance(op, Conv):
        flat = op.weights.reshape(len(op.weights), -1).astype(np.int64)
        positive, negative = np.maximum(flat, 0).sum(1), np.minimum(flat, 0).sum(1)
        return positive * low + negative * high, positive * high + negative * low
    count = op.kernel[0] * op.kernel[1] if op.kind == "sum" else 1
    ones = np.ones(source.shape.channels, np.int64)
    if op.kind == "max":
        return ones * source.low, ones * source.high
    return ones * low * count, ones * high * count


def check(network: Network) -> Network:
    """Return `network` unchanged if it obeys every rule of this module; raise `IRError` otherwise."""

    def require(condition: bool, op: str, text: str) -> None:
        if not condition:
            raise IRError(f"{network.name}: {op}: {text}")

    tensors = network.tensors
    require(network.input in tensors, "input", f"tensor {network.input!r} is not described")
    require(1 <= tensors[network.input].bits <= 8, "input", f"must have 1 to 8 bits, not {tensors[network.input].bits}")
    require(len(network.ops) > 0, "network", "must have at least one operator")
    known = {network.input}
    for op in network.ops:
        for name in (op.input, op.output):
            require(name in tensors, op.name, f"tensor {name!r} is not described")
        require(op.input in known, op.name, f"input {op.input!r} is not computed before it")
        require(op.output not in known, op.name, f"output {op.output!r} is computed twice")
        source, target = tensors[op.input], tensors[op.output]
        kernel = kernel_of(op)
        expected = Shape(
            len(op.weights) if isinstance(op, Conv) else source.shape.channels,
            output_extent(source.shape.height, kernel[0], op.stride[0], op.pads.top, op.pads.bottom),
            output_extent(source.shape.width, kernel[1], op.stride[1], op.pads.left, op.pads.right),
        )
        require(min(expected) >= 1, op.name, f"window {kernel} does not fit input {tuple(source.shape)}")
        require(target.shape == expected, op.name, f"output must be {tuple(expected)}, not {tuple(target.shape)}")
        require(min(op.pads) >= 0 and min(op.stride) >= 1, op.name, "pads must be >= 0 and strides >= 1")
        require(source.bits <= 4 or op.input == network.input, op.name, f"input {source.name!r} must have <= 4 bits")
        if isinstance(op, Conv):
            require(op.weights.ndim == 4, op.name, "weights must be OIHW")
            require(op.weights.shape[1] == source.shape.channels, op.name, "weights and input disagree on channels")
            limit = np.abs(op.weights.astype(np.int64)).max(initial=0)
            require(limit <= 128, op.name, f"weights must have at most 8 bits, not magnitude {limit}")
        else:
            require(op.kind in ("max", "sum"), op.name, f"kind must be 'max' or 'sum', not {op.kind!r}")
            require(source.bits <= 4 or op.kind == "sum", op.name, "maximum needs an input of at most 4 bits")
            inside = op.pads.top < kernel[0] > op.pads.bottom and op.pads.left < kernel[1] > op.pads.right
            require(op.kind == "sum" or inside, op.name, f"pads {tuple(op.pads)} of a maximum must be below {kernel}")
        reach = np.max(np.abs(accumulator_range(op, source)), axis=0)
        text = f"accumulator must stay below {ACCUMULATOR_LIMIT}, not reach {reach.max()}"
        require(bool(reach.max() < ACCUMULATOR_LIMIT), op.name, text)
        if op.requantize is None:
            require(target.bits == WIDE and op.output == network.output, op.name, "only the network's output is wide")
        else:
            check_requantize(op.requantize, op, tensors, known, require)
        known.add(op.output)
    require(network.output in known, "output", f"tensor {network.output!r} is not computed")
    channels = tensors[network.output].shape.channels
    for label, array in (("output_scale", network.output_scale), ("output_offset", network.output_offset)):
        require(array.shape == (channels,), "output", f"{label} must have shape ({channels},), not {array.shape}")
    return network


def check_requantize(requantize: Requantize, op: Conv | Pool, tensors: dict, known: set, require) -> None:
    """The rules of one `Requantize`; `require(condition, op_name, text)` raises."""
    target = tensors[op.output]
    channels = target.shape.channels
    require(1 <= target.bits <= 4, op.name, f"output must have 1 to 4 bits, not {target.bits}")
    thresholds, low, span = requantize.thresholds, requantize.low, requantize.span
    text = f"thresholds must be ({channels}, {THRESHOLDS}), not {thresholds.shape}"
    require(thresholds.shape == (channels, THRESHOLDS), op.name, text)
    for label, array in (("descending", requantize.descending), ("low", low), ("span", span)):
        require(array.shape == (channels,), op.name, f"{label} must have shape ({channels},)")
    require(bool((np.abs(thresholds) < FREE).all()), op.name, f"thresholds must be below {FREE}")
    uneven = np.flatnonzero(~find(thresholds, thresholds)[1])
    require(len(uneven) == 0, op.name, f"thresholds must be even (points of a line), not those of channel {uneven[:1]}")
    base = -8 if target.signed else 0
    within = bool((span >= 0).all() and (base + low >= target.low).all() and (base + low + span <= target.high).all())
    require(within, op.name, f"low and span must keep the output within {target.low} to {target.high}")
    if requantize.residual is None:
        return
    require(requantize.residual in known, op.name, f"residual {requantize.residual!r} is not computed before it")
    residual = tensors[requantize.residual]
    require(residual.shape == target.shape, op.name, f"residual must be {tuple(target.shape)}")
    require(residual.bits <= 4, op.name, "residual must have at most 4 bits")


def residual_codes(residual: Tensor | None) -> range:
    """The values of r in `Requantize`."""
    if residual is None:
        return range(NO_RESIDUAL, NO_RESIDUAL + 1)
    bias = 8 if residual.signed else 0
    return range(residual.low + bias, residual.high + bias + 1)


def kept_density(network: Network, block: int) -> float:
    """The fraction of kernel elements that an array executes: those of every slot in which at least one of `block`
    consecutive output channels has a weight. Counts convolutions, not layers behind the last pooling to one pixel."""
    kept = total = 0
    for op in network.ops:
        if isinstance(op, Conv) and network.tensors[op.input].shape[1:] != (1, 1):
            used = op.weights != 0
            for start in range(0, len(used), block):
                part = used[start : start + block]
                kept += int(part.any(axis=0).sum()) * len(part)
            total += used.size
    return kept / total if total else 1.0
