"""The update rule ``sample``: one step per sample, by the plain loop or by its fast path."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import mul
from typing import Any, cast

from torch import Tensor

from streamtrain.optim.gradients import BatchResult, Learner, TrainingBatch, batch_gradient
from streamtrain.optim.rules import UpdateRule
from streamtrain.optim.sample_fast_path.choice import SamplePathChoice
from streamtrain.optim.sample_fast_path.loop import SampleResult


class SampleRule(UpdateRule):
    """One step per sample: the plain loop over single samples bit for bit, or its fast path."""

    name = "sample"
    ends_inside_batches = True

    def __init__(self, learner: Learner, *, path: str = "plain") -> None:
        super().__init__(learner)
        self.choice = SamplePathChoice(learner, path)
        self._begun: SampleResult | None = None

    @property
    def way(self) -> str:
        path, why = self.choice.path, self.choice.why
        return f"{self.name} ({path} path)" if why is None else f"{self.name} ({path} path: {why})"

    def steps_per_epoch(self, n_batches: int, n_samples: int) -> int:
        return n_samples

    def options(self) -> dict[str, object]:
        return {"sample_path": self.choice.path}

    def state_dict(self) -> dict[str, Any]:
        begun = {} if self._begun is None else {"begun": self._begun.state_dict()}
        return super().state_dict() | {"path": self.choice.taken} | begun

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._begun = SampleResult(**state["begun"]) if "begun" in state else None
        if (path := state.get("path", "plain")) is not None:
            self.choice.resume(path)

    def learn(self, batch: TrainingBatch, max_steps: int | None = None) -> BatchResult:
        begun, self._begun = self._begun, None
        loop = self.choice.loop_for(batch.inputs)
        if loop is None:
            taken = self._learn_plainly(batch, max_steps, begun)
        else:
            try:
                left = None if max_steps is None else max_steps - self.n_steps
                taken = loop.learn(batch, left, begun)
            finally:
                self.n_steps += loop.n_steps
        n, total = len(taken.losses), math.fsum(taken.weights)
        if n < len(batch):
            self._begun = taken
        return BatchResult(
            loss=math.fsum(map(mul, taken.losses, taken.weights)) / total if total else 0.0,
            output=taken.output,
            target=batch.target[:n],
            weight=total,
            sample_weights=None if batch.weight is None else batch.weight[:n],
            n_before=0 if begun is None else len(begun.losses),
        )

    def abandon(self) -> None:
        self._begun = None

    def _learn_plainly(self, batch: TrainingBatch, max_steps: int | None, begun: SampleResult | None) -> SampleResult:
        factors, samples = batch.factors, replace(batch, weight=None)
        losses, weights = ([], []) if begun is None else (list(begun.losses), list(begun.weights))
        outputs: Tensor | None = None
        for i in range(len(losses), len(factors)):
            if max_steps is not None and self.n_steps >= max_steps:
                break
            seen = self._learn_one(samples.rows(slice(i, i + 1)), factors[i])
            # All outputs share one piece of memory. Kept singly, each would lie where a freed gradient was, and the
            # allocator would need a new place for the next gradient: memory would grow by a gradient a sample.
            if outputs is None:
                outputs = seen.output.new_empty((len(batch), *seen.output.shape[1:]))
                if begun is not None:
                    outputs[:i] = begun.output
            outputs[i : i + 1] = seen.output
            losses.append(seen.loss)
            weights.append(seen.weight)
            del seen
        return SampleResult(losses=losses, weights=weights, output=cast(Tensor, outputs)[: len(losses)])

    def _learn_one(self, sample: TrainingBatch, factor: float | None) -> BatchResult:
        """Take in a sample, its loss times a factor; a factor of 0 measures it and takes no step."""
        seen = batch_gradient(self.learner, sample, scale=factor)
        if seen.weight and factor != 0:
            self._step()
        return seen if factor is None else replace(seen, weight=seen.weight * factor)
