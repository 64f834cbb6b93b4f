"""FINN's hardware layers: a network of them computes what the layers that they were made from do."""

import numpy as np
import onnx
import pytest
from helpers.random_networks import QUANT_DOMAIN, ModelWriter, random_images
from onnx import TensorProto, helper

from sentei.host.errors import UnsupportedAttribute, UnsupportedOperator
from sentei.host.frontend.importer import load
from sentei.host.network import reference

HARDWARE = "finn.custom_op.fpgadataflow"
RANDOM = np.random.default_rng(2)
KERNEL = RANDOM.integers(-7, 8, (3, 3, 6, 8)).astype(np.float32)  # rows, columns, inputs, outputs
DEPTHWISE = RANDOM.integers(-7, 8, (8, 1, 3, 3)).astype(np.float32)
MATRIX = RANDOM.integers(-7, 8, (8, 8)).astype(np.float32)
STEPS = np.sort(RANDOM.integers(-200, 200, (3, 8, 15)), axis=2).astype(np.float32)
LEVELS = {"outputDataType": "UINT4", "ActVal": 0}


def annotated(writer: ModelWriter, output: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    model = writer.model(shape, output, 4)
    entry = onnx.StringStringEntryProto(key="finn_datatype", value="UINT4")
    model.graph.quantization_annotation.append(
        onnx.TensorAnnotation(tensor_name="input", quant_parameter_tensor_names=[entry])
    )
    return model


def hardware() -> onnx.ModelProto:
    writer = ModelWriter()

    def layer(name: str, *inputs: str, **attributes) -> str:
        return writer.node(name, *inputs, domain=HARDWARE, **attributes)

    window = {"ConvKernelDim": [3, 3], "Dilation": [1, 1], "Stride": [1, 1]}
    name = layer("FMPadding_Batch", "input", Padding=[1, 1, 1, 1], NumChannels=6)
    name = layer("ConvolutionInputGenerator", name, IFMChannels=6, **window)
    matrix = writer.constant(KERNEL.reshape(54, 8))
    name = layer("MatrixVectorActivation_hls", name, matrix, writer.constant(STEPS[0]), **LEVELS)
    writer.nodes.append(helper.make_node("DuplicateStreams_hls", [name], ["one", "two"], domain=HARDWARE))
    name = layer("FMPadding_rtl", "one", Padding=[1, 1, 1, 1], NumChannels=8)
    name = layer("ConvolutionInputGenerator_rtl", name, IFMChannels=8, depthwise=1, **window)
    name = layer("VVAU", name, writer.constant(DEPTHWISE), writer.constant(STEPS[1]), Channels=8, **LEVELS)
    name = layer("StreamingMaxPool_Batch", layer("StreamingFIFO", name), PoolDim=[2, 2])
    other = layer("StreamingMaxPool_Batch", "two", PoolDim=[2, 2])
    name = layer("MVAU_hls", name, writer.constant(MATRIX), writer.constant(STEPS[2]), **LEVELS)
    return annotated(writer, layer("AddStreams_Batch", name, other), (1, 6, 8, 6))


def layers() -> onnx.ModelProto:
    """The same with ONNX's operators."""
    writer = ModelWriter()

    def thresholds(source: str, number: int) -> str:
        return writer.node(
            "MultiThreshold", source, writer.constant(STEPS[number]), domain=QUANT_DOMAIN, out_dtype="UINT4"
        )

    name = writer.node("Transpose", "input", perm=[0, 3, 1, 2])
    name = thresholds(writer.node("Conv", name, writer.constant(KERNEL.transpose(3, 2, 0, 1)), pads=[1] * 4), 0)
    other = writer.node("MaxPool", name, kernel_shape=[2, 2], strides=[2, 2])
    name = thresholds(writer.node("Conv", name, writer.constant(DEPTHWISE), group=8, pads=[1] * 4), 1)
    name = writer.node("MaxPool", name, kernel_shape=[2, 2], strides=[2, 2])
    name = thresholds(writer.node("Conv", name, writer.constant(MATRIX.T[:, :, None, None])), 2)
    name = writer.node("Transpose", writer.node("Add", name, other), perm=[0, 2, 3, 1])
    return annotated(writer, name, (1, 6, 8, 6))


def test_hardware_layers_are_what_they_were_made_from():
    ours, theirs = load(hardware()), load(layers())
    assert ours.tensors[ours.input].shape == (6, 6, 8)
    images = random_images(0, ours, 3)
    assert np.array_equal(reference.predict(ours, images), reference.predict(theirs, images))


def test_hardware_layers_that_are_not_read_are_named():
    writer = ModelWriter()
    name = writer.node("GlobalAccPool_Batch", "input", domain=HARDWARE)
    with pytest.raises(UnsupportedOperator, match="GlobalAccPool_Batch is hardware of FINN's that is not read"):
        load(annotated(writer, name, (1, 6, 8, 6)))
    writer = ModelWriter()
    name = writer.node("MVAU", "input", writer.constant(MATRIX), domain=HARDWARE, binaryXnorMode=1)
    with pytest.raises(UnsupportedAttribute, match="binaryXnorMode must be 0, not 1"):
        load(annotated(writer, name, (1, 6, 8, 8)))
    assert TensorProto.FLOAT == 1
