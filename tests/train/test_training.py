"""A resumed run is the same run; whatever cannot go on is named, and checkpoints stay intact."""

from __future__ import annotations

import copy
import errno
import math
import os
import pickle
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("brevitas")
pytest.importorskip("qonnx")

from helpers.random_pictures import CLASSES, SEED, data_set, split_of
from helpers.training import GROUP, KEEPS, PLAN, Tiny, check_export, head, quantized, quantizers_of, tiny
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sentei.host.datasets import dataset
from sentei.host.errors import UnsupportedModel
from sentei.host.network import reference
from sentei.host.network.ir import kept_density
from sentei.host.train import loop, pipeline
from sentei.host.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from sentei.host.train.export import ExportError
from sentei.host.train.images import Images, augment, to_input
from sentei.host.train.loop import Recipe, TrainingError, _Training, accuracy, estimate_norms, fit, one_cycle
from sentei.host.train.networks import NETWORKS
from sentei.host.train.pipeline import Plan, load_float, prune_and_retrain
from sentei.host.train.prune import PruneError
from sentei.host.train.quantizers import (
    UnsupportedNetworkError,
)
from sentei.overlay.errors import CapacityError
from sentei.overlay.geometry import PRESETS

DENSE = (Fraction(1),)


def points_of(work: Path | None = None, network: nn.Module | None = None, keeps=KEEPS, plan: Plan = PLAN, **options):
    return list(prune_and_retrain(network or tiny(), data_set(), keeps, plan, work=work, **options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted: its folder, and its finished models."""
    work = tmp_path_factory.mktemp("whole")
    return work, points_of(work)


def test_the_float_network_goes_through_cycles_of_half_the_peak(tmp_path):
    plan = replace(PLAN, float_epochs=1, float_cycles=3, epochs=0)
    moments = []
    points_of(tmp_path, keeps=KEEPS[:1], plan=plan, watch=moments.append)
    stages = ("float", "float, cycle 2", "float, cycle 3")
    assert [stage for stage in stages if any(moment.stage == stage for moment in moments)] == list(stages)
    names = ("float.pt", "float-2.pt", "float-3.pt")
    states = [load_checkpoint(tmp_path / name, torch.device("cpu")) for name in names]
    assert [state["settings"]["learning_rate"] for state in states] == [0.1, 0.05, 0.025]
    assert len({state["settings"]["seed"] for state in states}) == 3
    resumed = []
    points_of(tmp_path, keeps=KEEPS[:1], plan=plan, watch=resumed.append, resume=True)
    assert [(moment.stage, moment.epoch, moment.step) for moment in resumed] == [(stage, 1, 0) for stage in stages]


@pytest.mark.parametrize(
    ("pool", "error", "text"),
    [
        (nn.MaxPool2d(3, 2, ceil_mode=True), UnsupportedModel, "ceil_mode must be 0"),
        (nn.AdaptiveAvgPool2d(3), ExportError, "cannot be written as ONNX: .*adaptive_avg_pool2d"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_training(pool, error, text, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(4))
    network(torch.zeros(1, *data_set().train.images.shape[1:]))
    with pytest.raises(error, match=text):
        points_of(tmp_path, network, DENSE, watch=lambda moment: pytest.fail("it must not be trained"))


def test_densities_may_have_epochs_of_their_own():
    moments = []
    points_of(plan=replace(PLAN, float_epochs=0, epochs=(3, 1)), watch=moments.append)
    assert {(moment.stage, moment.epochs) for moment in moments} == {("keep 1/2", 3), ("keep 1/4", 1)}


def test_a_density_may_have_several_cycles_of_the_learning_rate(tmp_path):
    """Pruning ends with the first; stopped in the second, training continues there."""
    plan = replace(PLAN, float_epochs=0, epochs=((2, 1, 1), 1))
    moments = []
    whole = points_of(plan=plan, watch=moments.append)
    stages = ["keep 1/2", "keep 1/2, cycle 2", "keep 1/2, cycle 3", "keep 1/4"]
    assert list(dict.fromkeys(moment.stage for moment in moments)) == stages
    assert len({moment.density for moment in moments if "cycle" in moment.stage}) == 1

    def stop(moment):
        if moment.stage == "keep 1/2, cycle 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points_of(tmp_path, plan=plan, watch=stop)
    seen = []
    resumed = points_of(tmp_path, plan=plan, resume=True, watch=seen.append)
    assert list(dict.fromkeys(moment.stage for moment in seen if moment.step)) == stages[2:]
    for one, other in zip(whole, resumed, strict=True):
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
        )


def assert_same_states(one, other, name: str = "") -> None:
    """Tensors, numbers and everything else in nested dictionaries and lists, apart from the seconds."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), f"{name} differs"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one.keys() - {"seconds"}:
            assert_same_states(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), name
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_states(*pair, f"{name}.{index}")
    else:
        assert one == other, f"{name}: {one} and {other}"


def assert_same_runs(one: tuple[Path, list], other: tuple[Path, list]) -> None:
    names = sorted(path.name for path in one[0].iterdir())
    assert names == sorted(path.name for path in other[0].iterdir()) == ["float.pt", "keep-1-2.pt", "keep-1-4.pt"]
    for name in names:
        assert_same_states(*(load_checkpoint(run[0] / name, torch.device("cpu")) for run in (one, other)), name)
    assert len(one[1]) == len(other[1])
    for left, right in zip(one[1], other[1], strict=True):
        assert_same_states(left.network.state_dict(), right.network.state_dict(), str(left.keep))
        for name in ("keep", "density", "densities", "accuracy", "float_accuracy"):
            assert getattr(left, name) == getattr(right, name), name


def test_every_density_on_the_way_is_a_finished_model(whole, tmp_path):
    """Of a network like ResNet-8 with a projection shortcut: torch, qonnx and the reference agree on every logit."""
    _, points = whole
    assert [point.keep for point in points] == list(KEEPS)
    for point in points:
        path = tmp_path / "model.onnx"
        network = check_export(point.network, path, 16)
        elements = sum(m.weight.numel() for m in point.network.modules() if isinstance(m, nn.Conv2d))
        assert round(kept_density(network, GROUP) * elements) == round(point.density * elements)
        assert abs(point.density - point.keep) < 0.02
        assert {
            name: m.weight.ne(0).float().mean().item()
            for name, m in point.network.named_modules()
            if name in point.densities
        } == pytest.approx(dict(point.densities))
        test = data_set().test
        labels = reference.predict(network, test.images).argmax(1)
        assert point.accuracy == (labels == test.labels).mean() == accuracy(point.network, Images(test))
    assert points[0].seconds < points[1].seconds


@pytest.mark.parametrize(
    "stage, epoch, step",
    [("float", 1, 2), ("keep 1/2", 1, 1), ("keep 1/4", 0, 1), ("keep 1/4", 1, 2)],
)
def test_a_run_that_was_interrupted_continues_bit_for_bit(whole, tmp_path, stage, epoch, step):
    def interrupt(moment):
        if (moment.stage, moment.epoch, moment.step) == (stage, epoch, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points_of(tmp_path, watch=interrupt)
    seen = []
    points = points_of(tmp_path, resume=True, watch=seen.append)
    assert_same_runs(whole, (tmp_path, points))
    epochs = [(name, number) for name in ("float", "keep 1/2", "keep 1/4") for number in range(2)]
    trained = dict.fromkeys((moment.stage, moment.epoch) for moment in seen if moment.step)
    assert list(trained) == epochs[epochs.index((stage, epoch)) :], "finished epochs must not be repeated"
    assert [(moment.stage, moment.epoch) for moment in seen if moment.ends_epoch] == list(trained)


def test_a_run_that_ended_is_not_repeated(whole):
    work, points = whole
    before = {path: path.read_bytes() for path in work.iterdir()}
    seen = []
    again = points_of(work, resume=True, watch=seen.append)
    assert [(moment.stage, moment.epoch, moment.step) for moment in seen] == [
        ("float", 2, 0),
        ("keep 1/2", 2, 0),
        ("keep 1/4", 2, 0),
    ]
    assert before == {path: path.read_bytes() for path in work.iterdir()}
    assert_same_runs(whole, (work, again))
    assert [point.seconds for point in again] == [point.seconds for point in points]


def test_checkpoints_are_continued_or_left_alone(whole, tmp_path):
    """Never overwritten; and what does not fit is named before anything is trained."""
    work = tmp_path / "work"
    shutil.copytree(whole[0], work)
    before = {path.name: path.read_bytes() for path in work.iterdir()}

    def refused(text: str, **options) -> None:
        with pytest.raises(CheckpointError, match=text):
            points_of(work, watch=lambda moment: pytest.fail("it must not be trained"), **options)
        assert before == {path.name: path.read_bytes() for path in work.iterdir()}

    refused(r"float\.pt is there already, from an earlier run: continue it \(--resume\), name .*anew \(--restart\)")
    refused(
        r"keep-1-4\.pt is of another run: .*; keeps is \['1/2', '1/4'\] there and \['1/4'\] here; ",
        keeps=KEEPS[1:],
        resume=True,
    )
    refused(
        r"keep-1-2\.pt is of another run: learning_rate is 0\.05 there and 0\.04 here\.",
        plan=replace(PLAN, learning_rate=0.04),
        resume=True,
    )
    clipped = tiny()
    clipped.stem[1] = nn.ReLU6()
    refused(r"float\.pt is of another run: network is '.*' there and '.*' here\.", network=clipped, resume=True)
    refused(r"keep-1-2\.pt is of another run: .*network is '.*' there", network=clipped, pretrained=True, resume=True)
    other = tiny()
    load_float(other, work / "float.pt")
    other.head[-1].bias.data[0] += 1
    with pytest.raises(CheckpointError, match=r"keep-1-2\.pt is of another run: teacher is '.*' there and '.*' here"):
        points_of(work, other, pretrained=True, resume=True)
    images = data_set().train.images.copy()
    images[0, 0, 0, 0] ^= 1
    changed = replace(data_set(), train=dataset.Split(images, data_set().train.labels))
    with pytest.raises(CheckpointError, match=r"float\.pt is of another run: images is '.*' there and '.*' here"):
        list(prune_and_retrain(tiny(), changed, KEEPS, PLAN, work=work, resume=True))
    (work / "float.pt").unlink()
    with pytest.raises(CheckpointError, match=r"keep-1-2\.pt is there, but what comes before it has not been trained"):
        points_of(work, resume=True)


def test_a_float_network_that_is_not_finished_teaches_nobody(tmp_path):
    def interrupt(moment):
        if moment.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points_of(tmp_path, watch=interrupt)
    with pytest.raises(CheckpointError, match=r"float\.pt holds 1 of 2 epochs; finish that run first"):
        load_float(tiny(), tmp_path / "float.pt")


def test_norms_of_a_finished_model_are_those_over_the_training_images(tmp_path):
    plan = Plan(**{**vars(PLAN), "float_epochs": 0, "epochs": 1, "batch": 32, "max_shift": 0, "mirror": False})
    (point,) = points_of(tmp_path, keeps=KEEPS[:1], plan=plan)
    state, network = load_checkpoint(tmp_path / "keep-1-2.pt", torch.device("cpu"))["network"], point.network
    inputs = to_input(torch.from_numpy(data_set().train.images))
    sums = network.get_submodule("stem.0.0")(next(iter(quantizers_of(network).values()))(inputs))
    variance, mean = torch.var_mean(sums.detach(), (0, 2, 3))
    gain = state["stem.0.1.weight"] / (variance + 1e-5).sqrt()
    affine = network.get_submodule("stem.0.1")
    torch.testing.assert_close(affine.m.flatten(), gain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(affine.b.flatten(), state["stem.0.1.bias"] - mean * gain, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(state["stem.0.1.running_mean"], mean, rtol=1e-3)


def test_the_masks_of_a_schedule_under_way_are_in_the_checkpoint(tmp_path):
    def interrupt(moment):
        if (moment.stage, moment.epoch) == ("keep 1/2", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points_of(tmp_path, watch=interrupt)
    state = load_checkpoint(tmp_path / "keep-1-2.pt", torch.device("cpu"))["network"]
    kept = [value for name, value in state.items() if name.endswith("kept")]
    assert len(kept) == 5 and 0.5 < torch.cat([mask.flatten() for mask in kept]).float().mean() < 0.6
    assert not any(value for name, value in state.items() if name.endswith("final"))


def test_a_float_network_that_is_trained_already_stays_as_it_is(whole, tmp_path):
    work, points = whole
    network = tiny()
    load_float(network, work / "float.pt")
    before = copy.deepcopy(network.state_dict())
    again = points_of(tmp_path, network, KEEPS[:1], pretrained=True)
    assert_same_states(before, network.state_dict())
    assert_same_states(points[0].network.state_dict(), again[0].network.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["keep-1-2.pt"]
    torch.save(before, tmp_path / "weights.pt")
    other = Tiny()
    load_float(other, tmp_path / "weights.pt")
    assert_same_states(before, other.state_dict())


def test_weights_come_from_an_onnx_file_too(whole, tmp_path):
    network, other = tiny(), tiny()
    load_float(network, whole[0] / "float.pt")
    options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False, "dynamo": False}
    torch.onnx.export(network.eval(), torch.zeros(1, 3, 32, 32), str(tmp_path / "float.onnx"), **options)
    load_float(other, tmp_path / "float.onnx")
    for (name, ours), theirs in zip(other.state_dict().items(), network.state_dict().values(), strict=True):
        assert name.endswith("num_batches_tracked") or torch.equal(ours, theirs), name
    with pytest.raises(CheckpointError, match=r"float\.onnx lacks 2 of the network's 2 tensors, .* for one: export it"):
        load_float(nn.Conv2d(3, 4, 1), tmp_path / "float.onnx")
    (tmp_path / "no.onnx").write_text("no")
    with pytest.raises(CheckpointError, match=r"no\.onnx is no ONNX file"):
        load_float(other, tmp_path / "no.onnx")


def test_weights_of_another_network_are_refused(whole, tmp_path):
    with pytest.raises(CheckpointError, match=r"float\.pt does not hold the weights of this network: .*") as info:
        load_float(nn.Conv2d(3, 4, 1), whole[0] / "float.pt")
    assert "\n" not in str(info.value)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt is no checkpoint of this program, but a list"):
        load_float(tiny(), tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"none\.pt does not exist"):
        load_float(tiny(), tmp_path / "none.pt")


@pytest.mark.parametrize("keeps", [(), (Fraction(1, 4), Fraction(1, 2)), (Fraction(1, 2), Fraction(1, 2))])
def test_densities_that_do_not_fall_are_refused(keeps):
    with pytest.raises(PruneError, match="the densities must fall, not be"):
        points_of(keeps=keeps)


@pytest.mark.parametrize(
    "error, options",
    [
        (PruneError, {"keeps": (Fraction(1, 2), Fraction(1, 1000))}),
        (PruneError, {"plan": Plan(floors={"none": Fraction(1, 2)})}),
        (UnsupportedNetworkError, {"network": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), *head(4))}),
        (dataset.DatasetError, {"plan": Plan(holdout=32)}),
        (CapacityError, {"geometry": replace(PRESETS["8x8"], activation_words=64)}),
    ],
)
def test_what_cannot_be_done_is_refused_before_hours_of_training(error, options):
    moments = []
    with pytest.raises(error):
        points_of(**options, watch=moments.append)
    assert not moments


def test_images_held_out_are_not_trained_on_but_measured(tmp_path):
    """Their labels may change without a change to the network; those of the test images do not matter at all."""
    plan = Plan(**{**vars(PLAN), "holdout": 8, "epochs": 1, "float_epochs": 1})
    results = []
    for offset in (0, 1):
        training = split_of(32)
        labels = np.concatenate([training.labels[:24], (training.labels[24:] + offset) % CLASSES])
        changed = dataset.DataSet("random", dataset.Split(training.images, labels), split_of(16), tuple("abcd"))
        (point,) = prune_and_retrain(tiny(), changed, KEEPS[:1], plan)
        held_out = dataset.Split(training.images[24:], labels[24:])
        assert point.holdout_accuracy == accuracy(point.network, Images(held_out))
        assert point.accuracy == accuracy(point.network, Images(changed.test))
        results.append(point.network.state_dict())
    assert_same_states(*results)


def test_a_users_own_network_from_floats_to_integers(tmp_path):
    """A convolution with a bias and no norm, ReLU6, max pooling, 8 bits first and last; pruned twice."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.conv2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6())
            self.conv3 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU6())
            self.fc = nn.Linear(16, CLASSES)

        def forward(self, x):
            x = F.max_pool2d(self.conv2(F.relu(self.conv1(x))), 2)
            return self.fc(self.conv3(x).mean((2, 3)))

    torch.manual_seed(SEED)
    for point in prune_and_retrain(Own(), data_set(), KEEPS, PLAN):
        network = check_export(point.network, tmp_path / f"own-{point.keep.denominator}.onnx", 16)
        weights = [op.weights for op in network.ops if hasattr(op, "weights")]
        assert [np.abs(w).max() > 7 for w in weights] == [True, False, False, True]
        assert abs(point.density - point.keep) < 0.02
        assert round(kept_density(network, GROUP) * 3672) == round(point.density * 3672)


def run_fit(network: nn.Module, *, recipe: Recipe | None = None, seed: int = SEED, **options) -> float:
    images = Images(split_of(16))
    recipe = recipe or Recipe(epochs=2, learning_rate=0.05, batch=8)
    return fit(network, images, images, recipe, seed=seed, stage="tiny", **options)


def test_a_compiled_step_trains_to_the_same_weights(recwarn, monkeypatch):
    """Quantized, pruned and taught, in float32; without dropout, whose chances the compiler draws otherwise. Sums
    differ by their order, and so may roundings to 4 bits now and then."""
    monkeypatch.setattr(loop, "computes_in_bfloat16", lambda device: False)
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    teacher = tiny()
    teacher.head[2] = nn.Identity()
    start, trained = [], []
    for compiled in (False, True):
        student, pruner = quantized(teacher, 16)
        start = [p.detach().clone() for p in student.parameters()]
        recipe = Recipe(epochs=3, learning_rate=0.02, batch=8, distillation=0.5)
        update = lambda progress, pruner=pruner: pruner.update(2 * progress)  # noqa: E731
        run_fit(student, recipe=recipe, teacher=teacher.eval(), before_step=update, compiled=compiled)
        trained.append(list(student.parameters()))
        masks = [mask.kept for mask in pruner.masks.values()]
        assert pruner.density() < 0.6 and sum(int(mask.sum()) for mask in masks) < sum(mask.numel() for mask in masks)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before, "nothing was compiled"
    assert not [warning for warning in recwarn if "cannot be compiled" in str(warning.message)]
    for first, eager, compiled in zip(start, *trained, strict=True):
        moved = (eager - first).norm()
        assert (compiled - eager).norm() <= 0.02 * moved + 1e-6, (moved, (compiled - eager).norm())


def test_a_step_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def fails(function, **options):
        def compiled(*arguments):
            raise RuntimeError("no compiler on this machine\nand more lines")

        return compiled

    whole, fallen = tiny(), tiny()
    run_fit(whole)
    monkeypatch.setattr(torch, "compile", fails)
    with pytest.warns(UserWarning, match=r"tiny: the step cannot be compiled \(no compiler on this machine\)"):
        run_fit(fallen, compiled=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fallen.parameters(), strict=True))


class Waits(TorchDispatchMode):
    """Counts what waits for a GPU: numbers that leave it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_a_gpu_within_an_epoch():
    """A CPU stands for it, which is not asked for the loss after each step; pruning and its density are told."""
    teacher = tiny()
    student, pruner = quantized(teacher, 16)
    images = Images(split_of(64))
    recipe = Recipe(epochs=2, learning_rate=0.02, batch=8, distillation=0.5)
    training = _Training(student, images, recipe, "tiny", SEED, teacher.eval(), None, False)
    training.waits = False
    losses, densities = [], []
    with Waits() as waits:
        for loss in training.epoch(0, lambda progress: pruner.update(2 * progress)):
            losses.append(loss)
            densities.append(pruner.density())
            if len(losses) == training.steps - 1:
                assert waits.count == 0
    assert len(losses) == 8 and math.isfinite(losses[-1]) and all(map(math.isnan, losses[:-1]))
    assert densities[0] > densities[-1] > 0.49
    assert densities[-1] == pytest.approx(
        sum(int(mask.kept.sum()) * mask.group for mask in pruner.masks.values()) / sum(pruner.elements.values())
        + (sum(pruner.elements.values()) - sum(pruner.elements[name] for name in pruner.layers))
        / sum(pruner.elements.values())
    )
    for loss in training.epoch(1, lambda progress: None):
        assert math.isfinite(loss), "until an epoch ends, the loss is that of the one before"


def test_a_loss_that_is_no_number_ends_training_and_the_last_checkpoint_stays(tmp_path):
    network, checkpoint = tiny(), tmp_path / "tiny.pt"
    kept = []

    def poison(progress):
        if progress >= 0.5:
            kept.append(checkpoint.read_bytes())
            nn.init.constant_(network.head[-1].weight, math.nan)

    text = rf"tiny: the loss is nan in epoch 2, step 1; lower the learning rate \(0\.05\); {checkpoint} holds 1 epochs"
    with pytest.raises(TrainingError, match=text):
        run_fit(network, checkpoint=checkpoint, before_step=poison)
    assert kept == [checkpoint.read_bytes()]
    state = load_checkpoint(checkpoint, torch.device("cpu"))
    assert state["epochs"] == 1 and all(value.isfinite().all() for value in state["network"].values())


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    """The last step of an epoch makes them so: no loss tells."""
    network, checkpoint = tiny(), tmp_path / "tiny.pt"

    def poison(moment):
        if moment.epoch == 1 and moment.step == moment.steps:
            nn.init.constant_(network.head[-1].weight, math.nan)

    text = rf"tiny: weights are no finite numbers after epoch 2; lower the learning .*; {checkpoint} holds 1 epochs"
    with pytest.raises(TrainingError, match=text):
        run_fit(network, checkpoint=checkpoint, watch=poison)
    state = load_checkpoint(checkpoint, torch.device("cpu"))
    assert state["epochs"] == 1 and all(value.isfinite().all() for value in state["network"].values())


def test_a_learning_rate_that_is_too_large_is_named():
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch \d+, step \d+; lower the .* \(1e\+20\)$"):
        run_fit(tiny(), recipe=Recipe(epochs=9, learning_rate=1e20, batch=8))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "tiny.pt"
    run_fit(tiny(), checkpoint=checkpoint, settings={"data": "here"})
    before = checkpoint.read_bytes()
    for changed, text in (
        ({"settings": {"data": "there"}}, "data is 'here' there and 'there' here"),
        ({"seed": 1}, f"seed is {SEED} there and 1 here"),
        ({"recipe": Recipe(3, 0.05, 8)}, "epochs is 2 there and 3 here"),
    ):
        with pytest.raises(CheckpointError, match=rf"tiny\.pt is of another run: {text}\. Repeat that run's options, "):
            run_fit(tiny(), **{"checkpoint": checkpoint, "settings": {"data": "here"}, "resume": True} | changed)
    with pytest.raises(CheckpointError, match=r"tiny\.pt must be of the same network: .*begin anew") as info:
        run_fit(NETWORKS["resnet8"](3, 4), checkpoint=checkpoint, settings={"data": "here"}, resume=True)
    assert "\n" not in str(info.value)
    assert checkpoint.read_bytes() == before
    assert run_fit(tiny(), checkpoint=checkpoint, settings={"data": "here"}, resume=True) > 0


class Trap:
    """Unpickling this would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "caught")


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "code", "list", "other"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    checkpoint = tmp_path / "tiny.pt"
    run_fit(tiny(), checkpoint=checkpoint)
    whole = checkpoint.read_bytes()
    if damage == "list":
        torch.save([1, 2, 3], checkpoint)
    elif damage == "other":
        torch.save({"epochs": 1}, checkpoint)
    else:
        code = pickle.dumps(Trap(tmp_path / "trap"), protocol=2)
        checkpoint.write_bytes({"cut": whole[:-300], "text": b"hello", "empty": b"", "code": code}[damage])
    damaged = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match=r"tiny\.pt is no checkpoint of this program") as info:
        run_fit(tiny(), checkpoint=checkpoint, resume=True)
    assert "\n" not in str(info.value) and checkpoint.read_bytes() == damaged
    assert not (tmp_path / "trap").exists()


class FullFile:
    """A file on a full disk: takes a little, then no more."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *info):
        self.file.close()

    def write(self, content):
        self.file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, where):
    checkpoint = tmp_path / "tiny.pt"
    run_fit(whole := tiny(), checkpoint=tmp_path / "whole.pt")
    (tmp_path / "whole.pt").unlink()
    path_open = Path.open

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(progress):
        if progress >= 0.5:
            if where == "open":
                monkeypatch.setattr(Path, "open", full)
            elif where == "write":
                monkeypatch.setattr(Path, "open", lambda *a, **o: FullFile(path_open(*a, **o)))
            else:
                monkeypatch.setattr(os, where, full)

    text = r"tiny\.pt cannot be written: No space left on device; what it held before is intact\. Make room"
    with pytest.raises(CheckpointError, match=text):
        run_fit(tiny(), checkpoint=checkpoint, before_step=fill)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt"], "something unfinished is left"
    assert load_checkpoint(checkpoint, torch.device("cpu"))["epochs"] == 1
    run_fit(resumed := tiny(), checkpoint=checkpoint, resume=True)
    assert_same_states(whole.state_dict(), resumed.state_dict())


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/tiny\.pt cannot be written: (Not a directory|File exists)"):
        save_checkpoint({}, tmp_path / "file" / "tiny.pt")


def test_the_learning_rate_rises_and_falls_once():
    rates = [one_cycle(step / 100) for step in range(100)]
    peak = rates.index(max(rates))
    assert rates[0] == 0 and rates[peak] == 1.0 and rates[-1] < 0.001
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)


def test_pictures_are_moved_and_mirrored_whole():
    """Every result is one of the 18 that a shift by up to one pixel and a mirror allow, and nearly all come up."""
    image = torch.arange(1, 1 + 2 * 4 * 5, dtype=torch.uint8).view(2, 4, 5)
    padded = F.pad(image, [1] * 4)
    possible = {}
    for y in range(3):
        for x in range(3):
            moved = padded[:, y : y + 4, x : x + 5]
            possible[y, x, False], possible[y, x, True] = moved, moved.flip(2)
    results = augment(image.expand(300, -1, -1, -1), 1, True, torch.Generator().manual_seed(SEED))
    found = {name for name, wanted in possible.items() for result in results if torch.equal(result, wanted)}
    assert all(any(torch.equal(result, wanted) for wanted in possible.values()) for result in results)
    assert len(found) == 18
    assert torch.equal(augment(image[None], 0, False, torch.Generator()), image[None])


def test_estimated_norms_are_the_mean_over_the_batches():
    network = nn.Sequential(nn.BatchNorm2d(3))
    batches = torch.randn(5, 4, 3, 6, 6) + 7.0
    estimate_norms(network, batches)
    torch.testing.assert_close(network[0].running_mean, batches.mean((0, 1, 3, 4)))
    assert not network.training and network[0].momentum == 0.1


def test_the_teacher_is_learned_from_where_it_is_asked_for():
    """Labels that say nothing and a teacher who knows: with distillation alone, its answers are learned."""
    torch.manual_seed(SEED + 1)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    nn.init.normal_(teacher[1].weight)
    images = Images(dataset.Split(split_of(16).images, np.zeros(16, np.int64)))
    wanted = teacher(to_input(images.images)).argmax(1)
    agreed = {}
    for share in (0.0, 1.0):
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
        recipe = Recipe(60, 0.2, 16, 0.0, distillation=share, temperature=1.0, max_shift=0, mirror=False)
        fit(network, images, images, recipe, seed=SEED, stage="tiny", teacher=teacher)
        agreed[share] = (network(to_input(images.images)).argmax(1) == wanted).float().mean().item()
    assert agreed[1.0] == 1.0 and agreed[0.0] < 0.6, agreed


def test_images_that_are_sorted_by_class_are_refused(monkeypatch):
    monkeypatch.setattr(pipeline, "CALIBRATION_IMAGES", 8)
    train = split_of(32)
    ordered = replace(data_set(), train=replace(train, labels=np.sort(train.labels)))
    with pytest.raises(
        dataset.DatasetError, match=r"the first 8 training images, .* are all of one class; shuffle them"
    ):
        list(prune_and_retrain(tiny(), ordered, KEEPS, PLAN))
