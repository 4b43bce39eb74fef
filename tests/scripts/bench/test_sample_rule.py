"""The sample rule's benchmark at small size: both paths on the same samples, and a floor below them."""

from __future__ import annotations

import pytest
import torch
from run_script import results_of, run_script
from torch import nn

from scripts.bench import sample_rule as bench


def test_it_runs_at_small_size() -> None:
    small = [
        "--inputs",
        "12",
        "--hidden",
        "5",
        "--batch-size",
        "6",
        "--warmup",
        "1",
        "--repeats",
        "3",
        "--threads",
        "1",
    ]
    done = run_script("bench/sample_rule.py", *small)
    results = results_of(done)
    assert [result["optimizer"] for result in results] == ["sgd", "adam"]
    for result in results:
        assert (result["model"], result["rounds"], result["samples_before"]) == ("12-5-10", 3, 18)
        assert result["ratio"] > 0
        assert min(result[f"{name}_samples_s"] for name in ("hand", "plain", "fast", "floor")) > 0
        assert result["largest_difference"] < 1e-5
        assert result["bars"] == {"ratio": 4.0}
    assert done.stderr.count("fast/hand") == 2


def test_weights_that_differ_end_it() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    assert bench.difference(one, other) == 0
    with torch.no_grad():
        other.bias += 1
    with pytest.raises(SystemExit, match="the two paths' weights differ"):
        bench.difference(one, other)


def test_the_floor_leaves_the_model_as_it_is() -> None:
    for optimizer in bench.OPTIMIZERS:
        arguments = bench.argparse.Namespace(inputs=6, hidden=4, batch_size=2)
        rule = bench.new_rule("fast", optimizer, arguments)
        before = [parameter.clone() for parameter in rule.learner.parameters]
        assert bench.floor(rule.learner, torch.ones(6), 1) > 0
        assert all(torch.equal(a, b) for a, b in zip(rule.learner.parameters, before, strict=True))


def test_subnormal_moments_are_counted() -> None:
    rule = bench.new_rule("plain", "adam", bench.argparse.Namespace(inputs=6, hidden=4))
    assert bench.subnormal_fraction(rule.learner) == 0
    bench.learn(rule, (torch.ones(2, 6), torch.tensor([0, 1])))
    for state in rule.learner.optimizer.state.values():
        state["exp_avg"].fill_(1e-40)
        state["exp_avg_sq"].fill_(1.0)
    assert bench.subnormal_fraction(rule.learner) == 0.5
