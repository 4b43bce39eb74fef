"""Ending a run early, by the loss after each epoch: where it is low enough, or no longer falls.

The loss is that on the validation data, or without such data the mean over the epoch's training batches, each measured
just before it changed the weights.
"""

from __future__ import annotations

import math
from typing import Any

from streamtrain.errors import UsageError


class Stopping:
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
    >>> stopping = Stopping(until_loss=0.1, patience=2)
    >>> for loss in (0.5, 0.4, 0.4, 0.6):
    ...     stopping.look(loss)
    >>> stopping.reason, stopping.reached
    ('patience', False)
    """

    def __init__(self, *, until_loss: float | None = None, patience: int | None = None) -> None:
        if until_loss is not None and (isinstance(until_loss, bool) or not _is_finite(until_loss)):
            raise UsageError(f"until_loss is {until_loss!r}; it must be a finite number")
        if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
            raise UsageError(f"patience is {patience!r}; it must be an integer of at least 1")
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


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
