"""Rescaling: which statistics, in which precision."""

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
