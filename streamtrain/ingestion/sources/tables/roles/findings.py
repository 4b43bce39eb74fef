"""Columns of a table that are unfit, told in one message with the options that would take them; and those of `auto`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.tables.arrow import (
    arrow,
    counted_texts,
    distinct_texts,
    is_text,
    missing_in,
    numbers_in,
    parsed,
    returning_memory,
    without_dictionary,
)
from streamtrain.ingestion.sources.tables.column_survey import UnfitColumns, with_nulls
from streamtrain.ingestion.sources.tables.foreign_forms import Form, TextForms
from streamtrain.ingestion.sources.tables.roles.choice import TableRoles, missing_rule
from streamtrain.ingestion.sources.tables.roles.cleaning import also_missing, foreign_columns
from streamtrain.ingestion.sources.tables.roles.numbers import FLOAT64, is_number_type, missing_text, read_numbers
from streamtrain.ingestion.sources.tables.roles.reader import CellColumns, TableBatch, TableReader
from streamtrain.ingestion.sources.tables.roles.role_table import shared_roles, without_rows
from streamtrain.ingestion.sources.tables.roles.rows import missing_labels
from streamtrain.system.units import counted

_MOST_DISTINCT: Final = 20_000
_ROWS_A_CATEGORY: Final = 20
_FEWEST_OF_IDS: Final = 10
_N_TOLD: Final = 20
_N_NAMED: Final = 50


@dataclass(slots=True, kw_only=True)
class _Finding:
    """What has been seen of a column so far."""

    name: str
    n_missing: int = 0
    n_infinite: int = 0
    least: float = np.inf
    most: float = -np.inf
    # Of whole numbers that rise by the same from row to row, as an id does: by how much, once there are two.
    rises_by: float | None = None
    is_rising: bool = True
    is_number: bool = True
    is_date: bool = True
    texts: set[str] | None = field(default_factory=set)  # distinct ones; None above a limit
    forms: TextForms = field(default_factory=TextForms)
    has_zeros: bool = False  # before a whole number
    kind: str = ""  # of a column that is neither numbers nor text nor dates


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What all files hold, by column, where columns are numbers by default; and how many labels are missing."""

    roles: TableRoles
    columns: tuple[_Finding, ...]
    labels: tuple[_Finding, ...]  # of text, whose names nobody has told
    n_rows: int
    n_unlabelled: int

    def dates(self) -> list[str]:
        """Columns of dates."""
        return [each.name for each in self.columns if self._role(each) == "dates"]

    def categories(self) -> list[str]:
        """Columns of texts that come again and again."""
        return [each.name for each in self.columns if self._role(each) == "categorical"]

    def others(self) -> list[str]:
        """Columns that nothing but their leaving out takes."""
        return [each.name for each in self.columns if self._role(each) == "other"]

    def constants(self) -> list[str]:
        """Columns of one value, or of none."""
        return [each.name for each in self.columns if self._is_constant(each)]

    def missing(self) -> list[_Finding]:
        """Columns of numbers or dates that have values missing, but not all."""
        kinds = ("number", "dates")
        return [
            each for each in self.columns if each.n_missing and self._role(each) in kinds and not self._is_empty(each)
        ]

    def infinite(self) -> list[_Finding]:
        """Columns of numbers of which some are infinite."""
        return [each for each in self.columns if each.n_infinite and self._role(each) == "number"]

    def forms(self) -> dict[str, Form]:
        """Columns and labels whose texts are nearly numbers, or dates."""
        found = {each.name: each.forms.form() for each in (*self.columns, *self.labels)}
        texts = {each.name for each in self.columns if each.is_number or each.is_date}
        return {name: form for name, form in found.items() if form is not None and name not in texts}

    def codes(self) -> list[str]:
        """Columns of numbers with leading zeros."""
        return [each.name for each in self.columns if each.has_zeros and each.is_number]

    def ids(self) -> list[str]:
        """Columns of whole numbers that rise by the same from row to row."""
        is_enough = self.n_rows >= _FEWEST_OF_IDS
        return [each.name for each in self.columns if is_enough and each.is_rising and each.rises_by is not None]

    def empty(self) -> list[str]:
        """Columns without a value."""
        return [each.name for each in self.columns if self._is_empty(each)]

    def _is_empty(self, each: _Finding) -> bool:
        return each.n_missing >= self.n_rows

    def _is_constant(self, each: _Finding) -> bool:
        if self._is_empty(each):
            return True
        if each.n_missing:
            return False
        is_one = each.least == each.most if each.is_number else each.texts is not None and len(each.texts) == 1
        return is_one and not each.kind

    def _role(self, each: _Finding) -> str:
        if self._is_empty(each) or each.kind:
            return "other" if each.kind else "number"
        if each.is_number:
            return "number"
        if each.is_date:
            return "dates"
        few = each.texts is not None and self.n_rows >= _ROWS_A_CATEGORY * len(each.texts)
        return "categorical" if few else "other"

    def lines(self) -> Iterator[str]:
        """Describe each column that is unfit."""
        for each in self.columns:
            said = [*self._held(each)]
            if each.n_missing and not self._is_empty(each):
                said.append(f"{each.n_missing:,} missing")
            if each.n_infinite:
                said.append(f"{each.n_infinite:,} infinite")
            if said and (self._role(each) not in ("categorical",) or not each.is_number):
                yield f"{each.name}: {', '.join(said)}"
        if self.n_unlabelled:
            yield f"{', '.join(self.roles.labels)}: {counted(self.n_unlabelled, 'label')} missing"

    def _held(self, each: _Finding) -> Iterator[str]:
        if self._is_empty(each):
            yield "all missing"
        elif each.kind:
            yield each.kind
        elif each.is_number:
            return
        elif each.is_date:
            yield "dates"
        else:
            form = each.forms.form()
            texts = f"over {_MOST_DISTINCT:,} texts" if each.texts is None else f"{len(each.texts):,} texts"
            yield f"{form}, a mark of missing values, it seems" if form else texts


