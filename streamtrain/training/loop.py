"""The loop over one epoch of a stream: training batch after batch, or measuring, and its record.

The record of an epoch is its summary, lines in ``metrics.jsonl`` on the way, and a progress bar on stderr.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final, Self

import torch
from torch import Tensor
from tqdm import tqdm

from streamtrain.errors import Argument, DivergedError, Fix, StreamtrainWarning, UsageError
from streamtrain.models.losses import Loss
from streamtrain.models.seeding import random_state, seeded_random, set_random_state
from streamtrain.optim.gradients import (
    BatchResult,
    Learner,
    TrainingBatch,
    check_least_weight,
    least_weight,
    read_scalars,
)
from streamtrain.optim.rules import Figures, UpdateRule
from streamtrain.system.arguments import check_int
from streamtrain.system.progress_bar import is_shown
from streamtrain.training.batch_stream import (
    BatchStream,
    SmallBatch,
    check_weight_field,
    class_counts,
    device_share,
    fields_on,
    last_batch,
    last_batch_samples,
    samples_per_epoch,
    weights_named,
    zero_weight_error,
)
from streamtrain.training.labels.reading import AS_STORED
from streamtrain.training.metrics import EpochSummary, Metrics, RunningMetrics, Stopwatch
from streamtrain.training.preflight import (
    check_model_fits,
    check_small_batch,
    check_width,
    preserve_mode,
    too_small,
)
from streamtrain.training.progress import Counts, Totals, run_length
from streamtrain.training.run_folder import Run
from streamtrain.training.run_state import MidEpochState, ResumableStream, stream_identity, stream_state
from streamtrain.training.step_errors import explain_device, name_bad_samples

_REFRESH_SECONDS: Final = 0.2


class EpochRecorder:
    """Record one epoch; the ``with`` block is the epoch, or the rest of it for a run that resumes inside one."""

    def __init__(
        self, loss: Loss, stream: BatchStream, run: Run, *, log_every: int, epoch: int, progress: bool | None = None
    ) -> None:
        check_int(log_every, "log_every")
        self.running = RunningMetrics(loss)
        self._of_pass: Figures = {}
        self._of_weights = self._of_pass
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
            disable=not is_shown(progress),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def copied(self, seconds: float) -> None:
        """Record the wall time of a batch's copy to the device."""
        self._watch.transfer_seconds += seconds

    def add(self, learned: BatchResult, counts: Counts) -> None:
        """Record a batch and the counts after it."""
        self._measure(learned)
        self._n_timed += learned.n_new
        # True when the bar has just been drawn: the means are computed no more often than they are seen.
        if self._bar.update(learned.n_new):
            self._show()
        if counts.n_batches % self._log_every == 0:
            self._log(counts, is_trial=learned.is_trial)

    def add_partial(self, learned: BatchResult) -> None:
        """Record the samples taken in of a batch in which the run was cut short."""
        self._measure(learned)
        self._n_timed += learned.n_new

    def _measure(self, learned: BatchResult) -> None:
        self.running.add(
            learned.loss,
            learned.output,
            learned.target,
            weight=learned.weight,
            sample_weights=learned.sample_weights,
        )

    def _show(self) -> None:
        train = self.running.mean()
        stall = self._watch.speed(self._n_timed).stall_fraction
        self._bar.set_postfix_str(f"loss {train.loss:.4f}, stall {stall:.1%}", refresh=False)

    def _log(self, counts: Counts, *, is_trial: bool) -> None:
        self._run.log(
            kind="batch",
            epoch=self._epoch,
            batches=counts.n_batches,
            steps=counts.n_steps,
            samples=counts.n_samples,
            loss=self.running.loss_since_last(),
            **({"trial": 1} if is_trial else {}),
        )

    def settle(self, rule: UpdateRule) -> None:
        """Record the results of a pass that has just ended for the rule."""
        train = self.running.mean()
        self._of_pass = {"loss": train.loss, "score": train.score}
        self._of_pass |= {"objective": rule.objective, "grad_norm": rule.grad_norm}
        self._of_weights = rule.figures_of_weights(self._of_pass)

    def summary(self, counts: Counts, *, partial: bool = False) -> EpochSummary:
        """Return the epoch so far, at its end or where the run was cut short."""
        train, figures = self.running.mean(), self._of_weights
        is_taken = figures is self._of_pass
        return EpochSummary(
            counts=counts,
            train=train if is_taken else replace(train, loss=figures["loss"] or 0.0, score=figures["score"]),
            val=None,
            speed=self._watch.speed(self._n_timed),
            grad_norm=figures.get("grad_norm"),
            objective=figures.get("objective"),
            partial=partial,
            trial=None if is_taken else train.named() | _of_whole(self._of_pass),
        )


