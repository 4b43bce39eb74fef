"""What an epoch leaves behind: its summary, lines in ``metrics.jsonl`` on the way, and a progress bar on stderr."""

from __future__ import annotations

import sys
from typing import Final, Self

from tqdm import tqdm

from streamtrain.counts import Counts
from streamtrain.errors import UsageError
from streamtrain.metrics import EpochSummary, RunningMetrics
from streamtrain.models.losses import Loss
from streamtrain.optim.rules import Learned
from streamtrain.runs import Run
from streamtrain.speed import Stopwatch
from streamtrain.stream import Stream, samples_per_epoch

_REFRESH_SECONDS: Final = 0.2


class EpochRecorder:
    """Record one epoch; the ``with`` block is the epoch, or what is left of it for a run that goes on inside one.

    Parameters
    ----------
    loss : Loss
        The loss that is trained on.
    stream : Stream
        Where the batches come from; it knows how long they were waited for.
    run : Run
        Takes the lines.
    log_every : int
        Batches between two lines.
    epoch : int
        Counted from 1.
    progress : bool, optional
        Whether to show the bar; by default where stderr is a terminal.

    Attributes
    ----------
    running : RunningMetrics
        Over the epoch so far.
    grad_norm : float or None
        Of the whole dataset's gradient, once it is known.
    objective : float or None
        J over the whole dataset, once it is known, where a line search compares it.

    Raises
    ------
    UsageError
        ``log_every`` is not positive.
    """

    def __init__(
        self, loss: Loss, stream: Stream, run: Run, *, log_every: int, epoch: int, progress: bool | None = None
    ) -> None:
        if log_every < 1:
            raise UsageError(f"log_every is {log_every!r}; it must be at least 1")
        self.running = RunningMetrics(loss)
        self.grad_norm: float | None = None
        self.objective: float | None = None
        self._n_timed = 0
        self._watch = Stopwatch(stream)
        self._run = run
        self._log_every = log_every
        self._epoch = epoch
        self._bar = tqdm(
            total=samples_per_epoch(stream),
            desc=f"epoch {epoch}",
            unit=" samples",
            unit_scale=True,
            mininterval=_REFRESH_SECONDS,
            leave=False,
            file=sys.stderr,
            disable=not (sys.stderr.isatty() if progress is None else progress),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def copied(self, seconds: float) -> None:
        """Record the wall time that a batch's copy to the device took."""
        self._watch.transfer_seconds += seconds

    def add(self, learned: Learned, counts: Counts) -> None:
        """Record a batch, and how far the run has come with it."""
        self.running.add(
            learned.loss,
            learned.output,
            learned.target,
            weight=learned.weight,
            sample_weights=learned.sample_weights,
        )
        self._n_timed += learned.n_samples
        # True when the bar has just been drawn: the means are worked out no more often than they are seen.
        if self._bar.update(learned.n_samples):
            self._show()
        if counts.n_batches % self._log_every == 0:
            self._log(counts)

    def _show(self) -> None:
        train = self.running.mean()
        stall = self._watch.speed(self._n_timed).stall_fraction
        self._bar.set_postfix_str(f"loss {train.loss:.4f}, stall {stall:.1%}", refresh=False)

    def _log(self, counts: Counts) -> None:
        self._run.log(
            kind="batch",
            epoch=self._epoch,
            batches=counts.n_batches,
            steps=counts.n_steps,
            samples=counts.n_samples,
            loss=self.running.loss_since_last(),
        )

    def summary(self, counts: Counts) -> EpochSummary:
        """The epoch as it stands."""
        train = self.running.mean()
        speed = self._watch.speed(self._n_timed)
        of_pass = {"grad_norm": self.grad_norm, "objective": self.objective}
        return EpochSummary(counts=counts, train=train, val=None, speed=speed, **of_pass)
