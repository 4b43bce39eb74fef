"""The penalty inside J: on weights, not biases, and the same under every rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from streamtrain.errors import UsageError
from streamtrain.models.losses import resolve_loss
from streamtrain.optim.build_rule import make_rule
from streamtrain.optim.gradients import Learner, TrainingBatch, add_penalty, check_l2, penalized, penalty
from streamtrain.optim.step_options import StepOptions

L2 = 0.3


def make_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(10, 4, generator=generator).double(), torch.randint(0, 3, (10,), generator=generator)


def penalized_loss(net: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squares = net[0].weight.square().sum() + net[3].weight.square().sum()
    return nn.functional.cross_entropy(net(x), y) + L2 / 2 * squares


def test_weights_have_a_penalty_and_biases_and_scales_have_none() -> None:
    net = make_net()
    assert [tuple(parameter.shape) for parameter in penalized(net.parameters())] == [(5, 4), (3, 5)]
    assert penalty(net.parameters(), 0.0) == 0.0
    x, y = data()
    expected = penalized_loss(net, x, y) - nn.functional.cross_entropy(net(x), y)
    assert penalty(net.parameters(), L2) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
@pytest.mark.parametrize("update", ["batch", "sample", "epoch"])
def test_every_step_has_it_once(update: str, options: dict[str, int]) -> None:
    if options and update != "batch":
        return
    x, y = data()
    plain, ruled = make_net(), make_net()
    steps = torch.optim.SGD(plain.parameters(), lr=0.1)
    n = {"batch": 4 * options.get("accumulate_grad_batches", 1), "sample": 1, "epoch": 10}[update]
    for start in range(0, 10, n):
        steps.zero_grad()
        penalized_loss(plain, x[start : start + n], y[start : start + n]).backward()  # type: ignore[no-untyped-call]
        steps.step()
    optimizer = torch.optim.SGD(ruled.parameters(), lr=0.1)
    learner = Learner(model=ruled, loss=resolve_loss("cross_entropy"), optimizer=optimizer, l2=L2)
    rule = make_rule(update, learner, StepOptions(**options))
    for start in range(0, 10, 4):
        rule.learn(TrainingBatch(inputs=(x[start : start + 4],), target=y[start : start + 4]))
    rule.end_epoch()
    for ours, theirs in zip(ruled.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-15)


def test_a_sparse_gradient_and_none_at_all() -> None:
    table, unused = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(1, 2))
    table(torch.tensor([1])).sum().backward()
    add_penalty([table.weight, unused], 2.0)
    expected = 2 * table.weight.detach()
    expected[1] += 1
    assert table.weight.grad is not None
    assert torch.allclose(table.weight.grad, expected)
    assert torch.equal(unused.grad, torch.full((1, 2), 2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("l2", [-0.1, float("nan"), float("inf"), True, "1"])
def test_what_is_no_factor_is_refused(l2: Any) -> None:
    with pytest.raises(UsageError, match=r"l2 is .*; it must be 0 or positive, and finite"):
        check_l2(l2)
