"""The loop of the fast path: sample steps without autograd, in chunks.

Numbers are read only at the end of a chunk. Then losses and gradients are checked all at once, and where one is not
finite the chunk is undone and run again up to the sample before it. So the plain loop's guarantee holds: no step is
taken on a loss that is not finite, and the weights are the last good ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from streamtrain.optim.gradients import Learner, TrainingBatch, non_finite_error
from streamtrain.optim.sample_fast_path.network import Network, OutputGradient, output_gradient
from streamtrain.optim.sample_fast_path.steps import Steps
from streamtrain.optim.sample_fast_path.supported import chain

CHUNK: Final = 128
"""Samples between two checks."""

_SHARED_FROM: Final = 1 << 20
"""Weights of a layer from which threads share the work on one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """Losses before each step, weights and outputs of a batch, or of its samples up to a stop inside it."""

    losses: list[float]
    weights: list[float]
    output: Tensor

    def state_dict(self) -> dict[str, Any]:
        """All of it, kept until the rest of the batch is taken in."""
        return {"losses": self.losses, "weights": self.weights, "output": self.output.clone()}


class FastLoop:
    """The fast path of a supported learner; ``n_steps`` counts the last batch's steps, also after an error."""

    def __init__(self, learner: Learner) -> None:
        self.n_steps = 0
        self._learner = learner
        self._before, self._rest = chain(learner.model)
        self._net = Network(self._rest, CHUNK)
        self._steps = Steps(learner.optimizer, self._net.dense)
        is_small = all(layer.weight.numel() < _SHARED_FROM for layer in self._net.dense)
        self._n_threads = 1 if is_small else None

    def is_current(self) -> bool:
        """Whether the model still has the same modules, weights and settings."""
        before, rest = chain(self._learner.model)
        return before == self._before and rest == self._rest and self._net.is_current()

    def why_unsupported_inputs(self, x: Tensor) -> str | None:
        """Name what does not fit about a batch's inputs; None where they do."""
        # A copy: a module that changes its input in place must meet each sample once.
        x = self._prepared(x[:1].clone())
        if x.ndim != 2 or x.shape[1] != self._net.x.all.shape[1]:
            return f"the first Linear is given samples of shape {tuple(x.shape[1:])}"
        if x.dtype != self._net.x.all.dtype:
            return f"the first Linear is given {str(x.dtype).removeprefix('torch.')}"
        return None

    def learn(self, batch: TrainingBatch, max_steps: int | None, begun: SampleResult | None = None) -> SampleResult:
        """Take in a batch, a step a sample, resuming after ``begun``, the result of the batch's first samples.

        Each sample's loss is scaled by its weight; a weight of 0 measures it and takes no step.
        """
        self.n_steps = 0
        self._learner.optimizer.zero_grad(set_to_none=True)
        x, target, factors = self._prepared(batch.inputs[0]), batch.target, batch.factors
        output = x.new_empty(len(x), self._net.output.all.shape[1])
        n_begun = 0 if begun is None else len(begun.losses)
        # The chunks are those of a batch taken in at once, so that the results are the same.
        start = n_begun // CHUNK * CHUNK
        losses, weights = ([], []) if begun is None else (begun.losses[:start], begun.weights[:start])
        if begun is not None:
            output[:n_begun] = begun.output
        with _threads(self._n_threads):
            for first in range(start, len(x), CHUNK):
                left = None if max_steps is None else max_steps - self.n_steps
                if left == 0:
                    break
                some = slice(first, min(first + CHUNK, len(x)))
                taken = self._chunk(x[some], target[some], factors[some], left, output[some][: max(0, n_begun - first)])
                losses += taken.losses
                weights += taken.weights
                output[first : len(losses)] = taken.output
                if len(losses) < some.stop:
                    break
        return SampleResult(losses=losses, weights=weights, output=output[: len(losses)])

    def _prepared(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for module in self._before:
                x = module(x)
        return x

    def _chunk(
        self, x: Tensor, target: Tensor, factors: Sequence[float | None], max_steps: int | None, begun: Tensor
    ) -> SampleResult:
        """Take in a chunk, given the outputs of the samples taken in before."""
        net, n, first = self._net, len(x), len(begun)
        aim = output_gradient(self._learner.loss, net, target)
        net.x.all[:n] = x
        net.output.all[:first] = begun
        # A factor of None leaves the gradient as it is; a sample without weight has no step.
        scales = [0.0 if weighs == 0 else factor for weighs, factor in zip(aim.weights, factors, strict=True)]
        stop = _n_within(scales, max_steps, first)
        self._steps.begin()
        self._run(aim.write, scales, first, stop)
        losses, bad = self._look(aim, scales[:stop], first)
        if bad is not None:
            self._steps.undo()
            stop = bad
            self._run(aim.write, scales, first, stop)
        n_steps = sum(scale != 0 for scale in scales[first:stop])
        self._steps.end(n_steps, is_whole=stop == n)
        if stop > first:
            self._steps.leave_gradients(stop - 1, is_zero=scales[stop - 1] == 0)
        self.n_steps += n_steps
        if bad is not None:
            raise non_finite_error(losses[bad])
        weights = [weighs * (1.0 if f is None else f) for weighs, f in zip(aim.weights, factors, strict=True)]
        return SampleResult(losses=losses[:stop], weights=weights[:stop], output=net.output.all[:stop])

    def _run(self, write: Callable[[int], object], scales: Sequence[float | None], first: int, stop: int) -> None:
        try:
            with torch.inference_mode():
                self._run_samples(write, scales, first, stop)
        except BaseException:
            # The optimizer's state and the count of steps are those of the chunk's beginning; the weights must be too.
            self._steps.undo()
            raise

    def _run_samples(
        self, write: Callable[[int], object], scales: Sequence[float | None], first: int, stop: int
    ) -> None:
        forward, backward, step = self._net.forward, self._net.backward, self._steps.step
        deltas, on_step = self._net.d_output.vectors, self._learner.on_step
        for i in range(first, stop):
            scale = scales[i]
            forward(i)
            if scale == 0:
                continue
            write(i)
            if scale is not None:
                deltas[i].mul_(scale)
            backward(i)
            step(i)
            if on_step is not None:
                on_step()

    def _look(self, aim: OutputGradient, scales: Sequence[float | None], first: int) -> tuple[list[float], int | None]:
        """Read the samples' losses, and find the first bad sample from ``first`` on."""
        n = len(scales)
        losses = aim.losses(n)
        weighs = torch.tensor(aim.weights[:n]) != 0
        steps = torch.tensor([scale != 0 for scale in scales], dtype=torch.bool)
        good = (losses.isfinite() | ~weighs) & (self._net.are_finite()[:n] | ~steps)
        good[:first] = True
        return losses.tolist(), None if good.all() else int(good.int().argmin())


@contextmanager
def _threads(n_threads: int | None) -> Iterator[None]:
    """Compute in ``n_threads`` threads inside the block.

    torch's fused functions share even a vector of ten numbers among all threads, and a step then waits for each of them
    several times. Where another program has a core, that takes a hundred times as long as the step.
    """
    before = torch.get_num_threads()
    if n_threads is None or n_threads == before:
        yield
        return
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _n_within(scales: Sequence[float | None], max_steps: int | None, first: int) -> int:
    """Count the samples before the one whose step, counted from ``first`` on, would be too many."""
    if max_steps is None:
        return len(scales)
    n_steps = 0
    for i in range(first, len(scales)):
        if n_steps >= max_steps:
            return i
        n_steps += scales[i] != 0
    return len(scales)
