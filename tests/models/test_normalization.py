"""Input normalization: its statistics and its precision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamtrain.errors import UsageError
from streamtrain.models.normalization import Normalize, NormalizedModel, normalize_field
from streamtrain.store.layout import Field


def statistics(rows: np.ndarray[Any, Any]) -> Any:
    overall = SimpleNamespace(mean=float(rows.mean()), std=float(rows.std()))
    return SimpleNamespace(mean=rows.mean(axis=0), std=rows.std(axis=0), overall=overall)


def normalized(rows: np.ndarray[Any, Any]) -> torch.Tensor:
    field = Field(name="x", dtype=rows.dtype, shape=rows.shape[1:])
    result: torch.Tensor = normalize_field(field, statistics(rows))(torch.from_numpy(rows))
    return result


@pytest.mark.parametrize("shape", [(50, 6, 6), (50, 36)])
def test_images_have_one_scale(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    images[:, 0] = 0
    out = normalized(images)
    assert out.dtype == torch.float32
    assert out.shape == shape
    torch.testing.assert_close(out.double().numpy(), (images - images.mean()) / images.std(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_columns_of_a_table_have_their_own(dtype: str) -> None:
    table = (np.random.default_rng(0).normal(size=(200, 3)) * [1000, 20, 0] + [5e4, 2, 7]).astype(dtype)
    out = normalized(table)
    assert out.dtype == torch.float32
    assert torch.allclose(out.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(out.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3)


def test_large_float64_values_are_centred_before_they_are_cast() -> None:
    seconds = 1.7e9 + np.arange(100.0)[:, None]
    out = normalized(seconds)
    assert len(torch.unique(out)) == 100


def test_statistics_that_are_not_finite_are_refused() -> None:
    rows = np.array([[1.0], [np.nan]])
    with pytest.raises(UsageError, match="not finite") as caught:
        normalized(rows)
    assert caught.value.exit_code == 2


def test_front_rescales_the_inputs_it_is_told_to_and_no_other() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            return a + values

    front = NormalizedModel(Sum(), ("a", "values"))
    front.put({"values": Normalize(torch.tensor(10.0), torch.tensor(0.0))}, torch.device("cpu"))
    assert front(torch.ones(1), torch.tensor([12.0])).item() == 3
    assert list(front.modules_by_input()) == ["values"]


def test_float32_far_from_0_is_centred_too() -> None:
    rows = np.tile(np.float32([2**24, 2**24 + 2]), 50)[:, None]
    out = normalize_field(Field(name="x", dtype=rows.dtype, shape=(1,)), statistics(rows.astype(np.float64)))
    torch.testing.assert_close(out(torch.from_numpy(rows[:2])).flatten(), torch.tensor([-1.0, 1.0]))


def test_the_extremes_of_float32_stay_finite() -> None:
    rows = np.float32([[-3e38], [3e38], [-3e38], [-3e38]])
    stats = SimpleNamespace(mean=rows.astype(float).mean(0), std=rows.astype(float).std(0), overall=None)
    out = normalize_field(Field(name="x", dtype=rows.dtype, shape=(1,)), stats)(torch.from_numpy(rows))
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, 3.0, -1.0, -1.0]) / 3**0.5)


@pytest.mark.parametrize(
    ("mean", "std", "scale"),
    [
        (0.1, 2e-17, 1.0),
        (1e9, 4e-7, 1.0),
        (1e9, 1e-3, 1e-3),
        (2.0**52, 0.5, 0.5),
        (2.0**60, 100.0, 1.0),
        (0.0, 1e-30, 1e-30),
    ],
)
def test_a_spread_of_roundings_is_none(mean: float, std: float, scale: float) -> None:
    stats = SimpleNamespace(mean=np.array([mean]), std=np.array([std]), overall=None)
    assert float(normalize_field(Field(name="x", dtype=np.dtype("float64"), shape=(1,)), stats).std) == scale
