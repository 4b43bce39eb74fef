"""Means over samples, scores that fit the loss, and speeds."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from streamtrain.errors import UsageError
from streamtrain.models.losses import resolve_loss
from streamtrain.system.events import ThreadSeconds
from streamtrain.training.metrics.results import Metrics
from streamtrain.training.metrics.running import RunningMetrics
from streamtrain.training.progress import Counts, Totals
from streamtrain.training.records.history import EpochSummary, History, Speed, Stopwatch


def running(loss_name: str, sizes: list[int]) -> tuple[Metrics, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Metrics over batches of these sizes, and output, target and loss over all of it at once."""
    generator = torch.Generator().manual_seed(0)
    loss, n = resolve_loss(loss_name), sum(sizes)
    if loss.kind == "classes":
        output, target = torch.randn(n, 3, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    elif loss.kind == "logits":
        output = torch.randn(n, 1, generator=generator)
        target = torch.randint(0, 2, (n,), generator=generator).float()
    else:
        output, target = torch.randn(n, 1, generator=generator), torch.randn(n, generator=generator)
    sums = RunningMetrics(loss)
    for a, b in zip(torch.split(output, sizes), torch.split(target, sizes), strict=True):
        sums.add(loss(a, b).item(), a, b)
    return sums.mean(), output, target, loss(output, target)


def test_accuracy_and_loss_are_means_over_samples_not_batches() -> None:
    metrics, output, target, loss = running("cross_entropy", [8, 8, 1])
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-6)
    assert metrics.named() == {"loss": metrics.loss, "accuracy": (output.argmax(1) == target).double().mean().item()}
    assert metrics.n_samples == 17


def test_logits_are_right_on_their_side_of_zero() -> None:
    metrics, output, target, _ = running("bce_with_logits", [5, 4])
    assert metrics.score == ((output[:, 0] > 0) == (target > 0.5)).double().mean().item()


def test_regression_has_the_error_in_the_targets_unit() -> None:
    metrics, output, target, loss = running("mse", [6, 5])
    assert metrics.score_name == "rmse"
    assert metrics.score == pytest.approx(math.sqrt(loss.item()), rel=1e-6)
    metrics, output, target, _ = running("l1", [6, 5])
    squared = (output[:, 0] - target).square().mean().item()
    assert metrics.named()["rmse"] == pytest.approx(math.sqrt(squared), rel=1e-6), "scores follow the task"


@pytest.mark.parametrize("weights", [None, torch.ones(3)], ids=["alike", "weighted"])
@pytest.mark.parametrize(("targets", "score"), [([0, 0, 1], 1.0), ([0, 0, 0], math.nan), ([1, 2, 0], 0.0)])
def test_a_class_that_is_ignored_is_in_no_score(targets: list[int], score: float, weights: torch.Tensor | None) -> None:
    sums = RunningMetrics(resolve_loss(nn.CrossEntropyLoss(ignore_index=0)))
    output = torch.eye(3)[[0, 0, 1]]
    sums.add(0.5, output, torch.tensor(targets), weight=1.0, sample_weights=weights)
    assert sums.mean().score == pytest.approx(score, nan_ok=True)


def test_a_loss_of_ones_own_has_no_score() -> None:
    sums = RunningMetrics(resolve_loss(lambda output, target: output.mean()))
    sums.add(1.5, torch.zeros(2), torch.zeros(2))
    assert sums.mean().named("val_") == {"val_loss": 1.5}


def test_nothing_has_no_mean() -> None:
    metrics = RunningMetrics(resolve_loss("cross_entropy")).mean()
    assert math.isnan(metrics.loss)
    assert metrics.score is not None
    assert math.isnan(metrics.score)


def test_loss_since_it_was_last_asked_for() -> None:
    sums = RunningMetrics(resolve_loss("mse"))
    sums.add(4.0, torch.zeros(3), torch.zeros(3))
    assert sums.loss_since_last() == 4.0
    sums.add(1.0, torch.zeros(1), torch.zeros(1))
    sums.add(3.0, torch.zeros(3), torch.zeros(3))
    assert sums.loss_since_last() == 2.5
    assert math.isnan(sums.loss_since_last())


def test_a_stopwatch_counts_the_wait_since_it_was_made() -> None:
    stream = SimpleNamespace(wait_seconds=5.0)
    watch = Stopwatch(stream)
    stream.wait_seconds = 5.25
    speed = watch.speed(10)
    assert speed.wait_seconds == 0.25
    assert 0 <= speed.stall_fraction <= 1
    assert speed.work == ThreadSeconds(), "a stream need not know what its threads did"
    assert Speed(n_samples=0, seconds=0.0, wait_seconds=0.0).samples_per_second == 0


def test_a_stopwatch_tells_the_kinds_of_time_apart() -> None:
    stream = SimpleNamespace(wait_seconds=0.0, work=ThreadSeconds(disk=1.0, index=2.0))
    watch = Stopwatch(stream)
    stream.work = ThreadSeconds(disk=1.5, index=2.0, gather=4.0)
    watch.transfer_seconds += 1e-9
    speed = watch.speed(10)
    assert speed.work == ThreadSeconds(disk=0.5, gather=4.0)
    assert sum(speed.wall().values()) == pytest.approx(speed.seconds)
    assert Speed(n_samples=1, seconds=1.0, wait_seconds=1.5).wall()["compute"] == 0.0


def test_an_epochs_line_holds_everything_flat() -> None:
    train = Metrics(loss=0.5, scores={"accuracy": 0.8}, n_samples=4)
    summary = EpochSummary(
        counts=Counts(n_epochs=1, n_batches=2, n_steps=2, n_samples=4),
        train=train,
        val=train,
        speed=Speed(
            n_samples=4, seconds=2.0, wait_seconds=1.0, transfer_seconds=0.25, work=ThreadSeconds(disk=0.5, gather=3.0)
        ),
    )
    assert summary.named() == {
        **{"epoch": 1, "steps": 2, "samples": 4, "loss": 0.5, "accuracy": 0.8, "val_loss": 0.5, "val_accuracy": 0.8},
        **{"seconds": 2.0, "samples_per_second": 2.0, "stall_fraction": 0.5},
        **{"compute_seconds": 0.75, "transfer_seconds": 0.25, "wait_seconds": 1.0},
        **{"disk_thread_seconds": 0.5, "decode_thread_seconds": 0.0, "gather_thread_seconds": 3.0},
        **{"index_thread_seconds": 0.0, "transfer_thread_seconds": 0.0},
    }
    history = History(epochs=(summary, summary), counts=summary.counts)
    assert history.last is summary
    assert history.speed.seconds == 4.0
    assert history.speed.work == ThreadSeconds(disk=1.0, gather=6.0)
    assert History(epochs=(), counts=Counts()).last is None


@pytest.mark.parametrize("totals", [{}, {"max_epochs": -1}, {"max_steps": 1.5}, {"max_steps": True}])
def test_totals_out_of_range_are_refused(totals: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="max_") as caught:
        Totals(**totals)
    assert caught.value.exit_code == 2
