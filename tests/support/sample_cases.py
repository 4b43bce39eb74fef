"""Small nets and data for the sample rule, and its two paths held against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamtrain.models.losses import resolve_loss
from streamtrain.optim.gradients import Learner, TrainingBatch
from streamtrain.optim.optimizers import build_optimizer
from streamtrain.optim.sample_rule import SampleRule


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_net(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    net = nn.Sequential(*(layers or (nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))).to(dtype)
    generator = seeded()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.5)
    return net


def make_data(n: int, loss: str = "cross_entropy", dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = seeded(2)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    labels = torch.randint(0, 3, (n,), generator=generator)
    if loss in ("cross_entropy", "nll"):
        return x, labels
    values = torch.randn(n, 3, generator=generator, dtype=dtype)
    return x, (values > 0).to(dtype) if loss == "bce_with_logits" else values


def make_rule(
    net: nn.Module, path: str, loss: Any = "cross_entropy", optimizer: Any = "sgd", **options: Any
) -> SampleRule:
    made = build_optimizer(optimizer, net.parameters(), **{"lr": 0.05, **options})
    return SampleRule(Learner(model=net, loss=resolve_loss(loss), optimizer=made), path=path)


def learn(rule: SampleRule, x: Tensor, y: Tensor, batch_size: int = 8, weight: Tensor | None = None) -> list[Any]:
    cuts = range(0, len(x), batch_size)
    return [
        rule.learn(
            TrainingBatch(
                inputs=(x[i : i + batch_size],),
                target=y[i : i + batch_size],
                weight=None if weight is None else weight[i : i + batch_size],
            )
        )
        for i in cuts
    ]


def tensors(rule: SampleRule) -> dict[str, Tensor]:
    """The weights, and the optimizer's state by parameter and name."""
    named = dict(rule.learner.model.state_dict())
    for i, state in rule.learner.optimizer.state_dict()["state"].items():
        named |= {f"{i}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    return named


def assert_same(fast: SampleRule, plain: SampleRule, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    assert (fast.choice.path, plain.choice.path) == ("fast", "plain")
    assert fast.n_steps == plain.n_steps
    have, want = tensors(fast), tensors(plain)
    assert have.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(
            have[name], want[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


def assert_same_seen(fast: list[Any], plain: list[Any], rtol: float = 1e-10, atol: float = 1e-12) -> None:
    for one, other in zip(fast, plain, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=rtol)
        assert (one.weight, one.n_samples) == (pytest.approx(other.weight), other.n_samples)
        torch.testing.assert_close(one.output, other.output, rtol=rtol, atol=atol)
        assert torch.equal(one.target, other.target)


def pair(make: Callable[[str], SampleRule]) -> tuple[SampleRule, SampleRule]:
    return make("fast"), make("plain")


OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "damped": {"optimizer": "sgd", "momentum": 0.9, "dampening": 0.5},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "sgd decay": {"optimizer": "sgd", "weight_decay": 0.1},
    "sgd up": {"optimizer": "sgd", "maximize": True, "lr": 0.001},
    "adam": {"optimizer": "adam"},
    "adam betas": {"optimizer": "adam", "betas": (0.5, 0.9), "eps": 1e-4},
    "adam decay": {"optimizer": "adam", "weight_decay": 0.1},
    "adam up": {"optimizer": "adam", "maximize": True, "lr": 0.001},
    "amsgrad": {"optimizer": "adam", "amsgrad": True},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "adamw amsgrad": {"optimizer": "adamw", "amsgrad": True},
}
