"""Categories of a column: counted in a first pass within a budget, numbered, and turned into codes.

Code 0 is a missing value, 1 another one (rare, or not seen), 2 and more are the categories by falling count, then by
text. A hashed column has no list of names: its codes follow from the text alone.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, InputError
from streamtrain.ingestion.sources.tables.arrow import arrow, is_text, parsed, without_dictionary
from streamtrain.store.schema.columns import CategoryColumn
from streamtrain.system.units import format_bytes

_MISSING: Final = 0
_OTHER: Final = 1
_FIRST: Final = 2
_UNKNOWN: Final = -1
_MOST_LOOKED_UP: Final = 1 << 16
_NAMES_PER_TEXT: Final = 4
"""Of more names for each text of a run, and of more names at all, texts are looked up one by one."""
_SUGGESTED_HASH_SIZE: Final = 100_000
_MIN_PENDING: Final = 1 << 14
_MIN_PENDING_BYTES: Final = 1 << 20
"""Texts that wait to be counted with the others: that all are looked at again costs as much as there are of them."""

_TEXT_COPIES: Final = 6
_CATEGORY_BYTES: Final = 300


CATEGORY_SHARE: Final = 2
"""Of the memory of an ingest, categories may take one part in so many."""


def category_bytes(n_text_bytes: int, n_names: int) -> int:
    """Project the memory of so many categories: in arrays while they are counted, then as names with their codes."""
    return _TEXT_COPIES * n_text_bytes + _CATEGORY_BYTES * n_names


@dataclass(slots=True, kw_only=True)
class CategoryMemory:
    """The bytes that the categories of a table's columns may take together, and those that each takes so far."""

    limit: int
    taken: dict[str, int] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """All that is taken."""
        return sum(self.taken.values())


class CategorySurvey:
    """The distinct texts of a column so far, and how often each was seen.

    Parameters
    ----------
    name : str
        The column's.
    memory : CategoryMemory or None
        What they share with those of other columns; None where nobody said.
    where : str, optional
        The file, for errors.
    """

    def __init__(self, name: str, memory: CategoryMemory | None, where: str | None = None) -> None:
        self.name = name
        self.memory = memory
        self.where = where
        self.n_missing = 0
        self._texts = arrow().array([], arrow().large_string())
        self._counts = np.empty(0, np.int64)
        self._pending: list[tuple[Any, npt.NDArray[np.int64]]] = []
        self._n_pending = self._pending_bytes = 0

    def add(self, column: Any, learned: npt.NDArray[np.bool_] | None = None) -> None:
        """Count the values of a run of the column: text, integers, booleans, or floats that are whole.

        Rows that are not ``learned`` from count among the missing ones only.
        """
        texts, places = _distinct(column, self.name, self.where)
        is_null = texts.is_null().to_numpy(zero_copy_only=False)
        if texts.null_count:
            self.n_missing += int(is_null[places].sum())
        counts = np.bincount(places if learned is None else places[learned], minlength=len(texts))
        counts[is_null] = 0
        if not counts.all():
            kept = np.flatnonzero(counts)
            texts, counts = texts.take(arrow().array(kept)), counts[kept]
        self._pending.append((texts, counts))
        self._n_pending += len(texts)
        self._pending_bytes += texts.nbytes
        are_many = self._n_pending >= max(_MIN_PENDING, len(self._texts))
        if are_many or self._pending_bytes >= max(_MIN_PENDING_BYTES, self._texts.nbytes):
            self._merge()

    def finish(self, min_count: int, limit: int) -> CategoryColumn:
        """Number the categories; those seen fewer than ``min_count`` times are left to "other".

        Raises
        ------
        BudgetError
            There are more than ``limit`` distinct values, or more than fit in the memory.
        InputError
            They are numbers with fractions.
        """
        self._merge()
        if len(self._texts) > limit:
            raise self._too_many(f"over category_limit={limit:,}", Argument("category_limit", len(self._texts)))
        self._check_no_fractions()
        kept = np.flatnonzero(self._counts >= min_count)
        texts, counts = self._texts.take(arrow().array(kept)), self._counts[kept]
        # By text, in the order of its bytes, which is that of its characters; then by count, which keeps that order.
        by_text = arrow("pyarrow.compute").array_sort_indices(texts).to_numpy()
        order = by_text[np.argsort(-counts[by_text], kind="stable")]
        names = texts.take(arrow().array(order)).to_pylist()
        return CategoryColumn(name=self.name, names=tuple(names), counts=tuple(counts[order].tolist()))

    def _merge(self) -> None:
        found = [texts.cast(self._texts.type) for texts, _ in self._pending]
        texts = arrow().concat_arrays([self._texts, *found]).dictionary_encode()
        counts = np.concatenate([self._counts, *(counts for _, counts in self._pending)])
        # Sums in float64 are exact up to 2**53.
        summed = np.bincount(texts.indices.to_numpy(), weights=counts, minlength=len(texts.dictionary))
        self._texts, self._counts = texts.dictionary, summed.astype(np.int64)
        self._pending, self._n_pending, self._pending_bytes = [], 0, 0
        if self.memory is None:
            return
        self.memory.taken[self.name] = category_bytes(self._texts.nbytes, len(self._texts))
        n_bytes, limit = self.memory.n_bytes, self.memory.limit
        if n_bytes > limit:
            others = f" with those of {len(self.memory.taken) - 1} other columns" if len(self.memory.taken) > 1 else ""
            enough = Argument("memory", f"{math.ceil(n_bytes * CATEGORY_SHARE / 10**6)}MB")
            raise self._too_many(f"which take {format_bytes(n_bytes)}{others}, of {format_bytes(limit)}", enough)

    def _too_many(self, why: str, raised: Argument) -> BudgetError:
        hashed = Argument("hash", {self.name: _SUGGESTED_HASH_SIZE})
        return BudgetError(
            f"column {self.name!r} has {len(self._texts):,} distinct values so far, {why}",
            where=self.where,
            why="The names of categories are kept with the dataset, those of a hashed column are not",
            fix=Fix(hashed, ", or ", raised, " or more"),
        )

    def _check_no_fractions(self) -> None:
        numbers = parsed(self._texts, np.dtype(np.float64)) if len(self._texts) else None
        if numbers is None:
            return
        values = numbers.to_numpy(zero_copy_only=False)
        broken = np.flatnonzero(np.isfinite(values) & (values % 1 != 0))
        if len(broken):
            raise _has_fractions(self.name, self._texts[int(broken[0])].as_py(), self.where)


