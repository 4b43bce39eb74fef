"""Iterables of dicts of arrays.

The first item determines the fields; every later one must have the same names, dtypes and shapes. A data frame or a
table in place of an array is one whose columns have names; in a later item they are put in the first one's order.
A generator is read once, a list or a class with ``__iter__`` any number of times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.arrays import to_array
from streamtrain.ingestion.sources.base import (
    NO_OPTIONS,
    Rows,
    Source,
    SourceOptions,
    as_field,
    choose_fields,
    describe_field,
    field_of,
    n_rows_of,
    pieces,
    rows_within,
)
from streamtrain.ingestion.sources.column_names import column_names, column_order, names_provenance
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import Names
from streamtrain.system.arguments import a_kind


class IterableSource(Source):
    """Rows from an iterable of runs, each a dict of arrays; only its end tells how many."""

    n_samples, seekable = None, False

    def __init__(self, items: Iterable[Mapping[str, Any]], options: SourceOptions = NO_OPTIONS) -> None:
        if hasattr(items, "readline"):
            raise InputError("an open file is not a source", fix="give its path, whose suffix tells the format")
        iterator = iter(items)
        self._options = options
        self._again = None if iterator is items else items
        try:
            first = next(iterator)
        except StopIteration:
            raise InputError("the iterator holds no samples", fix="yield at least one dict of arrays") from None
        self._rest: Iterator[Mapping[str, Any]] | None = chain([first], iterator)
        self.fields = _fields_of(first, options)
        self._columns = _columns_of(first)
        named = tuple({"format": "iterator", **names} for names in names_provenance(self._columns))
        self.provenance = named or ({"format": "iterator"},)
        self.told = ("an iterator is read once, from its start: an ingest of it cannot be resumed",)

    def where(self, row: int) -> str:
        return f"row {row} of the iterator"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield items as they come, cut where they are longer than ``max_bytes``."""
        items = self._take_items()
        return self._blocks(items, rows_within(max_bytes, self.fields))

    def _take_items(self) -> Iterator[Mapping[str, Any]]:
        items, self._rest = self._rest, None
        if items is not None:
            return items
        if self._again is None:
            raise UsageError("the iterator was read already", why="It runs once", fix="give a new one, or an iterable")
        return iter(self._again)

    def _blocks(self, items: Iterator[Mapping[str, Any]], n_rows: int) -> Iterator[Rows]:
        n_samples = 0
        for number, item in enumerate(items):
            rows = _checked(item, self.fields, number, self._columns, self._options)
            n_samples += n_rows_of(rows)
            yield from pieces(rows, n_rows)
        if not n_samples:
            raise InputError("the iterator holds no samples: every item is empty", fix="yield at least one row")


def _fields_of(item: object, options: SourceOptions) -> tuple[Field, ...]:
    arrays = _arrays(item, 0, options)
    return tuple(
        field_of(name, array.dtype, array.shape[1:], where=f"item 0 of the iterator, {name!r}")
        for name, array in arrays.items()
    )


def _columns_of(item: Mapping[str, Any]) -> dict[str, Names]:
    found = {str(name): column_names(values) for name, values in item.items()}
    return {name: names for name, names in found.items() if names is not None}


def _arrays(item: object, number: int, options: SourceOptions) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    where = f"item {number} of the iterator"
    if not isinstance(item, Mapping) or not item:
        what = f"{a_kind(item)} is not a dict of arrays" if not isinstance(item, Mapping) else "an empty dict"
        raise InputError(what, where=where, fix='yield {"x": x, "y": y}, each with its rows first')
    named = {str(name): values for name, values in item.items()}
    arrays = {field: to_array(named[name], where) for field, name in choose_fields(named, options, where=where).items()}
    flat = [name for name, array in arrays.items() if not array.ndim]
    if flat:
        fix = "yield arrays with rows first: x[None] is one row"
        raise InputError(f"{flat[0]!r} is 0-d, without an axis of rows", where=where, fix=fix)
    return arrays


def _checked(
    item: object, fields: tuple[Field, ...], number: int, columns: Mapping[str, Names], options: SourceOptions
) -> Rows:
    arrays = _arrays(item, number, options)
    where = f"item {number} of the iterator"
    _put_in_order(arrays, item, columns, where)
    names = [field.name for field in fields]
    if set(arrays) != set(names):
        what = f"its fields are {', '.join(arrays)}; the first item's are {', '.join(names)}"
        raise InputError(what, where=where, fix="yield the same fields every time")
    found = tuple(field_of(name, arrays[name].dtype, arrays[name].shape[1:], where=where) for name in names)
    for expected, own in zip(fields, found, strict=True):
        if own != expected:
            what = f"{own.name} is {describe_field(own)}; in the first item it is {describe_field(expected)}"
            raise InputError(what, where=where, fix="yield one dtype and shape")
    lengths = {name: len(arrays[name]) for name in names}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"the arrays differ in rows: {listed}", where=where, fix="yield arrays of one length")
    return {field.name: as_field(arrays[field.name], field, lambda row: f"{where} row {row}") for field in fields}


def _put_in_order(arrays: dict[str, npt.NDArray[Any]], item: object, columns: Mapping[str, Names], where: str) -> None:
    """Give the columns of an item's tables the order of the first item's."""
    assert isinstance(item, Mapping), "or it would have no arrays"
    for name, here in _columns_of(item).items():
        if here != (there := columns.get(name, here)):
            order = column_order(there, here, of="the first item", where=f"{where}, {name!r}")
            arrays[name] = arrays[name][:, order]
