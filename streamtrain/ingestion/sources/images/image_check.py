"""Images checked as they are read: decoded once, measured, and brought to what is stored."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, BudgetError, Fix, InputError, UsageError, unknown_name
from streamtrain.ingestion.sources.base import ImageOptions, SourceOptions
from streamtrain.ingestion.sources.recognition.content import N_SNIFFED, sniff
from streamtrain.store.layout import CHECKS
from streamtrain.store.media.channels import MeasuredImage, measure
from streamtrain.store.media.pillow import (
    MODES,
    TRUNCATED,
    image_format,
    is_whole,
    open_image,
    pillow,
    upright,
    upright_size,
)
from streamtrain.system.arguments import is_int
from streamtrain.system.units import format_bytes

if TYPE_CHECKING:
    from streamtrain.store.media.pillow import Image

DEFAULT_MEMORY: Final = 10**9
WITH_IMAGES: Final = ("Parquet", "tar")
"""The formats of files that may hold images."""
Place = str
_STORES: Final = ("encoded", "decoded")
_QUALITY: Final = 90
_PIXEL_BYTES: Final = 4
_COPIES: Final = 3
"""Of a decoded image, at the most: as it was read, in another mode, and turned or resized."""
_SHARE_OF_MEMORY: Final = 4
_AGAIN: Final = "write or download it again, or leave it out"
_CONVERT: Final = "convert it to a JPEG, PNG or WebP image, or move it out of the folder"


def image_options(given: Mapping[str, Any]) -> ImageOptions:
    """Check what a user says of images; None and what is left out are the default."""
    said = {name: value for name, value in given.items() if value is not None}
    for name, known in (("check", CHECKS), ("mode", MODES), ("store", _STORES)):
        if name in said and said[name] not in known:
            raise unknown_name(name, str(said[name]), known)
    for name in ("max_pixels", "max_side", "size"):
        if name in said and not is_int(said[name], 1):
            fix = Fix(Argument(name, _EXAMPLES[name]), ", say")
            raise UsageError(f"{name} is {said[name]!r:.80}; it must be a positive integer", fix=fix)
    options = ImageOptions(**said)
    if (options.store == "decoded") != (options.size is not None):
        fix = Fix(Argument("store", "decoded"), " with ", Argument("size", 256), ", say")
        raise UsageError("decoded images are stored at one size, and encoded ones as they are", fix=fix)
    return options


def check_no_images(options: SourceOptions) -> None:
    """Refuse options of images for what is none."""
    for name in (*options.images.given(), *(["label_key"] if options.label_key else [])):
        raise UsageError(f"{name} applies to images only", fix=Fix("leave ", Argument(name), " out"))


_EXAMPLES: Final = {"max_pixels": 64_000_000, "max_side": 512, "size": 256}


class DecodingRoom:
    """The memory that images take while they are decoded, by all threads together: one waits for another's."""

    def __init__(self, memory: int) -> None:
        self.n_bytes = memory // _SHARE_OF_MEMORY
        self._free = self.n_bytes
        self._changed = threading.Condition()

    @contextmanager
    def room(self, size: tuple[int, int], where: str) -> Iterator[None]:
        """Have room for an image; refuse one that takes more than there is."""
        needed = size[0] * size[1] * _PIXEL_BYTES * _COPIES
        if needed > self.n_bytes:
            raise BudgetError(
                f"an image of {size[0]:,} × {size[1]:,} pixels takes {format_bytes(needed)} while it is decoded",
                where=where,
                why=f"A quarter of the memory is for that: {format_bytes(self.n_bytes)}",
                fix=Fix(Argument("memory", n_bytes=needed * _SHARE_OF_MEMORY), ", or make the image smaller"),
            )
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


