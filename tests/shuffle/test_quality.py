"""The quality of an order, compared with its definition written out, and for orders whose quality is known."""

from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.shuffle.order import ShuffleParameters, sequential_order, shuffled_order
from streamtrain.shuffle.positions import samples_at
from streamtrain.shuffle.quality import LabelPopulation, label_population, measure_quality, pieces_of


def by_the_book(order: np.ndarray, labels: np.ndarray, batch_size: int, block_rows: int) -> dict[str, float | None]:
    """The three figures, batch by batch and pair by pair."""
    n = len(order)
    shares = np.bincount(labels) / n
    batches = [order[i : i + batch_size] for i in range(0, n, batch_size)]
    counts = [np.bincount(labels[batch], minlength=len(shares)) for batch in batches]
    whole = [count for count in counts if count.sum() == batch_size]
    population = LabelPopulation(n_samples=n, shares=shares)
    variance = np.mean([np.square(count - batch_size * shares).sum() for count in whole]) if whole else 0
    prefix = np.cumsum(counts, axis=0)
    drift = np.abs(prefix - prefix.sum(axis=1, keepdims=True) * shares).max()
    met: dict[tuple[int, int], int] = {}
    for batch in batches:
        for a, b in combinations((batch // block_rows).tolist(), 2):
            if a != b:
                pair = min(a, b), max(a, b)
                met[pair] = met.get(pair, 0) + 1
    rows = np.bincount(np.arange(n) // block_rows)
    random = sum(m * (rows[a] * rows[b] - 1) for (a, b), m in met.items()) * (batch_size - 1) / max(1, n - 1)
    return {
        "variance": variance / population.batch_variance(batch_size) if population.batch_variance(batch_size) else 1.0,
        "drift": drift / population.drift(n) if len(shares) > 1 else 1.0,
        "coincidence": sum(m * (m - 1) for m in met.values()) / random if random else None,
    }


@given(st.data())
def test_the_figures_are_their_definition(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    labels = np.repeat(np.arange(len(counts)), counts)
    order = np.array(data.draw(st.permutations(range(len(labels)))), np.int64)
    batch_size, block_rows = data.draw(st.integers(1, len(labels))), data.draw(st.integers(1, 20))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=4)))
    population, classes = label_population(labels)
    found = measure_quality(
        np.split(order, cuts), classes.take, population, batch_size=batch_size, block_rows=block_rows
    )
    expected = by_the_book(order, labels, batch_size, block_rows)
    assert found.n_samples == len(labels)
    assert found.n_batches == len(labels) // batch_size
    assert found.variance == pytest.approx(expected["variance"], abs=1e-9)
    assert found.drift == pytest.approx(expected["drift"])
    assert found.coincidence == pytest.approx(expected["coincidence"])


@pytest.mark.parametrize("n_classes", [2, 3, 7, 10, 49])
def test_equal_shares_and_batches_of_one_have_no_error(n_classes: int) -> None:
    # A batch of one always has the same variance, whichever class it is of.
    population, _ = label_population(np.arange(n_classes))
    assert population.variance_error(1, n_batches=5) == pytest.approx(0, abs=1e-12)


def test_one_rare_sample_has_an_error() -> None:
    population = LabelPopulation(n_samples=10**9, shares=np.array([1 - 1e-9, 1e-9]))
    assert population.variance_error(100, n_batches=10**7) > 0


@pytest.mark.parametrize("labels", [np.arange(40_000) // 4000, np.arange(40_000) ** 2 % 7, np.linspace(-1, 5, 40_000)])
def test_a_full_reshuffle_is_one(labels: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    population, classes = label_population(labels)
    orders = [rng.permutation(len(labels)) for _ in range(8)]
    found = [measure_quality([o], classes.take, population, batch_size=100, block_rows=50) for o in orders]
    assert all(abs(q.variance - 1) < 4.5 * q.variance_error for q in found), found
    assert np.mean([q.drift for q in found]) == pytest.approx(1, abs=0.25)
    assert np.mean([q.coincidence for q in found]) == pytest.approx(1, abs=0.1)
    assert sum(q.is_random for q in found) >= 7


@pytest.mark.parametrize("labels", [np.arange(100_000) // 10_000, np.arange(100_000) / 7])
def test_sorted_data_is_bad_as_stored_and_good_interleaved(labels: np.ndarray) -> None:
    population, classes = label_population(labels)
    shuffle = ShuffleParameters(n_samples=len(labels), block_rows=50, batch_size=100, lanes=126)
    stored = measure_quality(pieces_of(sequential_order(len(labels), 50)), classes.take, population, batch_size=100)
    mixed = measure_quality(
        pieces_of(shuffled_order(shuffle, seed=0, epoch=0)), classes.take, population, batch_size=100, block_rows=50
    )
    assert stored.variance > 90
    assert stored.drift > 30
    assert not stored.is_random
    assert mixed.variance < 0.2
    assert mixed.drift < 1
    assert mixed.is_random
    # Samples of one block leave it over many batches: the blocks beside it in the pool are met again and again.
    assert mixed.coincidence is not None
    assert mixed.coincidence > 2


def test_a_stretch_says_of_variance_what_the_whole_does() -> None:
    labels = np.arange(200_000) // 200
    population, classes = label_population(labels)
    order = shuffled_order(
        ShuffleParameters(n_samples=len(labels), block_rows=20, batch_size=50, lanes=100), seed=0, epoch=0
    )
    whole = measure_quality(pieces_of(order), classes.take, population, batch_size=50, block_rows=20)
    middle = measure_quality(pieces_of(order, 80_000, 130_000), classes.take, population, batch_size=50, block_rows=20)
    assert middle.n_samples == 50_000
    assert middle.variance == pytest.approx(whole.variance, rel=0.1)
    assert middle.coincidence is None, "others of the same blocks lie outside the stretch"


@given(st.integers(1, 300), st.data())
def test_pieces_are_the_order(n_samples: int, data: st.DataObject) -> None:
    shuffle = ShuffleParameters(n_samples=n_samples, block_rows=7, batch_size=6, lanes=min(6, n_samples))
    order = shuffled_order(shuffle, seed=1, epoch=4)
    start = data.draw(st.integers(0, n_samples))
    stop = data.draw(st.none() | st.integers(0, 2 * n_samples))
    found = [sample for piece in pieces_of(order, start, stop) for sample in piece.tolist()]
    end = n_samples if stop is None else max(start, min(stop, n_samples))
    assert found == samples_at(order, start, end).tolist()


def test_many_classes_are_measured_in_little_memory() -> None:
    labels = np.arange(400_000, dtype=np.uint16) % 40_000
    population, classes = label_population(labels)
    order = np.random.default_rng(0).permutation(len(labels))
    tracemalloc.start()
    found = measure_quality([order], classes.take, population, batch_size=64, block_rows=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.variance == pytest.approx(1, abs=0.01)
    assert peak < 100e6, "a table of batches by classes would take 2 GB"


def test_labels_are_asked_for_piece_by_piece() -> None:
    asked = []

    def labels_of(some: np.ndarray) -> np.ndarray:
        asked.append(len(some))
        return some % 2

    population = LabelPopulation(n_samples=1_000_000, shares=np.array([0.5, 0.5]))
    measure_quality([np.arange(1_000_000)], labels_of, population, batch_size=1000)
    assert sum(asked) == 1_000_000
    assert max(asked) < 150_000
