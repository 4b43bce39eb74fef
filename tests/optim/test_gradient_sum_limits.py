"""Sums of gradients and losses at their limits: overflow, no weight at all, half precision, sparse, added layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamtrain.errors import DivergedError, UsageError
from streamtrain.models.losses import resolve_loss
from streamtrain.optim.build_rule import make_rule
from streamtrain.optim.gradients import Clipping, Learner, TrainingBatch, grad_norm
from streamtrain.optim.rules import UpdateRule
from streamtrain.optim.step_options import StepOptions
from streamtrain.training.step_errors import name_bad_samples

pytestmark = pytest.mark.usefixtures("one_thread")


def rule_of(net: nn.Module, loss: Any, update: str = "epoch", lr: float = 0.1, **options: Any) -> UpdateRule:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    return make_rule(update, Learner(model=net, loss=resolve_loss(loss), optimizer=optimizer), StepOptions(**options))


def slope(dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A line through 0 whose loss, its own output, has the gradient x."""
    line = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.zeros_(line.weight)
    return line


def output_itself(output: Tensor, target: Tensor) -> Tensor:
    return output[:, 0]


@pytest.mark.parametrize(
    ("dtype", "weights", "gradient"),
    [
        ("compensated", torch.float32, 2e38),
        ("float32", torch.float32, 2e38),
        ("compensated", torch.float64, 1e39),
        ("float32", torch.float64, 1e39),
    ],
)
@pytest.mark.parametrize("update", ["epoch", "batch"])
def test_a_sum_that_overflows_ends_the_run_with_the_last_good_weights(
    dtype: str, weights: torch.dtype, gradient: float, update: str
) -> None:
    net = slope(weights)
    windows = {"accumulate_grad_batches": 2} if update == "batch" else {}
    rule = rule_of(net, output_itself, update, lr=1e-39, grad_sum_dtype=dtype, **windows)
    x = torch.full((1, 1), gradient, dtype=weights)

    def two_batches() -> None:
        for _ in range(2):
            rule.learn(TrainingBatch(inputs=(x,), target=torch.zeros(1)))
        rule.end_epoch()

    with pytest.raises(DivergedError, match="sum of the gradients is not finite, though each of them is") as caught:
        two_batches()
    assert caught.value.exit_code == 8
    assert (net.weight.item(), rule.n_steps) == (0.0, 0)


def test_float64_holds_what_float32_cannot_and_a_mean_of_it_fits() -> None:
    net = slope()
    rule = rule_of(net, output_itself, lr=1e-38)
    for _ in range(2):
        rule.learn(TrainingBatch(inputs=(torch.full((1, 1), 2e38),), target=torch.zeros(1)))
    rule.end_epoch()
    assert net.weight.item() == pytest.approx(-2.0)


@pytest.mark.parametrize(("update", "options"), [("epoch", {}), ("batch", {"accumulate_grad_batches": 2})])
def test_a_batch_without_any_weight_takes_no_part_whatever_it_holds(update: str, options: dict[str, int]) -> None:
    net = slope()
    rule = rule_of(net, "mse", update, **options)
    rule.learn(TrainingBatch(inputs=(torch.ones(1, 1),), target=torch.ones(1, 1), weight=torch.ones(1)))
    rule.learn(TrainingBatch(inputs=(torch.full((1, 1), torch.nan),), target=torch.ones(1, 1), weight=torch.zeros(1)))
    rule.end_epoch()
    assert net.weight.item() == pytest.approx(0.2)
    assert rule.n_steps == 1


@pytest.mark.parametrize("options", [{"optimizer": "sgd"}, {"optimizer": "lbfgs"}])
def test_a_pass_without_any_weight_takes_no_step(options: dict[str, str]) -> None:
    net = slope()
    if options["optimizer"] == "lbfgs":
        optimizer: Any = torch.optim.LBFGS(net.parameters(), max_iter=1, max_eval=26, line_search_fn="strong_wolfe")
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rule = make_rule("epoch", Learner(model=net, loss=resolve_loss("mse"), optimizer=optimizer))
    rule.learn(TrainingBatch(inputs=(torch.ones(2, 1),), target=torch.ones(2, 1), weight=torch.zeros(2)))
    rule.end_epoch()
    assert (net.weight.item(), rule.n_steps) == (0.0, 0)


def test_the_sample_with_a_bad_gradient_is_named_and_not_those_whose_class_is_ignored() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x * self.scale)

    net = Root()
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0], [0.0, 2.0], [4.0, 1.0]])
    x[3] = torch.tensor([-0.0, 2.0])
    target = torch.tensor([0, -100, 1, 1, -100])
    learner = Learner(model=net, loss=resolve_loss("cross_entropy"), optimizer=torch.optim.SGD(net.parameters()))
    error = DivergedError("the gradient is not finite")
    name_bad_samples(error, learner, TrainingBatch(inputs=(x,), target=target), np.arange(100, 105))
    assert error.samples == (103,)


@pytest.mark.parametrize("module", [nn.HuberLoss, nn.SmoothL1Loss, nn.MSELoss])
def test_an_output_of_one_column_is_lined_up_with_its_target(module: type[nn.Module]) -> None:
    loss = resolve_loss(module())
    values = torch.tensor([1.0, 2.0, 5.0, 7.0])
    total, weight = loss.total(values[:, None], values)
    assert (float(total), weight) == (0.0, 4)
    assert float(loss(values[:, None], values)) == 0.0


def test_losses_in_half_precision_are_summed_where_they_fit() -> None:
    loss = resolve_loss("mse")
    output, target = torch.full((300, 1), 17.0, dtype=torch.half), torch.zeros(300, 1, dtype=torch.half)
    total, weight = loss.total(output, target)
    assert float(total) / weight == 289.0


def test_one_sample_whose_output_has_no_axis_can_be_weighed() -> None:
    total, weight = resolve_loss("mse").total(torch.tensor(3.0), torch.tensor(1.0), torch.tensor([0.5]))
    assert (float(total), float(weight)) == (2.0, 0.5)


def test_sparse_gradients_are_summed_and_measured_but_not_clipped() -> None:
    net = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Flatten())
    rule = rule_of(net, "mse")
    rule.learn(TrainingBatch(inputs=(torch.tensor([[1], [3]]),), target=torch.zeros(2, 2)))
    rule.end_epoch()
    assert rule.n_steps == 1
    norm = grad_norm(list(net.parameters()))
    assert rule.grad_norm == pytest.approx(norm)
    assert norm > 0
    with pytest.raises(UsageError, match="sparse gradients cannot be clipped"):
        Clipping(norm=1.0).clip(list(net.parameters()))
    Clipping().clip(list(net.parameters()))


def test_layers_that_the_optimizer_is_given_later_are_summed_as_well() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 2, generator=generator), torch.randn(6, 2, generator=generator)
    nets = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    streamed, whole = nets
    optimizer = torch.optim.SGD(streamed[0].parameters(), lr=0.1)
    rule = make_rule("epoch", Learner(model=streamed, loss=resolve_loss("mse"), optimizer=optimizer))
    optimizer.add_param_group({"params": list(streamed[1].parameters())})
    rule.learn(TrainingBatch(inputs=(x[:4],), target=y[:4]))
    rule.learn(TrainingBatch(inputs=(x[4:],), target=y[4:]))
    rule.end_epoch()
    nn.functional.mse_loss(whole(x), y).backward()  # type: ignore[no-untyped-call]
    for parameter, other in zip(streamed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
