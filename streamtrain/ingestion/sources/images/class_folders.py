"""Folders of classes of images, and folders of images without classes."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, StreamtrainError
from streamtrain.ingestion.sources.base import (
    ImageOptions,
    ReadingMemory,
    Rows,
    Source,
    SourceOptions,
    check_range,
)
from streamtrain.ingestion.sources.images.image_check import DEFAULT_MEMORY, ImageCheck
from streamtrain.ingestion.sources.indexed.stored import is_dataset_path
from streamtrain.ingestion.sources.input_files import first_bytes, look_up, read_range, refuse_options
from streamtrain.store.codec import MOST_ENCODABLE_BYTES
from streamtrain.store.layout import Encoded, Field
from streamtrain.store.media.encoded import LENGTHS_SUFFIX, byte_lengths, lengths_field, objects_of
from streamtrain.store.media.pillow import SIGNATURE_BYTES, image_format
from streamtrain.store.schema.columns import TARGET
from streamtrain.system.files import shown_names_in
from streamtrain.system.refusals import read_failure
from streamtrain.system.units import counted

T = TypeVar("T")

IMAGE: Final = "image"
_N_TRIED: Final = 20
"""Files of a folder that are looked at to learn whether it holds images."""
_MOST_TOLD: Final = 20
_LOOKED_AT_BYTES: Final = 10**9
"""Of the images after one that is refused: they are looked at, so that one message tells of all that are unfit."""
_MOVE_IT: Final = "move it out of the folder"
_NOT_OF_IMAGES: Final = ("label_column", "columns", "dtype", "shape", "fields")


class FileList:
    """The files of some folders, sorted: the names in one piece of memory, and the bytes of each file."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        names: list[bytes] = []
        ends: list[npt.NDArray[np.int64]] = []
        sizes: list[npt.NDArray[np.uint32]] = []
        digest, n_before = hashlib.blake2b(digest_size=16), 0
        unfit: list[InputError] = []
        for folder in folders:
            found = _files_in(folder, unfit)
            for name, size, changed in found:
                digest.update(f"{folder.name}/{name}\0{size}\0{changed}\0".encode("utf-8", "surrogateescape"))
            encoded = [name.encode("utf-8", "surrogateescape") for name, _, _ in found]
            names += encoded
            ends.append(n_before + np.cumsum([len(name) for name in encoded], dtype=np.int64))
            n_before += sum(map(len, encoded))
            sizes.append(np.array([size for _, size, _ in found], np.uint32))
        if unfit:
            raise first_of(unfit)
        self.starts = np.cumsum([0, *map(len, sizes)])
        self.sizes = np.concatenate(sizes)
        self.digest = digest.hexdigest()
        self._names, self._ends = b"".join(names), np.concatenate([[0], *ends])

    @property
    def n_bytes(self) -> int:
        """The memory that the list takes."""
        return len(self._names) + self._ends.nbytes + self.sizes.nbytes

    def __len__(self) -> int:
        return len(self.sizes)

    def folder_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of the folder that each file lies in."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def path(self, row: int) -> Path:
        """Return the path of a file."""
        name = self._names[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")
        return self.folders[int(np.searchsorted(self.starts, row, side="right")) - 1] / name


def _listed(folder: Path) -> list[str]:
    """List the names in a folder that are shown."""
    try:
        return shown_names_in(folder)
    except OSError as error:
        what = "the folder is not readable"
        raise read_failure(error, folder, InputError, "copy it to another disk", what=what) from error


def _files_in(folder: Path, unfit: list[InputError]) -> list[tuple[str, int, int]]:
    """Find the name, the bytes and the time of change of each file in a folder of images; note what is none."""
    found, names = [], _listed(folder)
    for name in names:
        try:
            status = _status_of_image(folder / name)
        except InputError as error:
            unfit.append(error)
            continue
        found.append((name, status.st_size, status.st_mtime_ns))
    if not names:
        fix = "put images into the folder, or remove it"
        unfit.append(InputError("a folder of a class without images", where=str(folder), fix=fix))
    return found


def _status_of_image(file: Path) -> os.stat_result:
    status, where = look_up(file), str(file)
    if S_ISDIR(status.st_mode):
        raise InputError("a folder among images", where=where, fix="give folders of images, one for each class")
    if not S_ISREG(status.st_mode):
        raise InputError("a pipe or device among images", where=where, fix=_MOVE_IT)
    if not status.st_size:
        raise InputError("the file is empty (0 bytes)", where=where, fix="write it again, or leave it out")
    if status.st_size > MOST_ENCODABLE_BYTES:
        raise InputError(f"a file of {status.st_size:,} bytes among images", where=where, fix=_MOVE_IT)
    return status


def first_of(unfit: Sequence[InputError]) -> InputError:
    """Return the first of some refusals, which tells of the others too."""
    first, *others = unfit
    if others:
        told = "; ".join(f"{error.where}: {error.what}" for error in others[:_MOST_TOLD])
        more = f"; and {len(others) - _MOST_TOLD:,} more" if len(others) > _MOST_TOLD else ""
        first.why = f"{first.why}. Unfit as well: {told}{more}" if first.why else f"Unfit as well: {told}{more}"
    return first


def image_fields(options: ImageOptions, mean_bytes: int, name: str = IMAGE) -> tuple[Field, ...]:
    """Describe the fields that images become: their bytes and lengths, or pixels."""
    if options.size is not None:
        n_channels = 1 if options.mode == "L" else 3
        return (Field(name=name, dtype=np.dtype(np.uint8), shape=(options.size, options.size, n_channels)),)
    facts = Encoded(lengths=f"{name}{LENGTHS_SUFFIX}", check=options.check)
    field = Field(name=name, dtype=np.dtype(np.uint8), shape=(max(1, mean_bytes),), encoded=facts)
    return field, lengths_field(field)


class ImageFolder(Source):
    """Images in files, those of each class in a folder named like it; any range of them can be read."""

    seekable = True
    n_samples: int

    def __init__(self, folder: Path, inner: Sequence[str], options: ImageOptions, memory: int | None) -> None:
        self.files = FileList([folder / name for name in inner] or [folder])
        self.check = ImageCheck(options, memory or DEFAULT_MEMORY)
        self.classes = tuple(inner) or None
        self.n_samples = len(self.files)
        lengths = self._lengths()
        n_smaller = int((lengths != self.files.sizes).sum())
        self.fields = image_fields(options, int(lengths.mean()))
        if self.classes is not None:
            self.fields += (Field(name=TARGET, dtype=np.dtype(np.int64), shape=()),)
        self.lengths = {} if options.size is not None else {IMAGE: lengths}
        held = self.files.n_bytes + (0 if lengths is self.files.sizes else lengths.nbytes)
        self.reading = ReadingMemory(lasting_bytes=held + self.check.room.n_bytes)
        status = look_up(folder)
        of_files: dict[str, Any] = {"files": self.n_samples, "digest": self.files.digest}
        smaller = {} if options.max_side is None else {"encoded_anew": n_smaller}
        place = {"path": str(folder), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        self.provenance = ({"format": "image folder", **place, **of_files, **smaller},)
        self.told = (self._found(folder, n_smaller, options),)

    def _lengths(self) -> npt.NDArray[np.uint32]:
        """Return the bytes that each image is stored in, which follow from its file's unless some are made smaller."""
        if self.check.options.max_side is None:
            return self.files.sizes
        each = (self._checked(self.check.length, row) for row in range(len(self.files)))
        return np.fromiter(each, np.uint32, len(self.files))

    def _found(self, folder: Path, n_smaller: int, options: ImageOptions) -> str:
        of = "" if self.classes is None else f" of {counted(len(self.classes), 'class', 'classes')}"
        smaller = f"; {n_smaller:,} of them are made smaller" if n_smaller else ""
        as_what = "as they are" if options.size is None else f"decoded, {options.size} × {options.size}"
        return f"{folder}: {counted(self.n_samples, 'image')}{of}, stored {as_what}{smaller}"

    def where(self, row: int) -> str:
        return str(self.files.path(row))

    def read(self, start: int, stop: int) -> Rows:
        check_range(start, stop, self.n_samples)
        rows = range(start, stop)
        labels = {} if self.classes is None else {TARGET: self.files.folder_of(np.arange(start, stop))}
        if self.check.options.size is not None:
            pixels = self.fields[0].empty(len(rows))
            for place, row in enumerate(rows):
                pixels[place] = self._checked(self.check.pixels, row)
            return {IMAGE: pixels, **labels}
        images = objects_of([self._checked(self.check.stored, row) for row in rows])
        return {IMAGE: images, f"{IMAGE}{LENGTHS_SUFFIX}": byte_lengths(images), **labels}

    def _checked(self, check: Callable[[bytes, str], T], row: int) -> T:
        """Check an image; where it is refused, tell of those after it as well, as far as their headers show them."""
        try:
            return check(self._bytes(row), self.where(row))
        except InputError as error:
            unfit, n_bytes = [error], 0
            while (row := row + 1) < len(self.files) and n_bytes < _LOOKED_AT_BYTES:
                n_bytes += int(self.files.sizes[row])
                try:
                    self.check.look_at(self._bytes(row), self.where(row))
                except InputError as other:
                    unfit.append(other)
                except StreamtrainError:
                    break
            raise first_of(unfit) from error.__cause__

    def _bytes(self, row: int) -> bytes:
        """Read a file, which must have the bytes that it had when the folder was listed."""
        data = np.empty(int(self.files.sizes[row]), np.uint8)
        path = self.files.path(row)
        read_range(path, 0, data)
        if look_up(path).st_size != len(data):
            fix = "ingest again when nothing writes to it"
            raise InputError("the file changed while it was read", where=str(path), fix=fix)
        return data.tobytes()


def image_folder_of(paths: Sequence[Path]) -> Path | None:
    """Return the only one of some paths, if it is a folder of images or of their classes."""
    if len(paths) != 1 or is_dataset_path(paths[0]) or not S_ISDIR(look_up(paths[0]).st_mode):
        return None
    return paths[0] if _is_image_folder(paths[0]) else None


def _is_image_folder(folder: Path) -> bool:
    """Say whether a folder holds images, or its first folder does."""
    entries = _listed(folder)
    inner = next((name for name in entries if S_ISDIR(look_up(folder / name).st_mode)), None)
    return _holds_image(folder, entries) if inner is None else _holds_image(folder / inner, _listed(folder / inner))


def _holds_image(folder: Path, names: Sequence[str]) -> bool:
    """Say whether there is an image among the first files of a folder."""
    files = (folder / name for name in names[:_N_TRIED])
    return any(file.is_file() and _is_image(file) for file in files)


def open_image_folder(folder: Path, options: SourceOptions) -> ImageFolder:
    """Open a folder of images, or of the folders of their classes."""
    of_labels = () if options.label_key is None else ("label_column",)
    unfit = [name for name in _NOT_OF_IMAGES if name not in of_labels]
    refuse_options(folder, "image", options, *unfit, *options.table.given())
    entries = _listed(folder)
    inner = [name for name in entries if S_ISDIR(look_up(folder / name).st_mode)]
    beside = sorted(set(entries) - set(inner))
    if inner and beside:
        fix = "move it into the folder of its class, or out of this one"
        what = "a file beside folders of classes"
        raise first_of([InputError(what, where=str(folder / name), fix=fix) for name in beside])
    _check_names(folder, inner)
    return ImageFolder(folder, inner, options.images, options.memory)


def _is_image(file: Path) -> bool:
    return image_format(first_bytes(file, SIGNATURE_BYTES)) is not None


def _check_names(folder: Path, inner: Sequence[str]) -> None:
    """Refuse classes whose names differ in case only, which may be one."""
    taken: dict[str, str] = {}
    for name in inner:
        folded = unicodedata.normalize("NFKC", name).casefold()
        if (other := taken.setdefault(folded, name)) is not name:
            what = f"two classes whose names differ in case only: {other!r} and {name!r}"
            raise InputError(what, where=str(folder), fix="rename one of the folders, or put their images together")
