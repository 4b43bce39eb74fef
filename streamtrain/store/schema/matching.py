"""The comparison of two schemas: whether two datasets, or a run and a dataset, mean the same.

Columns and classes are compared by name, and by dtype and shape where there are no names. Names on both sides must
agree; where only one side has names, columns are matched by position, with one warning. A class that only one side has
is allowed while the numbers of the others agree.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import numpy as np

from streamtrain.errors import Argument, Fix, StreamtrainWarning, UsageError
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import CATEGORIES, INPUT, TARGET, Names, Schema

_N_SHOWN: Final = 12


class MatchedColumns(StreamtrainWarning):
    """Columns of other data were matched in a way that is worth a look: put in order, or ignored."""


class UnnamedColumns(MatchedColumns):
    """Columns or classes have names on one side only, so they are matched by their places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first difference of two schemas, in words for an error."""

    what: str
    why: str | None = None
    fix: str


def check_same_meaning(ours: Schema, theirs: Schema, *, fields: Iterable[str], of: str, where: str) -> str | None:
    """Refuse a dataset that means something else; return a sentence where only one side has names.

    A field that either side lacks is not compared. ``of`` describes ours in messages ("the training data").
    """
    names = tuple(dict.fromkeys(fields))
    found = first_difference(ours, theirs, fields=names, of=of)
    if found is not None:
        raise UsageError(found.what, where=where, why=found.why, fix=found.fix)
    return unnamed(ours, theirs, fields=names, of=of, where=where)


def warn_of_unnamed(text: str | None, *, stacklevel: int) -> None:
    """Issue what `check_same_meaning` returned as a Python warning, ``stacklevel`` callers up."""
    if text is not None:
        warnings.warn(text, UnnamedColumns, stacklevel=stacklevel + 1)


@contextmanager
def matching_was_told() -> Iterator[None]:
    """Suppress further warnings of matched columns inside the block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MatchedColumns)
        yield


def first_difference(ours: Schema, theirs: Schema, *, fields: Iterable[str], of: str) -> Difference | None:
    """Find the first difference of theirs from ours: columns, then classes, then dtypes and shapes."""
    names = tuple(fields)
    differences = (
        *(_columns_difference(name, ours, theirs, of) for name in names),
        _classes_difference(ours, theirs, of) if TARGET in names else None,
        _categories_difference(ours, theirs, of) if CATEGORIES in names else None,
        _numbers_of_columns_difference(ours, theirs, of) if INPUT in names else None,
        *(_numbers_difference(name, ours, theirs, of) for name in names),
    )
    return next(filter(None, differences), None)


def unnamed(ours: Schema, theirs: Schema, *, fields: Iterable[str], of: str, where: str) -> str | None:
    """Describe, in a sentence, the names that only one side has; None where both or neither have them."""
    without: dict[str, list[str]] = {}
    for name in fields:
        if name == TARGET or name not in {*ours.columns, *theirs.columns}:
            continue  # a target has one column, which cannot stand in another's place
        if name not in ours.columns or name not in theirs.columns:
            without.setdefault(of if name in theirs.columns else where, []).append(f"the columns of {name}")
    if TARGET in fields and (ours.classes is None) != (theirs.classes is None):
        without.setdefault(of if ours.classes is None else where, []).append("the classes")
    if not without:
        return None
    told = "; ".join(f"{side} has no names for {' and '.join(what)}" for side, what in without.items())
    return f"{where} and {of} are matched by position: {told}"


