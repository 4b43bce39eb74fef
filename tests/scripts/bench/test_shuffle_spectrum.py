"""The spectrum of orders: of a reshuffle near 1, of one that aliases far above, of the loader's over drawn shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from run_script import results_of, run_script

from scripts.bench.shuffle_spectrum import PARTS, SHARES, draw_shapes, largest_power

N, B = 4096, 64


def test_a_reshuffle_has_no_more_power_than_chance_gives() -> None:
    orders = [np.random.default_rng(seed).permutation(N) for seed in range(20)]
    assert 1 < largest_power(orders, B) < 1.4


def test_an_order_that_aliases_has_all_its_power_in_one_frequency() -> None:
    """Batches of every 64th sample: labels of that period are the same all over a batch."""
    order = np.arange(N).reshape(B, -1).T.ravel()
    assert largest_power([order], B) == pytest.approx(B * (N - 1) / (N - B), rel=1e-4)


def test_a_fault_of_the_last_batches_shows_in_their_part() -> None:
    orders = [np.random.default_rng(seed).permutation(N) for seed in range(20)]
    for order in orders:
        order[-B:] = np.sort(order)[:B]
    whole, last = (largest_power(orders, B, part=part) for part in ("whole", "last 2 %"))
    assert last > 10 * whole
    assert set(PARTS) > {"whole", "last 2 %"}


def test_shapes_are_those_of_the_seed() -> None:
    shapes = draw_shapes(12, 5)
    assert shapes == draw_shapes(12, 5) != draw_shapes(12, 6)
    assert {shape.share for shape in shapes} <= set(SHARES)
    assert [shape.lanes is None for shape in shapes] == [place % 3 == 0 for place in range(12)]
    listed = run_script("bench/shuffle_spectrum.py", "--list", "--shapes", "12", "--seed", "5").stdout.splitlines()
    assert [int(line.split()[0]) for line in listed] == [shape.n_samples for shape in shapes]


def test_the_loader_s_order_of_drawn_shapes(tmp_path: Path) -> None:
    words = ("--shapes", "3", "--samples", "6000", "--most-batches", "1000")
    results = results_of(run_script("bench/shuffle_spectrum.py", "--folder", tmp_path, *words))
    assert [result["blocks_of_which_one_is_held"] for result in results][:2] == [1, 4]
    assert all(result["power"].keys() == set(PARTS) for result in results)
    assert not list(tmp_path.iterdir())
