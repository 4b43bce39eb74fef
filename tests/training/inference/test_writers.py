"""Files of predictions: what each holds; a kill or a full disk leaves the old one, none, or the whole new one."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import streamtrain as st
from scripts.faults.syscall_faults import Failing, Killing, Watched
from streamtrain.errors import ResourceError, UsageError
from streamtrain.system.files import Files, is_temporary
from streamtrain.system.syscalls import Syscalls
from streamtrain.training.inference.predictions import Part, PredictionForm
from streamtrain.training.inference.writers.target import SUFFIXES, check_target, open_target

FORM = PredictionForm(task="classification", classes=("cat", "dog, large", "élan"))
N, PER_PART = 50, 20
STEPS = {".zarr": 9}
"""A dataset takes many calls, of which every ninth is tried here."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here, and a busy disk makes every file wait; the calls are seen all the same."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def parts(n: int = N, *, with_id: bool = True) -> Iterator[Part]:
    rng = np.random.default_rng(0)
    for start in range(0, n, PER_PART):
        size = min(PER_PART, n - start)
        probabilities = rng.dirichlet(np.ones(3), size).astype(np.float32)
        numbers = probabilities.argmax(1)
        id_ = np.arange(start, start + size) * 7 if with_id else None
        yield Part(first_row=start, prediction=numbers, probabilities=probabilities, class_numbers=numbers, id=id_)


def written(
    path: Path, *, probabilities: bool = True, memory: int = 10**6, files: Files | None = None, n: int = N
) -> None:
    options: dict[str, Any] = {"n_rows": n, "memory": memory, "source": "d.zarr", "files": files}
    with open_target(path, FORM, probabilities=probabilities, **options) as writer:
        for part in parts(n):
            writer.add(part)


def whole() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    all_parts = list(parts())
    found = [part.probabilities for part in all_parts if part.probabilities is not None]
    return np.concatenate([part.prediction for part in all_parts]), np.concatenate(found)


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_text_holds_names_and_every_bit_of_the_numbers(tmp_path: Path, suffix: str, delimiter: str) -> None:
    written(tmp_path / f"p{suffix}")
    prediction, probabilities = whole()
    with (tmp_path / f"p{suffix}").open(newline="") as file:
        head, *rows = csv.reader(file, delimiter=delimiter)
    assert head == ["row", "id", "prediction", "probability", "p_cat", "p_dog, large", "p_élan"]
    assert [int(row[0]) for row in rows] == list(range(N))
    assert [int(row[1]) for row in rows] == [7 * n for n in range(N)]
    assert [row[2] for row in rows] == [FORM.class_name(n) for n in prediction.tolist()]
    assert np.array_equal(np.array([row[4:] for row in rows], float), probabilities)
    assert np.array_equal(np.array([row[3] for row in rows], float), probabilities.max(1))


def test_parquet_holds_the_same_columns(tmp_path: Path) -> None:
    written(tmp_path / "p.parquet", memory=4000)
    prediction, probabilities = whole()
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["row", "id", "prediction", "probability", "p_cat", "p_dog, large", "p_élan"]
    assert table["prediction"].to_pylist() == [FORM.class_name(n) for n in prediction.tolist()]
    assert np.array_equal(np.stack([table[name].to_numpy() for name in table.column_names[4:]], 1), probabilities)
    assert pyarrow.parquet.ParquetFile(tmp_path / "p.parquet").num_row_groups > 1


@pytest.mark.parametrize("probabilities", [False, True])
def test_an_array_holds_predictions_or_probabilities(tmp_path: Path, probabilities: bool) -> None:
    written(tmp_path / "p.npy", probabilities=probabilities)
    assert np.array_equal(np.load(tmp_path / "p.npy"), whole()[probabilities])


@pytest.mark.parametrize("memory", [4000, 10**6])
def test_a_dataset_holds_all_of_it(tmp_path: Path, memory: int) -> None:
    written(tmp_path / "p.zarr", memory=memory)
    dataset = st.open(tmp_path / "p.zarr")
    rows = dataset[:]
    assert np.array_equal(rows["prediction"], whole()[0])
    assert np.array_equal(rows["probability"], whole()[1])
    assert rows["row"].tolist() == list(range(N))
    assert rows["id"].tolist() == [7 * n for n in range(N)]
    assert (dataset.layout.n_blocks > 1) == (memory == 4000)


def content(path: Path) -> object:
    """What is under the name: nothing, or all of a file or dataset."""
    if not path.exists():
        return None
    return st.open(path)[:]["prediction"].tolist() if path.is_dir() else path.read_bytes()


def write_in_child(path: Path, system: Syscalls) -> bool:
    """Write in a process of its own; say whether it came to its end."""
    child = os.fork()
    if not child:
        try:
            written(path, files=Files(system=system))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status)


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_kill_at_any_call_leaves_the_old_one_or_the_whole_new_one(
    tmp_path: Path, suffix: str, is_there: bool
) -> None:
    path = tmp_path / f"p{suffix}"
    written(path)
    new = content(path)
    old = None
    for at in range(1, 500, STEPS.get(suffix, 1)):
        if is_there:
            check_target(path, overwrite=True)
            written(path, n=PER_PART)
            old = content(path)
        else:
            removed(path)
        ended = write_in_child(path, Killing(at, is_torn=at % 2 == 0))
        assert content(path) in (old, new), f"call {at}"
        if ended:
            break
    assert at > 4
    assert content(path) == new
    check_target(path, overwrite=True)
    written(path, n=PER_PART)
    assert all(is_temporary(each.name) for each in tmp_path.iterdir() if each != path)


def removed(path: Path) -> None:
    if path.is_dir():
        for entry in path.iterdir():
            removed(entry)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    for at in range(1, 500, STEPS.get(suffix, 1)):
        system = Failing(at, errno.ENOSPC)
        try:
            written(path, files=Files(system=system))
            break
        except ResourceError:
            pass
        if content(path) is not None:
            removed(path)  # what failed came after its name
        assert list(tmp_path.iterdir()) == [], f"call {at}"
    assert at > 3


def test_places_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").touch()
    st.ingest({"x": np.arange(3.0)}, tmp_path / "d.zarr", progress=False)
    for out, options in (
        ("p.csv", {}),
        ("p.txt", {}),
        ("p", {}),
        ("nowhere/p.csv", {}),
        ("d.zarr", {}),
        ("d.zarr/p.csv", {"overwrite": True}),
        ("p.csv", {"overwrite": True, "sources": [str(tmp_path / "p.csv")]}),
        ("d.zarr", {"overwrite": True, "sources": [str(tmp_path / "d.zarr")]}),
        ("d.zarr/in.zarr", {"overwrite": True}),
    ):
        with pytest.raises(UsageError):
            check_target(tmp_path / out, **({"overwrite": False} | options))  # type: ignore[arg-type]
    for out in ("p.csv", "d.zarr"):
        check_target(tmp_path / out, overwrite=True)


def test_every_call_that_writes_is_seen(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        system = Watched()
        written(tmp_path / f"p{suffix}", files=Files(system=system))
        assert system.n_calls >= 4, suffix
