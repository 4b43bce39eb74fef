"""The path is chosen once, reported, and kept on resume; divergence stops in time on either path."""

from __future__ import annotations

import copy

import pytest
import torch
from sample_cases import (
    OPTIONS,
    assert_same,
    learn,
    make_data,
    make_net,
    make_rule,
    seeded,
    tensors,
)
from torch import nn

from streamtrain.errors import CheckpointError, DivergedError, UnknownName, UsageError
from streamtrain.optim.gradients import TrainingBatch
from streamtrain.optim.sample_fast_path.loop import CHUNK
from streamtrain.optim.sample_rule import SampleRule


def test_samples_of_several_axes_are_seen_at_the_first_batch() -> None:
    x, y = torch.randn(6, 5, 4, generator=seeded(), dtype=torch.float64), torch.zeros(6, 5, 3, dtype=torch.float64)
    rule = make_rule(make_net(), "auto", "mse")
    assert rule.choice.path == "fast", "the model alone does not tell"
    rule.learn(TrainingBatch(inputs=(x,), target=y))
    assert (rule.choice.path, rule.choice.why) == ("plain", "the first Linear is given samples of shape (5, 4)")
    wrong = make_rule(make_net(), "fast", "mse")
    with pytest.raises(UsageError, match="the first Linear is given float32"):
        wrong.learn(TrainingBatch(inputs=(x[:, 0].float(),), target=y[:, 0]))


def test_a_model_that_changes_on_the_way() -> None:
    x, y = make_data(30)
    rule, plain = make_rule(make_net(), "auto"), make_rule(make_net(), "plain")
    for made in (rule, plain):
        learn(made, x[:10], y[:10])
        made.learner.model.to(torch.float32).to(torch.float64)  # moves the weights
        learn(made, x[10:20], y[10:20])
    assert_same(rule, plain)
    rule.learner.model[0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    learn(rule, x[20:], y[20:])
    assert rule.choice.path == "plain"
    assert rule.state_dict()["path"] == "plain"


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("bad", [0, 3, CHUNK + 5])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_stops_before_the_step_with_the_last_good_weights(optimizer: str, bad: int, what: str) -> None:
    x, y = make_data(CHUNK + 20, "l1", torch.float32)
    x, y = x.float(), y.float()
    # A gradient overflows where the loss does not: its layer's input is the largest number there is.
    x[bad, 1] = torch.nan if what == "loss" else 3e38
    net = make_net(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 3), dtype=torch.float32)

    def run(path: str, n: int) -> SampleRule:
        mine = copy.deepcopy(net)
        with torch.no_grad():
            mine[0].weight[:, 1] = 1e-36 if what == "gradient" else 0.1
            mine[2].weight.fill_(50.0 if what == "gradient" else 0.5)
        rule = make_rule(mine, path, "l1", **OPTIONS[optimizer] | {"lr": 1e-40 if what == "gradient" else 0.01})
        if n:
            rule.learn(TrainingBatch(inputs=(x[:n],), target=y[:n]))
        return rule

    good = run("fast", bad)
    rule = run("fast", 0)
    with pytest.raises(
        DivergedError, match="the loss is nan" if what == "loss" else "the gradient is not finite"
    ) as caught:
        rule.learn(TrainingBatch(inputs=(x,), target=y))
    assert caught.value.exit_code == 8
    assert rule.n_steps == bad
    have, want = tensors(rule), tensors(good)
    assert have.keys() == want.keys()
    assert all(torch.equal(have[name], want[name]) for name in want), "the weights of the sample before, bit for bit"
    with pytest.raises(DivergedError, match=caught.value.what.split(",")[0]):
        run("plain", 0).learn(TrainingBatch(inputs=(x,), target=y))


def test_a_label_out_of_range_is_refused() -> None:
    x, y = make_data(8)
    y[5] = 3
    for path in ("fast", "plain"):
        with pytest.raises((UsageError, IndexError), match=r"label 3 of 3 classes|out of bounds"):
            make_rule(make_net(), path).learn(TrainingBatch(inputs=(x,), target=y))
    with pytest.raises(UsageError, match="mse needs a float target"):
        make_rule(make_net(), "fast", "mse").learn(TrainingBatch(inputs=(x,), target=y))


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_run_goes_on_bit_for_bit_on_its_own_path(path: str, optimizer: str) -> None:
    x, y = make_data(CHUNK * 2)
    whole = make_rule(make_net(), path, **OPTIONS[optimizer])
    learn(whole, x, y, 64)
    first = make_rule(make_net(), path, **OPTIONS[optimizer])
    learn(first, x[:CHUNK], y[:CHUNK], 64)
    second = make_rule(make_net(), "auto", **OPTIONS[optimizer])
    second.learner.model.load_state_dict(first.learner.model.state_dict())
    second.learner.optimizer.load_state_dict(copy.deepcopy(first.learner.optimizer.state_dict()))
    second.load_state_dict(first.state_dict())
    assert second.choice.path == path
    learn(second, x[CHUNK:], y[CHUNK:], 64)
    assert second.n_steps == whole.n_steps
    have, want = tensors(second), tensors(whole)
    assert all(torch.equal(have[name], want[name]) for name in want)


def test_a_run_does_not_go_on_along_another_path() -> None:
    undecided = make_rule(make_net(), "fast").state_dict()
    make_rule(make_net(), "plain").load_state_dict(undecided)
    began = make_rule(make_net(), "fast")
    learn(began, *make_data(3))
    fast = began.state_dict()
    with pytest.raises(CheckpointError, match="the run took the fast sample path; plain is asked for") as caught:
        make_rule(make_net(), "plain").load_state_dict(fast)
    assert caught.value.exit_code == 6
    with pytest.raises(CheckpointError, match=r"cannot be taken here\. The optimizer is RMSprop"):
        make_rule(make_net(), "auto", optimizer="rmsprop").load_state_dict(fast)
    resumed = make_rule(make_net(), "auto")
    resumed.load_state_dict(fast)
    with pytest.raises(CheckpointError, match="The first Linear is given float32"):
        resumed.learn(TrainingBatch(inputs=(torch.zeros(2, 4),), target=torch.zeros(2, dtype=torch.int64)))
    before_there_were_two = {"name": "sample", "n_steps": 3}
    old = make_rule(make_net(), "auto")
    old.load_state_dict(before_there_were_two)
    assert (old.choice.path, old.n_steps) == ("plain", 3)


def test_an_unknown_path_says_which_was_meant() -> None:
    with pytest.raises(UnknownName, match="did you mean 'fast'"):
        make_rule(make_net(), "fats")
