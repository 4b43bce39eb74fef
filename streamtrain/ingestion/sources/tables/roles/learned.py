"""Facts learned of a table in its first pass, and stored: dtypes, means, categories, classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.base import SourceOptions, field_of
from streamtrain.ingestion.sources.tables.categories import (
    CATEGORY_SHARE,
    CategoryCodes,
    CategoryMemory,
    CategorySurvey,
    category_bytes,
    count_missing,
)
from streamtrain.ingestion.sources.tables.column_survey import (
    ColumnSurvey,
    add_text,
    add_typed,
    check_no_missing,
    class_names,
    surveys_of,
)
from streamtrain.ingestion.sources.tables.roles.choice import TableRoles, missing_rule
from streamtrain.ingestion.sources.tables.roles.numbers import FLOAT64, INT64
from streamtrain.ingestion.sources.tables.roles.reader import TableReader
from streamtrain.ingestion.sources.tables.roles.rows import ColumnTypes, RoleRun
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import CATEGORIES, ID, INPUT, MISSING, TARGET, WEIGHT, CategoryColumn
from streamtrain.store.schema.facts import SchemaFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the numbers of a table become, and mean."""

    fields: tuple[Field, ...]
    classes: tuple[str, ...] | None
    facts: SchemaFacts

    @property
    def n_bytes(self) -> int:
        """The memory of its categories."""
        held = [each for each in self.facts.categories if each.names]
        return sum(category_bytes(sum(map(len, each.names)), len(each.names)) for each in held)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of a field."""
        return next(each.dtype for each in self.fields if each.name == name)


@dataclass(slots=True, kw_only=True)
class FileCounts:
    """What was counted in one file."""

    n_columns: int
    n_read: int = 0
    n_kept: int = 0
    n_unlabelled: int = 0
    n_dropped: int = 0
    missing: npt.NDArray[np.int64] = field(init=False)
    others: dict[str, int] = field(default_factory=dict)  # by column of categories: missing ones, and unseen ones
    unseen: dict[str, int] = field(default_factory=dict)
    n_longest: int = 0

    def __post_init__(self) -> None:
        self.missing = np.zeros(self.n_columns, np.int64)

    def as_json(self, roles: TableRoles) -> dict[str, Any]:
        """Return what the manifest keeps of them."""
        missing = {name: n for name, n in zip(roles.inputs, self.missing.tolist(), strict=True) if n}
        facts = {
            "rows": self.n_read,
            "unlabelled": self.n_unlabelled,
            "dropped": self.n_dropped,
            "missing": missing | {name: n for name, n in self.others.items() if n},
            "unseen": {name: n for name, n in self.unseen.items() if n},
        }
        return {name: value for name, value in facts.items() if value}


class RunningMeans:
    """Means of columns, by a number of rows that the columns alone decide: not by how they were read."""

    def __init__(self, n_columns: int) -> None:
        self._n = np.zeros(n_columns, np.int64)
        self._means = np.zeros(n_columns)
        self._n_together = max(1, _CELLS_TOGETHER // max(1, n_columns))
        self._waiting: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]] = []
        self._n_waiting = 0

    def add(self, values: npt.NDArray[np.float64], there: npt.NDArray[np.bool_]) -> None:
        """Take in rows, with 0 for each value that is not there."""
        start = 0
        while start < len(values):
            stop = min(len(values), start + self._n_together - self._n_waiting)
            self._waiting.append((values[start:stop], there[start:stop]))
            self._n_waiting += stop - start
            start = stop
            if self._n_waiting == self._n_together:
                self._take_in()
        self._waiting = [(rows.copy(), marks.copy()) for rows, marks in self._waiting]

    def _take_in(self) -> None:
        values = np.concatenate([rows for rows, _ in self._waiting])
        n_new = np.concatenate([marks for _, marks in self._waiting]).sum(axis=0)
        self._waiting, self._n_waiting = [], 0
        self._n += n_new
        # A mean of means: a sum of large numbers would not be finite.
        means = (values / np.maximum(n_new, 1)).sum(axis=0)
        self._means += (means - self._means) * (n_new / np.maximum(self._n, 1))

    def finish(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return how many values each column has, and their mean."""
        if self._waiting:
            self._take_in()
        return self._n, self._means


_CELLS_TOGETHER: Final = 1 << 16