class CategoryCodes:
    """The codes of a column's categories; made once, it serves all runs of the column."""

    def __init__(self, category: CategoryColumn, where: str | None = None) -> None:
        self.category = category
        self.where = where
        self._codes: dict[str | None, int] = {name: code for code, name in enumerate(category.names, _FIRST)}
        self._codes[None] = _MISSING
        self._names = _looked_up(category.names)

    def of(self, column: Any) -> npt.NDArray[np.int32]:
        """Return the codes of a run of the column, of shape (n_rows,)."""
        _check_type(column, self.category.name, self.where)
        values, places = _encoded(column)
        texts = _texts_of(values, self.category.name, self.where)
        codes = self._known(texts)
        unknown = np.flatnonzero(codes == _UNKNOWN)
        if len(unknown):
            # Only what is not among the names may be blank.
            rest = _without_blanks(texts if len(unknown) == len(texts) else texts.take(arrow().array(unknown)))
            codes[unknown] = [self._code(text) for text in _listed(rest)]
        coded: npt.NDArray[np.int32] = codes.take(places)
        return coded

    def _known(self, texts: Any) -> npt.NDArray[np.int32]:
        """Return the codes of the texts that are among the names, and of missing ones."""
        if self.category.hash_size is not None:
            return np.full(len(texts), _UNKNOWN, np.int32)
        names = self._names
        if names is None or len(names) > _NAMES_PER_TEXT * len(texts):
            return np.fromiter(map(self._codes.get, _listed(texts), repeat(_UNKNOWN)), np.int32, len(texts))
        # A text takes a third of the time here, but all names are looked at again.
        found = arrow("pyarrow.compute").index_in(texts.cast(names.type), value_set=names)
        codes: npt.NDArray[np.int32] = found.fill_null(_UNKNOWN - _FIRST).to_numpy() + np.int32(_FIRST)
        if texts.null_count:
            codes[texts.is_null().to_numpy(zero_copy_only=False)] = _MISSING
        return codes

    def _code(self, text: str | None) -> int:
        n_codes = self.category.hash_size
        if n_codes is None:
            return self._codes.get(text, _OTHER)
        return _MISSING if text is None else hash_code(text, n_codes)


