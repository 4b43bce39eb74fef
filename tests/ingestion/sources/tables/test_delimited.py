"""CSV and TSV: two passes, every complaint with its line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import BudgetError, InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.sources.tables.arrow import arrow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("csv")


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def labelled(name: str = "y", columns: tuple[str, ...] | None = None) -> SourceOptions:
    return SourceOptions(label_column=name, columns=columns)


@given(
    rows=st.lists(st.tuples(st.floats(-1e9, 1e9), st.integers(-(2**40), 2**40), st.integers(0, 9)), min_size=1),
    max_bytes=st.integers(1, 300),
)
def test_blocks_equal_the_table(
    folder: Path, read_all: Callable[..., Any], rows: list[tuple[float, int, int]], max_bytes: int
) -> None:
    lines = "".join(f"{a!r},{b},{y}\n" for a, b, y in rows)
    read = read_all(open_source(table(folder, f"a,b,y\n{lines}"), options=labelled()), max_bytes)
    np.testing.assert_array_equal(read["x"], np.array([row[:2] for row in rows], "f8"), strict=True)
    np.testing.assert_array_equal(read["y"], np.array([row[2] for row in rows]), strict=True)


def test_whole_numbers_stay_whole(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    largest = 2**63 - 1
    read = read_all(open_source(table(tmp_path, f"a,b\n{largest},-{largest + 1}\n1,2\n")))
    np.testing.assert_array_equal(read["x"], np.array([[largest, -largest - 1], [1, 2]]), strict=True)


def test_without_a_label_there_is_only_x(tmp_path: Path) -> None:
    source = open_source(table(tmp_path, "a,b\n1,2\n"))
    assert [(field.name, field.shape) for field in source.fields] == [("x", (2,))]
    assert source.classes is None


def test_columns_are_chosen_in_order(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    path = table(tmp_path, "name,a,b,y\nada,1,2,3\nbob,4,5,6\n")
    source = open_source(path, options=labelled(columns=("b", "a")))
    np.testing.assert_array_equal(read_all(source)["x"], np.array([[2, 1], [5, 4]]))
    facts = source.provenance[0]
    assert (facts["columns"], facts["label_column"], facts["bytes"]) == (["b", "a"], "y", path.stat().st_size)


def test_text_labels_become_sorted_classes(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    source = open_source(table(tmp_path, 'a,y\n1,dog\n2,"cat, big"\n3,dog\n4,ant\n'), options=labelled())
    assert source.classes == ("ant", "cat, big", "dog")
    np.testing.assert_array_equal(read_all(source, 20)["y"], np.array([2, 1, 2, 0]), strict=True)


def test_labels_that_turn_into_text_late_keep_their_names(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    n_rows = 300_000  # more than a block of the first pass
    path = table(tmp_path, "a,y\n" + "1,7\n" * n_rows + "1,7.5\n1,b\n")
    source = open_source(path, options=labelled())
    assert source.classes == ("7", "7.5", "b")
    assert read_all(source, 10**6)["y"][-3:].tolist() == [0, 1, 2]


def test_float_labels_are_for_regression(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    read = read_all(open_source(table(tmp_path, "a,y\n1,2\n2,2.5\n"), options=labelled()))
    np.testing.assert_array_equal(read["y"], np.array([2, 2.5]), strict=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "a\tb\n1\t2\n3\t4\n"),
        ("t.csv", "\ufeffa,b\n1,2\n3,4\n"),
        ("t.csv", "a,b\r\n1,2\r\n3,4\r\n"),
        ("t.csv", "a,b\n1,2\n3,4"),
        ("t.csv", "a,b\n 1 , 2\n\n3,4\n\n"),
        ("t.csv", 'a,"b"\n"1",2\n3,"4"\n'),
        ("t.csv", "0,1\n1,2\n3,4\n"),
        ("T.CSV", "a,b\n1,2\n3,4\n"),
    ],
)
def test_ways_of_writing(tmp_path: Path, read_all: Callable[..., Any], name: str, text: str) -> None:
    source = open_source(table(tmp_path, text, name))
    np.testing.assert_array_equal(read_all(source)["x"], np.array([[1, 2], [3, 4]]), strict=True)


def test_where_counts_lines_not_records(tmp_path: Path) -> None:
    path = table(tmp_path, 'a,y\n1,p\n\n2,"two\nlines"\n3,q\n')
    source = open_source(path, options=labelled())
    assert [source.where(row) for row in range(3)] == [f"{path}:{line}" for line in (2, 4, 6)]
    assert source.where(99) == f"{path} row 99"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,y\n1,2,3\n\n4,5\n", r"t\.csv:4: 2 values, expected 3.*'4,5'"),
        ("a,b,y\n1,2,3\n4,5,6,7\n", r"t\.csv:3: 4 values, expected 3"),
        ("a,b,y\n1,2,3\n4,five,6\n", r"t\.csv:3: column 'b' holds 'five', which is not a number"),
        ("a,b,y\n1,2,3\n4,'5,6\n", r"t\.csv:3: column 'b' holds \"'5\""),
        ("a,b,y\n1;5,2,3\n", r"t\.csv:2: column 'a' holds '1;5'"),
        ("a,b,y\n1,2,3\n4,,6\n4,5,6\n,5,6\n4,NaN,6\n", r"t\.csv:5: 1 value is empty.*column 'a'; 1 more column has"),
        ("a,b,y\n1,2,3\n4,,6\n4,nan,6\n4,inf,6\n", r"t\.csv:3, .*t\.csv:4, .*t\.csv:5: 3 values are empty, NaN or inf"),
        ("a,b,y\n1,2,\n4,,6\n1,2,NA\n", r"t\.csv:2, .*t\.csv:4: 2 labels are empty"),
        ("a,b,y\n" + "1,2,\n" * 9, r"t\.csv:6, \.\.\.: 9 labels are empty"),
        ("a,b,label\n1,2,3\n", r"t\.csv:1: no label column 'y'. It has a, b, label"),
        ("a,b,yy\n1,2,3\n", r"no label column 'y'.*did you mean 'yy'\?"),
        ("a,a,y\n1,2,3\n", r"t\.csv:1: the header names column 'a' twice"),
        ("a,,y\n1,2,3\n", r"t\.csv:1: column 2 has no name"),
        ("5,3,1\n1,2,3\n", r"t\.csv:1: .*header is missing"),
        ('a,b,y\n1,2,3\n4,"5,6\n7,8,9\n', r"t\.csv:3: 2 values, expected 3.*close its quotes"),
        ('a,b,y\n1,2,3\n4,"5,6\n' + "7,8,9\n" * 30_000, r"t\.csv:3: 2 values, expected 3.*close its quotes"),
        ("a,b,y\n", "columns but no rows"),
        ("\n\n", "only blank lines"),
        (
            "a,b,y\n1.5,2,3\n9007199254740993,2,3\n",
            r"t\.csv:3: column 'a' holds 9007199254740993, which float64 rounds",
        ),
        ("a,b,y\n1,9223372036854775808,3\n", None),
        ("a,b,y\n1,18446744073709551617,3\n", r"t\.csv:2: column 'b' holds 18446744073709551617, which float64"),
        ("a,b,y\n9007199254740993,0.5,3\n", r"column 'a' holds whole numbers up to 9007199254740993, beyond"),
        (b"a,b,y\n1,2,3\n1,\xe9,3\n", r"not UTF-8 text: byte 14 "),
        (b"a\xe9,b,y\n1,2,3\n", r"not UTF-8 text: byte 1 "),
        (
            "a,b,y\n1,2,3\n".encode("utf-16"),
            r"mark of UTF-16, and is read as utf-8. Fix: encoding='utf-16'",
        ),
        ('a,b,y\n1,2,3\n4,5,"6\n7,8,9\n', r"a quote is never closed.*the rest of the file"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str | bytes, message: str | None) -> None:
    path = table(tmp_path, text)
    if message is None:
        assert open_source(path, options=labelled()).fields[0].dtype == np.float64  # 2**63 is exact there
        return
    with pytest.raises(InputError, match=message) as caught:
        open_source(path, options=labelled())
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("line", ["x,2,3", "1,2", "1,,3"])
def test_a_bad_line_far_down_is_found(tmp_path: Path, line: str) -> None:
    path = table(tmp_path, "a,b,y\n" + "1,2,3\n" * 400_000 + line + "\n")
    with pytest.raises(InputError, match=r"t\.csv:400002"):
        open_source(path, options=labelled())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (labelled("a", columns=("a", "b")), "both label and feature"),
        (SourceOptions(columns=("a", "a")), "chosen twice"),
        (SourceOptions(columns=()), "the label column is not named"),
        (SourceOptions(dtype=np.dtype("f4")), "dtype does not apply to CSV"),
    ],
)
def test_bad_choices(tmp_path: Path, options: SourceOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_source(table(tmp_path, "a,b\n1,2\n"), options=options)
    assert caught.value.exit_code == 2


def test_too_many_texts_are_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.ingestion.sources.tables.column_survey.MAX_CLASSES", 3)
    with pytest.raises(InputError, match="more than 3 distinct texts"):
        open_source(table(tmp_path, "a,y\n1,p\n1,q\n1,r\n1,s\n"), options=labelled())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,p\n", "1 rows now, 2 when it was opened"),
        ("a,y\n1,p\n2,r\n", "a label it did not have"),
        ("a,y\n1,p\n,q\n", "missing values that were there"),
        ("a,y\n1,p\nz,q\n", "cannot be read"),
    ],
)
def test_a_file_that_changes_between_the_passes(tmp_path: Path, text: str, message: str) -> None:
    source = open_source(table(tmp_path, "a,y\n1,p\n2,q\n"), options=labelled())
    table(tmp_path, text)
    with pytest.raises(InputError, match=message):
        list(source.iter_blocks(1000))


def test_a_run_grows_to_a_record(tmp_path: Path, read_all: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.ingestion.sources.tables.delimited._MIN_RUN_BYTES", 1 << 10)
    n_columns = 3000
    header, row = ",".join(f"gene{i}" for i in range(n_columns)), ",".join(["-1.2345678901234567e-300"] * n_columns)
    source = open_source(table(tmp_path, f"{header}\n{row}\n{row}\n"))
    assert read_all(source, 100)["x"].shape == (2, n_columns)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = table(tmp_path, "a,b,c,y\n" + "0.123456789,2.5,123456,cat\n" * 1_000_000)
    pool = pa.default_memory_pool()
    before, largest = pool.bytes_allocated(), 0
    for _ in open_source(path, options=labelled()).iter_blocks(1_000_000):
        largest = max(largest, pool.bytes_allocated() - before)
    assert path.stat().st_size > 26_000_000
    assert largest < 12_000_000


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, "a\n1\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    arrow.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'streamtrain\[arrow\]'") as caught:
        open_source(path)
    assert caught.value.exit_code == 2
    arrow.cache_clear()


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_wide_table_is_read_as_a_narrow_one(
    tmp_path: Path, read_all: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, quote: str
) -> None:
    values = np.random.default_rng(0).normal(size=(50, 120)).round(3)
    names = [f"c{i}" for i in range(120)]
    lines = [",".join([*map(str, row), f"{quote}name {i % 3}{quote}"]) for i, row in enumerate(values.tolist())]
    path = table(tmp_path, "\r\n".join([",".join([*names, "y"]), *lines, ""]))
    options = labelled(columns=tuple(reversed(names)))
    wide = open_source(path, options=options)
    found = read_all(wide)
    monkeypatch.setattr("streamtrain.ingestion.sources.tables.delimited._WIDE", 1000)
    narrow = open_source(path, options=options)
    assert (wide.fields, wide.classes, wide.n_samples) == (narrow.fields, narrow.classes, narrow.n_samples)
    np.testing.assert_array_equal(found["x"], values[:, ::-1], strict=True)
    for name, expected in read_all(narrow).items():
        np.testing.assert_array_equal(found[name], expected, strict=True)


def test_a_record_too_long_for_the_memory_names_one_that_does(tmp_path: Path) -> None:
    path = table(tmp_path, 'a,y\n1,"' + "x" * 1_300_000 + '"\n')
    with pytest.raises(BudgetError, match=r"a record is longer than 250\.0 KB") as caught:
        open_source(path, options=SourceOptions(label_column="y", memory=4_000_000))
    assert caught.value.exit_code == 5
    assert "memory='269MB'" in str(caught.value.fix)
    assert open_source(path, options=SourceOptions(label_column="y", memory=269_000_000)).classes == ("x" * 1_300_000,)


def test_arrow_gets_nothing_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback is freed by a thread of Arrow's: once Python has begun to end, that aborts the process."""
    from pyarrow import csv

    path, read_csv, n_read = tmp_path / "t.csv", csv.read_csv, []
    path.write_text("\n".join(["a,b", *("1,2" for _ in range(300_000)), "3", "4,5", ""]))

    def recorded(source: Any, *options: Any) -> Any:
        n_read.append(source.size())
        assert all(each.invalid_row_handler is None for each in options if isinstance(each, csv.ParseOptions))
        return read_csv(source, *options)

    monkeypatch.setattr(csv, "read_csv", recorded)
    with pytest.raises(InputError, match=r"t\.csv:300002: 1 values, expected 2\. The line is '3'"):
        open_source(path)
    assert len(n_read) > 1
