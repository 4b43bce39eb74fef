"""The loop over one epoch of a stream: training batch after batch, or measuring, and its record.

The record of an epoch is its summary, lines in ``metrics.jsonl`` on the way, and a progress bar on stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import torch
from torch import Tensor
from tqdm import tqdm

from streamtrain.errors import DivergedError, UsageError
from streamtrain.models.losses import Loss
from streamtrain.models.seeding import seeded_random
from streamtrain.optim.gradients import Learner, read_scalars
from streamtrain.optim.rules import BatchResult, UpdateRule
from streamtrain.training.batch_stream import (
    BatchStream,
    check_weight_field,
    check_weights,
    class_counts,
    fields_on,
    last_batch_samples,
    samples_per_epoch,
    zero_weight_error,
)
from streamtrain.training.metrics import EpochSummary, Metrics, RunningMetrics, Stopwatch
from streamtrain.training.preflight import Batch, check_model_fits, check_width, preserve_mode
from streamtrain.training.progress import Counts, Totals, run_length
from streamtrain.training.run_folder import Run
from streamtrain.training.run_state import MidEpochState
from streamtrain.training.step_errors import explain_out_of_memory, name_bad_samples

_REFRESH_SECONDS: Final = 0.2


class EpochRecorder:
    """Record one epoch; the ``with`` block is the epoch, or what is left of it for a run that goes on inside one.

    Parameters
    ----------
    loss : Loss
        The loss that is trained on.
    stream : BatchStream
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
        self, loss: Loss, stream: BatchStream, run: Run, *, log_every: int, epoch: int, progress: bool | None = None
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

    def add(self, learned: BatchResult, counts: Counts) -> None:
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


_CHECKED_ROWS: Final = 8


