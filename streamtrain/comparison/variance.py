"""The relative variance of the updates of a rule: streamed, with two copies of the weights and one number.

The update of step t is u_t = w_t − w_{t−1}, all trained weights in one vector. Over a window of n consecutive steps
with the mean ū = (u_1 + … + u_n) / n the *relative variance of the updates* is ::

    V = ((1/n) Σ |u_t − ū|²) / |ū|²  =  n Σ |u_t|² / |w_n − w_0|²  −  1

where the second form, which is computed, needs the weights at the window's beginning, the weights before the step, and
the sum of |u_t|²; the sum of the updates telescopes. V is 0 where all updates are equal. A rule whose updates are the
same mean plus independent noise of relative variance σ² has V near σ² while σ² is much less than n, and near n where
the updates are all noise. SGD's updates under the rule ``batch`` have 1/b of the variance of those of ``sample``.

A window is the first steps of an epoch, so that rules are compared over the same number of steps, over which the
weights move little. A run with one step per epoch has a window over its epochs. A single step has no V.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from streamtrain.models.real_view import as_real
from streamtrain.optim.gradients import copy_weights, put_weights, reading_weights

WINDOW: Final = 100
"""Steps of a window, at most."""


class UpdateVariance:
    """Follow parameters through windows of at most ``n_steps`` steps; ``seconds`` is the time that takes."""

    def __init__(self, n_steps: int = WINDOW) -> None:
        self._n_steps = n_steps
        self._parameters: list[nn.Parameter] = []
        self._first: list[Tensor] = []
        self._before: list[Tensor] = []
        self._squares: Tensor | float = 0.0
        self.n_seen = 0
        self.seconds = 0.0

    @property
    def is_full(self) -> bool:
        """Whether the window has all its steps."""
        return self.n_seen >= self._n_steps

    def begin(self, parameters: Sequence[nn.Parameter]) -> None:
        """Begin a window at the present weights of parameters."""
        started = time.perf_counter()
        self._parameters = list(parameters)
        if [weight.shape for weight in self._first] != [parameter.shape for parameter in parameters]:
            self._first, self._before = copy_weights(parameters), copy_weights(parameters)
        put_weights(self._first, parameters)
        put_weights(self._before, parameters)
        self._squares = 0.0
        self.n_seen = 0
        self.seconds += time.perf_counter() - started

    @reading_weights
    def stepped(self) -> None:
        """Record the step that led to the present weights, if the window has room for it."""
        if self.is_full or not self._parameters:
            return
        started = time.perf_counter()
        with torch.no_grad():
            for before, parameter in zip(self._before, self._parameters, strict=True):
                # The sum stays on the device until it is read: reading would wait for every step.
                self._squares = self._squares + _square(parameter, before)
                before.copy_(parameter)
        self.n_seen += 1
        self.seconds += time.perf_counter() - started

    def value(self) -> float | None:
        """Return the relative variance so far; None before the second step, and where nothing moved."""
        if self.n_seen < 2:
            return None
        with torch.no_grad():
            pairs = zip(self._before, self._first, strict=True)
            moved = float(sum(_square(last, first) for last, first in pairs))
        return max(self.n_seen * float(self._squares) / moved - 1.0, 0.0) if moved > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Return the window so far; its tensors are not copied."""
        return {
            "n_seen": self.n_seen,
            "squares": float(self._squares),
            "first": self._first,
            "before": self._before,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a window of the same parameters."""
        for own, found in ((self._first, state["first"]), (self._before, state["before"])):
            for weight, value in zip(own, found, strict=True):
                weight.copy_(value)
        self.n_seen, self._squares = int(state["n_seen"]), float(state["squares"])


def _square(one: Tensor, other: Tensor) -> Tensor:
    """Return |one − other|² in float64; the difference of two weights is as exact as they are."""
    norm: Tensor = torch.linalg.vector_norm(as_real(one.detach() - other), dtype=torch.float64)
    return norm.square()
