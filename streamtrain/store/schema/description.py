"""The columns of a dataset, one by one: role, share missing, and figures, or categories with their counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from streamtrain.store.layout import Field
from streamtrain.store.manifest import Manifest
from streamtrain.store.schema.columns import CATEGORIES, ID, INPUT, MISSING, TARGET, WEIGHT, CategoryColumn, Schema
from streamtrain.store.schema.label_task import histogram_of
from streamtrain.store.statistics import FieldStats

_ROLES: Final = {INPUT: "number", TARGET: "label", WEIGHT: "weight", ID: "id"}


THESE_ROWS: Final = "these rows"
_WHOLE: Final = "all rows of the source"
_LEARNED: Final = "the rows they were learned from"
_FIRST_CATEGORY: Final = 2
"""Of codes that stand for a category; those below are of missing and of unknown ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedColumn:
    """A column, or a field whose columns have no names."""

    name: str
    field: str
    role: str  # number, date, date in days, category, label, weight, id; or field
    missing: float  # the share of its values that were missing, or are NaN
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    n_categories: int | None = None
    # The most frequent first; of a hashed column they have no names.
    categories: Mapping[str, int] | None = None
    # Where the share and the categories were counted.
    missing_in: str = THESE_ROWS
    counted_in: str | None = None


def described_columns(
    manifest: Manifest, schema: Schema, stats: Callable[[str], FieldStats], classes: Mapping[Any, str] | None
) -> Iterator[DescribedColumn]:
    """Describe each column of a dataset in the order of its fields; ``classes`` are the names of its labels."""
    missing = _Missing.of(manifest)
    single = {WEIGHT: "weight_column", ID: "id_column"}
    for field in manifest.layout.own_fields:
        names = schema.targets if field.name == TARGET and field.shape else schema.columns.get(field.name, ())
        if field.name == CATEGORIES and schema.categories:
            found = stats(field.name)
            yield from (_category(each, missing, found, place) for place, each in enumerate(schema.categories))
        elif field.name == TARGET and not field.shape and classes is not None:
            yield _label(manifest, names, classes)
        elif names and field.shape:
            yield from _numbers(field, names, schema, stats(field.name), missing.with_marks(manifest, field, stats))
        elif field.name != MISSING:
            option = single.get(field.name, "")
            own = [str(source[option]) for source in manifest.sources if option in source]
            yield _field(manifest, field, names or own[:1])


