"""An ingest like another dataset: the same meaning of columns, categories, classes and fills, or a refusal."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.store.dataset import Dataset

TABLE = "a,c,t,y\n1.5,u,2020-01-01,no\n,v,2020-01-02,yes\n3,,2020-01-03,no\n4.5,u,2020-01-04,yes\n"
FIRST = 18_262  # days from 1970 to 2020


@pytest.fixture
def base(tmp_path: Path) -> Dataset:
    (tmp_path / "a.csv").write_text(TABLE)
    options = {"label_column": "y", "categorical": ["c"], "dates": {"t": "days"}, "na": "fill=mean", "na_mask": True}
    return st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", **options)


def test_columns_are_matched_by_name_and_nothing_is_learned(tmp_path: Path, base: Dataset) -> None:
    (tmp_path / "b.csv").write_text("y,t,further,c,a\nyes,2020-02-01,7,v,\nno,2020-02-01,8,new,2\n")
    dataset = st.ingest(tmp_path / "b.csv", tmp_path / "b.zarr", like=base)
    rows = dataset[:]
    assert rows["x"].tolist() == [[3.0, FIRST + 31], [2.0, FIRST + 31]], (
        "filled with the mean of the other's 1.5, 3, 4.5"
    )
    assert rows["cat"].tolist() == [[3], [1]]
    assert rows["x_missing"].tolist() == [[True, False], [False, False]]
    assert rows["y"].tolist() == [1, 0]
    assert dataset.schema == base.schema
    assert dataset.manifest.sources[0]["unseen"] == {"c": 1}


def test_times_without_a_zone_are_of_the_other_s(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,y\n2020-07-01T12:00,0\n2020-07-01T13:00,1\n")
    base = st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", label_column="y", dates="t", timezone="Europe/Rome")
    assert base[0]["x"].tolist() == [1_593_597_600.0], "two hours before the same time of UTC"
    assert st.ingest(tmp_path / "a.csv", tmp_path / "b.zarr", like=base).id == base.id


def test_what_is_left_out_or_assumed_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,t,y\n1,2020-01-01T10:00,0\n,2020-01-01T11:00,1\n3,2020-01-01T12:00,\n")
    told: list[str] = []
    options = {"label_column": "y", "dates": "t", "na": "drop", "drop_unlabelled": True}
    base = st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", say=told.append, **options)
    assert len(base) == 1
    assert told[:3] == [
        "warning: left out 1 of 3 rows without a label",
        "warning: left out 1 of 3 rows in which a number is missing",
        "times of t name no zone and are taken as UTC: timezone='Europe/Rome' says another",
    ]
    with pytest.warns(st.StreamtrainWarning, match="left out"):
        st.ingest(tmp_path / "a.csv", tmp_path / "b.zarr", **options)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("y,t,c,a\nmaybe,2020-02-01,v,1\n", "'maybe'"),
        ("y,t,c\nno,2020-01-01,u\n", "no column 'a'"),
        ("y,t,c,a\nno,once,u,1\n", "'once', which is not an ISO 8601 date"),
        ("y,t,c,a\nno,2020-01-01,u,q\n", "'q', which is not a number"),
        ("y,t,c,a\n1,2020-01-01,u,1\n", "numbers"),
    ],
)
def test_what_the_other_has_not_is_refused(tmp_path: Path, base: Dataset, table: str, told: str) -> None:
    (tmp_path / "b.csv").write_text(table)
    with pytest.raises(st.InputError, match=told):
        st.ingest(tmp_path / "b.csv", tmp_path / "b.zarr", like=base)
    assert not (tmp_path / "b.zarr").exists()


def test_random_tables_mean_the_same_or_are_refused(tmp_path: Path, base: Dataset) -> None:
    codes, classes = {"": 0, "u": 2, "v": 3}, {"no": 0, "yes": 1}
    for seed in range(40):
        rng = random.Random(seed)
        n = rng.randint(1, 5)
        columns = {
            "a": [rng.choice(["", "2", "0.25", "-7"]) for _ in range(n)],
            "c": [rng.choice(["u", "v", "w", ""]) for _ in range(n)],
            "t": [f"2020-01-{rng.randint(1, 28):02}" for _ in range(n)],
            "y": [rng.choice(["no", "yes"]) for _ in range(n)],
            "z": ["9"] * n,
        }
        order = rng.sample([*columns], 5)
        lines = [",".join(order), *(",".join(columns[name][row] for name in order) for row in range(n))]
        (tmp_path / "r.csv").write_text("\n".join(lines) + "\n")
        rows = st.ingest(tmp_path / "r.csv", tmp_path / "r.zarr", like=base, overwrite=(tmp_path / "r.zarr").exists())[
            :
        ]
        assert rows["x"][:, 0].tolist() == [float(value or 3.0) for value in columns["a"]]
        assert rows["x"][:, 1].tolist() == [FIRST - 1 + int(value[-2:]) for value in columns["t"]]
        assert rows["cat"][:, 0].tolist() == [codes.get(value, 1) for value in columns["c"]]
        assert rows["y"].tolist() == [classes[value] for value in columns["y"]]


def test_arrays_have_the_same_dtypes_shapes_and_classes(tmp_path: Path) -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 3
    base = st.ingest({"x": x, "y": y}, tmp_path / "a.zarr", classes=["u", "v", "w"])
    assert st.ingest({"x": x, "y": y}, tmp_path / "b.zarr", like=tmp_path / "a.zarr").classes == base.classes
    with pytest.raises(st.InputError, match="x float64"):
        st.ingest({"x": x.astype(np.float64), "y": y}, tmp_path / "c.zarr", like=base)
    with pytest.raises(st.InputError, match="3"):
        st.ingest({"x": x, "y": y + 1}, tmp_path / "c.zarr", like=base)


def test_validation_data_of_other_categories_is_refused_until_it_is_like_them(
    tmp_path: Path, base: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(tmp_path / "b.csv")
    Path(table).write_text(TABLE.replace("u", "k"))
    roles = ["--label-column", "y", "--categorical", "c", "--dates", "t=days", "--na", "fill=mean", "--na-mask"]
    val = str(tmp_path / "b.zarr")
    assert main(["ingest", table, val, *roles]) == 0
    train = ["train", str(base.path), "--val", val, "--model", "mlp:4", "--epochs", "1", "--memory", "16MB"]
    train += ["--batch-size", "2", "--out", str(tmp_path / "run")]
    assert main(train) == 2
    assert "code 2 is 'k' here and 'u' there" in capsys.readouterr().err
    assert main(["ingest", table, val, "--like", str(base.path), "--overwrite"]) == 0
    assert main(train) == 0