def _of_whole(figures: Figures) -> Figures:
    return {name: figures.get(name) for name in ("objective", "grad_norm")}


_CHECKED_ROWS: Final = 8


def _last_batch_of(stream: BatchStream, *, trains: bool = True, can_drop: bool = False) -> list[SmallBatch]:
    found = last_batch(
        len(stream.dataset), stream.batch_size, drop_last=stream.drop_last, trains=trains, can_drop=can_drop
    )
    return [found] if found else []


class EpochLoop:
    """Train a model over epochs of a stream, or measure it over a pass."""

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
        # The position in an epoch that was cut short; None between two.
        self.inside: MidEpochState | None = None
        self.is_cut = False
        self._cut_stream: tuple[object, ...] | None = None
        self._random_before: Mapping[str, Tensor] | None = None
        self.reading = AS_STORED
        self._learner = learner
        self._rule = rule
        self._device = device
        self._inputs = inputs
        self._target = target
        self._weight = weight
        self.fields = (*inputs, target, *([weight] if weight else []))
        self._is_checked = False
        self._fitting: set[tuple[object, ...]] = set()
        # Known beforehand, and checked with the first batch of a run or a measurement.
        self._small: list[SmallBatch] = []
        # The fewest samples that were checked, in training or not.
        self._n_least: dict[bool, int] = {}

    def begin(self, stream: BatchStream, val: BatchStream | None, totals: Totals, best: str | None = None) -> None:
        """Set up for a run over a stream: its schedules, given the monitor's mode, and the small batches to expect."""
        self._is_checked = self.is_cut = False
        self._small = list(self._last_batches(stream, val, totals))
        if self._learner.schedules is not None:
            of_epoch = self._rule.steps_per_epoch(len(stream), samples_per_epoch(stream))
            self._learner.schedules.begin(run_length(totals, of_epoch, best))

    def _last_batches(self, stream: BatchStream, val: BatchStream | None, totals: Totals) -> Iterator[SmallBatch]:
        """Yield the last batches of the passes that the run makes."""
        of_epoch = self._rule.steps_per_epoch(len(stream), samples_per_epoch(stream))
        is_cut = totals.max_steps is not None and totals.max_steps - self._rule.n_steps < of_epoch
        if self._rule.name != "sample":
            found = _last_batch_of(stream, can_drop=self._rule.name != "epoch")
            yield from (replace(each, is_reached=not is_cut) for each in found)
        if val is not None:
            yield from _last_batch_of(val, trains=False)

    def resume(self, stream: BatchStream, restored: tuple[Counts, MidEpochState | None] | None) -> None:
        """Resume at a checkpoint, or where the last call ended; warn if that was on another stream."""
        if restored is not None:
            self.counts, self.inside = restored
            self._cut_stream = stream_identity(stream)
            if self.inside is None:
                self.begin_epoch_anew()
        elif self.inside is not None and self._cut_stream != stream_identity(stream):
            warnings.warn(
                f"epoch {self.counts.n_epochs + 1} was cut short on a stream of other data, or of another order: "
                "what is left of it is not trained on, and the epoch begins anew",
                StreamtrainWarning,
                stacklevel=4,
            )
            self.begin_epoch_anew()

    def begin_epoch_anew(self) -> None:
        """Forget the progress inside the epoch; the steps taken stay."""
        self.inside = None
        self._rule.abandon()

    def train(
        self, stream: BatchStream, recorder: EpochRecorder, totals: Totals
    ) -> Generator[Callable[[], MidEpochState], None, None]:
        """Train an epoch, or the rest of it on resume; pause after every batch but the last.

        Each pause yields a function that returns the state to resume from. If the run is cut short, by closing the
        generator or by the total of steps, ``inside`` holds that state.
        """
        try:
            yield from self._train(stream, recorder, totals)
        except GeneratorExit:
            raise
        except BaseException:
            # The next call starts the epoch over.
            self.begin_epoch_anew()
            raise

    def _train(
        self, stream: BatchStream, recorder: EpochRecorder, totals: Totals
    ) -> Generator[Callable[[], MidEpochState], None, None]:
        inside, self.inside = self.inside, None
        n_taken, n_batches = inside.n_batches if inside else 0, len(stream)
        self._learner.model.train()
        with seeded_random(stream.seed, self.counts.n_epochs, device=self._device), self._located(stream):
            if inside is not None:
                recorder.running.load_state_dict(inside.metrics)
            for batch in self._batches(stream, inside, totals):
                place = partial(self._place, stream, recorder.running, n_taken)
                if not self._take_in(batch, stream, recorder, totals, place):
                    return
                n_taken += 1
                place = partial(self._place, stream, recorder.running, n_taken)
                if totals.steps_reached_by(self.counts):
                    if n_taken < n_batches:
                        self._cut(stream, place())
                        return
                    break
                if n_taken < n_batches:
                    try:
                        yield place
                    except GeneratorExit:
                        if self._rule.pause():
                            self._cut(stream, place())
                        raise
            if n_taken < n_batches and getattr(stream, "ran_out_of_time", False):
                self._cut(stream, self._place(stream, recorder.running, n_taken))
                return
            if not recorder.running.weight:
                raise zero_weight_error(self._weight)
            self._rule.end_epoch()
            recorder.settle(self._rule)
        self.counts = self.counts.after_epoch(n_steps=self._rule.n_steps)

    def _batches(self, stream: BatchStream, inside: MidEpochState | None, totals: Totals) -> Iterator[Any]:
        """Yield the batches of the epoch from the run's position on."""
        batches = self._entered(stream, inside)
        if inside is not None:
            set_random_state(inside.random_before or inside.random, self._device)
        for _ in itertools.count():
            left = math.inf if totals.max_steps is None else totals.max_steps - self.counts.n_steps
            may_be_cut = self._rule.ends_inside_batches and left < stream.batch_size
            self._random_before = random_state(self._device) if may_be_cut else None
            try:
                batch = next(batches)
            except StopIteration:
                return
            if inside is not None and inside.random_before is not None:
                # The batch was drawn again from the state before it; now comes the state after the samples taken in.
                set_random_state(inside.random, self._device)
            inside = None
            yield batch

    def _entered(self, stream: BatchStream, inside: MidEpochState | None) -> Iterator[Any]:
        if inside is not None and inside.stream is not None and isinstance(stream, ResumableStream):
            stream.load_state_dict(inside.stream)
            return iter(stream)
        stream.set_epoch(self.counts.n_epochs)
        return itertools.islice(iter(stream), inside.n_batches if inside else 0, None)

    def _take_in(
        self,
        yielded: Any,
        stream: BatchStream,
        recorder: EpochRecorder,
        totals: Totals,
        place: Callable[..., MidEpochState],
    ) -> bool:
        """Learn from a batch; return False if the run was cut short inside it."""
        started = time.perf_counter()
        batch = self.on_device(yielded)
        recorder.copied(time.perf_counter() - started)
        self._check_once(batch, class_counts(stream.dataset, self._target, self._learner.loss), trains=True)
        learned = self._learn(batch, totals.max_steps, stream)
        if learned.n_samples < len(batch):
            self.counts = self.counts.inside_batch(n_steps=self._rule.n_steps, n_samples=learned.n_new)
            self._cut(stream, place(n_batch_samples=learned.n_samples))
            recorder.add_partial(learned)
            return False
        self.counts = self.counts.after_batch(n_steps=self._rule.n_steps, n_samples=learned.n_new)
        recorder.add(learned, self.counts)
        return True

    def _cut(self, stream: BatchStream, place: MidEpochState) -> None:
        self.is_cut = True
        self.inside, self._cut_stream = place, stream_identity(stream)

    def _place(
        self, stream: BatchStream, running: RunningMetrics, n_batches: int, *, n_batch_samples: int = 0
    ) -> MidEpochState:
        """Return the state to resume from after some batches, and some samples of the next, which has been read."""
        state = stream_state(stream)
        if state is not None and n_batch_samples:
            state = state | {"batch": state["batch"] - 1}
        return MidEpochState(
            n_batches=n_batches,
            metrics=running.state_dict(),
            random=random_state(self._device),
            stream=state,
            n_batch_samples=n_batch_samples,
            random_before=self._random_before if n_batch_samples else None,
        )

    def _learn(self, batch: TrainingBatch, max_steps: int | None, stream: BatchStream) -> BatchResult:
        try:
            with weights_named(batch, lambda: last_batch_samples(stream)):
                return self._rule.learn(batch, max_steps)
        except DivergedError as error:
            name_bad_samples(error, self._learner, batch, last_batch_samples(stream))
            raise

    def measure(self, stream: BatchStream) -> Metrics:
        """Return loss and score over a pass; nothing is changed."""
        loss, model = self._learner.loss, self._learner.model
        self._is_checked = False
        self._small = list(_last_batch_of(stream, trains=False))
        n_classes = class_counts(stream.dataset, self._target, loss)
        running = RunningMetrics(loss)
        with preserve_mode(model), self._located(stream):
            for yielded in stream:
                batch = self.on_device(yielded)
                self._check_once(batch, None, trains=False)
                model.eval()
                with torch.no_grad():
                    output = model(*batch.inputs)
                    check_width(self._learner, output, batch, n_classes, may_be_wider=True)
                    with weights_named(batch, lambda: last_batch_samples(stream)):
                        measured = loss.total(output, batch.target, batch.weight)
                        total, weights, least = read_scalars(*measured, least_weight(batch.weight))
                        check_least_weight(least, weights)
                    mean = total / weights if weights else 0.0
                    running.add(mean, output, batch.target, weight=weights, sample_weights=batch.weight)
        return running.mean()

    def on_device(self, batch: Any) -> TrainingBatch:
        """Return what the model and the loss take of a batch, on the device."""
        fields = fields_on(self._device, batch, self.fields)
        return TrainingBatch(
            inputs=tuple(fields[name] for name in self._inputs),
            target=self.reading(fields[self._target]),
            weight=fields[self._weight] if self._weight else None,
            names=self.fields,
        )

    def check(
        self, batch: TrainingBatch, n_classes: range | None, small: Sequence[SmallBatch] = (), *, trains: bool = True
    ) -> None:
        """Refuse data that the model does not fit, or batches too small for it; nothing is changed."""
        few = batch.rows(slice(1 if trains and self._rule.name == "sample" else _CHECKED_ROWS))
        if few.weight is not None:
            check_weight_field(few.names[-1], few.weight)
        try:
            self._check_fits(few, n_classes, trains=trains)
        except UsageError as misfit:
            if len(few) > 1 or not self._fits_twice(few, n_classes, trains=trains):
                raise
            raise too_small(misfit, self._lone_sample(trains=trains)) from misfit
        self._check_small(batch, [each for each in small if each.n_samples < len(few)])

    def _check_fits(self, few: TrainingBatch, n_classes: range | None, *, trains: bool) -> None:
        check_model_fits(self._learner, few, n_classes=n_classes, spans=self._rule.spans, trains=trains)

    def _fits_twice(self, one: TrainingBatch, n_classes: range | None, *, trains: bool) -> bool:
        """Whether a lone sample would fit if there were two of it."""
        try:
            self._check_fits(one.rows([0, 0]), n_classes, trains=trains)
        except UsageError:
            return False
        return True

    def _lone_sample(self, *, trains: bool) -> SmallBatch:
        if trains and self._rule.name == "sample":
            why, fix = "update='sample' steps on one sample", Fix(Argument("update", "batch"))
        else:
            why, fix = "The first batch has no more", Fix("batches of more samples (", Argument("batch_size"), ")")
        return SmallBatch(n_samples=1, why=why, fix=fix, trains=trains)

    def _check_small(self, batch: TrainingBatch, small: Sequence[SmallBatch]) -> None:
        for each in small:
            try:
                check_small_batch(self._learner, batch, each)
            except UsageError as error:
                if each.is_reached:
                    raise
                warnings.warn(StreamtrainWarning(error.told(), fix=error.fix), stacklevel=7)

    def _check_once(self, batch: TrainingBatch, n_classes: range | None, *, trains: bool) -> None:
        """Check the first batch of a run or a measurement, and any that is smaller than those checked."""
        n_samples = len(batch)
        if not self._is_checked:
            like = tuple((name, tensor.dtype, tensor.shape[1:]) for name, tensor in batch.fields.items())
            if (trains, n_classes, like) not in self._fitting:
                self.check(batch, n_classes, trains=trains)
                self._fitting |= {(trains, n_classes, like), (trains, None, like)}
            n_least = min(_CHECKED_ROWS, n_samples)
            smaller = [each for each in self._small if each.n_samples < n_least]
            self._check_small(batch, smaller)
            passed = (each.n_samples for each in smaller if each.trains is trains and each.is_reached)
            self._n_least[trains] = min([n_least, *passed])
            self._is_checked = True
        elif n_samples < self._n_least.get(trains, 0) and not (trains and self._rule.name == "sample"):
            self._n_least[trains] = n_samples
            why = "Blocks of the dataset are left out, and with them the other samples of the batch"
            lost = SmallBatch(n_samples=n_samples, why=why, fix=Fix("a larger ", Argument("batch_size")), trains=trains)
            self._check_small(batch, [lost])

    @contextmanager
    def _located(self, stream: BatchStream) -> Iterator[None]:
        """Add the place in the run to an error, and a batch size that fits to one of device memory."""
        try:
            how = {"batch_size": stream.batch_size, "loader_bytes": device_share(stream)}
            with explain_device(self._device, optimizer=self._learner.optimizer, **how):
                yield
        except DivergedError as error:
            error.where = f"epoch {self.counts.n_epochs + 1}, step {self._rule.n_steps + 1}"
            raise
