"""Checkpoints: written so that a crash leaves the old one or the new one, and continued only by the run they are of."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import nn

from sentei.overlay.errors import SenteiError

OTHER_RUN = "repeat that run's options, name another folder (--work), or begin anew (--restart)"


class CheckpointError(SenteiError, ValueError):
    """A checkpoint cannot be written, or belongs to another run."""


def check_settings(path: Path, state: Mapping, settings: Mapping[str, object], unknown: str = "") -> None:
    """CheckpointError, with what differs, if the checkpoint at `path` is not of the training with these settings.

    The setting called `unknown` may be anything.
    """
    found = state.get("settings")
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} is no checkpoint of this program: it does not say of which run it is")
    different = [
        f"{name} is {found.get(name)!r} there and {settings.get(name)!r} here"
        for name in sorted({*found, *settings} - {unknown})
        if found.get(name) != settings.get(name)
    ]
    if different:
        raise CheckpointError(f"{path} is of another run: {'; '.join(different)}. {OTHER_RUN.capitalize()}")


def load_checkpoint(path: Path, device: torch.device) -> dict:
    """What :func:`save_checkpoint` wrote. CheckpointError if the file is no checkpoint."""
    try:
        state = torch.load(path, map_location=device)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:
        raise CheckpointError(f"{path} is no checkpoint of this program: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint of this program, but a {type(state).__name__}")
    return state


def load_onnx(path: Path) -> tuple[onnx.GraphProto, dict[str, torch.Tensor]]:
    """The graph of an ONNX file, and its constants by their names. CheckpointError if the file is none."""
    try:
        graph = onnx.load(path).graph
    except (OSError, ValueError, DecodeError) as error:
        raise CheckpointError(f"{path} is no ONNX file: {first_line(error)}") from error
    return graph, {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}


def load_onnx_weights(network: nn.Module, path: Path) -> None:
    """Load a network's weights from an ONNX file that was exported from one like it, with its names."""
    graph, found = load_onnx(path)
    for node in graph.node:  # the exporter writes equal tensors once
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    state = network.state_dict()
    wanted = {name for name in state if not name.endswith("num_batches_tracked")}
    if missing := sorted(wanted - {*found}):
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the network's {len(wanted)} tensors, {missing[0]!r} for one: export it "
            "with training=TrainingMode.PRESERVE and do_constant_folding=False, or save its state_dict"
        )
    try:
        network.load_state_dict(state | {name: found[name] for name in wanted})
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold the weights of this network: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What torch says in many lines, in one."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def save_checkpoint(state: Mapping[str, object], path: Path) -> None:
    """Write a checkpoint so that a crash or a full disk leaves either the old one or the new one."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}; what it held before is intact. "
            "Make room, or choose another folder, and use --resume"
        ) from error
