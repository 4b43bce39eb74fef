"""Targets in units of their spread, weights of classes, and metrics of one's own: in every update rule, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import CheckpointError, StreamtrainWarning, UsageError
from streamtrain.training.labels.class_weights import balanced

N = 120
RULES: tuple[dict[str, Any], ...] = (
    {"update": "batch", "optimizer": "sgd", "lr": 0.1},
    {"update": "batch", "optimizer": "sgd", "lr": 0.1, "accumulate_grad_batches": 2},
    {"update": "sample", "optimizer": "sgd", "lr": 0.01},
    {"update": "sample", "optimizer": "sgd", "lr": 0.01, "sample_path": "plain"},
    {"update": "epoch", "optimizer": "sgd", "lr": 0.1},
    {"update": "epoch", "optimizer": "lbfgs"},
    {"update": "epoch", "optimizer": "cg"},
)
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))


def rows(kind: str = "values") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(N, 3)).astype("float32"), rng.integers(0, 4, N).astype("float32")
    value = x @ [40.0, -7, 3] + rng.normal(size=N) + 1e5
    if kind == "classes":
        return {"x": x, "w": w, "y": np.digitize(value, [1e5 - 60, 1e5 + 30])}
    return {"x": x, "w": w, "y": np.stack([value, value / 1e6], 1) if kind == "targets" else value}


def data(folder: Path, kind: str = "values", **changed: Any) -> st.Dataset:
    return st.ingest(rows(kind) | changed, folder / f"{kind}.zarr", progress=False)


def linear(n_outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, n_outputs)


def fit(dataset: st.Dataset, model: nn.Module, run: Path | None = None, **how: Any) -> tuple[st.Trainer, st.History]:
    fitting = {"max_epochs": 3, "batch_size": 16, "memory": "16MB", "progress": False, "checkpoint": run}
    fitting |= {name: how.pop(name) for name in ("max_steps", "resume", "val", "max_epochs") if name in how}
    trainer = st.Trainer(model, device="cpu", **how)
    return trainer, trainer.fit(dataset, **fitting)


@every_rule
@pytest.mark.parametrize(("loss", "weight"), [("mse", None), ("huber", "w")])
def test_standardised_targets_are_those_divided_by_hand(
    tmp_path: Path, loss: str, weight: str | None, rule: dict[str, Any]
) -> None:
    ours, y = data(tmp_path), rows()["y"]
    mean, std = ours.stats("y").mean, ours.stats("y").std
    by_hand = data(tmp_path / "by-hand", y=((y - mean) / std).astype("float32"))
    how = {"loss": loss, "weight": weight, **rule}
    trainer, history = fit(ours, linear(), normalize_target="auto", val=ours, **how)
    other, expected = fit(by_hand, linear(), val=by_hand, **how)
    for one, two in zip(history, expected, strict=True):
        assert one.train.loss == pytest.approx(two.train.loss, rel=1e-9)
        for a, b in ((one.train, two.train), (one.val, two.val)):
            assert a is not None
            assert b is not None
            assert a.scores["rmse"] == pytest.approx(b.scores["rmse"] * float(std), rel=1e-5)
    assert torch.equal(trainer.model.weight, other.model.weight)
    found = trainer.evaluate(ours)
    with torch.no_grad():
        predicted = trainer.model(torch.from_numpy(rows()["x"]))[:, 0].double().numpy() * std + mean
    w = rows()["w"] if weight else np.ones(N)
    assert found.scores["rmse"] == pytest.approx(np.sqrt(np.average((predicted - y) ** 2, weights=w)), rel=1e-12)
    assert found.scores["mae"] == pytest.approx(np.average(abs(predicted - y), weights=w), rel=1e-12)
    assert found.of_baseline["rmse"] == pytest.approx(np.sqrt(np.average((mean - y) ** 2, weights=w)), rel=1e-9)


def test_several_targets_have_a_scale_each(tmp_path: Path) -> None:
    ours = data(tmp_path, "targets")
    trainer, history = fit(
        ours, linear(2), loss="mse", normalize_target="auto", optimizer="lbfgs", update="epoch", max_epochs=20
    )
    table = trainer.evaluate(ours).table
    assert table is not None
    assert min(table.columns["r2"]) > 0.9
    assert table.columns["rmse"][0] == pytest.approx(table.columns["rmse"][1] * 1e6, rel=1e-3)
    assert history.last is not None
    assert history.last.train.loss < 0.1


def test_a_constant_target_is_not_divided(tmp_path: Path) -> None:
    ours = data(tmp_path, y=np.full(N, 0.1))
    trainer, _ = fit(ours, linear(), loss="mse", normalize_target="auto")
    assert trainer.evaluate(ours).of_baseline["rmse"] == pytest.approx(0, abs=1e-15)


@every_rule
def test_a_standardised_run_resumes_bit_for_bit(tmp_path: Path, rule: dict[str, Any]) -> None:
    ours, how = data(tmp_path), {"loss": "mse", "normalize_target": "auto", **rule}
    whole, history = fit(ours, linear(), tmp_path / "whole", **how)
    n_steps = history.counts.n_steps // 2
    if rule["update"] != "epoch" and n_steps > 2:
        fit(ours, linear(), tmp_path / "cut", max_steps=n_steps, **how)
    resumed, again = fit(ours, linear(), tmp_path / "cut", resume="auto", **how)
    assert torch.equal(whole.model.weight, resumed.model.weight)
    assert history.last is not None
    assert again.last is not None
    assert again.last.train == history.last.train


def test_the_units_are_part_of_a_run(tmp_path: Path) -> None:
    ours = data(tmp_path)
    for first, second in (("auto", None), (None, "auto")):
        run = tmp_path / str(first)
        fit(ours, linear(), run, loss="mse", normalize_target=first, max_epochs=1)
        with pytest.raises(CheckpointError, match="normalize_target"):
            fit(ours, linear(), run, loss="mse", normalize_target=second, resume="auto")


@pytest.mark.parametrize(
    "loss", ["poisson", "cross_entropy", lambda output, target: (output[:, 0] - target).square().mean()]
)
def test_other_losses_get_their_targets_as_they_are(tmp_path: Path, loss: Any) -> None:
    kind = "classes" if loss == "cross_entropy" else "values"
    ours = data(tmp_path, kind, **({} if kind == "classes" else {"y": np.arange(N) % 5 * 1.0}))
    plain, history = fit(ours, linear(3 if kind == "classes" else 1), loss=loss, lr=0.01)
    auto, expected = fit(ours, linear(3 if kind == "classes" else 1), loss=loss, lr=0.01, normalize_target="auto")
    assert torch.equal(plain.model.weight, auto.model.weight)
    assert history.last is not None
    assert expected.last is not None
    assert history.last.train == expected.last.train


def test_a_poisson_regression_is_scored_in_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ours = data(tmp_path, y=rng.poisson(np.exp(rows()["x"][:, 0] / 2 + 1)).astype("float32"))
    trainer, _ = fit(ours, linear(), loss="poisson", optimizer="lbfgs", update="epoch", max_epochs=15)
    found = trainer.evaluate(ours)
    with torch.no_grad():
        errors = trainer.model(torch.from_numpy(ours[:]["x"]))[:, 0].double().exp().numpy() - ours[:]["y"]
    assert found.scores["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-12)
    assert found.scores["rmse"] < found.of_baseline["rmse"]


def test_balanced_is_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    y = np.repeat([0, 1, 2], [5, 1, 94])
    assert balanced([5, 1, 94]) == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=y))


@every_rule
@pytest.mark.parametrize("weight", [None, "w"])
def test_class_weights_are_weights_of_samples_in_the_loss_alone(
    tmp_path: Path, weight: str | None, rule: dict[str, Any]
) -> None:
    ours, by_class = data(tmp_path, "classes"), np.array([2.0, 0.5, 1.0])
    y, w = rows("classes")["y"], rows("classes")["w"] if weight else np.ones(N)
    by_hand = data(tmp_path / "by-hand", "classes", w=by_class[y] * w)
    trainer, history = fit(ours, linear(3), loss="cross_entropy", class_weight={0: 2.0, 1: 0.5}, weight=weight, **rule)
    other, expected = fit(by_hand, linear(3), loss="cross_entropy", weight="w", **rule)
    assert torch.allclose(trainer.model.weight, other.model.weight, rtol=1e-6, atol=1e-8)
    assert history.last is not None
    assert expected.last is not None
    assert history.last.train.loss == pytest.approx(expected.last.train.loss, rel=1e-6)
    found, weighed = trainer.evaluate(ours), other.evaluate(by_hand)
    assert found.loss == pytest.approx(weighed.loss, rel=1e-6)
    with torch.no_grad():
        met = trainer.model(torch.from_numpy(rows()["x"])).argmax(1).numpy() == y
    assert found.score == pytest.approx(np.average(met, weights=w), rel=1e-12)


def test_class_weights_are_torch_s_own(tmp_path: Path) -> None:
    ours = data(tmp_path, "classes")
    counts = np.bincount(rows("classes")["y"])
    weights = torch.from_numpy(N / (3 * counts)).float()
    trainer, history = fit(ours, linear(3), loss="cross_entropy", class_weight="balanced", optimizer="sgd")
    other, expected = fit(ours, linear(3), loss=nn.CrossEntropyLoss(weight=weights), optimizer="sgd")
    assert torch.allclose(trainer.model.weight, other.model.weight, rtol=1e-5)
    assert history.last is not None
    assert expected.last is not None
    assert history.last.train.loss == pytest.approx(expected.last.train.loss, rel=1e-5)
    assert history.last.train.score == expected.last.train.score


@pytest.mark.parametrize(
    ("loss", "class_weight", "what"),
    [
        ("cross_entropy", {7: 2.0}, "unknown class '7'"),
        ("cross_entropy", {0: -1.0}, "weight of class 0 is -1.0"),
        ("cross_entropy", {0: float("nan")}, "weight of class 0 is nan"),
        ("cross_entropy", "even", "class_weight is 'even'"),
        ("cross_entropy", {0: 0.0, 1: 0, 2: 0}, "all classes weigh 0"),
        ("mse", "balanced", "class_weight with the loss mse"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "balanced", "has weights"),
    ],
)
def test_class_weights_that_have_no_place_are_refused(tmp_path: Path, loss: Any, class_weight: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        fit(data(tmp_path, "classes"), linear(3), loss=loss, class_weight=class_weight)
    assert caught.value.exit_code == 2


class Largest:
    """The largest error, and how often it was asked for."""

    def __init__(self) -> None:
        self.reset()

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        self.errors.append((prediction.reshape(-1) - target.reshape(-1)).abs().max())

    def compute(self) -> torch.Tensor:
        return torch.stack(self.errors).max()

    def reset(self) -> None:
        self.errors: list[torch.Tensor] = []


@every_rule
def test_a_metric_of_ones_own_is_in_the_units_of_the_data(tmp_path: Path, rule: dict[str, Any]) -> None:
    ours = data(tmp_path)
    how = {"loss": "mse", "normalize_target": "auto", "metrics": {"largest": Largest()}, **rule}
    trainer, history = fit(ours, linear(), tmp_path / "run", val=ours, **how)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = history.last
    assert last is not None
    assert last.val is not None
    assert last.measured()["val_largest"] == pytest.approx(last.val.scores["max_error"], rel=1e-12)
    assert lines[-1]["val_largest"] == last.val.scores["largest"]
    assert lines[-1]["largest"] == last.train.scores["largest"]
    assert list(trainer.evaluate(ours).scores)[:2] == ["rmse", "largest"]


def test_a_metric_of_ones_own_is_left_out_of_an_epoch_that_was_cut(tmp_path: Path) -> None:
    ours, how = data(tmp_path), {"loss": "mse", "metrics": {"largest": Largest()}}
    fit(ours, linear(), tmp_path / "run", max_steps=3, **how)
    with pytest.warns(StreamtrainWarning, match="largest of this epoch: left out"):
        _, history = fit(ours, linear(), tmp_path / "run", resume="auto", **how)
    assert ["largest" in epoch.train.scores for epoch in history] == [False, True, True]


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        ({"ap": lambda output, target: 0.5}, "A mean of batch means is not a metric"),
        ({"ap": 3}, "which has no update"),
        ({"ap": Largest}, "which has no instance"),
        ({"loss": Largest()}, "'loss' is taken"),
        ({"val_ap": Largest()}, "is taken"),
        ({"a b": Largest()}, "a metric's name"),
        ([Largest()], "metrics is"),
    ],
)
def test_what_is_no_metric_is_refused(metrics: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        st.Trainer(linear(), loss="mse", device="cpu", metrics=metrics)
