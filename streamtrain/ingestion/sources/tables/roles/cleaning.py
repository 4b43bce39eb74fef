"""Commands of pandas that clean a table whose texts are numbers or dates of a foreign form."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.tables.arrow import counted_texts, is_text, without_dictionary
from streamtrain.ingestion.sources.tables.column_survey import with_nulls
from streamtrain.ingestion.sources.tables.foreign_forms import Form, TextForms
from streamtrain.ingestion.sources.tables.roles.numbers import missing_text
from streamtrain.ingestion.sources.tables.roles.reader import TableBatch, TableReader
from streamtrain.ingestion.sources.tables.text.encoded_text import UTF_8
from streamtrain.ingestion.sources.tables.text.text_form import own_delimiter

_MOST_FILES: Final = 20


def forms_in(batch: TableBatch, names: Sequence[str], nulls: Sequence[str]) -> dict[str, Form]:
    """Find the columns of a run of rows whose texts are of a foreign form."""
    found = {}
    for name in names:
        if not is_text(batch.columns[name]):
            continue
        text, forms = without_dictionary(batch.columns[name]), TextForms()
        forms.add(counted_texts(with_nulls(text, missing_text(text, nulls))))
        form = forms.form()
        if form is not None and form.is_foreign:
            found[name] = form
    return found


def what_they_hold(forms: Mapping[str, Form], labels: Sequence[str]) -> str:
    """Say what columns of foreign forms hold."""
    kinds = {name: "label column" if name in labels else "column" for name in forms}
    return "; ".join(f"{kinds[name]} {name!r} holds {form}" for name, form in forms.items())


def foreign_columns(
    readers: Sequence[TableReader],
    forms: Mapping[str, Form],
    labels: Sequence[str],
    *,
    codes: Sequence[str] = (),
    exclude: Sequence[str] | None = None,
) -> InputError:
    """Make the error for columns that would be texts; ``exclude`` lists those left out already, if any can be."""
    if (missing := also_missing(readers[0], forms)) and not any(form.is_foreign for form in forms.values()):
        fix = Fix(missing, " makes them missing values")
    else:
        fix = cleaned(readers[0], forms, readers[1:], codes)
    if exclude is not None and not set(forms) & set(labels):
        fix = Fix(fix, "; or leave out what is not read: ", Argument("exclude", [*exclude, *forms]))
    return InputError(
        what_they_hold(forms, labels), where=str(readers[0].path), why="They would be read as texts", fix=fix
    )


def also_missing(reader: TableReader, forms: Mapping[str, Form]) -> Argument | None:
    """Return the option that reads the marks beside numbers as missing, in text; None where there are none."""
    marks = dict.fromkeys(mark for form in forms.values() for mark in form.marks)
    # In quotes a mark that was given is text all the same.
    if not marks or reader.types is not None or set(marks) & set(reader.nulls):
        return None
    given = [mark for mark in reader.nulls if mark] if reader.has_own_nulls else []
    return Argument("na_values", [*given, *marks])


def cleaned(
    first: TableReader, forms: Mapping[str, Form], others: Sequence[TableReader] = (), codes: Sequence[str] = ()
) -> Fix:
    """Give the command of a shell, or the lines of Python for a frame, that clean a table."""
    lines = [f"df[{name!r}] = {_plain(name, form)}" for name, form in forms.items()]
    if "path" not in first.provenance[0]:
        return Fix("of a data frame of pandas, ", "; ".join(lines))
    made = str(first.path.with_name(f"{first.path.name.partition('.')[0]}-clean.{_suffix(first)}"))
    if first.types is None:
        table = _read_text([first, *others], forms, codes)
        command = _command([f"{table}.to_csv({made!r}, index=False)"])
    else:
        command = _command([f"df = pd.read_parquet({str(first.path)!r})", *lines, f"df.to_parquet({made!r})"])
    return Fix(f"{command} writes {made}, to be given instead")


def _suffix(reader: TableReader) -> str:
    return "csv" if reader.types is None else "parquet"


def _read_text(readers: Sequence[TableReader], forms: Mapping[str, Form], codes: Sequence[str]) -> str:
    first = readers[0]
    facts = first.provenance[0]
    delimiter = facts.get("delimiter") or own_delimiter(first.path)
    dates = [name for name, form in forms.items() if form.is_date]
    marks = dict.fromkeys(mark for form in forms.values() for mark in form.marks)
    said: dict[str, Any] = {
        "sep": delimiter if delimiter != "," else None,
        "encoding": facts.get("encoding") if facts.get("encoding") != UTF_8 else None,
        "decimal": "," if any(form.kind == "numbers with a decimal comma" for form in forms.values()) else None,
        "thousands": next((form.grouping for form in forms.values() if form.grouping), None),
        "na_values": list(marks),
        "dtype": dict.fromkeys(codes, "str"),
        "parse_dates": dates,
        "dayfirst": any(form.kind == "dates with the day first" for form in forms.values()),
    }
    options = "".join(f", {name}={value!r}" for name, value in said.items() if value)
    if not first.has_header:
        options += f", header=None, names={list(first.header)!r}"
    if len(readers) == 1 or len(readers) > _MOST_FILES:
        return f"pd.read_csv({str(first.path)!r}{options})"
    return f"pd.concat([pd.read_csv(path{options}) for path in {[str(each.path) for each in readers]!r}])"


def _command(lines: Sequence[str]) -> str:
    code = "; ".join(["import pandas as pd", *lines])
    quoted = shlex.quote(code) if set(code) & _NOT_AS_THEY_ARE else f'"{code}"'
    return f"python -c {quoted}"


_NOT_AS_THEY_ARE: Final = frozenset('"$`!\\')
"""Characters that a shell does not leave alone inside double quotes."""


def _plain(name: str, form: Form) -> str:
    texts = f"df[{name!r}]"
    if form.marks:
        texts += f".mask(df[{name!r}].isin({list(form.marks)!r}))"
    if form.is_date:
        return f"pd.to_datetime({texts}{', dayfirst=True' if 'day first' in form.kind else ''})"
    if form.grouping:
        texts += f".str.replace({form.grouping!r}, '', regex=False)"
    if form.kind == "numbers with a decimal comma":
        texts += ".str.replace(',', '.', regex=False)"
    return f"{texts}.astype(float)"
