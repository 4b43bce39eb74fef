"""Predictions as a Parquet file, a row group at a time."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from streamtrain.errors import UsageError
from streamtrain.system.files import FileWriter
from streamtrain.training.inference.predictions import Part, PredictionForm
from streamtrain.training.inference.writers.columns import Array, NamedValues, columns_of

_COPIES: Final = 8
"""Of a row group while it is encoded: as it came, encoded, compressed, and what Arrow keeps beside them."""


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
        self._most_bytes = buffer_bytes // _COPIES
        self._out = _Out(out)
        self._writer: Any = None
        # Of a row group, and used again for the next: small arrays that are kept a while leave holes in the heap.
        self._columns: dict[str, Array] = {}
        self._names: dict[str, Any] = {}
        self._n_rows = self._n_held = 0

    def add(self, part: Part) -> None:
        """Take in a part; write a row group wherever enough rows are held."""
        columns = columns_of(part, self._form, probabilities=self._probabilities)
        if not self._columns:
            self._begin(columns)
        start = 0
        while start < len(part):
            n = min(len(part) - start, self._n_rows - self._n_held)
            for name, values in columns.items():
                self._columns[name][self._n_held : self._n_held + n] = _numbers(values)[start : start + n]
            start, self._n_held = start + n, self._n_held + n
            if self._n_held == self._n_rows:
                self._write_group()

    def _begin(self, columns: Mapping[str, Array | NamedValues]) -> None:
        kinds = {name: _numbers(values).dtype for name, values in columns.items()}
        self._n_rows = max(1, self._most_bytes // sum(kind.itemsize for kind in kinds.values()))
        self._columns = {name: np.empty(self._n_rows, kind) for name, kind in kinds.items()}
        self._names = {
            name: self._texts(values.names) for name, values in columns.items() if isinstance(values, NamedValues)
        }
        arrays = [self._array(name) for name in self._columns]
        schema = self._arrow.schema([(name, each.type) for name, each in zip(self._columns, arrays, strict=True)])
        parquet = importlib.import_module("pyarrow.parquet")
        # Numbers that hardly repeat have no use for a dictionary, which takes memory; read back, texts are texts.
        self._writer = parquet.ParquetWriter(
            self._out,
            schema,
            use_dictionary=list(self._names),
            store_schema=False,
            write_statistics=False,
            memory_pool=self._arrow.system_memory_pool(),
        )

    def finish(self) -> None:
        """Write the rows that are held, and the footer."""
        if self._n_held:
            self._write_group()
        if self._writer is not None:
            self._writer.close()

    def _write_group(self) -> None:
        arrays = [self._array(name) for name in self._columns]
        self._writer.write_table(
            self._arrow.Table.from_arrays(arrays, list(self._columns)), row_group_size=self._n_rows
        )
        self._n_held = 0

    def _array(self, name: str) -> Any:
        """Show the rows of a column to Arrow where they lie: its way from NumPy loads pandas, 50 MB and a while."""
        numbers = self._columns[name][: self._n_held]
        kind = self._arrow.from_numpy_dtype(numbers.dtype)
        cells = np.packbits(numbers, bitorder="little") if numbers.dtype.kind == "b" else numbers
        shown = self._arrow.Array.from_buffers(kind, len(numbers), [None, self._arrow.py_buffer(cells)])
        names = self._names.get(name)
        return shown if names is None else self._arrow.DictionaryArray.from_arrays(shown, names)

    def _texts(self, texts: Sequence[str]) -> Any:
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
        buffers = [None, self._arrow.py_buffer(ends), self._arrow.py_buffer(b"".join(encoded))]
        return self._arrow.Array.from_buffers(self._arrow.string(), len(texts), buffers)


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
