"""The rules that a network must obey: `check` is the law, and every pass of the compiler calls it."""

from __future__ import annotations

import numpy as np

from sentei.host.network.ir import (
    ACCUMULATOR_LIMIT,
    WIDE,
    Conv,
    IRError,
    Network,
    Pool,
    Requantize,
    Shape,
    Term,
    accumulator_range,
    inputs_of,
    kernel_of,
    map_of,
    terms_of,
)
from sentei.host.network.lines import FREE, find
from sentei.overlay.instructions import THRESHOLDS


def check(network: Network) -> Network:
    """Return `network` unchanged if it obeys every rule of this module; raise `IRError` otherwise."""

    def require(condition: bool, op: str, text: str) -> None:
        if not condition:
            raise IRError(f"{network.name}: {op}: {text}")

    tensors = network.tensors
    for name in network.inputs:
        require(name in tensors, "input", f"tensor {name!r} is not described")
    for name in network.inputs:
        require(1 <= tensors[name].bits <= 8, "input", f"must have 1 to 8 bits, not {tensors[name].bits}")
    require(len(network.ops) > 0, "network", "must have at least one operator")
    known = set(network.inputs)
    for op in network.ops:
        for name in (*inputs_of(op), op.output):
            require(name in tensors, op.name, f"tensor {name!r} is not described")
        for name in inputs_of(op):
            require(name in known, op.name, f"input {name!r} is not computed before it")
        require(op.output not in known, op.name, f"output {op.output!r} is computed twice")
        source, target = tensors[op.input], tensors[op.output]
        kernel = kernel_of(op)
        for term in terms_of(op):
            read, window = tensors[term.input], kernel_of(term)
            plain = term.stride == (1, 1) and (isinstance(term, Term) or (window == (1, 1) and not any(term.pads)))
            text = "what enlarges a map must have no stride, and a pool a 1x1 window"
            require(term.zoom == (1, 1) or plain, op.name, text)
            channels = read.shape.channels if isinstance(term, Pool) else len(term.weights)
            expected = Shape(channels, *map_of(term, read.shape))
            require(min(expected) >= 1, op.name, f"window {window} does not fit input {tuple(read.shape)}")
            require(target.shape == expected, op.name, f"output must be {tuple(expected)}, not {tuple(target.shape)}")
            require(min(term.pads) >= 0 and min(term.stride) >= 1, op.name, "pads must be >= 0 and strides >= 1")
            require(read.bits <= 4 or term.input in network.inputs, op.name, f"input {read.name!r} must have <= 4 bits")
            if isinstance(term, Term):
                require(term.weights.ndim == 4, op.name, "weights must be OIHW")
                require(term.weights.shape[1] == read.shape.channels, op.name, "weights and input disagree on channels")
        if isinstance(op, Pool):
            require(op.kind in ("max", "sum"), op.name, f"kind must be 'max' or 'sum', not {op.kind!r}")
            require(source.bits <= 4 or op.kind == "sum", op.name, "maximum needs an input of at most 4 bits")
            inside = op.pads.top < kernel[0] > op.pads.bottom and op.pads.left < kernel[1] > op.pads.right
            require(op.kind == "sum" or inside, op.name, f"pads {tuple(op.pads)} of a maximum must be below {kernel}")
        reach = np.max(np.abs(accumulator_range(op, tensors)), axis=0)
        text = f"accumulator must stay below {ACCUMULATOR_LIMIT}, not reach {reach.max()}"
        require(bool(reach.max() < ACCUMULATOR_LIMIT), op.name, text)
        if op.requantize is None:
            require(target.bits == WIDE and op.output == network.output, op.name, "only the network's output is wide")
        else:
            check_requantize(op.requantize, op, tensors, known, require)
        known.add(op.output)
    for name in network.outputs:
        require(name in known, "output", f"tensor {name!r} is not computed")
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
    base = -target.bias
    within = bool((span >= 0).all() and (base + low >= target.low).all() and (base + low + span <= target.high).all())
    require(within, op.name, f"low and span must keep the output within {target.low} to {target.high}")
    if requantize.residual is None:
        return
    require(requantize.residual in known, op.name, f"residual {requantize.residual!r} is not computed before it")
    residual = tensors[requantize.residual]
    require(residual.shape == target.shape, op.name, f"residual must be {tuple(target.shape)}")
    require(residual.bits <= 4, op.name, "residual must have at most 4 bits")
