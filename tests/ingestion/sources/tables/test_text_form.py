"""Delimited text as it is written elsewhere: one table, whatever its delimiter, encoding, header and marks."""

from __future__ import annotations

import csv
import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamtrain
from streamtrain.errors import InputError, StreamtrainError, UsageError
from streamtrain.ingestion.sources.base import PLAIN_TABLE, SourceOptions, TableOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.sources.tables.text.encoded_text import open_text
from streamtrain.ingestion.sources.tables.text.text_form import form_of

ReadAll = Callable[..., Any]
WIDTHS = [3, 130]  # the usual path, and the wide one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


def rows_of(n_columns: int, labels: tuple[str, ...] = ("ja", 'ö "so"; | ,\t', "nein")) -> list[list[str]]:
    return [
        [*(str(row * n_columns + column) for column in range(n_columns)), label] for row, label in enumerate(labels)
    ]


def written(rows: list[list[str]], delimiter: str, line_end: str = "\n") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=line_end).writerows(rows)
    return text.getvalue()


def named(n_columns: int) -> list[str]:
    return [*(f"c{number}" for number in range(n_columns)), "y"]


def read(read_all: ReadAll, path: Path, **table: Any) -> tuple[Any, Any]:
    source = open_source(path, options=SourceOptions(label_column="y", table=TableOptions(**table)))
    return read_all(source, 1000), source


@pytest.mark.parametrize("n_columns", WIDTHS)
@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin1", "cp1252"])
def test_all_forms_are_one_table(
    tmp_path: Path, read_all: ReadAll, n_columns: int, has_header: bool, delimiter: str, suffix: str, encoding: str
) -> None:
    rows, names = rows_of(n_columns), named(n_columns)
    path = tmp_path / f"t{suffix}"
    path.write_text(written([names] * has_header + rows, delimiter, "\r\n"), encoding, newline="")
    options = {} if has_header else {"header": "none", "names": tuple(names)}
    found, source = read(read_all, path, encoding=encoding, **options)
    np.testing.assert_array_equal(found["x"], np.arange(3 * n_columns).reshape(3, n_columns), strict=True)
    assert [source.classes[code] for code in found["y"]] == [row[-1] for row in rows]
    assert source.where(2) == f"{path}:{3 + has_header}"
    assert source.provenance[0].get("delimiter", "," if suffix == ".csv" else "\t") == delimiter


