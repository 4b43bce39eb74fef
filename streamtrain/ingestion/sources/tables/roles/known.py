"""Facts known of a table from another dataset: columns, categories, fills, classes and dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, Final

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions, TableOptions, describe_kinds, kinds_of
from streamtrain.ingestion.sources.tables.roles.learned import Learned
from streamtrain.ingestion.sources.tables.table_options import TEXT_OPTIONS, table_options
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import INPUT, MISSING, TARGET
from streamtrain.store.schema.facts import SchemaFacts
from streamtrain.system.json_values import to_json_value

_OF_READING: Final = frozenset({*TEXT_OPTIONS, "drop_unlabelled"})
_OF_MEANING: Final = tuple(each.name for each in fields(TableOptions) if each.name not in _OF_READING)
"""Options that say what columns become, which the other dataset says."""
_KEPT: Final = ("timezone", "category_min_count", "category_limit", "na", "nan")
"""Those that neither its schema nor its fields say."""


def known_of(dataset: Dataset) -> Learned:
    """Return what a dataset says of the numbers of a table."""
    schema = dataset.schema
    facts = SchemaFacts(
        columns=schema.columns.get(INPUT, ()),
        kinds=schema.kinds,
        categories=schema.categories,
        targets=schema.targets,
        fills=schema.fills,
    )
    return Learned(fields=dataset.fields, classes=dataset.manifest.classes, facts=facts)


def options_like(dataset: Dataset, options: SourceOptions) -> SourceOptions:
    """Return the options of an ingest like another dataset; refuse those that would say otherwise."""
    _check_unsaid(options)
    return _in_terms_of(dataset, options)


def options_behind(dataset: Dataset, options: SourceOptions) -> SourceOptions:
    """Return the options for rows to append to a dataset; refuse those that say otherwise than it does."""
    stored, given = dataset.manifest.options, options.table.given()
    of_reading = {name: value for name, value in given.items() if name in _OF_READING}
    unlabelled = {"drop_unlabelled": True} if stored.get("drop_unlabelled") else {}
    plain = replace(options, columns=None, label_column=None, table=table_options(unlabelled | of_reading))
    own = _in_terms_of(dataset, plain)
    said = {name: getattr(options, name) for name in ("columns", "label_column")}
    said |= {name: value for name, value in given.items() if name in _OF_MEANING and name != "auto"}
    for name, value in said.items():
        known = getattr(own if name in ("columns", "label_column") else own.table, name)
        if value is not None and _plain(value) not in (_plain(known), stored.get(name)):
            what = f"{name} is given otherwise than for the dataset that the rows are appended to"
            why = "The columns, their categories and what stands for missing values are those of that dataset"
            raise UsageError(what, where=str(dataset.path), why=why, fix=Fix("leave ", Argument(name), " out"))
    return own


def _in_terms_of(dataset: Dataset, options: SourceOptions) -> SourceOptions:
    known, stored = known_of(dataset), dataset.manifest.options
    said: dict[str, Any] = {name: stored[name] for name in _KEPT if name in stored}
    dates = {name: kind for name, kind in known.facts.kinds.items() if kind != "number"}
    said["categorical"] = [each.name for each in known.facts.categories]
    said["hash"] = {each.name: each.hash_size for each in known.facts.categories if each.hash_size is not None}
    said["dates"] = {name: "days" if kind == "date in days" else "seconds" for name, kind in dates.items()}
    if known.facts.fills:
        said["na"] = said.get("na", "fill=mean")  # what they are filled with is known
    said["na_mask"] = any(each.name == MISSING for each in known.fields)
    return replace(
        options,
        columns=tuple(name for name in known.facts.columns if name not in dates),
        label_column=known.facts.targets or _label_of(dataset),
        classes=known.classes or options.classes,
        table=table_options({**options.table.given(), **said, **_single(dataset.manifest.sources)}),
    )


def _check_unsaid(options: SourceOptions) -> None:
    said = [name for name in ("columns", "label_column") if getattr(options, name) is not None]
    said += [name for name in options.table.given() if name in _OF_MEANING]
    if said:
        why = "The columns, their categories and what stands for missing values are those of the other dataset"
        fix = Fix("leave ", Argument(said[0]), " out, or ", Argument("like"))
        raise UsageError(f"{said[0]} is given beside like", why=why, fix=fix)


def _label_of(dataset: Dataset) -> str | None:
    labels = dataset.schema.columns.get(TARGET, ())
    return labels[0] if len(labels) == 1 else None


def _single(sources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns that became a field of their own, by option."""
    first = next(iter(sources), {})
    return {name: first[name] for name in ("weight_column", "id_column") if name in first}


def check_fields_like(found: tuple[Field, ...], dataset: Dataset, where: str) -> None:
    """Refuse a source, none of named columns, whose fields are others than the dataset's."""
    if kinds_of(found) != kinds_of(dataset.fields):
        ours = describe_kinds(kinds_of(dataset.fields))
        raise InputError(
            f"its fields are {describe_kinds(kinds_of(found))}; those of {dataset.path} are {ours}",
            where=where,
            fix="bring them to these dtypes and shapes",
        )


def _plain(value: object) -> object:
    """Return a value as a manifest holds it."""
    return to_json_value(value)


def without_names(dataset: Dataset, where: str) -> InputError:
    """Make the error for rows whose columns have no names, where another dataset says what each of them becomes."""
    names = ", ".join(map(repr, known_of(dataset).facts.columns[:_N_NAMED]))
    return InputError(
        "the columns have no names, and in the other dataset some are categories, dates or filled in",
        where=where,
        why=f"They are matched by name alone, labels too{f': {names}, ...' if names else ''}",
        fix="give a table that has all of them, its labels in a column: a file or a data frame",
    )


_N_NAMED: Final = 5
