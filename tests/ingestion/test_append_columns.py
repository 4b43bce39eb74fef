"""Append to a dataset whose columns have names: put in its order, refused, or matched by position and said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import InputError
from streamtrain.store.schema.matching import UnnamedColumns

AGE, INCOME = [30.5, 31.5], [500.25, 600.25]
Columns = dict[str, list[Any]]


def csv(path: Path, columns: Columns) -> Path:
    rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.with_suffix(".csv").write_text("\n".join([",".join(columns), *rows]) + "\n")
    return path.with_suffix(".csv")


def parquet(path: Path, columns: Columns) -> Path:
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


every_format = pytest.mark.parametrize("write", [csv, parquet])


@every_format
def test_columns_are_put_in_the_order_of_the_dataset(tmp_path: Path, write: Callable[..., Path]) -> None:
    dest, how = tmp_path / "d.zarr", {"label_column": "kind", "codec": "none"}
    st.ingest(write(tmp_path / "one", {"age": AGE, "kind": ["cat", "dog"], "income": INCOME}), dest, **how)
    more = write(tmp_path / "more", {"kind": ["dog", "cat"], "income": [7.5, 8.5], "age": [1.5, 2.5]})
    grown = st.ingest(more, dest, append=True, **how)
    assert grown[:]["x"].tolist() == [[30.5, 500.25], [31.5, 600.25], [1.5, 7.5], [2.5, 8.5]]
    assert grown[:]["y"].tolist() == [0, 1, 1, 0]
    assert grown.columns == ("age", "income")
    again = st.ingest(more, dest, append=True, resume=True, **how)
    assert len(again) == 4, "it was complete already"


@every_format
def test_labels_of_their_own_file_and_named_classes_change_nothing(tmp_path: Path, write: Callable[..., Path]) -> None:
    dest, how = tmp_path / "d.zarr", {"classes": ["dog", "cat"], "codec": "none"}
    labels = [csv(tmp_path / name, {"kind": kinds}) for name, kinds in (("a", ["cat", "dog"]), ("b", ["cat", "cat"]))]
    st.ingest(write(tmp_path / "one", {"age": AGE, "income": INCOME}), dest, labels=labels[0], **how)
    more = [
        write(tmp_path / "m", {"income": [7.5], "age": [1.5]}),
        write(tmp_path / "n", {"age": [2.5], "income": [8.5]}),
    ]
    grown = st.ingest(more, dest, labels=labels[1], append=True, **how)
    assert grown[2:]["x"].tolist() == [[1.5, 7.5], [2.5, 8.5]]
    assert grown[:]["y"].tolist() == [1, 0, 1, 1]


@every_format
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ["weight", "length"],
            "it has no columns 'age', 'income', which the dataset has; it has 'weight', 'length' instead",
        ),
        (["age", "incone"], r"it has no column 'income', which the dataset has \(did you mean 'incone'\?\)"),
        (["age"], "it has no column 'income'"),
        (
            ["income", "height", "age"],
            "it has a column 'height', which the dataset lacks.*columns=.'age', 'income'",
        ),
    ],
)
def test_other_columns_are_refused(
    tmp_path: Path, write: Callable[..., Path], columns: list[str], message: str
) -> None:
    dest = st.ingest(write(tmp_path / "one", {"age": AGE, "income": INCOME}), tmp_path / "d.zarr").path
    with pytest.raises(InputError, match=message):
        st.ingest(write(tmp_path / "more", dict.fromkeys(columns, AGE)), dest, append=True)
    assert len(st.open(dest)) == 2


def test_the_columns_that_were_chosen_are_what_counts(tmp_path: Path) -> None:
    one = csv(tmp_path / "one", {"id": [1, 2], "age": AGE, "income": INCOME})
    dest = st.ingest(one, tmp_path / "d.zarr", columns=("income", "age"), codec="none").path
    more = csv(tmp_path / "more", {"age": [1.5], "id": [3], "income": [7.5]})
    grown = st.ingest(more, dest, columns=("age", "income"), append=True)
    assert grown[2]["x"].tolist() == [7.5, 1.5]


def test_a_target_of_another_name_is_refused(tmp_path: Path) -> None:
    dest = st.ingest(csv(tmp_path / "a", {"age": AGE, "pay": INCOME}), tmp_path / "d.zarr", label_column="pay").path
    more = csv(tmp_path / "b", {"age": AGE, "tax": INCOME})
    with pytest.raises(InputError, match="the columns of y are 'tax'; in the dataset they are 'pay'"):
        st.ingest(more, dest, label_column="tax", append=True)


def test_rows_without_names_are_appended_by_position_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = st.ingest(csv(tmp_path / "a", {"age": AGE, "income": INCOME}), tmp_path / "d.zarr", codec="none").path
    rows = np.array([[1.5, 2.5]])
    with pytest.warns(UnnamedColumns, match="array has no names for the columns of x") as caught:
        st.ingest(rows, dest, append=True)
    assert len(caught) == 1
    np.save(tmp_path / "more.npy", rows)
    assert main(["ingest", str(tmp_path / "more.npy"), str(dest), "--append"]) == 0
    err = capsys.readouterr().err
    assert err.count("matched by position") == 1
    assert "more.npy has no names for the columns of x" in err
    assert st.open(dest)[2:]["x"].tolist() == [[1.5, 2.5], [1.5, 2.5]]
    assert st.open(dest).columns == ("age", "income")


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_tables_in_memory_have_names_too(tmp_path: Path) -> None:
    dest, y = tmp_path / "d.zarr", np.array([0, 1])
    made = st.ingest({"x": table(age=AGE, income=INCOME), "y": y}, dest, codec="none")
    assert made.columns == ("age", "income")
    grown = st.ingest({"x": table(income=INCOME, age=AGE), "y": y}, dest, append=True)
    assert grown[2:]["x"].tolist() == grown[:2]["x"].tolist()
    with pytest.raises(InputError, match="it has no column 'income'"):
        st.ingest({"x": table(pay=INCOME, age=AGE), "y": y}, dest, append=True)
    more = st.ingest(csv(tmp_path / "a", {"income": [1.5], "kind": [1], "age": [2.5]}), dest, label_column="kind",
                     append=True)  # fmt: skip
    assert more[4]["x"].tolist() == [2.5, 1.5]


def test_a_table_in_memory_names_its_labels(tmp_path: Path) -> None:
    x = np.zeros((2, 3))
    dest = st.ingest(x, tmp_path / "d.zarr", labels=table(pay=INCOME)).path
    assert st.open(dest).schema.columns == {"y": ("pay",)}
    assert len(st.ingest(x, dest, labels=table(pay=INCOME), append=True)) == 4
    with pytest.raises(InputError, match="the columns of y are 'tax'; in the dataset they are 'pay'"):
        st.ingest(x, dest, labels=table(tax=INCOME), append=True)


def test_tables_of_an_iterator_are_put_in_the_first_ones_order(tmp_path: Path) -> None:
    def items(*last: Any) -> Iterator[dict[str, Any]]:
        yield {"x": table(age=AGE, income=INCOME)}
        yield from last

    made = st.ingest(items({"x": table(income=INCOME, age=AGE)}), tmp_path / "d.zarr", codec="none")
    assert made[2:]["x"].tolist() == made[:2]["x"].tolist()
    assert made.columns == ("age", "income")
    with pytest.raises(InputError, match=r"item 1 of the iterator, 'x'.*it has no column 'income'"):
        st.ingest(items({"x": table(pay=INCOME, age=AGE)}), tmp_path / "e.zarr")
    with pytest.raises(InputError, match="the columns of x are 'income', 'age'; in the dataset they are 'age'"):
        st.ingest(iter([{"x": table(income=INCOME, age=AGE)}]), made.path, append=True)
