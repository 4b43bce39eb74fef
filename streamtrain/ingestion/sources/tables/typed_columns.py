"""Columns whose types are declared, in Parquet and in frames: those that are taken, brought to plain types."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.tables.arrow import arrow
from streamtrain.ingestion.sources.tables.column_survey import UnfitColumns, leaving_out
from streamtrain.ingestion.sources.tables.table_columns import ChosenColumns


def value_type(kind: Any) -> Any:
    """Return the type of the values of a dictionary, and any other type as it is."""
    return kind.value_type if arrow("pyarrow.types").is_dictionary(kind) else kind


def is_text_type(declared: Any) -> bool:
    """Say whether a type is one of text, in a dictionary or not."""
    types, kind = arrow("pyarrow.types"), value_type(declared)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_number_type(declared: Any) -> bool:
    """Say whether a type is one of numbers, in a dictionary or not."""
    types, kind = arrow("pyarrow.types"), value_type(declared)
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def number_dtype(declared: Any) -> np.dtype[Any]:
    """Return the NumPy dtype that numbers of a type are read as."""
    kind = value_type(declared)
    if arrow("pyarrow.types").is_decimal(kind):
        return np.dtype(np.float64)
    dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
    return dtype


def check_types(where: str, schema: Any, chosen: ChosenColumns) -> None:
    """Refuse columns that are neither numbers nor, as the label, text."""
    # Asked for one column, Arrow searches all names.
    kinds = dict(zip(schema.names, schema.types, strict=True))
    for name in chosen.names:
        if is_number_type(kinds[name]) or (name == chosen.label and is_text_type(kinds[name])):
            continue
        numbers = [name for name in chosen.features if is_number_type(kinds[name])]
        raise UnfitColumns(
            f"column {name!r} is {kinds[name]}, which is not supported",
            where=where,
            why="Features are bool, integer or float columns; the label may be text",
            fix=leaving_out("make number columns of it", numbers),
        )


def check_label_type(where: str, name: str, declared: Any) -> None:
    """Refuse a label that is neither numbers nor text; one without any value is told later."""
    if is_number_type(declared) or is_text_type(declared) or arrow("pyarrow.types").is_null(declared):
        return
    raise InputError(
        f"label column {name!r} is {declared}, which is not supported",
        where=where,
        why="Labels are numbers or text",
        fix="make numbers or text of it, or name another label column",
    )


def plain_type(declared: Any) -> Any:
    """Return the type that `plain_batch` brings a column to."""
    types, kind = arrow("pyarrow.types"), value_type(declared)
    if types.is_decimal(kind):
        return arrow().float64()
    return arrow().large_string() if types.is_string_view(kind) else declared


def plain_batch(batch: Any, where: str, first_row: int) -> Any:
    """Bring decimals to float64, where that is exact, and views of text to text; leave other columns as they are."""
    types = arrow("pyarrow.types")
    kinds = map(value_type, batch.schema.types)
    if not any(types.is_decimal(kind) or types.is_string_view(kind) for kind in kinds):
        return batch
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind, in_dictionary = value_type(column.type), types.is_dictionary(column.type)
        if types.is_string_view(kind):
            text = arrow().large_string()
            # Arrow takes nothing out of a dictionary of views.
            columns.append(column.dictionary.cast(text).take(column.indices) if in_dictionary else column.cast(text))
        elif types.is_decimal(kind):
            decoded = column.dictionary_decode() if in_dictionary else column
            columns.append(_from_decimal(name, decoded, where, first_row))
        else:
            columns.append(column)
    return arrow().RecordBatch.from_arrays(columns, names=batch.schema.names)


def _from_decimal(name: str, column: Any, where: str, first_row: int) -> Any:
    found: list[float | None] = []
    for row, exact in enumerate(column.to_pylist()):
        # Arrow's own cast is off by a last bit where the scale is large.
        number = None if exact is None else float(exact)
        # The shortest text of a float names it: 0.1 is what a CSV would say, too.
        if exact is not None and type(exact)(repr(number)) != exact:
            raise InputError(
                f"column {name!r} holds {exact}, which float64 rounds to {number!r}",
                where=f"{where} row {first_row + row}",
                why="Decimals are stored as float64",
                fix="leave the column out, or split the number over two columns",
            )
        found.append(number)
    return arrow().array(found, arrow().float64())
