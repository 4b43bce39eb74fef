"""WebDataset: samples in tar files, each several members of one key; nothing is extracted."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.base import (
    ReadingMemory,
    Rows,
    Source,
    SourceOptions,
    as_field,
    check_range,
    field_of,
)
from streamtrain.ingestion.sources.images.class_folders import image_fields
from streamtrain.ingestion.sources.images.image_check import DEFAULT_MEMORY, ImageCheck
from streamtrain.ingestion.sources.images.tar_members import TarMember, name_before, tar_members
from streamtrain.ingestion.sources.input_files import provenance_of, read_range, refuse_options
from streamtrain.store.layout import Field
from streamtrain.store.media.encoded import byte_lengths, objects_of
from streamtrain.store.schema.columns import TARGET
from streamtrain.system.units import counted

_IMAGE_SUFFIXES: Final = ("jpg", "jpeg", "png", "webp")
_DEFAULT: Final = {"image": "|".join(_IMAGE_SUFFIXES), TARGET: "cls"}
_NOT_OF_TAR: Final = ("label_column", "columns", "dtype", "shape")
_MOST_LABEL_BYTES: Final = 1 << 20
_SORTED: Final = "pack the files sorted by name (sort=name of GNU tar)"

Places = Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]]
"""Of each field, where the member of every sample begins, and its bytes."""


class WebDataset(Source):
    """The samples of one tar file; any range of them can be read."""

    seekable = True
    n_samples: int

    def __init__(self, path: Path, options: SourceOptions) -> None:
        refuse_options(path, "tar", options, *_NOT_OF_TAR, *options.table.given())
        self.path, self.check = path, ImageCheck(options.images, options.memory or DEFAULT_MEMORY)
        self._wanted = dict(options.fields or _DEFAULT)
        self._suffixes = {name: _suffixes(where) for name, where in self._wanted.items()}
        self._kinds = {name: {each.rpartition(".")[2] for each in of} for name, of in self._suffixes.items()}
        self._places, self._numbers = self._walk(may_lack=options.fields is None)
        self.n_samples = len(self._numbers)
        if not self.n_samples:
            raise InputError("no samples in the tar file", where=str(path), fix="pack files into it")
        self._labels: dict[str, npt.NDArray[Any]] = {}
        self.lengths = {}
        self.fields = tuple(field for name in self._places for field in self._fields_of(name, options))
        held = sum(offset.nbytes + n_bytes.nbytes for offset, n_bytes in self._places.values())
        held += self._numbers.nbytes + sum(labels.nbytes for labels in self._labels.values())
        self.reading = ReadingMemory(lasting_bytes=held + self.check.room.n_bytes)
        self.provenance = provenance_of(path, "webdataset", samples=self.n_samples, fields=self._wanted)
        what = ", ".join(f"{name} from {self._wanted[name]}" for name in self._places)
        self.told = (f"{path}: {counted(self.n_samples, 'sample')}, {what}",)

    def _walk(self, *, may_lack: bool) -> tuple[Places, npt.NDArray[np.int64]]:
        """Find the members of every sample; ``may_lack`` leaves out a default field that no sample has."""
        with closing(tar_members(self.path)) as members:
            samples = ((key, list(of_sample)) for key, of_sample in groupby(members, key=_key))
            return self._places_of(samples, may_lack=may_lack)

    def _places_of(
        self, samples: Iterable[tuple[str, list[TarMember]]], *, may_lack: bool
    ) -> tuple[Places, npt.NDArray[np.int64]]:
        found: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in self._wanted}
        numbers: list[int] = []
        keys: list[bytes] = []
        for key, of_sample in samples:
            numbers.append(of_sample[0].number)
            keys.append(_digest(key))
            for name, suffixes in self._suffixes.items():
                own = [member for member in of_sample if _suffix(member) in suffixes]
                if len(own) > 1:
                    raise self._error(key, f"two members for field {name}: {own[0].name!r} and {own[1].name!r}", own[1])
                if own:
                    found[name][0].append(own[0].offset)
                    found[name][1].append(own[0].n_bytes)
                    continue
                if not may_lack or found[name][0] or name == "image":
                    raise self._error(key, f"no member for field {name} ({self._wanted[name]})", of_sample[0])
            for name, (offsets, _) in found.items():
                if offsets and len(offsets) < len(numbers):
                    raise self._error(key, f"the samples before it have no member for field {name}", of_sample[0])
        self._check_keys(keys)
        places = {
            name: (np.array(offsets, np.int64), np.array(n_bytes, np.uint32))
            for name, (offsets, n_bytes) in found.items()
            if offsets
        }
        return places, np.array(numbers, np.int64)

    def _check_keys(self, digests: list[bytes]) -> None:
        """Refuse a key that comes again, or in another case: its members are not side by side."""
        found = np.frombuffer(b"".join(digests), np.uint64)
        values, counts = np.unique(found, return_counts=True)
        again = values[counts > 1]
        if not len(again):
            return
        seen: dict[int, tuple[str, int]] = {}
        with closing(tar_members(self.path)) as members:
            for key, of_sample in groupby(members, key=_key):
                digest, first = int(np.frombuffer(_digest(key), np.uint64)[0]), next(of_sample)
                if digest in seen:
                    before, number = seen[digest]
                    what = f"comes again in member {first.number}, after member {number}"
                    if before != key:
                        what = f"and {before!r} (member {number}) differ in case only"
                    raise self._error(key, what, first)
                if digest in again:
                    seen[digest] = (key, first.number)

    def _error(self, key: str, what: str, member: TarMember) -> InputError:
        told = f"sample {key!r:.200}: {what}"
        return InputError(told, where=f"{self.path} member {member.number}", fix=Fix(_SORTED, ", or ", _FIELDS))

    def _fields_of(self, name: str, options: SourceOptions) -> tuple[Field, ...]:
        if self._kinds[name] <= {*_IMAGE_SUFFIXES}:
            n_bytes = self._places[name][1]
            fields = image_fields(options.images, int(n_bytes.mean()), name)
            if options.images.size is None:
                self.lengths = {**self.lengths, name: self._lengths(name)}
            return fields
        if self._kinds[name] == {"npy"}:
            first = self._array(name, 0)
            return (field_of(name, first.dtype, first.shape, where=self.where(0)),)
        labels = [self._label(name, row) for row in range(self.n_samples)]
        if any(isinstance(label, str) for label in labels):
            if name != TARGET or not all(isinstance(label, str) for label in labels):
                what = f"field {name} is text in some samples, and numbers in others or no label"
                raise InputError(what, where=str(self.path), fix="write all labels as text, or all as numbers")
            self.classes = tuple(sorted({str(label) for label in labels}))
            places = {text: number for number, text in enumerate(self.classes)}
            labels = [places[str(label)] for label in labels]
        values = np.array(labels)
        field = field_of(name, values.dtype, (), where=str(self.path))
        self._labels[name] = as_field(values, field, self.where)
        return (field,)

    def _lengths(self, name: str) -> npt.NDArray[np.uint32]:
        if self.check.options.max_side is None:
            return self._places[name][1]
        each = (self.check.length(self._bytes(name, row), self.where(row)) for row in range(self.n_samples))
        return np.fromiter(each, np.uint32, self.n_samples)

    def where(self, row: int) -> str:
        offsets, _ = next(iter(self._places.values()))
        name = name_before(self.path, int(offsets[row]))
        return f"{self.path} member {self._numbers[row]}" + (f", {name!r}" if name else "")

    def read(self, start: int, stop: int) -> Rows:
        check_range(start, stop, self.n_samples)
        rows: dict[str, npt.NDArray[Any]] = {}
        for name in self._places:
            for field_name, values in self._read(name, range(start, stop)):
                rows[field_name] = values
        return rows

    def _read(self, name: str, rows: range) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        field = next(field for field in self.fields if field.name == name)
        if name in self._labels:
            yield name, self._labels[name][rows.start : rows.stop]
        elif field.encoded is not None:
            images = objects_of([self.check.stored(self._bytes(name, row), self.where(row)) for row in rows])
            yield name, images
            yield field.encoded.lengths, byte_lengths(images)
        else:
            read: Callable[[str, int], npt.NDArray[Any]] = (
                self._array
                if self._kinds[name] == {"npy"}
                else lambda of, row: self.check.pixels(self._bytes(of, row), self.where(row))
            )
            out = field.empty(len(rows))
            for place, row in enumerate(rows):
                values = read(name, row)
                if (values.dtype, values.shape) != (field.dtype, field.shape):
                    what = f"field {name} is {values.dtype} {values.shape} here, and {field.dtype} {field.shape} before"
                    raise InputError(what, where=self.where(row), fix="bring all to one dtype and shape")
                out[place] = values
            yield name, out

    def _bytes(self, name: str, row: int) -> bytes:
        offsets, n_bytes = self._places[name]
        data = np.empty(int(n_bytes[row]), np.uint8)
        read_range(self.path, int(offsets[row]), data)
        return data.tobytes()

    def _array(self, name: str, row: int) -> npt.NDArray[Any]:
        try:
            found: npt.NDArray[Any] = np.load(io.BytesIO(self._bytes(name, row)), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            fix = "save numbers: numpy.save(file, x)"
            raise InputError(f"the .npy member does not read: {error}", where=self.where(row), fix=fix) from error
        return found

    def _label(self, name: str, row: int) -> int | float | str:
        """Read a label: the text of a member, or what its JSON has under a key."""
        wanted, where = self._wanted[name], self.where(row)
        if self._places[name][1][row] > _MOST_LABEL_BYTES:
            raise InputError(f"a label of {self._places[name][1][row]:,} bytes", where=where, fix=_FIELDS_FIX)
        text = self._bytes(name, row).decode("utf-8", "replace").strip()
        if ":" not in wanted:
            return _number(text)
        key = wanted.partition(":")[2]
        try:
            value = json.loads(text)[key]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"the JSON of field {name} has no {key!r}" if isinstance(error, KeyError) else "it is not JSON"
            raise InputError(what, where=where, fix=_FIELDS_FIX) from error
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InputError(f"{key!r} is {value!r:.80}, and no label", where=where, fix=_FIELDS_FIX)
        return value


_FIELDS: Final = Argument("fields", {"image": "jpg", "y": "cls"})
_FIELDS_FIX: Final = Fix(_FIELDS, " names the members to read, by their suffixes; y=json:KEY a value in JSON")


def _number(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 19 else text


def _suffixes(where: str) -> frozenset[str]:
    return frozenset(word.strip().lower() for word in where.partition(":")[0].split("|"))


def _key(member: TarMember) -> str:
    folder, slash, base = member.name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _suffix(member: TarMember) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.casefold().encode("utf-8", "surrogateescape"), digest_size=8).digest()


def probe(path: Path, options: SourceOptions) -> WebDataset:
    """Open a tar file."""
    return WebDataset(path, options)
