"""`Images`: pixels of one size made of images, cropped and flipped by the key of their sample.

What a sample gets follows from the seed, the epoch and its number alone, as a transform's random numbers do. A crop is
read off the image with one resampling, bilinear over all pixels it covers, so nothing is kept of the parts around it. A
JPEG of at least twice the size is decoded smaller.

Source of the random crop: C. Szegedy et al., *Going deeper with convolutions*, CVPR 2015, section 6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, UsageError, unknown_name
from streamtrain.store.media.pillow import MODES, Mode, open_image, pillow, reduce_jpeg, upright, upright_size
from streamtrain.system.arguments import is_int, is_number
from streamtrain.system.calls.public import public
from streamtrain.system.counter_rng import words

if TYPE_CHECKING:
    from streamtrain.store.media.pillow import Image

Crop = Literal["random", "center", "none"]
CROPS: Final[tuple[Crop, ...]] = ("random", "center", "none")
Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image."""

_TRIES: Final = 10
_DRAWS: Final = np.arange(1 + 4 * _TRIES)
_AROUND: Final = 8 / 7
"""The short side is so much longer than the square in its middle: 256 for 224."""


class Images:
    """Decode images to (size, size) pixels; in batches they are (B, channels, size, size), uint8, channels last.

    Parameters
    ----------
    size : int
        Width and height of what is delivered.
    crop : {"random", "center", "none"}
        ``"random"`` is for training: a part of random area, shape and place, and every second one flipped.
        ``"center"`` is for evaluation: the short side is made ``resize`` long, and the square in the middle is taken.
        ``"none"`` squeezes the whole image.
    resize : int, optional
        With ``crop="center"``, the length of the short side before the square is taken: by default 8/7 of ``size``.
    scale : tuple of two floats
        The least and the largest share of the image's area that a random crop has.
    ratio : tuple of two floats
        The least and the largest ratio of its width to its height.
    flip : float
        The share of random crops that are flipped left to right.
    mode : {"RGB", "L"}
        Three channels, or one of gray.

    Raises
    ------
    UsageError
        An argument is wrong.

    Examples
    --------
    >>> import streamtrain as st
    >>> st.Images(224), st.Images(224, crop="center", resize=256)
    (Images(224), Images(224, crop='center', resize=256))
    """

    __slots__ = ("crop", "flip", "mode", "ratio", "resize", "scale", "size")

    @public
    def __init__(
        self,
        size: int,
        *,
        crop: Crop = "random",
        resize: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        mode: Mode = "RGB",
    ) -> None:
        if not is_int(size, 1, _MOST_SIDE):
            raise UsageError(f"size is {size!r:.80}; it must be 1 to {_MOST_SIDE}", fix="Images(224), say")
        for name, value, known in (("crop", crop, CROPS), ("mode", mode, MODES)):
            if value not in known:
                raise unknown_name(name, str(value), known)
        if resize is not None and (crop != "center" or not is_int(resize, size, _MOST_SIDE)):
            fix = Fix("Images(224, ", Argument("crop", "center"), ", ", Argument("resize", 256), "), say")
            raise UsageError(
                f"resize is {resize!r:.80}; it is the short side of a centre crop, at least its size", fix=fix
            )
        if not is_number(flip) or not 0 <= flip <= 1:
            raise UsageError(f"flip is {flip!r:.80}; it is a share, 0 to 1", fix=Fix(Argument("flip", 0.5)))
        self.size, self.crop, self.resize, self.flip, self.mode = size, crop, resize, float(flip), mode
        self.scale = _range(scale, "scale", (0.08, 1.0), most=1.0)
        self.ratio = _range(ratio, "ratio", (0.75, 1.33), most=math.inf)

    def as_json(self) -> dict[str, Any]:
        """Return all arguments, as a run's configuration keeps them."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def centered(self) -> Images:
        """Return what measures a model that was trained on these: without chance, the square in the middle."""
        return self if self.crop != "random" else Images(self.size, crop="center", mode=self.mode)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image in memory: height, width, channels."""
        return self.size, self.size, 3 if self.mode == "RGB" else 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Images) and self.as_json() == other.as_json()

    def __hash__(self) -> int:
        return hash(tuple(str(value) for value in self.as_json().values()))

    def __repr__(self) -> str:
        plain = _PLAIN if self.size == _PLAIN.size else Images(self.size)
        names = [name for name in _IN_ORDER if getattr(self, name) != getattr(plain, name)]
        return f"Images({', '.join([str(self.size), *(f'{name}={getattr(self, name)!r}' for name in names)])})"

    def __reduce__(self) -> tuple[Any, ...]:
        return images_of, (self.as_json(),)


