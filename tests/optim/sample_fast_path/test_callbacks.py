"""Callbacks and hooks on the fast path: all that they read or change has the effect that it has on the plain path.

A callback after every step is for the plain path alone, so nothing differs by a bit. What is changed between two
batches is seen by the fast path, to rounding, or ends it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from sample_cases import learn, make_data, make_net, make_rule, tensors
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from streamtrain.errors import CheckpointError, UsageError
from streamtrain.optim.gradients import reading_weights
from streamtrain.optim.sample_fast_path.loop import CHUNK
from streamtrain.optim.sample_rule import SampleRule


class Raised(Exception):
    """What a callback raises."""


def first(rule: SampleRule) -> Any:
    return rule.learner.model[0]  # type: ignore[index]


def group(rule: SampleRule) -> dict[str, Any]:
    return rule.learner.optimizer.param_groups[0]


def change_rate(rule: SampleRule) -> None:
    group(rule)["lr"] *= 0.5


def change_momentum(rule: SampleRule) -> None:
    group(rule).update({"betas": (0.5, 0.9)} if "betas" in group(rule) else {"momentum": 0.5})


def change_weights_in_place(rule: SampleRule) -> None:
    with torch.no_grad():
        first(rule).weight.mul_(0.9)


def change_data(rule: SampleRule) -> None:
    first(rule).weight.data = first(rule).weight.data * 0.9


def change_data_in_place(rule: SampleRule) -> None:
    first(rule).weight.data.add_(0.01)


def load_weights(rule: SampleRule) -> None:
    kept = {name: value * 1.01 for name, value in rule.learner.model.state_dict().items()}
    rule.learner.model.load_state_dict(kept)


def freeze(rule: SampleRule) -> None:
    rule.learner.model[2].bias.requires_grad_(False)  # type: ignore[index,union-attr]


def replace_parameter(rule: SampleRule) -> None:
    first(rule).weight = nn.Parameter(first(rule).weight.detach() * 0.9)


def replace_parameter_in_place(rule: SampleRule) -> None:
    """Another parameter, of the same memory, known to the optimizer."""
    weight = nn.Parameter(first(rule).weight.data)
    params = group(rule)["params"]
    params[:] = [weight if p is first(rule).weight else p for p in params]
    rule.learner.optimizer.state.pop(first(rule).weight, None)
    first(rule).weight = weight


def drop_bias(rule: SampleRule) -> None:
    bias = first(rule).bias
    rule.learner.optimizer.state.pop(bias, None)
    group(rule)["params"][:] = [p for p in group(rule)["params"] if p is not bias]
    first(rule).bias = None


def hook_module(rule: SampleRule) -> None:
    first(rule).register_forward_hook(lambda module, inputs, output: output * 0.5)


def hook_gradient(rule: SampleRule) -> None:
    if first(rule).weight.requires_grad:
        first(rule).weight.register_hook(lambda gradient: gradient * 0.5)


def hook_optimizer(rule: SampleRule) -> None:
    rule.learner.optimizer.register_step_post_hook(lambda *_: change_weights_in_place(rule))


def replace_step(rule: SampleRule) -> None:
    step = rule.learner.optimizer.step

    @functools.wraps(step)
    def stepped(*arguments: Any) -> Any:
        group(rule)["lr"] *= 0.99
        return step(*arguments)

    rule.learner.optimizer.step = stepped  # type: ignore[method-assign]


def make_scheduler(rule: SampleRule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LambdaLR(rule.learner.optimizer, lambda step: 0.5)


def change_activation(rule: SampleRule) -> None:
    rule.learner.model[1].negative_slope = 0.7  # type: ignore[index,union-attr]


def replace_activation(rule: SampleRule) -> None:
    rule.learner.model[1] = nn.LeakyReLU(0.5)  # type: ignore[index,operator]


def change_state(rule: SampleRule) -> None:
    for state in rule.learner.optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.ndim:
                value.mul_(0.5)


def clear_state(rule: SampleRule) -> None:
    rule.learner.optimizer.state.clear()


def clip(rule: SampleRule) -> None:
    nn.utils.clip_grad_norm_(rule.learner.parameters, 0.1)


def zero_gradients(rule: SampleRule) -> None:
    rule.learner.optimizer.zero_grad(set_to_none=False)


def drop_gradients(rule: SampleRule) -> None:
    for parameter in rule.learner.parameters:
        parameter.grad = None


def take_own_gradient(rule: SampleRule) -> None:
    """A forward and a backward pass of the callback's own."""
    rule.learner.model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()