def _looked_up(names: tuple[str, ...]) -> Any | None:
    """Return names as Arrow looks them up; None where they are many, or of another's folder and no text."""
    try:
        return arrow().array(names, arrow().string()) if len(names) <= _MOST_LOOKED_UP else None
    except UnicodeEncodeError:
        return None


def count_missing(column: Any, name: str) -> int:
    """Count the missing values of a run of a column whose categories are not surveyed."""
    texts, places = _distinct(column, name, None)
    if not texts.null_count:
        return 0
    return int(np.count_nonzero(texts.is_null().to_numpy(zero_copy_only=False)[places]))


def hash_code(text: str, n_codes: int) -> int:
    """Return the code of a text in a hashed column.

    Examples
    --------
    >>> hash_code("68fd1e64", 100_000)
    56189
    """
    return _FIRST + int.from_bytes(hashlib.blake2b(text.encode()).digest()[:8], "little") % n_codes


def _distinct(column: Any, name: str, where: str | None) -> tuple[Any, npt.NDArray[np.int32]]:
    """Return the distinct texts of a column, null where they are missing or blank, and the place of each row's.

    Floats may have two of the same text.
    """
    _check_type(column, name, where)
    values, places = _encoded(column)
    return _without_blanks(_texts_of(values, name, where)), places


def _without_blanks(texts: Any) -> Any:
    compute = arrow("pyarrow.compute")
    is_blank = compute.equal(compute.utf8_trim_whitespace(texts), "")
    return compute.if_else(is_blank, arrow().scalar(None, texts.type), texts) if is_blank.true_count else texts


def _listed(texts: Any) -> list[str | None]:
    # Arrow's own lists are made a scalar at a time.
    listed: list[str | None] = texts.to_numpy(zero_copy_only=False).tolist()
    return listed


def _encoded(column: Any) -> tuple[Any, npt.NDArray[np.int32]]:
    """Encode a column as a dictionary, in which a null has its place, too."""
    types = arrow("pyarrow.types")
    places: npt.NDArray[np.int32]
    if types.is_dictionary(column.type) and column.type.value_type == arrow().string():
        # As a file is parsed. Of its texts some may not be there, where rows were left out.
        values, indices = column.dictionary, column.indices
        if indices.null_count:
            values = arrow().concat_arrays([values, arrow().nulls(1, values.type)])
            indices = indices.fill_null(len(values) - 1)
        places = indices.to_numpy().astype(np.int32, copy=False)
        return values, places
    plain = without_dictionary(column)
    encoded = arrow("pyarrow.compute").dictionary_encode(plain, null_encoding="encode")
    places = encoded.indices.to_numpy()
    return encoded.dictionary, places


def _check_type(values: Any, name: str, where: str | None) -> None:
    """Refuse what is no category, before Arrow is asked for its distinct values, which not all types have."""
    types = arrow("pyarrow.types")
    kind = values.type.value_type if types.is_dictionary(values.type) else values.type
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
    if not (is_number or is_text(values) or types.is_date32(kind) or types.is_null(kind)):
        raise InputError(
            f"column {name!r} holds {kind}, which cannot be a category",
            where=where,
            why="Categories are text, whole numbers or booleans",
            fix="store it as text",
        )


def _texts_of(values: Any, name: str, where: str | None) -> Any:
    """Write values as a CSV file shows them."""
    types, kind = arrow("pyarrow.types"), arrow().large_string()
    if types.is_floating(values.type) or types.is_decimal(values.type):
        return arrow().array([_whole(value, name, where) for value in values.to_pylist()], kind)
    return values if is_text(values) else values.cast(kind)


def _whole(value: Any, name: str, where: str | None) -> str | None:
    """Write a number without a fraction as an integer; NaN is missing."""
    if value is None or value != value:
        return None
    if not math.isfinite(value) or value % 1 != 0:
        raise _has_fractions(name, str(value), where)
    return str(int(value))


def _has_fractions(name: str, value: str, where: str | None) -> InputError:
    return InputError(
        f"column {name!r} holds {value}, a number with a fraction, which cannot be a category",
        where=where,
        why="Categories are text, whole numbers or booleans",
        fix="leave it to the features, which are numbers; or round it, or name its ranges, in the source",
    )
