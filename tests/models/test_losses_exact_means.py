"""J over batches equals J over all samples at once: every loss, reduction, weight and class weight; windows; resume."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from streamtrain.errors import InputError, UsageError
from streamtrain.models.losses import resolve_loss
from streamtrain.optim.build_rule import make_rule
from streamtrain.optim.gradients import Learner, TrainingBatch
from streamtrain.optim.rules import UpdateRule
from streamtrain.optim.step_options import StepOptions
from streamtrain.training.batch_stream import check_weights
from streamtrain.training.metrics.running import RunningMetrics
from streamtrain.training.preflight import warn_of_batch_dependent_loss, warn_of_batch_dependent_modules

pytestmark = pytest.mark.usefixtures("one_thread")

CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 3.5], dtype=torch.float64)
SHAPES = ((1, 1), (2, 3), (7, 2), (10, 10), (11, 5), (16, 4), (17, 16), (40, 7), (41, 40), (64, 9), (100, 33), (101, 1))


def modules(reduction: str) -> dict[str, nn.Module]:
    return {
        "ce": nn.CrossEntropyLoss(reduction=reduction),
        "ce weighted": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, reduction=reduction),
        "ce ignoring": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=1, reduction=reduction),
        "ce smoothed": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2, reduction=reduction),
        "nll": nn.NLLLoss(weight=CLASS_WEIGHTS, reduction=reduction),
        "bce": nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS, reduction=reduction),
        "mse": nn.MSELoss(reduction=reduction),
        "l1": nn.L1Loss(reduction=reduction),
        "huber": nn.HuberLoss(reduction=reduction),
    }


def make_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def make_data(n: int, *, classes: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % 3
    y = labels if classes else torch.rand(n, 3, generator=generator, dtype=torch.float64)
    return x, y, torch.rand(n, generator=generator, dtype=torch.float64) + (torch.arange(n) % 4 == 0)


def make(net: nn.Module, loss: Any, update: str, lr: float = 0.1, **options: Any) -> UpdateRule:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    return make_rule(update, Learner(model=net, loss=resolve_loss(loss), optimizer=optimizer), StepOptions(**options))


def gradient_of(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def written_out(module: nn.Module, output: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """J from its definition, by torch's unreduced losses."""
    summed = module.reduction == "sum"
    other = type(module)(**{k: getattr(module, k) for k in KEPT.get(type(module), ())}, reduction="none")
    losses = other(output, y)
    if y.dtype == torch.int64:
        of_class = torch.ones(3, dtype=torch.float64) if module.weight is None else module.weight.clone()
        if 0 <= getattr(module, "ignore_index", -1) < 3:
            of_class[module.ignore_index] = 0
        weights = w * of_class[y]
        total = (losses * w).sum()
    else:
        weights = w[:, None].expand_as(losses)
        total = (losses * weights).sum()
    return total if summed else total / weights.sum()


KEPT: dict[type[nn.Module], tuple[str, ...]] = {
    nn.CrossEntropyLoss: ("weight", "ignore_index", "label_smoothing"),
    nn.NLLLoss: ("weight",),
    nn.BCEWithLogitsLoss: ("pos_weight",),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", modules("mean"))
def test_the_epoch_gradient_is_the_concatenated_one(name: str, reduction: str, weighted: bool) -> None:
    module = modules(reduction)[name]
    classes = isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss)
    for n, batch_size in SHAPES:
        x, y, w = make_data(n, classes=classes)
        whole, streamed = make_net(), make_net()
        expected = written_out(module, whole(x), y, w if weighted else torch.ones_like(w))
        if not weighted and reduction != "none":
            assert torch.allclose(expected, module(whole(x), y), rtol=1e-12), "torch means the same"
        expected.backward()  # type: ignore[no-untyped-call]
        rule = make(streamed, module, "epoch")
        running = RunningMetrics(rule.learner.loss)
        for i in range(0, n, batch_size):
            part = slice(i, i + batch_size)
            seen = rule.learn(TrainingBatch(inputs=(x[part],), target=y[part], weight=w[part] if weighted else None))
            running.add(seen.loss, seen.output, seen.target, weight=seen.weight, sample_weights=seen.sample_weights)
        rule.end_epoch()
        scale = gradient_of(whole).norm()
        assert float((gradient_of(streamed) - gradient_of(whole)).norm()) <= 1e-12 * float(scale), (n, batch_size)
        assert rule.grad_norm == pytest.approx(float(scale), rel=1e-12)
        mean = written_out(modules("mean")[name], make_net()(x), y, w if weighted else torch.ones_like(w))
        assert running.mean().loss == pytest.approx(mean.item(), rel=1e-12)


