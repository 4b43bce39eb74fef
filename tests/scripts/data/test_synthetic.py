"""Synthetic rows: any range of them alone, never constant, as compressible as asked; the command at small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from run_script import run_script

import streamtrain as st
from scripts.data import synthetic
from scripts.data.synthetic import Recipe


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return run_script("data/synthetic.py", *words)


@given(
    n_samples=some.integers(1, 300),
    row_bytes=some.integers(1, 40),
    compressibility=some.floats(1, 30),
    order=some.sampled_from(["sorted", "shuffled"]),
    at=some.tuples(some.floats(0, 1), some.floats(0, 1)),
)
@settings(max_examples=60, deadline=None)
def test_any_range_is_that_part_of_the_whole(
    n_samples: int, row_bytes: int, compressibility: float, order: str, at: tuple[float, float]
) -> None:
    recipe = Recipe(n_samples=n_samples, shape=(row_bytes,), compressibility=compressibility, n_classes=1, order=order)
    start, stop = sorted(round(part * n_samples) for part in at)
    for array in synthetic.arrays_of(recipe).values():
        whole = array[0:n_samples]
        assert array.shape == whole.shape
        assert array.dtype == whole.dtype
        np.testing.assert_array_equal(array[start:stop], whole[start:stop])


@pytest.mark.parametrize("compressibility", [1, 1.33, 4, 25, 1000])
def test_no_two_rows_are_alike_and_a_class_has_more_than_one_face(compressibility: float) -> None:
    recipe = Recipe(n_samples=500, shape=(512,), compressibility=compressibility, n_classes=2)
    rows = synthetic.arrays_of(recipe)["x"][0:500]
    # At 1000 to 1 four bits of a row are left to be random.
    assert len(np.unique(rows, axis=0)) == 500 if compressibility < 1000 else len(np.unique(rows, axis=0)) > 20
    assert len(np.unique(rows[:100], axis=0)) > 10


def test_the_classes_are_even_and_come_in_the_order_asked_for() -> None:
    in_order = Recipe(n_samples=1000, n_classes=10).labels(0, 1000)
    assert (np.diff(in_order) >= 0).all()
    assert np.bincount(in_order).tolist() == [100] * 10
    mixed = Recipe(n_samples=1000, n_classes=10, order="shuffled").labels(0, 1000)
    assert 300 < (np.diff(mixed) < 0).sum() < 600
    assert np.bincount(mixed, minlength=10).min() > 60
    assert (mixed != Recipe(n_samples=1000, n_classes=10, order="shuffled", seed=1).labels(0, 1000)).any()


@pytest.mark.parametrize("compressibility", [1.2, 4 / 3, 2, 25])
def test_the_class_can_be_learned(compressibility: float) -> None:
    recipe = Recipe(n_samples=400, shape=(64,), compressibility=compressibility, n_classes=10)
    rows, labels = recipe.rows(0, 400, recipe.patterns()), recipe.labels(0, 400)
    means = np.stack([rows[labels == label][:20].mean(axis=0) for label in range(10)])
    nearest = ((rows[:, None].astype(float) - means) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == labels).mean() > 0.95


@pytest.mark.parametrize(("compressibility", "codec"), [(1.33, "lz4"), (4, "lz4"), (4, "zstd"), (10, "zstd")])
def test_it_compresses_as_asked(tmp_path: Path, compressibility: float, codec: str) -> None:
    # Short rows: beside 2 MB of them, the statistics of each feature weigh nothing.
    recipe = Recipe(n_samples=8000, shape=(256,), compressibility=compressibility)
    stored = synthetic.write_dataset(recipe, tmp_path / "d.zarr", codec=codec, progress=False)
    assert 0.7 * compressibility < recipe.n_bytes / stored < 1.1 * compressibility


def test_files_and_dataset_hold_the_same_rows(tmp_path: Path) -> None:
    options = ("--size", "300kB", "--row-bytes", 100, "--classes", 3, "--shuffled", "--seed", 7)
    stored = run(tmp_path / "d.zarr", *options, "--codec", "lz4")
    plain = run(tmp_path / "files", *options, "--format", "npy")
    assert (stored.returncode, plain.returncode) == (0, 0), stored.stderr + plain.stderr
    result = json.loads(stored.stdout)
    assert result["n_samples"] == 300_000 // 108
    assert result["decoded_bytes"] == 108 * result["n_samples"]
    assert (result["order"], result["codec"], json.loads(plain.stdout)["codec"]) == ("shuffled", "lz4", None)
    assert result["achieved_ratio"] == pytest.approx(result["decoded_bytes"] / result["stored_bytes"], abs=0.01)
    rows = st.open(tmp_path / "d.zarr")[:]
    for name in ("x", "y"):
        np.testing.assert_array_equal(rows[name], np.load(tmp_path / "files" / f"{name}.npy"))
    again = run(tmp_path / "files", *options, "--format", "npy")
    assert again.returncode == 2
    assert "error:" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--compressibility", "0.5"), 2, "not between 1 and 1000"),
        (("--size", "many"), 2, "many"),
        (("--sorted", "--shuffled"), 2, "not allowed with"),
        (("--size", "900TB", "--codec", "none"), 5, "are needed"),
    ],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, words: tuple[str, ...], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["synthetic.py", str(tmp_path / "d.zarr"), *words])
    with pytest.raises(SystemExit) as stopped:
        synthetic.main()
    assert stopped.value.code == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
