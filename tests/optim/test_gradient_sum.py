"""Sums of gradients: their dtypes, their exactness, and resume bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamtrain.errors import UnknownName
from streamtrain.optim.gradient_sum import GRAD_SUM_DTYPES, ExactSum, GradientSum


def gradients(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean = torch.logspace(-3, 1, 200)
    return [torch.randn(200, generator=generator) * (1 + i % 7) + mean for i in range(n)]


def summed(found: list[Tensor], dtype: str, stop_at: int | None = None) -> Tensor:
    parameter = nn.Parameter(torch.zeros(200))
    total = GradientSum(dtype)
    for i, gradient in enumerate(found):
        if i == stop_at:
            state = total.state_dict()
            total = GradientSum(dtype)
            total.load_state_dict([parameter], state)
        parameter.grad = gradient.clone()
        total.add([parameter], 2.0)
    assert total.weight == 2.0 * len(found)
    total.put([parameter])
    assert parameter.grad is not None
    assert parameter.grad.dtype == torch.float32
    return parameter.grad


@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1.0), ("compensated", 4.0)])
def test_a_sum_is_that_in_float64_to_a_few_ulp(dtype: str, bar: float) -> None:
    found = gradients(2000)
    wide = torch.stack(found).double()
    expected, held = wide.sum(0), wide.sum(0).abs() >= 1e-3 * wide.abs().sum(0)
    assert held.sum() > 100
    rounded = expected.float().abs()
    unit = torch.nextafter(rounded, torch.full_like(rounded, torch.inf)) - rounded
    ulps = (summed(found, dtype).double() - expected).abs() / unit
    plain = (summed(found, "float32").double() - expected).abs() / unit
    assert float(ulps[held].max()) <= bar
    assert float(plain[held].max()) > 10, "a plain sum would do as well"


@pytest.mark.parametrize("dtype", GRAD_SUM_DTYPES)
def test_a_sum_goes_on_bit_for_bit(dtype: str) -> None:
    found = gradients(50)
    assert torch.equal(summed(found, dtype), summed(found, dtype, stop_at=23))


def test_only_float64_takes_what_float32_cannot_hold() -> None:
    for dtype, expected in (("float64", 1.0 + 2.0**-40), ("compensated", 1.0)):
        parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        total = GradientSum(dtype)
        parameter.grad = torch.tensor([1.0 + 2.0**-40], dtype=torch.float64)
        total.add([parameter], 1.0)
        total.put([parameter])
        assert parameter.grad.item() == expected


def test_a_sum_of_losses_keeps_what_roundings_leave_out() -> None:
    total = ExactSum()
    for term in (1e16, 1.0, 1.0, -1e16):
        total.add(term)
    assert total.value == ExactSum(*total.state()).value == 2.0


def test_an_unknown_dtype_says_which_was_meant() -> None:
    with pytest.raises(UnknownName, match="did you mean 'compensated'") as caught:
        GradientSum("compensate")
    assert caught.value.exit_code == 2
