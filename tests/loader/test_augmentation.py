"""Numbers that belong to a sample, and transforms that draw them: the same whatever batch, lanes or resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as hs

import streamtrain as st
from streamtrain.errors import UsageError
from streamtrain.loader.augmentation import sample_keys, takes_keys

M64 = (1 << 64) - 1


def mix(z: int) -> int:
    z &= M64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & M64
    return z ^ z >> 31


@given(key=hs.integers(-(1 << 63), (1 << 63) - 1), draw=hs.integers(0, 9))
def test_numbers_are_those_of_the_integers_written_out(key: int, draw: int) -> None:
    start = mix(key + (draw + 1) * 0x9E3779B97F4A7C15)
    words = [mix(start + i) for i in range(6)]
    keys = torch.tensor([key])
    wide = st.uniform(keys, (2, 3), draw=draw, dtype=torch.float64)
    assert wide.tolist() == [[[w >> 11 for w in words][:3], [w >> 11 for w in words][3:]]] or torch.equal(
        wide, torch.tensor([w >> 11 for w in words], dtype=torch.float64).reshape(1, 2, 3) * 2.0**-53
    )
    narrow = st.uniform(keys, (6,), draw=draw)
    assert torch.equal(narrow, torch.tensor([w >> 40 for w in words], dtype=torch.float32).reshape(1, 6) * 2.0**-24)


def test_keys_are_those_of_the_seed_the_epoch_and_the_sample() -> None:
    samples = np.arange(1000)
    keys = sample_keys(1, 2, samples)
    assert len(keys.unique()) == 1000
    assert torch.equal(sample_keys(1, 2, samples[::-1]), keys.flip(0))
    for other in (sample_keys(1, 3, samples), sample_keys(2, 2, samples)):
        assert not bool((other == keys).any())


@pytest.mark.parametrize("draw", [st.uniform, st.normal])
def test_draws_are_independent_of_each_other(draw: Any) -> None:
    keys = sample_keys(0, 0, np.arange(20_000))
    several = torch.stack([*draw(keys, (3,), dtype=torch.float64).T, draw(keys, draw=1, dtype=torch.float64)])
    mean, std = (0.5, 12**-0.5) if draw is st.uniform else (0.0, 1.0)
    assert several.mean(1).tolist() == pytest.approx([mean] * 4, abs=0.03)
    assert several.std(1).tolist() == pytest.approx([std] * 4, abs=0.03)
    correlated = torch.corrcoef(several) - torch.eye(4, dtype=torch.float64)
    assert correlated.abs().max() < 0.04
    assert torch.isfinite(several).all()


@pytest.mark.parametrize(
    ("transform", "expected"),
    [(None, False), (lambda batch: 0, False), (lambda batch, keys: 0, True), (lambda batch, noise=1: 0, False)],
)
def test_a_transform_takes_keys_where_it_needs_a_second_argument(transform: Any, expected: bool) -> None:
    assert takes_keys(transform) is expected


@pytest.mark.parametrize(
    "keys", [torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)]
)
def test_what_are_no_keys_is_refused(keys: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="keys are"):
        st.uniform(keys)
    with pytest.raises(UsageError, match="float16"):
        st.uniform(torch.zeros(3, dtype=torch.int64), dtype=torch.float16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    path: Path = tmp_path_factory.mktemp("data") / "d.zarr"
    return st.ingest({"x": np.arange(997.0), "y": np.arange(997)}, path, block=16 * 20)


def noisy(batch: Any, keys: torch.Tensor) -> dict[int, float]:
    return dict(zip(batch.y.tolist(), st.uniform(keys, dtype=torch.float64).tolist(), strict=True))


def drawn(loader: st.StreamLoader) -> dict[int, float]:
    return {sample: number for batch in loader for sample, number in batch.items()}


def test_a_sample_is_augmented_alike_in_any_batch_by_any_lanes_and_after_any_pause(dataset: st.Dataset) -> None:
    with st.StreamLoader(dataset, batch_size=31, memory="16MB", seed=4, transform=noisy) as loader:
        first, second = drawn(loader), drawn(loader)
    expected = st.uniform(sample_keys(4, 0, np.arange(997)), dtype=torch.float64)
    assert [first[sample] for sample in range(997)] == expected.tolist()
    assert len(second) == 997
    assert not set(first.values()) & set(second.values()), "every epoch augments anew"
    for how in (
        {"batch_size": 64, "lanes": 8},
        {"batch_size": 100, "shuffle": False},
        {"batch_size": 1, "device": "cpu"},
    ):
        with st.StreamLoader(dataset, memory="16MB", seed=4, transform=noisy, **how) as loader:
            assert drawn(loader) == first
    with st.StreamLoader(dataset, batch_size=50, drop_last=True, memory="16MB", seed=4, transform=noisy) as loader:
        assert drawn(loader).items() < first.items()
    with st.StreamLoader(dataset, batch_size=31, memory="16MB", seed=4, transform=noisy) as loader:
        batches = iter(loader)
        before = {sample: number for _ in range(5) for sample, number in next(batches).items()}
        state = loader.state_dict()
    with st.StreamLoader(dataset, batch_size=31, memory="16MB", seed=4, transform=noisy) as loader:
        loader.load_state_dict(state)
        assert before | drawn(loader) == first
