"""A model's own float outputs, by qonnx."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes

from sentei.host.network.ir import Network


def execute(model: onnx.ModelProto, network: Network, images: np.ndarray) -> np.ndarray:
    """The model's own float output (N, features) for integer images, by qonnx."""
    wrapper = ModelWrapper(model).transform(InferShapes())
    shape = wrapper.get_tensor_shape(model.graph.input[0].name)
    kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    floats = network.model_input(images).reshape(shape).astype(kind)
    output = execute_onnx(wrapper, {model.graph.input[0].name: floats})[model.graph.output[0].name]
    return output.reshape(len(images), -1)
