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
_IMAGES: Final = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
_MOST_SEEN: Final = 1000


def refuse_raw_file(given: str | Path) -> None:
    """Refuse a raw file where a dataset is expected, with the command that makes one of it."""
    path = local_path(given)
    if _holds_images(path):
        words = ["streamtrain", "ingest", str(given), f"{path.resolve().name}.zarr"]
        raise UsageError("is a folder of images, not a dataset", where=str(given), fix=command_line(words))
    ending = next((ending for ending in (*_TABLES, *_ARRAYS) if path.name.lower().endswith(ending)), None)
    if ending is None or not path.is_file():
        return
    dest = path.name[: -len(ending)] or "dataset"
    words = ["streamtrain", "ingest", str(given), dest]
    if ending in _TABLES:
        words += ["--auto", "--label-column", "NAME"]
    raise UsageError("is a raw file, not a dataset", where=str(given), fix=command_line(words))


def _holds_images(path: Path) -> bool:
    """Whether a folder holds images and no other files, itself or in the folders of its classes."""
    try:
        found = [each for pattern in ("*", "*/*") for each in itertools.islice(path.glob(pattern), _MOST_SEEN)]
        files = [each for each in found if each.is_file() and not each.name.startswith(".")]
    except OSError:
        return False  # whoever opens it as a dataset says why
    return bool(files) and all(each.name.lower().endswith(_IMAGES) for each in files)
