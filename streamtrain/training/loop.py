"""The loop over one epoch of a stream: training batch after batch, or measuring."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from streamtrain.errors import Argument, DivergedError, Fix, InputError, StreamtrainWarning, UsageError
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
from streamtrain.optim.ranks.exchange import ALONE, OF_OTHERS, DivergedElsewhere, Exchange, ToldByRank
from streamtrain.optim.rules import UpdateRule, changing_buffers
from streamtrain.store.schema.arrangement import AS_IT_IS, Arrangement
from streamtrain.system.units import counted
from streamtrain.training.batch_stream import (
    BatchStream,
    SmallBatch,
    StreamDataset,
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
from streamtrain.training.labels.class_weights import weigh_classes
from streamtrain.training.labels.reading import AS_STORED
from streamtrain.training.labels.targets import TargetSettings
from streamtrain.training.metrics.mistakes import losses_of_samples
from streamtrain.training.metrics.results import Metrics, Scoring
from streamtrain.training.metrics.running import BadRows, RunningMetrics, bad_rows
from streamtrain.training.metrics.user import UserMetric, check_metrics
from streamtrain.training.preflight import (
    check_model_fits,
    check_small_batch,
    check_width,
    preserve_mode,
    put_in_training_mode,
    too_small,
)
from streamtrain.training.progress import Counts, Totals, run_length
from streamtrain.training.ranks import world_size_of
from streamtrain.training.records.history import EpochSummary
from streamtrain.training.records.recorder import EpochRecorder, Labels
from streamtrain.training.run.run_description import ResumableStream, stream_identity, stream_state
from streamtrain.training.run.run_state import MidEpochState
from streamtrain.training.step_errors import explain_device, name_bad_samples, name_missing_values, name_rate

_CHECKED_ROWS: Final = 8
_OF_PASS: Final = ("n_batches", "n_samples")


def _last_batch_of(stream: BatchStream, *, trains: bool = True, can_drop: bool = False) -> list[SmallBatch]:
    found = last_batch(
        len(stream.dataset), stream.batch_size, drop_last=stream.drop_last, trains=trains, can_drop=can_drop
    )
    # The least that a rank has of it; one that has nothing leaves the model out.
    return [replace(found, n_samples=max(1, found.n_samples // world_size_of(stream)))] if found else []


def check_labels(target: Tensor, rows: Sequence[int], name: str) -> None:
    """Refuse labels of some rows that are no finite numbers, which would make every score one."""
    if missing := bad_rows(target).tolist():
        n = counted(len(missing), "value")
        what = f"field {name} holds {n} that are not finite in a batch, the first in row {rows[missing[0]]:,}"
        raise InputError(what, fix="leave these rows out, or fill in their labels")


def _rows(stream: BatchStream, start: int, n_samples: int) -> Sequence[int]:
    """Return the rows in its dataset of the batch that a stream in stored order yielded last."""
    found = last_batch_samples(stream)
    return range(start, start + n_samples) if found is None else found.tolist()


class EpochLoop:
    """Train a model over epochs of a stream, or measure it over a pass."""

    def __init__(
        self,
        learner: Learner,
        rule: UpdateRule,
        device: torch.device,
        inputs: tuple[str, ...],
        target: str,
        weight: str | None = None,
        metrics: Mapping[str, UserMetric] | None = None,
    ) -> None:
        self.counts = Counts()
        # Since the trainer was made, or the run began.
        self.epochs: list[EpochSummary] = []
        # The position in an epoch that was cut short; None between two.
        self.inside: MidEpochState | None = None
        self.is_cut = False
        # The position before a batch that other ranks did not finish, where it has left no trace.
        self.before_failure: MidEpochState | None = None
        self._cut_stream: tuple[object, ...] | None = None
        self._random_before: Mapping[str, Tensor] | None = None
        # The last counts that all ranks had.
        self._agreed = self.counts
        self.reading = AS_STORED
        self.targets = TargetSettings()
        self.scoring = Scoring(metrics=check_metrics(metrics or {}))
        for metric in self.scoring.metrics.values():
            if isinstance(metric, nn.Module):
                metric.to(device)
        self._learner = learner
        self._rule = rule
        self.device = device
        self._inputs = inputs
        self.target = target
        self._weight = weight
        self.fields = (*inputs, target, *([weight] if weight else []))
        self._is_checked = False
        self._fitting: set[tuple[object, ...]] = set()
        # Known beforehand, and checked with the first batch of a run or a measurement.
        self._small: list[SmallBatch] = []
        # The fewest samples that were checked, in training or not.
        self._n_least: dict[bool, int] = {}

    @property
    def loss(self) -> Loss:
        """The loss."""
        return self._learner.loss

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
                "what is left of it is not trained on, and the epoch starts over",
                StreamtrainWarning,
                stacklevel=4,
            )
            self.begin_epoch_anew()

    def keep(self, summary: EpochSummary) -> None:
        """Keep the summary of an epoch, in place of that of its part where it was cut short before."""
        if self.epochs and self.epochs[-1].partial:
            self.epochs.pop()
        self.epochs.append(summary)

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
        inside, self.inside, self.before_failure = self.inside, None, None
        n_taken, n_batches = inside.n_batches if inside else 0, len(stream)
        exchange = self._rule.exchange
        # In stored order some ranks have a batch more than others; after it, no rank can wait for the others.
        n_pauses = min(exchange.gather(n_batches)) if self._rule.in_stored_order else n_batches
        self._agreed = self.counts
        put_in_training_mode(self._learner.model)
        key = (self.counts.n_epochs, *([exchange.rank] if exchange.rank else []))
        with seeded_random(stream.seed, *key, device=self.device), self._located(stream):
            if inside is not None:
                recorder.running.load_state_dict(*inside.metrics)
            for batch in self._batches(stream, inside, totals):
                place = partial(self._place, stream, recorder.running, n_taken)
                try:
                    is_whole = self._take_in(batch, stream, recorder, totals, place)
                except OF_OTHERS:
                    if self._rule.undoes_batches:
                        self.before_failure = replace(place(n_batch_samples=1), n_batch_samples=0, random_before=None)
                    raise
                if not is_whole:
                    return
                n_taken += 1
                place = partial(self._place, stream, recorder.running, n_taken)
                if totals.steps_reached_by(self.counts):
                    if n_taken < n_batches:
                        self._cut(stream, place())
                        return
                    break
                if n_taken < n_pauses:
                    try:
                        yield place
                    except GeneratorExit:
                        if self._rule.pause():
                            self._cut(stream, place())
                        raise
            if n_taken < n_batches and getattr(stream, "ran_out_of_time", False):
                self._cut(stream, self._place(stream, recorder.running, n_taken))
                return
            if not any(exchange.gather(recorder.running.weight)):
                raise zero_weight_error(self._weight)
            self._rule.end_epoch()
            exchange.copy_of_first(changing_buffers(self._learner.model))
            recorder.settle(self._rule)
        self.counts = self.agreed_counts().after_epoch(n_steps=self._rule.n_steps)

    def agreed_counts(self) -> Counts:
        """Return the counts as all ranks have them: each has counted its own batches of a pass in stored order."""
        exchange = self._rule.exchange
        if exchange.world_size == 1 or not self._rule.in_stored_order:
            return self.counts
        new = exchange.gather(tuple(getattr(self.counts, of) - getattr(self._agreed, of) for of in _OF_PASS))
        n_batches, n_samples = max(n for n, _ in new), sum(n for _, n in new)
        self.counts = self._agreed = replace(
            self.counts,
            n_batches=self._agreed.n_batches + n_batches,
            n_samples=self._agreed.n_samples + n_samples,
        )
        return self.counts

    def _batches(self, stream: BatchStream, inside: MidEpochState | None, totals: Totals) -> Iterator[Any]:
        """Yield the batches of the epoch from the run's position on."""
        batches = self._entered(stream, inside)
        if inside is not None and inside.random is not None:
            set_random_state(inside.random_before or inside.random, self.device)
        for _ in itertools.count():
            left = math.inf if totals.max_steps is None else totals.max_steps - self.counts.n_steps
            may_be_cut = self._rule.ends_inside_batches and left < stream.batch_size
            self._random_before = random_state(self.device) if may_be_cut else None
            try:
                batch = next(batches)
            except StopIteration:
                return
            if inside is not None and inside.random_before is not None and inside.random is not None:
                # The batch was drawn again from the state before it; now comes the state after the samples taken in.
                set_random_state(inside.random, self.device)
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
        batch, labels = self._given(yielded)
        recorder.copied(time.perf_counter() - started)
        if len(batch):
            self._check_once(batch, stream.dataset)
        learned = self._learn(batch, totals.max_steps, stream)
        if learned.n_samples < len(batch):
            self.counts = self.counts.inside_batch(n_steps=self._rule.n_steps, n_samples=learned.n_new)
            self._cut(stream, place(n_batch_samples=learned.n_samples))
            recorder.add_partial(learned, labels)
            return False
        n_samples = learned.n_new if learned.of_all is None else learned.of_all[2]
        self.counts = self.counts.after_batch(n_steps=self._rule.n_steps, n_samples=n_samples)
        recorder.add(learned, self.counts, labels)
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
            metrics=(running.state_dict(),),
            random=random_state(self.device),
            stream=state,
            n_batch_samples=n_batch_samples,
            random_before=self._random_before if n_batch_samples else None,
        )

    def _learn(self, batch: TrainingBatch, max_steps: int | None, stream: BatchStream) -> BatchResult:
        try:
            with weights_named(batch, lambda: last_batch_samples(stream)):
                return self._rule.learn(batch, max_steps)
        except DivergedError as error:
            if isinstance(error, DivergedElsewhere | ToldByRank):
                raise
            name_bad_samples(error, self._learner, batch, last_batch_samples(stream))
            name_missing_values(error, stream.dataset, batch.fields)
            raise

    def measure(
        self,
        stream: BatchStream,
        scoring: Scoring | None = None,
        arrangement: Arrangement = AS_IT_IS,
        exchange: Exchange = ALONE,
    ) -> Metrics:
        """Return loss and all scores over a pass, with its columns in order; nothing is changed.

        Of a stream that ranks share, they are those of all of it.
        """
        loss, model = self._learner.loss, self._learner.model
        self._is_checked = False
        self._small = list(_last_batch_of(stream, trains=False))
        n_classes = class_counts(stream.dataset, self.target, loss)
        running, n_measured, told = RunningMetrics(loss, scoring or self.scoring, full=True), 0, BadRows()
        with preserve_mode(model), self._located(stream):
            for yielded in stream:
                batch, (labels, weights_of_samples) = self._given(yielded, arrangement)
                self._check_once(batch, None)
                model.eval()
                with torch.no_grad():
                    output = model(*batch.inputs)
                    check_width(self._learner, output, batch, n_classes, may_be_wider=True)
                    with weights_named(batch, lambda: last_batch_samples(stream)):
                        total, weights, each = loss.total_and_each(output, batch.target, batch.weight)
                        losses = losses_of_samples(each, loss, batch.target)
                        worst = -math.inf if losses is None else losses.max()
                        scalars = total, weights, least_weight(batch.weight), worst
                        summed, weight, least, most = read_scalars(*scalars)
                        check_least_weight(least, weight)
                    # A sample that has no finite output has no finite loss.
                    bad = () if math.isfinite(summed) else bad_rows(output).tolist()
                    rows = () if math.isfinite(summed) else _rows(stream, n_measured, len(labels))
                    if rows and not bad:
                        check_labels(batch.target, rows, self.target)
                    told.add([rows[place] for place in bad], len(labels))
                    mean = summed / weight if weight else 0.0
                    running.add(mean, output, labels, weight=weight, sample_weights=weights_of_samples)
                    # NaN is above anything.
                    if losses is not None and not most <= running.mistakes.least:
                        running.mistakes.add(losses, output, labels, partial(_rows, stream, n_measured, len(labels)))
                    n_measured += len(labels)
        if (text := told.told()) is not None:
            warnings.warn(StreamtrainWarning(text), stacklevel=4)
        return running.over(exchange).mean()

    def on_device(self, batch: Any) -> TrainingBatch:
        """Return what the model and the loss take of a batch, on the device."""
        return self._given(batch)[0]

    def _given(self, batch: Any, arrangement: Arrangement = AS_IT_IS) -> tuple[TrainingBatch, Labels]:
        """Return what the model and the loss take of a batch, and what its outputs are scored with."""
        fields = arrangement.of(fields_on(self.device, batch, self.fields))
        stored, weight = fields[self.target], fields[self._weight] if self._weight else None
        normalization, class_weights = self.targets.normalization, self.targets.class_weights
        target = self.reading(stored) if normalization is None else normalization.standardize(stored)
        taken = TrainingBatch(
            inputs=tuple(fields[name] for name in self._inputs),
            target=target,
            weight=weight if class_weights is None else weigh_classes(class_weights, target, weight),
            names=self.fields,
        )
        return taken, (stored if self.reading.values is None else target, weight)

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

    def _check_once(self, batch: TrainingBatch, trained: StreamDataset | None) -> None:
        """Check the first batch of a run or a measurement, and any that is smaller than those checked.

        ``trained`` is the dataset that is trained on; None for one that is measured, whose classes may be others.
        """
        n_samples, trains = len(batch), trained is not None
        if not self._is_checked:
            n_classes = None if trained is None else class_counts(trained, self.target, self._learner.loss)
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
            with explain_device(self.device, optimizer=self._learner.optimizer, **how):
                yield
        except DivergedError as error:
            if isinstance(error, ToldByRank):
                raise
            error.where = f"epoch {self.counts.n_epochs + 1}, step {self._rule.n_steps + 1}"
            is_raw = self.targets.is_of_differences and self.targets.normalization is None
            name_rate(error, self._learner, takes_raw_target=is_raw)
            raise
