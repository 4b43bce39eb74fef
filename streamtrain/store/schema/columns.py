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
from streamtrain.system.json_values import number_or_nan, objects, texts, texts_or_none, whole_number

Names = tuple[str, ...]

INPUT: Final = "x"
"""The field that a table's features become."""
TARGET: Final = "y"
"""The field that a table's label becomes: of whole numbers, one per sample, they are classes."""
CATEGORIES: Final = "cat"
"""The field that a table's categories become: a code a column."""
MISSING: Final = "x_missing"
"""The field that says which values of ``x`` were filled in."""
WEIGHT: Final = "weight"
ID: Final = "id"

_VERSION: Final = 1
_VERSION_OF_TABLES: Final = 2

_FIRST_CATEGORY: Final = 2

READING: Final = ("na", "nan", "timezone", "drop_unlabelled", "weight_column", "id_column")
"""Options of an ingest by which more rows of the same meaning are read."""
TEXT_FORM: Final = ("header", "names", "encoding", "na_values")
"""Options of how its text was written, as more of it will be."""
ARRAYS: Final = ("arrays", "decode", "dates")
"""Which arrays of HDF5 or Zarr its fields were made of, and how."""


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
    kinds: Mapping[str, str] = field(default_factory=dict)  # column of x -> "number", "date" or "date in days"
    categories: tuple[CategoryColumn, ...] = ()  # of field cat, in its order
    targets: Names = ()  # columns of y, where there are several
    fills: Mapping[str, float] = field(default_factory=dict)  # column of x -> its value where one is missing
    task: str | None = None  # where it was told
    # How more rows are read, as far as the rest does not show it; the numbers mean the same however they were read.
    reading: Mapping[str, Any] = field(default_factory=dict, compare=False)

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


def reading_of(options: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collect from an ingest's options and its first source how more rows are read."""
    said = {**options, **(sources[0] if sources else {})}
    of_arrays = ARRAYS if isinstance(said.get("arrays"), Mapping) else ()
    return {name: _plain(said[name]) for name in (*READING, *TEXT_FORM, *of_arrays) if said.get(name)}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


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
    told = {
        "kinds": dict(schema.kinds),
        "categories": [category_json(each) for each in schema.categories],
        "targets": list(schema.targets),
        "fills": dict(schema.fills),
    }
    more = {name: value for name, value in told.items() if value}
    return {
        "version": _VERSION_OF_TABLES if more else _VERSION,
        "fields": {each.name: {"dtype": each.dtype.name, "shape": list(each.shape)} for each in schema.fields},
        "columns": {name: list(names) for name, names in schema.columns.items()},
        "classes": None if schema.classes is None else list(schema.classes),
        **more,
        **({"reading": dict(schema.reading)} if schema.reading else {}),
    }


def parse_schema(found: object) -> Schema:
    """Read a schema back, without trust; refuse with ValueError."""
    try:
        if not isinstance(found, dict) or found["version"] not in (_VERSION, _VERSION_OF_TABLES):
            raise ValueError("its version is unknown")
        return Schema(
            fields=tuple(parse_field(name, each["dtype"], each["shape"]) for name, each in found["fields"].items()),
            columns={name: texts(names) for name, names in found["columns"].items()},
            classes=texts_or_none(found["classes"]),
            kinds=parse_kinds(found.get("kinds", {})),
            categories=tuple(parse_category(each) for each in objects(found.get("categories", []))),
            targets=texts(found.get("targets", [])),
            fills=parse_fills(found.get("fills", {})),
            reading=_parse_reading(found.get("reading", {})),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _parse_reading(found: object) -> dict[str, Any]:
    known = {*READING, *TEXT_FORM, *ARRAYS}
    if not isinstance(found, dict) or not found.keys() <= known:
        raise ValueError("it does not say how rows are read")
    return {name: _how_read(name, value) for name, value in found.items()}


def _how_read(name: str, value: object) -> Any:
    if name in ("arrays", "dates"):
        if not isinstance(value, dict) or not all(isinstance(word, str) for pair in value.items() for word in pair):
            raise ValueError("how arrays are read is not text")
        return value
    return texts(value) if isinstance(value, list) else _text_or_flag(value)


def _text_or_flag(value: object) -> str | bool:
    if not isinstance(value, str | bool):
        raise ValueError("how rows are read is not text")
    return value


def category_json(category: CategoryColumn) -> dict[str, Any]:
    """Turn a column of categories into JSON values, which `parse_category` reads back."""
    if category.hash_size is not None:
        return {"name": category.name, "hash_size": category.hash_size}
    return {"name": category.name, "names": list(category.names), "counts": list(category.counts)}


def parse_category(found: Mapping[str, Any]) -> CategoryColumn:
    """Read a column of categories back, without trust."""
    if not isinstance(found["name"], str):
        raise ValueError("a column has no name")
    if "hash_size" in found:
        return CategoryColumn(name=found["name"], hash_size=whole_number(found["hash_size"], 1, MOST_CODES))
    names, counts = texts(found["names"]), found["counts"]
    if not isinstance(counts, list) or len(counts) != len(names) or len(set(names)) != len(names):
        raise ValueError(f"the categories of {found['name']!r} are not distinct, or not counted")
    return CategoryColumn(name=found["name"], names=names, counts=tuple(whole_number(count) for count in counts))


MOST_CODES: Final = 2**31 - 3
"""Codes are int32, and two of them are taken."""
KINDS: Final = ("number", "date", "date in days")


def parse_kinds(found: object) -> dict[str, str]:
    """Read kinds of columns back."""
    if not isinstance(found, dict) or not all(isinstance(n, str) and kind in KINDS for n, kind in found.items()):
        raise ValueError("its columns are of an unknown kind")
    return found


def parse_fills(found: object) -> dict[str, float]:
    """Read values that stand for missing ones back."""
    if not isinstance(found, dict):
        raise ValueError("it does not say what stands for missing values")
    fills = {str(name): number_or_nan(value) for name, value in found.items()}
    if any(value != value for value in fills.values()):
        raise ValueError("what stands for a missing value is not a number")
    return fills
