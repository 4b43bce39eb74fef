"""The roles of a table's columns, chosen by name: numbers, dates, categories, labels, a weight, an id."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import PLAIN_TABLE, SourceOptions, TableOptions
from streamtrain.ingestion.sources.column_names import index_columns
from streamtrain.ingestion.sources.tables.roles.reader import TableReader
from streamtrain.ingestion.sources.tables.table_columns import check_header, check_there, listed_header

Names = tuple[str, ...]

_ROLES: Final = (
    *("categorical", "hash", "dates", "na", "na_mask", "nan", "drop_unlabelled"),
    *("exclude", "weight_column", "id_column"),
)
"""Options that a plain table of features and a label does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRoles:
    """The columns that are read, by what they become."""

    numbers: Names
    dates: Mapping[str, str]  # and whether they are counted in days or seconds
    categorical: Names
    labels: Names
    weight: str | None = None
    id: str | None = None
    left_out: Names = ()  # of an index, which nobody named

    @property
    def inputs(self) -> Names:
        """The columns of field ``x``, in its order."""
        return (*self.numbers, *self.dates)

    @property
    def names(self) -> Names:
        """All of them."""
        single = tuple(name for name in (self.weight, self.id) if name is not None)
        return (*self.inputs, *self.categorical, *self.labels, *single)


def has_roles(options: SourceOptions) -> bool:
    """Say whether more is said of a table than which columns are features and which one is the label."""
    table = options.table
    return len(options.labels) > 1 or any(getattr(table, name) != getattr(PLAIN_TABLE, name) for name in _ROLES)


def choose_roles(
    header: Sequence[str], options: SourceOptions, where: str, metadata: Mapping[bytes, bytes] | None = None
) -> TableRoles:
    """Choose what each column becomes; a column that nobody named is a number."""
    check_header(header, where)
    table, index = options.table, index_columns(header, metadata)
    categorical = (*table.categorical, *(name for name in table.hash if name not in table.categorical))
    named = {
        "label_column": options.labels,
        "categorical": categorical,
        "dates": tuple(table.dates),
        "weight_column": tuple(filter(None, (table.weight_column,))),
        "id_column": tuple(filter(None, (table.id_column,))),
        "exclude": table.exclude,
    }
    taken = dict.fromkeys(chain.from_iterable(named.values()))
    if options.columns is not None and table.exclude:
        fix = Fix("leave ", Argument("columns"), " or ", Argument("exclude"), " out")
        raise UsageError(
            "columns and exclude are both given: one lists the columns to read, the other those to leave out", fix=fix
        )
    others = tuple(name for name in header if name not in index and name not in taken)
    named["columns"] = others if options.columns is None else options.columns
    _check_named(named, header, where)
    unnamed = index.difference(*named.values())
    roles = TableRoles(
        numbers=named["columns"],
        dates=dict(table.dates),
        categorical=categorical,
        labels=options.labels,
        weight=table.weight_column,
        id=table.id_column,
        left_out=tuple(name for name in header if name in unnamed),
    )
    if not (roles.inputs or roles.categorical or roles.labels):
        why = "name columns or a label column, or leave fewer of them out"
        raise InputError("no column is left to read", where=where, fix=why)
    return roles


def _check_named(named: Mapping[str, Names], header: Sequence[str], where: str) -> None:
    of: dict[str, str] = {}
    check_there(named["label_column"], header, where, "label column")
    check_there(tuple(chain.from_iterable(named.values())), header, where, "column")
    for option, names in named.items():
        for name in names:
            if name in of:
                what = f"column {name!r} is named twice, in {of[name]} and {option}"
                raise UsageError(what, where=where, why="A column has one role", fix="name it once")
            of[name] = option


def facts_of_roles(roles: TableRoles) -> dict[str, Any]:
    """Return what a manifest keeps of the choice of columns."""
    facts: dict[str, Any] = {"columns": list(roles.inputs)} if roles.inputs else {}
    facts["label_column"] = roles.labels[0] if len(roles.labels) == 1 else None
    single = {"weight_column": roles.weight, "id_column": roles.id, "left_out": list(roles.left_out)}
    return facts | {name: value for name, value in single.items() if value}


def missing_rule(table: TableOptions) -> tuple[str, float | None]:
    """Return what is done with missing numbers: "error", "drop", "mean" or "fill", and with what they are filled."""
    rule, _, value = table.na.partition("=")
    if rule == "fill" and value != "mean":
        return "fill", float(value)
    return ("mean" if rule == "fill" else rule), None


def check_has_labels(readers: Sequence[TableReader], labels: Names, of: str, *, appends: bool) -> None:
    """Refuse tables without the labels that another dataset has, whose terms they are to take."""
    for reader in readers:
        if others := [name for name in labels if name not in reader.header]:
            near = difflib.get_close_matches(others[0], reader.header, n=1)
            otherwise = "rows with their labels" if appends else "rows with their labels; predict takes rows without"
            raise InputError(
                f"no label column {others[0]!r}, which {of} has",
                where=str(reader.path),
                why=f"It has {listed_header(reader.header)}",
                fix=f"rename {near[0]!r}, if that is it" if near else otherwise,
            )
