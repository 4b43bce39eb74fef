"""Conjugate gradients: the linear method on a quadratic, and a minimum elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamtrain.optim.conjugate_gradient import ConjugateGradient


def vector(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(torch.float64))


def closure_of(parameters: list[nn.Parameter], function: Callable[[], Tensor]) -> tuple[Callable[[], float], list[int]]:
    n_calls = [0]

    def closure() -> float:
        n_calls[0] += 1
        for parameter in parameters:
            parameter.grad = None
        value = function()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    return closure, n_calls


@settings(max_examples=20)
@given(n=st.integers(1, 8), seed=st.integers(0, 100))
def test_a_quadratic_of_n_weights_takes_about_n_steps(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(n, dtype=torch.float64), torch.randn(n, generator=generator).double()
    w = vector(torch.zeros(n))
    closure, n_calls = closure_of([w], lambda: 0.5 * w @ matrix @ w - b @ w + 10)
    cg = ConjugateGradient([w])
    steps = 0
    while closure() and w.grad is not None and float(w.grad.norm()) > 1e-7:
        cg.step(closure)
        steps += 1
    assert float((w.detach() - torch.linalg.solve(matrix, b)).norm()) <= 1e-7
    assert steps <= 3 * n + 3
    assert n_calls[0] <= 5 * (steps + 1)


def test_rosenbrock_s_valley() -> None:
    w = vector(torch.full((10,), -1.0))
    closure, n_calls = closure_of([w], lambda: (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum())
    cg = ConjugateGradient([w])
    values = [cg.step(closure) for _ in range(150)]
    assert values == sorted(values, reverse=True), "no step goes up"
    assert float((w.detach() - 1).abs().max()) < 1e-6
    assert n_calls[0] < 4 * 150


def test_several_parameters_and_one_without_gradient() -> None:
    a, b, unused = vector(torch.ones(2, 3)), vector(torch.ones(())), vector(torch.ones(1))
    closure, _ = closure_of([a, b, unused], lambda: ((a - 2) ** 2).sum() + 30 * (b + a.sum()) ** 2)
    cg = ConjugateGradient([a, b, unused])
    for _ in range(30):
        cg.step(closure)
    assert closure() < 1e-12
    assert unused.item() == 1.0


def test_at_the_minimum_nothing_moves() -> None:
    w = vector(torch.zeros(3))
    closure, n_calls = closure_of([w], lambda: (w * w).sum())
    assert ConjugateGradient([w]).step(closure) == 0.0
    assert n_calls[0] == 1
    assert not w.detach().any()


def test_without_a_lower_step_the_weights_stay() -> None:
    w = vector(torch.ones(2))

    def uphill() -> float:
        w.grad = torch.ones(2, dtype=torch.float64)
        return float(-w.detach().sum())

    ConjugateGradient([w]).step(uphill)
    assert torch.equal(w.detach(), torch.ones(2, dtype=torch.float64))


def test_it_goes_on_from_its_state() -> None:
    def make() -> tuple[nn.Parameter, ConjugateGradient, Callable[[], float]]:
        w = vector(torch.tensor([-1.2, 1.0]))
        closure, _ = closure_of([w], lambda: 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2)
        return w, ConjugateGradient([w]), closure

    w, cg, closure = make()
    for _ in range(5):
        cg.step(closure)
    again, other, closure_again = make()
    other.load_state_dict(copy.deepcopy(cg.state_dict()))
    with torch.no_grad():
        again.copy_(w)
    for _ in range(5):
        cg.step(closure)
        other.step(closure_again)
    assert torch.equal(w, again)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate: 0"):
        ConjugateGradient([vector(torch.ones(1))], lr=0)
    with pytest.raises(ValueError, match="one parameter group"):
        ConjugateGradient([{"params": [vector(torch.ones(1))]}, {"params": [vector(torch.ones(1))]}])  # type: ignore[list-item]
