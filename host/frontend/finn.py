"""FINN's hardware layers as the operators that they were made from.

    FMPadding -> ConvolutionInputGenerator -> MatrixVectorActivation      Pad -> Conv -> MultiThreshold

FINN's maps have their channels last; what a convolution reads is transposed before, its result after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from sentei.host.errors import ModelFileError, SenteiError, UnsupportedAttribute, UnsupportedOperator
from sentei.host.frontend.model_file import Node, read_node

DOMAIN = "finn.custom_op.fpgadataflow"
QUANT_DOMAIN = "qonnx.custom_op.general"
ENDINGS = ("_hls", "_rtl", "_Batch")
PLUMBING = ("IODMA", "StreamingDataWidthConverter", "StreamingFIFO")


def expand(nodes: list[Node], constants: dict[str, np.ndarray]) -> list[Node]:
    """The nodes without FINN's hardware layers; adds to `constants` what they need."""
    expansion = Expansion(constants)
    for node in nodes:
        if node.domain.startswith(DOMAIN):
            expansion.add(node)
        else:
            expansion.nodes.append(node)
    return expansion.nodes


class Expansion:
    def __init__(self, constants: dict[str, np.ndarray]):
        self.constants = constants
        self.nodes: list[Node] = []
        self.windows: dict[str, Node] = {}  # ConvolutionInputGenerators by their outputs

    def add(self, node: Node) -> None:
        kind = node.op_type
        for ending in ENDINGS:
            kind = kind.removesuffix(ending)
        if kind not in HANDLERS and kind not in PLUMBING:
            raise UnsupportedOperator(
                f"{node}: operator {node.op_type} is hardware of FINN's that is not read: give the model as it was "
                "before convert_to_hw_layers"
            )
        try:
            HANDLERS.get(kind, Expansion.same)(self, node)
        except SenteiError:
            raise
        except (LookupError, TypeError, ValueError) as error:
            raise ModelFileError(f"{node}: its attributes or inputs are not FINN's ({error}): damaged file?") from error

    def made(self, op_type: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        proto = helper.make_node(op_type, inputs, [output], name=f"{output}", domain=domain, **attributes)
        self.nodes.append(read_node(proto))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants[name] = values
        return name

    def same(self, node: Node) -> None:
        for output in node.outputs:
            self.made("Identity", [node.inputs[0]], output)

    def channels_first(self, node: Node, source: str) -> str:
        return self.made("Transpose", [source], f"{node.outputs[0]} of channels first", perm=[0, 3, 1, 2])

    def channels_last(self, source: str, output: str) -> None:
        self.made("Transpose", [source], output, perm=[0, 2, 3, 1])

    def padding(self, node: Node) -> None:
        top, left, bottom, right = node.attributes["Padding"]
        amounts = self.constant(f"{node.outputs[0]} pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
        source = self.channels_first(node, node.inputs[0])
        self.channels_last(self.made("Pad", [source, amounts], f"{node.outputs[0]} padded"), node.outputs[0])

    def window(self, node: Node) -> None:
        self.windows[node.outputs[0]] = node

    def matrix(self, node: Node) -> None:
        """A matrix product of pixels, or of the windows that a ConvolutionInputGenerator makes."""
        if node.attributes.get("binaryXnorMode", 0):
            raise UnsupportedAttribute(f"{node}: binaryXnorMode must be 0, not 1: give the model as it was before")
        window = self.windows.get(node.inputs[0])
        weights = self.constants[node.inputs[1]]
        if window is None:
            self.thresholds(node, self.made("MatMul", list(node.inputs[:2]), f"{node.outputs[0]} sums"), last=True)
            return
        rows, columns = window.attributes["ConvKernelDim"]
        channels = window.attributes["IFMChannels"]
        kernel = weights.reshape(rows, columns, channels, -1).transpose(3, 2, 0, 1)
        self.convolution(node, window, kernel, 1)

    def depthwise(self, node: Node) -> None:
        window = self.windows.get(node.inputs[0])
        if window is None:
            raise UnsupportedOperator(f"{node}: must follow a ConvolutionInputGenerator")
        self.convolution(node, window, self.constants[node.inputs[1]], node.attributes["Channels"])

    def convolution(self, node: Node, window: Node, kernel: np.ndarray, groups: int) -> None:
        weights = self.constant(f"{node.outputs[0]} kernel", np.ascontiguousarray(kernel))
        source = self.channels_first(node, window.inputs[0])
        strides, dilations = (list(window.attributes[name]) for name in ("Stride", "Dilation"))
        name = f"{node.outputs[0]} sums"
        self.made("Conv", [source, weights], name, strides=strides, dilations=dilations, group=groups)
        self.thresholds(node, name, last=False)

    def thresholds(self, node: Node, sums: str, last: bool) -> None:
        """What follows sums: thresholds or nothing; channels are last already, or made so."""
        result = sums
        if not node.attributes.get("noActivation", 0) and len(node.inputs) > 2:
            more = {"out_bias": float(node.attributes.get("ActVal", 0)), "out_dtype": node.attributes["outputDataType"]}
            layout = "NHWC" if last else "NCHW"
            inputs, name = [sums, node.inputs[2]], f"{node.outputs[0]} levels"
            result = self.made("MultiThreshold", inputs, name, QUANT_DOMAIN, data_layout=layout, **more)
        if last:
            self.made("Identity", [result], node.outputs[0])
        else:
            self.channels_last(result, node.outputs[0])

    def thresholding(self, node: Node) -> None:
        more = {"out_bias": float(node.attributes.get("ActVal", 0)), "out_dtype": node.attributes["outputDataType"]}
        inputs = list(node.inputs[:2])
        self.made("MultiThreshold", inputs, node.outputs[0], QUANT_DOMAIN, data_layout="NHWC", **more)

    def addition(self, node: Node) -> None:
        self.made("Add", list(node.inputs), node.outputs[0])

    def pool(self, node: Node) -> None:
        size = list(node.attributes["PoolDim"])
        source = self.channels_first(node, node.inputs[0])
        pooled = self.made("MaxPool", [source], f"{node.outputs[0]} pooled", kernel_shape=size, strides=size)
        self.channels_last(pooled, node.outputs[0])

    def labels(self, node: Node) -> None:
        count = self.constant(f"{node.outputs[0]} count", np.array([node.attributes["K"]], np.int64))
        proto = helper.make_node("TopK", [node.inputs[0], count], [f"{node.outputs[0]} values", node.outputs[0]])
        self.nodes.append(read_node(proto))


HANDLERS: dict[str, Callable[[Expansion, Node], None]] = {
    "AddStreams": Expansion.addition,
    "ConvolutionInputGenerator": Expansion.window,
    "DuplicateStreams": Expansion.same,
    "FMPadding": Expansion.padding,
    "LabelSelect": Expansion.labels,
    "MVAU": Expansion.matrix,
    "MatrixVectorActivation": Expansion.matrix,
    "StreamingFCLayer": Expansion.matrix,
    "StreamingMaxPool": Expansion.pool,
    "Thresholding": Expansion.thresholding,
    "VVAU": Expansion.depthwise,
    "VectorVectorActivation": Expansion.depthwise,
}
