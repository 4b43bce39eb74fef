"""Described columns: roles, shares missing, figures, categories with counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.store.dataset import Dataset

TABLE = """\
i,w,a,t,c,h,y
7,0.5,1.5,2020-01-01,u,p,no
8,1,,2020-01-02,v,,yes
9,2,3,2020-01-03,,p,no
5,1,4.5,2020-01-05,u,q,no
"""
OPTIONS = {
    "label_column": "y",
    "categorical": ["c"],
    "hash": {"h": 50},
    "dates": {"t": "days"},
    "na": "fill=mean",
    "na_mask": True,
    "weight_column": "w",
    "id_column": "i",
}


@pytest.fixture
def table(tmp_path: Path) -> Dataset:
    (tmp_path / "a.csv").write_text(TABLE)
    return st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", **OPTIONS)


def test_a_table_is_described_column_by_column(table: Dataset) -> None:
    found = table.describe()
    assert found["name"] == ["a", "t", "c", "h", "y", "i", "w"]
    assert found["field"] == ["x", "x", "cat", "cat", "y", "id", "weight"]
    assert found["role"] == ["number", "date in days", "category", "category", "label", "id", "weight"]
    assert found["missing"] == [0.25, 0, 0.25, 0.25, 0, 0, 0]
    assert found["mean"] == [3.0, 18_263.75, None, None, None, 7.25, 1.125]
    assert found["min"] == [1.5, 18_262.0, None, None, None, 5.0, 0.5]
    assert found["categories"] == [None, None, {"u": 2, "v": 1}, None, {"no": 3, "yes": 1}, None, None]
    assert found["n_categories"] == [None, None, 2, 50, 2, None, None]


def test_several_targets_are_columns(tmp_path: Path) -> None:
    rows = "a,p,q\n1,0.5,3\n2,1.5,5\n"
    (tmp_path / "a.csv").write_text(rows)
    dataset = st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", label_column=["p", "q"])
    found = dataset.describe()
    assert (found["name"], found["role"]) == (["a", "p", "q"], ["number", "label", "label"])
    assert found["mean"] == [1.5, 1.0, 4.0]


def test_fields_of_arrays_are_described_whole(tmp_path: Path) -> None:
    arrays = {"image": np.arange(24.0).reshape(4, 2, 3), "y": np.array([0, 1, 1, 1]), "weight": np.ones(4)}
    found = st.ingest(arrays, tmp_path / "a.zarr").describe()
    assert (found["name"], found["role"]) == (["image", "y", "weight"], ["field", "label", "weight"])
    assert found["mean"] == [11.5, None, 1.0]
    assert found["categories"][1] == {"1": 3, "0": 1}


def test_classes_of_a_column_of_numbers_are_its_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,y\n1,-1\n2,1\n3,1\n")
    dataset = st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", label_column="y")
    assert dataset.describe()["categories"][1] == {"1": 2, "-1": 1}


def test_a_quantity_has_figures(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,y\n" + "".join(f"{n},{n * 17}\n" for n in range(40)))
    found = st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr", label_column="y").describe()
    assert (found["mean"][1], found["categories"][1]) == (331.5, None)


def test_kept_nan_is_missing(tmp_path: Path) -> None:
    x = np.array([[1.0, np.nan], [3.0, 4.0]])
    found = st.ingest({"x": x}, tmp_path / "a.zarr", nan="keep").describe()
    assert (found["missing"], found["mean"]) == ([0.25], [8 / 3])


def test_info_has_a_line_for_every_column(table: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(table.path)]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["a"] == ["a", "number", "25.0%", "3", "1.061", "1.5", "4.5"]
    assert lines["t"][-4:] == ["1.479", "days", "2020-01-01", "2020-01-05"]
    assert lines["c"][-5:] == ["2:", "u", "2,", "v", "1"]
    assert "50 codes of a hash" in text
    assert main(["info", str(table.path), "--json"]) == 0
    columns = json.loads(capsys.readouterr().out)["columns"]
    assert columns[2] == {
        **{"name": "c", "field": "cat", "role": "category", "missing": 0.25, "n_categories": 2},
        **{"mean": None, "std": None, "min": None, "max": None, "categories": {"u": 2, "v": 1}},
        **{"missing_in": "these rows", "counted_in": "these rows"},
    }


def test_info_shows_thirty_columns_or_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"p{n}" for n in range(40)]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    st.ingest(tmp_path / "a.csv", tmp_path / "a.zarr")
    assert main(["info", str(tmp_path / "a.zarr")]) == 0
    text = capsys.readouterr().out
    assert "p29" in text
    assert "p30" not in text
    assert "and 10 more: --all" in text
    assert main(["info", str(tmp_path / "a.zarr"), "--all"]) == 0
    assert "p39" in capsys.readouterr().out


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 400 rows in splits, with and without marks of the missing values."""
    folder = tmp_path_factory.mktemp("divided")
    rng = np.random.default_rng(0)
    rows = [
        f"{'' if rng.random() < 0.2 else i},{rng.choice(['u', 'v', 'w'])},2020-01-01T{i % 24:02}:00:00,{i}.5"
        for i in range(400)
    ]
    (folder / "a.csv").write_text("\n".join(["a,c,t,y", *rows]) + "\n")
    for name, marks in (("marked", True), ("plain", False)):
        st.ingest(
            folder / "a.csv",
            folder / name,
            **{"label_column": "y", "categorical": ["c"], "dates": ["t"], "na": "fill=mean", "na_mask": marks},
            split={"val": 0.3},
            progress=False,
        )
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_is_missing_in_a_split_is_its_own_where_that_is_known(divided: Path, split: str) -> None:
    data = st.open(divided / "marked", split=split)
    found = data.describe()
    assert found["missing"][0] == pytest.approx(float(data[:]["x_missing"][:, 0].mean()))
    assert set(found["missing_in"]) == {"these rows"}
    whole = st.open(divided / "plain", split=split).describe()
    lines = (divided / "a.csv").read_text().splitlines()[1:]
    assert whole["missing"][0] == sum(line.startswith(",") for line in lines) / len(lines)
    assert whole["missing_in"][0] == "all rows of the source"
    assert whole["missing_in"][1] == "these rows", "nothing is missing in any"


@pytest.mark.parametrize(("split", "where"), [("train", "these rows"), ("val", "the rows they were learned from")])
def test_categories_are_counted_in_the_training_data(divided: Path, split: str, where: str) -> None:
    found = st.open(divided / "plain", split=split).describe()
    place = found["name"].index("c")
    codes = st.open(divided / "plain", split="train")[:]["cat"][:, 0]
    assert sorted(found["categories"][place].values()) == sorted(np.bincount(codes)[2:].tolist())
    assert found["counted_in"][place] == where


def test_info_says_of_what_a_count_is(divided: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(divided / "plain"), "--split", "val"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "% of all rows of the source" in lines["a"]
    assert lines["c"].endswith(" in the rows they were learned from")
    assert " hours " in lines["t"]
    html = st.open(divided / "plain", split="val")._repr_html_()
    assert "% of all rows of the source" in html
