"""Opening a dataset: what makes a directory one, checked without reading a sample.

From the root down: the root names the manifest by its digest, the manifest every file by its length, and the id is
the digest of layout and checksum table. A file's bytes are checked when they are read.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from streamtrain.errors import DatasetError
from streamtrain.store import metadata
from streamtrain.store.dataset import Dataset
from streamtrain.store.inspection import check_manifest, file_damage, read_checksums
from streamtrain.store.manifest import (
    FORMAT,
    MOST_MANIFEST_BYTES,
    Json,
    Manifest,
    dataset_id,
    load_json,
    parse_manifest,
)
from streamtrain.store.stored import RESTORE, read_bounded, unreadable
from streamtrain.store.target import actual, incomplete, mend, state_of
from streamtrain.system.files import Files

_MOST_ROOT_BYTES: Final = 2**24


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Open a dataset.

    Parameters
    ----------
    path : path-like
        The directory that `ingest` wrote.

    Returns
    -------
    Dataset
        Its facts; no sample has been read.

    Raises
    ------
    DatasetError
        It is not a dataset, is incomplete, of a newer format, or some file is missing or not what was written.
    """
    folder = Path(path)
    while True:
        before = _identity(folder)
        try:
            return _opened(folder)
        except DatasetError:
            # An ingest may have put another dataset under the name between two of the reads.
            if _identity(folder) == before:
                raise


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _opened(folder: Path) -> Dataset:
    manifest = read_facts(folder)
    for damage in file_damage(folder, manifest):
        raise damage
    return checked_dataset(folder, manifest)


def read_facts(folder: Path) -> Manifest:
    """Read root and manifest, and hold them against each other; no other file is looked at.

    Raises
    ------
    DatasetError
        It is not a dataset, is incomplete, of another format, or says what cannot be.
    """
    ours = _read_root(folder)
    manifest = _read_manifest(folder, ours)
    if ours.get("id") != manifest.id:
        raise _other_id(folder)
    check_manifest(folder, manifest)
    return manifest


def checked_dataset(folder: Path, manifest: Manifest) -> Dataset:
    """The dataset whose files are those of its manifest, once its checksum table has been read.

    Raises
    ------
    DatasetError
        The table is not what was written, or the id not that of the content.
    """
    checksums = read_checksums(folder, manifest)
    if dataset_id(manifest.layout, manifest.classes, checksums) != manifest.id:
        raise _other_id(folder)
    return Dataset(path=folder, manifest=manifest, block_checksums=checksums)


def _other_id(folder: Path) -> DatasetError:
    return DatasetError("the dataset's id does not match its content", where=str(folder), fix=RESTORE)


def _read_root(folder: Path) -> Json:
    """What the root says of us: format, id and the manifest's digest."""
    _check_folder(folder)
    root = folder / metadata.ROOT
    state = state_of(folder)
    if state == "incomplete":
        raise incomplete(folder)
    if not os.path.lexists(root):
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
    if ours.get("format") != FORMAT:
        raise DatasetError(
            f"the dataset has format {ours.get('format')!r}; this version reads format {FORMAT}",
            where=str(folder),
            fix="upgrade streamtrain (pip install --upgrade streamtrain)",
        )
    if found != {"attributes": {"streamtrain": ours}, "zarr_format": 3, "node_type": "group"}:
        raise DatasetError("the root is not the one that was committed", where=str(root), fix=RESTORE)
    return ours


def _check_folder(folder: Path) -> None:
    if not os.path.lexists(folder):
        mend(actual(folder), Files())
    try:
        mode = folder.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        near = _near(folder.name, _names_beside(folder))
        fix = f"did you mean {str(folder.with_name(near[0]))!r}?" if near else "check the path"
        raise DatasetError(f"no such dataset: {error.strerror}", where=str(folder), fix=fix) from None
    except OSError as error:
        raise unreadable(folder, error) from None
    if not stat.S_ISDIR(mode):
        raise DatasetError("a file, not a dataset", where=str(folder), fix="ingest it first, and open the result")


def _names_beside(folder: Path) -> list[str]:
    try:
        return os.listdir(folder.parent)  # noqa: PTH208 - names are enough
    except OSError:
        return []


def _near(name: str, names: list[str]) -> list[str]:
    """The name that is most like one, in what it does not share with all datasets: the part before the suffix."""
    stems = {Path(each).stem: each for each in names}
    return [stems[stem] for stem in difflib.get_close_matches(Path(name).stem, stems, n=1, cutoff=0.6)]


def _read_manifest(folder: Path, ours: Json) -> Manifest:
    path = folder / metadata.MANIFEST
    data = read_bounded(path, MOST_MANIFEST_BYTES)
    if hashlib.sha256(data).hexdigest() != ours.get("manifest_sha256"):
        raise DatasetError("the manifest is not the one that was committed", where=str(path), fix=RESTORE)
    return parse_manifest(data, where=str(path))
