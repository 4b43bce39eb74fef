"""Several sources as one."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.arrays import align_streams
from streamtrain.ingestion.sources.base import Source, SourceOptions
from streamtrain.ingestion.sources.combine import concatenate
from streamtrain.ingestion.sources.registry import open_source


def sources(lengths: list[int]) -> list[Source]:
    starts = np.cumsum([0, *lengths])
    return [open_source({"x": np.arange(a, b), "y": np.arange(a, b)}) for a, b in pairwise(starts)]


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    max_bytes=st.integers(1, 300),
    piece=st.integers(1, 100),
    cut=st.tuples(st.integers(0, 120), st.integers(0, 120)),
)
def test_a_concatenation_equals_its_parts(
    read_all: Callable[..., Any], lengths: list[int], max_bytes: int, piece: int, cut: tuple[int, int]
) -> None:
    whole, expected = concatenate(sources(lengths)), np.arange(sum(lengths))
    np.testing.assert_array_equal(read_all(whole, max_bytes)["x"], expected)
    assert whole.seekable
    start, stop = sorted(min(bound, len(expected)) for bound in cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamtrain.ingestion.sources.combine._PIECE_BYTES", piece)
        np.testing.assert_array_equal(whole.read(start, stop)["y"], expected[start:stop], strict=True)


@given(
    runs=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=4),
)
def test_streams_are_brought_in_step(runs: list[list[int]]) -> None:
    def stream(name: str, lengths: list[int]) -> Iterator[dict[str, Any]]:
        start = 0
        for length in lengths:
            yield {name: np.arange(start, start + length)}
            start += length

    merged = list(align_streams([stream(f"s{number}", lengths) for number, lengths in enumerate(runs)]))
    n_rows = min(map(sum, runs))
    for number in range(len(runs)):
        values = [rows[f"s{number}"] for rows in merged]
        assert all(map(len, values))
        np.testing.assert_array_equal(np.concatenate([np.arange(0), *values])[:n_rows], np.arange(n_rows))


def test_where_delegates(tmp_path: Path) -> None:
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((4, 2)))
    source = open_source(tmp_path)
    assert [source.where(row) for row in (0, 3, 4, 7)] == [
        f"{tmp_path / name} row {row}" for name, row in (("a.npy", 0), ("a.npy", 3), ("b.npy", 0), ("b.npy", 3))
    ]
    assert [entry["path"] for entry in source.provenance] == [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]


def test_parts_that_only_stream(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    np.save(tmp_path / "a.npy", np.arange(4))
    parts = [open_source(tmp_path / "a.npy"), open_source(iter([{"x": np.arange(3)}]))]
    whole = concatenate(parts)
    assert not whole.seekable
    assert whole.n_samples is None
    assert whole.where(5) == "row 5 of 2 sources"
    assert read_all(whole)["x"].tolist() == [0, 1, 2, 3, 0, 1, 2]


@pytest.mark.parametrize("other", [np.zeros((2, 3)), np.zeros((2, 4), "f4")])
def test_files_that_differ_are_listed(tmp_path: Path, other: Any) -> None:
    for name, array in (("a", np.zeros((2, 3), "f4")), ("b", np.zeros((2, 3), "f4")), ("c", other)):
        np.save(tmp_path / f"{name}.npy", array)
    message = rf"a\.npy and 1 more: x float32 \(3,\); .*c\.npy: x {other.dtype} \({other.shape[1]},\)"
    with pytest.raises(InputError, match=message) as caught:
        open_source(tmp_path)
    assert caught.value.exit_code == 3


def csv(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


LABELLED = SourceOptions(label_column="y")


def test_classes_of_several_tables_are_united(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    source = open_source(csv(tmp_path, p="a,y\n1,dog\n2,cat\n", q="a,y\n3,ant\n4,dog\n"), options=LABELLED)
    assert source.classes == ("ant", "cat", "dog")
    assert read_all(source)["y"].tolist() == [2, 1, 0, 2]


def test_dtypes_found_in_several_tables_are_widened(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    source = open_source(csv(tmp_path, p="a,y\n1,1\n", q="a,y\n2.5,1.5\n"), options=LABELLED)
    read = read_all(source)
    np.testing.assert_array_equal(read["x"], np.array([[1], [2.5]]), strict=True)
    np.testing.assert_array_equal(read["y"], np.array([1, 1.5]), strict=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"p": "a,b\n1,2\n", "q": "a,c\n1,2\n"}, r"q\.csv: its columns .* it has no column 'b', which .*p\.csv has"),
        ({"p": "a,b\n1,2\n", "q": "a\n1\n"}, r"q\.csv: its columns .* it has no column 'b', which .*p\.csv has"),
        ({"p": "a\n1\n", "q": "b,a\n1,2\n"}, r"q\.csv: its columns .* it has a column 'b', which .*p\.csv lacks"),
        ({"p": "a,b\n9007199254740993,2\n", "q": "a,b\n0.5,1\n"}, r"p\.csv: column 'a' holds whole numbers up to"),
    ],
)
def test_tables_that_differ(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(csv(tmp_path, **files))


def test_columns_are_put_in_the_first_tables_order(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    files = {"p": "a,y,b\n1,cat,2\n", "q": "b,a,y\n4,3.5,dog\n", "r": "y,b,a\nant,6,5\n"}
    source = open_source(csv(tmp_path, **files), options=LABELLED)
    read = read_all(source)
    np.testing.assert_array_equal(read["x"], [[1, 2], [3.5, 4], [5, 6]])
    assert [source.classes[label] for label in read["y"].tolist()] == ["cat", "dog", "ant"]  # type: ignore[index]
    assert [entry["columns"] for entry in source.provenance] == [["a", "b"]] * 3


def test_targets_of_two_names_are_not_one(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    x, numbers = np.zeros((2, 3)), csv(tmp_path / "n", a="pay\n1.5\n", b="tax\n2.5\n")
    with pytest.raises(InputError, match=r"labels 'pay'; .*labels 'tax'"):
        open_source(x, labels=numbers)
    # Classes are known by their own names.
    source = open_source(x, labels=csv(tmp_path / "k", a="kind\ncat\n", b="label\ndog\n"))
    assert read_all(source)["y"].tolist() == [0, 1]


def test_fields_of_other_files_are_found_by_their_names(tmp_path: Path, read_all: Callable[..., Any]) -> None:
    x, z = np.arange(6.0).reshape(3, 2), np.arange(3)
    np.savez(tmp_path / "p.npz", x=x, z=z)
    np.savez(tmp_path / "q.npz", z=z + 3, x=x + 6)
    read = read_all(open_source([tmp_path / "p.npz", tmp_path / "q.npz"]))
    np.testing.assert_array_equal(read["x"], np.arange(12.0).reshape(6, 2))
    assert read["z"].tolist() == list(range(6))


def test_tables_with_text_and_number_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels are text in one file and numbers in another"):
        open_source(csv(tmp_path, p="a,y\n1,dog\n", q="a,y\n1,7\n"), options=LABELLED)


def test_gzipped_files_are_concatenated_in_bounded_memory(tmp_path: Path, peak_of_reading: Callable[..., int]) -> None:
    for name in "ab":
        header = b"\x00\x00\x08\x02" + np.array([10_000, 1000], ">u4").tobytes()
        with gzip.open(tmp_path / f"{name}.idx.gz", "wb", 1) as file:
            file.write(header + np.arange(10_000_000, dtype="u1").tobytes())
    assert peak_of_reading(open_source(tmp_path), 1_000_000) < 4_000_000
