"""Progress of a run: counts, totals, and early stopping.

Early stopping by a loss compares the validation loss, or without validation data the mean over the epoch's training
batches, each measured just before it changed the weights; by patience, what the run monitors.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Final

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.optim.schedules import RunLength
from streamtrain.system.arguments import check_int, is_number
from streamtrain.training.best.monitor import Monitor


def run_length(totals: Totals, steps_per_epoch: int, best: str | None = None) -> RunLength:
    """Return the length of a run, given the steps of an epoch; ``best`` is its monitor's mode."""
    of_epochs = math.inf if totals.max_epochs is None else totals.max_epochs * steps_per_epoch
    of_steps = math.inf if totals.max_steps is None else totals.max_steps
    n_steps = int(min(of_epochs, of_steps))
    return RunLength(n_epochs=-(-n_steps // max(1, steps_per_epoch)), n_steps=n_steps, best=best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Finished epochs, whole batches and samples taken in, optimizer steps taken."""

    n_epochs: int = 0
    n_batches: int = 0
    n_steps: int = 0
    n_samples: int = 0

    def after_batch(self, *, n_steps: int, n_samples: int) -> Counts:
        """Add one batch; ``n_steps`` is a total, since a batch may take no step or many."""
        return Counts(
            n_epochs=self.n_epochs,
            n_batches=self.n_batches + 1,
            n_steps=n_steps,
            n_samples=self.n_samples + n_samples,
        )

    def inside_batch(self, *, n_steps: int, n_samples: int) -> Counts:
        """Add samples of a batch that is not finished."""
        return replace(self, n_steps=n_steps, n_samples=self.n_samples + n_samples)

    def after_epoch(self, *, n_steps: int) -> Counts:
        """Add one epoch."""
        return Counts(n_epochs=self.n_epochs + 1, n_batches=self.n_batches, n_steps=n_steps, n_samples=self.n_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The end of a run: a total of epochs or of steps, whichever comes first."""

    max_epochs: int | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name, total in (("max_epochs", self.max_epochs), ("max_steps", self.max_steps)):
            if total is not None:
                check_int(total, name, least=0)
        if self.max_epochs is None and self.max_steps is None:
            raise UsageError("neither max_epochs nor max_steps is given", fix=Fix(Argument("max_epochs", 5), ", say"))

    def steps_reached_by(self, counts: Counts) -> bool:
        """Whether no step is left."""
        return self.max_steps is not None and counts.n_steps >= self.max_steps

    def name_reached_by(self, counts: Counts) -> str:
        """Return which total ended a finished run: ``"steps"`` or ``"epochs"``."""
        return "steps" if self.steps_reached_by(counts) else "epochs"

    def reached_by(self, counts: Counts) -> bool:
        """Whether no step or no epoch is left."""
        epochs_reached = self.max_epochs is not None and counts.n_epochs >= self.max_epochs
        return epochs_reached or self.steps_reached_by(counts)


_LOSS: Final = Monitor(name="loss", mode="min")


class EarlyStopping:
    """Early stopping: at a loss of ``until_loss``, or after ``patience`` epochs in which the monitor did not improve.

    A change of at most ``min_delta`` is no improvement; several small ones in a row are one as soon as they add up to
    more.
    """

    def __init__(self, *, until_loss: float | None = None, patience: int | None = None, min_delta: float = 0.0) -> None:
        if until_loss is not None and not is_number(until_loss):
            raise UsageError(f"until_loss is {until_loss!r}; it must be a finite number")
        if patience is not None:
            check_int(patience, "patience")
        if not (is_number(min_delta) and min_delta >= 0):
            raise UsageError(f"min_delta is {min_delta!r}; it must be a finite number of at least 0")
        self.until_loss = until_loss
        self.patience = patience
        self._min_delta = min_delta
        self._last = math.inf
        self._n_in_vain = 0
        self.monitor_by(_LOSS)

    @property
    def limits(self) -> dict[str, object]:
        """Its arguments by name; None is what was not asked for."""
        return {"until_loss": self.until_loss, "patience": self.patience, "min_delta": self._min_delta or None}

    def monitor_by(self, monitor: Monitor) -> None:
        """Look at another value than the loss, from the first epoch on."""
        self._monitor = monitor
        self._reference = monitor.worst

    def look(self, loss: float, value: float | None = None) -> None:
        """Record an epoch's loss, and its monitor's value where that is another; NaN is no improvement."""
        value = loss if value is None else value
        self._last = loss
        if self._monitor.improves(value, self._reference, by=self._min_delta):
            self._reference, self._n_in_vain = value, 0
        else:
            self._n_in_vain += 1

    @property
    def reached(self) -> bool | None:
        """Whether the last loss was low enough; None without ``until_loss``."""
        return None if self.until_loss is None else self._last <= self.until_loss

    @property
    def reason(self) -> str | None:
        """Why the run ends now, ``"until_loss"`` or ``"patience"``; None where it continues."""
        if self.reached:
            return "until_loss"
        return "patience" if self.patience is not None and self._n_in_vain >= self.patience else None

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen; without the limits, so that a run may resume with others."""
        return {"last": self._last, "lowest": self._reference, "n_in_vain": self._n_in_vain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``."""
        self._last, self._reference, self._n_in_vain = state["last"], state["lowest"], state["n_in_vain"]

    def continue_from(self, before: EarlyStopping) -> None:
        """Continue from what another has seen, unless that ends the run at once."""
        seen = copy.copy(self)
        seen.load_state_dict(before.state_dict())
        if not seen.reason:
            self.load_state_dict(seen.state_dict())
