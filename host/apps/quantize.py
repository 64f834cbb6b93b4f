"""Quantizes a float model after training: Quant nodes whose scales come from calibration over pictures.

    float model, pictures --> onnxruntime's calibrator: range of every tensor --> Quant nodes on weights and activations

Weights get 4 bits, one scale for each output channel, those of the first and the last layer 8; activations 4 bits, one
scale, the input 8. How much of each tensor's range the 15 steps cover is chosen among `PERCENTILES`: those with which
the quantized network is nearest to the float model on the pictures. Accuracy is lost; training with Quant nodes loses
less.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.util.cleanup import cleanup_model

from sentei.host.errors import ModelFileError, UnsupportedModel
from sentei.host.frontend.importer import load
from sentei.host.frontend.model_file import quiet, read_file
from sentei.host.network import reference
from sentei.overlay.errors import InputError

DOMAIN = "qonnx.custom_op.general"
PRODUCTS = ("Conv", "MatMul")
SUMS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
PERCENTILES = (99.0, 99.9, 99.99, 99.999)
CLIPPED = np.linspace(0.4, 1.0, 25)  # shares of a channel's largest weight that are tried as the range

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Quantized:
    """A quantized model, and how near it comes to the float one on the pictures: the share of pictures with the same
    largest output, and the root of the mean square difference over that of the float outputs."""

    model: onnx.ModelProto
    percentile: float
    agreement: float
    relative_error: float


def quantize(
    path: str | Path, pictures: np.ndarray, mean: list[float], std: list[float], progress: Progress
) -> Quantized:
    """The model of `path`, quantized for `pictures` float32 (N, ...) as it takes them, before mean and std."""
    clean = prepared(Path(path), mean, std)
    (source,) = (value.name for value in clean.graph.input)
    floats = float_outputs(clean, source, pictures)
    best: Quantized | None = None
    for number, percentile in enumerate(PERCENTILES):
        ranges = calibrated(clean, source, pictures, percentile)
        model = Quantizing(clean, ranges).model()
        network = load(model)
        outputs = reference.predict(network, levels_of(network, pictures))
        agreement = float((outputs.argmax(1) == floats.argmax(1)).mean())
        error = float(np.sqrt(np.mean((outputs - floats) ** 2) / max(np.mean(floats**2), 1e-30)))
        found = Quantized(model, percentile, agreement, error)
        if best is None or found.relative_error < best.relative_error:
            best = found
        progress(number + 1, len(PERCENTILES))
    assert best is not None
    return best


def prepared(path: Path, mean: list[float], std: list[float]) -> onnx.ModelProto:
    """The float model for single pictures, tidied by qonnx; with mean and std in front of it."""
    wrapper = ModelWrapper(read_file(path))
    if any(node.op_type in ("Quant", "QuantizeLinear", "BipolarQuant") for node in wrapper.graph.node):
        raise UnsupportedModel(f"{path}: is quantized already; compile it")
    dims = wrapper.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value = 1
    try:
        model = cleanup_model(wrapper.transform(GemmToMatMul())).model
    except Exception as error:  # whatever qonnx or onnxruntime raise
        raise ModelFileError(f"{path}: cannot be executed ({error}); check it with onnx.checker") from error
    if mean or std:
        put_in_front(model, mean, std)
    return model


def put_in_front(model: onnx.ModelProto, mean: list[float], std: list[float]) -> None:
    """Let the model subtract `mean` from its input and divide by `std`, one number for each channel."""
    graph = model.graph
    source, rank = graph.input[0].name, len(graph.input[0].type.tensor_type.shape.dim)
    for node in graph.node:
        node.input[:] = ["normalized" if name == source else name for name in node.input]
    for name, values in (("mean", mean or [0.0]), ("std", std or [1.0])):
        shaped = np.array(values, np.float32).reshape(1, -1, *(1,) * (rank - 2))
        graph.initializer.append(numpy_helper.from_array(shaped, f"{name} of pictures"))
    graph.node.insert(0, helper.make_node("Div", ["centred", "std of pictures"], ["normalized"]))
    graph.node.insert(0, helper.make_node("Sub", [source, "mean of pictures"], ["centred"]))


def float_outputs(model: onnx.ModelProto, source: str, pictures: np.ndarray) -> np.ndarray:
    """The float model's outputs, (N, elements)."""
    session = InferenceSession(model.SerializeToString(), quiet(), ["CPUExecutionProvider"])
    try:
        return np.array([session.run(None, {source: picture[None]})[0].reshape(-1) for picture in pictures])
    except Exception as error:  # onnxruntime's own
        raise InputError(f"the model does not take pictures of shape {pictures.shape[1:]} ({error})") from error


class Reader(CalibrationDataReader):
    def __init__(self, source: str, pictures: np.ndarray):
        self.feeds = iter([{source: picture[None]} for picture in pictures])

    def get_next(self) -> dict | None:
        return next(self.feeds, None)


