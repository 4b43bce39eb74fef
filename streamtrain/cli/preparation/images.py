"""Images of a command line: ``--images 224``, ``--images center:224``."""

from __future__ import annotations

import re

from streamtrain.errors import UsageError
from streamtrain.loader.decode.delivery import Decode, is_pixels
from streamtrain.loader.decode.image_dataset import with_images
from streamtrain.loader.decode.images import CROPS, Images
from streamtrain.store.dataset import Dataset

_FIX = "--images 224 (random crops, to train on), or --images center:224"


def parse_images(text: str, scale: str | None = None) -> Images:
    """Read ``[CROP:]SIZE``, and the shares of the area that a random crop has, ``LEAST[,MOST]``."""
    crop, _, size = text.rpartition(":")
    if not size.isdecimal() or crop not in ("", *CROPS):
        # Other programs write width and height; here images are square.
        sides = re.fullmatch(r"(\d+)[x×,*]\d+", size)
        fix = f"--images {':'.join([crop, sides[1]]) if crop in CROPS else sides[1]}" if sides else _FIX
        raise UsageError(f"--images {text!r} is not a size, or a crop and a size", fix=fix)
    how = Images(int(size)) if not crop else Images(int(size), crop=next(each for each in CROPS if each == crop))
    if scale is None:
        return how
    if how.crop != "random":
        raise UsageError(f"--image-scale with --images {text}, which crops nothing at random", fix=f"--images {size}")
    return Images(how.size, scale=_parse_scale(scale))


def _parse_scale(text: str) -> tuple[float, float]:
    least, _, most = text.partition(",")
    try:
        found = float(least), float(most or 1)
    except ValueError:
        found = (0.0, 0.0)
    if not 0 < found[0] <= found[1] <= 1:
        what = f"--image-scale {text!r} is not a least share of an image's area, or a least and a largest"
        raise UsageError(what, fix="--image-scale 0.35, or --image-scale 0.35,1")
    return found


def decode_of(dataset: Dataset, text: str | None, scale: str | None = None) -> Decode | None:
    """Say how a dataset's images are decoded; refuse images without a size, and a size without images."""
    encoded = dataset.layout.encoded_fields
    if text is None:
        if scale is not None and not encoded:
            raise UsageError("--image-scale without --images", fix="leave it out")
        if encoded:
            name = encoded[0].name
            what = f"field {name} holds images as they are stored, and a model takes pixels of one size"
            raise UsageError(what, where=str(dataset.path), fix=_FIX)
        return None
    how = parse_images(text, scale)
    fields = encoded or tuple(field for field in dataset.layout.fields if is_pixels(field))
    if not fields:
        what = "--images, and the dataset has no images"
        why = "Images are stored as they are, or as uint8 (height, width, 3)"
        raise UsageError(what, where=str(dataset.path), why=why, fix="leave it out")
    return {field.name: how for field in fields}


def seen_as(dataset: Dataset, text: str | None, scale: str | None = None) -> Dataset:
    """See a dataset with its images decoded as the command line says."""
    return with_images(dataset, decode_of(dataset, text, scale))
