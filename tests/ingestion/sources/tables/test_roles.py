"""Columns of a table by their roles: stored as a plain reading in Python gives them, from text and Parquet alike."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import BudgetError, DatasetError, InputError, UsageError
from streamtrain.ingestion.sources.tables import delimited

# Of so few rows each one that is left out is more than a tenth.
pytestmark = pytest.mark.filterwarnings("ignore:.*left out .* of .* row")

ROWS = [
    # a, b, kind, when, w, i, y, z
    ("1", "0.5", "red", "2026-01-01", "1", "7", "0", "1"),
    ("", "1.5", "blue", "2026-01-02", "0.5", "8", "1", "0"),
    ("3", "NA", "red", "", "2", "9", "1", "1"),
    ("5", "2.5", "", "2026-01-04", "0", "10", "", "0"),
]
HEADER = ("a", "b", "kind", "when", "w", "i", "y", "z")


def written(path: Path, rows: list[tuple[str, ...]] = ROWS, header: tuple[str, ...] = HEADER, n_wide: int = 0) -> Path:
    """Write a CSV, of more than a hundred columns where it is to be wide."""
    extra = [f"n{number}" for number in range(n_wide)]
    lines = [",".join((*header, *extra)), *(",".join((*row, *map(str, range(n_wide)))) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def parquet(path: Path) -> Path:
    columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
    numbers = {"a": int, "b": float, "w": float, "i": int, "y": int, "z": int}
    table = {
        name: [None if value in ("", "NA") else numbers.get(name, str)(value) for value in values]
        for name, values in columns.items()
    }
    pq.write_table(pa.table(table), path)
    return path


OPTIONS = {
    "categorical": "kind",
    "dates": {"when": "days"},
    "weight_column": "w",
    "id_column": "i",
    "label_column": "y",
    "exclude": "z",
    "drop_unlabelled": True,
}


@pytest.mark.parametrize("kind", ["csv", "wide", "parquet"])
def test_every_role_is_stored_as_it_reads(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{'parquet' if kind == 'parquet' else 'csv'}"
    source = parquet(path) if kind == "parquet" else written(path, n_wide=120 if kind == "wide" else 0)
    ds = st.ingest(source, tmp_path / "d", na="fill=mean", na_mask=True, **OPTIONS)
    rows = ds[:]
    first_day = 20454.0
    assert ds.columns is not None
    assert (ds.columns[:2], ds.columns[-1]) == (("a", "b"), "when")
    mean = [2.0, 1.0, first_day + 0.5]
    assert rows["x"][:, [0, 1, -1]].tolist() == [[1, 0.5, first_day], [mean[0], 1.5, first_day + 1], [3, 1.0, mean[2]]]
    assert rows["x_missing"][:, [0, 1, -1]].tolist() == [[False] * 3, [True, False, False], [False, True, True]]
    assert rows["cat"].tolist() == [[2], [3], [2]]
    assert (ds.categories["kind"].names, ds.categories["kind"].counts) == (("red", "blue"), (2, 1))
    assert rows["y"].tolist() == [0, 1, 1]
    assert rows["weight"].tolist() == [1, 0.5, 2]
    assert rows["id"].tolist() == [7, 8, 9]
    assert {name: ds.schema.fills[name] for name in ("a", "b", "when")} == dict(
        zip(("a", "b", "when"), mean, strict=True)
    )
    assert st.verify(ds.path, full=True).damage == ()
    assert st.open(ds.path).schema == ds.schema


def test_text_and_parquet_make_the_same_dataset(tmp_path: Path) -> None:
    ids = {
        st.ingest(source, tmp_path / f"d{n}", na="fill=0.5", **OPTIONS).id
        for n, source in enumerate([written(tmp_path / "t.csv"), parquet(tmp_path / "t.parquet")])
    }
    assert len(ids) == 1


def test_several_files_learn_together(tmp_path: Path) -> None:
    header = ("kind", "a", "y")
    one = written(tmp_path / "1.csv", [("u", "1", "0"), ("v", "2", "1")], header)
    two = written(tmp_path / "2.csv", [("1", "v", "1.5"), ("0", "w", "")], ("y", "kind", "a"))
    ds = st.ingest([one, two], tmp_path / "d", label_column="y", categorical=["kind"], na="fill=mean")
    assert ds.categories["kind"].names == ("v", "u", "w")
    assert ds[:]["x"][:, 0].tolist() == [1, 2, 1.5, 1.5]
    assert ds[:]["cat"][:, 0].tolist() == [3, 2, 2, 4]


def test_dropped_rows_are_counted_and_places_are_those_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", [("1", "0"), ("", "1"), ("3", "1")], ("a", "y"))
    ds = st.ingest(path, tmp_path / "d", label_column="y", na="drop")
    assert ds[:]["x"].tolist() == [[1], [3]]
    assert ds.manifest.sources[0]["dropped"] == 1
    assert ds.manifest.schema is None


@pytest.mark.parametrize(
    ("rows", "dtype", "wanted"),
    [
        ([("0", "1"), ("1", "1")], np.int64, [[0, 1], [1, 1]]),
        ([("0.5", "2"), ("3", "4")], np.float64, [[0.5, 2], [3, 4]]),
    ],
)
def test_several_labels(tmp_path: Path, rows: list[tuple[str, str]], dtype: type, wanted: list[list[float]]) -> None:
    path = written(tmp_path / "t.csv", [("1", *row) for row in rows], ("a", "p", "q"))
    ds = st.ingest(path, tmp_path / "d", label_column=["p", "q"])
    assert ds.targets == ("p", "q")
    assert ds[:]["y"].dtype == dtype
    assert ds[:]["y"].tolist() == wanted


@pytest.mark.parametrize("rows", [[("x", "1"), ("y", "2")], [("0", "7"), ("1", "8")]])
def test_labels_of_two_kinds_are_refused(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = written(tmp_path / "t.csv", [("1", *row) for row in rows], ("a", "p", "q"))
    with pytest.raises(InputError):
        st.ingest(path, tmp_path / "d", label_column=["p", "q"])


MESSY = [
    (str(n), "" if n % 7 == 0 else str(n / 2), "rs"[n % 2], f"t{n}", f"2026-01-{n % 28 + 1:02}", "5") for n in range(80)
]
MESSY_HEADER = ("y", "a", "kind", "text", "when", "same")


def test_all_that_is_unfit_is_told_at_once_and_the_remedy_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "t.csv", MESSY, MESSY_HEADER)
    command = ["ingest", str(path), str(tmp_path / "d"), "--label-column", "y"]
    assert main(command) == 3
    told = capsys.readouterr().err
    for part in ("a: 12 missing", "kind: 2 texts", "text: 80 texts", "when: dates"):
        assert part in told
    remedy = told.partition("as it is; or by hand, ")[2].partition(";")[0].split()
    assert main([*command, *remedy]) == 0


def test_auto_prints_the_command_it_stands_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "t.csv", MESSY, MESSY_HEADER)
    assert main(["ingest", str(path), str(tmp_path / "d"), "--label-column", "y", "--auto"]) == 0
    said = capsys.readouterr().err.partition("auto stands for ")[2].strip().split()
    assert main(["ingest", str(path), str(tmp_path / "e"), "--label-column", "y", *said]) == 0
    one, two = st.open(tmp_path / "d"), st.open(tmp_path / "e")
    assert one.id == two.id
    assert (one.manifest.files, one.manifest.options) == (two.manifest.files, two.manifest.options)
    assert one.columns == ("a", "when")


@pytest.mark.parametrize(
    "options",
    [
        {"na": "mean"},
        {"na": "fill=inf"},
        {"nan": "drop"},
        {"na_mask": True},
        {"dates": {"when": "weeks"}},
        {"hash": {"kind": 0}},
        {"category_limit": 0},
        {"columns": ["a"], "exclude": ["b"]},
        {"categorical": ["y"]},
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    path = written(tmp_path / "t.csv")
    with pytest.raises(UsageError):
        st.ingest(path, tmp_path / "d", label_column="y", **options)


def test_a_hashed_column_has_no_names(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", [("u", "1"), ("v", "2"), ("", "3")], ("kind", "a"))
    ds = st.ingest(path, tmp_path / "d", hash={"kind": 10})
    codes = ds[:]["cat"][:, 0].tolist()
    assert codes[2] == 0
    assert all(2 <= code < 12 for code in codes[:2])
    assert (ds.categories["kind"].size, ds.categories["kind"].names) == (12, ())


def test_too_many_categories_name_the_hash(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", [(f"k{n}", "1") for n in range(9)], ("kind", "a"))
    with pytest.raises(BudgetError, match="hash"):
        st.ingest(path, tmp_path / "d", categorical=["kind"], category_limit=5)


def test_infinite_values_are_kept_where_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", [("inf", "1"), ("2", "2")], ("a", "b"))
    with pytest.raises(InputError, match="nan="):
        st.ingest(path, tmp_path / "d")
    ds = st.ingest(path, tmp_path / "d", nan="keep")
    assert math.isinf(ds[0]["x"][0])


def test_a_vocabulary_that_was_changed_is_refused(tmp_path: Path) -> None:
    ds = st.ingest(written(tmp_path / "t.csv"), tmp_path / "d", na="fill=0", **OPTIONS)
    path = ds.path / "_streamtrain" / "categories" / "0.json"
    path.write_bytes(path.read_bytes().replace(b"red", b"rad"))
    again = st.open(ds.path)
    with pytest.raises(DatasetError):
        _ = again.categories
    assert len(st.verify(ds.path).damage) == 1


def test_rows_are_appended_under_the_numbers_of_the_dataset(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv")
    ds = st.ingest(path, tmp_path / "d", na="fill=0", **OPTIONS)
    with pytest.warns(st.StreamtrainWarning, match="is among the sources of .* already"):
        grown = st.ingest(path, ds.path, na="fill=0", append=True, **OPTIONS)
    assert grown[3:]["cat"].tolist() == ds[:]["cat"].tolist()


@pytest.mark.parametrize("n_columns", [3, 150])
def test_means_do_not_depend_on_how_rows_were_read(tmp_path: Path, n_columns: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(900, n_columns)) * 10.0 ** rng.integers(-9, 9, n_columns)
    lines = [",".join("" if rng.random() < 0.1 else f"{value!r}" for value in row) for row in values.tolist()]
    path = tmp_path / "t.csv"
    path.write_text("\n".join([",".join(f"p{n}" for n in range(n_columns)), *lines]) + "\n")
    found = {
        st.ingest(path, tmp_path / memory, na="fill=mean", memory=memory, block="1KB", codec="none").id
        for memory in ("40MB", "256MB", "2GB")
    }
    frame = pyarrow.csv.read_csv(path)
    found |= {
        st.ingest(each, tmp_path / f"{n}", na="fill=mean", block="1KB", codec="none").id
        for n, each in enumerate((frame, pa.Table.from_batches(frame.to_batches(max_chunksize=7))))
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (("1", "2.5", "", "4"), [1, 2.5, 9, 4]),
        (("1", '"2"', '""', " 4 "), [1, 2, 9, 4]),
        (("1", " NA", '"NA"', "9007199254740992"), [1, 9, 9, 2**53]),
        (("1", "9223372036854775807", "2", "3"), [1, 2**63 - 1, 2, 3]),
    ],
    ids=["fraction", "quotes and blanks", "marks", "large"],
)
def test_numbers_are_the_same_whether_parsed_at_once_or_from_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: tuple[str, ...], wanted: list[float]
) -> None:
    # Runs of a few rows: what makes them text comes after runs of numbers, and again none.
    monkeypatch.setattr(delimited, "_MIN_RUN_BYTES", 64)
    rows = [(cell, "red", "0") for cell in cells for _ in range(20)]
    path = written(tmp_path / "t.csv", rows, ("a", "kind", "y"))
    ds = st.ingest(path, tmp_path / "ds", label_column="y", categorical="kind", na="fill=9")
    assert ds[:]["x"][:, 0].tolist() == [each for each in wanted for _ in range(20)]


def test_the_thread_that_parses_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_MIN_RUN_BYTES", 64)
    rows = [("1", "red", "0")] * 40 + [("9007199254740993", "red", "0"), ("0.5", "red", "0")] + [("2", "b", "1")] * 400
    path = written(tmp_path / "t.csv", rows, ("a", "kind", "y"))
    with pytest.raises(InputError, match="9007199254740993") as caught:
        st.ingest(path, tmp_path / "ds", label_column="y", categorical="kind")
    assert caught.value.__traceback__, "which holds on to the loop over the runs"
    assert not [each for each in threading.enumerate() if each.name.startswith("streamtrain-ingest-parser")]