_MOST_SIDE: Final = 2**14
_IN_ORDER: Final = ("crop", "resize", "scale", "ratio", "flip", "mode")


def images_of(found: dict[str, Any]) -> Images:
    """Make `Images` of what `Images.as_json` returned."""
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return Images(**given)


def _range(value: Any, name: str, usual: tuple[float, float], *, most: float) -> tuple[float, float]:
    is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value))
    if not is_pair or not 0 < value[0] <= value[1] <= most:
        fix = Fix(Argument(name, usual), ", say")
        raise UsageError(f"{name} is {value!r:.80}; it is a least and a largest number above 0", fix=fix)
    return float(value[0]), float(value[1])


_PLAIN: Final = Images(224)


def decode_into(target: Pixels, data: bytes | memoryview, how: Images, key: int) -> None:
    """Put an image into the memory of its batch; whatever Pillow finds wrong with it is passed on."""
    image = open_image(data)
    size = upright_size(image)
    box, flips = crop_of(how, size, key)
    reduce_jpeg(image, min(box[2] - box[0], box[3] - box[1]) / how.size)
    _put(target, upright(image, how.mode), box, size, how, flips=flips)


def crop_into(target: Pixels, pixels: Pixels, how: Images, key: int) -> None:
    """Put an image of stored pixels, (height, width, channels), into the memory of its batch."""
    image = pillow().fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    box, flips = crop_of(how, image.size, key)
    _put(target, upright(image, how.mode), box, image.size, how, flips=flips)


def _put(target: Pixels, image: Image, box: Box, size: tuple[int, int], how: Images, *, flips: bool) -> None:
    if image.size != size:
        across, down = image.size[0] / size[0], image.size[1] / size[1]
        box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    resized = image.resize((how.size, how.size), pillow().Resampling.BILINEAR, box=box)
    pixels = np.asarray(resized).reshape(how.shape)
    target[...] = pixels[:, ::-1] if flips else pixels


def crop_of(how: Images, size: tuple[int, int], key: int) -> tuple[Box, bool]:
    """Choose the part of an image of this width and height that is taken, and whether it is flipped."""
    width, height = size
    if how.crop == "none":
        return (0, 0, width, height), False
    if how.crop == "center":
        around = _AROUND if how.resize is None else how.resize / how.size
        side = min(width, height) / around
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), False
    flip, *draws = ((words(key, _DRAWS) >> np.uint64(11)) * 2.0**-53).tolist()
    return _random_box(how, width, height, draws), flip < how.flip


def _random_box(how: Images, width: int, height: int, draws: list[float]) -> Box:
    least, largest = how.scale
    from_ratio, to_ratio = map(math.log, how.ratio)
    for at in range(0, len(draws), 4):
        of_area, of_ratio, across, down = draws[at : at + 4]
        area = width * height * (least + (largest - least) * of_area)
        ratio = math.exp(from_ratio + (to_ratio - from_ratio) * of_ratio)
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(across * (width - wide + 1)), int(down * (height - high + 1))
            return left, top, left + wide, top + high
    # Of a very long or high image the part in the middle whose shape is nearest to what is asked for.
    ratio = min(max(width / height, how.ratio[0]), how.ratio[1])
    across, down = min(width, height * ratio), min(height, width / ratio)
    return (width - across) / 2, (height - down) / 2, (width + across) / 2, (height + down) / 2
