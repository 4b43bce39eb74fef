"""What an update rule is: it takes in batches, steps when it has seen enough, and says what it saw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from streamtrain.gradients import Learner
from streamtrain.penalty import add_penalty


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a rule saw while it took in a batch.

    Parameters
    ----------
    loss : float
        The mean loss over the samples, each measured just before it changed the weights.
    output, target : torch.Tensor
        Of shapes (n_samples, ...); the output without its graph.
    weight : float, optional
        What the loss is the mean over: the weights of the samples, and of their classes, summed. By default the number
        of samples.
    sample_weights : torch.Tensor, optional
        Of shape (n_samples,), where samples have weights.
    """

    loss: float
    output: Tensor
    target: Tensor
    weight: float | None = None
    sample_weights: Tensor | None = None

    @property
    def n_samples(self) -> int:
        """Samples taken in; fewer than the batch holds where the last step was reached inside it."""
        return len(self.target)


class Rule(ABC):
    """One of the update rules, at work on a learner.

    Parameters
    ----------
    learner : Learner
        What it trains.

    Attributes
    ----------
    n_steps : int
        Optimizer steps taken so far.
    grad_norm : float or None
        The norm of the gradient of the whole dataset that the last step was taken on; under the rule ``epoch`` alone.
    objective : float or None
        J over the whole dataset, the penalty included; where a line search compares it.
    settled : bool
        Whether the loss of the pass that ended last is at weights that the run came to, as always but for a trial.
    """

    name: ClassVar[str]
    in_stored_order: ClassVar[bool] = False
    """Whether passes read in stored order, since no order makes a difference."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.n_steps = 0
        self.grad_norm: float | None = None
        self.objective: float | None = None
        self.settled = True

    @abstractmethod
    def learn(
        self,
        inputs: tuple[Tensor, ...],
        target: Tensor,
        max_steps: int | None = None,
        weight: Tensor | None = None,
    ) -> Learned:
        """Take in one batch, its samples weighted by ``weight``, (B,); stop once ``n_steps`` is ``max_steps``."""

    @property
    def converged(self) -> str | None:
        """Why no further step is asked for; None where one is."""
        return None

    @property
    def way(self) -> str:
        """Its name, and where there is a choice how it goes about it."""
        return self.name

    @property
    def spans(self) -> str | None:
        """By what option a step comes to be on several batches; None where none is."""
        return None

    def options(self) -> dict[str, object]:
        """How it was made, as ``config.json`` holds it."""
        return {}

    def steps_per_epoch(self, n_batches: int, n_samples: int) -> int:
        """How many steps an epoch of so many batches and samples has."""
        return 1

    def to_come(self) -> list[Tensor]:
        """As much memory as later steps will hold and the first ones do not."""
        return []

    def end_epoch(self) -> None:
        """Learn that the pass is complete; only a rule that waits for it has anything to do."""
        return

    def abandon(self) -> None:
        """Forget what the pass has come to, which does not go on; the steps that were taken stay."""
        return

    @contextmanager
    def at_last_step(self) -> Iterator[None]:
        """Inside the block the weights are those of the last step, also where a pass measures others."""
        yield

    def state_dict(self) -> dict[str, Any]:
        """What the rule has to remember from one batch to the next: numbers and tensors."""
        return {"name": self.name, "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.n_steps = state["n_steps"]

    def _step(self) -> None:
        """Step on the mean gradient, the penalty's put to it."""
        if self.learner.l2:
            add_penalty(self.learner.parameters, self.learner.l2)
        self._step_on_whole()

    def _step_on_whole(self) -> None:
        learner, schedules = self.learner, self.learner.schedules
        learner.clipping.clip(learner.parameters)
        if schedules is not None:
            schedules.before_step(self.n_steps + 1)
        learner.optimizer.step()
        self.n_steps += 1
        if schedules is not None:
            schedules.after_step()
        if learner.on_step is not None:
            learner.on_step()
