"""Metrics of every task beside scikit-learn's: weighted or not, in batches of any size, in shares that are merged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from streamtrain.models.losses import resolve_loss
from streamtrain.training.metrics import auc
from streamtrain.training.metrics.results import Metrics
from streamtrain.training.metrics.running import RunningMetrics

N = 300
CLOSE: dict[str, float] = {"rel": 1e-12, "abs": 1e-12}


def data(task: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy(rng.integers(0, 5, N) * rng.uniform(0.1, 3, N))
    match task:
        case "two classes" | "ten classes" | "many classes":
            k = {"two classes": 2, "ten classes": 10, "many classes": 1203}[task]
            # Classes that are rare, predicted and never true, and neither.
            target = rng.integers(0, max(2, k * 2 // 3), N)
            output = rng.normal(size=(N, k)).astype(np.float32)
            output[np.arange(N), target] += 1
        case "one output":
            target = rng.integers(0, 2, N).astype(np.float32)
            # So close together that some are in one bin of a ranking.
            near = rng.normal(0, 0.1, (N, 1)) + target[:, None] / 10
            output = (near + np.where(near > 0.05, 1, -1)).astype(np.float32)
        case "labels":
            target = (rng.random((N, 4)) < [0.5, 0.1, 0.0, 0.9]).astype(np.float32)
            output = (rng.normal(size=(N, 4)) + target).astype(np.float32)
        case "one target":
            target = rng.normal(1e4, 3, N)
            output = (target + rng.normal(size=N)).astype(np.float32)[:, None]
        case "counts":
            target = rng.poisson(3, N)
            output = rng.normal(1, 0.3, (N, 1)).astype(np.float32)
        case _:
            target = rng.normal([0, 1e3, -5], [1, 10, 1e-3], (N, 3))
            output = (target * 1.01).astype(np.float32)
    return torch.from_numpy(output), torch.from_numpy(target), weights


LOSSES = {
    **{"two classes": "cross_entropy", "ten classes": "cross_entropy", "many classes": "nll"},
    **{"one output": "bce_with_logits", "labels": "bce_with_logits"},
    **{"one target": "mse", "three targets": "huber", "counts": "poisson"},
}


def measured(
    task: str, sizes: list[int], *, weighted: bool, n_shares: int = 1, full: bool = True, seed: int = 0
) -> Metrics:
    """Metrics over batches of these sizes, dealt to shares that are merged."""
    output, target, weights = data(task, seed)
    shares = [RunningMetrics(resolve_loss(LOSSES[task]), full=full) for _ in range(n_shares)]
    edges = np.minimum(np.cumsum([0, *sizes]), N)
    for i, (a, b) in enumerate(pairwise(edges.tolist())):
        shares[i % n_shares].add(0.5, output[a:b], target[a:b], sample_weights=weights[a:b] if weighted else None)
    whole, *others = shares
    for other in others:
        whole.merge(other)
    return whole.mean()


def of_classes(output: Any, target: Any, w: Any) -> dict[str, float]:
    predicted = (output[:, 0] > 0) if output.shape[1] == 1 else output.argmax(1)
    found = {
        "accuracy": sk.accuracy_score(target, predicted, sample_weight=w),
        "f1": sk.f1_score(target, predicted, average="macro", sample_weight=w, zero_division=0),
        "balanced_accuracy": sk.balanced_accuracy_score(target, predicted, sample_weight=w),
    }
    k = max(2, output.shape[1])
    if k > 20:
        found["top5_accuracy"] = sk.top_k_accuracy_score(target, output, k=5, sample_weight=w, labels=np.arange(k))
    if k == 2:
        scores = output[:, 0] if output.shape[1] == 1 else output[:, 1].astype(np.float64) - output[:, 0]
        found["precision"] = sk.precision_score(target, predicted, sample_weight=w)
        found["recall"] = sk.recall_score(target, predicted, sample_weight=w)
        found["auc"] = sk.roc_auc_score(target, scores, sample_weight=w)
    return found


def of_labels(output: Any, target: Any, w: Any) -> dict[str, float]:
    predicted = output > 0
    return {
        "f1": sk.f1_score(target, predicted, average="macro", sample_weight=w, zero_division=0),
        "exact_match": sk.accuracy_score(target, predicted, sample_weight=w),
        "accuracy": 1 - sk.hamming_loss(target, predicted, sample_weight=w),
    }


def of_values(output: Any, target: Any, w: Any) -> dict[str, float]:
    output = output.astype(np.float64).reshape(len(target), -1)
    target = target.reshape(len(target), -1).astype(np.float64)
    largest = [sk.max_error(target[:, i], output[:, i]) for i in range(target.shape[1])]
    return {
        "rmse": sk.root_mean_squared_error(target, output, sample_weight=w),
        "mae": sk.mean_absolute_error(target, output, sample_weight=w),
        "r2": sk.r2_score(target, output, sample_weight=w),
        "max_error": float(np.mean(largest)),
    }


EXPECTED: dict[str, Callable[..., dict[str, float]]] = {
    "labels": of_labels,
    "one target": of_values,
    "three targets": of_values,
    "counts": lambda output, target, w: of_values(np.exp(output.astype(np.float64)), target, w),
}


def sizes_of(batch_size: int) -> list[int]:
    return [batch_size] * -(-N // batch_size)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("task", LOSSES)
def test_scores_are_scikit_learns(task: str, weighted: bool) -> None:
    output, target, weights = (part.numpy() for part in data(task))
    expected = EXPECTED.get(task, of_classes)(output, target, weights if weighted else None)
    for batch_size, n_shares in ((1, 1), (7, 3), (200, 1), (200, 2), (N, 1)):
        found = measured(task, sizes_of(batch_size), weighted=weighted, n_shares=n_shares)
        assert found.scores == pytest.approx(expected, **CLOSE), (batch_size, n_shares)
        assert found.n_samples == N
        brief = measured(task, sizes_of(batch_size), weighted=weighted, n_shares=n_shares, full=False)
        assert brief.named() == pytest.approx(found.named(), **CLOSE), "those of each epoch are the same"


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("task", ["two classes", "ten classes", "many classes", "one output", "labels"])
def test_tables_are_scikit_learns(task: str, weighted: bool) -> None:
    output, target, weights = (part.numpy() for part in data(task))
    w = weights if weighted else None
    predicted = output.argmax(1) if output.shape[1] > 4 or task == "two classes" else output > 0
    predicted = predicted[:, 0] if task == "one output" else predicted
    table = measured(task, sizes_of(7), weighted=weighted, n_shares=2).table
    assert table is not None
    of = {} if task == "labels" else {"labels": np.arange(len(table))}
    names = ("precision", "recall", "f1", "support")
    expected = sk.precision_recall_fscore_support(target, predicted, sample_weight=w, zero_division=0, **of)
    for name, values in zip(names, expected, strict=True):
        assert table.columns[name] == pytest.approx(values.tolist(), **CLOSE), name
    if task == "ten classes":
        matrix = sk.confusion_matrix(target, predicted, sample_weight=w, labels=np.arange(10))
        assert np.array(table.confusion) == pytest.approx(matrix, **CLOSE)
        if not weighted:
            assert np.array_equal(np.array(table.confusion), matrix), "counts are exact"
    assert (table.confusion is None) == (task in ("many classes", "labels"))


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_targets_have_a_row_each(weighted: bool) -> None:
    output, target, weights = (part.numpy() for part in data("three targets"))
    table = measured("three targets", sizes_of(7), weighted=weighted, n_shares=3).table
    assert table is not None
    for i, row in enumerate(table.rows()):
        expected = of_values(output[:, i], target[:, i], weights if weighted else None)
        assert {name: row[name] for name in expected} == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("n_kept", [0, 100, 10**6])
def test_an_area_from_bins_is_within_its_bound(n_kept: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auc, "MOST_KEPT", n_kept)
    output, target, weights = (part.numpy() for part in data("one output"))
    expected = sk.roc_auc_score(target, output[:, 0], sample_weight=weights if weighted else None)
    for n_shares in (1, 3):
        found = measured("one output", sizes_of(100), weighted=weighted, n_shares=n_shares)
        assert found.table is not None
        bound = found.table.bounds.get("auc", 0.0)
        assert (bound > 0) == (n_kept < N)
        assert abs(found.scores["auc"] - expected) <= bound + 1e-12
        assert bound < 1e-3


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("n_kept", [0, 10**6])
@pytest.mark.parametrize("task", ["two classes", "one output"])
def test_points_of_the_curve_lie_on_scikit_learns(
    task: str, n_kept: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auc, "MOST_KEPT", n_kept)
    output, target, weights = (part.numpy() for part in data(task))
    scores = output[:, -1].astype(np.float64) - (output[:, 0] if task == "two classes" else 0)
    some = {"sample_weight": weights} if weighted else {}
    expected = sk.roc_curve(target, scores, **some, drop_intermediate=False)
    for n_shares in (1, 3):
        found = measured(task, sizes_of(40), weighted=weighted, n_shares=n_shares).facts()["roc"]
        assert isinstance(found, dict)
        assert found["exact"] is (n_kept > 0)
        false, true = found["false_positive_rate"], found["true_positive_rate"]
        assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
        assert len(false) == len(true) <= 129
        corners = np.stack(expected[:2], 1)
        apart = np.abs(corners[:, None] - np.stack([false, true], 1)).max(2).min(0)
        assert apart.max() < 1e-6, "each point is one of the curve's, whatever is left out between two"


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_an_area_asked_for_on_the_way_is_that_of_the_scores_so_far(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    ranking, other = auc.Ranking(), auc.Ranking()
    # Of few different scores many are ties; the first samples are all of one class.
    scores = torch.from_numpy(rng.integers(-3, 4, N).astype(np.float64))
    is_positive = torch.from_numpy((np.arange(N) >= 50) & (rng.random(N) < 0.4))
    weights = torch.from_numpy(rng.uniform(0.1, 3, N))

    def add(to: auc.Ranking, some: slice) -> None:
        to.add(scores[some], is_positive[some], weights[some] if weighted else None)

    add(ranking, slice(50))
    assert np.isnan(ranking.area()[0])
    add(ranking, slice(50, 200))
    add(other, slice(200, N))
    for n, more in ((200, lambda: None), (N, lambda: ranking.merge(other))):
        more()
        w = weights[:n].numpy() if weighted else None
        expected = sk.roc_auc_score(is_positive[:n], scores[:n], sample_weight=w)
        assert ranking.area() == (pytest.approx(expected, **CLOSE), 0.0)


def test_bins_are_in_the_order_of_the_numbers() -> None:
    scores = torch.tensor([-torch.inf, -1e30, -2.0, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, 2.0, 1e30, torch.inf])
    places = auc._places(scores.double()).tolist()
    assert places == sorted(places)
    assert places[5] == places[6]
    assert 0 <= places[0] < places[-1] < 1 << 20


@pytest.mark.parametrize("task", LOSSES)
def test_an_epoch_resumes_from_its_sums_bit_for_bit(task: str) -> None:
    output, target, weights = data(task)
    for weighted in (False, True):

        def add(running: RunningMetrics, some: slice, w: torch.Tensor | None) -> None:
            running.add(0.5, output[some], target[some], sample_weights=None if w is None else w[some])

        w = weights if weighted else None
        whole, first, second = (RunningMetrics(resolve_loss(LOSSES[task])) for _ in range(3))
        for running, some in ((whole, slice(0, 170)), (first, slice(0, 170))):
            add(running, some, w)
        second.load_state_dict(first.state_dict())
        for running in (whole, second):
            add(running, slice(170, N), w)
        assert second.mean() == whole.mean()
