"""Trials of a line search: the values it is given, and that no trial ends a run or counts as a step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_memory import Arrays, Batches
from torch import Tensor, nn

from streamtrain.errors import DivergedError
from streamtrain.models.losses import resolve_loss
from streamtrain.optim.build_rule import make_rule
from streamtrain.optim.full_batch import SCALE, ObjectiveValue, objective_scale, trial_value
from streamtrain.optim.gradients import Learner, TrainingBatch
from streamtrain.optim.optimizers import FULL_BATCH, build_optimizer
from streamtrain.optim.rules import UpdateRule
from streamtrain.optim.step_options import StepOptions
from streamtrain.training.run.serialization import pack, unpack
from streamtrain.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

Function = Callable[[Tensor, Tensor], Tensor]


class Weight(nn.Module):
    """One weight, which is its output: J is then the loss as a function of that."""

    def __init__(self, value: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x))


def rule_of(model: nn.Module, loss: str | Function, optimizer: str, **options: Any) -> UpdateRule:
    learner = Learner(model=model, loss=resolve_loss(loss), optimizer=build_optimizer(optimizer, model.parameters()))
    return make_rule("epoch", learner, StepOptions(**options))


def a_pass(rule: UpdateRule, dtype: torch.dtype = torch.float64) -> None:
    rule.learn(TrainingBatch(inputs=(torch.zeros(2, 1, dtype=dtype),), target=torch.zeros(2, dtype=dtype)))
    rule.end_epoch()


def barrier(output: Tensor, _: Tensor) -> Tensor:
    """Lowest at 0.25; beyond 0.5 it is no number."""
    return (-torch.log(0.5 - output) - 4 * output).mean()


def steep(output: Tensor, _: Tensor) -> Tensor:
    """Lowest at log(5) / 2000; at 1 it is infinite."""
    return (torch.exp(2000 * output) - 1e4 * output).mean()


def jump(output: Tensor, _: Tensor) -> Tensor:
    """Downhill until 0.7, where it jumps up: no trial satisfies the curvature condition."""
    return torch.where(output < 0.7, -output, 1 + 0 * output).mean()


@given(st.floats(1e-300, 1e300))
def test_the_scale_is_a_power_of_two_that_leaves_a_gradient_below_2_to_the_20(norm: float) -> None:
    scale = objective_scale(norm)
    assert math.frexp(scale)[0] == 0.5
    assert scale == SCALE if norm < 1 else 2**19 <= norm * scale < 2**20


def test_a_trial_that_is_lower_is_never_too_far() -> None:
    start = ObjectiveValue(objective=1e30, gradients=[torch.tensor([1e15])])
    lower = ObjectiveValue(objective=1e20, gradients=[torch.tensor([1e10])])
    assert trial_value(lower, 1e10, start, objective_scale(1e15)) is lower


@pytest.mark.parametrize(
    ("objective", "gradient"), [(math.inf, 1.0), (-math.inf, 1.0), (math.nan, 1.0), (1e30, 1.0), (1.0, 1e9)]
)
def test_what_cannot_be_squared_is_told_as_infinite(objective: float, gradient: float) -> None:
    start = ObjectiveValue(objective=1.0, gradients=[torch.tensor([0.5])])
    trial = ObjectiveValue(objective=objective, gradients=[torch.tensor([gradient])])
    found = trial_value(trial, gradient, start, SCALE)
    assert found.objective == math.inf
    assert found.gradients[0].isnan().all()
    wide = ObjectiveValue(objective=objective, gradients=[torch.tensor([gradient], dtype=torch.float64)])
    assert (trial_value(wide, gradient, start, SCALE) is wide) == math.isfinite(objective), "float64 holds them"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("loss", "lowest"), [(barrier, 0.25), (steep, math.log(5) / 2000)])
@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_trial_without_a_finite_j_shortens_the_step(
    optimizer: str, loss: Function, lowest: float, dtype: torch.dtype
) -> None:
    model = Weight(dtype=dtype)
    rule = rule_of(model, loss, optimizer)
    n_not_finite = 0
    for _ in range(120):
        a_pass(rule, dtype)
        assert model.w.isfinite().all()
        assert rule.objective is not None
        n_not_finite += not math.isfinite(rule.objective)
        if rule.converged:
            break
    assert n_not_finite, "or nothing is tested"
    assert rule.converged == "stuck"
    assert model.w.item() == pytest.approx(lowest, rel=1e-2)


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_pass_at_a_trial_that_is_not_finite_ends_no_run_and_is_null(tmp_path: Path, optimizer: str) -> None:
    data = Arrays(x=np.zeros((20, 1)), y=np.zeros(20))
    model = Weight()
    trainer = Trainer(model, loss=steep, optimizer=optimizer, update="epoch")
    trainer.fit(Batches(data), max_epochs=40, checkpoint=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "epoch"]
    assert None in [line.get("trial_objective", 0.0) for line in lines]
    assert lines[0]["objective"] == 1.0
    assert None not in [line["objective"] for line in lines], "no step goes there"
    assert steep(model.w, model.w) < -3


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("loss", [barrier, steep])
@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_a_rule_goes_on_from_inside_any_pass(optimizer: str, loss: Function, is_old: bool) -> None:
    """Older checkpoints have the trial's weights in the model and name no scale, as there was only one."""
    x, y = torch.zeros(2, 1), torch.zeros(2)
    whole = rule_of(Weight(), loss, optimizer)
    if is_old:
        whole.load_state_dict({name: part for name, part in whole.state_dict().items() if name != "scale"})
    rule = rule_of(Weight(), loss, optimizer)
    rule.load_state_dict(whole.state_dict())
    for _ in range(20):
        for _ in range(2):
            whole.learn(TrainingBatch(inputs=(x,), target=y))
            rule.learn(TrainingBatch(inputs=(x,), target=y))
            rule = moved(rule, loss, optimizer, is_old)
        whole.end_epoch()
        rule.end_epoch()
        assert torch.equal(rule.learner.parameters[0], whole.learner.parameters[0])
        assert (rule.n_steps, rule.settled, rule.objective) == (
            whole.n_steps,
            whole.settled,
            pytest.approx(whole.objective, rel=0, abs=0, nan_ok=True),
        )
    assert whole.n_steps


