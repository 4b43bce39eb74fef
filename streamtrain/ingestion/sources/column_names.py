"""Column names of data frames and tables that are given in place of arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.store.schema.columns import INPUT, Names
from streamtrain.store.schema.matching import names_difference

_OF_INDEX: Final = re.compile(r"__index_level_\d+__")


def index_columns(names: Iterable[str], metadata: Mapping[bytes, bytes] | None) -> frozenset[str]:
    """Find the columns that pandas marked as an index, in an Arrow schema's metadata or by their names."""
    try:
        marked = json.loads((metadata or {})[b"pandas"])["index_columns"]
        # What pandas did not store, such as 0, 1, 2, ..., is described there and is no column.
        found = frozenset(name for name in marked if isinstance(name, str))
    except (KeyError, TypeError, ValueError, RecursionError):
        found = frozenset()
    return frozenset(name for name in names if name in found or _OF_INDEX.fullmatch(name))


def without_index(values: object) -> object:
    """Drop the columns of an index from an Arrow table, unless it has no others."""
    table: Any = values
    if not callable(getattr(table, "drop_columns", None)):
        return values
    names = table.column_names
    index = index_columns(names, table.schema.metadata)
    return table.drop_columns(sorted(index)) if index and len(index) < len(names) else values


def column_names(values: object) -> Names | None:
    """Return the names of the columns of a data frame or a table; None for anything else."""
    values = without_index(values)
    found = getattr(values, "column_names", getattr(values, "columns", None))
    if not isinstance(found, Iterable) or isinstance(getattr(values, "dtype", None), np.dtype):
        return None
    names = tuple(found)
    return names if names and all(isinstance(name, str) for name in names) else None


def column_order(there: Names, here: Names, *, of: str, where: str) -> list[int]:
    """Find where each of the first names stands among the second ones, which must be the same names."""
    other = names_difference(there, here, of)
    if other is not None:
        fix = "give the same columns, in any order"
        raise InputError(f"its columns are not those of {of}: {other}", where=where, fix=fix)
    places = {name: place for place, name in enumerate(here)}
    return [places[name] for name in there]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedColumns:
    """A table as an array, its columns in another order; they are copied a run of rows at a time."""

    values: npt.NDArray[Any]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        return self.values[rows][:, list(self.order)]


def names_provenance(columns: Mapping[str, Names]) -> Iterator[dict[str, Any]]:
    """Yield what column names add to the provenance of arrays: field ``x`` needs no field name."""
    for name, names in columns.items():
        yield {"columns": list(names)} | ({} if name == INPUT else {"field": name})
