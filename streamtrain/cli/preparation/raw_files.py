"""Raw files that are given where a dataset is expected."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Final

from streamtrain.cli.output import command_line
from streamtrain.errors import UsageError
from streamtrain.system.files import local_path

_TABLES: Final = (".csv", ".tsv", ".tab", ".parquet", ".pq")
_ARRAYS: Final = (
    *(".npy", ".npz", ".idx", ".idx.gz", "-ubyte", "-ubyte.gz", ".bin", ".raw", ".dat"),
    *(".h5", ".hdf5", ".nc"),
)
_LONE: Final = (".npy", ".idx", ".idx.gz", "-ubyte", "-ubyte.gz", ".bin", ".raw", ".dat")
"""Of files that hold one array, and no labels beside it."""
_IMAGES: Final = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
_MOST_SEEN: Final = 1000


def refuse_raw_file(given: str | Path) -> None:
    """Refuse a raw file where a dataset is expected, with the command that makes one of it."""
    path = local_path(given)
    if _holds_images(path):
        words = ["streamtrain", "ingest", str(given), f"{path.resolve().name}.zarr"]
        raise UsageError("a folder of images, not a dataset", where=str(given), fix=command_line(words))
    ending = _ending(path)
    if ending is None or not path.is_file():
        return
    words, why = ["streamtrain", "ingest", str(given), dataset_of(path)], None
    if ending in _TABLES:
        words += ["--auto", "--label-column", "NAME"]
    elif ending in _LONE:
        why = "Labels in a file of their own become part of it with --labels FILE"
    raise UsageError("a raw file, not a dataset", where=str(given), why=why, fix=command_line(words))


def dataset_of(path: Path) -> str:
    """Name a dataset after the raw file that it is made of."""
    return (path.name[: -len(_ending(path) or "") or None] or "dataset") if path.is_file() else f"{path.name}.zarr"


def holds_arrays(path: Path) -> bool:
    """Whether a file is named as one of arrays."""
    return _ending(path) in _ARRAYS


def _ending(path: Path) -> str | None:
    return next((ending for ending in (*_TABLES, *_ARRAYS) if path.name.lower().endswith(ending)), None)


def _holds_images(path: Path) -> bool:
    """Whether a folder holds images and no other files, itself or in the folders of its classes."""
    try:
        found = [each for pattern in ("*", "*/*") for each in itertools.islice(path.glob(pattern), _MOST_SEEN)]
        files = [each for each in found if each.is_file() and not each.name.startswith(".")]
    except OSError:
        return False  # whoever opens it as a dataset says why
    return bool(files) and all(each.name.lower().endswith(_IMAGES) for each in files)