class EpochLoop:
    """What goes over a stream with a model.

    Parameters
    ----------
    learner : Learner
        The model behind what rescales its inputs, the loss and the optimizer.
    rule : UpdateRule
        The update rule over them.
    device : torch.device
        Where.
    inputs : tuple of str
        The fields that the model takes, in order.
    target : str
        The field that the loss compares with.
    weight : str, optional
        The field of the samples' weights.

    Attributes
    ----------
    counts : Counts
        Epochs, batches, steps and samples so far.
    """

    def __init__(
        self,
        learner: Learner,
        rule: UpdateRule,
        *,
        device: torch.device,
        inputs: tuple[str, ...],
        target: str,
        weight: str | None = None,
    ) -> None:
        self.counts = Counts()
        self._learner = learner
        self._rule = rule
        self._device = device
        self._inputs = inputs
        self._target = target
        self._weight = weight
        self._is_checked = False
        self._fitting: set[tuple[object, ...]] = set()

    def begin(self, stream: BatchStream, totals: Totals) -> None:
        """Set the schedules up for a run over a stream.

        Raises
        ------
        UsageError
            They were set up for another end of the run, or cannot be.
        """
        self._is_checked = False
        if self._learner.schedules is not None:
            of_epoch = self._rule.steps_per_epoch(len(stream), samples_per_epoch(stream))
            self._learner.schedules.begin(run_length(totals, of_epoch))

    def train(
        self, stream: BatchStream, recorder: EpochRecorder, totals: Totals, inside: MidEpochState | None
    ) -> Generator[None, None, None]:
        """Take in an epoch, or what is left of it where a run goes on; pause after every batch but the last.

        Raises
        ------
        UsageError
            The model does not fit the data.
        InputError
            A sample's weight is negative or not finite, or all weights of the epoch are 0.
        DivergedError
            A loss or a gradient is not finite; epoch, step and samples are named.
        DeviceError
            The device is out of memory.
        """
        try:
            yield from self._train(stream, recorder, totals, inside)
        except BaseException:
            # Whoever trains again begins the epoch anew.
            self._rule.abandon()
            raise

    def _train(
        self, stream: BatchStream, recorder: EpochRecorder, totals: Totals, inside: MidEpochState | None
    ) -> Generator[None, None, None]:
        epoch = self.counts.n_epochs
        if inside is None:
            stream.set_epoch(epoch)
        self._learner.model.train()
        with seeded_random(stream.seed, epoch, device=self._device), self._located(stream):
            if inside is not None:
                inside.enter(recorder.running, self._device)
            left = len(stream) - (inside.n_batches if inside is not None else 0)
            for batch in stream:
                started = time.perf_counter()
                fields = self.on_device(batch)
                recorder.copied(time.perf_counter() - started)
                self._check_once(fields, class_counts(stream.dataset, self._target, self._learner.loss))
                weight = self._weight_of(fields, stream)
                learned = self._learn(fields, totals.max_steps, weight, stream)
                self.counts = self.counts.after_batch(n_steps=self._rule.n_steps, n_samples=learned.n_samples)
                recorder.add(learned, self.counts)
                left -= 1
                if totals.steps_reached_by(self.counts):
                    break
                if left:
                    yield
            if not recorder.running.weight:
                raise zero_weight_error(self._weight)
            self._rule.end_epoch()
            recorder.grad_norm = self._rule.grad_norm
            recorder.objective = self._rule.objective
        self.counts = self.counts.after_epoch(n_steps=self._rule.n_steps)

    def _learn(self, fields: Batch, max_steps: int | None, weight: Tensor | None, stream: BatchStream) -> BatchResult:
        inputs, target = self._inputs_of(fields), fields[self._target]
        try:
            return self._rule.learn(inputs, target, max_steps, weight)
        except DivergedError as error:
            name_bad_samples(error, self._learner, inputs, target, last_batch_samples(stream))
            raise

    def measure(self, stream: BatchStream) -> Metrics:
        """Loss and score over a pass; nothing is changed.

        Raises
        ------
        UsageError
            The model does not fit the data.
        DeviceError
            The device is out of memory.
        """
        loss, model = self._learner.loss, self._learner.model
        self._is_checked = False
        n_classes = class_counts(stream.dataset, self._target, loss)
        running = RunningMetrics(loss)
        with preserve_mode(model), self._located(stream):
            for batch in stream:
                fields = self.on_device(batch)
                self._check_once(fields, None)
                model.eval()
                with torch.no_grad():
                    output = model(*self._inputs_of(fields))
                    check_width(self._learner, output, fields, n_classes, may_be_wider=True)
                    target, weight = fields[self._target], self._weight_of(fields, stream)
                    total, weights = read_scalars(*loss.total(output, target, weight))
                    mean = total / weights if weights else 0.0
                    running.add(mean, output, target, weight=weights, sample_weights=weight)
        return running.mean()

    def on_device(self, batch: Any) -> dict[str, Tensor]:
        """The fields of a batch that the model and the loss take, on the device."""
        names = (*self._inputs, self._target, *([self._weight] if self._weight else []))
        return fields_on(self._device, batch, names)

    def check(self, fields: Batch, n_classes: range | None) -> None:
        """See that the model fits the data; nothing is changed.

        Raises
        ------
        UsageError
            It does not.
        """
        n_rows = 1 if self._rule.name == "sample" else _CHECKED_ROWS
        few = {name: tensor[:n_rows] for name, tensor in fields.items()}
        if self._weight:
            check_weight_field(self._weight, few[self._weight])
        check_model_fits(
            self._learner,
            few,
            inputs=self._inputs,
            target=self._target,
            weight=self._weight,
            n_classes=n_classes,
            spans=self._rule.spans,
        )

    def _check_once(self, fields: Batch, n_classes: range | None) -> None:
        """Check the first batch of a run, or of data that is measured, unless its like has been."""
        if self._is_checked:
            return
        like = tuple((name, tensor.dtype, tensor.shape[1:]) for name, tensor in fields.items())
        if (n_classes, like) not in self._fitting:
            self.check(fields, n_classes)
            self._fitting |= {(n_classes, like), (None, like)}
        self._is_checked = True

    def _inputs_of(self, fields: Batch) -> tuple[Tensor, ...]:
        return tuple(fields[name] for name in self._inputs)

    def _weight_of(self, fields: Batch, stream: BatchStream) -> Tensor | None:
        if self._weight is None:
            return None
        check_weights(self._weight, fields[self._weight], lambda: last_batch_samples(stream))
        return fields[self._weight]

    @contextmanager
    def _located(self, stream: BatchStream) -> Iterator[None]:
        """Say where in the run an error struck, and of a device without room what would fit."""
        try:
            with explain_out_of_memory(self._device, batch_size=stream.batch_size, optimizer=self._learner.optimizer):
                yield
        except DivergedError as error:
            error.where = f"epoch {self.counts.n_epochs + 1}, step {self._rule.n_steps + 1}"
            raise
