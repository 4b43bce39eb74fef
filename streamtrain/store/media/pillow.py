"""Images by Pillow: bytes to pixels, and what their header says. Pillow is imported when it is needed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from streamtrain.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as Image

Mode = Literal["RGB", "L"]
MODES: Final[tuple[Mode, ...]] = ("RGB", "L")

MEDIA: Final[Mapping[str, str]] = MappingProxyType(
    {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
)
"""What Pillow calls a format, and its media type; an MPO is a JPEG with further ones behind it, as phones take them."""

_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_SIGNATURES: Final = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"))
SIGNATURE_BYTES: Final = 12
"""So many first bytes tell whether a file is an image."""
_ORIENTATION: Final = 0x0112
_TURNED: Final = 5
"""Orientations from here on swap width and height."""
_MOST_REDUCTION: Final = 8


@cache
def pillow() -> Any:
    """Return Pillow's module of images, or say how to install it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            "images are read by Pillow, which is not installed", fix="pip install 'streamtrain[image]'"
        ) from error
    return Image


def pillow_version() -> str:
    """Return the version of Pillow."""
    version: str = pillow().__version__
    return version


def image_format(head: bytes) -> str | None:
    """Return the format of an image by its first bytes, as Pillow calls it; None for all that is not read here."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in _SIGNATURES if head.startswith(signature)), None)


TRUNCATED: Final = "the image is truncated: its end is missing"


def is_whole(data: bytes, kind: str) -> bool:
    """Say whether an image's file has its end, of which Pillow does not miss all."""
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in data[-4096:]
    if kind == "WEBP":
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def open_image(data: bytes | memoryview) -> Image:
    """Read an image's header; whatever Pillow raises is passed on."""
    found: Image = pillow().open(io.BytesIO(data), formats=_FORMATS)
    return found


def orientation(image: Image) -> int:
    """Return how a camera held an image, by its EXIF data: 1 is upright."""
    if "exif" not in image.info:
        return 1
    found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_size(image: Image) -> tuple[int, int]:
    """Return width and height as they are once the image is upright."""
    width, height = image.size
    return (height, width) if orientation(image) >= _TURNED else (width, height)


def reduce_jpeg(image: Image, reduction: float) -> None:
    """Have a JPEG decoded at a half, a quarter or an eighth of its size, if ``reduction`` is as much or more."""
    step = _MOST_REDUCTION
    while step > 1 and step > reduction:
        step //= 2
    if step > 1 and image.format == "JPEG":
        width, height = image.size
        image.draft(None, (max(1, width // step), max(1, height // step)))


def upright(image: Image, mode: Mode) -> Image:
    """Decode an image, turned as its camera was held, in a mode."""
    turned = orientation(image)
    pixels = image if image.mode == mode else image.convert(mode)
    if turned == 1:
        pixels.load()
        return pixels
    transpose = pillow().Transpose
    how = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }
    return pixels.transpose(how[turned])
