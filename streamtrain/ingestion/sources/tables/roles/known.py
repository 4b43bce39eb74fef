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
from streamtrain.store.schema.columns import INPUT, TARGET
from streamtrain.store.schema.facts import SchemaFacts

_OF_READING: Final = frozenset({*TEXT_OPTIONS, "drop_unlabelled"})
_OF_MEANING: Final = tuple(each.name for each in fields(TableOptions) if each.name not in _OF_READING)
"""Options that say what columns become, which the other dataset says."""


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
    known, stored = known_of(dataset), dataset.manifest.options
    said: dict[str, Any] = {
        name: stored[name] for name in _OF_MEANING if name in stored and name not in ("exclude", "auto")
    }
    dates = {name for name, kind in known.facts.kinds.items() if kind != "number"}
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
