"""The record of an epoch: its summary, lines in ``metrics.jsonl`` on the way, and the progress bar."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Self

from torch import Tensor

from streamtrain.models.losses import Loss
from streamtrain.optim.gradients import BatchResult
from streamtrain.optim.ranks.exchange import ALONE, Exchange
from streamtrain.optim.rules import Figures, UpdateRule
from streamtrain.system.arguments import check_int
from streamtrain.system.display.progress_bar import RunProgress
from streamtrain.system.units import format_figure, format_share
from streamtrain.training.batch_stream import BatchStream
from streamtrain.training.metrics.results import Metrics, Scoring
from streamtrain.training.metrics.running import RunningMetrics
from streamtrain.training.progress import Counts
from streamtrain.training.records.history import EpochSummary, Stopwatch
from streamtrain.training.run.run_folder import Run

Labels = tuple[Tensor, Tensor | None]
"""The other side of a batch's outputs in a score: labels in the data's own units, and the samples' weights."""


class EpochRecorder:
    """Record one epoch; the ``with`` block is the epoch, or the rest of it for a run that resumes inside one."""

    def __init__(
        self,
        loss: Loss,
        scoring: Scoring,
        stream: BatchStream,
        run: Run,
        *,
        log_every: int,
        epoch: int,
        progress: RunProgress,
        exchange: Exchange = ALONE,
    ) -> None:
        check_int(log_every, "log_every")
        self._exchange = exchange
        # Of the ranks' exchanged batches since the last line: the sum of losses, and of weights.
        self._of_all = (0.0, 0.0)
        self.running = RunningMetrics(loss, scoring)
        self._of_pass: Figures = {}
        self._of_weights = self._of_pass
        self._n_timed = 0
        self._watch = Stopwatch(stream)
        self._run = run
        self._log_every = log_every
        self._epoch = epoch
        self._progress = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def copied(self, seconds: float) -> None:
        """Record the wall time of a batch's copy to the device."""
        self._watch.transfer_seconds += seconds

    def set_aside(self, seconds: float) -> None:
        """Leave wall time out of the speed that was not spent on training."""
        self._watch.aside_seconds += seconds

    def add(self, learned: BatchResult, counts: Counts, labels: Labels) -> None:
        """Record a batch and the counts after it."""
        self._measure(learned, labels)
        self._n_timed += learned.n_new
        if learned.of_all is not None:
            (loss, weight, _), (losses, weights) = learned.of_all, self._of_all
            self._of_all = losses + loss * weight, weights + weight
        # True when the bar has just been drawn: the means are computed no more often than they are seen.
        if self._progress.advance(learned.n_new * self._exchange.world_size):
            self._show()
        if counts.n_batches % self._log_every == 0:
            self._log(counts, is_trial=learned.is_trial)

    def add_partial(self, learned: BatchResult, labels: Labels) -> None:
        """Record the samples taken in of a batch in which the run was cut short."""
        self._measure(learned, labels)
        self._n_timed += learned.n_new

    def _measure(self, learned: BatchResult, labels: Labels) -> None:
        target, weights = labels
        n = learned.n_samples
        if not n:
            return
        weights = None if weights is None else weights[:n]
        target = target if n == target.shape[0] else target[:n]
        self.running.add(learned.loss, learned.output, target, weight=learned.weight, sample_weights=weights)

    def _show(self) -> None:
        stall = self._watch.speed(self._n_timed).stall_fraction
        self._progress.say(f"loss {format_figure(self.running.loss)}, stall {format_share(stall)}")

    def _log(self, counts: Counts, *, is_trial: bool) -> None:
        loss = self.running.loss_since_last()
        if self._of_all[1]:
            loss, self._of_all = self._of_all[0] / self._of_all[1], (0.0, 0.0)
        self._run.log(
            kind="batch",
            epoch=self._epoch,
            batches=counts.n_batches,
            steps=counts.n_steps,
            samples=counts.n_samples,
            loss=loss,
            **({"trial": 1} if is_trial else {}),
        )

    def _mean(self) -> Metrics:
        return self.running.over(self._exchange).mean()

    def settle(self, rule: UpdateRule) -> None:
        """Record the results of a pass that has just ended for the rule."""
        train = self._mean()
        self._of_pass = dict(train.named())
        self._of_pass |= {"objective": rule.objective, "grad_norm": rule.grad_norm}
        self._of_weights = rule.figures_of_weights(self._of_pass)

    def summary(self, counts: Counts, *, partial: bool = False) -> EpochSummary:
        """Return the epoch so far, at its end or where the run was cut short."""
        train, figures = self._mean(), self._of_weights
        is_taken = figures is self._of_pass
        return EpochSummary(
            counts=counts,
            train=train if is_taken else _measured_at(train, figures),
            val=None,
            speed=self._watch.speed(sum(self._exchange.gather(self._n_timed))),
            grad_norm=figures.get("grad_norm"),
            objective=figures.get("objective"),
            partial=partial,
            trial=None if is_taken else train.named() | _of_whole(self._of_pass),
        )


def _measured_at(train: Metrics, figures: Figures) -> Metrics:
    """Return the metrics of other weights, with the names of this pass's."""
    # An earlier version knew one score, and called it that.
    found = {name: figures.get(name, figures.get("score")) for name in train.scores}
    scores = {name: math.nan if value is None else value for name, value in found.items()}
    return replace(train, loss=figures["loss"] or 0.0, scores=scores)


def _of_whole(figures: Figures) -> Figures:
    return {name: figures.get(name) for name in ("objective", "grad_norm")}
