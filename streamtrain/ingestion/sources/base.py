"""The base class of sources, and the rules for dtypes and labels.

A source gives fields, a row count, and bounded runs of rows in order. It is opened by ``probe(path, options)``, which
reads headers only. A seekable source reads any range of rows; its shards are then read in parallel. A source knows
where each row came from, so every later error can name the file and the line.

Every format passes its arrays through `field_of` (once, when it opens) and `as_field` (on every run of rows), so the
rules for dtypes and class labels stand here and nowhere else.
"""

from __future__ import annotations

import difflib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from dataclasses import field as dataclass_field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.store.layout import Check, Field
from streamtrain.store.media.pillow import Mode
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.schema.facts import SchemaFacts

Rows = Mapping[str, npt.NDArray[Any]]
"""A run of consecutive rows: field name -> array of shape (n_rows, *field.shape), the same n_rows in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """How to read a table, and what its columns become."""

    # Delimited text: its header, columns and marks.
    header: str = "first"
    names: tuple[str, ...] | None = None
    delimiter: str = "auto"
    encoding: str = "utf-8"
    na_values: tuple[str, ...] | None = None
    # Of dates and times that name no zone.
    timezone: str = "UTC"
    # Columns that become codes of field ``cat``; those of ``hash`` have that many codes and no names.
    categorical: tuple[str, ...] = ()
    category_min_count: int = 1
    category_limit: int = 1_000_000
    hash: Mapping[str, int] = dataclass_field(default_factory=dict)
    # Columns of dates, which are appended to field ``x``: in "days" or "seconds".
    dates: Mapping[str, str] = dataclass_field(default_factory=dict)
    # Missing numbers: "error", "fill=V", "fill=mean" or "drop"; and NaN and infinity as values: "error" or "keep".
    na: str = "error"
    na_mask: bool = False
    nan: str = "error"
    drop_unlabelled: bool = False
    # Columns that are left out, and those that become fields ``weight`` and ``id``.
    exclude: tuple[str, ...] = ()
    weight_column: str | None = None
    id_column: str | None = None
    # Whether the columns are to become what fits them.
    auto: bool = False

    def given(self) -> dict[str, Any]:
        """Return the options that are not the default."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) != getattr(PLAIN_TABLE, each.name)
        }


PLAIN_TABLE: Final = TableOptions()
"""The options of a table when none are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """How to check images, and what is stored of them."""

    check: Check = "full"  # "full" decodes each, "header" reads its size alone
    max_pixels: int = 64_000_000
    mode: Mode | None = None  # what images of other modes become when they are decoded
    max_side: int | None = None  # images whose short side is longer are encoded anew
    # "decoded" stores pixels: the short side at ``size``, and the square in its middle.
    store: str = "encoded"
    size: int | None = None

    def given(self) -> dict[str, Any]:
        """Return the options that are not the default."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) != getattr(PLAIN_IMAGES, each.name)
        }


PLAIN_IMAGES: Final = ImageOptions()
"""The options of images when none are given."""


RowFilter = Callable[[int, int], npt.NDArray[np.bool_]]
"""Says for each of the rows [start, stop) whether it is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How to read raw files; each format uses the options that concern it and refuses the others."""

    # Tables: the column that becomes field ``y``, and those that become field ``x``, by default all the others.
    label_column: str | tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    # A table of labels of images: the column of the files' names.
    label_key: str | None = None
    # Raw binary: the element type and the shape of one sample.
    dtype: np.dtype[np.generic] | None = None
    shape: tuple[int, ...] | None = None
    # Archives, dicts and iterables of dicts: each field to make, and its array's name; others are left out.
    fields: Mapping[str, str] | None = None
    # Tables: known names of classes, which are labels even if they look like missing values (NA, null).
    classes: tuple[str, ...] | None = None
    # HDF5 and Zarr: "cf" applies the attributes by which NetCDF packs numbers, "raw" takes what is stored.
    decode: str | None = None
    # HDF5 and Zarr: the axis of the samples.
    sample_axis: int | None = None
    # The budget of the ingest, in bytes, and its most threads; None where none is given.
    memory: int | None = None
    n_workers: int | None = None
    # A folder for rows that have to go over disk; None where there is none.
    scratch: Path | None = None
    # Tables: which of the rows [start, stop), left out ones not counted, means and categories are learned from.
    learn_from: RowFilter | None = None
    # Tables: what is said of them beyond the label column and the features.
    table: TableOptions = PLAIN_TABLE
    # Images: how they are checked and stored.
    images: ImageOptions = PLAIN_IMAGES

    @property
    def labels(self) -> tuple[str, ...]:
        """The label columns."""
        given = self.label_column
        return () if given is None else (given,) if isinstance(given, str) else given


