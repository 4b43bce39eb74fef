"""Losses: their names, the targets they take, and no broadcasting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from streamtrain.errors import UnknownName, UsageError
from streamtrain.models.losses import LOSS_DEFINITIONS, resolve_loss


@pytest.mark.parametrize("name", LOSS_DEFINITIONS)
def test_a_named_loss_is_torchs_mean(name: str) -> None:
    loss = resolve_loss(name)
    output = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 0, 1, 2]) if loss.kind == "classes" else torch.rand(6, 3)
    assert torch.equal(loss(output, target), loss.mean(output, target))


def test_an_unknown_name_says_which_was_meant() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cross_entropy'") as caught:
        resolve_loss("cross_entrpy")
    assert caught.value.exit_code == 2


def test_torchs_own_functions_and_modules_are_recognised() -> None:
    assert resolve_loss(F.mse_loss).name == "mse"
    assert resolve_loss(nn.CrossEntropyLoss(label_smoothing=0.1)).kind == "classes"


def test_a_module_of_ones_own_that_sums_is_refused() -> None:
    class Total(nn.MSELoss):
        pass

    with pytest.raises(UsageError, match="Total has reduction='sum'"):
        resolve_loss(Total(reduction="sum"))


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(UsageError, match="one of cross_entropy"):
        resolve_loss(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mse", "l1", "bce_with_logits"])
@pytest.mark.parametrize(("output_shape", "target_shape"), [((4, 1), (4,)), ((4,), (4, 1)), ((4, 1), (4, 1))])
def test_one_axis_too_many_is_dropped_not_broadcast(
    name: str, output_shape: tuple[int, ...], target_shape: tuple[int, ...]
) -> None:
    loss = resolve_loss(name)
    values = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert torch.equal(loss(values.view(output_shape), values.view(target_shape)), loss.mean(values, values))


@pytest.mark.parametrize(
    ("name", "output", "target"),
    [
        ("mse", torch.zeros(4, 3), torch.zeros(4)),
        ("mse", torch.zeros(4, 3), torch.zeros(4, 1)),
        ("l1", torch.zeros(4), torch.zeros(1)),
        ("mse", torch.zeros(1, 4), torch.zeros(4)),
        ("cross_entropy", torch.zeros(4), torch.zeros(4, dtype=torch.int64)),
        ("cross_entropy", torch.zeros(4, 3), torch.zeros(4, 2, dtype=torch.int64)),
        ("nll", torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(name: str, output: Tensor, target: Tensor) -> None:
    with pytest.raises(UsageError, match="cannot compare an output of shape") as caught:
        resolve_loss(name)(output, target)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "dtype", "fix"),
    [
        ("cross_entropy", torch.float32, "loss='mse' or loss='l1'"),
        ("cross_entropy", torch.int32, "int64"),
        ("mse", torch.int64, "cross_entropy"),
        ("bce_with_logits", torch.bool, "float"),
    ],
)
def test_a_target_of_another_kind_is_refused_with_the_fix(name: str, dtype: torch.dtype, fix: str) -> None:
    with pytest.raises(UsageError, match="the target is") as caught:
        resolve_loss(name)(torch.zeros(4, 2), torch.zeros(4, 2 if "bce" in name else 1).to(dtype))
    assert fix in str(caught.value)


def test_floats_meet_in_the_wider_one() -> None:
    target = torch.tensor([1 / 3, 0.1], dtype=torch.float64)
    output = torch.zeros(2, 1, requires_grad=True)
    mean = resolve_loss("mse")(output, target)
    mean.backward()  # type: ignore[no-untyped-call]
    assert mean.dtype == torch.float64
    assert output.grad is not None
    assert output.grad.dtype == torch.float32


def test_a_column_of_labels_and_maps_of_labels_fit_cross_entropy() -> None:
    loss = resolve_loss("cross_entropy")
    output, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(loss(output, labels[:, None]), loss(output, labels))
    assert loss(torch.randn(2, 3, 5, 5), torch.zeros(2, 5, 5, dtype=torch.int64)).ndim == 0


def test_a_loss_of_ones_own_sees_what_the_model_returns() -> None:
    def distance(output: Tensor, target: Tensor) -> Tensor:
        assert output.shape == (2, 1)
        return (output[:, 0] - target).abs().mean()

    assert resolve_loss(distance).name == "distance"
    assert float(resolve_loss(distance)(torch.ones(2, 1), torch.zeros(2, dtype=torch.int64))) == 1
