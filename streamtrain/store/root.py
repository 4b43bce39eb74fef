"""The root of a dataset: its format, its id and its manifest's digest, or what stands there in its place."""

from __future__ import annotations

import difflib
import stat
from pathlib import Path
from typing import Final

from streamtrain.errors import DatasetError, nearest_name
from streamtrain.store import zarr_metadata
from streamtrain.store.byte_ranges import RESTORE, unreadable
from streamtrain.store.manifest import FORMATS, Json, load_json
from streamtrain.store.reads.other_zarr import is_zarr
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
    if not _is_there(root) and is_zarr(folder):
        raise _of_others(folder)
    if not _is_there(root):
        kind = kind_of_runs(folder)
        what = f"{kind}, not a dataset" if kind else "not a streamtrain dataset: there is no zarr.json"
        raise DatasetError(what, where=str(folder), fix="give the directory ingest wrote")
    found = load_json(read_bounded(root, _MOST_ROOT_BYTES), where=str(root))
    attributes = found.get("attributes")
    ours = attributes.get("streamtrain") if isinstance(attributes, dict) else None
    if not isinstance(ours, dict):
        raise _of_others(folder)
    if ours.get("format") not in FORMATS:
        raise DatasetError(
            f"the dataset has format {ours.get('format')!r}; this version reads formats up to {FORMATS[-1]}",
            where=str(folder),
            fix="upgrade streamtrain (pip install -U streamtrain)",
        )
    if found != {"attributes": {"streamtrain": ours}, "zarr_format": 3, "node_type": "group"}:
        raise DatasetError("the root is not the one that was committed", where=str(root), fix=RESTORE)
    return ours


def kind_of_runs(folder: Path) -> str | None:
    """Say whether a folder is that of a run or of a comparison, by the files in it; None for any other."""
    found = (kind for kind, names in _OF_RUNS.items() if all(_is_there(folder / name) for name in names))
    return next(found, None)


_OF_RUNS: Final = {
    "the folder of a run": ("config.json", "metrics.jsonl"),
    "the folder of a comparison": ("comparison.json",),
}


def _of_others(folder: Path) -> DatasetError:
    what = "a Zarr group or array, but not a streamtrain dataset: it has no manifest"
    return DatasetError(what, where=str(folder), fix="ingest its arrays into a dataset")


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
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError("no such dataset", where=str(folder), fix=_meant(folder)) from None
    except OSError as error:
        raise unreadable(folder, error) from error
    if not stat.S_ISDIR(mode):
        raise DatasetError("a file, not a dataset", where=str(folder), fix="ingest it first, and open the result")


def _names_beside(folder: Path) -> list[str]:
    try:
        return names_in(folder.parent)
    except OSError:
        return []


def _meant(folder: Path) -> str:
    """Name the dataset that was likely meant, else the raw file, which is none before it is ingested."""
    names = [folder.with_name(name) for name in _names_beside(folder)]
    folders = [path for path in names if path.is_dir()]
    files = [path for path in names if _may_hold_data(path) and path.is_file()]
    # A raw file of the very name is nearer than a dataset whose name shares few letters with it.
    is_alike = bool(difflib.get_close_matches(folder.stem, [path.stem for path in folders], n=1))
    is_raw = not is_alike and any(path.stem == folder.stem for path in files)
    for known in () if is_raw else ([path for path in folders if _is_dataset(path)], folders):
        if near := _near(folder, known):
            return f"did you mean {str(near)!r}?"
    if near := _near(folder, files):
        return f"did you mean the raw file {str(near)!r}? Ingest it first, and open the result"
    return "check the path"


_NO_DATA: Final = (
    *(".py", ".ipynb", ".sh", ".md", ".rst", ".pdf", ".html"),
    *(".toml", ".yaml", ".yml", ".cfg", ".ini", ".log", ".lock"),
)
"""Suffixes of files that hold no rows."""


def _may_hold_data(path: Path) -> bool:
    return path.suffix != "" and path.suffix.lower() not in _NO_DATA


def _is_dataset(path: Path) -> bool:
    try:
        return is_there(path / zarr_metadata.ROOT)
    except OSError:
        return False


def _near(folder: Path, others: list[Path]) -> Path | None:
    """Find the path whose name is most like the folder's, compared without the suffix that all datasets share."""
    stems = {each.stem: each for each in others}
    near = nearest_name(folder.stem, sorted(stems))
    return None if near is None else stems[near]