NO_OPTIONS: Final = SourceOptions()
"""The options when none are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingMemory:
    """Bytes that a source holds besides the rows it gives."""

    lasting_bytes: int = 0  # from its opening on: the names and figures of its columns
    working_bytes: int = 0  # while it reads: a file's header, runs of text, columns decoded
    group_bytes: int = 0  # rows that are stored together: asked for at once, they are decoded once only
    is_one_group: bool = False  # asked for at once, they are all, and what reading takes is free before they are given

    def beside(self, other: ReadingMemory) -> ReadingMemory:
        """Add what another source holds that is read at the same time."""
        return ReadingMemory(
            lasting_bytes=self.lasting_bytes + other.lasting_bytes,
            working_bytes=self.working_bytes + other.working_bytes,
            group_bytes=self.group_bytes + other.group_bytes,
        )

    def then(self, other: ReadingMemory) -> ReadingMemory:
        """Add what another source holds that is read afterwards."""
        return ReadingMemory(
            lasting_bytes=self.lasting_bytes + other.lasting_bytes,
            working_bytes=max(self.working_bytes, other.working_bytes),
            group_bytes=max(self.group_bytes, other.group_bytes),
        )


MOST_PIECE_BYTES: Final = 1 << 20
"""Bytes of rows that a table gives at once, though it may have read more."""

NO_READING: Final = ReadingMemory()


class Source(ABC):
    """Raw data that can be read in order, in bounded memory, any number of times unless it says otherwise.

    A plug-in's source is a subclass with `where` and these attributes, set by ``__init__``, on the class or by
    properties. It has `read`, `iter_blocks` or both.

    Attributes
    ----------
    fields : tuple of Field
        The fields, with native-endian dtypes and the shape of one sample.
    n_samples : int or None
        The number of rows; None where only the end tells.
    provenance : tuple of dict
        What was read, for the manifest: ``format``, and for files ``path`` as given, ``bytes`` and ``mtime_ns``.
    seekable : bool
        Whether `read` gives any range of rows, to several threads at once; ``n_samples`` is then a number, and shards
        are read in parallel.
    classes : tuple of str or None
        The sorted names of string labels mapped to 0, 1, ... in field ``y``; None where labels are numbers.
    schema_facts : SchemaFacts or None
        What the manifest keeps of a table beyond plain columns; None where there is nothing.
    chunk_bytes : int
        The bytes that `iter_blocks` makes at once, however small its ``max_bytes``; 0 where it keeps to that.
    reading : ReadingMemory
        What it holds besides the rows it gives; by default nothing.
    told : tuple of str
        Sentences to print before it is read.
    lengths : dict of str to ndarray
        Of each encoded field, the bytes of every sample: its blocks are planned before a sample is read.

    Examples
    --------
    >>> class Squares(Source):
    ...     fields = (Field(name="x", dtype=np.dtype("int64"), shape=()),)
    ...     n_samples, provenance, seekable = 5, ({"format": "squares"},), True
    ...
    ...     def read(self, start, stop):
    ...         return {"x": np.arange(start, stop) ** 2}
    ...
    ...     def where(self, row):
    ...         return f"square {row}"
    >>> [rows["x"].tolist() for rows in Squares().iter_blocks(max_bytes=24)]
    [[0, 1, 4], [9, 16]]
    """

    fields: tuple[Field, ...]
    n_samples: int | None
    provenance: tuple[dict[str, Any], ...]
    seekable: bool
    classes: tuple[str, ...] | None = None
    schema_facts: SchemaFacts | None = None
    chunk_bytes: int = 0
    reading: ReadingMemory = NO_READING
    told: tuple[str, ...] = ()
    lengths: Mapping[str, npt.NDArray[np.uint32]] = MappingProxyType({})

    @abstractmethod
    def where(self, row: int) -> str:
        """Where a row came from: ``file:line``, ``file row N`` or the like."""

    def read(self, start: int, stop: int) -> Rows:
        """Read rows [start, stop); memory is that of the rows alone.

        Raises
        ------
        NotImplementedError
            The source is not seekable.
        """
        raise NotImplementedError(f"{type(self).__name__} reads in order only")

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield consecutive runs of rows, each of at most ``max_bytes`` (or one row, where a row is larger).

        By default runs that `read` gives.
        """
        assert self.n_samples is not None, "or iter_blocks is the source's own"
        n_rows = rows_within(max_bytes, self.fields)
        for start in range(0, self.n_samples, n_rows):
            yield self.read(start, min(start + n_rows, self.n_samples))

    @property
    def has_ranges(self) -> bool:
        """Whether `iter_range` gives any range of rows; what is stored together with its ends is read for it, too."""
        return self.seekable

    def iter_range(self, start: int, stop: int, max_bytes: int) -> Iterator[Rows]:
        """Yield rows [start, stop) in order, as `iter_blocks` does with all; by default runs that `read` gives."""
        n_rows = rows_within(max_bytes, self.fields)
        for first in range(start, stop, n_rows):
            yield self.read(first, min(first + n_rows, stop))


