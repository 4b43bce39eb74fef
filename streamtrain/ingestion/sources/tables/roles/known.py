"""Facts known of a table from a schema: columns, categories, fills, classes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions, TableOptions, describe_kinds, kinds_of
from streamtrain.ingestion.sources.tables.roles.learned import Learned
from streamtrain.ingestion.sources.tables.table_options import TEXT_OPTIONS, table_options
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import INPUT, MISSING, READING, TARGET, Schema
from streamtrain.store.schema.facts import SchemaFacts
from streamtrain.system.json_values import to_json_value

_OF_READING: Final = frozenset({*TEXT_OPTIONS, "drop_unlabelled"})
_OF_MEANING: Final = tuple(each.name for each in fields(TableOptions) if each.name not in _OF_READING)
"""Options that say what columns become, which the schema says."""
_OF_SURVEY: Final = ("category_min_count", "category_limit")
"""Those that neither a schema nor its fields say."""


def known_of(schema: Schema) -> Learned:
    """Return what a schema says of the numbers of a table."""
    facts = SchemaFacts(
        columns=schema.columns.get(INPUT, ()),
        kinds=schema.kinds,
        categories=schema.categories,
        targets=schema.targets,
        fills=schema.fills,
    )
    return Learned(fields=schema.fields, classes=schema.classes, facts=facts)


def options_like(schema: Schema, options: SourceOptions) -> SourceOptions:
    """Return the options that read a table as a schema says; refuse those that would say otherwise."""
    _check_unsaid(options)
    return _in_terms_of(schema, options, {})


def options_behind(dataset: Dataset, options: SourceOptions) -> SourceOptions:
    """Return the options for rows to append to a dataset; refuse those that say otherwise than it does."""
    stored, given = dataset.manifest.options, options.table.given()
    of_reading = {name: value for name, value in given.items() if name in _OF_READING}
    unlabelled = {"drop_unlabelled": True} if stored.get("drop_unlabelled") else {}
    plain = replace(options, columns=None, label_column=None, table=table_options(unlabelled | of_reading))
    own = _in_terms_of(dataset.schema, plain, {name: stored[name] for name in _OF_SURVEY if name in stored})
    said = {name: getattr(options, name) for name in ("columns", "label_column")}
    said |= {name: value for name, value in given.items() if name in _OF_MEANING and name != "auto"}
    for name, value in said.items():
        known = getattr(own if name in ("columns", "label_column") else own.table, name)
        if value is not None and to_json_value(value) not in (to_json_value(known), stored.get(name)):
            what = f"{name} differs from that of the dataset that the rows are appended to"
            why = "The columns, their categories and what stands for missing values are those of that dataset"
            raise UsageError(what, where=str(dataset.path), why=why, fix=Fix("leave ", Argument(name), " out"))
    return own


def _in_terms_of(schema: Schema, options: SourceOptions, more: Mapping[str, Any]) -> SourceOptions:
    dates = {name: _UNITS[kind] for name, kind in schema.kinds.items() if kind in _UNITS}
    told = {name: schema.reading[name] for name in READING if name in schema.reading and name != "drop_unlabelled"}
    said: dict[str, Any] = {
        "categorical": tuple(each.name for each in schema.categories),
        "hash": {each.name: each.hash_size for each in schema.categories if each.hash_size is not None},
        "dates": dates,
        "na": "fill=mean" if schema.fills else "error",
        "na_mask": schema.field(MISSING) is not None,
        **told,
        **more,
    }
    return replace(
        options,
        columns=tuple(name for name in schema.columns.get(INPUT, ()) if name not in dates),
        label_column=schema.targets or label_of(schema),
        classes=schema.classes or options.classes,
        table=table_options({**options.table.given(), **said}),
    )


_UNITS: Final = {"date": "seconds", "date in days": "days"}


def _check_unsaid(options: SourceOptions) -> None:
    said = [name for name in ("columns", "label_column") if getattr(options, name) is not None]
    said += [name for name in options.table.given() if name in _OF_MEANING]
    if said:
        why = "The columns, their categories and what stands for missing values are those of the other dataset"
        fix = Fix("leave ", Argument(said[0]), " out, or ", Argument("like"))
        raise UsageError(f"{said[0]} is given together with like", why=why, fix=fix)


def label_of(schema: Schema) -> str | None:
    """Return the name of the label column, where there is one."""
    labels = schema.columns.get(TARGET, ())
    return labels[0] if len(labels) == 1 else None


def check_fields_like(found: tuple[Field, ...], dataset: Dataset, where: str) -> None:
    """Refuse a source, none of named columns, whose fields are others than the dataset's."""
    if kinds_of(found) != kinds_of(dataset.fields):
        ours = describe_kinds(kinds_of(dataset.fields))
        raise InputError(
            f"its fields are {describe_kinds(kinds_of(found))}; those of {dataset.path} are {ours}",
            where=where,
            fix="bring them to these dtypes and shapes",
        )


def without_names(dataset: Dataset, where: str) -> InputError:
    """Make the error for rows whose columns have no names, where another dataset says what each of them becomes."""
    names = ", ".join(map(repr, dataset.schema.columns.get(INPUT, ())[:_N_NAMED]))
    return InputError(
        "the columns have no names, and in the other dataset some are categories, dates or filled in",
        where=where,
        why=f"They are matched by name alone, labels too{f': {names}, ...' if names else ''}",
        fix="give a table that has all of them, its labels in a column: a file or a data frame",
    )


_N_NAMED: Final = 5
