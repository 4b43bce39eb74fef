#!/usr/bin/env python3
"""Make a dataset of any size: rows of bytes with labels, of a stated compressibility, class-sorted or shuffled.

A row is the pattern of its class with noise over its first bytes: a stated number of bits are random, the others
compress to almost nothing. So rows differ, and the class can be learned from the highest bits, which noise leaves alone
unless rows are to be random bytes. A row follows from the seed and its number alone: any range is made when it is
asked for, by any thread, and nothing is held.

Prints what was made as one JSON line on stdout, and for people on stderr.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import numpy.typing as npt

import streamtrain as st
from scripts.runner import measured_on, new_parser, plain_errors, print_result, require_disk
from streamtrain.system.units import format_bytes, parse_bytes

LABEL_BYTES: Final = 8
Order = Literal["sorted", "shuffled"]

_CHUNK_BYTES: Final = 8_000_000
_CLASS_BITS: Final = 16
_NOISE, _CLASS = range(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the rows are like.

    Parameters
    ----------
    n_samples : int
        How many.
    shape : tuple of int
        Of one row of bytes.
    compressibility : float
        Decoded ÷ encoded bytes to aim at; 1 is random bytes.
    n_classes : int
        How many classes, as even as can be.
    order : {"sorted", "shuffled"}
        Whether the rows come class by class.
    seed : int
        Another seed gives other rows.
    """

    n_samples: int
    shape: tuple[int, ...] = (3072,)
    compressibility: float = 4 / 3
    n_classes: int = 10
    order: Order = "sorted"
    seed: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a row without its label."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Decoded bytes of all rows, labels included."""
        return self.n_samples * (self.row_bytes + LABEL_BYTES)

    @property
    def noise(self) -> tuple[int, int]:
        """Noise as (how many of the first bytes of a row, how many low bits of each)."""
        n_bits = max(1.0, 8 * self.row_bytes / max(self.compressibility, 1.0))
        depth = min(8, math.ceil(n_bits / self.row_bytes))
        return max(1, min(self.row_bytes, round(n_bits / depth))), depth

    def words(self, purpose: int, start: int, stop: int) -> npt.NDArray[np.uint64]:
        """Random words [start, stop) of a purpose; any range of them without those before it."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(purpose,))
        generator = np.random.PCG64DXSM(sequence).advance(start)
        return np.asarray(generator.random_raw(stop - start), np.uint64)

    def labels(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The classes of rows [start, stop)."""
        if self.order == "sorted":
            return np.arange(start, stop, dtype=np.int64) * self.n_classes // self.n_samples
        return (self.words(_CLASS, start, stop) % np.uint64(self.n_classes)).astype(np.int64)

    def patterns(self) -> npt.NDArray[np.uint8]:
        """The pattern of each class: the binary digits of its number, again and again, as the highest bits of bytes."""
        classes = np.arange(self.n_classes)[:, None]
        digits = classes >> np.arange(self.row_bytes) % _CLASS_BITS & 1
        return (digits * 128).astype(np.uint8)

    def rows(self, start: int, stop: int, patterns: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Rows [start, stop), shape (stop - start, *shape)."""
        n_noisy, depth = self.noise
        n_words = -(-n_noisy // 8)
        rows = np.take(patterns, self.labels(start, stop), axis=0)
        noise = self.words(_NOISE, start * n_words, stop * n_words).view(np.uint8).reshape(stop - start, 8 * n_words)
        rows[:, :n_noisy] ^= noise[:, :n_noisy] & np.uint8(2**depth - 1)
        return rows.reshape(stop - start, *self.shape)


class SyntheticRows:
    """The rows of a recipe as an array that is made where it is sliced.

    Parameters
    ----------
    recipe : Recipe
        What they are like.
    """

    dtype: Final = np.dtype(np.uint8)

    def __init__(self, recipe: Recipe) -> None:
        self.shape = (recipe.n_samples, *recipe.shape)
        self._recipe = recipe
        self._patterns = recipe.patterns()

    def __getitem__(self, rows: slice) -> npt.NDArray[np.uint8]:
        start, stop, _ = rows.indices(self.shape[0])
        return self._recipe.rows(start, stop, self._patterns)


class SyntheticLabels:
    """The labels of a recipe as an array that is made where it is sliced."""

    dtype: Final = np.dtype(np.int64)

    def __init__(self, recipe: Recipe) -> None:
        self.shape = (recipe.n_samples,)
        self._recipe = recipe

    def __getitem__(self, rows: slice) -> npt.NDArray[np.int64]:
        start, stop, _ = rows.indices(self.shape[0])
        return self._recipe.labels(start, stop)


def arrays_of(recipe: Recipe) -> dict[str, Any]:
    """What `streamtrain.ingest` takes: rows ``x`` and labels ``y``, made while they are read."""
    return {"x": SyntheticRows(recipe), "y": SyntheticLabels(recipe)}


def chunks_of(recipe: Recipe) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The same rows in order, a few megabytes at a time."""
    arrays = arrays_of(recipe)
    step = max(1, _CHUNK_BYTES // recipe.row_bytes)
    for start in range(0, recipe.n_samples, step):
        yield {name: array[start : start + step] for name, array in arrays.items()}


def write_npy(recipe: Recipe, folder: Path) -> int:
    """Write ``x.npy`` and ``y.npy`` into a folder; return their bytes."""
    folder.mkdir(parents=True)
    arrays = arrays_of(recipe)
    with (folder / "x.npy").open("wb") as x, (folder / "y.npy").open("wb") as y:
        files = {"x": x, "y": y}
        for name, file in files.items():
            described = {
                "descr": np.lib.format.dtype_to_descr(arrays[name].dtype),
                "fortran_order": False,
                "shape": arrays[name].shape,
            }
            np.lib.format.write_array_header_1_0(file, described)
        for chunk in chunks_of(recipe):
            for name, file in files.items():
                file.write(chunk[name].data)
        return sum(file.tell() for file in files.values())


def write_dataset(recipe: Recipe, path: Path, *, codec: str, memory: str = "1GB", progress: bool | None = None) -> int:
    """Ingest the rows at ``path``; return the stored bytes."""
    return st.ingest(arrays_of(recipe), path, codec=codec, memory=memory, progress=progress).stored_bytes


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the command line asks for."""
    n_samples = max(1, parse_bytes(arguments.size, name="--size") // (arguments.row_bytes + LABEL_BYTES))
    return Recipe(
        n_samples=n_samples,
        shape=(arguments.row_bytes,),
        compressibility=arguments.compressibility,
        n_classes=min(arguments.classes, n_samples),
        order=arguments.order,
        seed=arguments.seed,
    )


def main() -> None:
    """Make what the command line asks for."""
    arguments = parse_arguments()
    fix = "a smaller --size, or another disk"
    with plain_errors(fix=fix):
        recipe = recipe_of(arguments)
        require_disk(arguments.dest.parent, room_for(recipe, arguments.codec, arguments.format), fix=fix)
        started = time.perf_counter()
        stored = write(recipe, arguments)
        report(recipe, stored, time.perf_counter() - started, arguments)


def write(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Write files or a dataset; return the stored bytes."""
    if arguments.format == "store":
        return write_dataset(recipe, arguments.dest, codec=arguments.codec, memory=arguments.memory)
    try:
        return write_npy(recipe, arguments.dest)
    except FileExistsError as error:
        raise st.UsageError(str(error), fix="another folder") from None


def room_for(recipe: Recipe, codec: str, form: str) -> int:
    """Bytes to have free for what will be stored."""
    is_encoded = form == "store" and codec != "none"
    return round(recipe.n_bytes / (max(1.0, recipe.compressibility / 2) if is_encoded else 1.0))


def report(recipe: Recipe, stored: int, seconds: float, arguments: argparse.Namespace) -> None:
    """Print what was made."""
    achieved = recipe.n_bytes / stored
    result = {
        "made": str(arguments.dest),
        "format": arguments.format,
        "codec": arguments.codec if arguments.format == "store" else None,
        "n_samples": recipe.n_samples,
        "row_bytes": recipe.row_bytes,
        "n_classes": recipe.n_classes,
        "order": recipe.order,
        "seed": recipe.seed,
        "decoded_bytes": recipe.n_bytes,
        "stored_bytes": stored,
        "compressibility": recipe.compressibility,
        "achieved_ratio": round(achieved, 2),
        "seconds": round(seconds, 3),
        "mb_s": round(recipe.n_bytes / seconds / 1e6),
        **measured_on(),
    }
    print_result(
        result,
        f"{arguments.dest}: {recipe.n_samples:,} rows of {recipe.row_bytes} bytes, {recipe.order}, "
        f"{format_bytes(recipe.n_bytes)} decoded, {format_bytes(stored)} stored: {achieved:.2f} to 1 "
        f"(asked {recipe.compressibility:g}); {seconds:.1f} s, {recipe.n_bytes / seconds / 1e6:,.0f} MB/s",
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, size="1GB", codec="auto", memory="1GB", seed=0)
    parser.add_argument("dest", type=Path, help="the dataset to make, or the folder for x.npy and y.npy")
    parser.add_argument("--row-bytes", type=positive, default=3072, help="bytes of a row (default: 3072)")
    parser.add_argument(
        "--compressibility", type=ratio, default=4 / 3, metavar="RATIO", help="decoded ÷ encoded bytes to aim at (4/3)"
    )
    parser.add_argument("--classes", type=positive, default=10, help="number of classes (default 10)")
    orders = parser.add_mutually_exclusive_group()
    for order in get_args(Order):
        orders.add_argument(f"--{order}", dest="order", action="store_const", const=order, help=f"{order} by class")
    parser.set_defaults(order="sorted")
    parser.add_argument("--format", default="store", choices=["store", "npy"], help="what to write (default store)")
    return parser.parse_args()


def positive(text: str) -> int:
    """A positive number of something."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def ratio(text: str) -> float:
    """A compressibility."""
    if not 1 <= (number := float(text)) <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 1000")
    return number


if __name__ == "__main__":
    main()