def check_source(source: object, of: str) -> Source:
    """Refuse a plug-in's source that is not a `Source`, or lacks what one has."""
    lacks = _lacks(source) if isinstance(source, Source) else ["the base class Source"]
    if isinstance(source, Source) and not lacks:
        return source
    raise UsageError(
        f"{type(source).__name__} lacks {', '.join(lacks)}",
        where=of,
        why="A source subclasses streamtrain.ingestion.sources.base.Source and sets seekable: True where read() gives "
        "any of its n_samples rows, else False. Earlier versions looked at its methods alone",
        fix="correct the plug-in, or install a newer version of it",
    )


def _lacks(source: Source) -> list[str]:
    """List what a source does not have; without `iter_blocks` of its own, or where it is seekable, it needs `read`."""
    lacks = [name for name in ("fields", "n_samples", "provenance", "seekable") if not hasattr(source, name)]
    if not lacks and (source.seekable or type(source).iter_blocks is Source.iter_blocks):
        lacks += ["n_samples"] * (source.n_samples is None) + ["read"] * (type(source).read is Source.read)
    return lacks


_GONE: Final = {
    "SeekableSource": "subclass Source, and set seekable = True",
    "ChunkedSource": "subclass Source, and set chunk_bytes",
}


def __getattr__(name: str) -> object:
    if name in _GONE:
        raise ImportError(f"{__name__}.{name} is gone: {_GONE[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Kinds = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""The dtype and the sample shape of each field."""

Probe = Callable[[Path, SourceOptions], Source]
"""Opens one file of a format: reads its header, checks it against the file's size, raises InputError."""


SUPPORTED: Final = "bool, int8-int64, uint8-uint64, float16, float32, float64"

_INT64_MAX: Final = np.iinfo(np.int64).max
_TEXT: Final = (
    "it holds text",
    "store numbers; text labels can come from a label column of a CSV or Parquet file, or, in Python, from an array: "
    "labels=numpy.load(...)",
)
_CONVERSIONS: Final = {
    "O": ("its elements are Python objects, which only code stored in the file could rebuild", "store a numeric dtype"),
    "V": ("it is structured", "store each of its members as an array of its own"),
    "c": ("it is complex", "store the real and the imaginary part as two features"),
    "M": ("it holds dates", "store numbers: x.astype('datetime64[s]').astype('int64')"),
    "m": ("it holds durations", "store numbers: x.astype('timedelta64[s]').astype('int64')"),
    "U": _TEXT,
    "S": _TEXT,
}


def field_of(name: str, dtype: np.dtype[Any], shape: Sequence[int], *, where: str) -> Field:
    """Describe rows as a field: native byte order, and int64 for class labels."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        why, fix = _CONVERSIONS.get(dtype.kind, ("it is wider than 64 bits", "store it as float64"))
        raise InputError(f"dtype {dtype} is not supported: {why}", where=where, why=f"Supported: {SUPPORTED}", fix=fix)
    if 0 in shape:
        raise InputError(f"a sample of shape {tuple(shape)} holds no elements", where=where, fix="drop the empty axis")
    is_label = name == TARGET and not shape and dtype.kind in "biu"
    _check_attribute(name, where)
    try:
        return Field(name=name, dtype=np.dtype(np.int64) if is_label else dtype.newbyteorder("="), shape=tuple(shape))
    except UsageError as error:
        fix = Fix("rename it where it comes from, or ", Argument("fields", {"x": name}))
        raise InputError(error.what, where=where, why=error.why, fix=fix) from None


def _check_attribute(name: str, where: str) -> None:
    """Refuse a name that Python takes for another one where a batch is asked for it."""
    plain = unicodedata.normalize("NFKC", name)
    if not name.isidentifier() or plain == name:
        return
    why = f"Python takes batch.{name} for batch.{plain}, another name"
    fix = Fix(f"rename it, {plain!r} say: ", Argument("fields", {plain: name}), ", and the other fields too")
    raise InputError(f"field name {name!r} is not usable", where=where, why=why, fix=fix)


def choose_fields(known: Collection[str], options: SourceOptions, *, where: str) -> Mapping[str, str]:
    """Map each field to the name it is made of: its own, or what the options say."""
    if options.fields is None:
        return {name: name for name in known}
    for name in options.fields.values():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else "name one of these"
            # A number is a place in the samples of torch's data, which nothing else has.
            kind = UsageError if name.isdecimal() else InputError
            raise kind(f"fields names {name!r}", where=where, why=f"It has {', '.join(known)}", fix=fix)
    return options.fields


def kinds_of(fields: Iterable[Field]) -> Kinds:
    """Map the name of each field to its dtype and sample shape."""
    return {field.name: field.sample_kind for field in fields}


def describe_kinds(kinds: Kinds) -> str:
    """Write names, dtypes and sample shapes for people, in order of the names."""
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in sorted(kinds.items()))


def describe_field(field: Field) -> str:
    """Write the dtype and sample shape of a field for people."""
    return "images as they are" if field.encoded else f"{field.dtype} {field.shape}"


def as_field(values: npt.NDArray[Any], field: Field, place: Callable[[int], str]) -> npt.NDArray[Any]:
    """Bring rows to a field's dtype, in C order; check labels and bools; copy only where bytes change."""
    values = unmasked(values, place)
    if values.dtype.kind == "b":
        _check_bools(values, place)
    if field.name == TARGET and not field.shape and field.dtype == np.int64 and len(values):
        _check_labels(values, place)
    return np.ascontiguousarray(values, dtype=field.dtype)


def unmasked(values: npt.NDArray[Any], place: Callable[[int], str]) -> npt.NDArray[Any]:
    """Return the values of an array, masked or plain; refuse a masked value by its row."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    mask = np.ma.getmaskarray(values)
    if mask.any():
        rows = np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1) if mask.ndim else mask)
        others = f"; {len(rows) - 1:,} more of these rows have one too" if len(rows) > 1 else ""
        raise InputError(
            f"a value is masked{others}",
            where=place(int(rows[0])),
            why="A masked value is not data, and nothing is imputed",
            fix="fill it in, x.filled(0) say, or leave such rows out of every field",
        )
    data: npt.NDArray[Any] = np.asarray(values.data)
    return data


def _check_bools(values: npt.NDArray[Any], place: Callable[[int], str]) -> None:
    bad = np.asarray(values).view(np.uint8) > 1
    if bad.any():
        row = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
        raise InputError("a bool is stored as a byte other than 0 and 1", where=place(row), fix="declare it as uint8")


def _check_labels(values: npt.NDArray[Any], place: Callable[[int], str]) -> None:
    row = int(values.argmax())
    if values[row] > _INT64_MAX:
        raise InputError(
            f"label {values[row]} is beyond {_INT64_MAX}",
            where=place(row),
            why="Class labels are stored as int64",
            fix="number the classes from 0",
        )


def rows_within(max_bytes: int, fields: Sequence[Field]) -> int:
    """Count the rows over these fields that fit in so many bytes; at least one."""
    return max(1, max_bytes // sum(field.row_bytes for field in fields))


def n_rows_of(rows: Rows) -> int:
    """Count the rows of a run."""
    return len(next(iter(rows.values())))


def pieces(rows: Rows, n_rows: int) -> Iterator[Rows]:
    """Cut a run of rows into views of at most ``n_rows`` rows."""
    for start in range(0, n_rows_of(rows), n_rows):
        yield {name: values[start : start + n_rows] for name, values in rows.items()}


def check_range(start: int, stop: int, n_samples: int) -> None:
    """Refuse a range of rows that a source does not have."""
    if not 0 <= start <= stop <= n_samples:
        raise UsageError(f"rows [{start}, {stop}) are not among the source's {n_samples}")
