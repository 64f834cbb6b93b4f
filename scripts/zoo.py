"""Tries networks that others published: does each compile, is it exact, and in how many cycles does it run?

    python scripts/zoo.py FOLDER --output reports/zoo.json

Each .onnx file of the folder is compiled for the 32x32 array. 20 random inputs are compared with qonnx's own execution
of the file, 2 with the simulated SoC, layer by layer; cycles are the simulated control's. Inputs that a file leaves
open are taken as 8-bit integers from -128/128 to 127/128. What is refused is listed with its reason.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes

from sentei.boards.sim import build
from sentei.driver import SenteiOverlay
from sentei.gateware.technologies.technology import CONTROL, PACKED
from sentei.host.apps.measure import benchmark, first_difference
from sentei.host.compiler.compile import compile_network
from sentei.host.errors import MissingScale
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.host.network.ir import Network
from sentei.overlay.errors import SenteiError
from sentei.overlay.geometry import PRESETS

GEOMETRY, MEMORY = "32x32", "zynq-hp"
BY_QONNX, BY_RTL = 20, 2
ASSUMED_INPUT = "int8:1/128"


def read(path: Path) -> tuple[Network, str]:
    """The network, and what had to be assumed of its input."""
    try:
        return load(path), ""
    except MissingScale as error:
        if "--input" not in str(error):
            raise
    return load(path, input=ASSUMED_INPUT), ASSUMED_INPUT


def pictures(network: Network, count: int, seed: int) -> np.ndarray:
    """Random integers, of those that the model makes of some input; of few bits the two ends, which a sign has, too."""
    tensor, random = network.tensors[network.input], np.random.default_rng(seed)
    shape = (count, *tensor.shape)
    if network.preprocessing is not None:
        reached = [network.preprocessing.low + np.flatnonzero(of) for of in network.preprocessing.reached]
        return np.stack([random.choice(levels, (count, *tensor.shape[1:])) for levels in reached], 1)
    if tensor.bits <= 2:
        return random.choice([tensor.low, tensor.high], shape)
    return random.integers(tensor.low, tensor.high + 1, shape)


def outputs_of_both(path: Path, network: Network, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The file's own outputs and the reference's, (N, elements) each: by onnxruntime if its operators are ONNX's own,
    else by qonnx; None for FINN's hardware layers, which neither executes."""
    model = onnx.load(path)
    if any(node.domain.startswith("finn.custom_op.fpgadataflow") for node in model.graph.node):
        return None, reference.predict(network, images)
    (source,) = [value for value in model.graph.input if value.name == network.input]
    dims = [dim.dim_value for dim in source.type.tensor_type.shape.dim]
    kind = helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type)
    feeds = [{source.name: picture.reshape(1, *dims[1:]).astype(kind)} for picture in network.model_input(images)]
    output = model.graph.output[0].name
    if all(node.domain in ("", "ai.onnx") for node in model.graph.node):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        expected = [session.run([output], feed)[0].reshape(-1) for feed in feeds]
    else:
        wrapper = ModelWrapper(str(path)).transform(InferShapes())
        expected = [execute_onnx(wrapper, feed)[output].reshape(-1) for feed in feeds]
    return np.array(expected), reference.predict(network, images)


def examine(path: Path, whole: SenteiOverlay, control: SenteiOverlay) -> dict:
    row: dict = {"compiles": False}
    try:
        network, assumed = read(path)
        program = compile_network(network, PRESETS[GEOMETRY])
    except SenteiError as error:
        return row | {"refused": str(error)}
    row = {"compiles": True, "refused": None, "meaning": program.meaning}
    if assumed:
        row["assumed_input"] = assumed
    images = pictures(network, BY_QONNX, 0)
    expected, found = outputs_of_both(path, network, images)
    row |= {"proven": not program.doubts, "equal_float": None}
    if expected is not None:
        equal = int((found == expected).sum())
        row |= {"equal_float": equal == found.size, "outputs_equal": equal, "outputs": found.size}
        row |= {"largest_difference": float(np.abs(found - expected).max())}
    whole.load(program)
    row["rtl_exact"] = first_difference(whole, network, images[:BY_RTL]) is None
    control.load(program)
    measured = benchmark(control)
    return row | {"cycles": measured.cycles, "bound_cycles": measured.bound_cycles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of .onnx files, searched with its subfolders")
    parser.add_argument("--output", type=Path, required=True, help="report (JSON)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = {}
    paths = (
        build(GEOMETRY, MEMORY, f"build/sim/{GEOMETRY}-{MEMORY}{suffix}", technology=technology)
        for suffix, technology in (("", PACKED), ("-control", CONTROL))
    )
    whole, control = (SenteiOverlay(path) for path in paths)
    for path in sorted(arguments.folder.rglob("*.onnx")):
        rows[str(path.relative_to(arguments.folder))] = row = examine(path, whole, control)
        print(f"{path.name}: {row['refused'] or row}", flush=True)
    arguments.output.write_text(json.dumps(rows, indent=2) + "\n")
    compiled = sum(row["compiles"] for row in rows.values())
    print(f"{compiled} of {len(rows)} compile; report: {arguments.output}")


if __name__ == "__main__":
    main()
