"""The schema of a dataset: its fields, the names of their columns, and the names of its classes.

Nothing of it is stored twice: a dataset's manifest says what was read, and so which columns became which field. Arrays
and most files have no names; their columns are known by their places alone. So are those of a dataset whose sources
contradict each other, which an append of version 0.1.0 let pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from streamtrain.store.layout import Field, parse_field
from streamtrain.system.json_values import texts, texts_or_none

Names = tuple[str, ...]

INPUT: Final = "x"
"""The field that a table's features become."""
TARGET: Final = "y"
"""The field that a table's label becomes: of whole numbers, one per sample, they are classes."""

_VERSION: Final = 1

_FIRST_CATEGORY: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryColumn:
    """A column of categories: their names by code, or the size of a hash of them."""

    name: str
    names: Names = ()  # of codes 2, 3, ...; 0 is missing, 1 another one
    counts: tuple[int, ...] = ()
    hash_size: int | None = None

    @property
    def size(self) -> int:
        """The number of codes."""
        return _FIRST_CATEGORY + (len(self.names) if self.hash_size is None else self.hash_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The names of a dataset's columns and classes, and its fields, as far as they are known."""

    fields: tuple[Field, ...] = ()
    columns: Mapping[str, Names] = field(default_factory=dict)  # in their order, by field; a label has one
    classes: Names | None = None

    def field(self, name: str) -> Field | None:
        """Return the field of that name, or None."""
        return next((each for each in self.fields if each.name == name), None)


def schema_of(
    fields: tuple[Field, ...], sources: Iterable[Mapping[str, Any]], *, classes: Names | None = None
) -> Schema:
    """Derive the schema from a dataset's fields and sources."""
    named = {name: lists[0] for name, lists in column_lists(sources).items() if len(set(lists)) == 1}
    known = {each.name: each for each in fields}
    fitting = {name: names for name, names in named.items() if name in known and _fits(known[name], names)}
    return Schema(fields=fields, columns=fitting, classes=classes)


def column_lists(sources: Iterable[Mapping[str, Any]]) -> dict[str, list[Names]]:
    """Collect, by field, the column names that each source with names gives it."""
    found: dict[str, list[Names]] = {}
    for source in sources:
        features, label = source.get("columns"), source.get("label_column")
        if isinstance(features, list | tuple) and features:
            found.setdefault(str(source.get("field", INPUT)), []).append(_texts(features))
        if isinstance(label, str):
            found.setdefault(TARGET, []).append((label,))
    return found


def _texts(names: Sequence[object]) -> Names:
    return tuple(map(str, names))


def _fits(described: Field, names: Names) -> bool:
    return described.shape == (len(names),) or (described.shape == () and len(names) == 1)


def schema_json(schema: Schema) -> dict[str, Any]:
    """Turn a schema into JSON values, which `parse_schema` reads back."""
    return {
        "version": _VERSION,
        "fields": {each.name: {"dtype": each.dtype.name, "shape": list(each.shape)} for each in schema.fields},
        "columns": {name: list(names) for name, names in schema.columns.items()},
        "classes": None if schema.classes is None else list(schema.classes),
    }


def parse_schema(found: object) -> Schema:
    """Read a schema back, without trust; refuse with ValueError."""
    try:
        if not isinstance(found, dict) or found["version"] != _VERSION:
            raise ValueError("it is none of this version")
        return Schema(
            fields=tuple(parse_field(name, each["dtype"], each["shape"]) for name, each in found["fields"].items()),
            columns={name: texts(names) for name, names in found["columns"].items()},
            classes=texts_or_none(found["classes"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
