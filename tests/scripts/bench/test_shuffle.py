"""The shuffle benchmark at small size: every row beside its full reshuffle, training on made-up images."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from run_script import results_of, run_script

from scripts.bench import shuffle_orders as orders

IMAGES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
LABELS = ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def run(folder: Path, *words: str) -> list[dict[str, object]]:
    done = run_script("bench/shuffle.py", "--folder", folder, *words)
    results = results_of(done)
    assert not list(folder.glob("streamtrain-*"))
    return results


def test_the_table(tmp_path: Path) -> None:
    small = ["--parts", "table", "--samples", "40000", "--lanes", "40", "--epochs", "2", "--batch-size", "64"]
    results = run(tmp_path, *small)
    by_row = {(result["labels"], result["order"]): result for result in results}
    assert len(by_row) == len(results) == 5 * 6
    ours, stored = (by_row["10 classes sorted", order] for order in ("streamtrain", "stored order"))
    assert ours["lanes"] == 40
    assert 0 < ours["variance"] < 1 < stored["variance"]
    assert ours["drift"] < stored["drift"]
    assert 0.9 < ours["reads_ratio"] <= 1 + 2 * 40 / 400, "two more reads a lane where nothing is cached"
    assert "bar" in ours
    assert ours["bar"] is None, "the bars are for data of another size"
    assert {result["variance"] for result in results if result["order"] == "full reshuffle"} == {1.0}
    assert ours["power"]["whole"] < stored["power"]["whole"]
    assert ours["reference"]["power"] == by_row["10 classes sorted", "full reshuffle"]["power"]


def test_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for images, labels, n in zip(IMAGES, LABELS, (1000, 200), strict=True):
        y = rng.integers(0, 10, n, dtype=np.uint8)
        x = rng.integers(0, 40, (n, 28, 28), dtype=np.uint8)
        x[np.arange(n), y] += 200
        for name, array in ((images, x), (labels, y)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (tmp_path / name).write_bytes(gzip.compress(head + array.tobytes()))
    run_as = ("--fashion", str(tmp_path), "--seeds", "2", "--train-epochs", "2")
    *results, by_sections = run(tmp_path, "--parts", "training", "sections", *run_as, "--sections", "5", "--held", "8")
    assert (by_sections["sections"], by_sections["blocks_of_which_one_is_held"]) == (5, 8)
    assert by_sections["reference"]["accuracy"] == results[0]["accuracy"]
    orders = [str(result["order"]) for result in results]
    assert orders[:2] == ["full reshuffle", "streamtrain"]
    assert orders[2].startswith("rolling window")
    assert all(len(result["accuracies"]) == 2 for result in results)
    reshuffled, ours = results[:2]
    assert reshuffled["accuracy"] > 0.5, "a bright row tells the class"
    assert ours["bar"] == pytest.approx(reshuffled["accuracy"] - reshuffled["deviation"], abs=2e-4)


@pytest.mark.parametrize(("name", "sizes"), [("window_of_blocks", [3]), ("rolling_window", [3])])
def test_other_orders_are_orders(name: str, sizes: list[int]) -> None:
    found = getattr(orders, name)(np.random.default_rng(0), 1003, 10, *sizes)
    assert sorted(found.tolist()) == list(range(1003))
    assert not np.array_equal(found, np.arange(1003))


def test_a_buffer_gives_samples_at_random_from_what_it_holds() -> None:
    order = orders.shuffle_buffer(np.random.default_rng(0), 1003, 10, 50)
    stream = orders.permuted_blocks(np.random.default_rng(0), 1003, 10)
    assert sorted(order.tolist()) == list(range(1003))
    came = np.argsort(stream)[order]
    assert (came <= np.arange(1003) + 50).all(), "no sample leaves before it came"
