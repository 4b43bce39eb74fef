"""The update rules: exact means, the plain loop, and a stop at the last step."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from streamtrain.errors import DivergedError, UnknownName
from streamtrain.models.losses import LOSS_DEFINITIONS, resolve_loss
from streamtrain.optim.build_rule import RULES, check_rule
from streamtrain.optim.gradient_sum import GradientSum
from streamtrain.optim.gradients import BatchResult, Learner, TrainingBatch
from streamtrain.optim.optimizers import build_optimizer
from streamtrain.optim.sample_rule import SampleRule

pytestmark = pytest.mark.usefixtures("one_thread")


def make_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def make_data(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 4, generator=generator, dtype=dtype), torch.randint(0, 3, (n,), generator=generator)


def make_learner(net: nn.Module, loss: str = "cross_entropy", optimizer: str = "sgd", **options: Any) -> Learner:
    made = build_optimizer(optimizer, net.parameters(), lr=0.1, **options)
    return Learner(model=net, loss=resolve_loss(loss), optimizer=made)


def grads(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@given(n=st.integers(1, 60), batch_size=st.integers(1, 64), loss=st.sampled_from(tuple(LOSS_DEFINITIONS)))
def test_epoch_gradient_is_that_of_the_whole_dataset(n: int, batch_size: int, loss: str) -> None:
    x, labels = make_data(n)
    y = labels if resolve_loss(loss).kind == "classes" else torch.rand(n, 3, dtype=torch.float64)
    whole, streamed = make_net(), make_net()
    resolve_loss(loss)(whole(x), y).backward()  # type: ignore[no-untyped-call]
    rule = RULES["epoch"](make_learner(streamed, loss))
    for start in range(0, n, batch_size):
        rule.learn(TrainingBatch(inputs=(x[start : start + batch_size],), target=y[start : start + batch_size]))
    assert rule.n_steps == 0
    rule.end_epoch()
    assert rule.n_steps == 1
    assert float((grads(streamed) - grads(whole)).norm() / grads(whole).norm()) <= 1e-12


def test_epoch_sums_float32_gradients_in_float64() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    total = GradientSum()
    for value in [1e8, *[1.0] * 100, -1e8]:
        parameter.grad = torch.tensor([value])
        total.add([parameter], 1)
    total.put([parameter], total.weight)
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(100 / 102)
    assert parameter.grad.dtype == torch.float32


def test_a_parameter_without_gradient_stays_without() -> None:
    used, unused = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    total = GradientSum()
    used.grad = torch.ones(1)
    total.add([used, unused], 2)
    total.put([used, unused], total.weight)
    assert unused.grad is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_rule_is_bit_for_bit_the_plain_loop(optimizer: str, dtype: torch.dtype) -> None:
    x, y = make_data(21, dtype)
    plain, ruled = make_net(dtype), make_net(dtype)
    steps = build_optimizer(optimizer, plain.parameters(), lr=0.1)
    for i in range(len(x)):
        steps.zero_grad()
        nn.functional.cross_entropy(plain(x[i : i + 1]), y[i : i + 1]).backward()  # type: ignore[no-untyped-call]
        steps.step()
    rule = RULES["sample"](make_learner(ruled, optimizer=optimizer))
    for start in range(0, len(x), 8):
        rule.learn(TrainingBatch(inputs=(x[start : start + 8],), target=y[start : start + 8]))
    assert rule.n_steps == 21
    assert torch.equal(weights(plain), weights(ruled))


def test_batch_rule_steps_on_the_mean_of_each_batch_short_or_not() -> None:
    x, y = make_data(10)
    plain, ruled = make_net(), make_net()
    steps = build_optimizer("sgd", plain.parameters(), lr=0.1)
    rule = RULES["batch"](make_learner(ruled))
    for start in (0, 4, 8):
        steps.zero_grad()
        mean = nn.functional.cross_entropy(plain(x[start : start + 4]), y[start : start + 4])
        mean.backward()  # type: ignore[no-untyped-call]
        steps.step()
        learned = rule.learn(TrainingBatch(inputs=(x[start : start + 4],), target=y[start : start + 4]))
        assert learned.n_samples == len(x[start : start + 4])
    assert torch.equal(weights(plain), weights(ruled))
    assert rule.n_steps == 3


def test_sample_rule_stops_inside_a_batch() -> None:
    x, y = make_data(8)
    rule = RULES["sample"](make_learner(make_net()))
    assert rule.learn(TrainingBatch(inputs=(x,), target=y), max_steps=5).n_samples == 5
    assert rule.n_steps == 5


@pytest.mark.parametrize("name", RULES)
def test_a_loss_that_is_not_finite_stops_before_the_step(name: str) -> None:
    x, y = make_data(4)
    x[2, 1] = torch.nan
    net = make_net()
    rule = RULES[name](make_learner(net))
    with pytest.raises(DivergedError, match="the loss is nan") as caught:
        rule.learn(TrainingBatch(inputs=(x,), target=y))
    assert caught.value.exit_code == 8
    assert torch.isfinite(weights(net)).all()
    assert rule.n_steps == (2 if name == "sample" else 0)


def test_an_unknown_rule_says_which_was_meant() -> None:
    with pytest.raises(UnknownName, match="did you mean 'sample'") as caught:
        check_rule("sampel")
    assert caught.value.exit_code == 2


def test_the_sample_rule_keeps_no_sample_s_output_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small memory that stays, where a gradient's large memory was, makes the allocator's heap grow by every sample.
    seen: list[weakref.ref[Tensor]] = []
    n_alive: list[int] = []
    learn_one = SampleRule._learn_one

    def watched(self: SampleRule, *arguments: Any) -> BatchResult:
        n_alive.append(sum(ref() is not None for ref in seen))
        found = learn_one(self, *arguments)
        seen.append(weakref.ref(found.output))
        return found

    monkeypatch.setattr(SampleRule, "_learn_one", watched)
    x, y = make_data(20)
    learned = SampleRule(make_learner(make_net())).learn(TrainingBatch(inputs=(x,), target=y))
    assert learned.output.shape == (20, 3)
    assert max(n_alive) == 0
