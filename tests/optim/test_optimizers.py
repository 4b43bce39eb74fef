"""Optimizers by name, and their arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from streamtrain.errors import UnknownName, UsageError
from streamtrain.optim.gradients import add_penalty, penalized
from streamtrain.optim.optimizers import OPTIMIZERS, build_optimizer


@pytest.fixture
def net() -> nn.Module:
    return nn.Linear(3, 2, bias=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_the_list_takes_a_step(name: str, net: nn.Module) -> None:
    before = net.weight.detach().clone()  # type: ignore[operator]
    optimizer = build_optimizer(name, net.parameters())
    net(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, net.weight)  # type: ignore[arg-type]


def test_the_list_leaves_out_what_needs_more_than_a_gradient() -> None:
    assert {"sgd", "adam", "adamw", "rmsprop", "adagrad"} <= set(OPTIMIZERS)
    assert not {"lbfgs", "sparseadam", "optimizer"} & set(OPTIMIZERS)


def test_names_are_found_in_any_case(net: nn.Module) -> None:
    assert type(build_optimizer("AdamW", net.parameters())) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("name", "update", "lr"), [("sgd", "batch", 0.1), ("sgd", "sample", 0.01), ("adam", "sample", 1e-3)]
)
def test_default_learning_rates(name: str, update: str, lr: float, net: nn.Module) -> None:
    assert build_optimizer(name, net.parameters(), update=update).defaults["lr"] == lr


def test_an_unknown_name_says_which_was_meant(net: nn.Module) -> None:
    with pytest.raises(UnknownName, match="did you mean 'adam'") as caught:
        build_optimizer("adm", net.parameters())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgd", {"lr": 0}, "lr is 0; it must be positive"),
        ("sgd", {"lr": -1.0}, "lr is -1.0"),
        ("adam", {"lr": math.nan}, "lr is nan"),
        ("adam", {"lr": math.inf}, "lr is inf"),
        ("adam", {"lr": True}, "lr is True"),
        ("sgd", {"momentum": 1.0}, r"momentum is 1.0; it must be in \[0, 1\)"),
        ("adam", {"betas": (0.9, 1.0)}, "betas is"),
        ("adam", {"betas": (0.9,)}, "two numbers"),
        ("adam", {"betas": 0.9}, "two numbers"),
        ("adam", {"eps": -1e-8}, "adam refuses its arguments"),
        ("sgd", {"weight_decay": -0.1}, "weight_decay is -0.1"),
        ("sgd", {"nesterov": True}, "sgd refuses its arguments"),
        ("adam", {"momentum": 0.9}, "adam takes no 'momentum'. It takes lr, betas, eps"),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, options: dict[str, Any], message: str, net: nn.Module) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_optimizer(name, net.parameters(), **options)
    assert caught.value.exit_code == 2


def test_none_means_not_given(net: nn.Module) -> None:
    assert build_optimizer("adam", net.parameters(), momentum=None, betas=(0.8, 0.9)).defaults["betas"] == (0.8, 0.9)


def test_a_finished_optimizer_and_a_factory_are_taken_as_they_are(net: nn.Module) -> None:
    mine = torch.optim.SGD(net.parameters(), lr=3.0)
    assert build_optimizer(mine, net.parameters()) is mine
    made = build_optimizer(lambda parameters: torch.optim.SGD(parameters, lr=2.0), net.parameters())
    assert made.defaults["lr"] == 2.0


def test_a_finished_optimizer_may_hold_what_is_frozen_and_no_penalty_is_on_it() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    mine = torch.optim.SGD(net.parameters(), lr=1.0)
    assert build_optimizer(mine, net.parameters()) is mine
    assert penalized(net.parameters()) == [net[1].weight]
    before = net[0].weight.clone()
    add_penalty(net.parameters(), 0.5)
    mine.step()
    assert torch.equal(net[0].weight, before)


def test_a_finished_optimizer_has_to_be_of_this_model_and_alone(net: nn.Module) -> None:
    other = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=1.0)
    with pytest.raises(UsageError, match="holds parameters that the model does not"):
        build_optimizer(other, net.parameters())
    with pytest.raises(UsageError, match="lr given together with a ready optimizer"):
        build_optimizer(torch.optim.SGD(net.parameters()), net.parameters(), lr=0.1)


def test_what_is_no_optimizer_is_refused(net: nn.Module) -> None:
    with pytest.raises(UsageError, match="the optimizer factory returned list"):
        build_optimizer(list, net.parameters())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="optimizer is 3"):
        build_optimizer(3, net.parameters())  # type: ignore[arg-type]


def test_a_model_without_weights_cannot_be_trained() -> None:
    with pytest.raises(UsageError, match="no parameters to train"):
        build_optimizer("sgd", nn.ReLU().parameters())