def described(columns: Iterable[DescribedColumn]) -> dict[str, list[Any]]:
    """Turn described columns into a list a property."""
    rows = [asdict(column) for column in columns]
    return {each.name: [row[each.name] for row in rows] for each in fields(DescribedColumn)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Missing:
    """How many values were missing in each column of the rows that were stored."""

    counts: Counter[str]
    n_rows: int
    n_stored: int
    # By column of field x, where marks of missing values are stored beside it.
    marked: Sequence[float] | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> _Missing:
        counts: Counter[str] = Counter()
        n_rows = 0
        for source in manifest.sources:
            found = source.get("missing")
            counts.update({name: _count(n) for name, n in (found if isinstance(found, dict) else {}).items()})
            n_rows += sum(_count(source.get(name)) * sign for name, sign in _ROWS.items())
        n_stored = manifest.layout.n_samples
        return cls(counts=counts, n_rows=max(n_rows, n_stored), n_stored=n_stored)

    def with_marks(self, manifest: Manifest, field: Field, stats: Callable[[str], FieldStats]) -> _Missing:
        """Take the shares of a field's columns from the marks beside it, where there are such of each."""
        of_marks = next((each for each in manifest.layout.fields if each.name == MISSING), None)
        if field.name != INPUT or of_marks is None or of_marks.shape != field.shape:
            return self
        return replace(self, marked=stats(MISSING).mean.reshape(-1).tolist())

    def share(self, name: str, n_nan: float = 0, place: int | None = None) -> dict[str, Any]:
        """Return a column's share, and what it is of: of one split nothing may be known but that of all rows."""
        if self.marked is not None and place is not None and place < len(self.marked):
            return {"missing": self.marked[place] + n_nan / self.n_stored}
        n_missing = self.counts[name]
        if not n_missing:
            return {"missing": n_nan / self.n_stored}
        where = {} if self.n_rows == self.n_stored else {"missing_in": _WHOLE}
        return {"missing": (n_missing + n_nan) / self.n_rows, **where}


_ROWS: Final = {"rows": 1, "unlabelled": -1, "dropped": -1}
"""Entries of a table about its rows: all of them, and those that are not stored."""


def _count(found: object) -> int:
    """Return a count that a source says of itself, in words of its own as far as anybody knows."""
    return found if isinstance(found, int) else 0


def _category(category: CategoryColumn, missing: _Missing, stats: FieldStats, place: int) -> DescribedColumn:
    has_names = category.hash_size is None
    is_own = has_names and _are_of(category.counts, stats, place if stats.mean.shape else (), missing.n_stored)
    return DescribedColumn(
        name=category.name,
        field=CATEGORIES,
        role="category",
        **missing.share(category.name),
        n_categories=len(category.names) if has_names else category.hash_size,
        categories=dict(zip(category.names, category.counts, strict=True)) if has_names else None,
        counted_in=(THESE_ROWS if is_own else _LEARNED) if has_names else None,
    )


def _are_of(counts: Sequence[int], stats: FieldStats, at: Any, n_rows: int) -> bool:
    """Whether categories are as frequent among the codes whose figures these are; missing ones have code 0."""
    codes = range(_FIRST_CATEGORY, _FIRST_CATEGORY + len(counts))
    mean = sum(code * n for code, n in zip(codes, counts, strict=True)) / n_rows
    square = sum(code**2 * n for code, n in zip(codes, counts, strict=True)) / n_rows
    # Of rows by the million one row counts, too.
    near = 0.5 / n_rows
    stored = float(stats.mean[at])
    return abs(mean - stored) < near and abs(square - (float(stats.std[at]) ** 2 + stored**2)) < near


def _label(manifest: Manifest, names: Sequence[str], classes: Mapping[Any, str]) -> DescribedColumn:
    counted = histogram_of(manifest, TARGET)
    counts = {} if counted is None else dict(zip(counted.values.tolist(), counted.counts.tolist(), strict=True))
    of_names = {classes.get(value, f"{value:.0f}"): n for value, n in counts.items()}
    return DescribedColumn(
        name=names[0] if names else TARGET,
        field=TARGET,
        role="label",
        missing=0.0,
        n_categories=len(of_names),
        categories=dict(sorted(of_names.items(), key=lambda each: -each[1])),
        counted_in=THESE_ROWS,
    )


def _numbers(
    field: Field, names: Sequence[str], schema: Schema, stats: FieldStats, missing: _Missing
) -> Iterator[DescribedColumn]:
    for place, name in enumerate(names):
        at = place if stats.mean.shape else ()
        yield DescribedColumn(
            name=name,
            field=field.name,
            role=schema.kinds.get(name) or _ROLES.get(field.name, "field"),
            **missing.share(name, float(stats.n_nan[at]), place),
            mean=float(stats.mean[at]),
            std=float(stats.std[at]),
            min=float(stats.min[at]),
            max=float(stats.max[at]),
        )


def _field(manifest: Manifest, field: Field, names: Sequence[str]) -> DescribedColumn:
    overall = manifest.statistics[field.name].overall
    n_values = manifest.layout.n_samples * field.row_bytes // field.dtype.itemsize
    return DescribedColumn(
        name=names[0] if len(names) == 1 else field.name,
        field=field.name,
        role=_ROLES.get(field.name, "field"),
        missing=overall.n_nan / max(n_values, 1),
        mean=overall.mean,
        std=overall.std,
        min=overall.min,
        max=overall.max,
    )
