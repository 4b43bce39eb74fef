"""Parquet: typed columns, row group by row group."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.sources.tables import parquet

LABELLED = SourceOptions(label_column="y")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parquet")


def write(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    path = folder / "t.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


@given(n_rows=st.integers(1, 100), group=st.integers(1, 40), max_bytes=st.integers(1, 2000))
def test_blocks_equal_the_table(
    folder: Path, read_all: Callable[..., Any], n_rows: int, group: int, max_bytes: int
) -> None:
    numbers = np.random.default_rng(n_rows)
    a, b = numbers.normal(size=n_rows).astype("f4"), numbers.integers(-9, 9, n_rows).astype("i1")
    path = write(folder, {"a": a, "b": b, "y": np.arange(n_rows, dtype="u2")}, row_group_size=group)
    source = open_source(path, options=LABELLED)
    read = read_all(source, max_bytes)
    np.testing.assert_array_equal(read["x"], np.stack([a, b.astype("f4")], axis=1), strict=True)
    np.testing.assert_array_equal(read["y"], np.arange(n_rows), strict=True)
    assert source.where(n_rows - 1) == f"{path} row {n_rows - 1}"


@given(
    n_rows=st.integers(1, 100), group=st.integers(1, 40), max_bytes=st.integers(1, 2000), in_dictionary=st.booleans()
)
def test_texts_of_labels_are_the_same_classes_whatever_is_read_at_once(
    folder: Path, read_all: Callable[..., Any], n_rows: int, group: int, max_bytes: int, in_dictionary: bool
) -> None:
    texts = [f"{row * 7 % 13:02} " * 99 for row in range(n_rows)]
    path = write(folder, {"a": np.ones(n_rows), "y": texts}, row_group_size=group, use_dictionary=in_dictionary)
    source = open_source(path, options=LABELLED)
    assert source.classes == tuple(sorted(set(texts)))
    assert [source.classes[code] for code in read_all(source, max_bytes)["y"]] == texts


def test_runs_of_a_large_row_group_hold_no_batch_of_the_rows_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_rows = 10**6
    path = write(folder, {"a": np.ones(n_rows, "f4"), "y": np.arange(n_rows) % 7}, use_dictionary=False)
    source, held, batches = open_source(path, options=LABELLED), list[int](), parquet._batches

    def watched(*arguments: Any) -> Iterator[tuple[int, Any]]:
        for each in batches(*arguments):
            held.append(pa.default_memory_pool().bytes_allocated())
            yield each

    monkeypatch.setattr(parquet, "_batches", watched)
    assert sum(int(block["y"].sum()) for block in source.iter_blocks(12 * n_rows // 8)) == (np.arange(n_rows) % 7).sum()
    assert len(held) > 50
    assert max(held) < 6_000_000


def test_a_page_of_long_texts_is_in_the_memory(folder: Path) -> None:
    n_rows, n_chars = 1200, 5000
    texts = [f"{row % 3}" * n_chars for row in range(n_rows)]
    long = open_source(write(folder, {"a": np.ones(n_rows), "y": texts}, use_dictionary=False), options=LABELLED)
    short = open_source(write(folder, {"a": np.ones(n_rows), "y": ["0"] * n_rows}), options=LABELLED)
    # Programs look at its size after each 1024 rows.
    assert long.reading.working_bytes >= 2 * 1024 * n_chars > short.reading.working_bytes


def test_a_column_that_is_described_wrong_is_damage_and_ends_no_process(folder: Path) -> None:
    path = write(folder, {"a": np.ones(12), "y": list("abc" * 4)})
    # That its values may be missing, which they cannot where their levels are counted.
    optional, required = (bytes((0x15, 12, 0x25, 2 * kind, 0x18, 1)) + b"y" for kind in (1, 0))
    assert path.read_bytes().count(optional) == 1
    path.write_bytes(path.read_bytes().replace(optional, required))
    with pytest.raises(InputError, match="row group 0: the Parquet data is damaged"):
        open_source(path, options=LABELLED)


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        (["u1", "u1"], "u1"),
        (["u1", "i1"], "i2"),
        (["i8", "f4"], "f8"),
        (["i2", "f4"], "f4"),
        (["?", "f2"], "f2"),
        (["u8", "u4"], "u8"),
        (["?", "?"], "?"),
    ],
)
def test_features_share_the_narrowest_dtype(tmp_path: Path, kinds: list[str], common: str) -> None:
    path = write(tmp_path, {f"c{i}": np.ones(3, kind) for i, kind in enumerate(kinds)})
    assert open_source(path).fields[0].dtype == np.dtype(common)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["b", "a", "b"]),
        pa.array(["b", "a", "b"], pa.large_string()),
        pa.array(["b", "a", "b"]).dictionary_encode(),
    ],
)
def test_text_labels(tmp_path: Path, read_all: Callable[..., Any], labels: Any) -> None:
    source = open_source(write(tmp_path, {"a": [1, 2, 3], "y": labels}), options=LABELLED)
    assert source.classes == ("a", "b")
    np.testing.assert_array_equal(read_all(source)["y"], np.array([1, 0, 1]), strict=True)


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [(pa.array([0.5, 1.5, 2.5], pa.float32()), "f4"), (pa.array([True, False, True]), "i8"), ([7, 8, 9], "i8")],
)
def test_number_labels(tmp_path: Path, read_all: Callable[..., Any], labels: Any, dtype: str) -> None:
    source = open_source(write(tmp_path, {"a": [1, 2, 3], "y": labels}), options=LABELLED)
    assert (source.classes, read_all(source)["y"].dtype) == (None, np.dtype(dtype))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"a": [1.0, None, 2.0], "y": [1, 2, 3]},
            r"t\.parquet row 1: 1 value is empty, NaN or infinite in column 'a'",
        ),
        ({"a": [1, None, None], "y": [1, 2, 3]}, r"row 1, .* row 2: 2 values"),
        ({"a": [1.0, np.nan, np.inf], "y": [1, 2, 3]}, "2 values"),
        ({"a": [1, 2, 3], "y": ["p", None, "q"]}, r"row 1: 1 label is empty"),
        ({"a": [1, 2, 3], "y": [1.0, 2.0, np.nan]}, r"row 2: 1 label is empty"),
        ({"a": [[1], [2, 3], []], "y": [1, 2, 3]}, r"column 'a' is list<.*not supported"),
        ({"a": [{"b": 1}] * 3, "y": [1, 2, 3]}, r"column 'a' is struct<"),
        ({"a": pa.array([1, 2, 3], pa.timestamp("s")), "y": [1, 2, 3]}, r"column 'a' is timestamp"),
        ({"a": ["1", "2", "3"], "y": [1, 2, 3]}, r"column 'a' is string"),
        ({"a": pa.array([None] * 3), "y": [1, 2, 3]}, r"column 'a' is null"),
        ({"a": pa.array([1, 2, 3], pa.duration("s")), "y": [1, 2, 3]}, r"column 'a' is duration"),
        ({"a": [2**53 + 1, 0, 0], "b": [0.5, 1, 1], "y": [1, 2, 3]}, "whole numbers up to 9007199254740993, beyond"),
        ({"a": [-(2**60), 0, 0], "b": [0.5, 1, 1], "y": [1, 2, 3]}, "whole numbers up to 1152921504606846976"),
        ({"a": [1, 2, 3], "y": pa.array([1, 2, 2**63], pa.uint64())}, "up to 9223372036854775808, beyond"),
        ({"a": [1, 2, 3], "label": [1, 2, 3]}, "no label column 'y'. It has a, label"),
        ({"a": pa.array([], pa.int64()), "y": pa.array([], pa.int64())}, "columns but no rows"),
    ],
)
def test_bad_tables(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_source(write(tmp_path, columns), options=LABELLED)
    assert caught.value.exit_code == 3


def test_a_bad_column_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": [1, 2], "when": ["x", "y"], "y": [0, 1]})
    source = open_source(path, options=SourceOptions(label_column="y", columns=("a",)))
    assert source.fields[0].shape == (1,)


@pytest.mark.parametrize("keep", [3, 100, -1, -9])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, {"a": np.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="the Parquet data is damaged") as caught:
        open_source(path)
    assert str(path) in str(caught.value)


def test_a_flipped_page_byte_names_the_row_group(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=2000)
    path = write(
        tmp_path, {"a": values}, row_group_size=1000, write_page_checksum=True, use_dictionary=False, compression="none"
    )
    data = bytearray(path.read_bytes())
    data[data.index(values[1500].tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"t\.parquet row group 1: .*(CRC|checksum)"):
        open_source(path)


def test_a_row_group_larger_than_the_memory(tmp_path: Path) -> None:
    n_rows = 2_000_000
    columns = {name: np.random.default_rng(0).normal(size=n_rows) for name in "abcd"}
    path = write(tmp_path, columns, row_group_size=n_rows, compression="none", use_dictionary=False)
    pool = pa.default_memory_pool()
    before, largest = pool.bytes_allocated(), 0
    for _ in open_source(path).iter_blocks(1_000_000):
        largest = max(largest, pool.bytes_allocated() - before)
    assert path.stat().st_size > 64_000_000
    assert largest < 16_000_000


@pytest.mark.parametrize("most_columns", [1, 7, 100])
@pytest.mark.parametrize("max_bytes", [100, 5000, 10**9])
def test_columns_are_read_in_parts_as_they_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_columns: int, max_bytes: int
) -> None:
    monkeypatch.setattr("streamtrain.ingestion.sources.tables.parquet._MOST_COLUMNS", most_columns)
    monkeypatch.setattr("streamtrain.ingestion.sources.tables.parquet._DECODED_BYTES", 2000)
    x = np.random.default_rng(0).normal(size=(90, 20)).astype("f4")
    names = [f"name {i % 4}" for i in range(90)]
    columns = {f"c{i}": x[:, i] for i in range(20)}
    pq.write_table(pa.table(columns | {"y": names}), tmp_path / "t.parquet", row_group_size=40)
    source = open_source(tmp_path / "t.parquet", options=SourceOptions(label_column="y"))
    runs = [{name: values.copy() for name, values in run.items()} for run in source.iter_blocks(max_bytes)]
    np.testing.assert_array_equal(np.concatenate([run["x"] for run in runs]), x, strict=True)
    classes = np.array(source.classes)[np.concatenate([run["y"] for run in runs])]
    assert classes.tolist() == names
    assert max(run["x"].nbytes for run in runs) <= max(max_bytes, 80)


def test_a_footer_is_freed_with_its_file(folder: Path, read_all: Callable[..., Any]) -> None:
    path = write(folder, {"a": [1.0, 2.0], "y": [0, 1]})
    gc.collect()
    gc.disable()
    try:
        before = _n_footers()
        read_all(open_source(path, options=LABELLED), 1 << 20)
        assert _n_footers() == before
    finally:
        gc.enable()


def _n_footers() -> int:
    return sum(type(held) is pq.FileMetaData for held in gc.get_objects())