class ImageCheck:
    """Checks images one by one, on any thread, by the options of an ingest."""

    def __init__(self, options: ImageOptions, memory: int) -> None:
        self.options = options
        self.room = DecodingRoom(memory)

    def stored(self, data: bytes, where: Place) -> MeasuredImage:
        """Return an image as it is stored, with its measures; refuse one that nobody could train on."""
        # One after the other: a thread that waits for room holds none.
        kept = data if self.options.max_side is None else self._kept(data, where)
        with self._opened(kept, where) as image:
            return _measured(kept, image, self.options)

    def look_at(self, data: bytes, where: Place) -> None:
        """Refuse an image for what its header and its end show."""
        self._check(_header(data, where), where)

    def length(self, data: bytes, where: Place) -> int:
        """Return the length of an image as it is stored."""
        return len(data if self.options.max_side is None else self._kept(data, where))

    def pixels(self, data: bytes, where: Place) -> npt.NDArray[np.uint8]:
        """Return an image decoded: its short side at the size that was asked for, and the square in its middle."""
        size = self.options.size
        assert size is not None, "which decoded images have"
        with self._opened(data, where) as image:
            whole = upright(image, self.options.mode or "RGB")
            side = min(whole.size)
            left, top = (whole.width - side) / 2, (whole.height - side) / 2
            box = (left, top, left + side, top + side)
            square = whole.resize((size, size), pillow().Resampling.BILINEAR, box=box)
            return np.asarray(square).reshape(size, size, -1)

    @contextmanager
    def _opened(self, data: bytes, where: Place) -> Iterator[Image]:
        """Open an image, with room to decode it; whatever Pillow finds wrong with it is an error that names it."""
        image = _header(data, where)
        self._check(image, where)
        with self.room.room(image.size, where):
            try:
                yield image
            except (InputError, BudgetError, MemoryError):
                raise
            except Exception as error:  # a hostile file makes Pillow raise anything
                raise _undecodable(error, where) from error

    def _check(self, image: Image, where: Place) -> None:
        width, height = image.size
        if width * height > self.options.max_pixels:
            raise InputError(
                f"an image of {width:,} × {height:,} pixels is more than {self.options.max_pixels:,}",
                where=where,
                fix=Fix("make it smaller; or ", Argument("max_pixels", 2 * width * height), ", say"),
            )
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            fix = "store one of its pictures as an image of its own"
            raise InputError("the image is animated", where=where, fix=fix)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            fix = "convert it to 8 bits, or store it as an array"
            raise InputError("the image has more than 8 bits a channel", where=where, why=_KEPT, fix=fix)
        if self.options.mode is None and image.mode not in MODES:
            raise InputError(
                f"the image has mode {image.mode}: {_MODES.get(image.mode, 'neither RGB nor gray')}",
                where=where,
                why="Images are RGB or gray (L) unless you say what others become",
                fix=Fix(Argument("mode", "RGB")),
            )

    def _kept(self, data: bytes, where: Place) -> bytes:
        with self._opened(data, where) as image:
            return self._smaller(image, data, where)

    def _smaller(self, image: Image, data: bytes, where: Place) -> bytes:
        """Encode an image anew whose short side is too long; give others as they are."""
        most, size = self.options.max_side, upright_size(image)
        if most is None or min(size) <= most:
            return data
        whole = upright(image, self.options.mode or ("L" if image.mode == "L" else "RGB"))
        width, height = (max(1, round(side * most / min(size))) for side in size)
        out = io.BytesIO()
        whole.resize((width, height), pillow().Resampling.BICUBIC).save(out, "JPEG", quality=_QUALITY)
        return out.getvalue()


_KEPT: Final = "Values above 255 would be cut off where it is decoded"
_MODES: Final = {
    "RGBA": "it has an alpha channel",
    "LA": "it is gray with an alpha channel",
    "P": "it has a palette",
    "CMYK": "it is meant for print",
    "1": "it is black and white",
}


def _header(data: bytes, where: Place) -> Image:
    kind = image_format(data)
    if kind is None:
        found = sniff(data[:N_SNIFFED])
        what = "the file is empty (0 bytes)" if not data else f"not an image{f': it is {found}' if found else ''}"
        raise InputError(what, where=where, why="JPEG, PNG and WebP are read", fix=_CONVERT)
    _check_end(data, kind, where)
    try:
        return open_image(data)
    except UsageError:
        raise
    except pillow().DecompressionBombError as error:
        fix = "make it smaller"
        raise InputError(f"the image has too many pixels: {error}", where=where, fix=fix) from error
    except Exception as error:
        raise _undecodable(error, where) from error


def _check_end(data: bytes, kind: str, where: Place) -> None:
    """Refuse a file without its end: what is missing there, Pillow does not miss."""
    if not is_whole(data, kind):
        raise InputError(TRUNCATED, where=where, fix=_AGAIN)


def _measured(data: bytes, image: Image, options: ImageOptions) -> MeasuredImage:
    found = MeasuredImage(data)
    found.measures = measure(image, options.check)
    return found


def _undecodable(error: Exception, where: Place) -> InputError:
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"the image does not decode: {told:.200}", where=where, fix=_AGAIN)
