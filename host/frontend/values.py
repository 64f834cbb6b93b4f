"""What a value of the float model is in integers, while the frontend walks the graph.

An `Activation` is an IR tensor, an operator on it that is not emitted yet, and the float chain that follows; a Quant
node makes an IR tensor of it. A *plain* activation is a quantized tensor as it left its Quant node: only plain ones can
be read by a convolution or summed by a pool.

    plain --Conv--> op, chain --Mul, Add, Relu--> op, longer chain --Quant--> plain     (Builder.quantize emits op)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sentei.host.arithmetic.float_chain import Chain, Operation
from sentei.host.network.ir import Conv, Pads, Pool, Shape

QUANTIZE_IT = "put a Quant node of at most 4 bits in between"


@dataclass(frozen=True)
class Activation:
    """A value of the model (see above). `shape` is (C, H, W) as the next node sees it, padding included."""

    source: str  # IR tensor
    shape: Shape
    chain: Chain
    label: str  # the node that made it, for errors
    op: Conv | Pool | None = None  # on `source`; its output and requantize are not known yet
    flat: bool = False  # the model has it as (N, C * H * W)
    pads: Pads = Pads()  # zeros around a plain activation, for the next convolution or sum
    maximum: Pool | None = None  # taken of the values after the first `before` operations of the chain
    before: int = 0

    @property
    def plain(self) -> bool:
        return self.op is None and not self.chain.operations and not any(self.pads) and self.maximum is None

    @property
    def stored_maximum(self) -> bool:
        """Whether it is the maximum of a quantized tensor and nothing else, hence one itself."""
        pooled = isinstance(self.op, Pool) and self.op.kind == "max"
        return pooled and not self.chain.operations and self.maximum is None

    def then(self, *operations: Operation) -> Activation:
        return replace(self, chain=self.chain.then(*operations))
