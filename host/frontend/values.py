"""What a value of the float model is in integers, while the frontend walks the graph.

A `Constant` is known when compiling. The graph's input is a `RawInput` until it is known which integers it holds. An
`Activation` is an IR tensor, an operator on it that is not emitted yet, and the float chain that follows; a Quant
node makes an IR tensor of it. A *plain* activation is a quantized tensor as it left its Quant node: only plain ones can
be read by a convolution or summed by a pool. `Levels` are a QuantizeLinear's integers, until its DequantizeLinear. What
the host computes at the end is a `Tail`.

    plain --Conv--> op, chain --Mul, Add, Relu--> op, longer chain --Quant--> plain     (Builder.quantize emits op)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from sentei.host.arithmetic.float_chain import Chain, Operation, Quantizer
from sentei.host.errors import UnsupportedModel
from sentei.host.frontend.axes import NCHW, Axes
from sentei.host.frontend.inputs import InputType
from sentei.host.network.ir import Conv, Pads, Pool, Shape, Tensor
from sentei.overlay.tail import TailStep

QUANTIZE_IT = "put a Quant node of at most 4 bits in between"


@dataclass(frozen=True)
class Constant:
    """A value known when compiling; a quantized one also as integer `levels` times float32 `scale`, broadcast."""

    values: np.ndarray
    levels: np.ndarray | None = None
    scale: np.ndarray | None = None
    bits: int = 0


@dataclass(frozen=True)
class RawInput:
    """The graph's input before it is quantized. `elements` has the model's shape here, without the batch, and says
    which element of the input each one is; `operations` were done to them so far, one channel an element."""

    name: str
    elements: np.ndarray
    dims: tuple[int, ...]  # of the graph's input, without the batch
    integers: InputType | None = None  # if the file has them instead of floats
    operations: tuple[Operation, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.elements.shape

    def then(self, *operations: Operation) -> RawInput:
        return replace(self, operations=self.operations + operations)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Numbers that broadcast against the value, one for each element of the input, in its order."""
        result = np.empty(self.elements.size, np.float32)
        result[self.elements] = np.broadcast_to(values, (1, *self.sizes))[0]
        return result


@dataclass(frozen=True)
class Wide:
    """A tensor of five to eight bits: `whole` says what it would be, `high` and `low` are its nibbles' tensors."""

    whole: Tensor
    high: str
    low: str


@dataclass(frozen=True)
class Activation:
    """A value of the model (see above). `shape` is (C, H, W) as the next node sees it, padding included."""

    source: str  # IR tensor
    shape: Shape
    chain: Chain
    label: str  # the node that made it, for errors
    op: Conv | Pool | None = None  # on `source`; its output and requantize are not known yet
    axes: Axes = NCHW  # tidy
    pads: Pads = Pads()  # zeros around a plain activation, for the next convolution or sum
    maximum: Pool | None = None  # taken of the values after the first `before` operations of the chain
    before: int = 0
    wide: Wide | None = None  # it is that tensor, if no operation follows; `op` makes a sum of its nibbles

    @property
    def plain(self) -> bool:
        return self.op is None and not self.chain.operations and not any(self.pads) and self.maximum is None

    @property
    def stored_wide(self) -> Wide | None:
        """The tensor of more than four bits that it is, if it is one."""
        return self.wide if not self.chain.operations and self.maximum is None else None

    @property
    def stored_maximum(self) -> bool:
        """Whether it is the maximum of a quantized tensor and nothing else, hence one itself."""
        pooled = isinstance(self.op, Pool) and self.op.kind == "max"
        return pooled and not self.chain.operations and self.maximum is None

    def then(self, *operations: Operation) -> Activation:
        return replace(self, chain=self.chain.then(*operations))


@dataclass(frozen=True)
class Levels:
    """The integers that a QuantizeLinear makes of `source`, the value of that `name`; a Clip may have narrowed their
    range. `moved` is what was taken off the zero point for that."""

    name: str
    source: RawInput | Activation | Tail
    quantizer: Quantizer
    moved: int = 0


@dataclass(frozen=True)
class Tail:
    """What the host computes of `activation`, one step after the other. `sizes` are the model's, without the batch."""

    activation: Activation
    steps: tuple[TailStep, ...]
    sizes: tuple[int, ...]
    refusal: UnsupportedModel  # why the array cannot go on from here
    stored: Callable[[], Activation] | None = None  # has the array compute it after all, as a tensor of its own

    def then(self, step: TailStep) -> Tail:
        return replace(self, steps=(*self.steps, step), sizes=step.sizes_after(self.sizes), stored=None)


@dataclass(frozen=True)
class Joined:
    """Tensors one behind the other along the channels, which are the model's axis of that number."""

    parts: tuple[Activation, ...]
    axis: int

    @property
    def channels(self) -> list[int]:
        return [part.shape.channels for part in self.parts]

    @property
    def starts(self) -> list[int]:
        """The first channel of each part, and how many there are."""
        return [sum(self.channels[:number]) for number in range(len(self.parts) + 1)]


Value: TypeAlias = Constant | RawInput | Activation | Levels | Tail | Joined
