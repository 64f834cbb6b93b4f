"""Two processes under torchrun train to the weights that one process finds, but for the order of sums."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

from helpers.random_pictures import SEED, split_of, write_cifar10
from helpers.training import Tiny, quantized
from torch import nn

from sentei.host.train import loop, processes
from sentei.host.train.images import Images
from sentei.host.train.loop import Recipe, TrainingError, fit

TESTS = Path(__file__).resolve().parents[1]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TIMEOUT_S = 240

TRAIN = """
import sys
import torch
from pathlib import Path
from test_processes import trained
from sentei.host.train import processes

processes.join()
folder = Path(sys.argv[1])
networks = trained(folder / "checkpoints")
torch.save(networks, folder / f"{processes.rank()}.pt")
"""


def trained(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of a float network and of one in 4 bits that it teaches, in float32; without dropout, whose chances
    are of a process."""
    loop.computes_in_bfloat16 = lambda device: False
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network, images = Tiny(), Images(split_of(32))
    network.head[2] = nn.Identity()
    recipe = Recipe(epochs=2, learning_rate=0.05, batch=16)
    fit(network, images, images, recipe, seed=SEED, stage="float", checkpoint=folder / "float.pt")
    student, pruner = quantized(network, 32)
    recipe = Recipe(epochs=2, learning_rate=0.02, batch=16, distillation=0.5)
    accuracies = []
    fit(
        student,
        images,
        images,
        recipe,
        seed=SEED,
        stage="quantized",
        teacher=network.eval(),
        before_step=lambda progress: pruner.update(2 * progress),
        watch=lambda moment: accuracies.append((moment.loss, moment.accuracy or 0.0)),
    )
    assert type(network.stem[0][1]) is nn.BatchNorm2d, "outside of training, a norm is as it was"
    return {
        "float": network.state_dict(),
        "quantized": student.state_dict(),
        "progress": {"told": torch.tensor(accuracies)},
    }


def torchrun(*arguments: object, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS / 'train'}", "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, **options)


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "computes_in_bfloat16", loop.computes_in_bfloat16)  # `trained` changes it
    (tmp_path / "pair.py").write_text(TRAIN)
    result = torchrun(tmp_path / "pair.py", tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = trained(tmp_path / "alone")
    for kind, states in alone.items():
        for name, value in states.items():
            assert torch.equal(first[kind][name], second[kind][name]), f"{kind}: {name} differs between processes"
            difference = (first[kind][name].double() - value.double()).abs().max()
            assert difference <= 1e-4 * (1 + value.double().abs().max()), f"{kind}: {name} differs by {difference}"
    state = torch.load(tmp_path / "checkpoints" / "float.pt")
    assert state["epochs"] == 2 and all(
        torch.equal(state["network"][name], value) for name, value in first["float"].items()
    )


def test_one_process_shares_with_nobody():
    items = torch.arange(5)
    assert processes.count() == 1 and processes.rank() == 0 and torch.equal(processes.share(items), items)
    assert processes.total(items) is items
    network = Tiny()
    assert processes.with_common_gradients(network) is network
    with processes.common_norms(network):
        assert not any(isinstance(module, processes.CommonBatchNorm) for module in network.modules())


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "with_common_gradients", lambda network: network)
    images = Images(split_of(16))
    with pytest.raises(TrainingError, match="16 images of a batch cannot be shared by 3 processes"):
        fit(Tiny(), images, images, Recipe(epochs=1, learning_rate=0.1, batch=16), seed=SEED, stage="tiny")


def test_the_command_line_trains_in_two_processes(tmp_path, overlay_path):
    """One of them writes: a model, its card, its checkpoints, what it says."""
    overlay_path("8x8")
    write_cifar10(tmp_path, 12, 12, SEED)
    options = ("--epochs", 1, "--float-epochs", 1, "--float-cycles", 1, "--geometry", "8x8", "--keep", "1/3")
    options += ("--folder", tmp_path, "--work", tmp_path / "work", "-o", tmp_path / "model.onnx")
    result = torchrun("-m", "sentei.host.commands.cli", "train", "resnet8", *options, cwd=TESTS.parent)
    assert result.returncode == 0, result.stderr[-3000:]
    card = json.loads((tmp_path / "model.json").read_text())
    assert abs(card["density"] - 1 / 3) < 0.01 and result.stdout.count("keep 1/3, epoch 1/1: ") == 1
    assert result.stdout.count(" in float; ") == 1
    names = sorted(path.name for path in (tmp_path / "work" / "resnet8-cifar10").iterdir())
    assert names == ["float.pt", "keep-1-3.pt"]
