"""Progress of a run: counts, totals, and early stopping.

Early stopping compares the loss after each epoch: the one on the validation data, or without such data the mean over
the epoch's training batches, each measured just before it changed the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from streamtrain.errors import UsageError
from streamtrain.optim.schedules import RunLength
from streamtrain.system.arguments import check_int, is_number


def run_length(totals: Totals, steps_per_epoch: int) -> RunLength:
    """How far a run goes whose epochs have so many steps.

    Examples
    --------
    >>> run_length(Totals(max_epochs=10, max_steps=25), 10)
    RunLength(n_epochs=3, n_steps=25)
    """
    of_epochs = math.inf if totals.max_epochs is None else totals.max_epochs * steps_per_epoch
    of_steps = math.inf if totals.max_steps is None else totals.max_steps
    n_steps = int(min(of_epochs, of_steps))
    return RunLength(n_epochs=-(-n_steps // max(1, steps_per_epoch)), n_steps=n_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Epochs ended, whole batches and samples taken in, optimizer steps taken."""

    n_epochs: int = 0
    n_batches: int = 0
    n_steps: int = 0
    n_samples: int = 0

    def after_batch(self, *, n_steps: int, n_samples: int) -> Counts:
        """One batch more; the steps are a total, since some rules take none, and some take many.

        Examples
        --------
        >>> Counts(n_batches=1, n_steps=1, n_samples=64).after_batch(n_steps=2, n_samples=64)
        Counts(n_epochs=0, n_batches=2, n_steps=2, n_samples=128)
        """
        return Counts(
            n_epochs=self.n_epochs,
            n_batches=self.n_batches + 1,
            n_steps=n_steps,
            n_samples=self.n_samples + n_samples,
        )

    def inside_batch(self, *, n_steps: int, n_samples: int) -> Counts:
        """Some samples more, of a batch that is not at its end."""
        return replace(self, n_steps=n_steps, n_samples=self.n_samples + n_samples)

    def after_epoch(self, *, n_steps: int) -> Counts:
        """One epoch more."""
        return Counts(n_epochs=self.n_epochs + 1, n_batches=self.n_batches, n_steps=n_steps, n_samples=self.n_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Where a run ends: at a total of epochs or of steps, whichever comes first.

    Raises
    ------
    UsageError
        A total is no integer of at least 0, or neither is given.

    Examples
    --------
    >>> Totals(max_epochs=3, max_steps=7).reached_by(Counts(n_epochs=2, n_steps=7))
    True
    >>> Totals(max_epochs=-1)
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: max_epochs is -1; it must be an integer of at least 0
    """

    max_epochs: int | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name, total in (("max_epochs", self.max_epochs), ("max_steps", self.max_steps)):
            if total is not None:
                check_int(total, name, least=0)
        if self.max_epochs is None and self.max_steps is None:
            raise UsageError("neither max_epochs nor max_steps is given", fix="max_epochs=5, say")

    def steps_reached_by(self, counts: Counts) -> bool:
        """Whether no step is left."""
        return self.max_steps is not None and counts.n_steps >= self.max_steps

    def name_reached_by(self, counts: Counts) -> str:
        """Which of the two ends a run that has come to its end: ``"steps"`` or ``"epochs"``."""
        return "steps" if self.steps_reached_by(counts) else "epochs"

    def reached_by(self, counts: Counts) -> bool:
        """Whether no step or no epoch is left."""
        epochs_reached = self.max_epochs is not None and counts.n_epochs >= self.max_epochs
        return epochs_reached or self.steps_reached_by(counts)


class EarlyStopping:
    """When a run ends early.

    Parameters
    ----------
    until_loss : float, optional
        Once the loss is at most this.
    patience : int, optional
        After so many epochs in a row without a loss below the lowest so far.

    Raises
    ------
    UsageError
        ``until_loss`` is not finite, or ``patience`` is no integer of at least 1.

    Examples
    --------
    >>> stopping = EarlyStopping(until_loss=0.1, patience=2)
    >>> for loss in (0.5, 0.4, 0.4, 0.6):
    ...     stopping.look(loss)
    >>> stopping.reason, stopping.reached
    ('patience', False)
    """

    def __init__(self, *, until_loss: float | None = None, patience: int | None = None) -> None:
        if until_loss is not None and not is_number(until_loss):
            raise UsageError(f"until_loss is {until_loss!r}; it must be a finite number")
        if patience is not None:
            check_int(patience, "patience")
        self.until_loss = until_loss
        self.patience = patience
        self._last = self._lowest = math.inf
        self._n_in_vain = 0

    def look(self, loss: float) -> None:
        """Take in an epoch's loss; one that is not a number is not low."""
        self._last = loss
        self._n_in_vain = 0 if loss < self._lowest else self._n_in_vain + 1
        self._lowest = min(self._lowest, loss) if loss == loss else self._lowest

    @property
    def reached(self) -> bool | None:
        """Whether the last loss was low enough; None where none was asked for."""
        return None if self.until_loss is None else self._last <= self.until_loss

    @property
    def reason(self) -> str | None:
        """Why the run ends now, ``"until_loss"`` or ``"patience"``; None where it goes on."""
        if self.reached:
            return "until_loss"
        return "patience" if self.patience is not None and self._n_in_vain >= self.patience else None

    def state_dict(self) -> dict[str, Any]:
        """The losses seen, as a few numbers; the limits are not part of them, so a run may go on with others."""
        return {"last": self._last, "lowest": self._lowest, "n_in_vain": self._n_in_vain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._last, self._lowest, self._n_in_vain = state["last"], state["lowest"], state["n_in_vain"]