def fail(rule: SampleRule) -> None:
    raise Raised


ACTIONS: tuple[Callable[[SampleRule], None], ...] = (
    *(change_rate, change_momentum, change_weights_in_place, change_data, change_data_in_place, load_weights, freeze),
    *(replace_parameter, replace_parameter_in_place, drop_bias, hook_module, hook_gradient, hook_optimizer),
    *(replace_step, make_scheduler, change_activation, replace_activation, change_state, clear_state, clip),
    *(zero_gradients, drop_gradients, take_own_gradient),
)
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "adam"},
    {"optimizer": "adamw", "amsgrad": True},
)
some_options = some.sampled_from(OPTIMIZERS)


def make(path: str, options: dict[str, Any]) -> SampleRule:
    return make_rule(make_net(nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3)), path, **options)


def seen_by(rule: SampleRule) -> dict[str, Any]:
    """What anyone can look at: rates, steps, weights, the optimizer's state and gradients."""
    gradients = {name: parameter.grad for name, parameter in rule.learner.model.named_parameters()}
    found = {"steps": rule.n_steps, "lr": group(rule)["lr"]}
    found |= {name: value.clone() for name, value in tensors(rule).items()}
    return found | {f"{name}.grad": None if value is None else value.clone() for name, value in gradients.items()}


