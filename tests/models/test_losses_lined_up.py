"""Every loss of torch's, over outputs and targets of every shape: lined up as torch needs them, or refused.

The expected loss is torch's own, on output and target without the extra axis, over all samples at once or by a plain
loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from in_memory import Arrays, Batches
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import streamtrain as st
from streamtrain.errors import UsageError
from streamtrain.models.losses import resolve_loss

pytestmark = pytest.mark.usefixtures("one_thread")

N, B, LR = 10, 4, 0.05
SHAPES = ((), (1,), (3,), (3, 1), (B,), (B, 1))
"""Of one sample; one of B elements is the one that broadcasts without a word."""
RULES = ("batch", "sample", "epoch")
MODULES = sorted(name for name in dir(nn) if "Loss" in name)
ELEMENTWISE = ("BCELoss", "BCEWithLogitsLoss", "HingeEmbeddingLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss")
ELEMENTWISE += ("MultiLabelSoftMarginLoss", "PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss")
CLASSES = ("CrossEntropyLoss", "MultiMarginLoss", "NLLLoss", "NLLLoss2d")
OTHERS = {
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(3, 4, [2]),
    "LinearCrossEntropyLoss": lambda: nn.LinearCrossEntropyLoss(3, 3),  # type: ignore[attr-defined]
}


def made(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = OTHERS.get(name, getattr(nn, name))()
    return module


class Shaped(nn.Module):
    """A linear layer whose outputs have a shape; of probabilities where a loss wants them."""

    def __init__(self, shape: tuple[int, ...], name: str) -> None:
        super().__init__()
        self.linear = nn.Linear(3, int(np.prod(shape)))
        self.shape = shape
        self.is_probability = name == "BCELoss"
        with torch.no_grad():
            for parameter in self.parameters():
                values = torch.sin(torch.arange(parameter.numel(), dtype=torch.float32) + 1)
                parameter.copy_(values.view_as(parameter))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x).reshape(len(x), *self.shape)
        return output.sigmoid() if self.is_probability else output


def targets(name: str, shape: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(1)
    if name in (*CLASSES, "MultiLabelMarginLoss", "CTCLoss", *OTHERS):
        return rng.integers(0, 1 if shape[-1:] == (1,) else 3, (N, *shape))
    signs = rng.choice(np.float32([-1, 1]), (N, *shape))
    return signs if name in ("HingeEmbeddingLoss", "SoftMarginLoss") else (signs > 0).astype(np.float32)


def lined_up(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Line the two up in the only meaningful way; None where there is none."""
    if name in CLASSES:
        target = target[:, 0] if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1 else target
        return (output, target) if output.shape[:1] + output.shape[2:] == target.shape and output.ndim > 1 else None
    if abs(output.ndim - target.ndim) == 1:
        longer = output if output.ndim > target.ndim else target
        if longer.shape[-1] != 1:
            return None
        output, target = (t.squeeze(-1) if t is longer else t for t in (output, target))
    return (output, target) if output.shape == target.shape else None


