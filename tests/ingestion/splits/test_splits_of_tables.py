"""Splits of tables with missing values, categories and dates: what is learned is learned from train alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import streamtrain as st

pytestmark = pytest.mark.filterwarnings("ignore::streamtrain.StreamtrainWarning")

N: Final = 2000
RULES: Final[Mapping[str, dict[str, Any]]] = {
    "by row": {"split": {"val": 0.2, "test": 0.1}},
    "by group": {"split": {"val": 0.2, "test": 0.1}, "split_by": "who"},
    "by a column that is left out": {"split": {"val": 0.2}, "split_by": "city", "exclude": ["city"]},
    "by a date": {"split": {"val": 0.25}, "split_by": "day", "split_how": "last"},
    "last": {"split": {"val": 0.2, "test": 0.1}, "split_how": "last"},
    "last of a group": {"split": {"val": 0.2}, "split_how": "last", "split_by": "who"},
}
OPTIONS: Final[dict[str, Any]] = {
    "label_column": "fare",
    "categorical": ["city", "kind"],
    "hash": {"code": 50},
    "dates": {"day": "days"},
    "na": "fill=mean",
    "na_mask": True,
    "drop_unlabelled": True,
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a table in which rare cities and large dosages stand at the end only."""
    chance = np.random.default_rng(0)
    rows = np.arange(N)
    missing = chance.random(N) < 0.1
    columns = {
        "age": [None if gone else int(value) for value, gone in zip(rows // 100, missing, strict=True)],
        "dose": chance.normal(rows / 100, 1.0),
        "city": [f"town {n}" for n in np.minimum(chance.geometric(0.1, N) + rows // 500, 60).tolist()],
        "kind": [None if n % 17 == 0 else "abc"[n % 3] for n in rows.tolist()],
        "code": [f"c{n}" for n in chance.integers(0, 500, N).tolist()],
        "day": [f"2024-{1 + n // 200:02}-{1 + n % 28:02}" for n in rows.tolist()],
        "who": (rows * 7 % 300).tolist(),
        "fare": [None if n % 23 == 0 else float(v) for n, v in enumerate(chance.normal(20, 5, N).tolist())],
    }
    folder = tmp_path_factory.mktemp("tables")
    pa.csv.write_csv(pa.table(columns), folder / "t.csv")
    pa.parquet.write_table(pa.table(columns), folder / "t.parquet", row_group_size=170)
    return folder


def _options(rule: str) -> dict[str, Any]:
    own = dict(RULES[rule])
    without = own.get("exclude", ())
    named = {"categorical": [name for name in OPTIONS["categorical"] if name not in without]}
    return {**OPTIONS, **named, **own}


def _by_hand(path: Path, dataset: Path, names: list[str]) -> dict[str, pd.DataFrame]:
    """The rows of the table of each split, found again by a column that differs in every row."""
    frame = pd.read_parquet(path)
    frame = frame[frame.fare.notna()]
    where = {float(dose): row for row, dose in zip(frame.index, frame.dose, strict=True)}
    place = list(st.open(dataset, split="train").columns).index("dose")
    rows = {name: [where[float(dose)] for dose in st.open(dataset, split=name)[:]["x"][:, place]] for name in names}
    assert sorted(chain.from_iterable(rows.values())) == sorted(where.values())
    return {name: frame.loc[found] for name, found in rows.items()}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("rule", RULES)
def test_means_and_categories_are_those_of_train_alone(rule: str, suffix: str, table: Path, tmp_path: Path) -> None:
    options = _options(rule)
    names = ["train", *options["split"]]
    train = st.ingest(table / f"t.{suffix}", tmp_path / "d.zarr", memory="64MB", **options)
    frames = _by_hand(table / "t.parquet", tmp_path / "d.zarr", names)
    counted = frames["train"].kind.value_counts()
    assert dict(zip(train.categories["kind"].names, train.categories["kind"].counts, strict=True)) == counted.to_dict()
    mean = frames["train"].age.mean()
    columns = list(train.columns)
    for name, frame in frames.items():
        part = st.open(tmp_path / "d.zarr", split=name)
        assert part.schema == train.schema or name == "train"
        rows = part[:]
        np.testing.assert_allclose(rows["x"][:, columns.index("age")], frame.age.fillna(mean).to_numpy(), rtol=1e-12)
        assert rows["x_missing"][:, columns.index("age")].tolist() == frame.age.isna().tolist()
        code = {text: number for number, text in enumerate(train.categories["kind"].names, 2)}
        wanted = [0 if pd.isna(text) else code.get(text, 1) for text in frame.kind]
        assert rows["cat"][:, list(part.categories).index("kind")].tolist() == wanted


@pytest.mark.parametrize("rule", RULES)
def test_a_part_is_what_like_makes_of_its_rows(rule: str, table: Path, tmp_path: Path) -> None:
    options = _options(rule)
    train = st.ingest(table / "t.csv", tmp_path / "d.zarr", **options)
    apart = {name: options[name] for name in options if not name.startswith("split")}
    frames = _by_hand(table / "t.parquet", tmp_path / "d.zarr", ["train", *options["split"]])
    for name in ("train", "val"):
        frames[name].to_csv(tmp_path / f"{name}.csv", index=False)
        part = st.open(tmp_path / "d.zarr", split=name)
        if name == "train":
            alone = st.ingest(tmp_path / "train.csv", tmp_path / "alone.zarr", **apart)
        else:
            alone = st.ingest(tmp_path / "val.csv", tmp_path / "like.zarr", like=train, drop_unlabelled=True)
        assert alone.schema.fills == pytest.approx(part.schema.fills)
        assert [category.names for category in alone.categories.values()] == [
            category.names for category in part.categories.values()
        ]
        rows, others = alone[:], part[:]
        assert rows.keys() == others.keys()
        for field, values in rows.items():
            np.testing.assert_allclose(values, others[field], rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_rows_of_any_table_make_the_same_splits(rule: str, table: Path, tmp_path: Path) -> None:
    options = _options(rule)
    given = {
        "csv": table / "t.csv",
        "parquet": table / "t.parquet",
        "arrow": pa.parquet.read_table(table / "t.parquet"),
        "polars": pl.read_parquet(table / "t.parquet"),
        "pandas": pd.read_parquet(table / "t.parquet", dtype_backend="pyarrow"),
    }
    found = {}
    for name, source in given.items():
        st.ingest(source, tmp_path / f"{name}.zarr", **options)
        parts = ["train", *options["split"]]
        found[name] = [st.open(tmp_path / f"{name}.zarr", split=part).id for part in parts]
    assert len({tuple(ids) for ids in found.values()}) == 1, found


def test_several_files_are_numbered_as_one(table: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(table / "t.csv", dtype=str)
    frame[:700].to_csv(tmp_path / "a.csv", index=False)
    frame[700:].to_csv(tmp_path / "b.csv", index=False)
    for rule in RULES:
        options = _options(rule)
        together = st.ingest([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / f"{rule} two.zarr", **options)
        assert together.id == st.ingest(table / "t.csv", tmp_path / f"{rule} one.zarr", **options).id


def test_a_group_that_is_missing_is_refused_by_its_row(table: Path, tmp_path: Path) -> None:
    with pytest.raises(st.InputError, match="splits are made by is missing") as caught:
        st.ingest(table / "t.csv", tmp_path / "d.zarr", **{**OPTIONS, "split": {"val": 0.1}, "split_by": "kind"})
    assert str(caught.value.where).endswith("t.csv:19")
    assert not (tmp_path / "d.zarr").exists()


def test_a_task_that_is_told_is_that_of_every_part(table: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {**OPTIONS, "label_column": "who", "split": {"val": 0.2}}
        st.ingest(table / "t.csv", tmp_path / "d.zarr", task="classification", **options)
    assert [st.open(tmp_path / "d.zarr", split=name).task for name in ("train", "val")] == ["classification"] * 2


def test_auto_goes_with_splits(table: Path, tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "d.zarr"
    train = st.ingest(
        table / "t.csv",
        path,
        label_column="fare",
        auto=True,
        split={"val": 0.1},
        say=lambda text: said.append(str(text)),
    )
    assert any(text.startswith("auto stands for") for text in said)
    assert len(train) + len(st.open(path, split="val")) == sum(n % 23 != 0 for n in range(N))
