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
    assert lines["t"][-3:] == ["1.479", "2020-01-01", "2020-01-05"]
    assert lines["c"][-5:] == ["2:", "u", "2,", "v", "1"]
    assert "50 codes of a hash" in text
    assert main(["info", str(table.path), "--json"]) == 0
    columns = json.loads(capsys.readouterr().out)["columns"]
    assert columns[2] == {
        **{"name": "c", "field": "cat", "role": "category", "missing": 0.25, "n_categories": 2},
        **{"mean": None, "std": None, "min": None, "max": None, "categories": {"u": 2, "v": 1}},
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
