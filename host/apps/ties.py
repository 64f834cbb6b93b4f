"""Moves a model's offsets, by less than one sum is worth, so that float32 execution decides every sum as it is meant.

In front of a Quant node whose sums float32's rounding could decide otherwise comes an Add, with one number for each
channel: the smallest with which no sum lies so near to where a level begins. Trained models do not notice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sentei.host.frontend.builder import Builder
from sentei.host.frontend.importer import read, walk
from sentei.host.frontend.model_file import read_file


def without_ties(path: Path, input: str | None = None) -> tuple[onnx.ModelProto, dict[str, float]]:
    """The moved model, and how far at most the numbers in front of each Quant node, named by its output, were moved."""
    builder = Builder(avoid_ties=True)
    walk(read(path), builder, input)
    model = read_file(path)
    for index, node in reversed([*enumerate(model.graph.node)]):
        if not node.output or node.output[0] not in builder.moved:
            continue
        offsets, name = builder.moved[node.output[0]], f"{node.output[0]} moved"
        model.graph.initializer.append(numpy_helper.from_array(offsets[None].astype(np.float32), f"{name} by"))
        model.graph.node.insert(index, helper.make_node("Add", [node.input[0], f"{name} by"], [name], name=name))
        model.graph.node[index + 1].input[0] = name
    return model, {name: float(np.abs(offsets).max()) for name, offsets in builder.moved.items()}
