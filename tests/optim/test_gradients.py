"""The parts of every step: clipping, schedules, finiteness; and the early end of a run."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

import streamtrain
from streamtrain import StreamLoader, Trainer
from streamtrain.errors import CheckpointError, DivergedError, UnknownName, UsageError
from streamtrain.optim.gradients import Clipping, TrainingBatch, check_finite, gradient_sizes, weights_kept
from streamtrain.optim.schedules import SCHEDULES, RunLength, Schedule
from streamtrain.training.progress import EarlyStopping

N, BATCH = 200, 16
OPTIONS = {
    "cyclic": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "exponential": {"gamma": 0.9},
    "multistep": {"milestones": [1, 2]},
    "restarts": {"T_0": 2},
    "step": {"step_size": 1},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 4)).astype(np.float32)
    y = (x[:, 0] + 0.1 * x[:, 1] > 0).astype(np.int64)
    return streamtrain.ingest(
        {"x": x, "y": y}, tmp_path_factory.mktemp("stepping") / "d.zarr", block="256B", codec="none"
    )


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def trainer_of(**options):
    return Trainer(model(), **({"loss": "cross_entropy", "optimizer": "sgd", "device": "cpu"} | options))


def loader_of(dataset, **options):
    return StreamLoader(dataset, batch_size=BATCH, memory="8MB", **options)


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def assert_same(trainer, other):
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer), weights(other), strict=True))


def test_a_batch_has_its_rows_its_fields_by_name_and_its_weights_as_numbers():
    x, y, w = torch.arange(6.0).view(3, 2), torch.arange(3), torch.tensor([1.0, 0.0, 2.5])
    batch = TrainingBatch(inputs=(x, 2 * x), target=y, weight=w, names=("x", "z", "y", "w"))
    some = batch.rows(slice(1, 3))
    assert (len(batch), len(some), some.factors) == (3, 2, [0, 2.5])
    found = {name: tensor.tolist() for name, tensor in some.fields.items()}
    assert found == {"x": [[2, 3], [4, 5]], "z": [[4, 6], [8, 10]], "y": [1, 2], "w": [0, 2.5]}
    same = TrainingBatch(inputs=(x,), target=x, names=("x", "x"))
    assert (same.rows(slice(1)).factors, list(same.fields)) == ([None], ["x"])


@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
def test_a_step_is_no_longer_than_the_clipped_gradient(dataset, update):
    trainer = trainer_of(update=update, lr=1.0, clip_grad_norm=1e-3)
    before = weights(trainer)
    with loader_of(dataset) as loader:
        trainer.fit(loader, max_steps=1)
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(before, weights(trainer), strict=True)))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_clipping_by_value_bounds_each_component(dataset):
    trainer = trainer_of(lr=1.0, clip_grad_value=1e-4)
    before = weights(trainer)
    with loader_of(dataset) as loader:
        trainer.fit(loader, max_steps=1)
    moved = max(float((a - b).abs().max()) for a, b in zip(before, weights(trainer), strict=True))
    assert 0 < moved <= 1.01e-4


def test_components_are_clipped_before_the_norm():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 40.0])
    Clipping(value=4.0, norm=1.0).clip([weight])
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize(
    ("name", "every"),
    [(name, every) for name in SCHEDULES for every in ("step", "epoch") if (name, every) != ("plateau", "step")],
)
def test_a_schedule_goes_on_bit_for_bit(dataset, tmp_path, name, every):
    schedule = Schedule(name=name, every=every, options=OPTIONS.get(name, {}))
    options = {"schedule": schedule, "momentum": 0.9}
    with loader_of(dataset) as loader:
        whole = trainer_of(**options)
        whole.fit(loader, max_epochs=3)
    with loader_of(dataset) as loader:
        first = trainer_of(**options)
        stop = SystemExit("in the second epoch")

        def leave(summary):
            raise stop

        with pytest.raises(SystemExit):
            first.fit(loader, max_epochs=3, checkpoint=tmp_path / "r", checkpoint_every=5, on_epoch=leave)
    with loader_of(dataset) as loader:
        second = trainer_of(**options)
        history = second.fit(loader, max_epochs=3, checkpoint=tmp_path / "r", resume="auto")
    assert history.resumed_from_batch == 10
    assert_same(whole, second)
    assert whole.optimizer.param_groups[0]["lr"] == second.optimizer.param_groups[0]["lr"]


def test_cosine_ends_with_the_run(dataset):
    trainer = trainer_of(schedule="cosine", lr=0.1)
    with loader_of(dataset) as loader:
        trainer.fit(loader, max_epochs=4)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_another_end_of_the_run_is_another_schedule(dataset, tmp_path):
    with loader_of(dataset) as loader:
        trainer_of(schedule="cosine").fit(loader, max_epochs=1, checkpoint=tmp_path / "r")
        with pytest.raises(CheckpointError, match=r"schedule\.T_max: 1 there, 2 here"):
            trainer_of(schedule="cosine").fit(loader, max_epochs=2, checkpoint=tmp_path / "r", resume="auto")
        trainer = trainer_of(schedule="cosine")
        trainer.fit(loader, max_epochs=1)
        with pytest.raises(UsageError, match="set up for T_max=1; this call has 2"):
            trainer.fit(loader, max_epochs=2)


def test_a_factory_makes_any_schedule(dataset):
    trainer = trainer_of(lr=1.0, schedule=lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.5**epoch))
    with loader_of(dataset) as loader:
        trainer.fit(loader, max_epochs=2)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.25


def test_a_plateau_is_one_of_the_loss(dataset):
    schedule = Schedule(name="ReduceLROnPlateau", options={"patience": 0, "threshold": 1e9, "threshold_mode": "abs"})
    trainer = trainer_of(lr=1.0, schedule=schedule)
    with loader_of(dataset) as loader:
        trainer.fit(loader, max_epochs=3)
    assert schedule.kind is ReduceLROnPlateau
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin'.*did you mean 'cosine'"),
        ({"schedule": "step"}, "step needs step_size"),
        ({"schedule": Schedule(name="onecycle", options={"total_steps": -1})}, "onecycle with total_steps=-1"),
        ({"beta1": "linear:0.5"}, "beta1 with SGD, which has none"),
        ({"optimizer": "adam", "beta1": "quadratic:0.5"}, "beta1 is 'quadratic:0.5'"),
        (
            {"optimizer": "adam", "beta1": "linear:0.5", "schedule": "onecycle"},
            "together with a schedule that changes it",
        ),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm is 0.0; it must be positive and finite"),
        ({"clip_grad_value": True}, "clip_grad_value is True"),
        ({"autocast": "float16"}, "autocast to float16"),
        ({"autocast": "bf17"}, "unknown autocast 'bf17'"),
        ({"optimizer": "lbfgs", "update": "epoch", "schedule": "cosine"}, "schedule with LBFGS"),
    ],
)
def test_what_cannot_be_is_refused(dataset, given, message):
    with loader_of(dataset) as loader, pytest.raises(UsageError, match=message):
        trainer_of(**given).fit(loader, max_epochs=1)


def test_a_schedule_refuses_what_torch_does_not_take():
    with pytest.raises(UsageError, match=r"step takes no 'stepsize'\. It takes step_size, gamma"):
        Schedule(name="step", options={"stepsize": 3})
    with pytest.raises(UnknownName, match="unknown schedule_every 'batch'"):
        Schedule(name="cosine", every="batch")
    with pytest.raises(UsageError, match="plateau every step"):
        Schedule(name="plateau", every="step")


def test_every_schedule_is_torchs_own():
    for name, kind in SCHEDULES.items():
        options = OPTIONS.get(name, {})
        weight = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        made = Schedule(name=kind.__name__, options=options).make(optimizer, RunLength(n_epochs=5, n_steps=40))
        assert type(made) is kind


def test_beta1_is_set_before_every_step(dataset):
    seen = []

    def beta1(step):
        seen.append(step)
        return 0.9 / step

    trainer = trainer_of(optimizer="adam", beta1=beta1)
    with loader_of(dataset) as loader:
        trainer.fit(loader, max_steps=5)
        assert seen == [1, 2, 3, 4, 5]
        assert trainer.optimizer.param_groups[0]["betas"] == (0.9 / 5, 0.999)
        with pytest.raises(UsageError, match=r"beta1 is 1\.5 at step 1"):
            trainer_of(optimizer="adam", beta1=lambda step: 1.5).fit(loader, max_steps=1)


def test_autocast_trains_in_bfloat16_and_keeps_the_weights(dataset, tmp_path):
    trainer = trainer_of(autocast="bf16", lr=0.5)
    with loader_of(dataset) as loader:
        history = trainer.fit(loader, max_epochs=3)
        assert trainer.evaluate(loader).loss < history.epochs[0].train.loss
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    plain = trainer_of(lr=0.5)
    with loader_of(dataset) as loader:
        plain.fit(loader, max_epochs=3)
    assert any(not torch.equal(a, b) for a, b in zip(weights(trainer), weights(plain), strict=True))


def test_a_run_ends_at_a_loss(dataset):
    with loader_of(dataset) as loader:
        history = trainer_of(lr=0.5).fit(loader, max_epochs=50, until_loss=0.4)
        assert history.reached is True
        assert history.stopped_by == "until_loss"
        losses = [epoch.train.loss for epoch in history]
        assert losses[-1] <= 0.4 < min(losses[:-1])
        never = trainer_of(lr=0.5).fit(loader, max_epochs=2, until_loss=-1.0)
        assert (never.reached, never.stopped_by, len(never)) == (False, "epochs", 2)


def test_patience_survives_a_resume(dataset, tmp_path):
    def fit(loader, **totals):
        trainer = trainer_of(lr=1e-30)
        return trainer.fit(loader, patience=3, monitor="loss", checkpoint=tmp_path / "r", resume="auto", **totals)

    with loader_of(dataset, reshuffle="never") as loader, loader_of(dataset, shuffle=False) as val:
        first = fit(loader, val=val, max_epochs=2)
        assert first.stopped_by == "epochs"
        second = fit(loader, val=val, max_epochs=20)
        assert (second.stopped_by, second.counts.n_epochs) == ("patience", 4)
        third = fit(loader, val=val, max_epochs=20)
        assert (third.stopped_by, len(third)) == ("patience", 0)


@pytest.mark.parametrize("given", [{"until_loss": math.nan}, {"until_loss": True}, {"patience": 0}, {"patience": 1.5}])
def test_limits_are_numbers(given):
    (name,) = given
    with pytest.raises(UsageError, match=f"{name} is"):
        EarlyStopping(**given)


def squared(batch):
    """Past the range of float32 where a value is 1e30."""
    return batch._replace(x=batch.x**2)


@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
def test_divergence_names_the_sample(tmp_path, update):
    x = np.zeros((N, 4), np.float32)
    x[137, 2] = 1e30
    bad = streamtrain.ingest({"x": x, "y": np.arange(N) % 2}, tmp_path / "d.zarr", block="256B", codec="none")
    trainer = trainer_of(update=update)
    with loader_of(bad, transform=squared) as loader, pytest.raises(DivergedError) as caught:
        trainer.fit(loader, max_epochs=2, checkpoint=tmp_path / "r", checkpoint_every=1)
    assert caught.value.samples == (137,)
    assert "These samples hold values that are not finite: 137" in str(caught.value)
    assert str(caught.value).startswith("epoch 1, step ")
    assert all(bool(torch.isfinite(weight).all()) for weight in weights(trainer))
    checkpoints = sorted((tmp_path / "r" / "checkpoints").glob("*/manifest.json"))
    if checkpoints:
        assert str(checkpoints[-1].parent) in str(caught.value)


class RootOfZero(nn.Module):
    """Finite forward, and without end backward, where the input is zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.linear(x).abs().sqrt()


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    x = np.ones((N, 4), np.float32)
    x[55] = 0.0
    bad = streamtrain.ingest({"x": x, "y": np.arange(N) % 2}, tmp_path / "d.zarr", block="256B", codec="none")
    trainer = Trainer(RootOfZero(), loss="cross_entropy", optimizer="sgd", lr=0.01, device="cpu")
    with (
        loader_of(bad) as loader,
        pytest.raises(DivergedError, match="the gradient is not finite, at a loss of") as caught,
    ):
        trainer.fit(loader, max_epochs=1)
    assert caught.value.samples == (55,)
    assert "These samples have a gradient that is not finite: 55" in str(caught.value)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights(trainer))


def test_a_norm_that_overflows_is_no_divergence():
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 1e30)
    sizes = [size.item() for size in gradient_sizes([weight])]
    assert not math.isfinite(sum(sizes))
    check_finite(1.0, sizes, [weight])


def test_weights_are_put_back_after_an_error_too():
    layer = nn.BatchNorm1d(2)
    tensors = [*layer.parameters(), *layer.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]

    def train_and_fail():
        with weights_kept(tensors) as kept:
            layer(torch.arange(8.0).reshape(4, 2))
            nn.init.zeros_(layer.weight)
            assert not torch.equal(layer.running_mean, before[2])
            assert all(map(torch.equal, kept, before))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train_and_fail()
    assert all(map(torch.equal, tensors, before))