def moved(rule: UpdateRule, loss: Function, optimizer: str, is_old: bool) -> UpdateRule:
    """The same rule on another model, by way of a checkpoint's parts."""
    state = rule.state_dict()
    trial = [parameter.item() for parameter in rule.learner.parameters]
    with rule.at_last_step():
        before = [parameter.detach().clone() for parameter in rule.learner.parameters]
    assert [parameter.item() for parameter in rule.learner.parameters] == trial
    if is_old:
        state = {name: part for name, part in state.items() if name not in ("scale", "trial")}
        state["before_trial"] = before
    found = rule_of(Weight(trial[0] if is_old else before[0].item()), loss, optimizer)
    found.learner.optimizer.load_state_dict(rule.learner.optimizer.state_dict())
    tree, tensors = pack(state, "rule")
    found.load_state_dict(unpack(json.loads(json.dumps(tree, allow_nan=False)), tensors))
    return found


def test_where_the_weights_are_accepted_j_must_be_finite() -> None:
    model = Weight(1.0)
    rule = rule_of(model, barrier, "lbfgs")
    with pytest.raises(DivergedError, match="the loss is nan") as caught:
        a_pass(rule)
    assert caught.value.exit_code == 8
    data = Arrays(x=np.array([[1.0], [np.inf], [1.0]]), y=np.zeros((3, 1)))
    trainer = Trainer(nn.Linear(1, 1).double(), loss="mse", optimizer="cg", update="epoch")
    with pytest.raises(DivergedError, match="epoch 1, step 1: the loss is"):
        trainer.fit(Batches(data), max_epochs=2)


def test_a_penalty_out_of_range_ends_a_run_too() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1e160)
    learner = Learner(
        model=model,
        loss=resolve_loss(lambda output, _: output.tanh().mean()),
        optimizer=build_optimizer("lbfgs", model.parameters()),
        l2=0.1,
    )
    rule = make_rule("epoch", learner)
    with pytest.raises(DivergedError, match="the loss is inf"):
        a_pass(rule)


@pytest.mark.parametrize("largest", [100.0, 255.0, 1e5, 1e9])
@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_least_squares_on_pixels_in_float32(optimizer: str, largest: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((200, 8))
    y = x @ np.arange(8) + 0.1 * rng.normal(size=200)
    rows = np.hstack([x, np.ones((200, 1))])
    least = np.square(y - rows @ np.linalg.lstsq(rows, y, rcond=None)[0]).mean()
    model = nn.Linear(8, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    data = Arrays(x=(largest * x).astype(np.float32), y=y.astype(np.float32))
    trainer = Trainer(model, loss="mse", optimizer=optimizer, update="epoch")
    history = trainer.fit(Batches(data, batch_size=50), max_epochs=60)
    objectives = [epoch.objective for epoch in history if epoch.objective is not None]
    assert 0.999 * least < min(objectives) < 1.2 * least
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_every_step_has_a_pass_at_the_weights_it_came_to(optimizer: str) -> None:
    rule = rule_of(model := Weight(), jump, optimizer)
    settled_at: dict[float, float] = {}
    came_to = [0.0]
    for _ in range(400):
        a_pass(rule)
        if model.w.item() != came_to[-1]:
            came_to.append(model.w.item())
        if rule.settled:
            assert rule.objective is not None
            settled_at[came_to[-1]] = rule.objective
        if rule.converged:
            break
    assert len(came_to) == rule.n_steps + 1 > 2
    # The last one's pass may be to come.
    assert {w: settled_at[w] for w in came_to[:-1]} == {w: -w for w in came_to[:-1]}


@pytest.mark.parametrize("optimizer", FULL_BATCH)
def test_no_more_gradients_are_held_than_are_told_of(optimizer: str) -> None:
    model = Weight()
    rule = rule_of(model, jump, optimizer)
    history = 50 if optimizer == "lbfgs" else 0
    most = 0
    for _ in range(400):
        a_pass(rule)
        most = max(most, len(rule.state_dict()["known"]))
        if rule.converged:
            break
    assert 10 < most <= 1 + len(rule.later_memory()) - 2 * history - 4


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (1.4294824405810833, "the square of a gradient underflows"),
        (3.4402199357261103, "the step that would fall as far as the one before overflows"),
    ],
)
def test_a_gradient_that_all_but_vanishes_ends_a_run(x: float, why: str) -> None:
    inputs, target = torch.tensor([[x], [-x]]), torch.tensor([0, 1])
    model = nn.Linear(1, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    rule = rule_of(model, "cross_entropy", "cg")
    for _ in range(60):
        rule.learn(TrainingBatch(inputs=(inputs,), target=target))
        rule.end_epoch()
        if rule.converged:
            break
    assert rule.converged == "stuck", why
    assert rule.grad_norm is not None
    assert rule.grad_norm < 1e-15, why