def plain(name: str, shape: tuple[int, ...], x: Tensor, y: Tensor, rule: str) -> tuple[nn.Module, float] | None:
    """Train a model by a plain loop for one epoch; return it and its loss, or None where torch knows no such loss."""
    model, loss = Shaped(shape, name), made(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    try:
        for some in torch.arange(N).split({"batch": B, "sample": 1, "epoch": N}[rule]):
            pair = lined_up(name, model(x[some]), y[some])
            if pair is None:
                return None
            optimizer.zero_grad()
            loss(*pair).backward()
            optimizer.step()
        with torch.no_grad():
            pair = lined_up(name, model(x), y)
            assert pair is not None
            return model, float(loss(*pair))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None


class Unnamed(Arrays):
    """Arrays whose labels have no known number of classes."""

    def __init__(self, **arrays: Any) -> None:
        super().__init__(**arrays)
        self.n_classes = None


def assert_refused(
    refusal: str, name: str, of_output: tuple[int, ...], of_target: tuple[int, ...], n_rows: int
) -> None:
    """Assert that a refusal names both shapes, and is not of an elementwise loss where the two can be lined up."""
    for shape in (of_output, of_target):
        assert str((n_rows, *shape)) in refusal, (of_output, of_target)
    is_alike = lined_up(name, torch.zeros(B, *of_output), torch.zeros(B, *of_target)) is not None
    assert not (name in ELEMENTWISE and is_alike), (of_output, of_target, refusal)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides", "ignore:`NLLLoss2d` has been deprecated")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODULES)
def test_it_is_the_loss_of_the_two_lined_up_or_is_refused_with_both_shapes(name: str, rule: str) -> None:
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    n_taken = 0
    for of_output in SHAPES:
        for of_target in SHAPES:
            y = targets(name, of_target)
            expected = plain(name, of_output, torch.from_numpy(x), torch.from_numpy(y), rule)
            model = Shaped(of_output, name)
            batches = Batches(Unnamed(x=x, y=y), batch_size=B, shuffle=False)
            trainer = st.Trainer(model, loss=made(name), optimizer="sgd", lr=LR, update=rule, device="cpu")
            refusal = ""
            try:
                trainer.fit(batches, max_epochs=1)
                told = trainer.evaluate(batches).loss
            except UsageError as error:
                refusal = str(error)
            if refusal:
                assert_refused(refusal, name, of_output, of_target, 1 if rule == "sample" else B)
                assert not (expected and name in CLASSES), (of_output, of_target, refusal)
                continue
            n_taken += 1
            assert expected is not None, (of_output, of_target, told)
            torch.testing.assert_close(dict(model.state_dict()), dict(expected[0].state_dict()), rtol=1e-5, atol=1e-6)
            assert told == pytest.approx(expected[1], rel=1e-5, abs=1e-7), (of_output, of_target)
    assert bool(n_taken) == (name in (*ELEMENTWISE, *CLASSES, "MultiLabelMarginLoss"))


FUNCTIONS: list[tuple[Callable[..., Tensor], str]] = [
    (F.binary_cross_entropy, "BCELoss"),
    (F.binary_cross_entropy_with_logits, "BCEWithLogitsLoss"),
    (F.hinge_embedding_loss, "HingeEmbeddingLoss"),
    (F.huber_loss, "HuberLoss"),
    (F.kl_div, "KLDivLoss"),
    (F.l1_loss, "L1Loss"),
    (F.mse_loss, "MSELoss"),
    (F.multilabel_soft_margin_loss, "MultiLabelSoftMarginLoss"),
    (F.poisson_nll_loss, "PoissonNLLLoss"),
    (F.smooth_l1_loss, "SmoothL1Loss"),
    (F.soft_margin_loss, "SoftMarginLoss"),
]


@pytest.mark.parametrize(("function", "name"), FUNCTIONS)
@pytest.mark.parametrize("is_partial", [False, True])
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_a_function_of_torchs_is_its_module(function: Callable[..., Tensor], name: str, is_partial: bool) -> None:
    function = partial(function, reduction="mean") if is_partial else function
    output = torch.rand(B, 1, generator=torch.Generator().manual_seed(0))
    target = torch.from_numpy(targets(name, ())[:B])
    assert torch.equal(resolve_loss(function)(output, target), made(name)(output[:, 0], target))
    with pytest.raises(UsageError, match=r"\(4, 3\).*\(4,\)"):
        resolve_loss(function)(torch.rand(B, 3), target)


@pytest.mark.parametrize(
    "function",
    [F.gaussian_nll_loss, F.cosine_embedding_loss, F.margin_ranking_loss, F.triplet_margin_loss, F.ctc_loss],
)
def test_a_function_that_takes_more_is_refused_with_both_shapes(function: Callable[..., Tensor]) -> None:
    with pytest.raises(UsageError, match=r"\(4, 1\).*\(4,\).*more than one of each"):
        resolve_loss(function)(torch.rand(4, 1), torch.rand(4))


def test_options_of_a_function_are_kept() -> None:
    loss = resolve_loss(partial(F.huber_loss, delta=0.25, reduction="sum"))
    output, target = torch.tensor([[3.0], [0.0]]), torch.tensor([1.0, 0.1])
    assert loss.summed
    assert float(loss.objective(output, target)[0]) == pytest.approx(
        float(F.huber_loss(output[:, 0], target, "sum", 0.25))
    )


def test_a_class_of_ones_own_with_torchs_forward_is_lined_up_too() -> None:
    class Counts(nn.PoissonNLLLoss):
        def __init__(self) -> None:
            super().__init__(log_input=False)

    output, target = torch.rand(B, 1), torch.rand(B)
    assert torch.equal(resolve_loss(Counts())(output, target), nn.PoissonNLLLoss(log_input=False)(output[:, 0], target))


def test_counts_of_integers_are_taken() -> None:
    output, target = torch.rand(B, 1), torch.arange(B)
    assert torch.equal(resolve_loss(nn.PoissonNLLLoss())(output, target), nn.PoissonNLLLoss()(output[:, 0], target))


@pytest.mark.parametrize("weight", ["weight", "pos_weight"])
def test_weights_inside_a_loss_are_those_of_a_sample_s_elements(weight: str) -> None:
    output, target = torch.randn(B, 3), torch.ones(B, 3)
    loss = nn.BCEWithLogitsLoss(**{weight: torch.tensor([1.0, 2.0, 3.0])})
    assert torch.equal(resolve_loss(loss)(output, target), loss(output, target))
    for shape in ((B,), (B, 1), (B, 3)):
        of_batch = nn.BCEWithLogitsLoss(**{weight: torch.ones(shape)})
        with pytest.raises(UsageError, match=r"broadcast over the samples"):
            resolve_loss(of_batch)(torch.randn(B), torch.ones(B))


def test_a_function_around_torchs_that_broadcasts_is_refused() -> None:
    def around(output: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(output, target)

    data = Batches(Unnamed(x=np.ones((N, 3), np.float32), y=np.arange(N, dtype=np.float32)), batch_size=B)
    with pytest.raises(UsageError, match=r"around of an output of shape \(4, 1\) and a target of \(4,\) broadcasts"):
        st.Trainer(nn.Linear(3, 1), loss=around, device="cpu").fit(data, max_epochs=1)


def test_a_formula_that_broadcasts_is_warned_of() -> None:
    x = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    data = Batches(Unnamed(x=x, y=np.arange(N, dtype=np.float32)), batch_size=B)
    with pytest.warns(UserWarning, match=r"formula of an output of shape \(4, 1\) and a target of \(4,\) is"):
        st.Trainer(nn.Linear(3, 1), loss=formula, device="cpu").fit(data, max_epochs=1)
    st.Trainer(nn.Linear(3, 1), loss=of_columns, device="cpu").fit(data, max_epochs=1)


def formula(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).mean()


def of_columns(output: Tensor, target: Tensor) -> Tensor:
    return formula(output[:, 0], target)