def names_difference(ours: Names, theirs: Names, of: str) -> str | None:
    """Describe the names that only one of two lists has; None where at most their order differs."""
    there, here = frozenset(ours), frozenset(theirs)
    missing = tuple(name for name in ours if name not in here)
    further = tuple(name for name in theirs if name not in there)
    if missing:
        near = difflib.get_close_matches(missing[0], further[:_MOST_COMPARED], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        others = f"; it has {listed(further)} instead" if further and not near else ""
        return f"{lacking(missing, of)}{hint}{others}"
    return f"it has {_columns(further)}, which {of} lacks" if further else None


def lacking(missing: Names, of: str) -> str:
    """Say which columns of other data are not there."""
    return f"it has no {_columns(missing).removeprefix('a ')}, which {of} has"


def _columns(names: Names) -> str:
    return f"{'a column' if len(names) == 1 else 'columns'} {listed(names)}"


_MOST_COMPARED: Final = 1000
"""Names searched for the nearest one."""


def listed(names: Names) -> str:
    """Write names for a message, only the first ones of a long list."""
    more = f", ... ({len(names):,} in all)" if len(names) > _N_SHOWN else ""
    return ", ".join(map(repr, names[:_N_SHOWN])) + more


def named_in_order(name: str, names: Names) -> Argument | str:
    """The argument of an ingest that puts columns or classes in this order."""
    if len(names) > _N_SHOWN or any("," in each for each in names):
        return f"{name} named in the other's order"
    return Argument(name, list(names))


def _columns_difference(name: str, ours: Schema, theirs: Schema, of: str) -> Difference | None:
    there, here = ours.columns.get(name), theirs.columns.get(name)
    if there is None or here is None or there == here or _is_target_of_classes(name, ours, theirs):
        return None
    what = f"the columns of {name} are {listed(here)}; in {of} they are {listed(there)}"
    other = names_difference(there, here, of)
    if other is not None:
        return Difference(what=what, why=f"The difference: {other}", fix="ingest the same columns in both")
    place = next(n for n, (one, two) in enumerate(zip(there, here, strict=True)) if one != two)
    why = f"The first difference: column {place} is {here[place]!r} here and {there[place]!r} there"
    return Difference(what=what, why=why, fix=Fix("ingest it again with ", named_in_order("columns", there)))


def _classes_difference(ours: Schema, theirs: Schema, of: str) -> Difference | None:
    there, here = ours.classes, theirs.classes
    if there is None or here is None or there[: len(here)] == here:
        return None
    what = f"its labels 0, 1, ... are {listed(here)}"
    pairs = zip_longest(there, here)
    place, (one, two) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    known = frozenset(there)
    unknown = next((name for name in here if name not in known), None)
    first = f"label {place} is {two!r} here and {'none' if one is None else repr(one)} there"
    why = f"The first difference: {first}" + (f"; {of} has no class {unknown!r}" if unknown is not None else "")
    again = Fix("ingest it again with ", named_in_order("classes", there))
    fix = "leave those samples out" if unknown is not None else again
    return Difference(what=f"{what}; in {of} they are {listed(there)}", why=why, fix=fix)


def _categories_difference(ours: Schema, theirs: Schema, of: str) -> Difference | None:
    """Compare categories by their codes: another list of names has other numbers for them."""
    for there, here in zip(ours.categories, theirs.categories, strict=False):
        if (there.names, there.hash_size) == (here.names, here.hash_size):
            continue
        pairs = enumerate(zip_longest(there.names, here.names), 2)
        code, (one, two) = next((pair for pair in pairs if pair[1][0] != pair[1][1]), (2, (None, None)))
        what = f"the categories of column {here.name!r} are numbered differently than in {of}"
        why = f"The first difference: code {code} is {_shown(two)} here and {_shown(one)} there"
        return Difference(what=what, why=why, fix=_LIKE)
    return None


def _shown(name: str | None) -> str:
    return "none" if name is None else repr(name)


def _numbers_of_columns_difference(ours: Schema, theirs: Schema, of: str) -> Difference | None:
    """Compare what the numbers of x stand for: dates and their unit."""
    if not ours.columns.get(INPUT) or ours.columns.get(INPUT) != theirs.columns.get(INPUT):
        return None
    for name in ours.columns[INPUT]:
        there, here = ours.kinds.get(name, "number"), theirs.kinds.get(name, "number")
        if there != here:
            return Difference(what=f"column {name!r} is a {here}; in {of} it is a {there}", fix=_LIKE)
    return None


_LIKE: Final = Fix("ingest it again like the other: ", Argument("like"))


def _numbers_difference(name: str, ours: Schema, theirs: Schema, of: str) -> Difference | None:
    there, here = ours.field(name), theirs.field(name)
    if there is None or here is None:
        return None
    is_named = name != TARGET and name in ours.columns and name in theirs.columns
    if _shape(there) == _shape(here) and (is_named or _is_same_dtype(there.dtype, here.dtype)):
        return None
    what = f"field {name} is {here.dtype} {here.shape}; in {of} {there.dtype} {there.shape}"
    return Difference(what=what, fix="ingest both in the same way")


def _shape(described: Field) -> tuple[int, ...]:
    # A target's trailing axes of one are lined up with the model's output, wherever they are.
    shape = described.shape
    while described.name == TARGET and shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _is_same_dtype(one: np.dtype[np.generic], other: np.dtype[np.generic]) -> bool:
    """Compare dtypes: floats may differ in width, but bytes and floats, or integers, often in scale."""
    return one == other or (one.kind == other.kind == "f")


def _is_target_of_classes(name: str, ours: Schema, theirs: Schema) -> bool:
    """Say whether a target is known by the names of its classes, whatever its column is called."""
    return name == TARGET and ours.classes is not None and theirs.classes is not None