def calibrated(
    model: onnx.ModelProto, source: str, pictures: np.ndarray, percentile: float
) -> dict[str, tuple[float, float]]:
    """Smallest and largest number of every tensor, as onnxruntime's calibrator has it."""
    options = {"percentile": percentile, "symmetric": False}
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "float.onnx")
        with redirect_stdout(io.StringIO()):  # it tells how far it is
            calibrator = create_calibrator(
                Path(folder) / "float.onnx",
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=CalibrationMethod.Percentile,
                extra_options=options,
            )
            calibrator.collect_data(Reader(source, pictures))
            data = calibrator.compute_data().data
    ends = {name: of.range_value for name, of in data.items()}
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in ends.items()}


def levels_of(network, pictures: np.ndarray) -> np.ndarray:
    """The integers that a network's input has for float pictures: the nearest."""
    tensor = network.tensors[network.input]
    shaped = pictures.reshape(len(pictures), *tensor.shape)
    if network.preprocessing is None:
        return np.clip(np.round(shaped / np.float32(tensor.scale)), tensor.low, tensor.high).astype(np.int64)
    levels = np.empty(shaped.shape, np.int64)
    for channel, table in enumerate(network.preprocessing.table):
        order = np.argsort(table)
        middles = (table[order][1:] + table[order][:-1]) / 2
        levels[:, channel] = network.preprocessing.low + order[np.searchsorted(middles, shaped[:, channel])]
    return levels


class Quantizing:
    """Puts Quant nodes into a float model."""

    def __init__(self, model: onnx.ModelProto, ranges: dict[str, tuple[float, float]]):
        self.float_model, self.ranges = model, ranges
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = list(model.graph.initializer)
        self.quantized: dict[str, str] = {}  # names of tensors behind their Quant nodes
        products = [node for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] in self.constants]
        if not products:
            raise UnsupportedModel("the model has no convolution or matrix product with constant weights")
        self.wide = (products[0].output[0], products[-1].output[0])  # whose weights have 8 bits
        self.first = products[0]

    def model(self) -> onnx.ModelProto:
        graph = self.float_model.graph
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if node.op_type in PRODUCTS and node.input[1] in self.constants:
                copy.input[0] = self.activation(node.input[0], 8 if node is self.first else 4)
                copy.input[1] = self.weights(node)
            elif node.op_type in SUMS:
                copy.input[0] = self.activation(node.input[0], 4)
            elif node.op_type == "Add" and not any(name in self.constants for name in node.input):
                # One side stays a sum, the other one is a stored tensor.
                stored = next((n for n, name in enumerate(node.input) if name in self.quantized), 1)
                copy.input[stored] = self.activation(node.input[stored], 4)
            self.nodes.append(copy)
        made = helper.make_graph(self.nodes, graph.name, graph.input, graph.output, self.initializers)
        opsets = [opset for opset in self.float_model.opset_import if opset.domain != DOMAIN]
        opsets.append(helper.make_opsetid(DOMAIN, 1))
        return helper.make_model(made, opset_imports=opsets, ir_version=self.float_model.ir_version)

    def constant(self, values: np.ndarray | float, name: str) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def quant(self, source: str, scale: np.ndarray | float, bits: int, signed: bool, narrow: bool = False) -> str:
        name = f"{source} quantized"
        parameters = [
            self.constant(value, f"{name}: {what}")
            for what, value in (("scale", scale), ("zero point", 0.0), ("bits", bits))
        ]
        node = helper.make_node("Quant", [source, *parameters], [name], domain=DOMAIN, rounding_mode="ROUND")
        node.attribute.extend([helper.make_attribute("signed", signed), helper.make_attribute("narrow", narrow)])
        self.nodes.append(node)
        return name

    def activation(self, source: str, bits: int) -> str:
        if source not in self.quantized:
            low, high = self.ranges.get(source, (0.0, 1.0))
            if source == self.float_model.graph.input[0].name and low >= 0:
                high = 1.0 if high <= 1 else 255.0  # every pixel is a level
            signed = low < 0
            reach = max(-low / (1 << bits - 1), high / ((1 << bits - 1) - 1)) if signed else high / ((1 << bits) - 1)
            self.quantized[source] = self.quant(source, max(reach, 1e-8), bits, signed)
        return self.quantized[source]

    def weights(self, node: onnx.NodeProto) -> str:
        name = node.input[1]
        if name not in self.quantized:
            bits = 8 if node.output[0] in self.wide else 4
            values = self.constants[name]
            axis = 0 if node.op_type == "Conv" else values.ndim - 1
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            shape = [1] * values.ndim
            shape[axis] = len(rows)
            self.quantized[name] = self.quant(name, best_scales(rows, bits).reshape(shape), bits, True, narrow=True)
        return self.quantized[name]


def best_scales(rows: np.ndarray, bits: int) -> np.ndarray:
    """float32 (C,): the scale with which each row of weights loses least by rounding and clipping."""
    limit = (1 << bits - 1) - 1
    largest = np.maximum(np.abs(rows).max(1, initial=0), 1e-8)
    scales = largest[:, None] * CLIPPED / limit
    levels = np.clip(np.round(rows[:, None] / scales[:, :, None]), -limit, limit)
    lost = ((levels * scales[:, :, None] - rows[:, None]) ** 2).sum(2)
    return scales[np.arange(len(rows)), lost.argmin(1)].astype(np.float32)
