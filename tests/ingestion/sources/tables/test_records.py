"""Records of delimited files: cut where Arrow cuts them, and the cells of wide ones what Arrow reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.ingestion.sources.tables.records import Cells, RaggedRecord, cells_of, record_runs

CELLS = st.text(st.sampled_from("ab ,\n\"é'"), max_size=6)
RECORDS = st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=8)


def written(records: list[list[str]], line_end: str) -> bytes:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',\n"') else text or '""'

    return line_end.join([*(",".join(map(cell, record)) for record in records), ""]).encode()


@given(RECORDS, st.sampled_from(["\n", "\r\n"]), st.integers(1, 40))
def test_runs_are_the_file_and_whole_records(records: list[list[str]], line_end: str, n_bytes: int) -> None:
    data = written(records, line_end)
    path = Path(pa.__file__)  # any: opened below
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "streamtrain.ingestion.sources.tables.records.open_text", lambda *_: io.BytesIO(b"h,i,j\n" + data)
        )
        runs = list(record_runs(path, ",", n_bytes, 10_000, lambda n: AssertionError(n)))
    assert b"".join(runs) == data
    options = pa_csv.ReadOptions(column_names=["a", "b", "c"])
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    read = [pa_csv.read_csv(io.BytesIO(run), options, parse).num_rows for run in runs if run.strip()]
    assert sum(read) == len(records)


@given(RECORDS, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_cells_are_those_that_arrow_reads(records: list[list[str]], line_end: str, blank: bool) -> None:
    data = written(records, line_end) + blank * line_end.encode()
    cells = cells_of(data, ",", 3)
    assert isinstance(cells, Cells)
    assert cells.text.to_pylist() == [cell for record in records for cell in record]
    cells.text.validate(full=True)
    quoted = [bool(set(cell) & set(',\n"')) or not cell for record in records for cell in record]
    np.testing.assert_array_equal(cells.quoted, np.flatnonzero(quoted))


@pytest.mark.parametrize(
    ("run", "row", "n_cells"), [(b"1,2,3\n4,5\n", 1, 2), (b"1,2,3,4\n", 0, 4), (b'1,2,3\n"a,b",3\n', 1, 2)]
)
def test_a_ragged_record_is_found(run: bytes, row: int, n_cells: int) -> None:
    found = cells_of(run, ",", 3)
    assert isinstance(found, RaggedRecord)
    assert (found.row, found.n_cells) == (row, n_cells)


def test_a_quote_within_a_cell_is_a_character() -> None:
    found = cells_of(b'5" disk,2,"a"b\n', ",", 3)
    assert isinstance(found, Cells)
    assert found.text.to_pylist() == ['5" disk', "2", "ab"]


def test_what_is_not_utf_8_is_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        cells_of(b"1,\xe9,3\n", ",", 3)
