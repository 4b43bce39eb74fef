"""The trainer over streams: totals, seeds, order, checks before the first step, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_memory import Arrays, Batches
from torch import Tensor, nn

from streamtrain.errors import DeviceError, DivergedError, StreamtrainWarning, UnknownName, UsageError
from streamtrain.models.factory import build_model
from streamtrain.training.records.history import EpochSummary
from streamtrain.training.run.checkpoint import newest_checkpoint
from streamtrain.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

N, N_FEATURES, N_CLASSES = 50, 6, 3


def make_data(n: int = N, *, dtype: str = "float32", y: str = "int64") -> Arrays:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, N_FEATURES)) * 3 + 1
    labels = x[:, :N_CLASSES].argmax(1).astype(np.int64)
    return Arrays(x=x.astype(dtype), y=labels if y == "int64" else x.sum(1).astype(y))


def make_model(n_outputs: int = N_CLASSES, seed: int = 0) -> nn.Module:
    return build_model("mlp:16", input_shape=(N_FEATURES,), n_outputs=n_outputs, seed=seed)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_lowers_the_loss_and_says_how() -> None:
    seen: list[EpochSummary] = []
    trainer = Trainer(make_model(), loss="cross_entropy", lr=0.02)
    history = trainer.fit(Batches(make_data()), max_epochs=15, val=Batches(make_data(20)), on_epoch=seen.append)
    assert list(history) == seen
    assert len(history) == 15
    assert (history.counts.n_steps, history.counts.n_samples, history.counts.n_batches) == (15 * 7, 15 * N, 15 * 7)
    assert seen[-1].train.loss < 0.5 * seen[0].train.loss
    assert seen[-1].val is not None
    assert seen[-1].val.score_name == "accuracy"
    assert seen[-1].val.n_samples == 20


@pytest.mark.parametrize(("update", "steps", "samples"), [("batch", 5, 40), ("sample", 5, 5), ("epoch", 5, 5 * N)])
def test_totals_of_steps_hold_under_every_rule(update: str, steps: int, samples: int) -> None:
    trainer = Trainer(make_model(), loss="cross_entropy", optimizer="sgd", lr=0.01, update=update)
    counts = trainer.fit(Batches(make_data()), max_steps=steps).counts
    assert (counts.n_steps, counts.n_samples) == (steps, samples)


@pytest.mark.parametrize(
    ("update", "options"),
    [
        ("batch", {}),
        ("batch", {"accumulate_grad_batches": 3}),
        ("sample", {}),
        ("sample", {"sample_path": "plain"}),
        ("epoch", {}),
        ("epoch", {"optimizer": "lbfgs"}),
    ],
)
def test_every_step_is_told_and_the_rehearsal_s_are_not(update: str, options: dict[str, Any]) -> None:
    data, told = make_data(), []
    trainer = Trainer(make_model(), loss="cross_entropy", update=update, on_step=lambda: told.append(1), **options)
    with trainer.working_memory({name: a[:8] for name, a in data.arrays.items()}):
        assert not told
    trainer.fit(Batches(data), max_epochs=4)
    assert len(told) == trainer.counts.n_steps > 0


def test_totals_are_totals_over_calls() -> None:
    once, twice = (Trainer(make_model(), loss="cross_entropy") for _ in range(2))
    stream = Batches(make_data())
    once.fit(Batches(make_data()), max_epochs=4)
    twice.fit(stream, max_epochs=1)
    assert len(twice.fit(stream, max_epochs=4)) == 3
    with pytest.warns(StreamtrainWarning, match="max_epochs=4 is a total"):
        assert len(twice.fit(stream, max_epochs=4)) == 0
    assert stream.epochs == [0, 1, 2, 3]
    assert torch.equal(weights(once.model), weights(twice.model))


def test_the_seed_decides_everything_and_the_global_state_nothing() -> None:
    def run(global_seed: int, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            model = nn.Sequential(make_model(), nn.Dropout(0.5))
            before = torch.get_rng_state()
            Trainer(model, loss="cross_entropy").fit(Batches(make_data(), seed=seed), max_epochs=2)
            assert torch.equal(torch.get_rng_state(), before)
        return weights(model)

    assert torch.equal(run(1, seed=5), run(2, seed=5))
    assert not torch.equal(run(1, seed=5), run(1, seed=6))


def test_epoch_rule_reads_in_stored_order_and_closes_what_it_opened() -> None:
    stream = Batches(make_data())
    trainer = Trainer(make_model(), loss="cross_entropy", update="epoch", optimizer="sgd")
    trainer.fit(stream, max_epochs=2)
    assert (stream.epochs, stream.n_closed) == ([], 0)
    assert (stream.ordered.epochs, stream.ordered.n_closed) == ([0, 1], 1)
    assert trainer.counts.n_steps == 2


def test_epoch_rule_refuses_drop_last() -> None:
    with pytest.raises(UsageError, match="update='epoch' with drop_last") as caught:
        Trainer(make_model(), loss="cross_entropy", update="epoch").fit(
            Batches(make_data(), drop_last=True), max_epochs=1
        )
    assert caught.value.exit_code == 2


def test_evaluation_changes_nothing_and_does_not_depend_on_the_batch() -> None:
    model = nn.Sequential(make_model(16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, N_CLASSES))
    trainer = Trainer(model, loss="cross_entropy")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, large = (trainer.evaluate(Batches(make_data(), batch_size=size)) for size in (3, N))
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    assert small.score == large.score
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_normalize_takes_the_training_data_and_nothing_is_cast_without() -> None:
    data = make_data(dtype="float64")
    trainer = Trainer(make_model(), loss="cross_entropy", normalize="auto", lr=0.02)
    with pytest.raises(UsageError, match="statistics of the training data"):
        trainer.evaluate(Batches(data))
    trainer.fit(Batches(data), max_epochs=10)
    assert trainer.evaluate(Batches(data)).score > 0.7  # type: ignore[operator]
    with pytest.raises(UsageError, match="normalize='auto', or a model, or a transform"):
        Trainer(make_model(), loss="cross_entropy").fit(Batches(data), max_epochs=1)


def test_regression_on_float64_targets() -> None:
    trainer = Trainer(make_model(1), loss="mse", normalize="auto", lr=0.05)
    history = trainer.fit(Batches(make_data(dtype="float64", y="float64")), max_epochs=30)
    assert history.last is not None
    assert history.last.train.score_name == "rmse"
    assert history.last.train.loss < 0.2 * history.epochs[0].train.loss


def test_what_does_not_fit_is_said_before_the_first_step(tmp_path: Path) -> None:
    trainer = Trainer(nn.Linear(N_FEATURES, 2), loss="cross_entropy")
    before = weights(trainer.model)
    with pytest.raises(UsageError, match="2 outputs for 3 classes"):
        trainer.fit(Batches(make_data()), max_epochs=1, checkpoint=tmp_path / "run")
    assert torch.equal(weights(trainer.model), before)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "asgd"])
@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
def test_training_after_a_rehearsal_is_the_same(optimizer: str, update: str) -> None:
    plain, rehearsed = (Trainer(make_model(), loss="cross_entropy", optimizer=optimizer, update=update) for _ in "ab")
    with rehearsed.working_memory(make_data().arrays):
        pass
    for trainer in (plain, rehearsed):
        trainer.fit(Batches(make_data()), max_epochs=2)
    assert torch.equal(weights(plain.model), weights(rehearsed.model))


def test_divergence_names_epoch_and_step_and_keeps_what_was_written(tmp_path: Path) -> None:
    data = make_data()
    trainer = Trainer(make_model(), loss="cross_entropy", optimizer="sgd")
    trainer.fit(Batches(data), max_epochs=1, checkpoint=tmp_path / "good")
    data.arrays["x"][:] = np.inf
    with pytest.raises(DivergedError, match="epoch 2, step 8: the loss is nan") as caught:
        trainer.fit(Batches(data), max_epochs=2, checkpoint=tmp_path / "bad")
    assert caught.value.exit_code == 8
    assert torch.isfinite(weights(trainer.model)).all()
    assert newest_checkpoint(tmp_path / "good").path.name == "00000007"


def test_a_run_has_a_line_every_few_batches_and_every_epoch(tmp_path: Path) -> None:
    trainer = Trainer(make_model(), loss="cross_entropy", optimizer="sgd", momentum=0.9)
    trainer.fit(Batches(make_data(), seed=3), max_epochs=2, checkpoint=tmp_path / "run", log_every=5)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["epoch"], line.get("batches")) for line in lines] == [
        ("batch", 1, 5),
        ("epoch", 1, None),
        ("batch", 2, 10),
        ("epoch", 2, None),
    ]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["optimizer"]["momentum"] == 0.9
    assert (config["update"], config["loss"], config["seed"]) == ("batch", "cross_entropy", 3)


def test_a_last_batch_of_one_that_the_run_does_not_reach_is_warned_of() -> None:
    model = nn.Sequential(make_model(8), nn.BatchNorm1d(8), nn.Linear(8, N_CLASSES))
    trainer = Trainer(model, loss="cross_entropy")
    with pytest.warns(UserWarning, match=r"cannot train on a batch of 1 sample.*last of a pass: 49 samples"):
        trainer.fit(Batches(make_data(49), batch_size=8), max_steps=3)


def test_progress_is_shown_on_stderr_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(make_model(), loss="cross_entropy")
    trainer.fit(Batches(make_data()), max_epochs=1)
    assert capsys.readouterr() == ("", "")
    trainer.fit(Batches(make_data()), max_epochs=2, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 2" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mze"}, "did you mean 'mse'"),
        ({"update": "bach"}, "did you mean 'batch'"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"normalize": "yes"}, "normalize is 'yes'"),
        ({"normalize": {"z": nn.Identity()}}, "unknown input 'z'"),
        ({"device": "gpu"}, "torch knows no device 'gpu'"),
        ({"lr": -1}, "lr is -1"),
    ],
)
def test_arguments_that_are_wrong(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Trainer(make_model(), **({"loss": "mse"} | arguments))
    assert caught.value.exit_code == 2


def test_fields_and_totals_that_are_not_there() -> None:
    stream = Batches(make_data())
    with pytest.raises(UnknownName, match="unknown field 'image'"):
        Trainer(make_model(), loss="cross_entropy", inputs=("image",)).fit(stream, max_epochs=1)
    with pytest.raises(UsageError, match="neither max_epochs nor max_steps"):
        Trainer(make_model(), loss="cross_entropy").fit(stream)
    with pytest.raises(UsageError, match="not a torch"):
        Trainer(4, loss="mse")  # type: ignore[arg-type]


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="Found: cpu") as caught:
        Trainer(make_model(), loss="mse", device="cuda")
    assert caught.value.exit_code == 5
