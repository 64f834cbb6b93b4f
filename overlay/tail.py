"""What the host computes behind the array: the last operators of a model, in numpy, as a program file lists them.

    sums of the last layer --> Program.dequantize --> float32 (N, C, H, W) --> Tail --> the model's own output

Each step is one operator of the model, in float32. A step's arguments are numbers, lists and texts, as JSON has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def rounded(x: np.ndarray, mode: str) -> np.ndarray:
    """Whole numbers by a rounding mode of QONNX's."""
    half = np.float32(0.5)
    modes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ROUND": np.round,
        "HALF_EVEN": np.round,
        "CEIL": np.ceil,
        "FLOOR": np.floor,
        "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
        "DOWN": lambda x: np.sign(x) * np.floor(np.abs(x)),
        "ROUND_TO_ZERO": lambda x: np.sign(x) * np.floor(np.abs(x)),
        "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + half),
        "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - half),
    }
    return modes[mode](x)


def broadcast(values: list[float], sizes: list[int]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, *sizes)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def clip(x: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    x = x if low is None else np.maximum(x, np.float32(low))
    return x if high is None else np.minimum(x, np.float32(high))


def quantize(
    x: np.ndarray, scale: list[float], zero_point: float, low: int, high: int, rounding: str, sizes: list[int]
) -> np.ndarray:
    """The float32 numbers that a Quant node makes."""
    factor, zero = broadcast(scale, sizes), np.float32(zero_point)
    levels = rounded(np.clip(x / factor + zero, np.float32(low), np.float32(high)), rounding)
    return (levels - zero) * factor


def largest(x: np.ndarray, axis: int, count: int, keepdims: bool, last: bool = False) -> np.ndarray:
    """Indices, int64, of the `count` largest numbers, the first of equal ones first (or, of `last`, the last)."""
    if last:
        found = x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis, keepdims=True)
    else:
        found = np.argsort(-x, axis, kind="stable").take(range(count), axis)
    return found if keepdims else found.squeeze(axis)


def top(x: np.ndarray, axis: int, count: int) -> np.ndarray:
    return np.take_along_axis(x, largest(x, axis, count, True), axis)


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda x, values, sizes: x + broadcast(values, sizes),
    "clip": clip,
    "divide": lambda x, values, sizes: x / broadcast(values, sizes),
    "largest": largest,
    "leak": lambda x, values, sizes: np.where(x < 0, x * broadcast(values, sizes), x),
    "log_softmax": log_softmax,
    "multiply": lambda x, values, sizes: x * broadcast(values, sizes),
    "quantize": quantize,
    "reshape": lambda x, sizes: x.reshape(len(x), *sizes),
    "sigmoid": lambda x: np.float32(1) / (np.float32(1) + np.exp(-x)),
    "softmax": softmax,
    "tanh": np.tanh,
    "top": top,
    "transpose": lambda x, order: x.transpose(order),
}


EXPONENTIALS = ("log_softmax", "sigmoid", "softmax", "tanh")


@dataclass(frozen=True)
class TailStep:
    """One operator: `FUNCTIONS[name]` with `arguments`."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return FUNCTIONS[self.name](x, **self.arguments)

    def sizes_after(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of (N, *sizes)."""
        return self(np.zeros((1, *sizes), np.float32)).shape[1:]


@dataclass(frozen=True)
class OutputTail:
    """From the last layer's numbers to the model's output: its axes' `order`, of (N, C, H, W), its `sizes` without N,
    then `steps`."""

    order: tuple[int, int, int, int]
    sizes: tuple[int, ...]
    steps: tuple[TailStep, ...] = ()

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """float32 (N, C, H, W) as the model has its output, (N, ...); int64 if that is an index."""
        x = numbers.transpose(self.order).reshape(len(numbers), *self.sizes)
        for step in self.steps:
            x = step(x)
        return x

    def to_dict(self) -> dict:
        steps = [{"name": step.name, **step.arguments} for step in self.steps]
        return {"order": list(self.order), "sizes": list(self.sizes), "steps": steps}

    @staticmethod
    def from_dict(values: dict) -> OutputTail:
        """KeyError, TypeError or ValueError if `values` say nothing that can be computed."""
        steps = []
        for step in values["steps"]:
            arguments = dict(step)
            name = arguments.pop("name")
            if name not in FUNCTIONS:
                raise ValueError(f"{name!r} is no step of a tail")
            steps.append(TailStep(name, arguments))
        order, sizes = tuple(values["order"]), tuple(values["sizes"])
        if sorted(order) != [0, 1, 2, 3] or order[0] != 0 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"a tail cannot have order {order} and sizes {sizes}")
        return OutputTail((0, order[1], order[2], order[3]), sizes, tuple(steps))

    @property
    def has_exponentials(self) -> bool:
        """Whether its last bits depend on who computes an exponential."""
        return any(step.name in EXPONENTIALS for step in self.steps)
