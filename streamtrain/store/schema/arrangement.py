"""The arrangement of other data: its columns, matched by name, in the order of those that are known."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from streamtrain.errors import UsageError
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import CATEGORIES, INPUT, MISSING, TARGET, Names, Schema
from streamtrain.store.schema.matching import MatchedColumns, UnnamedColumns, check_same_meaning, lacking, listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Where the known columns stand in other data, by field; what is in order already is left out."""

    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    # What is to be said of it: columns that were put in order, or ignored.
    named: tuple[str, ...] = ()
    # And columns that have names on one side only.
    unnamed: str | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """All that is to be said of it, in sentences."""
        return (*self.named, *filter(None, [self.unnamed]))

    def of(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Put the columns of a run of rows in order: arrays or tensors of shape (n_rows, n_columns)."""
        return {
            name: values[:, list(self.orders[name])] if name in self.orders else values for name, values in rows.items()
        }

    def of_columns(self, name: str, values: Sequence[Any]) -> tuple[Any, ...]:
        """Put facts of a field's columns in order, one each."""
        return tuple(values[place] for place in self.orders[name]) if name in self.orders else tuple(values)

    def warn_once(self, said: set[str], *, stacklevel: int) -> None:
        """Issue what has not been said yet as Python warnings, ``stacklevel`` callers up."""
        kinds = {
            **dict.fromkeys(self.named, MatchedColumns),
            **({self.unnamed: UnnamedColumns} if self.unnamed else {}),
        }
        for text in [each for each in kinds if each not in said]:
            said.add(text)
            warnings.warn(text, kinds[text], stacklevel=stacklevel + 1)


AS_IT_IS: Final = Arrangement()
_BY_NAME: Final = (INPUT, CATEGORIES)


def arrange(ours: Schema, theirs: Schema, *, fields: Iterable[str], of: str, where: str) -> Arrangement:
    """Match other data with a schema by name; refuse what is missing, or means something else.

    ``of`` describes ours in messages ("the run").
    """
    names = tuple(dict.fromkeys(fields))
    orders: dict[str, tuple[int, ...]] = {}
    told: list[str] = []
    for name in (*_BY_NAME, *((TARGET,) if ours.targets and theirs.targets else ())):
        there, here = ours.columns.get(name), theirs.columns.get(name)
        if name not in names or there is None or here is None or there == here:
            continue
        check_columns(there, here, of=of, where=where)
        places = {column: place for place, column in enumerate(here)}
        orders[name] = tuple(places[column] for column in there)
        told += _told(there, here, name, of, where)
    if INPUT in orders and MISSING in names:
        orders[MISSING] = orders[INPUT]
    unnamed = check_same_meaning(ours, _arranged(theirs, ours, orders), fields=names, of=of, where=where)
    return Arrangement(orders=orders, named=tuple(told), unnamed=unnamed)


def check_columns(needed: Iterable[str], there: Sequence[str], *, of: str, where: str) -> None:
    """Refuse data without some of the columns that are needed, with the nearest that it has."""
    known = frozenset(there)
    missing = tuple(name for name in needed if name not in known)
    if not missing:
        return
    near = {name: difflib.get_close_matches(name, there, n=1) for name in missing}
    found = [f"{name!r} is {others[0]!r} there" for name, others in near.items() if others]
    raise UsageError(
        lacking(missing, of),
        where=where,
        why=f"It has {listed(tuple(there))}",
        fix=f"rename the columns, if {' and '.join(found)}" if found else "data with all of these columns",
    )


def ignored_columns(further: Iterable[str], *, of: str, where: str) -> str | None:
    """Say which columns are ignored; None where there are none."""
    names = tuple(further)
    return f"{where}: ignored, since {of} has no such columns: {listed(names)}" if names else None


def _told(there: Names, here: Names, name: str, of: str, where: str) -> list[str]:
    known = frozenset(there)
    kept = tuple(column for column in here if column in known)
    order = f"{where}: the columns of {name} are put in the order of {of}" if kept != there else None
    further = (column for column in here if column not in known)
    return list(filter(None, [order, ignored_columns(further, of=of, where=where)]))


def _arranged(theirs: Schema, ours: Schema, orders: Mapping[str, tuple[int, ...]]) -> Schema:
    """Describe other data as it is once its columns are in order."""
    columns = {name: ours.columns[name] if name in orders else own for name, own in theirs.columns.items()}
    categories = theirs.categories
    if CATEGORIES in orders and categories:
        categories = Arrangement(orders=orders).of_columns(CATEGORIES, categories)
    return replace(
        theirs,
        fields=tuple(_with_columns(each, orders.get(each.name)) for each in theirs.fields),
        columns=columns,
        categories=categories,
        targets=ours.targets if TARGET in orders else theirs.targets,
    )


def _with_columns(described: Field, order: tuple[int, ...] | None) -> Field:
    return described if order is None else replace(described, shape=(len(order),))
