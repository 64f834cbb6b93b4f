"""Random QONNX models that enlarge their maps, or fold them: transposed convolutions, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import numpy as np
import onnx
from helpers.random_networks import ModelWriter


def enlarging_model(seed: int) -> tuple[onnx.ModelProto, str]:
    """(model, what it has)."""
    rng = np.random.default_rng(seed)
    writer = ModelWriter()

    def weights(*shape: int) -> str:
        levels = rng.integers(-7, 8, shape) * (rng.random(shape) < 0.7)
        return writer.quant(writer.constant(levels * 0.125), 0.125, 4, True)

    def quantized(name: str, signed: bool) -> str:
        bits = int(rng.choice([4, 4, 8]))
        return writer.quant(name, 0.5 if bits == 4 else 0.0625, bits, signed)

    channels, height, width = int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.integers(1, 9))
    name = writer.quant("input", 2.0**-4, int(rng.choice([4, 8])), bool(rng.random() < 0.3))
    text = [f"{channels}x{height}x{width}"]
    inputs = channels
    for _ in range(int(rng.integers(1, 3))):
        kind = rng.choice(["transposed", "transposed", "depth", "space", "repeated"])
        signed = bool(rng.random() < 0.3)
        if kind == "transposed":
            kernel, strides = (tuple(int(v) for v in rng.integers(1, high, 2)) for high in (6, 4))
            groups = int(rng.choice([1, 1, 2])) if inputs % 2 == 0 else 1
            outputs = groups * int(rng.integers(1, 6))
            pads = [int(rng.integers(0, k)) for k in kernel * 2]
            more = [int(rng.integers(0, s)) for s in strides]
            attributes = {"kernel_shape": kernel, "strides": strides, "group": groups, "pads": pads}
            attributes["output_padding"] = more
            grown = [
                s * (size - 1) + m + k for s, size, m, k in zip(strides, (height, width), more, kernel, strict=True)
            ]
            sizes = [size - a - b for size, a, b in zip(grown, pads[:2], pads[2:], strict=True)]
            if min(sizes) < 1 or max(sizes) > 30:
                continue
            wanted = [weights(inputs, outputs // groups, *kernel)]
            if rng.random() < 0.5:
                wanted.append(writer.constant(rng.normal(size=outputs)))
            name = quantized(writer.node("ConvTranspose", name, *wanted, **attributes), signed)
            (height, width), inputs = sizes, outputs
            text.append(f"ConvTranspose {kernel} strides {strides} pads {pads} and {more}, {groups} groups")
            continue
        side = int(rng.integers(2, 4))
        outputs = int(rng.integers(1, 4))
        before = outputs * side**2 if kind == "depth" else outputs
        name = quantized(writer.node("Conv", name, weights(before, inputs, 1, 1)), signed)
        if kind == "repeated" and max(height, width) <= 15:
            factors = [1, 1, *(int(v) for v in rng.integers(1, 3, 2))]
            scales = writer.constant(factors)
            attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            name = writer.node("Resize", name, "", scales, **attributes)
            height, width, inputs = height * factors[2], width * factors[3], before
            text.append(f"Resize {factors}")
        elif kind == "depth" and max(height, width) * side <= 30:
            mode = str(rng.choice(["DCR", "CRD"]))
            name = writer.node("DepthToSpace", name, blocksize=side, mode=mode)
            height, width, inputs = height * side, width * side, outputs
            text.append(f"DepthToSpace {side} {mode}")
        elif kind == "space" and height % side == width % side == 0:
            name = writer.node("SpaceToDepth", name, blocksize=side)
            height, width, inputs = height // side, width // side, outputs * side**2
            text.append(f"SpaceToDepth {side}")
        else:
            inputs = before
    if rng.random() < 0.3:
        name = writer.node("ConvTranspose", name, weights(inputs, 3, 2, 2), strides=[2, 2])
        text.append("a transposed convolution at the end")
    else:
        name = writer.node("Conv", name, weights(3, inputs, 3, 3), pads=[1, 1, 1, 1])
    return writer.model((1, channels, *(int(v) for v in text[0].split("x")[1:])), name, 4), ", ".join(text)
