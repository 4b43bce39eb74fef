"""Launches and waits of a step beyond forward, backward and the optimizer's own, counted as a device has them."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from streamtrain.models.losses import resolve_loss
from streamtrain.optim import gradients
from streamtrain.optim.gradients import Learner, TrainingBatch
from streamtrain.optim.rules import BatchRule

N_PARAMETERS = 161
VIEWS = {"detach", "view", "expand", "unsqueeze"}
READS = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"}


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.found[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READS:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted():
    with Launches() as launches, Reads() as reads:
        yield launches.found, reads.found


def make_learner():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4) for _ in range(N_PARAMETERS // 2)]
    model = nn.Sequential(*layers, nn.Linear(4, 3, bias=False))
    assert len(list(model.parameters())) == N_PARAMETERS
    loss = resolve_loss("cross_entropy")
    return Learner(model=model, loss=loss, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, foreach=True))


def bare_step(learner, x, y, weight):
    learner.optimizer.zero_grad(set_to_none=True)
    output = learner.model(x)
    if weight is None:
        nn.functional.cross_entropy(output, y).backward()
    else:
        losses = nn.functional.cross_entropy(output, y, reduction="none")
        ((losses * weight).sum() / weight.sum()).backward()
    learner.optimizer.step()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_waits_once_and_launches_little(monkeypatch, weighted):
    monkeypatch.setattr(gradients, "waits_for_reads", lambda _: True)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    weight = torch.rand(8) if weighted else None
    learner = make_learner()
    with counted() as (bare, bare_reads):
        bare_step(learner, x, y, weight)
    rule = BatchRule(learner)
    with counted() as (ours, reads):
        rule.learn(TrainingBatch(inputs=(x,), target=y, weight=weight))
    assert rule.n_steps == 1
    beside = (ours - bare).total()
    assert beside <= 12, ours - bare
    assert (reads - bare_reads).total() == 1, reads


def test_what_is_read_at_once_is_what_is_read_one_by_one(monkeypatch):
    scalars = [torch.tensor(0.1), torch.tensor(0.2, dtype=torch.float64), 3, torch.tensor(0.3), torch.tensor(7)]
    one_by_one = gradients.read_scalars(*scalars)
    monkeypatch.setattr(gradients, "waits_for_reads", lambda _: True)
    assert gradients.read_scalars(*scalars) == one_by_one


def test_no_step_is_taken_on_what_is_not_finite(monkeypatch):
    monkeypatch.setattr(gradients, "waits_for_reads", lambda _: True)
    learner = make_learner()
    before = [parameter.detach().clone() for parameter in learner.parameters]
    with pytest.raises(ArithmeticError, match="the loss is nan"):
        BatchRule(learner).learn(
            TrainingBatch(inputs=(torch.full((8, 4), float("nan")),), target=torch.zeros(8, dtype=torch.int64))
        )
    assert all(map(torch.equal, before, learner.parameters))
