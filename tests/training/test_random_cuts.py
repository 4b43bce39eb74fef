"""A few runs that are cut short at random: the resumed ones are the uncut ones, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import random_cuts

import streamtrain as st

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    return random_cuts.make_dataset(tmp_path_factory.mktemp("data"))


# The first ones, and those that failed once: a transform that draws random numbers, a trainer that trains further
# after it found nothing left to do, and a run killed before its folder had a configuration.
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 11, 12, 50, 55])
def test_a_run_in_pieces_is_the_whole(dataset: st.Dataset, tmp_path: Path, seed: int) -> None:
    found, _ = random_cuts.check(seed, dataset, tmp_path)
    assert found is None
