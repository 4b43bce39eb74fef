"""Labels of a table, missing or names: the same in every format."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamtrain
from streamtrain.errors import BudgetError, InputError, StreamtrainWarning
from streamtrain.ingestion.sources.tables.column_survey import (
    MISSING_MARKS,
    add_typed,
    class_bytes,
    class_names,
    surveys_of,
)


def in_quotes(path: Path, labels: list[str], delimiter: str = ",") -> Path:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, delimiter=delimiter)
    writer.writerows([["a", "kind"], *([number, label] for number, label in enumerate(labels))])
    path.write_text(text.getvalue())
    return path


def bare(path: Path, labels: list[str]) -> Path:
    path.write_text("a,kind\n" + "".join(f"{number},{label}\n" for number, label in enumerate(labels)))
    return path


def typed(path: Path, labels: list[str], make: Callable[[Any], Any] = lambda labels: labels) -> Path:
    numbers = [float(number) for number in range(len(labels))]
    pq.write_table(pa.table({"a": numbers, "kind": make(pa.array(labels))}), path)
    return path


WAYS: dict[str, tuple[Callable[..., Path], str]] = {
    "quoted CSV": (in_quotes, "t.csv"),
    "quoted TSV": (lambda path, labels: in_quotes(path, labels, "\t"), "t.tsv"),
    "bare CSV": (bare, "t.csv"),
    "Parquet": (typed, "t.parquet"),
    "Parquet, coded": (lambda path, labels: typed(path, labels, lambda a: a.dictionary_encode()), "t.parquet"),
    "Parquet, large": (lambda path, labels: typed(path, labels, lambda a: a.cast(pa.large_string())), "t.parquet"),
}
QUOTED = [way for way in WAYS if way != "bare CSV"]


def write(folder: Path, way: str, labels: list[str]) -> Path:
    make, name = WAYS[way]
    return make(folder / name, labels)


def ingest(source: Any, dest: Path, **options: Any) -> streamtrain.Dataset:
    return streamtrain.ingest(source, dest, label_column="kind", **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("empty", ["", " ", "  \t ", "\u00a0"])
def test_an_empty_or_blank_label_is_missing(tmp_path: Path, way: str, empty: str) -> None:
    if way == "quoted TSV":
        empty = empty.replace("\t", "")
    source = write(tmp_path, way, ["cat", empty, "dog", "cat", empty])
    with pytest.raises(InputError, match="2 labels are empty") as caught:
        ingest(source, tmp_path / "d.zarr")
    places = {"csv": (":3", ":6"), "tsv": (":3", ":6"), "parquet": (" row 1", " row 4")}[source.suffix[1:]]
    assert caught.value.where == ", ".join(f"{source}{place}" for place in places)


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_label_beside_numbers_is_missing(tmp_path: Path, way: str) -> None:
    with pytest.raises(InputError, match="1 label is empty"):
        ingest(write(tmp_path, way, ["0", "1", "", "1"]), tmp_path / "d.zarr")


@pytest.mark.parametrize("way", QUOTED)
@pytest.mark.parametrize("name", [*MISSING_MARKS, "None", "true", "inf"])
def test_a_quoted_or_typed_name_is_a_class_whatever_it_looks_like(tmp_path: Path, way: str, name: str) -> None:
    labels = ["DE", name, "US", name]
    dataset = ingest(write(tmp_path, way, labels), tmp_path / "d.zarr")
    assert dataset.classes == tuple(sorted({"DE", name, "US"}))
    assert [dataset.classes[label] for label in dataset[:]["y"]] == labels


@pytest.mark.parametrize("name", MISSING_MARKS)
def test_bare_it_is_missing_until_the_classes_are_named(tmp_path: Path, name: str) -> None:
    source = bare(tmp_path / "t.csv", ["DE", name, "US", name])
    with pytest.raises(InputError, match=r't.csv:3, .*t.csv:5: 2 labels .* quote it, "NA", or name the classes'):
        ingest(source, tmp_path / "d.zarr")
    dataset = ingest(source, tmp_path / "d.zarr", classes=["US", name, "DE"])
    assert dataset.classes == ("US", name, "DE")
    assert dataset[:]["y"].tolist() == [2, 1, 0, 1]


def test_what_is_appended_knows_the_names_of_the_dataset(tmp_path: Path) -> None:
    ingest(in_quotes(tmp_path / "a.csv", ["DE", "NA", "US"]), tmp_path / "d.zarr")
    dataset = ingest(bare(tmp_path / "b.csv", ["NA", "DE"]), tmp_path / "d.zarr", append=True)
    assert dataset[:]["y"].tolist() == [0, 1, 2, 1, 0]


def test_names_in_a_file_of_labels_and_in_several_files(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n2\n3\n")
    (tmp_path / "y.csv").write_text('kind\nNA\n"DE"\nUS\n')
    dataset = streamtrain.ingest(
        tmp_path / "x.csv", tmp_path / "d.zarr", labels=tmp_path / "y.csv", classes=["DE", "NA", "US"]
    )
    assert dataset[:]["y"].tolist() == [1, 0, 2]
    files = [in_quotes(tmp_path / "a.csv", ["DE", "US"]), in_quotes(tmp_path / "b.csv", ["null", "DE"])]
    assert ingest(files, tmp_path / "two.zarr").classes == ("DE", "US", "null")


@pytest.mark.parametrize("mark", ["NA", "null", "nan"])
@pytest.mark.parametrize("numbers", [["0", "1"], ["0.5", "2"]])
def test_beside_numbers_alone_a_quoted_mark_is_a_missing_number(tmp_path: Path, mark: str, numbers: list[str]) -> None:
    with pytest.raises(InputError, match=r"t.csv:2, .*t.csv:4: 2 labels are empty, NaN"):
        ingest(in_quotes(tmp_path / "t.csv", [mark, numbers[0], mark, numbers[1]]), tmp_path / "d.zarr")


def test_a_quoted_mark_among_features_is_missing(tmp_path: Path) -> None:
    for value in ("NA", "", " ", "null"):
        (tmp_path / "t.csv").write_text(f'"a","b"\n"1","2.5"\n"{value}","2"\n')
        with pytest.raises(InputError, match=r"t.csv:3: 1 value is empty, NaN or infinite in column 'a'"):
            streamtrain.ingest(tmp_path / "t.csv", tmp_path / "d.zarr")
    (tmp_path / "t.csv").write_text('a,kind\n1,"NA"\nNA,"DE"\n')
    with pytest.raises(InputError, match=r"t.csv:3: 1 value is empty, NaN or infinite in column 'a'"):
        ingest(tmp_path / "t.csv", tmp_path / "d.zarr", classes=["NA", "DE"])


@pytest.mark.parametrize("way", WAYS)
def test_blanks_around_a_name_belong_to_it(tmp_path: Path, way: str) -> None:
    dataset = ingest(write(tmp_path, way, [" cat", "dog ", " cat"]), tmp_path / "d.zarr")
    assert dataset.classes == (" cat", "dog ")


@pytest.mark.parametrize("way", WAYS)
def test_two_names_that_differ_in_blanks_alone(tmp_path: Path, way: str) -> None:
    source = write(tmp_path, way, ["cat", "dog", " cat"])
    with pytest.warns(StreamtrainWarning, match="1 class name stripped of blanks: ' cat' is 'cat'"):
        dataset = ingest(source, tmp_path / "c.zarr")
    assert (dataset.classes, dataset[:]["y"].tolist()) == (("cat", "dog"), [0, 1, 0])
    assert ingest(source, tmp_path / "d.zarr", classes=["cat", "dog", " cat"])[:]["y"].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="not among the classes: ' cat'"):
        ingest(source, tmp_path / "e.zarr", classes=["cat", "dog"])


def test_two_names_that_differ_in_blanks_in_two_files(tmp_path: Path) -> None:
    files = [in_quotes(tmp_path / "a.csv", ["cat", "dog"]), in_quotes(tmp_path / "b.csv", ["cat ", "dog"])]
    with pytest.warns(StreamtrainWarning, match="'cat ' is 'cat'"):
        dataset = ingest(files, tmp_path / "d.zarr")
    assert (dataset.classes, dataset[:]["y"].tolist()) == (("cat", "dog"), [0, 1, 0, 1])


NAMES = st.sampled_from(["cat", "dog", "NA", "null", "7", "0.5", "", " ", "x,y", 'say "no"', "ä"])


@given(labels=st.lists(NAMES, min_size=1, max_size=8))
def test_every_format_stores_the_same_or_refuses_the_same(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str]
) -> None:
    folder, found = tmp_path_factory.mktemp("d"), []
    for number, way in enumerate(QUOTED):
        try:
            dataset = ingest(write(folder, way, labels), folder / f"{number}.zarr")
        except InputError:
            found.append(None)
        else:
            found.append(
                [names[label] if (names := dataset.manifest.classes) else label for label in dataset[:]["y"].tolist()]
            )
    if any(not label.strip() for label in labels):
        assert found == [None] * len(QUOTED)
    else:
        # Text is text in Parquet; in a CSV it is numbers where it can be, and a mark is missing then.
        as_text, in_csv = found[QUOTED.index("Parquet") :], found[: QUOTED.index("Parquet")]
        assert as_text == [labels] * len(as_text)
        is_named = any(label not in ("7", "0.5", "NA", "null") for label in labels)
        are_numbers = all(label in ("7", "0.5") for label in labels)
        numbers = [float(label) for label in labels] if are_numbers else None
        assert in_csv == [labels if is_named else numbers] * len(in_csv)


def test_names_that_cannot_fit_are_counted_and_not_held() -> None:
    names = [f"{number}{'é' * 1000}" for number in range(400)] + ["short"]
    (column,) = surveys_of(["y"], "y", None, memory=200_000)
    for start in range(0, len(names), 3):
        # Some come twice, also as digests.
        add_typed(column, pa.array(names[max(0, start - 5) : start + 3]), start)
    assert sum(map(len, column.classes or ())) < 50_000
    needed = class_bytes(names)
    with pytest.raises(BudgetError, match=r"the 401 distinct texts of label column 'y' take 3\.3 MB") as caught:
        class_names(column, "t")
    memory = -(-(needed + 200_000) // 10**6)
    assert f"memory='{memory}MB'" in str(caught.value.fix)
    (column,) = surveys_of(["y"], "y", None, memory=memory * 10**6)
    add_typed(column, pa.array(names), 0)
    assert class_names(column, "t") == tuple(sorted(names))
