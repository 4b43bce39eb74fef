"""Predictions as delimited text: CSV and TSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Final

from streamtrain.training.inference.predictions import Part, PredictionForm
from streamtrain.training.inference.writers.columns import columns_of

_MOST_BYTES: Final = 1 << 18


class TextWriter:
    """Writes parts as lines, the names of the columns first; numbers so that reading gives the same bits."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        form: PredictionForm,
        *,
        delimiter: str,
        probabilities: bool,
        buffer_bytes: int,
    ) -> None:
        self._write, self._form, self._probabilities = write, form, probabilities
        self._most = min(buffer_bytes // 4, _MOST_BYTES)
        self._text = io.StringIO()
        self._csv = csv.writer(self._text, delimiter=delimiter, lineterminator="\n")
        self._has_head = False

    def add(self, part: Part) -> None:
        """Write the lines of a part."""
        columns = columns_of(part, self._form, probabilities=self._probabilities)
        if not self._has_head:
            self._csv.writerow(columns)
            self._has_head = True
        self._csv.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
        if self._text.tell() >= self._most:
            self.flush()

    def flush(self) -> None:
        """Hand over what is written so far."""
        self._write(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()