@given(
    rows=st.lists(st.lists(st.text('ab1.5,;|\t" \n', max_size=4), min_size=3, max_size=3), min_size=1, max_size=30),
    delimiter=st.sampled_from(",;\t|"),
)
def test_a_header_of_several_names_decides_where_the_others_would_divide_no_row_alike(
    folder: Path, rows: list[list[str]], delimiter: str
) -> None:
    path = folder / "s.csv"
    path.write_text(written([["a", "b", "c"], *rows], delimiter), newline="")
    assert form_of(path, PLAIN_TABLE, ()).delimiter == delimiter


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("a;b;c\n1,5;2,5;3,0\n", ";"),
        ("a\n1\n2\n", ","),
        ("a,b,c\n1,2\n", ","),
        ('"a;b",c\n1,2\n', ","),
        ('"a,b";c\n1;2\n', ";"),
        ("name\nDoe, John\nRoe\n", ","),
        ("\n\n\na|b\n1|2\n", "|"),
        ('a;b\n1;"x\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n"\n', ";"),
    ],
)
def test_what_the_delimiter_is(tmp_path: Path, text: str, delimiter: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert form_of(path, PLAIN_TABLE, ()).delimiter == delimiter


def test_one_column_that_is_named_so_is_not_divided(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a;b\n1\n2\n")
    assert form_of(path, PLAIN_TABLE, {"a;b"}).header == ("a;b",)


def test_another_delimiter_than_the_suffix_says_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    for text, delimiter in (("a;b\n1;2\n", "auto"), ("a,b\n1,2\n", "auto"), ("a;b\n1;2\n", ";")):
        (tmp_path / "t.csv").write_text(text)
        streamtrain.ingest(
            tmp_path / "t.csv", tmp_path / "d.zarr", overwrite=bool(said), delimiter=delimiter, say=said.append
        )
        assert said[-1:] == [f"{tmp_path / 't.csv'}: the delimiter is ';'"]
    assert len(said) == 1


@pytest.mark.parametrize("n_columns", WIDTHS)
def test_marks_of_ones_own_are_missing_and_the_usual_ones_are_not(
    tmp_path: Path, read_all: ReadAll, n_columns: int
) -> None:
    path = tmp_path / "t.csv"
    names = named(n_columns)
    path.write_text(written([names, *rows_of(n_columns, ("NA", "null", "?"))], ","))
    for marks in ((), ("?",), ("-999", "?")):
        if marks:
            with pytest.raises(InputError, match=r"t\.csv:4: 1 label is empty.* in column 'y'"):
                read(read_all, path, na_values=marks)
        else:
            assert read(read_all, path, na_values=marks)[1].classes == ("?", "NA", "null")
    rows = rows_of(n_columns, ("a", "b", "c"))
    rows[1][1] = "-999"
    path.write_text(written([names, *rows], ","))
    assert read(read_all, path)[0]["x"][1, 1] == -999
    with pytest.raises(InputError, match=r"t\.csv:3: 1 value is empty, NaN or infinite in column 'c1'"):
        read(read_all, path, na_values=("-999",))


@pytest.mark.parametrize("n_columns", WIDTHS)
def test_a_mark_in_quotes_or_named_as_a_class_is_a_value(tmp_path: Path, n_columns: int) -> None:
    path = tmp_path / "t.csv"
    path.write_text(written([named(n_columns), *rows_of(n_columns, ("a", "?", "b"))], ",").replace("?", '"?"'))
    table = TableOptions(na_values=("?",))
    assert open_source(path, options=SourceOptions(label_column="y", table=table)).classes == ("?", "a", "b")
    path.write_text(path.read_text().replace('"?"', "?"))
    options = SourceOptions(label_column="y", table=table, classes=("?", "a", "b"))
    assert open_source(path, options=options).classes == ("?", "a", "b")


@pytest.mark.parametrize(
    ("data", "encoding", "where"),
    [
        (b"a,b\n1,2\n\xe9,3\n", "utf-8", r"t\.csv:3: not UTF-8 text: byte 8 "),
        (b"a,b\r1,2\r\xe9,3\r", "utf-8", r"t\.csv:3: not UTF-8 text: byte 8 "),
        (b"a,b\r\n" + b"1,2\r\n" * 50_000 + b"\xc3\x28,3\r\n", "utf-8", r"t\.csv:50002: not UTF-8 text: byte 250,005 "),
        (b"a,b\n1,2\n1,\xe2\x82", "utf-8", r"t\.csv:3: not UTF-8 text: byte 10 "),
        (b"a,b\n1,\xe9\n", "ascii", r"t\.csv:2: not ASCII text: byte 6 "),
        (b"a,b\n1,\x81\n", "cp1252", r"t\.csv:2: not CP1252 text: byte 6 "),
        ("a,b\n1,2\n".encode("utf-16") + b"\x00", "utf-16", r"t\.csv:3: not UTF-16 text: byte 18 "),
        ("a,b\n1,".encode("utf-16-le") + b"\x00\xdc2\x00", "utf-16-le", r"t\.csv:2: not UTF-16-LE text: byte 12 "),
        ("a,b\n1,".encode("shift-jis") + b"\x82\n", "shift-jis", r"t\.csv:2: not SHIFT-JIS text: byte 6 "),
        (b"a,b\n1,2\n", "undefined", r"t\.csv:1: not UNDEFINED text: byte 0 "),
    ],
)
@pytest.mark.parametrize("n_columns", [0, 130])
def test_a_bad_byte_is_named_with_its_line(
    tmp_path: Path, data: bytes, encoding: str, where: str, n_columns: int
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    if n_columns and encoding == "utf-8":
        names = ",".join(map(str, named(n_columns))).encode()
        path.write_bytes(names + b"\n" + b"1," * n_columns + b"\xe9\n")
        where = rf"t\.csv:2: not UTF-8 text: byte {len(names) + 1 + 2 * n_columns:,} "
    with pytest.raises(InputError, match=where):
        open_source(path, options=SourceOptions(table=TableOptions(encoding=encoding)))


@pytest.mark.parametrize(
    ("written_in", "read_as", "fitting"),
    [
        ("utf-16", "utf-8", "utf-16"),
        ("utf-32", "latin1", "utf-32"),
        ("utf-16", "utf-16-be", "utf-16"),
        ("utf-8-sig", "utf-16", "utf-8"),
        ("utf-8-sig", "latin1", "utf-8"),
    ],
)
def test_the_mark_of_another_encoding_names_it(tmp_path: Path, written_in: str, read_as: str, fitting: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n", written_in)
    with pytest.raises(
        InputError, match=f"mark of {fitting.upper()}, and is read as {read_as}. Fix: encoding='{fitting}'"
    ):
        open_source(path, options=SourceOptions(table=TableOptions(encoding=read_as)))
    open_source(path, options=SourceOptions(table=TableOptions(encoding=fitting)))


@given(text=st.text(max_size=200), encoding=st.sampled_from(["utf-16", "utf-7", "gb18030", "utf-32-be", "cp037"]))
def test_text_is_that_of_python(folder: Path, text: str, encoding: str) -> None:
    path = folder / "any.txt"
    data = text.encode(encoding, "replace")
    path.write_bytes(data)
    with open_text(path, encoding) as file:
        assert file.read() == data.decode(encoding).encode()


def test_memory_is_that_of_pieces(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 2_000_000, "utf-16")
    tracemalloc.start()
    with open_text(path, "utf-16") as file:
        n_bytes = sum(map(len, iter(lambda: file.read(100_000), b"")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_bytes == 4 + 4 * 2_000_000
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"header": "second"}, "unknown header"),
        ({"header": 1}, "header is 1"),
        ({"names": ["a", "b"]}, "names are given, and the first line holds names too"),
        ({"header": "none"}, "the columns have no names"),
        ({"header": "none", "names": ["a"]}, "1 names are given, and the first line has 2 values"),
        ({"header": "none", "names": ["a", 1]}, "names is"),
        ({"delimiter": ";;"}, "delimiter is ';;'"),
        ({"delimiter": "§"}, "one ASCII character"),
        ({"delimiter": '"'}, "one ASCII character"),
        ({"encoding": "utf-9"}, "encoding 'utf-9' is not known"),
        ({"encoding": "base64"}, "encoding 'base64' is not known"),
        ({"encoding": "a\0b"}, "is not known"),
        ({"na_values": 3}, "na_values is 3"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, given: dict[str, Any], reason: str) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=reason):
        streamtrain.ingest(tmp_path / "t.csv", tmp_path / "d.zarr", **given)
    assert not (tmp_path / "d.zarr").exists()


@pytest.mark.parametrize(
    "given", [{"delimiter": ";"}, {"encoding": "latin1"}, {"na_values": ["?"]}, {"header": "none"}]
)
def test_other_formats_refuse_them(tmp_path: Path, given: dict[str, Any]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "t.parquet")
    name = next(iter(given))
    for source in (tmp_path / "x.npy", tmp_path / "t.parquet", np.zeros((3, 2))):
        with pytest.raises(StreamtrainError, match=f"{name} (does not apply to|applies to tables)") as refused:
            streamtrain.ingest(source, tmp_path / "d.zarr", **given)
        assert refused.value.exit_code == 2


def test_names_given_twice_or_blank_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,2\n")
    for names in (["a", "a"], ["a", " "]):
        with pytest.raises(InputError, match=r"twice|no name"):
            streamtrain.ingest(tmp_path / "t.csv", tmp_path / "d.zarr", header="none", names=names)


def test_label_files_are_read_by_the_options_too(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    (tmp_path / "x.csv").write_text("1|2\n3|4\n5|6\n")
    (tmp_path / "y.csv").write_text("größe\nä\nb\nä\n", "latin1")
    (tmp_path / "n.csv").write_text("ä\nb\nä\n", "latin1")
    labelled = [
        streamtrain.ingest(tmp_path / "x.npy", tmp_path / "a", labels=tmp_path / "y.csv", encoding="latin1"),
        streamtrain.ingest(
            tmp_path / "x.npy", tmp_path / "b", labels=tmp_path / "n.csv", encoding="latin1", header="none", names="y"
        ),
        streamtrain.ingest(
            tmp_path / "x.csv",
            tmp_path / "c",
            labels=tmp_path / "y.csv",
            encoding="latin1",
            header="none",
            names=["a", "b"],
        ),
    ]
    for dataset in labelled:
        assert dataset.classes == ("b", "ä")
        assert [int(dataset[row]["y"]) for row in range(3)] == [1, 0, 1]


def test_rows_are_appended_in_another_form(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.csv").write_text("4;3\n", "utf-16")
    streamtrain.ingest(tmp_path / "a.csv", tmp_path / "d")
    whole = streamtrain.ingest(
        tmp_path / "b.csv", tmp_path / "d", append=True, header="none", names=["b", "a"], encoding="utf-16"
    )
    assert [whole[row]["x"].tolist() for row in range(2)] == [[1, 2], [3, 4]]


def test_resume_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    streamtrain.ingest(tmp_path / "a.csv", tmp_path / "d", na_values=["?"])
    streamtrain.ingest(tmp_path / "a.csv", tmp_path / "d", na_values=["?"], resume=True)
    with pytest.raises(StreamtrainError, match="na_values"):
        streamtrain.ingest(tmp_path / "a.csv", tmp_path / "d", na_values=["-"], resume=True)


def test_the_dataset_does_not_depend_on_the_form(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,y\n1,2,ö\n3,4,a\n")
    (tmp_path / "b.tsv").write_text("1|2|ö\n3|4|a\n", "utf-16")
    plain = streamtrain.ingest(tmp_path / "a.csv", tmp_path / "d", label_column="y")
    other = streamtrain.ingest(
        tmp_path / "b.tsv", tmp_path / "e", label_column="y", header="none", names=["a", "b", "y"], encoding="utf-16"
    )
    assert plain.id == other.id
