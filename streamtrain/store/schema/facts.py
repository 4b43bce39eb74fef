"""The part of a table's schema that its manifest holds, and its vocabularies: a file for each column of categories.

It is written only for what plain columns of numbers and a label do not have. The names of categories are in files of
their own, which the manifest's part names by their SHA-256; so the dataset's id covers them, and opening reads none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import (
    CATEGORIES,
    INPUT,
    MOST_CODES,
    TARGET,
    CategoryColumn,
    Names,
    category_json,
    parse_category,
    parse_fills,
    parse_kinds,
)
from streamtrain.system.json_values import objects, texts, whole_number

FOLDER: Final = "categories"
MOST_VOCABULARY_BYTES: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaFacts:
    """What a manifest keeps of a table beyond its plain columns."""

    columns: Names = ()  # of x, in its order
    kinds: Mapping[str, str] = field(default_factory=dict)
    categories: tuple[CategoryColumn, ...] = ()
    targets: Names = ()
    fills: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCategories:
    """A column of categories as the manifest names it."""

    name: str
    n_names: int = 0
    sha256: str = ""
    hash_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFacts:
    """`SchemaFacts` as a manifest holds them: its vocabularies are read when they are asked for."""

    columns: Names
    kinds: Mapping[str, str]
    categories: tuple[StoredCategories, ...]
    targets: Names
    fills: Mapping[str, float]

    def vocabulary_names(self) -> dict[int, str]:
        """Name the file of each column of categories that has one, by its number."""
        return {n: f"{FOLDER}/{n}.json" for n, each in enumerate(self.categories) if each.hash_size is None}

    def as_json(self) -> dict[str, Any]:
        """Return the facts as the manifest holds them."""
        return {
            "columns": list(self.columns),
            "kinds": dict(self.kinds),
            "categories": [
                {"name": each.name, "n_names": each.n_names, "sha256": each.sha256}
                if each.hash_size is None
                else {"name": each.name, "hash_size": each.hash_size}
                for each in self.categories
            ],
            "targets": list(self.targets),
            "fills": dict(self.fills),
        }


def stored_facts_of(facts: SchemaFacts) -> tuple[StoredFacts, dict[str, bytes]]:
    """Make what the manifest holds of a table, and the files of its vocabularies, by name."""
    files = {n: _vocabulary(each) for n, each in enumerate(facts.categories) if each.hash_size is None}
    stored = StoredFacts(
        columns=facts.columns,
        kinds=facts.kinds,
        categories=tuple(
            StoredCategories(name=each.name, n_names=len(each.names), sha256=hashlib.sha256(files[n]).hexdigest())
            if n in files
            else StoredCategories(name=each.name, hash_size=each.hash_size)
            for n, each in enumerate(facts.categories)
        ),
        targets=facts.targets,
        fills=facts.fills,
    )
    return stored, {name: files[n] for n, name in stored.vocabulary_names().items()}


def _vocabulary(category: CategoryColumn) -> bytes:
    return json.dumps(category_json(category), sort_keys=True, separators=(",", ":")).encode("ascii")


def read_vocabulary(stored: StoredCategories, data: bytes) -> CategoryColumn:
    """Read a vocabulary's file back, without trust; refuse with ValueError."""
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise ValueError("it is not the one that the manifest names")
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    category = parse_category(found)
    if category.name != stored.name or len(category.names) != stored.n_names or category.hash_size is not None:
        raise ValueError("its column or its number of categories differs")
    return category


def parse_stored_facts(found: object, fields: tuple[Field, ...]) -> StoredFacts | None:
    """Read the part of a manifest back, without trust; refuse with ValueError what contradicts the fields."""
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ValueError("the schema is not a JSON object")
    facts = StoredFacts(
        columns=texts(found["columns"]),
        kinds=parse_kinds(found["kinds"]),
        categories=tuple(map(_parse_categories, objects(found["categories"]))),
        targets=texts(found["targets"]),
        fills=parse_fills(found["fills"]),
    )
    known = {each.name: each for each in fields}
    columns = known.get(INPUT)
    if (facts.columns or columns) and (columns is None or columns.shape != (len(facts.columns),)):
        raise ValueError("field x has other columns than the schema names")
    codes = known.get(CATEGORIES)
    wanted = None if not facts.categories else ((len(facts.categories),), np.dtype(np.int32))
    if wanted != (None if codes is None else (codes.shape, codes.dtype)):
        raise ValueError("field cat has other columns than the schema names")
    if facts.targets and (TARGET not in known or known[TARGET].shape != (len(facts.targets),)):
        raise ValueError("field y has other columns than the schema names")
    named = (facts.columns, facts.targets, [each.name for each in facts.categories])
    if any(len(set(names)) != len(names) for names in named) or not {*facts.kinds, *facts.fills} <= {*facts.columns}:
        raise ValueError("the schema names columns that are not there, or one twice")
    return facts


def _parse_categories(found: dict[str, Any]) -> StoredCategories:
    name, hash_size = found["name"], found.get("hash_size")
    if not isinstance(name, str):
        raise ValueError("a column has no name")
    if hash_size is not None:
        return StoredCategories(name=name, hash_size=whole_number(hash_size, 1, MOST_CODES))
    digest = found["sha256"]
    if not isinstance(digest, str):
        raise ValueError("a vocabulary has no digest")
    return StoredCategories(name=name, n_names=whole_number(found["n_names"], 0, MOST_CODES), sha256=digest)
