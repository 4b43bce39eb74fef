"""Predictions as a Parquet file, a row group at a time."""

from __future__ import annotations

import importlib
import io
import os
from typing import Any, Final

import numpy as np

from streamtrain.errors import UsageError
from streamtrain.system.files import FileWriter
from streamtrain.training.inference.predictions import Part, PredictionForm
from streamtrain.training.inference.writers.columns import Array, NamedValues, columns_of

_COPIES: Final = 8
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
        self._held: list[dict[str, Array | NamedValues]] = []
        self._n_bytes = 0

    def add(self, part: Part) -> None:
        """Take in a part; write a row group where enough rows are held."""
        columns = columns_of(part, self._form, probabilities=self._probabilities)
        self._held.append(columns)
        self._n_bytes += sum(_numbers(values).nbytes for values in columns.values())
        if self._n_bytes >= self._most:
            self._write_group()

    def finish(self) -> None:
        """Write the rows that are held, and the footer."""
        self._write_group()
        if self._writer is not None:
            self._writer.close()

    def _write_group(self) -> None:
        if not self._held:
            return
        names = list(self._held[0])
        table = self._arrow.table(
            [self._column([columns.pop(name) for columns in self._held]) for name in names], names
        )
        self._held.clear()
        self._n_bytes = 0
        if self._writer is None:
            parquet = importlib.import_module("pyarrow.parquet")
            texts = [name for name in names if self._arrow.types.is_dictionary(table.schema.field(name).type)]
            # Numbers that hardly repeat have no use for a dictionary, which takes memory; read back, texts are texts.
            self._writer = parquet.ParquetWriter(
                self._out, table.schema, use_dictionary=texts, store_schema=False, write_statistics=False
            )
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def _column(self, parts: list[Array | NamedValues]) -> Any:
        numbers = np.concatenate([_numbers(values) for values in parts])
        first = parts[0]
        if isinstance(first, NamedValues):
            return self._arrow.DictionaryArray.from_arrays(numbers.astype(np.int32), list(first.names))
        return self._arrow.array(numbers)


def _numbers(values: Array | NamedValues) -> Array:
    return values.numbers if isinstance(values, NamedValues) else values


def check_arrow() -> Any:
    """Import pyarrow, or say how to install it."""
    # Arrow's own pool holds twice as much, most of it freed.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        fix = "pip install 'streamtrain[arrow]', or a file of another kind: .csv, .npy, .zarr"
        raise UsageError("Parquet is written by pyarrow, which is not installed", fix=fix) from error
