"""Runs well-known networks, whole, on the simulated engine: exactness, cycles, utilisation: reports/networks.json.

    python scripts/networks.py --output reports/networks.json                        all, some minutes
    python scripts/networks.py --output reports/networks.json --only resnet18-dense  one of them
    python scripts/networks.py --model build/vww.onnx --only vww                     the file only, to look at

Shapes are those of the papers, activations and weights have 4 bits, pictures 8; weights are random, as none are at hand
for most. Each is written as a QONNX model and read back as any other. Exact: every element of every layer of a random
picture is the reference's, on the Verilated gateware. Cycles are those of the engine's control with the same memory
model, of a picture; in several stages they include what brings each stage's weights on chip. "batch" is the same for
up to BATCH pictures at a time, which share weights that do not stay on chip.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sentei.boards.sim import build
from sentei.driver import SenteiOverlay
from sentei.gateware.technologies.technology import CONTROL, PACKED
from sentei.host.apps.measure import benchmark, first_difference, random_images
from sentei.host.commands.console import say, step
from sentei.host.compiler.compile import compile_network
from sentei.host.frontend.importer import load
from sentei.host.network import reference
from sentei.host.network.ir import Network
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import PRESETS
from sentei.overlay.program import Program

GEOMETRY, MEMORY = "32x32", "zynq-hp"
BITS, PICTURE_BITS = 4, 8
LEVELS = 1 << BITS
BATCH = 4


class Writer:
    """Builds a model; every method returns the tensor that it makes. `shapes` and `spans`, the largest level's value,
    by tensor."""

    def __init__(self, channels: int, height: int, width: int):
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, int, int]] = {"input": (channels, height, width)}
        self.spans: dict[str, float] = {"input": 1.0}
        self.input = self.quant("input", 2.0**-PICTURE_BITS, PICTURE_BITS)

    def constant(self, value, kind=np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", domain=domain, **attributes))
        self.shapes[name] = self.shapes.get(inputs[0], (0, 0, 0))
        self.spans[name] = self.spans.get(inputs[0], 1.0)
        return name

    def quant(self, source: str, scale: float, bits: int = BITS, signed: bool = False, narrow: bool = False) -> str:
        numbers = [self.constant(value) for value in (scale, 0.0, bits)]
        attributes = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
        name = self.node("Quant", source, *numbers, domain="qonnx.custom_op.general", **attributes)
        self.spans[name] = scale * ((1 << bits - signed) - 1)
        return name

    def conv(
        self,
        source: str,
        channels: int,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        groups: int = 1,
        keep: float = 1.0,
    ) -> str:
        """Padded so that stride 1 keeps the map's size. `keep`: of the slots of 8 channels, so many have weights."""
        kernel, stride = (value if isinstance(value, tuple) else (value, value) for value in (kernel, stride))
        inputs, height, width = self.shapes[source]
        shape = (channels, inputs // groups, *kernel)
        weights = self.random.integers(1 - LEVELS // 2, LEVELS // 2, shape)
        kept = self.random.random((-(-channels // 8), *shape[1:])).argsort(None).argsort()
        kept = kept.reshape(-1, *shape[1:]) < round(keep * kept.size)
        weights = np.where(np.repeat(kept, 8, 0)[:channels], weights, 0)
        held = self.quant(self.constant(weights * 2.0**-3), 2.0**-3, BITS, signed=True, narrow=True)
        pads = [
            side for after in (0, 1) for k, s in zip(kernel, stride, strict=True) for side in [(k - 1 + after) // 2]
        ]
        result = self.node("Conv", source, held, kernel_shape=kernel, strides=stride, group=groups, pads=pads)
        self.shapes[result] = (
            channels,
            *((size - 1) // s + 1 for size, s in zip((height, width), stride, strict=True)),
        )
        slots = max(1.0, keep * np.prod(shape[1:]))
        self.spans[result] = self.spans[source] * 0.55 * float(np.sqrt(slots))
        return result

    def levels(self, source: str, activation: str = "Relu", **attributes) -> str:
        """Activation, and levels of a step that is a power of two, so that all can be added."""
        if activation:
            source = self.node(activation, source, **attributes)
        scale = 2.0 ** np.round(np.log2(self.spans[source] / LEVELS))
        return self.quant(source, scale, signed=activation != "Relu")

    def pool(self, source: str, kernel: int, stride: int) -> str:
        result = self.node(
            "MaxPool", source, kernel_shape=(kernel,) * 2, strides=(stride,) * 2, pads=[(kernel - 1) // 2] * 4
        )
        channels, height, width = self.shapes[source]
        self.shapes[result] = (
            channels,
            *((size + 2 * ((kernel - 1) // 2) - kernel) // stride + 1 for size in (height, width)),
        )
        return result

    def classes(self, source: str, count: int) -> str:
        """Average over the map, and a fully connected layer."""
        mean = self.node("GlobalAveragePool", source)
        self.shapes[mean] = (self.shapes[source][0], 1, 1)
        mean = self.quant(mean, self.spans[source] / 2 / LEVELS)
        flat = self.node("Flatten", mean)
        weights = self.random.integers(1 - LEVELS // 2, LEVELS // 2, (self.shapes[source][0], count)) * 2.0**-3
        return self.node("MatMul", flat, self.quant(self.constant(weights), 2.0**-3, BITS, signed=True, narrow=True))

    def model(self, output: str) -> onnx.ModelProto:
        shape = (1, *self.shapes["input"])
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("qonnx.custom_op.general", 1)]
        return helper.make_model(graph, opset_imports=opsets)


def mobilenetv1(size: int, width: float, classes: int) -> onnx.ModelProto:
    writer = Writer(3, size, size)
    now = writer.levels(writer.conv(writer.input, int(32 * width), stride=2))
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for channels, stride in blocks:
        own = writer.shapes[now][0]
        now = writer.levels(writer.conv(now, own, stride=stride, groups=own))
        now = writer.levels(writer.conv(now, int(channels * width), 1))
    return writer.model(writer.classes(now, classes))


def mobilenetv2() -> onnx.ModelProto:
    writer = Writer(3, 224, 224)
    now = writer.levels(writer.conv(writer.input, 32, stride=2))
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, channels, count, first in stages:
        for number in range(count):
            source, stride = now, first if number == 0 else 1
            if expansion > 1:
                now = writer.levels(writer.conv(now, expansion * writer.shapes[now][0], 1))
            own = writer.shapes[now][0]
            now = writer.levels(writer.conv(now, own, stride=stride, groups=own))
            now = writer.levels(writer.conv(now, channels, 1), activation="")
            if stride == 1 and writer.shapes[source] == writer.shapes[now]:
                now = writer.levels(writer.node("Add", now, source), activation="")
    now = writer.levels(writer.conv(now, 1280, 1))
    return writer.model(writer.classes(now, 1000))


def resnet18(keep: float) -> onnx.ModelProto:
    writer = Writer(3, 224, 224)
    now = writer.pool(writer.levels(writer.conv(writer.input, 64, 7, 2)), 3, 2)
    for channels, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first, 1):
            source = now
            now = writer.levels(writer.conv(now, channels, stride=stride, keep=keep))
            now = writer.levels(writer.conv(now, channels, keep=keep), activation="")
            if writer.shapes[source] != writer.shapes[now]:
                source = writer.levels(writer.conv(source, channels, 1, stride), activation="")
            now = writer.levels(writer.node("Add", now, source))
    return writer.model(writer.classes(now, 1000))


def tiny_yolo() -> onnx.ModelProto:
    """Version 3's path to the coarse grid."""
    writer = Writer(3, 416, 416)
    now = writer.input
    for channels in (16, 32, 64, 128, 256):
        now = writer.pool(writer.levels(writer.conv(now, channels), "LeakyRelu", alpha=0.125), 2, 2)
    for channels, kernel in ((512, 3), (1024, 3), (256, 1), (512, 3)):
        now = writer.levels(writer.conv(now, channels, kernel), "LeakyRelu", alpha=0.125)
    return writer.model(writer.conv(now, 255, 1))


def unet() -> onnx.ModelProto:
    writer = Writer(3, 256, 256)

    def two(source: str, channels: int) -> str:
        return writer.levels(writer.conv(writer.levels(writer.conv(source, channels)), channels))

    now, kept = writer.input, []
    for channels in (16, 32, 64):
        now = two(now, channels)
        kept.append(now)
        now = writer.pool(now, 2, 2)
    now = two(now, 128)
    for channels in (64, 32, 16):
        sizes = [writer.constant([]), writer.constant([1, 1, 2, 2])]
        up = writer.node(
            "Resize", now, *sizes, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
        own, height, width = writer.shapes[now]
        writer.shapes[up] = (own, 2 * height, 2 * width)
        up, earlier = writer.conv(up, channels), kept.pop()
        writer.spans[up] = writer.spans[earlier] * LEVELS / (LEVELS - 1)  # one scale for both, for the concatenation
        now = writer.node("Concat", earlier, writer.levels(up), axis=1)
        writer.shapes[now] = (2 * channels, 2 * height, 2 * width)
        now = two(now, channels)
    return writer.model(writer.conv(now, 2, 1))


def ds_cnn() -> onnx.ModelProto:
    writer = Writer(1, 49, 10)
    now = writer.levels(writer.conv(writer.input, 64, (10, 4), 2))
    for _ in range(4):
        now = writer.levels(writer.conv(now, 64, groups=64))
        now = writer.levels(writer.conv(now, 64, 1))
    return writer.model(writer.classes(now, 12))


def squeezenet() -> onnx.ModelProto:
    writer = Writer(3, 224, 224)
    now = writer.pool(writer.levels(writer.conv(writer.input, 64, stride=2)), 3, 2)
    fires = (16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256)
    for fire in fires:
        if fire is None:
            now = writer.pool(now, 3, 2)
            continue
        squeezed = writer.levels(writer.conv(now, fire[0], 1))
        sides = [writer.conv(squeezed, fire[1], kernel) for kernel in (1, 3)]
        for side in sides:
            writer.spans[side] = writer.spans[sides[1]]  # one scale for both
        now = writer.node("Concat", *(writer.levels(side) for side in sides), axis=1)
        writer.shapes[now] = (2 * fire[1], *writer.shapes[squeezed][1:])
    return writer.model(writer.classes(writer.levels(writer.conv(now, 1000, 1)), 1000))


def espcn() -> onnx.ModelProto:
    writer = Writer(3, 128, 128)
    now = writer.levels(writer.conv(writer.input, 64, 5))
    now = writer.levels(writer.conv(now, 64))
    now = writer.levels(writer.conv(now, 32))
    return writer.model(writer.node("DepthToSpace", writer.levels(writer.conv(now, 12)), blocksize=2))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "ds-cnn": ds_cnn,
    "vww": lambda: mobilenetv1(96, 0.25, 2),
    "squeezenet": squeezenet,
    "espcn": espcn,
    "unet": unet,
    "mobilenetv1": lambda: mobilenetv1(224, 1.0, 1000),
    "mobilenetv2": mobilenetv2,
    "resnet18-dense": lambda: resnet18(1.0),
    "resnet18-ninth": lambda: resnet18(1 / 9),
    "tiny-yolo": tiny_yolo,
}


def batch_of(network: Network, size: int) -> Program | None:
    """The program of so many pictures at a time, if they have room."""
    try:
        return compile_network(network, PRESETS[GEOMETRY], batch=size)
    except CapacityError:
        return None


def measure(path: Path, whole: SenteiOverlay, control: SenteiOverlay) -> dict:
    network = load(path)
    with step("compiling"):
        program = compile_network(network, PRESETS[GEOMETRY])
        batch = next(compiled for size in (BATCH, BATCH // 2, 1) if (compiled := batch_of(network, size)))
    with step("pictures on the engine's control"):
        control.load(program)
        measured = benchmark(control, jobs=1)
        control.load(batch)
        shared = benchmark(control, jobs=1)
    with step("every layer of it on the gateware"):
        whole.load(program)
        images = random_images(program, 1)
        difference = first_difference(whole, network, images)
    with step("and as it runs without looking at layers"):
        alike = np.array_equal(whole.run(images), reference.run(network, images)[network.output])
    return {
        "exact": difference is None and alike,
        "layers": len(program.layers),
        "stages": [{"layers": len(stage.layers), "patches": stage.patches} for stage in program.stages],
        "cycles": round(measured.cycles),
        "bound_cycles": round(measured.bound_cycles),
        "utilisation": round(measured.utilisation, 4),
        "memory_bytes": len(program.data),
        "fps_100mhz": round(1e8 / measured.cycles, 1),
        "batch": {
            "pictures": batch.pictures,
            "cycles": round(shared.cycles),
            "utilisation": round(shared.utilisation, 4),
            "fps_100mhz": round(1e8 / shared.cycles, 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="report (JSON)")
    parser.add_argument("--only", choices=NETWORKS, nargs="*", default=list(NETWORKS))
    parser.add_argument("--model", type=Path, help="write the (one) model there, and do nothing else")
    arguments = parser.parse_args()
    if arguments.model is not None:
        onnx.save(NETWORKS[arguments.only[0]](), arguments.model)
        return
    rows = json.loads(arguments.output.read_text()) if arguments.output and arguments.output.exists() else {}
    paths = (
        build(GEOMETRY, MEMORY, f"build/sim/{GEOMETRY}-{MEMORY}{suffix}", technology=technology)
        for suffix, technology in (("", PACKED), ("-control", CONTROL))
    )
    whole, control = (SenteiOverlay(path) for path in paths)
    folder = Path("build/networks")
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        onnx.save(NETWORKS[name](), folder / f"{name}.onnx")
        rows[name] = measure(folder / f"{name}.onnx", whole, control)
        say(f"{name}: {rows[name]}")
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(dict(sorted(rows.items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
