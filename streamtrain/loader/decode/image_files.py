"""Images in files, decoded in the order of their paths: for a model to predict, nothing stored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, InputError, UsageError, first_line
from streamtrain.loader.decode.images import Images, decode_into
from streamtrain.store.layout import Field
from streamtrain.store.media.pillow import SIGNATURE_BYTES, TRUNCATED, image_format, is_whole, open_image
from streamtrain.store.schema.columns import TARGET
from streamtrain.store.zarr_metadata import PRIVATE, ROOT
from streamtrain.system.files import local_path, shown_names_in
from streamtrain.system.refusals import read_failure
from streamtrain.system.units import format_bytes

_N_TRIED: Final = 20
"""Files of a folder that are looked at to learn whether it holds images."""
_RUN_BYTES: Final = 1 << 20
_SHARE_OF_MEMORY: Final = 4
_PIXEL_BYTES: Final = 8
"""Of an image while it is decoded: as it is in its file, and in the mode that is wanted."""
_NAME_BYTES: Final = 100
_AGAIN: Final = "write or download it again, or leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePaths:
    """Files of images, and what each is called: by its path inside the folder, or as it was given."""

    given: tuple[str, ...]
    paths: tuple[Path, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def n_bytes(self) -> int:
        """About the memory that paths and names take."""
        return sum(_NAME_BYTES + 2 * len(name) for name in self.names)


def image_paths(data: object) -> ImagePaths | None:
    """Find the images that a path, or several, lead to: those of a folder sorted; None where the first is no image."""
    listed = data if isinstance(data, list | tuple) else [data]
    given = [each for each in listed if isinstance(each, str | os.PathLike)]
    if not given or len(given) < len(listed):
        return None
    places = [local_path(each) for each in given]
    if not _is_of_images(places[0]):
        return None
    paths, names = list[Path](), list[str]()
    for each, place in zip(given, places, strict=True):
        found = _files_of(place) if place.is_dir() else [place]
        paths += found
        from_folder = place if place.is_dir() and len(places) == 1 else None
        names += [_text(str(each)) if file == place else _name(file, place, each, from_folder) for file in found]
    return ImagePaths(given=tuple(map(str, given)), paths=tuple(paths), names=tuple(names))


def _name(file: Path, place: Path, given: object, folder: Path | None) -> str:
    inside = file.relative_to(place)
    return _text(str(inside if folder is not None else Path(str(given)) / inside))


def _text(name: str) -> str:
    """Return a name as text that any file can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _is_of_images(place: Path) -> bool:
    """Whether an image is at a path, or among the first files of a folder or of its first folder."""
    if not place.is_dir():
        return place.is_file() and _is_image(place)
    if any((place / name).exists() for name in (ROOT, PRIVATE)):
        return False
    inside = _listed(place)
    inner = next((each for each in inside if each.is_dir()), None)
    tried = [each for each in (inside if inner is None else _listed(inner)) if each.is_file()]
    return any(_is_image(each) for each in tried[:_N_TRIED])


def _is_image(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(SIGNATURE_BYTES)
    except OSError as error:
        raise _unreadable(error, file) from error
    return image_format(head) is not None


def _fault(data: bytes, error: Exception) -> str:
    """Say why a file gives no image, in the words of an ingest."""
    if (kind := image_format(data[:SIGNATURE_BYTES])) is None:
        return "not an image: it does not begin as JPEG, PNG or WebP"
    return f"the image does not decode: {first_line(error):.200}" if is_whole(data, kind) else TRUNCATED


def _unreadable(error: OSError, path: Path) -> Exception:
    return read_failure(error, path, InputError, _AGAIN)


def _listed(folder: Path) -> list[Path]:
    """List a folder, sorted, but for names that start with a dot or underscore, as an ingest does."""
    try:
        return [folder / name for name in shown_names_in(folder)]
    except OSError as error:
        raise _unreadable(error, folder) from error


def _files_of(folder: Path) -> list[Path]:
    """List the files of a folder and of the folders of its classes, sorted."""
    found = list[Path]()
    for each in _listed(folder):
        found += [file for file in _listed(each) if file.is_file()] if each.is_dir() else [each]
    return found


def labels_by_folder(images: ImagePaths, classes: Sequence[str] | None) -> npt.NDArray[np.int64]:
    """Number the classes of images by the names of their folders; refuse folders of no known class."""
    known = {name: number for number, name in enumerate(classes or ())}
    for path in images.paths:
        if path.parent.name not in known:
            some = ", ".join(list(known)[:5])
            raise InputError(
                f"the folder {path.parent.name} is none of the classes that the run knows",
                where=str(path),
                why=f"They are {some}{', ...' if len(known) > 5 else ''}" if known else "Its classes have no names",
                fix="a folder for each class, its name that of the class; or a dataset with labels",
            )
    return np.array([known[path.parent.name] for path in images.paths], np.int64)


class ImageFiles:
    """Runs of decoded images, (n, channels, height, width), and their labels where there are any, from a row on."""

    def __init__(
        self,
        images: ImagePaths,
        field: str,
        how: Images,
        memory_bytes: int,
        *,
        first_row: int = 0,
        labels: npt.NDArray[np.int64] | None = None,
    ) -> None:
        height, width, n_channels = how.shape
        shape = (n_channels, height, width)
        self.images, self.how, self.labels, self._first_row = images, how, labels, first_row
        self.room_bytes = memory_bytes // _SHARE_OF_MEMORY
        self.fields: tuple[Field, ...] = (Field(name=field, dtype=np.dtype(np.uint8), shape=shape),)
        if labels is not None:
            self.fields += (Field(name=TARGET, dtype=np.dtype(np.int64), shape=()),)
        self.n_rows = len(images)

    @property
    def row_bytes(self) -> int:
        """The bytes of a decoded image."""
        return self.fields[0].row_bytes

    def __iter__(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        step = max(1, _RUN_BYTES // self.row_bytes)
        for start in range(self._first_row, self.n_rows, step):
            stop = min(start + step, self.n_rows)
            pixels = np.empty((stop - start, *self.how.shape), np.uint8)
            for target, path in zip(pixels, self.images.paths[start:stop], strict=True):
                self._decode(target, path)
            run: dict[str, npt.NDArray[Any]] = {self.fields[0].name: pixels.transpose(0, 3, 1, 2)}
            yield run if self.labels is None else run | {TARGET: self.labels[start:stop]}

    def _decode(self, target: npt.NDArray[np.uint8], path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(error, path) from error
        try:
            self._check_room(open_image(data).size, path)
            decode_into(target, data, self.how, 0)
        except (MemoryError, UsageError, BudgetError):
            raise
        except Exception as error:  # a hostile file makes Pillow raise anything
            raise InputError(_fault(data, error), where=str(path), fix=_AGAIN) from error

    def _check_room(self, size: tuple[int, int], path: Path) -> None:
        needed = size[0] * size[1] * _PIXEL_BYTES
        if needed > self.room_bytes:
            raise BudgetError(
                f"an image of {size[0]:,} × {size[1]:,} pixels takes {format_bytes(needed)} while it is decoded",
                where=str(path),
                why=f"A quarter of the memory is for that: {format_bytes(self.room_bytes)}",
                fix=Fix(Argument("memory", n_bytes=needed * _SHARE_OF_MEMORY)),
            )
