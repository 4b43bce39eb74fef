"""Predictions as one array: a .npy file."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from streamtrain.system.files import FileWriter
from streamtrain.training.inference.predictions import Part
from streamtrain.training.inference.writers.columns import array_of


class ArrayWriter:
    """Writes parts one behind the other; the header counts the rows, and is written again at the end."""

    def __init__(self, out: FileWriter, *, probabilities: bool) -> None:
        self._out, self._probabilities = out, probabilities
        self._n_rows = 0
        self._first: npt.NDArray[np.generic] | None = None

    def add(self, part: Part) -> None:
        """Write the rows of a part."""
        values = np.ascontiguousarray(array_of(part, probabilities=self._probabilities))
        if self._first is None:
            self._first = values[:0]
            self._out.write(self._header())
        self._out.write(values.data)
        self._n_rows += len(values)

    def finish(self) -> None:
        """Write how many rows there are."""
        if self._first is not None:
            self._out.write_again(self._header())

    def _header(self) -> bytes:
        assert self._first is not None
        text = io.BytesIO()
        # NumPy leaves room in it for any number of rows.
        np.lib.format.write_array_header_1_0(
            text,
            {
                "descr": np.lib.format.dtype_to_descr(self._first.dtype),
                "fortran_order": False,
                "shape": (self._n_rows, *self._first.shape[1:]),
            },
        )
        return text.getvalue()