def look(readers: Sequence[TableReader], options: SourceOptions) -> Findings:
    """Look through all files for what is in the columns that are read as numbers, and for labels that are missing."""
    with returning_memory():
        roles = shared_roles(readers, options)
        findings = [_Finding(name=name) for name in (*roles.numbers, *roles.dates)]
        labels = [_Finding(name=name) for name in roles.labels if not options.classes]
        n_rows = n_unlabelled = 0
        for reader in readers:
            names = (*roles.inputs, *roles.labels)
            for batch in reader.batches(names):
                _add(findings, batch, reader)
                _add_labels(labels, batch, reader)
                n_rows += batch.n_rows
                n_unlabelled += int(_unlabelled(batch, roles, options, reader).sum())
        return Findings(
            roles=roles,
            columns=tuple(findings),
            labels=tuple(labels),
            n_rows=n_rows,
            n_unlabelled=n_unlabelled,
        )


def _unlabelled(batch: TableBatch, roles: TableRoles, options: SourceOptions, reader: TableReader) -> Any:
    missing = np.zeros(batch.n_rows, bool)
    for name in roles.labels:
        column = batch.columns[name]
        missing |= missing_labels(column, options.classes or ())
        if len(roles.labels) > 1 and is_text(column):
            missing |= missing_text(without_dictionary(column), reader.nulls)
    return missing


def _add(findings: Sequence[_Finding], batch: TableBatch, reader: TableReader) -> None:
    if reader.types is None and not isinstance(batch.columns, CellColumns):
        _note_zeros(findings, batch)
    # All at once where they are numbers, which those of a wide table mostly are.
    names = [each.name for each in findings if each.is_number and not each.kind]
    found = read_numbers(batch, names, FLOAT64, reader.nulls, keep_nan=False)
    if not isinstance(found, str) and len(names) == len(findings):
        for each, values, missing in zip(findings, found.values.T, found.missing.T, strict=True):
            _add_numbers(each, values, missing)
        return
    for each in findings:
        _add_column(each, batch, reader)


def _note_zeros(findings: Sequence[_Finding], batch: TableBatch) -> None:
    """Note columns with leading zeros; in a wide table, whose columns are many, there are hardly codes."""
    compute = arrow("pyarrow.compute")
    for each in findings:
        if each.is_number and not each.has_zeros and is_text(text := batch.columns[each.name]):
            each.has_zeros = bool(compute.any(compute.match_substring_regex(text, _ZEROS)).as_py())


_ZEROS: Final = r"^\s*0\d+\s*$"


def _add_labels(labels: Sequence[_Finding], batch: TableBatch, reader: TableReader) -> None:
    for each in labels:
        if each.forms.is_open and is_text(batch.columns[each.name]):
            text = without_dictionary(batch.columns[each.name])
            each.forms.add(counted_texts(with_nulls(text, missing_text(text, reader.nulls))))


def _add_column(each: _Finding, batch: TableBatch, reader: TableReader) -> None:
    column = batch.columns[each.name]
    types = arrow("pyarrow.types")
    plain = without_dictionary(column)
    if is_text(plain):
        _add_text(each, plain, reader)
    elif is_number_type(plain.type):
        found = read_numbers(batch, [each.name], FLOAT64, reader.nulls, keep_nan=False)
        if isinstance(found, str):
            # Whole numbers that float64 rounds are numbers all the same.
            _add_numbers(each, numbers_in(plain).astype(FLOAT64), missing_in(plain))
        else:
            _add_numbers(each, found.values[:, 0], found.missing[:, 0])
    else:
        each.n_missing += plain.null_count
        each.is_number = each.is_rising = False
        if not (types.is_timestamp(plain.type) or types.is_date(plain.type)):
            each.is_date, each.kind = False, str(plain.type)


