"""The look at a run after each epoch: whether it ends early, and which epoch is best, whose weights it keeps.

The weights are those of a checkpoint, which names it; see `streamtrain.training.run.checkpoint`. A trainer without a
run folder that is to end with them keeps a copy in CPU memory.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from streamtrain.errors import (
    Argument,
    CheckpointError,
    DivergedError,
    Fix,
    ResourceError,
    StreamtrainWarning,
    UsageError,
)
from streamtrain.loader.batch import tensor_bytes
from streamtrain.models.losses import Loss
from streamtrain.optim.ranks.exchange import ALONE, Exchange
from streamtrain.optim.rules import UpdateRule
from streamtrain.store.dataset import Dataset
from streamtrain.system.signals import Interrupted
from streamtrain.training.batch_stream import BatchStream, class_counts
from streamtrain.training.best.monitor import (
    BestEpoch,
    Monitor,
    best_record,
    changed_monitor,
    choose_monitor,
    parse_best,
    same_data,
)
from streamtrain.training.metrics.tasks import measured_names, score_name
from streamtrain.training.progress import Counts, EarlyStopping
from streamtrain.training.records.history import EpochSummary
from streamtrain.training.run.checkpoint import checkpoint_folder, load_weights, read_checkpoint
from streamtrain.training.run.run_folder import Run


class EpochWatch:
    """Early stopping, and the best epoch so far.

    ``restored`` is the model that is to end with the best weights, if one is, of which ``copies`` says whether they are
    kept in memory, and not in a run's folder.
    """

    def __init__(
        self, stopping: EarlyStopping, monitor: Monitor | None, *, restored: nn.Module | None, copies: bool
    ) -> None:
        self.stopping = stopping
        self.monitor = monitor
        self.best: BestEpoch | None = None
        # The epochs of the run where its model has the weights of the best instead, and no longer the last.
        self.n_epochs_instead: int | None = None
        self._restored = restored
        self._copies = restored is not None and copies
        self._copy: dict[str, Any] | None = None
        # The best epoch whose weights are safe.
        self._kept: BestEpoch | None = None
        # Of a run that was monitored before, and is not in this call.
        self._before: Monitor | None = None
        self._place: tuple[object, ...] = ()
        self.run: Path | None = None

    @property
    def mode(self) -> str | None:
        """Whether the smallest or the largest value is best."""
        return self.monitor.mode if self.monitor else None

    @property
    def limits(self) -> dict[str, object]:
        """The arguments of `fit` that it follows from; None is what was not asked for."""
        monitor = self.monitor.name if self.monitor else None
        return {"monitor": monitor, **self.stopping.limits}

    @property
    def copy_bytes(self) -> int:
        """What the copy of the best weights takes."""
        if self._restored is None or not self._copies:
            return 0
        return tensor_bytes(value for value in self._restored.state_dict().values() if isinstance(value, Tensor))

    def ended_by(self, rule: UpdateRule) -> str | None:
        """Why the run ends before its total, or None."""
        return self.stopping.reason or rule.converged

    def look(self, summary: EpochSummary, *, is_fresh: bool) -> float:
        """Look at a finished epoch, and return the value that is looked at, for a schedule that is given it.

        An epoch that is not ``fresh`` has the weights of the one before it, and counts for nothing.
        """
        loss = (summary.val or summary.train).loss
        value = loss if self.monitor is None else summary.measured()[self.monitor.name]
        if is_fresh:
            self.stopping.look(loss, value)
            if self.monitor is not None:
                self._compare(self.monitor, value, summary)
        return value

    def _compare(self, monitor: Monitor, value: float, summary: EpochSummary) -> None:
        if not monitor.improves(value, monitor.worst if self.best is None else self.best.value):
            return
        counts = summary.counts
        figures = summary.train.named() | (summary.val.named("val_") if summary.val else {})
        self.best = BestEpoch(
            epoch=counts.n_epochs,
            step=counts.n_steps,
            n_batches=counts.n_batches,
            monitor=monitor.name,
            value=value,
            figures=same_data(figures, monitor.name),
            checkpoint=checkpoint_folder(self.run, counts.n_batches) if self.run else None,
        )
        if self._restored is not None and self._copies:
            self._copy = {name: _copy(kept) for name, kept in self._restored.state_dict().items()}
        if self.run is None:
            self._kept = self.best

    def saved(self) -> None:
        """Note that a checkpoint holds what there is."""
        self._kept = self.best

    def not_saved(self) -> None:
        """Fall back on the best epoch whose weights are kept: those of a newer one are lost as the run goes on."""
        self.best = self._kept

    def record(self) -> dict[str, Any] | None:
        """Return what a checkpoint holds of it."""
        return best_record(self.monitor or self._before, self.best)

    def differences(self, record: object, checkpoints: Path) -> list[str]:
        """Name what the monitor of a checkpoint differs in."""
        return changed_monitor(parse_best(record, checkpoints)[0], self.monitor)

    def load(self, stopping: dict[str, Any] | None, record: object, checkpoints: Path) -> None:
        """Go on from a checkpoint."""
        if stopping is not None:
            self.stopping.load_state_dict(stopping)
        self._before, self.best = parse_best(record, checkpoints)
        self._kept = self.best

    @contextmanager
    def over(
        self,
        streams: tuple[object, ...],
        run: Run,
        counts: Callable[[], Counts],
        *,
        before: EpochWatch | None,
        exchange: Exchange = ALONE,
    ) -> Iterator[None]:
        """Watch a run for the block, at whose end the best weights are put in, if they are to be.

        What an earlier call watched on the same streams is gone on with. A block may also end by a signal, or a loss
        that is not finite.
        """
        self._place, self.run = (streams, self.monitor), run.path
        if before is not None and before._place == self._place:
            self.stopping.continue_from(before.stopping)
            if before.run == self.run and (before._copy is not None or not self._copies):
                self.best = self._kept = before.best
                self._copy = before._copy
        try:
            yield
        except (Interrupted, DivergedError):
            if self.best is not None:
                self._restore(counts())
            raise
        self._restore(counts())
        if self._restored is not None:
            # Of several ranks the first one has them for sure.
            exchange.copy_of_first([*self._restored.state_dict().values()])

    def _restore(self, counts: Counts) -> None:
        model = self._restored
        if model is None:
            return
        if self.best is None:
            monitor = self.monitor.name if self.monitor else "monitor"
            _warn(f"no epoch has a {monitor} that is a number: the model keeps its last weights")
            return
        try:
            if self._copy is not None:
                model.load_state_dict(self._copy)
            elif self.best.checkpoint is not None:
                load_weights(model, read_checkpoint(self.best.checkpoint))
        except (CheckpointError, ResourceError) as error:
            _warn(f"the best epoch, {self.best.epoch}, cannot be read: {error} The model keeps its last weights")
            return
        if (self.best.n_batches, self.best.step) != (counts.n_batches, counts.n_steps):
            self.n_epochs_instead = counts.n_epochs


def make_watch(
    loss: Loss,
    monitor: tuple[str | None, str | None],
    *,
    data: BatchStream | Dataset,
    target: str,
    own: Collection[str] = (),
    has_val: bool,
    limits: Mapping[str, Any],
    restored: nn.Module | None = None,
    copies: bool = True,
) -> EpochWatch:
    """Make the watch of a run from what its user gave: the monitor and its mode, and the limits of early stopping.

    ``own`` are the names of the user's own metrics.
    """
    stopping = EarlyStopping(**limits)
    needing = {"patience": stopping.patience, "restore_best": restored}
    dataset = data if isinstance(data, Dataset) else data.dataset
    shape = next((field.shape for field in dataset.layout.fields if field.name == target), ())
    n_classes = class_counts(dataset, target, loss)
    score = score_name(loss, shape)
    measured = ["loss", *([] if score is None else [score]), *own]
    on_val = [*measured_names(loss, shape, None if n_classes is None else n_classes.start), *own] if has_val else None
    chosen = choose_monitor(*monitor, measured=measured, on_val=on_val, needing=needing)
    if chosen is not None:
        stopping.monitor_by(chosen)
    return EpochWatch(stopping, chosen, restored=restored, copies=copies)


def check_same_weights(before: EpochWatch | None, *, resumes: bool) -> None:
    """Refuse to train on where the last call put the best weights in, beside the optimizer's state of the last."""
    if before is None or before.best is None or before.n_epochs_instead is None or resumes:
        return
    raise UsageError(
        f"the model has the weights of epoch {before.best.epoch}, and the optimizer is at epoch "
        f"{before.n_epochs_instead}",
        why="restore_best put them in at the end of the last call",
        fix=Fix(Argument("resume", "auto"), " to go on from the last weights, or a new trainer"),
    )


def _copy(value: object) -> object:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _warn(text: str) -> None:
    warnings.warn(StreamtrainWarning(text), stacklevel=5)
