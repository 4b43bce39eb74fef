"""Raw files that are given where a dataset is expected."""

from __future__ import annotations

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


def refuse_raw_file(given: str | Path) -> None:
    """Refuse a raw file where a dataset is expected, with the command that makes one of it."""
    path = local_path(given)
    ending = next((ending for ending in (*_TABLES, *_ARRAYS) if path.name.lower().endswith(ending)), None)
    if ending is None or not path.is_file():
        return
    dest = path.name[: -len(ending)] or "dataset"
    words = ["streamtrain", "ingest", str(given), dest]
    if ending in _TABLES:
        words += ["--auto", "--label-column", "NAME"]
    raise UsageError("is a raw file, not a dataset", where=str(given), fix=command_line(words))
