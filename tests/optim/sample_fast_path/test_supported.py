"""The limits of the fast path: what it does not support is left to the plain loop, and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sample_cases import (
    learn,
    make_data,
    make_net,
    make_rule,
)
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name torch's own documentation gives it

from streamtrain.errors import UsageError
from streamtrain.models.losses import LOSS_DEFINITIONS, resolve_loss
from streamtrain.models.normalization import NormalizedModel
from streamtrain.optim.gradients import Clipping, Learner, TrainingBatch
from streamtrain.optim.sample_fast_path.network import GRADIENT_WRITERS
from streamtrain.optim.sample_fast_path.supported import FAST_LOSSES, why_unsupported
from streamtrain.optim.schedules import OptimizerSchedules


class Own(nn.Module):
    """A model whose forward could do anything."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output


def shared() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def frozen() -> nn.Module:
    net = make_net(nn.Linear(4, 4), nn.Linear(4, 3))
    net[0].bias.requires_grad_(False)
    return net


def hooked(net: nn.Module) -> nn.Module:
    net[0].register_forward_hook(lambda *_: None)
    return net


def weight_hooked(net: nn.Module) -> nn.Module:
    net[0].weight.register_hook(lambda gradient: gradient * 2)
    return net


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own": (Own, "has a Own"),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout()), "has a Dropout"),
    "batchnorm": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "has a BatchNorm1d"),
    "shared": (shared, "share their weights"),
    "frozen": (frozen, "are not trained"),
    "hooked": (lambda: hooked(make_net()), "has hooks"),
    "weight hooked": (lambda: weight_hooked(make_net()), "a weight has hooks"),
    "half": (lambda: make_net(dtype=torch.bfloat16), "not all float32"),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
        "has a ParametrizedLinear",
    ),
    "axis": (lambda: nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(0)), "along axis 0"),
    "flatten": (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(4, 3)), "leaves axes"),
    "inputs": (lambda: NormalizedModel(make_net(), ("a", "b")), "takes 2 inputs"),
    "runner": (lambda: NormalizedModel(net := make_net(), ("x",), lambda x: net(x)), "compiled"),
    "none": (lambda: nn.Sequential(nn.PReLU()), "has a PReLU"),
}


@pytest.mark.parametrize(("make", "reason"), MODELS.values(), ids=MODELS)
def test_a_model_that_is_not_known_is_for_the_plain_loop(make: Callable[[], nn.Module], reason: str) -> None:
    rule = make_rule(make(), "auto")
    assert rule.choice.path == "plain"
    assert reason in (rule.choice.why or "")
    with pytest.raises(UsageError, match=f"sample_path is 'fast', and .*{reason}"):
        make_rule(make(), "fast").learn(
            TrainingBatch(inputs=(torch.zeros(2, 4),), target=torch.zeros(2, dtype=torch.int64))
        )


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda output, target: F.mse_loss(output, target), "the loss is <lambda>"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "smooths"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "weighs classes"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "weighs elements"),
        (nn.MSELoss(reduction="sum"), "sums"),
        (nn.HuberLoss(), "the loss is huber"),
    ],
)
def test_a_loss_that_is_not_known_is_for_the_plain_loop(loss: Any, reason: str) -> None:
    assert reason in (make_rule(make_net(), "auto", loss).choice.why or "")


def test_an_optimizer_that_is_not_known_is_for_the_plain_loop() -> None:
    assert make_rule(make_net(), "auto", optimizer="rmsprop").choice.why == "the optimizer is RMSprop"
    hooked_one = make_rule(make_net(), "auto")
    hooked_one.learner.optimizer.register_step_pre_hook(lambda *_: None)
    assert hooked_one.choice.why == "SGD has hooks"
    replaced = make_rule(make_net(), "auto")
    replaced.learner.optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
    assert replaced.choice.why == "the step of SGD was replaced"
    net = make_net()
    behind = make_rule(net, "auto", optimizer="adam")
    net[0].bias.grad = torch.ones(6, dtype=torch.float64)
    behind.learner.optimizer.step()
    assert behind.choice.why == "the weights are not all at the same step"


def test_what_belongs_to_every_step_is_for_the_plain_loop() -> None:
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters())
    known = {"model": net, "loss": resolve_loss("mse"), "optimizer": optimizer}
    assert why_unsupported(Learner(**known)) is None
    assert why_unsupported(Learner(**known, l2=0.1)) == "there is a penalty l2"
    assert why_unsupported(Learner(**known, clipping=Clipping(norm=1.0))) == "gradients are clipped"
    by_step = OptimizerSchedules(optimizer, None, "exponential:0.9")
    assert why_unsupported(Learner(**known, schedules=by_step)) == "a schedule steps after every step"
    by_epoch = OptimizerSchedules(optimizer, "cosine")
    assert why_unsupported(Learner(**known, schedules=by_epoch)) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_unsupported(Learner(**known)) == "autocast is on"


@pytest.mark.parametrize("path", ["auto", "plain"])
def test_the_fall_back_is_the_plain_loop_bit_for_bit(path: str) -> None:
    x, y = make_data(20)
    net, by_hand = (nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 3)).double() for _ in range(2))
    by_hand.load_state_dict(net.state_dict())
    rule = make_rule(net, path)
    assert rule.choice.path == "plain"
    learn(rule, x, y)
    steps = torch.optim.SGD(by_hand.parameters(), lr=0.05)
    for i in range(20):
        steps.zero_grad()
        torch.autograd.backward(F.cross_entropy(by_hand(x[i : i + 1]), y[i : i + 1]))
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), by_hand.parameters(), strict=True))


def test_every_loss_with_a_gradient_written_out_is_known() -> None:
    assert GRADIENT_WRITERS.keys() == FAST_LOSSES
    assert LOSS_DEFINITIONS.keys() - FAST_LOSSES == {"huber", "poisson"}
    for name in FAST_LOSSES:
        net = make_net()
        learner = Learner(model=net, loss=resolve_loss(name), optimizer=torch.optim.SGD(net.parameters()))
        assert why_unsupported(learner) is None