def _add_text(each: _Finding, text: Any, reader: TableReader) -> None:
    missing = missing_text(text, reader.nulls)
    there = with_nulls(text, missing).drop_null()
    each.n_missing += int(missing.sum())
    if not len(there):
        return
    values = parsed(there, FLOAT64)
    if values is not None:
        _add_values(each, numbers_in(values), n_missing=int(missing.sum()))
    else:
        each.is_number = each.is_rising = False
    each.is_date = each.is_date and _are_dates(there)
    if each.forms.is_open:
        each.forms.add(counted_texts(there))
    if each.texts is not None:
        each.texts |= distinct_texts(there)
        each.texts = each.texts if len(each.texts) <= _MOST_DISTINCT else None


def _are_dates(texts: Any) -> bool:
    compute = arrow("pyarrow.compute")
    found = compute.match_substring_regex(compute.utf8_trim_whitespace(texts), _DATE)
    return bool(numbers_in(found).all())


_DATE: Final = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:?.*)?$"


def _add_numbers(each: _Finding, values: Any, missing: Any) -> None:
    each.n_missing += int(missing.sum())
    there = values[~missing]
    if len(there):
        _add_values(each, there, n_missing=len(values) - len(there))
        each.is_date = False


def _add_values(each: _Finding, numbers: Any, *, n_missing: int) -> None:
    each.n_infinite += int(np.isinf(numbers).sum())
    if each.is_rising:
        # Before the greatest is that of these rows: where they rise it is the last one.
        steps = np.diff(numbers, prepend=each.most) if np.isfinite(each.most) else np.diff(numbers)
        each.rises_by = float(steps[0]) if each.rises_by is None and len(steps) else each.rises_by
        is_whole = not n_missing and bool((numbers == np.floor(numbers)).all())
        each.is_rising = is_whole and (
            each.rises_by is None or (each.rises_by > 0 and bool((steps == each.rises_by).all()))
        )
    each.least, each.most = min(each.least, float(numbers.min())), max(each.most, float(numbers.max()))


def foreign_at_once(readers: Sequence[TableReader], options: SourceOptions) -> InputError | None:
    """Make the error for all columns of foreign forms; None where there are none."""
    return _foreign(readers, options, look(readers, options))


def _foreign(
    readers: Sequence[TableReader], options: SourceOptions, findings: Findings, *, any_form: bool = False
) -> InputError | None:
    """Make the error for columns of foreign forms, and for labels of any form; or for columns of any form, too."""
    found, labels = findings.forms(), findings.roles.labels
    if not any(any_form or form.is_foreign or name in labels for name, form in found.items()):
        return None
    exclude = options.table.exclude if options.columns is None else None
    codes = [*findings.roles.categorical, *findings.codes()]
    return foreign_columns(readers, found, labels, codes=codes, exclude=exclude)


def told_at_once(error: UnfitColumns, readers: Sequence[TableReader], options: SourceOptions) -> InputError:
    """Tell, behind the first thing that is unfit, all others, and the options that would take them."""
    if is_labels := options.columns == () and not options.labels:
        # A file of labels, of one column.
        options = replace(options, label_column=readers[0].header[0])
    findings = look(readers, options)
    if (foreign := _foreign(readers, options, findings)) is not None:
        return foreign
    lines = [*findings.lines()]
    missing = also_missing(readers[0], findings.forms())
    arguments = _remedy(findings, options, missing)
    if not lines or not arguments or is_labels:
        return error
    shown = "; ".join(lines[:_N_TOLD]) + (
        f"; and {len(lines) - _N_TOLD:,} more columns" if len(lines) > _N_TOLD else ""
    )
    return UnfitColumns(
        error.what,
        where=error.where,
        why=f"{error.why.rstrip('. ')}. Unfit are {shown}" if error.why else f"Unfit are {shown}",
        fix=Fix(
            *(
                Fix.together([Argument("auto", True), *filter(None, [missing])]),
                ", which takes the table as it is; or by hand, ",
            ),
            *(Fix.together(arguments), "; or ", error.fix or "correct the values"),
        ),
    )


