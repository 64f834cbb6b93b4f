"""What the frontend supports, in words: every operator with its attributes, and what is refused instead.

docs/models.md is made from it. Tests walk it: its operators are those that have handlers, its attributes those of
ONNX's and QONNX's definitions, and each of its refusals is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ANY = "any"
UNUSED = "no effect"  # of an attribute of old operator sets, or one that only training needs


@dataclass(frozen=True)
class Operator:
    """What becomes of an operator; `attributes` says of each what it may be, `refused` gives values that are not."""

    meaning: str
    attributes: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Any] = field(default_factory=dict)


OLD = {"consumed_inputs": UNUSED}
BROADCAST = {"axis": UNUSED, "broadcast": UNUSED, **OLD}
WINDOW = {"auto_pad": ANY, "strides": ANY}
BY_CONSTANT = "with a constant for each channel; folded into the thresholds behind it"
TAIL = "on the host, behind the last layer"

OPERATORS: dict[str, Operator] = {
    "Add": Operator(
        f"{BY_CONSTANT}; or of two activations of equal shape: a residual, or one sum of several terms", BROADCAST
    ),
    "ArgMax": Operator(TAIL, {"axis": "not the batch's", "keepdims": ANY, "select_last_index": ANY}, {"axis": 0}),
    "AveragePool": Operator(
        "of a quantized tensor, (N, C, H, W) or (N, C, L): a sum whose thresholds know the divisor",
        {
            **WINDOW,
            "kernel_shape": ANY,
            "pads": "0, or count_include_pad = 1",
            "count_include_pad": ANY,
            "ceil_mode": "1 if it changes nothing",
            "dilations": "1",
        },
        {"dilations": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "BatchNormalization": Operator(
        "folded into the thresholds behind it, with onnxruntime's own rounding of factor and offset",
        {"epsilon": ANY, "momentum": UNUSED, "training_mode": "0", "is_test": UNUSED, "spatial": UNUSED, **OLD},
        {"training_mode": 1},
    ),
    "Cast": Operator(
        "to float, of an input of integers or of floats",
        {"to": "1 (float)", "saturate": UNUSED, "round_mode": UNUSED},
        {"to": 7},
    ),
    "Clip": Operator(
        "folded into the thresholds behind it; behind QuantizeLinear it narrows the range",
        {"min": ANY, "max": ANY, **OLD},
    ),
    "Concat": Operator(
        "of channels: the tensors stay separate, a convolution behind them is one sum with a term for each",
        {"axis": "the channels'"},
        {"axis": 2},
    ),
    "Conv": Operator(
        "1-D and 2-D, weights of 1 to 8 bits with one scale or one for each output channel, any bias; groups and "
        "dilations are kernels with zeros",
        {**WINDOW, "kernel_shape": ANY, "pads": ANY, "dilations": ANY, "group": ANY},
    ),
    "ConvTranspose": Operator(
        "1-D and 2-D, as Conv; each output pixel takes the steps of the kernel elements that reach it",
        {
            **WINDOW,
            "kernel_shape": ANY,
            "pads": "smaller than the kernel",
            "output_padding": ANY,
            "output_shape": ANY,
            "dilations": ANY,
            "group": ANY,
        },
        {"pads": [9, 9, 9, 9]},
    ),
    "DepthToSpace": Operator("of a quantized tensor", {"blocksize": "a divisor of the channels", "mode": ANY}),
    "DequantizeLinear": Operator(
        "behind QuantizeLinear with the same scale and zero point, of constants, or of an input of integers",
        {"axis": ANY, "block_size": "0", "output_dtype": UNUSED},
    ),
    "Div": Operator(BY_CONSTANT, BROADCAST),
    "Dropout": Operator("nothing", {"ratio": UNUSED, "seed": UNUSED, "is_test": UNUSED, **OLD}),
    "Flatten": Operator("moves nothing", {"axis": "1"}, {"axis": 2}),
    "Gemm": Operator(
        "as MatMul, any bias",
        {"alpha": "1", "beta": "1", "transA": "0", "transB": ANY, "broadcast": UNUSED},
        {"alpha": 2.0, "beta": 0.5, "transA": 1},
    ),
    "GlobalAveragePool": Operator("as AveragePool"),
    "GlobalMaxPool": Operator("as MaxPool"),
    "Identity": Operator("nothing"),
    "LeakyRelu": Operator(
        "folded into the thresholds behind it, which are two pieces: the layer is computed twice",
        {"alpha": "0 or more", **OLD},
        {"alpha": -0.1},
    ),
    "LogSoftmax": Operator(TAIL, {"axis": "not the batch's"}, {"axis": 0}),
    "MatMul": Operator(
        "with constant weights of 1 to 8 bits, one scale or one for each output; of flattened maps, or of the channels "
        "where these come last"
    ),
    "MaxPool": Operator(
        "before or behind the Quant node, (N, C, H, W) or (N, C, L)",
        {
            **WINDOW,
            "kernel_shape": ANY,
            "pads": "smaller than the window",
            "ceil_mode": "1 if it changes nothing",
            "dilations": "1",
            "storage_order": UNUSED,
        },
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
    ),
    "Mul": Operator(BY_CONSTANT, BROADCAST),
    "Neg": Operator("folded into the thresholds behind it", OLD),
    "Pad": Operator(
        "with zeros around rows and columns, before a convolution or an average",
        {"mode": "constant", "pads": "0 of batch and channels", "value": "0", "paddings": UNUSED},
        {"mode": "reflect"},
    ),
    "PRelu": Operator("as LeakyRelu, with slopes of 0 or more", OLD),
    "QuantizeLinear": Operator(
        "to 8 bits or fewer, with one scale",
        {"axis": ANY, "block_size": "0", "saturate": UNUSED, "output_dtype": UNUSED, "precision": UNUSED},
    ),
    "ReduceMean": Operator(
        "over all rows and columns, as AveragePool",
        {"axes": "those of the map", "keepdims": ANY, "noop_with_empty_axes": UNUSED},
        {"axes": [1]},
    ),
    "Relu": Operator("folded into the thresholds behind it", OLD),
    "Reshape": Operator(
        "that flattens, or adds and drops axes of size 1; before the input's Quant node any",
        {"allowzero": ANY, "shape": UNUSED, **OLD},
    ),
    "Resize": Operator(
        "of a quantized tensor, where each pixel is repeated in whole numbers of rows and columns",
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "such that each pixel is repeated",
            "nearest_mode": "likewise",
            "axes": "none",
            "antialias": UNUSED,
            "cubic_coeff_a": UNUSED,
            "exclude_outside": UNUSED,
            "extrapolation_value": UNUSED,
            "keep_aspect_ratio_policy": UNUSED,
        },
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "Shape": Operator("a constant", {"start": ANY, "end": ANY}),
    "Sigmoid": Operator(TAIL, OLD),
    "SpaceToDepth": Operator("of a quantized tensor", {"blocksize": "a divisor of rows and columns"}),
    "Softmax": Operator(TAIL, {"axis": "not the batch's"}, {"axis": 0}),
    "Squeeze": Operator("of axes of size 1", {"axes": ANY}),
    "Sub": Operator(BY_CONSTANT, BROADCAST),
    "Tanh": Operator(TAIL, OLD),
    "TopK": Operator(
        TAIL + "; values or indices",
        {"axis": "not the batch's", "k": ANY, "largest": "1", "sorted": UNUSED},
        {"largest": 0},
    ),
    "Transpose": Operator("that leaves the batch first: moves nothing", {"perm": "0 first"}, {"perm": [1, 0, 2, 3]}),
    "Upsample": Operator(
        "as Resize", {"mode": "nearest", "scales": ANY, "height_scale": UNUSED, "width_scale": UNUSED}
    ),
    "Unsqueeze": Operator("behind the batch", {"axes": ANY}),
}

QUANTIZERS: dict[str, Operator] = {
    "BipolarQuant": Operator("-1 below 0, else 1, times the scale"),
    "IntQuant": Operator("as Quant", {"signed": ANY, "narrow": ANY, "rounding_mode": ANY}),
    "MultiThreshold": Operator(
        "any rising thresholds, for all channels or each; up to 15 of them",
        {"out_scale": "above 0", "out_bias": "a multiple of out_scale / 2", "out_dtype": UNUSED, "data_layout": ANY},
        {"out_scale": -1.0},
    ),
    "Quant": Operator(
        "of the input, of weights and of activations (one scale), 1 to 8 bits; whole zero points within the range; "
        "behind the last layer of any width, on the host",
        {"signed": ANY, "narrow": ANY, "rounding_mode": "any that qonnx executes, and ROUND_TO_ZERO"},
        {"rounding_mode": "STOCHASTIC"},
    ),
    "Trunc": Operator(
        "as Brevitas exports TruncAvgPool, both versions; zero point 0",
        {"rounding_mode": ANY, "signed": ANY, "narrow": ANY},
    ),
}

ELSEWHERE: dict[str, str] = {
    "HardSwish, Gelu, Elu": "use Relu, Clip or LeakyRelu",
    "Sigmoid, Tanh, Softmax between layers": "their input is no integer again without a Quant node behind them",
    "activations of more than 8 bits between layers": "quantize to 8 or 4",
    "MaxPool of more than 4 bits whose windows overlap": "quantize to 4 before it",
    "several inputs or outputs": "one of each",
    "FINN's hardware layers but for MatrixVectorActivation, VectorVectorActivation, their windows, paddings, pools, "
    "thresholds and streams": "give the model as it was before FINN made them",
}
