"""Random QONNX models, seeded: what the frontend should accept, in all its variety, small enough to execute often.

    model, description = random_model(seed)          an onnx.ModelProto that qonnx executes node by node
    images = random_images(seed, network, count)     integers over the whole input range

Scales are powers of two. Factors and offsets between a convolution and its Quant node are arbitrary floats, of either
sign; before a residual addition, offsets keep sums away from rounding ties. What is added has the sum's scale.
Rounding modes that treat negative numbers differently are for unsigned results only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sentei.host.network.ir import Network

QUANT_DOMAIN = "qonnx.custom_op.general"


@dataclass(frozen=True)
class Activation:
    """A quantized tensor of the model under construction."""

    name: str
    channels: int
    height: int
    width: int
    bits: int
    signed: bool
    scale: float

    @property
    def magnitude(self) -> int:
        return 1 << (self.bits - 1) if self.signed else (1 << self.bits) - 1

    @property
    def extents(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


class ModelWriter:
    """Collects nodes and initializers; each method appends one operator and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray | float, dtype: type = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op_type: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        index = len(self.nodes)
        output = f"t{index}"
        self.nodes.append(
            helper.make_node(op_type, inputs, [output], name=f"{op_type}_{index}", domain=domain, **attributes)
        )
        return output

    def quant(
        self, source: str, scale: np.ndarray | float, bits: int, signed: bool, narrow: bool = False, mode: str = "ROUND"
    ) -> str:
        parameters = (self.constant(scale), self.constant(0.0), self.constant(float(bits)))
        attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": mode}
        return self.node("Quant", source, *parameters, domain=QUANT_DOMAIN, **attributes)

    def model(self, input_shape: tuple[int, ...], output: str, output_rank: int, opset: int = 13) -> onnx.ModelProto:
        """The model that reads "input"."""
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * output_rank)]
        graph = helper.make_graph(self.nodes, "random", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(QUANT_DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


class RandomModel:
    """One random model: layers of random kinds on a random input, then a random head."""

    def __init__(self, seed: int, unit: float) -> None:
        self.unit = unit
        self.random = np.random.default_rng(seed)
        self.writer = ModelWriter()
        self.words: list[str] = []

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def pick(self, *choices):
        return choices[self.random.integers(len(choices))]

    def build(self) -> tuple[onnx.ModelProto, str]:
        batch = self.pick(1, 2, 3)
        current = self.first()
        shape = (batch, *current.extents)
        earlier = []
        for _ in range(self.random.integers(1, 7)):
            earlier.append(current)
            layer = self.pick(self.conv, self.conv, self.conv, self.pool, self.average, self.elementwise, self.sum)
            current = layer(current, earlier)
        output, rank = self.head(current)
        model = self.writer.model(shape, output, rank, opset=self.pick(11, 13))
        return model, " ".join(self.words)

    def first(self) -> Activation:
        bits, signed = self.pick((8, False), (8, False), (8, True), (4, False), (4, True), (2, False))
        scale = 2.0 ** -int(self.random.integers(0, 9))
        name = self.writer.quant("input", scale, bits, signed)
        extents = (int(self.random.integers(low, high)) for low, high in ((1, 7), (1, 12), (1, 12)))
        return Activation(name, *extents, bits, signed, scale)

    def output_format(self) -> tuple[int, bool]:
        return self.pick((4, False), (4, False), (4, True), (3, True), (2, False), (2, True), (1, False))

    def quantize(self, name: str, like: Activation, reach: float) -> Activation:
        """End a chain of float values up to about `reach` in a Quant node with a power-of-two scale."""
        bits, signed = self.output_format()
        scale = 2.0 ** np.round(np.log2(max(reach, 1e-6) / (1 << bits)) + self.random.uniform(-1.5, 0.5))
        mode = self.pick("ROUND", "ROUND", "ROUND", "FLOOR", "CEIL", *(() if signed else ("HALF_UP", "DOWN")))
        name = self.writer.quant(name, scale, bits, signed, self.chance(0.2) and bits > 1, mode)
        return replace(like, name=name, bits=bits, signed=signed, scale=float(scale))

    def conv(self, source: Activation, earlier: list[Activation]) -> Activation:
        writer, random = self.writer, self.random
        kernel = tuple(int(random.choice([1, 2, 3, 3, 5, 7])) for _ in range(2))
        strides = (int(random.choice([1, 1, 2])),) * 2
        name, height, width = source.name, source.height, source.width
        attributes: dict = {}
        if self.chance(0.15):
            attributes["auto_pad"] = self.pick("SAME_UPPER", "SAME_LOWER")
            extents = [-(-size // stride) for size, stride in zip((height, width), strides, strict=True)]
        else:
            pads = [int(p) for p in random.integers(0, 4, 4)]
            short = [
                max(0, k - size - pads[i] - pads[i + 2])
                for i, (k, size) in enumerate(zip(kernel, (height, width), strict=True))
            ]
            pads[0], pads[1] = pads[0] + short[0], pads[1] + short[1]
            extents = [
                (size + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i, size in enumerate((height, width))
            ]
            if self.chance(0.2):
                name = self.writer.node("Pad", name, writer.constant([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64))
            else:
                attributes["pads"] = pads
        groups = self.pick(1, 1, 1, source.channels)
        outputs = groups * int(random.integers(1, 5)) if groups > 1 else int(random.integers(1, 25))
        matching = [other for other in earlier if other.extents[1:] == tuple(extents) and other.bits <= 4]
        residual = self.pick(*matching) if matching and self.chance(0.7) else None
        if residual is not None:
            groups, outputs = 1, residual.channels
        weights, scale, levels = self.weights((outputs, source.channels // groups, *kernel))
        unit = source.scale * scale.reshape(-1)
        reach = float((np.abs(levels).sum((1, 2, 3)) * unit).mean() * source.magnitude / 3)
        inputs = [name, weights]
        if self.chance(0.3):
            grid = unit if residual is not None or self.chance(0.5) else 1e-3
            inputs.append(writer.constant(np.round(random.normal(size=outputs) * reach / grid) * grid))
        name = writer.node("Conv", *inputs, group=groups, strides=strides, kernel_shape=kernel, **attributes)
        like = Activation("", outputs, *extents, 4, False, 1.0)
        self.words.append(f"conv{outputs}x{levels.shape[1]}x{kernel[0]}x{kernel[1]}g{groups}s{strides[0]}")
        if residual is not None:
            return self.residual(name, like, unit, reach, residual)
        name, reach = self.affine(name, outputs, reach)
        return self.activate(name, like, reach)

    def weights(self, shape: tuple[int, ...], axis: int = 0) -> tuple[str, np.ndarray, np.ndarray]:
        """(name of the quantized weights, scale broadcastable to them, integer levels)."""
        bits = self.pick(2, 3, 4, 4, 4, 8)
        limit = 1 << (bits - 1)
        levels = self.random.integers(-limit, limit, shape) * (self.random.random(shape) < self.pick(0.1, 0.5, 1.0))
        scale_shape = [1] * len(shape)
        scale_shape[axis] = shape[axis] if self.chance(0.6) else 1
        scale = self.unit * 2.0 ** self.random.integers(-6, 1, scale_shape)
        name = self.writer.quant(self.writer.constant(levels * scale), scale, bits, True)
        full = np.broadcast_to(scale, [size if i == axis else 1 for i, size in enumerate(shape)])
        return name, full, levels

    def affine(self, name: str, channels: int, reach: float) -> tuple[str, float]:
        """Arbitrary float factors and offsets, one operator of several kinds; the new reach."""
        writer, random = self.writer, self.random
        factor = random.uniform(0.2, 3, channels) * random.choice([1, 1, -1], channels)
        offset = random.normal(size=channels) * reach
        kind = self.pick("none", "mul-add", "mul-add", "batchnorm", "div-sub", "from", "neg")
        self.words.append(kind)
        column = (channels, 1, 1)
        if kind == "mul-add":
            name = writer.node("Mul", name, writer.constant(factor.reshape(1, *column)))
            name = writer.node("Add", writer.constant(offset.reshape(1, *column)), name)
        elif kind == "batchnorm":
            variance = random.uniform(0.05, 4, channels)
            statistics = [factor, offset, random.normal(size=channels) * reach, variance]
            name = writer.node("BatchNormalization", name, *(writer.constant(part) for part in statistics))
            return name, reach * 3
        elif kind == "div-sub":
            name = writer.node("Div", name, writer.constant(factor.reshape(column)))
            name = writer.node("Sub", name, writer.constant(offset.reshape(column)))
        elif kind == "from":
            name = writer.node("Sub", writer.constant(offset[0]), name)
        elif kind == "neg":
            name = writer.node("Neg", writer.node("Identity", name))
        return name, reach * 1.5

    def activate(self, name: str, like: Activation, reach: float) -> Activation:
        """Relu or Clip or nothing, sometimes a MaxPool of the floats, and the Quant node."""
        writer = self.writer
        kind = self.pick("Relu", "Relu", "Clip", "")
        if kind == "Relu":
            name = writer.node("Relu", name)
        elif kind == "Clip":
            name = writer.node("Clip", name, writer.constant(-0.3 * reach), writer.constant(0.7 * reach))
        if min(like.extents[1:]) >= 2 and self.chance(0.25):
            name = writer.node("MaxPool", name, kernel_shape=[2, 2], strides=[2, 2])
            like = replace(like, height=like.height // 2, width=like.width // 2)
            self.words.append("late-max")
        return self.quantize(name, like, reach)

    def residual(self, name: str, like: Activation, unit: np.ndarray, reach: float, residual: Activation) -> Activation:
        """Mul, Add, Add(residual), Relu, Quant of the residual's scale."""
        writer, random = self.writer, self.random
        self.words.append("residual")
        wanted = residual.scale * residual.magnitude / max(reach, 1e-6)
        factor = wanted * random.uniform(0.5, 2, len(unit))
        if self.chance(0.3):
            factor = 2.0 ** np.round(np.log2(factor * unit)) / unit
        grid = np.minimum(unit * factor, residual.scale)
        factor *= random.choice([1, 1, 1, -1], len(unit))
        offset = (np.round(random.normal(size=len(unit)) * residual.scale / grid) + 0.25) * grid
        column = (1, len(unit), 1, 1)
        name = writer.node("Mul", name, writer.constant(factor.reshape(column)))
        name = writer.node("Add", name, writer.constant(offset.reshape(column)))
        name = writer.node("Add", *self.pick((name, residual.name), (residual.name, name)))
        if self.chance(0.7):
            name = writer.node("Relu", name)
        bits, signed = self.output_format()
        name = writer.quant(name, residual.scale, bits, signed, False)
        return replace(like, name=name, bits=bits, signed=signed, scale=residual.scale)

    def pool(self, source: Activation, earlier: list[Activation]) -> Activation:
        """A maximum of a quantized tensor, as it is or requantized."""
        if source.bits > 4:
            return self.conv(source, earlier)
        kernel = [min(self.pick(1, 2, 3), size + 1) for size in source.extents[1:]]
        pads = [int(self.random.integers(0, k)) for k in (*kernel, *kernel)]
        stride = self.pick(1, 2)
        extents = [
            (size + pads[i] + pads[i + 2] - kernel[i]) // stride + 1 for i, size in enumerate(source.extents[1:])
        ]
        if min(extents) < 1:
            return self.conv(source, earlier)
        self.words.append("max")
        name = self.writer.node("MaxPool", source.name, kernel_shape=kernel, pads=pads, strides=[stride, stride])
        like = replace(source, name=name, height=extents[0], width=extents[1])
        return like if self.chance(0.5) else self.quantize(name, like, source.magnitude * source.scale)

    def average(self, source: Activation, earlier: list[Activation]) -> Activation:
        """An average of windows or of whole maps, requantized."""
        writer = self.writer
        reach = source.magnitude * source.scale
        if self.chance(0.3):
            kind = self.pick("GlobalAveragePool", "ReduceMean")
            axes = {"axes": [2, 3], "keepdims": 1} if kind == "ReduceMean" else {}
            self.words.append(kind)
            return self.quantize(writer.node(kind, source.name, **axes), replace(source, height=1, width=1), reach)
        kernel = [int(self.random.integers(1, size + 1)) for size in source.extents[1:]]
        pads = [int(self.random.integers(0, k)) for k in (*kernel, *kernel)] if self.chance(0.4) else [0] * 4
        stride = self.pick(1, 2)
        extents = [
            (size + pads[i] + pads[i + 2] - kernel[i]) // stride + 1 for i, size in enumerate(source.extents[1:])
        ]
        self.words.append("average")
        name = writer.node(
            "AveragePool", source.name, kernel_shape=kernel, pads=pads, strides=[stride] * 2, count_include_pad=1
        )
        return self.quantize(name, replace(source, height=extents[0], width=extents[1]), reach)

    def elementwise(self, source: Activation, earlier: list[Activation]) -> Activation:
        """Float operations on a quantized tensor, quantized again."""
        self.words.append("elementwise")
        name, reach = self.affine(source.name, source.channels, source.magnitude * source.scale)
        return self.activate(name, source, reach)

    def sum(self, source: Activation, earlier: list[Activation]) -> Activation:
        """Two quantized tensors added; rounded to one side where half steps occur."""
        matching = [other for other in earlier if other.extents == source.extents and other.bits <= 4]
        if not matching or source.bits > 4:
            return self.conv(source, earlier)
        other = self.pick(*matching)
        if not 2**-7 <= other.scale / source.scale <= 2**7:
            return self.conv(source, earlier)
        self.words.append("sum")
        name = self.writer.node("Add", source.name, other.name)
        bits, signed = self.output_format()
        mode = self.pick("FLOOR", "CEIL") if source.scale < other.scale else self.pick("ROUND", "FLOOR")
        name = self.writer.quant(name, other.scale, bits, signed, False, mode)
        return replace(source, name=name, bits=bits, signed=signed, scale=other.scale)

    def head(self, source: Activation) -> tuple[str, int]:
        """(output name, rank): the tensor itself, a convolution's accumulators, or a fully connected layer's."""
        writer, random = self.writer, self.random
        kind = self.pick("quantized", "conv", "matmul", "gemm", "hidden")
        self.words.append(f"-> {kind}")
        if kind == "quantized":
            return source.name, 4
        if kind == "conv":
            weights, scale, _ = self.weights((5, source.channels, 1, 1))
            bias = np.round(random.normal(size=5) * 64) * (source.scale * scale.reshape(-1))
            name = writer.node("Conv", source.name, weights, writer.constant(bias))
            return name, 4
        features = int(np.prod(source.extents))
        flat = writer.node("Flatten", source.name, axis=1)
        if self.chance(0.3):
            flat = writer.node("Reshape", source.name, writer.constant([-1, features], np.int64))
        if kind == "hidden":
            weights, _, _ = self.weights((features, 6), axis=1)
            name = writer.node("MatMul", flat, weights)
            name = writer.node("Mul", name, writer.constant(random.uniform(-1, 1, (1, 6))))
            hidden = self.quantize(name, Activation("", 6, 1, 1, 4, False, 1.0), features * source.scale)
            flat, features, source = hidden.name, 6, hidden
        if kind == "gemm":
            weights, scale, _ = self.weights((7, features))
            bias = np.round(random.normal(size=7) * 64) * (source.scale * scale.reshape(-1))
            return writer.node("Gemm", flat, weights, writer.constant(bias), transB=1), 2
        weights, _, _ = self.weights((features, 7), axis=1)
        name = writer.node("MatMul", flat, weights)
        if self.chance(0.5):
            name = writer.node("Mul", name, writer.constant(random.uniform(0.1, 2, (1, 7))))
        return writer.node("Add", name, writer.constant(random.normal(size=7))), 2


def random_model(seed: int, unit: float = 1.0) -> tuple[onnx.ModelProto, str]:
    """A model and a line of words that describes it; `unit` times powers of two are the weights' scales."""
    return RandomModel(seed, unit).build()


def random_images(seed: int, network: Network, count: int) -> np.ndarray:
    """Integer pictures (count, C, H, W): the first of extremes, the others anywhere in the range."""
    random = np.random.default_rng(seed)
    tensor = network.tensors[network.input]
    images = random.integers(tensor.low, tensor.high + 1, (count, *tensor.shape))
    images[0] = random.choice([tensor.low, tensor.high], tensor.shape)
    if network.preprocessing is not None:  # only what the model makes of some input
        for channel, reached in enumerate(network.preprocessing.reached):
            levels = network.preprocessing.low + np.flatnonzero(reached)
            nearest = np.abs(images[:, channel, ..., None] - levels).argmin(-1)
            images[:, channel] = levels[nearest]
    return images