def _remedy(findings: Findings, options: SourceOptions, also_missing: Argument | None) -> list[Argument]:
    """List the arguments that would take all of it, beside those that were given."""
    marked = findings.forms() if also_missing else {}
    table = options.table
    dates = {**table.dates, **dict.fromkeys(findings.dates(), "seconds")}
    categories = [*table.categorical, *(name for name in findings.categories() if name not in marked)]
    left_out = [*(name for name in findings.others() if name not in marked), *findings.empty()]
    arguments = []
    if len(categories) > len(table.categorical):
        arguments.append(Argument("categorical", categories))
    if len(dates) > len(table.dates):
        arguments.append(Argument("dates", dates))
    if also_missing is not None:
        arguments.append(also_missing)
    missing = [*marked, *findings.missing()]
    if missing and missing_rule(table)[0] == "error":
        arguments.append(Argument("na", "fill=mean"))
    if findings.n_unlabelled and not table.drop_unlabelled:
        arguments.append(Argument("drop_unlabelled", True))
    if findings.infinite() and table.nan == "error":
        arguments.append(Argument("nan", "keep"))
    taken = {*findings.dates(), *categories, *left_out}
    if options.columns is not None and taken:
        rest = [name for name in options.columns if name not in taken]
        arguments.append(Argument("columns", rest if rest and len(rest) <= _N_NAMED else None))
    elif left_out:
        arguments.append(Argument("exclude", [*table.exclude, *left_out]))
    return arguments


def choose_for_all(
    readers: Sequence[TableReader], options: SourceOptions
) -> tuple[SourceOptions, tuple[Argument, ...], tuple[Fix, ...]]:
    """Choose what takes every column of these files.

    Return the arguments that say so, beside those given, and doubts about columns that look like ids or codes.
    """
    findings = look(readers, options)
    if not findings.n_rows:
        raise without_rows(readers[0])
    if (foreign := _foreign(readers, options, findings, any_form=True)) is not None:
        raise foreign
    table = options.table
    left_out = [*dict.fromkeys([*findings.others(), *findings.constants()])]
    dates = {name: "seconds" for name in findings.dates() if name not in left_out and name not in table.dates}
    categories = [name for name in findings.categories() if name not in left_out]
    is_missing = any(each.name not in left_out for each in findings.missing()) and table.na == "error"
    chosen = replace(
        table,
        auto=False,
        categorical=(*table.categorical, *categories),
        dates={**table.dates, **dates},
        na="fill=mean" if is_missing else table.na,
        na_mask=table.na_mask or is_missing,
        drop_unlabelled=table.drop_unlabelled or findings.n_unlabelled > 0,
    )
    columns = options.columns
    if columns is None:
        chosen = replace(chosen, exclude=(*table.exclude, *left_out))
    else:
        taken = {*left_out, *dates, *categories}
        columns = tuple(name for name in columns if name not in taken)
    resolved = replace(options, table=chosen, columns=columns)
    names = ("categorical", "dates", "na", "na_mask", "drop_unlabelled", "exclude")
    said = [(name, getattr(chosen, name), getattr(table, name)) for name in names]
    arguments = [
        Argument(name, list(now) if isinstance(now, tuple) else now) for name, now, was in said if now and now != was
    ]
    if columns != options.columns:
        arguments.append(Argument("columns", list(columns or ())))
    doubts = (_doubt_of_ids(findings, options), _doubt_of_codes(findings, options))
    return resolved, tuple(arguments), tuple(filter(None, doubts))


def _doubt_of_codes(findings: Findings, options: SourceOptions) -> Fix | None:
    """Say which columns of numbers look like codes."""
    codes = [name for name in findings.codes() if options.columns is None and name not in findings.ids()]
    if not codes:
        return None
    told = (
        "has leading zeros, as a code does, and is a number" if len(codes) == 1 else "have leading zeros, as codes do"
    )
    categories = Argument("categorical", [*options.table.categorical, *codes])
    return Fix(f"{', '.join(codes)} {told}: ", categories, " keeps each code apart")


def _doubt_of_ids(findings: Findings, options: SourceOptions) -> Fix | None:
    """Say which columns look like ids, and are features all the same, with the ways out."""
    # What was named as a feature is one.
    ids = findings.ids() if options.columns is None else []
    if not ids:
        return None
    first, *others = [each for each in findings.columns if each.name in ids]
    named = ", ".join(ids)
    rise = f"column {named} rises by {first.rises_by:g}" if not others else f"columns {named} rise by the same"
    aside = () if options.table.id_column else (Argument("id_column", ids[0]), f" keeps {ids[0]} beside the rows, ")
    return Fix(
        f"{rise} from row to row, as an id does, and {'are features' if others else 'is a feature'}: ",
        *aside,
        Argument("exclude", [*options.table.exclude, *ids]),
        f" leaves {'them' if others else 'it'} out",
    )
