"""Predictions as a Parquet file, a row group at a time."""

from __future__ import annotations

import importlib
import io
from typing import Any, Final

import numpy as np

from streamtrain.errors import UsageError
from streamtrain.system.files import FileWriter
from streamtrain.training.inference.predictions import Part, PredictionForm
from streamtrain.training.inference.writers.columns import columns_of

_COPIES: Final = 4
"""Of a row group while it is encoded: as it came, as Arrow, encoded, compressed."""


class _Out(io.RawIOBase):
    """What Arrow writes to: a file that appears when it is finished."""

    def __init__(self, out: FileWriter) -> None:
        self._out = out

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._out.n_bytes

    def write(self, data: Any, /) -> int:
        self._out.write(data)
        return memoryview(data).nbytes


class ParquetWriter:
    """Writes parts as columns."""

    def __init__(self, out: FileWriter, form: PredictionForm, *, probabilities: bool, buffer_bytes: int) -> None:
        self._arrow = check_arrow()
        self._form, self._probabilities = form, probabilities
        self._most = max(1, buffer_bytes // _COPIES)
        self._out = _Out(out)
        self._writer: Any = None
        self._held: list[Any] = []

    def add(self, part: Part) -> None:
        """Take in a part; write a row group where enough rows are held."""
        columns = columns_of(part, self._form, probabilities=self._probabilities)
        arrays = {name: values if isinstance(values, np.ndarray) else list(values) for name, values in columns.items()}
        self._held.append(self._arrow.table(arrays))
        if sum(table.nbytes for table in self._held) >= self._most:
            self._write_group()

    def finish(self) -> None:
        """Write the rows that are held, and the footer."""
        self._write_group()
        if self._writer is not None:
            self._writer.close()

    def _write_group(self) -> None:
        if not self._held:
            return
        table = self._arrow.concat_tables(self._held)
        if self._writer is None:
            parquet = importlib.import_module("pyarrow.parquet")
            self._writer = parquet.ParquetWriter(self._out, table.schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._held.clear()


def check_arrow() -> Any:
    """Import pyarrow, or say how to install it."""
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        fix = "pip install 'streamtrain[arrow]', or a file of another kind: .csv, .npy, .zarr"
        raise UsageError("Parquet is written by pyarrow, which is not installed", fix=fix) from error