class TableLearner:
    """What has been seen of a table's files so far."""

    def __init__(self, roles: TableRoles, options: SourceOptions, known: Learned | None) -> None:
        self.roles, self.options, self.known = roles, options, known
        self._n_rows = 0  # of all files, without those left out
        self._means = RunningMeans(len(roles.inputs))
        self._largest = np.zeros(len(roles.inputs), np.uint64)
        vocabularies = [name for name in roles.categorical if name not in options.table.hash]
        memory = None if options.memory is None else CategoryMemory(limit=options.memory // CATEGORY_SHARE)
        self._surveys = {name: CategorySurvey(name, memory) for name in vocabularies} if known is None else {}
        of_known = [] if known is None else known.facts.categories
        self._codes = [CategoryCodes(each) for each in of_known if each.hash_size is None]
        self._hashed = frozenset(options.table.hash)
        self._label: ColumnSurvey | None = None
        if len(roles.labels) == 1:
            (self._label,) = surveys_of(roles.labels, roles.labels[0], options.classes, options.memory)
        self._targets_range = np.array([[np.inf], [-np.inf]]) * np.ones(len(roles.labels))

    def add(self, run: RoleRun, reader: TableReader, first_row: int, counts: FileCounts) -> None:
        """Take in a run of rows."""
        counts.n_kept += len(run.rows)
        counts.n_unlabelled += run.n_unlabelled
        counts.n_dropped += run.n_dropped
        counts.missing += run.inputs.missing.sum(axis=0)
        learned = None
        if self.options.learn_from is not None:
            learned = self.options.learn_from(self._n_rows, self._n_rows + len(run.rows))
        self._n_rows += len(run.rows)
        self._add_numbers(run, learned)
        for name, column in zip(self.roles.categorical, run.categories, strict=True):
            if name in self._surveys:
                before = self._surveys[name].n_missing
                self._surveys[name].add(column, learned)
                counts.others[name] = counts.others.get(name, 0) + self._surveys[name].n_missing - before
            elif name in self._hashed:
                counts.others[name] = counts.others.get(name, 0) + count_missing(column, name)
        self._add_unseen(run, counts)
        if self._label is not None:
            self._add_label(self._label, run, reader, first_row)
        if run.targets is not None and len(run.targets):
            found = run.targets.astype(FLOAT64)
            least, most = np.minimum(self._targets_range[0], found.min(axis=0)), found.max(axis=0)
            whole = (found == np.floor(found)).all(axis=0)
            self._targets_range = np.stack([np.where(whole, least, -np.inf), np.maximum(self._targets_range[1], most)])

    def _add_numbers(self, run: RoleRun, learned: npt.NDArray[np.bool_] | None) -> None:
        if not run.inputs.values.size:
            return
        values, there = run.inputs.values, ~run.inputs.missing
        if values.dtype.kind == "f":
            there &= np.isfinite(values)
        values = np.where(there, values, 0)
        if values.dtype.kind in "iu":
            # As floats the first that is not exact would be equal to the last that is.
            sizes = np.abs(values.astype(np.int64)) if values.dtype.kind == "i" else values
            self._largest = np.maximum(self._largest, sizes.astype(np.uint64).max(axis=0))
        if learned is not None:
            there &= learned[:, None]
            values = np.where(there, values, 0)
        self._means.add(values.astype(FLOAT64), there)

    def _add_unseen(self, run: RoleRun, counts: FileCounts) -> None:
        named = dict(zip(self.roles.categorical, run.categories, strict=True))
        for codes in self._codes:
            name = codes.category.name
            found = codes.of(named[name])
            counts.unseen[name] = counts.unseen.get(name, 0) + int((found == 1).sum())
            counts.others[name] = counts.others.get(name, 0) + int((found == 0).sum())

    def _add_label(self, label: ColumnSurvey, run: RoleRun, reader: TableReader, first_row: int) -> None:
        def place(row: int) -> str:
            return reader.place(first_row + int(run.rows[row]))

        if reader.types is None:
            add_text(label, run.label, first_row, place, {})
        else:
            add_typed(label, run.label, first_row)

    def finish(self, types: list[ColumnTypes], reader: TableReader) -> Learned:
        """Return what was learned, or is known of another dataset, which the rows are held against."""
        classes = self._classes(reader)
        if self.known is not None:
            self._check_known(classes)
            return self.known
        self._check_targets()
        categories = tuple(
            CategoryColumn(name=name, hash_size=self.options.table.hash[name])
            if name in self.options.table.hash
            else self._surveys[name].finish(self.options.table.category_min_count, self.options.table.category_limit)
            for name in self.roles.categorical
        )
        dtype = self._input_dtype(types)
        self._check_exact(dtype, types, reader)
        facts = SchemaFacts(
            columns=self.roles.inputs,
            kinds={
                **{name: "number" for name in self.roles.numbers if self.roles.dates},
                **{name: "date in days" if unit == "days" else "date" for name, unit in self.roles.dates.items()},
            },
            categories=categories,
            targets=self.roles.labels if len(self.roles.labels) > 1 else (),
            fills=self._fills(dtype),
        )
        return Learned(fields=self._fields(dtype, classes, types, str(reader.path)), classes=classes, facts=facts)

    def _classes(self, reader: TableReader) -> tuple[str, ...] | None:
        if self._label is None:
            return None
        check_no_missing((self._label,), lambda rows: [reader.place(row) for row in rows], may_be_named=True)
        return class_names(self._label, str(reader.path)) if self._label.dtype is None else None

    def _check_known(self, classes: tuple[str, ...] | None) -> None:
        """Refuse labels that the other dataset does not have."""
        assert self.known is not None
        ours = self.known.classes
        if self._label is None or (ours is None and classes is None):
            if self._label is not None and self._label.dtype is not None:
                self._check_label_dtype(self._label.dtype)
            return
        unseen = [name for name in classes or () if name not in (ours or ())]
        if ours is None or classes is None or unseen:
            listed = ", ".join(map(repr, unseen[:5])) if classes else "numbers"
            known = ", ".join(map(repr, ours[:5])) if ours else "numbers"
            raise InputError(
                f"label column {self.roles.labels[0]!r} has labels that the other dataset does not have: {listed}",
                why=f"It has {known}",
                fix="leave those rows out of the source, or ingest all sources again",
            )

    def _check_label_dtype(self, found: np.dtype[Any]) -> None:
        assert self.known is not None
        wanted = self.known.dtype(TARGET)
        if found.kind == "f" and wanted.kind != "f":
            raise InputError(
                f"label column {self.roles.labels[0]!r} holds fractions; in the other dataset it is {wanted}",
                fix="correct the labels, or ingest them as a dataset of their own",
            )

    def _check_targets(self) -> None:
        """Refuse columns of which some hold 0 and 1 only, and others quantities."""
        if len(self.roles.labels) < 2:
            return
        is_flag = self._are_flags()
        if is_flag.any() and not is_flag.all():
            flags = [name for name, flag in zip(self.roles.labels, is_flag, strict=True) if flag]
            raise InputError(
                f"label columns of two kinds: {', '.join(map(repr, flags))} hold 0 and 1 only, the others quantities",
                why="Labels side by side are all yes or no, or all quantities",
                fix=Fix("name those of one kind: ", Argument("label_column", flags), ", say"),
            )

    def _are_flags(self) -> npt.NDArray[np.bool_]:
        least, most = self._targets_range
        flags: npt.NDArray[np.bool_] = (least >= 0) & (most <= 1)
        return flags

    def _input_dtype(self, types: list[ColumnTypes]) -> np.dtype[Any]:
        rule, value = missing_rule(self.options.table)
        kinds = [each.numbers for each in types] if self.roles.numbers else []
        dtype = np.result_type(*kinds, *([FLOAT64] if self.roles.dates else [])) if kinds or self.roles.dates else INT64
        if rule == "mean" and dtype.kind != "f":
            return FLOAT64
        if value is not None and dtype.kind != "f":
            whole = np.min_scalar_type(int(value)) if value == int(value) else FLOAT64
            return np.result_type(dtype, whole)
        return dtype

    def _check_exact(self, dtype: np.dtype[Any], types: list[ColumnTypes], reader: TableReader) -> None:
        if dtype.kind != "f":
            return
        limit = 2 ** (np.finfo(dtype).nmant + 1)
        is_filled = all(each.numbers.kind != "f" for each in types)
        why = f"The filled-in value makes them {dtype}" if is_filled else f"{dtype} is the dtype that all columns share"
        for name, largest in zip(self.roles.inputs, self._largest.tolist(), strict=True):
            if largest > limit:
                raise InputError(
                    f"column {name!r} holds {largest}; {limit} is the last whole number exact in {dtype}",
                    where=str(reader.path),
                    why=why,
                    fix=Fix("leave the column out, or fill in a whole number: ", Argument("na", "fill=0"))
                    if is_filled
                    else "leave the column out, or store the other columns as whole numbers",
                )

    def _fills(self, dtype: np.dtype[Any]) -> Mapping[str, float]:
        rule, value = missing_rule(self.options.table)
        if rule not in ("fill", "mean"):
            return {}
        counts, means = self._means.finish()
        if rule == "mean":
            empty = [name for name, n in zip(self.roles.inputs, counts.tolist(), strict=True) if not n]
            if empty:
                if self.options.columns is None:
                    without = Argument("exclude", [*self.options.table.exclude, *empty])
                else:
                    without = Argument("columns", [name for name in self.options.columns if name not in empty])
                raise InputError(
                    f"all values of column {empty[0]!r} are missing",
                    why="They have no mean",
                    fix=Fix("leave it out: ", without),
                )
        filled = means.astype(dtype).astype(FLOAT64).tolist() if value is None else [value] * len(self.roles.inputs)
        return dict(zip(self.roles.inputs, filled, strict=True))

    def _fields(
        self, dtype: np.dtype[Any], classes: tuple[str, ...] | None, types: list[ColumnTypes], where: str
    ) -> tuple[Field, ...]:
        roles, n = self.roles, len(self.roles.inputs)
        found = []
        if n:
            found.append(field_of(INPUT, dtype, (n,), where=where))
        if roles.categorical:
            found.append(field_of(CATEGORIES, np.dtype(np.int32), (len(roles.categorical),), where=where))
        if n and self.options.table.na_mask:
            found.append(field_of(MISSING, np.dtype(bool), (n,), where=where))
        if len(roles.labels) > 1:
            of_targets = (
                INT64 if self._are_flags().all() else np.result_type(*(each.targets for each in types), np.float32)
            )
            found.append(field_of(TARGET, of_targets, (len(roles.labels),), where=where))
        elif self._label is not None:
            found.append(field_of(TARGET, self._label.dtype or INT64, (), where=where))
        if roles.id is not None:
            found.append(field_of(ID, INT64, (), where=where))
        if roles.weight is not None:
            found.append(field_of(WEIGHT, FLOAT64, (), where=where))
        return tuple(found)