@given(n=st.integers(1, 50), batch_size=st.integers(1, 12), k=st.integers(2, 6), weighted=st.booleans())
def test_a_window_s_step_is_that_on_its_samples_at_once(n: int, batch_size: int, k: int, weighted: bool) -> None:
    x, y, w = make_data(n, classes=True)
    plain, windowed = make_net(), make_net()
    optimizer, window = torch.optim.SGD(plain.parameters(), lr=0.1), batch_size * k
    module = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)
    for i in range(0, n, window):
        optimizer.zero_grad()
        weight = w if weighted else torch.ones_like(w)
        part = slice(i, i + window)
        written_out(module, plain(x[part]), y[part], weight[part]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    rule = make(windowed, module, "batch", accumulate_grad_batches=k)
    for i in range(0, n, batch_size):
        part = slice(i, i + batch_size)
        rule.learn(TrainingBatch(inputs=(x[part],), target=y[part], weight=w[part] if weighted else None))
        state = rule.state_dict()
        rule = make(windowed, module, "batch", accumulate_grad_batches=k)
        rule.load_state_dict(state)
    rule.end_epoch()
    assert rule.n_steps == math.ceil(n / window)
    for one, other in zip(plain.parameters(), windowed.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)


def test_a_weight_scales_a_step_on_one_sample_and_0_skips_it() -> None:
    x, y, _ = make_data(3, classes=True)
    plain, ruled = make_net(), make_net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for i, weight in ((0, 2.0), (2, 0.5)):
        optimizer.zero_grad()
        (weight * F.cross_entropy(plain(x[i : i + 1]), y[i : i + 1])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    rule = make(ruled, "cross_entropy", "sample", sample_path="plain")
    seen = rule.learn(TrainingBatch(inputs=(x,), target=y, weight=torch.tensor([2, 0, 0.5])))
    assert (rule.n_steps, seen.n_samples, seen.weight) == (2, 3, 2.5)
    for one, other in zip(plain.parameters(), ruled.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-13)


def test_a_batch_that_weighs_nothing_takes_no_step() -> None:
    x, y, _ = make_data(4, classes=True)
    rule = make(make_net(), "cross_entropy", "batch")
    rule.learn(TrainingBatch(inputs=(x,), target=y, weight=torch.zeros(4)))
    rule.learn(TrainingBatch(inputs=(x,), target=torch.full_like(y, -100)))
    assert rule.n_steps == 0


def test_a_loss_of_ones_own_is_weighed_by_its_samples_losses() -> None:
    x, y, w = make_data(9, classes=False)

    def distance(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum(1)

    one, other = make_net(), make_net()
    ((distance(one(x), y) * w).sum() / w.sum()).backward()
    rule = make(other, distance, "epoch")
    for i in (0, 4, 8):
        rule.learn(TrainingBatch(inputs=(x[i : i + 4],), target=y[i : i + 4], weight=w[i : i + 4]))
    rule.end_epoch()
    assert torch.allclose(gradient_of(one), gradient_of(other), rtol=1e-12)
    with pytest.raises(UsageError, match=r"they cannot be weighted. Fix: return the loss of each sample, \(B,\)"):
        resolve_loss(lambda output, target: output.mean()).total(torch.ones(2, 1), torch.ones(2), torch.ones(2))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_a_bad_weight_is_named_by_its_sample(bad: float) -> None:
    weight = torch.tensor([1.0, 0.0, bad])
    with pytest.raises(InputError, match=rf"row of the batch 2 is {bad}") as caught:
        check_weights("w", weight, lambda: None)
    assert caught.value.exit_code == 3


def test_what_changes_its_meaning_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    with pytest.warns(UserWarning, match=r"^BatchNorm1d, Dropout under accumulate_grad_batches=4: .* mask"):
        warn_of_batch_dependent_modules(model, "accumulate_grad_batches=4")
    warn_of_batch_dependent_modules(model, None)
    output, target = torch.arange(8.0)[:, None], torch.zeros(8)
    with pytest.warns(UserWarning, match=r"update='epoch': it is not a mean over the samples"):
        warn_of_batch_dependent_loss(resolve_loss(lambda o, t: o.std()), output, target, "update='epoch'")
    warn_of_batch_dependent_loss(resolve_loss(lambda o, t: o.mean()), output, target, "update='epoch'")
