"""Labels that are text in memory, in arrays, lists and series: sorted and numbered as classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.tables.column_survey import MAX_CLASSES

_PIECE_ROWS: Final = 2**16


class TextLabels:
    """Text, one a sample, as the numbers of its classes; numbered a run of rows at a time."""

    dtype: Final = np.dtype(np.int64)

    def __init__(self, values: Any, where: str) -> None:
        self._values, self._where = values, where
        self.shape = (len(values),)
        names: set[str] = set()
        for start in range(0, len(values), _PIECE_ROWS):
            names.update(self._texts(start, start + _PIECE_ROWS))
            if len(names) > MAX_CLASSES:
                what = f"the labels hold more than {MAX_CLASSES:,} distinct texts"
                raise InputError(what, where=where, why="Text labels are the names of classes", fix="give other labels")
        self.classes = tuple(sorted(names))
        self._codes = {name: code for code, name in enumerate(self.classes)}

    def __getitem__(self, rows: slice, /) -> npt.NDArray[np.int64]:
        start, stop, _ = rows.indices(len(self._values))
        try:
            return np.array([self._codes[text] for text in self._texts(start, stop)], np.int64)
        except KeyError as error:
            fix = "ingest again when nothing writes to it"
            raise InputError(f"changed while it was read: {error} was no label", where=self._where, fix=fix) from None

    def _texts(self, start: int, stop: int) -> list[str]:
        texts = _objects(self._values, start, stop)
        for row, text in enumerate(texts, start):
            if not isinstance(text, str) or not text.strip():
                is_missing = isinstance(text, str) or text is None or (isinstance(text, float) and text != text)
                raise InputError(
                    "a label is missing" if is_missing else f"a label is {text!r:.80}, and others are text",
                    where=f"{self._where} row {row}",
                    why="Nothing is imputed" if is_missing else "Text labels are the names of classes",
                    fix="fill it in or leave its row out" if is_missing else "write all labels as text",
                )
        return texts


def _objects(values: Any, start: int, stop: int) -> list[Any]:
    rows = getattr(values, "iloc", values)[start:stop]
    # NumPy, pandas and polars call it tolist, Arrow to_pylist.
    to_list = getattr(rows, "to_pylist", None) or getattr(rows, "tolist", None)
    found: list[Any] = to_list() if to_list is not None else list(rows)
    return found


def is_text_labels(value: Any) -> bool:
    """Say whether a value of one axis begins with text, after what is missing."""
    # A tensor holds no text, and one that is nested has no shape to ask for.
    if isinstance(value, type) or type(value).__module__.partition(".")[0] == "torch":
        return False
    shape = getattr(value, "shape", None)
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        return False
    if isinstance(value, Mapping) or (shape is not None and len(shape) != 1):
        return False
    kind = getattr(getattr(value, "dtype", None), "kind", "O")
    if kind not in "OUT":
        return False
    for start in range(0, len(value), _PIECE_ROWS):
        for each in _objects(value, start, start + _PIECE_ROWS):
            # By identity: what else may stand here is compared as it likes.
            if each is not None and not (isinstance(each, float) and each != each):
                return isinstance(each, str)
    return False
