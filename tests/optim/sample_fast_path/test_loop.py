"""The fast path of the sample rule: the plain loop's weights, state and outputs to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_cases import (
    OPTIONS,
    assert_same,
    assert_same_seen,
    learn,
    make_data,
    make_net,
    make_rule,
    pair,
    seeded,
)
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name torch's own documentation gives it

from streamtrain.errors import DivergedError
from streamtrain.models.factory import ToVector
from streamtrain.models.losses import resolve_loss
from streamtrain.models.normalization import Normalize, NormalizedModel
from streamtrain.optim.gradients import Learner, TrainingBatch, reading_weights
from streamtrain.optim.sample_fast_path import loop
from streamtrain.optim.sample_fast_path.loop import CHUNK
from streamtrain.optim.sample_fast_path.network import ACTIVATIONS, Network
from streamtrain.optim.sample_rule import SampleRule


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_optimizers_and_their_options(options: dict[str, Any]) -> None:
    x, y = make_data(60)
    fast, plain = pair(lambda path: make_rule(make_net(), path, **options))
    assert_same_seen(learn(fast, x, y), learn(plain, x, y))
    assert_same(fast, plain)


LAYERS: dict[str, tuple[nn.Module, ...]] = {
    "linear": (nn.Linear(4, 3),),
    "no bias": (nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)),
    "deep": (nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.Sigmoid(), nn.Linear(5, 3)),
    "nested": (nn.Flatten(), nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.Flatten(), nn.ReLU()), nn.Linear(5, 3)),
    "two in a row": (ToVector(), nn.Linear(4, 5), nn.GELU(), nn.Tanh(), nn.Linear(5, 3), nn.Tanh()),
    "activation first": (nn.Tanh(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_models(layers: tuple[nn.Module, ...]) -> None:
    x, y = make_data(40)
    fast, plain = pair(lambda path: make_rule(make_net(*copy.deepcopy(layers)), path, optimizer="adam"))
    assert_same_seen(learn(fast, x, y), learn(plain, x, y))
    assert_same(fast, plain)


@pytest.mark.parametrize(
    "activation",
    [
        *(kind for kind in ACTIVATIONS if kind is not nn.LogSoftmax),
        *(lambda: nn.LeakyReLU(0.3), lambda: nn.ELU(0.5), lambda: nn.GELU(approximate="tanh")),
        *(lambda: nn.LogSoftmax(1), lambda: nn.LogSoftmax(-1)),
    ],
)
def test_activations(activation: Callable[[], nn.Module]) -> None:
    x, y = make_data(40)
    fast, plain = pair(lambda path: make_rule(make_net(nn.Linear(4, 6), activation(), nn.Linear(6, 3)), path))
    assert_same_seen(learn(fast, x, y), learn(plain, x, y))
    assert_same(fast, plain)


LOSSES: dict[str, Any] = {
    **{name: name for name in ("cross_entropy", "nll", "bce_with_logits", "mse", "l1")},
    "module": nn.CrossEntropyLoss(),
    "ignores": nn.CrossEntropyLoss(ignore_index=1),
    "function": F.mse_loss,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("with_weights", [False, True])
def test_losses_with_and_without_weights(loss: Any, with_weights: bool) -> None:
    x, y = make_data(40, resolve_loss(loss).name)
    last = (nn.LogSoftmax(1),) if loss == "nll" else ()
    weight = torch.rand(40, generator=seeded(3), dtype=torch.float64) if with_weights else None
    if weight is not None:
        weight[::5] = 0
    fast, plain = pair(lambda path: make_rule(make_net(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), *last), path, loss))
    assert_same_seen(learn(fast, x, y, weight=weight), learn(plain, x, y, weight=weight))
    assert_same(fast, plain)


@pytest.mark.parametrize("loss", ["mse", "l1", "bce_with_logits"])
@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_one_output_against_targets_of_one_axis_and_of_a_wider_dtype(loss: str, shape: tuple[int, ...]) -> None:
    x, values = make_data(40, loss, torch.float32)
    y = values[:, 0].double().reshape(shape)
    fast, plain = pair(lambda path: make_rule(make_net(nn.Linear(4, 1), dtype=torch.float32), path, loss))
    assert_same_seen(learn(fast, x, y), learn(plain, x, y), rtol=1e-4, atol=1e-6)
    assert_same(fast, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_float32_to_its_rounding(optimizer: str) -> None:
    x, y = make_data(300, dtype=torch.float32)
    fast, plain = pair(lambda path: make_rule(make_net(dtype=torch.float32), path, optimizer=optimizer, lr=0.01))
    learn(fast, x, y, 100)
    learn(plain, x, y, 100)
    assert_same(fast, plain, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 2 * CHUNK + 30),
    batch_size=st.integers(1, 2 * CHUNK + 30),
    max_steps=st.none() | st.integers(1, 2 * CHUNK + 30),
    optimizer=st.sampled_from(["sgd", "adam"]),
)
def test_any_batches_and_any_last_step(n: int, batch_size: int, max_steps: int | None, optimizer: str) -> None:
    x, y = make_data(n)
    fast, plain = pair(lambda path: make_rule(make_net(), path, optimizer=optimizer))
    for i in range(0, n, max(batch_size, n // 4)):
        if max_steps is not None and plain.n_steps >= max_steps:
            break
        some = slice(i, i + max(batch_size, n // 4))
        seen = [rule.learn(TrainingBatch(inputs=(x[some],), target=y[some]), max_steps) for rule in (fast, plain)]
        assert_same_seen(seen[:1], seen[1:])
    assert_same(fast, plain)


@pytest.mark.parametrize("max_steps", [CHUNK, 2 * CHUNK])
def test_a_last_step_at_the_end_of_a_chunk(max_steps: int) -> None:
    x, y = make_data(2 * CHUNK + 30)
    fast, plain = pair(lambda path: make_rule(make_net(), path))
    assert_same_seen(
        [fast.learn(TrainingBatch(inputs=(x,), target=y), max_steps)],
        [plain.learn(TrainingBatch(inputs=(x,), target=y), max_steps)],
    )
    assert fast.n_steps == max_steps
    assert_same(fast, plain)


def test_an_activation_in_place_before_the_first_layer_meets_each_sample_once() -> None:
    net = [nn.LeakyReLU(0.1, inplace=True), nn.Linear(4, 3)]
    x, y = make_data(5)
    fast, plain = pair(lambda path: make_rule(make_net(*copy.deepcopy(net)), path))
    fast.learn(TrainingBatch(inputs=(x.clone(),), target=y))
    plain.learn(TrainingBatch(inputs=(x.clone(),), target=y))
    assert_same(fast, plain)


def test_who_is_told_of_steps_sees_the_weights_each_came_to() -> None:
    x, y = make_data(CHUNK + 20)
    seen: dict[str, list[Tensor]] = {}

    def told(path: str) -> SampleRule:
        rule = make_rule(make_net(), path)
        weight, seen[path] = rule.learner.parameters[0], []
        on_step = reading_weights(lambda: seen[path].append(weight.detach().clone()))
        return SampleRule(replace(rule.learner, on_step=on_step), path=path)

    fast, plain = pair(told)
    weight = torch.ones(len(x), dtype=torch.float64)
    weight[5] = 0
    learn(fast, x, y, 40, weight)
    learn(plain, x, y, 40, weight)
    assert_same(fast, plain)
    assert len(seen["fast"]) == len(seen["plain"]) == len(x) - 1, "one sample weighs nothing"
    torch.testing.assert_close(torch.stack(seen["fast"]), torch.stack(seen["plain"]), rtol=1e-10, atol=1e-12)


def test_what_rescales_the_input_is_part_of_it() -> None:
    x = torch.randint(0, 255, (40, 2, 2), generator=seeded(4), dtype=torch.uint8)
    y = make_data(40)[1]

    def make(path: str) -> SampleRule:
        front = NormalizedModel(make_net(ToVector(), nn.Linear(4, 3), dtype=torch.float32), ("x",))
        front.put({"x": Normalize(torch.tensor(100.0), torch.tensor(50.0))}, torch.device("cpu"))
        return make_rule(front, path)

    fast, plain = pair(make)
    assert_same_seen(learn(fast, x, y), learn(plain, x, y), rtol=1e-4, atol=1e-6)
    assert_same(fast, plain, rtol=1e-4, atol=1e-6)


def test_the_optimizer_s_own_options_and_schedulers_are_heeded_between_batches() -> None:
    x, _ = make_data(64)

    def trained(path: str) -> SampleRule:
        net = make_net()
        rates = [{"params": [net[0].weight]}, {"params": [net[0].bias, *net[2].parameters()], "lr": 0.01}]
        rule = SampleRule(
            Learner(model=net, loss=resolve_loss("mse"), optimizer=torch.optim.SGD(rates, lr=0.1)), path=path
        )
        scheduler = torch.optim.lr_scheduler.ExponentialLR(rule.learner.optimizer, 0.5)
        for i in range(0, 64, 16):
            rule.learn(TrainingBatch(inputs=(x[i : i + 16],), target=torch.sin(x[i : i + 16, :3])))
            scheduler.step()
        rule.learner.optimizer.param_groups[0]["momentum"] = 0.9
        rule.learn(TrainingBatch(inputs=(x[:16],), target=torch.sin(x[:16, :3])))
        return rule

    assert_same(*pair(trained))


def test_a_finished_optimizer_goes_on_from_its_state_on_either_path() -> None:
    x, y = make_data(48)
    for optimizer in ("adam", "sgd"):
        options = {"momentum": 0.9} if optimizer == "sgd" else {}
        mixed, plain = pair(lambda path, o=optimizer, k=options: make_rule(make_net(), path, optimizer=o, **k))
        learn(plain, x, y)
        learn(mixed, x[:16], y[:16])
        SampleRule(mixed.learner, path="plain").learn(TrainingBatch(inputs=(x[16:32],), target=y[16:32]))
        learn(mixed, x[32:], y[32:])
        mixed.n_steps = 48
        assert_same(mixed, plain)


def test_moments_of_a_unit_that_is_off_become_zero_not_subnormal() -> None:
    net = make_net(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), dtype=torch.float32)
    rule = make_rule(net, "fast", optimizer="adam", lr=1e-3)
    x, y = make_data(16 * CHUNK, dtype=torch.float32)
    learn(rule, x[:CHUNK], y[:CHUNK], CHUNK)
    with torch.no_grad():
        net[0].bias[0] = -1000.0
    learn(rule, x[CHUNK:], y[CHUNK:], CHUNK)
    mean = rule.learner.optimizer.state[net[0].weight]["exp_avg"]
    assert torch.equal(mean[0], torch.zeros(4))
    assert not mean[1:].eq(0).any()


def test_outputs_belong_to_the_caller() -> None:
    x, y = make_data(10)
    rule = make_rule(make_net(), "fast")
    first = rule.learn(TrainingBatch(inputs=(x,), target=y))
    kept = first.output.clone()
    rule.learn(TrainingBatch(inputs=(x,), target=y))
    assert torch.equal(first.output, kept)
    (first.output * torch.ones(3, dtype=torch.float64, requires_grad=True)).sum().backward()  # no inference tensor


def test_small_layers_are_computed_in_one_thread_and_the_setting_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)  # which the fixture puts back
    seen: list[int] = []
    forward = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, i: (seen.append(torch.get_num_threads()), forward(self, i)))
    x, y = make_data(3)
    learn(make_rule(make_net(), "fast"), x, y)
    assert (seen, torch.get_num_threads()) == ([1, 1, 1], 2)
    seen.clear()
    monkeypatch.setattr(loop, "_SHARED_FROM", 20)
    learn(make_rule(make_net(), "fast"), x, y)
    assert seen == [2, 2, 2]
    monkeypatch.setattr(loop, "_SHARED_FROM", 1000)
    x[1, 1] = torch.nan
    with pytest.raises(DivergedError):
        learn(make_rule(make_net(), "fast"), x, y)
    assert torch.get_num_threads() == 2
