"""A step that leaves no trace, and the three lines on what does not fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamtrain.errors import UsageError
from streamtrain.training.batch_stream import Rows
from streamtrain.training.trainer import Trainer


@pytest.fixture
def rows() -> Rows:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(12, 6)).astype(np.float32), "y": rng.integers(0, 3, 12)}


def make_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


MISFITS: list[tuple[Callable[[], nn.Module], str, str]] = [
    (
        lambda: nn.Linear(5, 3),
        "cross_entropy",
        r"error  mat1 and mat2 .* Fix: a model that takes samples of shape \(6,\)",
    ),
    (lambda: nn.Linear(6, 2), "cross_entropy", "error  2 outputs for 3 classes. Fix: end the model in 3 outputs"),
    (lambda: nn.Linear(6, 4), "cross_entropy", "4 outputs for 3 classes"),
    (lambda: nn.Linear(6, 1), "mse", "mse needs a float target; the target is int64. Fix: loss='cross_entropy'"),
    (lambda: nn.LSTM(6, 3), "cross_entropy", "the model returns tuple. Fix: return one tensor"),
    (lambda: nn.Linear(6, 3).double(), "cross_entropy", "error  mat1 and mat2 must have the same dtype"),
]


@pytest.mark.parametrize(("make", "loss", "message"), MISFITS)
def test_what_does_not_fit_is_said_in_three_lines(
    make: Callable[[], nn.Module], loss: str, message: str, rows: Rows
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Trainer(make(), loss=loss).check(rows, n_classes=3)
    head, data, model, _ = str(caught.value).splitlines()
    assert head == "the model does not fit the data"
    assert data == "  data   x float32 (6,), y int64 ()"
    assert model.startswith("  model  ")
    assert caught.value.exit_code == 2


def test_a_loss_of_ones_own_has_to_be_a_scalar_with_a_gradient(rows: Rows) -> None:
    def per_value(output: Tensor, target: Tensor) -> Tensor:
        return output * 1.0

    def no_graph(output: Tensor, target: Tensor) -> Tensor:
        return output.detach().mean()

    for loss in (per_value, no_graph):
        with pytest.raises(UsageError, match="not a scalar with a gradient"):
            Trainer(make_net(), loss=loss).check(rows)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_check_and_rehearsal_leave_no_trace(optimizer: str, rows: Rows) -> None:
    model = make_net()
    trainer = Trainer(model, loss="cross_entropy", optimizer=optimizer)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer_before = str(trainer.optimizer.state_dict())
    random = torch.get_rng_state()
    trainer.check(rows, n_classes=3)
    with trainer.working_memory(rows):
        assert str(trainer.optimizer.state_dict()) == optimizer_before
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert str(trainer.optimizer.state_dict()) == optimizer_before
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