def assert_alike(ours: dict[str, Any], theirs: dict[str, Any], *, rtol: float, atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours[name], value, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert ours[name] == value, name


@settings(max_examples=40, deadline=None)
@given(options=some_options, acts=some.dictionaries(some.integers(1, 40), some.sampled_from((*ACTIONS, fail))))
def test_a_callback_after_every_step_has_the_effect_that_it_has_on_the_plain_path(
    options: dict[str, Any], acts: dict[int, Callable[[SampleRule], None]]
) -> None:
    def trained(path: str) -> tuple[SampleRule, list[dict[str, Any]], str]:
        rule, seen = make(path, options), []

        def on_step() -> None:
            seen.append(seen_by(rule))
            if rule.n_steps in acts:
                acts[rule.n_steps](rule)

        rule.learner = replace(rule.learner, on_step=on_step)
        rule.choice._learner = rule.learner
        ended = "whole"
        x, y = make_data(60)
        try:
            learn(rule, x, y, 25)
        except Exception as error:
            ended = type(error).__name__
        return rule, seen, ended

    (ours, seen, ended), (plain, expected, expectedly) = trained("auto"), trained("plain")
    assert ended == expectedly
    assert len(seen) == len(expected)
    for one, other in zip(seen, expected, strict=True):
        assert_alike(one, other, rtol=0, atol=0)
    assert_alike(seen_by(ours), seen_by(plain), rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(options=some_options, acts=some.lists(some.none() | some.sampled_from(ACTIONS), min_size=4, max_size=4))
def test_what_is_changed_between_two_batches_is_seen_by_the_fast_path_or_ends_it(
    options: dict[str, Any], acts: list[Callable[[SampleRule], None] | None]
) -> None:
    x, y = make_data(100)

    def trained(path: str) -> Iterator[dict[str, Any]]:
        rule = make(path, options)
        for i, act in enumerate(acts):
            learn(rule, x[25 * i : 25 * i + 25], y[25 * i : 25 * i + 25], 25)
            yield seen_by(rule)
            if act is not None:
                act(rule)
                yield seen_by(rule)

    for ours, plain in zip(trained("auto"), trained("plain"), strict=True):
        assert_alike(ours, plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("act", ACTIONS)
@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda options: " ".join(map(str, options.values())))
def test_each_of_them_between_two_batches(act: Callable[[SampleRule], None], options: dict[str, Any]) -> None:
    x, y = make_data(60)
    rules = [make(path, options) for path in ("auto", "plain")]
    for rule in rules:
        learn(rule, x[:30], y[:30], 30)
        act(rule)
        learn(rule, x[30:], y[30:], 30)
    assert_alike(*map(seen_by, rules), rtol=1e-8, atol=1e-10)


@contextmanager
def hooks_on_every_optimizer(rule: SampleRule) -> Iterator[None]:
    handle = register_optimizer_step_post_hook(lambda *_: change_weights_in_place(rule))
    try:
        yield
    finally:
        handle.remove()


class Counting(TorchDispatchMode):
    """Counts what torch is asked for."""

    n = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.n += 1
        return function(*arguments, **(options or {}))


def test_what_is_on_all_around_is_for_the_plain_path() -> None:
    x, y = make_data(20)
    rules = [make(path, {"optimizer": "sgd"}) for path in ("auto", "plain")]
    for rule in rules:
        with hooks_on_every_optimizer(rule):
            learn(rule, x, y)
    assert rules[0].choice.why == "there are hooks on every optimizer"
    assert_alike(*map(seen_by, rules), rtol=0, atol=0)
    counts = []
    for path in ("auto", "plain"):
        with Counting() as counting:
            learn(make(path, {"optimizer": "sgd"}), x, y)
        counts.append(counting.n)
    assert counts[0] == counts[1]


def test_a_loss_with_a_hook_is_for_the_plain_path() -> None:
    x, y = make_data(20)
    seen: dict[str, int] = {"auto": 0, "plain": 0}
    for path in seen:
        loss = nn.CrossEntropyLoss()
        loss.register_forward_hook(lambda *_, path=path: seen.update({path: seen[path] + 1}))
        learn(make_rule(make_net(), path, loss), x, y)
    assert seen["auto"] == seen["plain"] > 0


def test_a_marked_callback_leaves_the_fast_path_and_any_other_is_told_of() -> None:
    x, y = make_data(10)
    seen: list[int] = []

    class Watcher:
        @reading_weights
        def stepped(self) -> None:
            seen.append(1)

    for on_step, path in ((Watcher().stepped, "fast"), (lambda: seen.append(1), "plain")):
        base = make("auto", {"optimizer": "adam"})
        rule = SampleRule(replace(base.learner, on_step=on_step), path="auto")
        assert rule.choice.path == path
        learn(rule, x, y)
        assert rule.choice.path == path
    assert len(seen) == 20
    asked = SampleRule(replace(base.learner, on_step=lambda: None), path="fast")
    with pytest.raises(UsageError, match="sample_path is 'fast', and on_step is called after every step"):
        learn(asked, x, y)


def test_a_run_that_an_earlier_version_took_along_the_fast_path_with_a_callback_goes_on() -> None:
    base = make("fast", {"optimizer": "adam"})
    learn(base, *make_data(3))
    with_callback = replace(base.learner, on_step=lambda: None)
    rule = SampleRule(with_callback, path="auto")
    with pytest.warns(UserWarning, match="took the fast sample path; it continues on the plain one, because on_step"):
        rule.load_state_dict(base.state_dict())
    assert rule.choice.path == "plain"
    with pytest.raises(CheckpointError, match="cannot be taken here"):
        SampleRule(with_callback, path="fast").load_state_dict(base.state_dict())


@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda options: " ".join(map(str, options.values())))
def test_an_interrupt_in_a_chunk_leaves_weights_state_and_count_of_one_moment(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = make_data(2 * CHUNK)
    rule, whole = make("fast", options), make("fast", options)
    learn(whole, x[:CHUNK], y[:CHUNK], CHUNK)
    steps = iter(range(CHUNK + 50))

    @reading_weights
    def interrupt() -> None:
        if next(steps) == CHUNK + 40:
            raise KeyboardInterrupt

    rule = SampleRule(replace(rule.learner, on_step=interrupt), path="fast")
    with suppress(KeyboardInterrupt):
        learn(rule, x, y, 2 * CHUNK)
    assert rule.n_steps == CHUNK
    have, want = tensors(rule), tensors(whole)
    assert have.keys() == want.keys()
    assert all(torch.equal(have[name], want[name]) for name in want)
