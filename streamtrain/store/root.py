"""The root of a dataset: its format, its id and its manifest's digest, or what stands there in its place."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from streamtrain.errors import DatasetError, nearest_name
from streamtrain.store import zarr_metadata
from streamtrain.store.byte_ranges import RESTORE, unreadable
from streamtrain.store.manifest import FORMAT, FORMAT_OF_TABLES, Json, load_json
from streamtrain.store.shard import read_bounded
from streamtrain.store.writing.staging import destination_state, incomplete, real_path, recover_interrupted_swap
from streamtrain.system.files import Files, is_there, names_in
from streamtrain.system.syscalls import SYSTEM

_MOST_ROOT_BYTES: Final = 2**24


def read_root(folder: Path) -> Json:
    """Read format, id and the manifest's digest from the root."""
    check_folder(folder)
    root = folder / zarr_metadata.ROOT
    state = destination_state(folder)
    if state == "incomplete":
        raise incomplete(folder)
    if not _is_there(root):
        what = "not a streamtrain dataset: there is no zarr.json"
        raise DatasetError(what, where=str(folder), fix="give the directory ingest wrote")
    found = load_json(read_bounded(root, _MOST_ROOT_BYTES), where=str(root))
    attributes = found.get("attributes")
    ours = attributes.get("streamtrain") if isinstance(attributes, dict) else None
    if not isinstance(ours, dict):
        raise DatasetError(
            "a Zarr group or array, but not a streamtrain dataset: it has no manifest",
            where=str(folder),
            fix="ingest its arrays into a dataset",
        )
    if ours.get("format") not in (FORMAT, FORMAT_OF_TABLES):
        raise DatasetError(
            f"the dataset has format {ours.get('format')!r}; this version reads formats up to {FORMAT_OF_TABLES}",
            where=str(folder),
            fix="upgrade streamtrain (pip install -U streamtrain)",
        )
    if found != {"attributes": {"streamtrain": ours}, "zarr_format": 3, "node_type": "group"}:
        raise DatasetError("the root is not the one that was committed", where=str(root), fix=RESTORE)
    return ours


def _is_there(path: Path) -> bool:
    try:
        return is_there(path)
    except OSError as error:
        raise unreadable(path, error) from error


def check_folder(folder: Path) -> None:
    """Refuse what is no folder; an interrupted swap is recovered first."""
    if not _is_there(folder):
        recover_interrupted_swap(real_path(folder), Files())
    try:
        mode = SYSTEM.stat(folder).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        near = _near(folder.name, _names_beside(folder))
        fix = f"did you mean {str(folder.with_name(near[0]))!r}?" if near else "check the path"
        raise DatasetError(f"no such dataset: {error.strerror}", where=str(folder), fix=fix) from None
    except OSError as error:
        raise unreadable(folder, error) from error
    if not stat.S_ISDIR(mode):
        raise DatasetError("a file, not a dataset", where=str(folder), fix="ingest it first, and open the result")


def _names_beside(folder: Path) -> list[str]:
    try:
        return names_in(folder.parent)
    except OSError:
        return []


def _near(name: str, names: list[str]) -> list[str]:
    """Find the name most like ``name``, compared without the suffix that all datasets share."""
    stems = {Path(each).stem: each for each in names}
    near = nearest_name(Path(name).stem, sorted(stems))
    return [] if near is None else [stems[near]]
