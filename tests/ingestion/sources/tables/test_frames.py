"""Data frames and Arrow tables: the dataset that a CSV of the same rows makes, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import streamtrain
from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.tables import frames

pa = pytest.importorskip("pyarrow")

COLUMNS: dict[str, list[Any]] = {"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "k": ["u", "v", "u"]}


def decimals() -> Any:
    return pa.table({**COLUMNS, "b": pa.array([Decimal(str(value)) for value in COLUMNS["b"]])})


def pandas_frame(**types: str) -> Any:
    return pytest.importorskip("pandas").DataFrame(COLUMNS).astype(types)


def polars_frame(**types: str) -> Any:
    polars = pytest.importorskip("polars")
    return polars.DataFrame(COLUMNS).with_columns(polars.col(c).cast(getattr(polars, t)) for c, t in types.items())


FRAMES: dict[str, Callable[[], Any]] = {
    "table": lambda: pa.table(COLUMNS),
    "several chunks": lambda: pa.concat_tables([pa.table(COLUMNS)[:1], pa.table(COLUMNS)[1:]]),
    "batch": lambda: pa.table(COLUMNS).to_batches()[0],
    "decimals": decimals,
    "views": lambda: pa.table({**COLUMNS, "k": pa.array(COLUMNS["k"], pa.string_view())}),
    "dictionary": lambda: pa.table({**COLUMNS, "k": pa.array(COLUMNS["k"]).dictionary_encode()}),
    "pandas": pandas_frame,
    "pandas, nullable": lambda: pandas_frame(a="Int64", b="Float64", k="category"),
    "polars": polars_frame,
    "polars, categorical": lambda: polars_frame(k="Categorical"),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_makes_the_dataset_that_its_csv_makes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "f.csv").write_text("a,b,k\n1,0.5,u\n2,1.5,v\n3,2.5,u\n")
    expected = streamtrain.ingest(tmp_path / "f.csv", tmp_path / "csv.zarr", label_column="k")
    found = streamtrain.ingest(FRAMES[kind](), tmp_path / "frame.zarr", label_column="k")
    assert (found.id, found.classes, found.schema) == (expected.id, expected.classes, expected.schema)


def reader(**columns: list[Any]) -> Any:
    table = pa.table({**COLUMNS, **columns})
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2))


def test_a_reader_is_read_once_in_order(tmp_path: Path) -> None:
    rows = streamtrain.ingest(reader(), tmp_path / "d.zarr", columns=["b"], label_column="a")[:]
    assert (rows["x"].tolist(), rows["y"].tolist()) == ([[0.5], [1.5], [2.5]], [1, 2, 3])
    with pytest.raises(UsageError, match="iterator cannot be resumed"):
        streamtrain.ingest(reader(), tmp_path / "e.zarr", columns=["b"], label_column="a", resume=True)
    with pytest.raises(UsageError, match=r"label column 'k' is text.*pyarrow\.table\(x\)"):
        streamtrain.ingest(reader(), tmp_path / "e.zarr", label_column="k")
    with pytest.raises(InputError, match="RecordBatchReader row 2: a value of column 'a' is missing"):
        streamtrain.ingest(reader(a=[1, 2, None]), tmp_path / "e.zarr", columns=["a", "b"])


def test_what_a_frame_cannot_hold_is_refused_by_its_row(tmp_path: Path) -> None:
    long = pa.table({"a": pa.array([Decimal("0.5"), Decimal("0.12345678901234567890123")], pa.decimal128(30, 23))})
    for table, message in (
        (long, "the Table row 1: column 'a' holds 0.12345678901234567890123, which float64 rounds to"),
        (pa.table({"b": COLUMNS["b"], "a": [1, None, 3]}), "the Table row 1: 1 value is empty"),
        (pa.table(COLUMNS), "column 'k' is string, which is not supported"),
    ):
        with pytest.raises(InputError, match=message):
            streamtrain.ingest(table, tmp_path / "d.zarr", label_column=None)


def test_a_query_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a LazyFrame holds no rows yet.*frame\.collect\(\)"):
        streamtrain.ingest(polars_frame().lazy(), tmp_path / "d.zarr")


def test_an_index_of_pandas_is_left_out_and_said(tmp_path: Path) -> None:
    frame, said = pandas_frame().set_index("a"), list[str]()
    dataset = streamtrain.ingest(frame, tmp_path / "d.zarr", label_column="k", say=said.append)
    assert dataset.schema.columns["x"] == ("b",)
    assert said == ["frame: left out a, an index and no feature; frame.reset_index() makes it a column"]
    said.clear()
    streamtrain.ingest(pandas_frame(), tmp_path / "e.zarr", label_column="k", say=said.append)
    assert not said


def test_the_same_rows_of_any_kind_with_roles_make_one_dataset(tmp_path: Path) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pandas.DataFrame(
        {
            "a": [1.5, None, 3.0, 4.25],
            "c": ["u", "v", None, "u"],
            "t": ["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-04"],
            "y": ["no", "yes", "no", "yes"],
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    sources = (
        *(tmp_path / f"t.{suffix}" for suffix in ("csv", "tsv", "parquet")),
        frame,
        polars.from_pandas(frame),
        table,
    )
    options = {"label_column": "y", "categorical": ["c"], "dates": {"t": "days"}, "na": "fill=mean", "na_mask": True}
    made = [streamtrain.ingest(source, tmp_path / f"{number}.zarr", **options) for number, source in enumerate(sources)]
    assert len({dataset.id for dataset in made}) == 1
    rows = made[0][:]
    mean = pytest.approx((1.5 + 3.0 + 4.25) / 3, rel=1e-15)
    assert rows["x"].tolist() == [
        [1.5, 18262.0],
        [mean, 18263.0],
        [3.0, 18264.0],
        [4.25, 18265.0],
    ]
    assert rows["cat"].tolist() == [[2], [3], [0], [2]]
    assert rows["x_missing"].tolist() == [[False, False], [True, False], [False, False], [False, False]]


def test_a_stream_has_no_roles(tmp_path: Path) -> None:
    reader = pa.table({"a": [1.0, None], "y": [0, 1]}).to_reader()
    with pytest.raises(UsageError, match=r"read once.*pyarrow\.table"):
        streamtrain.ingest(reader, tmp_path / "d.zarr", label_column="y", na="drop")


@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_long_texts_are_copied_a_megabyte_at_a_time(kind: str) -> None:
    texts = [f"{row % 7} " + "x" * 2000 for row in range(3000)]
    library = pytest.importorskip(kind)
    frame = library.DataFrame({"c": texts} if kind == "polars" else {"c": library.Series(texts, dtype=object)})
    runs = list(frames.reader(frame).batches(["c"]))
    assert [text for run in runs for text in run.columns["c"].to_pylist()] == texts
    assert max(run.n_rows for run in runs) * 2000 <= 2**20
