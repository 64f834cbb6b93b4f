"""Run an exported file as any third party would: with qonnx, in float32, node by node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.change_batchsize import ChangeBatchSize
from qonnx.transformation.infer_shapes import InferShapes


def qonnx_logits(path: Path, inputs: np.ndarray, batch: int = 250) -> np.ndarray:
    """The outputs (N, classes) of a QONNX file for float32 inputs (N, C, H, W); N must be a multiple of batch."""
    model = ModelWrapper(str(path)).transform(ChangeBatchSize(batch)).transform(InferShapes())
    source, result = model.graph.input[0].name, model.graph.output[0].name
    parts = np.split(inputs, len(inputs) // batch)
    return np.concatenate([execute_onnx(model, {source: part})[result] for part in parts])
