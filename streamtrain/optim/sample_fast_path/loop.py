"""The loop of the fast path: sample steps without autograd, in chunks.

A chunk runs without a check: no number is read until its last sample. Then losses and gradients are checked all at
once, and where one is not finite the chunk is undone and run again up to the sample before it. So the plain loop's
guarantee holds: no step is taken on a loss that is not finite, and the weights are the last good ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from streamtrain.optim.gradients import Learner, non_finite_error
from streamtrain.optim.sample_fast_path.network import Network, OutputGradient, output_gradient
from streamtrain.optim.sample_fast_path.steps import Steps
from streamtrain.optim.sample_fast_path.supported import chain

CHUNK: Final = 128
"""Samples between two looks."""

_SHARED_FROM: Final = 1 << 20
"""Weights of a layer from which on threads share the work on one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastBatchResult:
    """What came of a batch.

    Parameters
    ----------
    losses, weights : list of float
        Of each sample, just before its step: its loss, and its weight in the batch's mean.
    output : torch.Tensor
        Of shape (n_samples, width).
    n_steps : int
        Steps taken; a sample that weighs nothing has none.
    bad : int or None
        The sample whose loss or gradient is not finite; no step was taken on it, and it is in none of the above.
    bad_loss : float
        Its loss.
    """

    losses: list[float]
    weights: list[float]
    output: Tensor
    n_steps: int
    bad: int | None = None
    bad_loss: float = 0.0

    def check(self) -> None:
        """Refuse a sample that is bad.

        Raises
        ------
        DivergedError
            There is one.
        """
        if self.bad is not None:
            raise non_finite_error(self.bad_loss)


class FastLoop:
    """The fast path over a learner that `why_unsupported` has nothing against.

    Parameters
    ----------
    learner : Learner
        What it trains.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._before, self._rest = chain(learner.model)
        self._net = Network(self._rest, CHUNK)
        self._steps = Steps(learner.optimizer, self._net.dense)
        is_small = all(layer.weight.numel() < _SHARED_FROM for layer in self._net.dense)
        self._n_threads = 1 if is_small else None

    def is_current(self) -> bool:
        """Whether the model is made of the same modules, and its weights lie where they lay."""
        before, rest = chain(self._learner.model)
        return before == self._before and rest == self._rest and self._net.is_current()

    def why_unsupported_inputs(self, x: Tensor) -> str | None:
        """Say what of a batch's inputs does not fit; None where they do."""
        # A copy: what changes its input in place is to meet each sample once.
        x = self._prepared(x[:1].clone())
        if x.ndim != 2 or x.shape[1] != self._net.x.all.shape[1]:
            return f"the first Linear is given samples of shape {tuple(x.shape[1:])}"
        if x.dtype != self._net.x.all.dtype:
            return f"the first Linear is given {str(x.dtype).removeprefix('torch.')}"
        return None

    def learn(
        self, x: Tensor, target: Tensor, factors: Sequence[float | None], max_steps: int | None
    ) -> FastBatchResult:
        """Take in a batch, a step a sample.

        Parameters
        ----------
        x, target : torch.Tensor
            Of shapes (B, ...).
        factors : sequence of float or None
            For each sample what its loss is scaled by; a factor of 0 measures it and takes no step.
        max_steps : int, optional
            How many steps may be taken.

        Raises
        ------
        UsageError
            The target does not fit the output.
        """
        self._learner.optimizer.zero_grad(set_to_none=True)
        x = self._prepared(x)
        output = x.new_empty(len(x), self._net.output.all.shape[1])
        chunks: list[FastBatchResult] = []
        with _threads(self._n_threads):
            for first in range(0, len(x), CHUNK):
                left = None if max_steps is None else max_steps - sum(taken.n_steps for taken in chunks)
                if left == 0:
                    break
                some = slice(first, min(first + CHUNK, len(x)))
                taken = self._chunk(x[some], target[some], factors[some], left)
                output[first : first + len(taken.losses)] = taken.output
                chunks.append(taken)
                if len(taken.losses) < some.stop - some.start:
                    break
        return _joined(chunks, output)

    def _prepared(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for module in self._before:
                x = module(x)
        return x

    def _chunk(
        self, x: Tensor, target: Tensor, factors: Sequence[float | None], max_steps: int | None
    ) -> FastBatchResult:
        net, n = self._net, len(x)
        aim = output_gradient(self._learner.loss, net, target)
        net.x.all[:n] = x
        # A factor of None takes the gradient as it is, and what weighs nothing has no step.
        scales = [0.0 if weighs == 0 else factor for weighs, factor in zip(aim.weights, factors, strict=True)]
        scales = scales[: _n_within(scales, max_steps)]
        self._steps.begin()
        with torch.inference_mode():
            self._run(aim.write, scales)
        losses, bad = self._look(aim, scales)
        if bad is not None:
            self._steps.undo()
            scales = scales[:bad]
            with torch.inference_mode():
                self._run(aim.write, scales)
        n_steps = sum(scale != 0 for scale in scales)
        self._steps.end(n_steps)
        weights = [weighs * (1.0 if f is None else f) for weighs, f in zip(aim.weights, factors, strict=True)]
        return FastBatchResult(
            losses=losses[: len(scales)],
            weights=weights[: len(scales)],
            output=net.output.all[: len(scales)],
            n_steps=n_steps,
            bad=bad,
            bad_loss=0.0 if bad is None else losses[bad],
        )

    def _run(self, write: Callable[[int], object], scales: Sequence[float | None]) -> None:
        forward, backward, step = self._net.forward, self._net.backward, self._steps.step
        deltas, on_step = self._net.d_output.vectors, self._learner.on_step
        for i, scale in enumerate(scales):
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

    def _look(self, aim: OutputGradient, scales: Sequence[float | None]) -> tuple[list[float], int | None]:
        """The samples' losses, and the first of them that is bad."""
        n = len(scales)
        losses = aim.losses(n)
        weighs = torch.tensor(aim.weights[:n]) != 0
        steps = torch.tensor([scale != 0 for scale in scales], dtype=torch.bool)
        good = (losses.isfinite() | ~weighs) & (self._net.are_finite()[:n] | ~steps)
        return losses.tolist(), None if good.all() else int(good.int().argmin())


@contextmanager
def _threads(n_threads: int | None) -> Iterator[None]:
    """Compute in so many threads inside the block.

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


def _n_within(scales: Sequence[float | None], max_steps: int | None) -> int:
    """How many samples come before the one whose step would be too many."""
    if max_steps is None:
        return len(scales)
    n_steps = 0
    for i, scale in enumerate(scales):
        if n_steps >= max_steps:
            return i
        n_steps += scale != 0
    return len(scales)


def _joined(chunks: Sequence[FastBatchResult], output: Tensor) -> FastBatchResult:
    losses = [loss for taken in chunks for loss in taken.losses]
    bad = chunks[-1].bad
    return FastBatchResult(
        losses=losses,
        weights=[weight for taken in chunks for weight in taken.weights],
        output=output[: len(losses)],
        n_steps=sum(taken.n_steps for taken in chunks),
        bad=None if bad is None else len(losses),
        bad_loss=chunks[-1].bad_loss,
    )
