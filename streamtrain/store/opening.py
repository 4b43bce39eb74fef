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

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError
from streamtrain.layout import Field, Layout
from streamtrain.stats import stats_shape
from streamtrain.store import metadata
from streamtrain.store.dataset import Dataset
from streamtrain.store.manifest import (
    FORMAT,
    MOST_MANIFEST_BYTES,
    Json,
    Manifest,
    dataset_id,
    load_json,
    parse_manifest,
)
from streamtrain.store.stored import RESTORE, check_length, read_bounded, read_stored

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
    ours = _read_root(folder)
    manifest = _read_manifest(folder, ours)
    _check_files(folder, manifest)
    checksums = _read_checksums(folder, manifest)
    if dataset_id(manifest.layout, manifest.classes, checksums) != manifest.id or ours.get("id") != manifest.id:
        raise DatasetError("the dataset's id does not match its content", where=str(folder), fix=RESTORE)
    return Dataset(path=folder, manifest=manifest, block_checksums=checksums)


def _read_root(folder: Path) -> Json:
    """What the root says of us: format, id and the manifest's digest."""
    _check_folder(folder)
    root = folder / metadata.ROOT
    if not root.exists():
        raise _not_a_dataset(folder)
    attributes = load_json(read_bounded(root, _MOST_ROOT_BYTES), where=str(root)).get("attributes")
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
    return ours


def _check_folder(folder: Path) -> None:
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, siblings, n=1)
        fix = f"did you mean {str(folder.with_name(near[0]))!r}?" if near else "check the path"
        raise DatasetError(f"no such dataset: {error.strerror}", where=str(folder), fix=fix) from None
    if not stat.S_ISDIR(mode):
        raise DatasetError("a file, not a dataset", where=str(folder), fix="ingest it first, and open the result")


def _not_a_dataset(folder: Path) -> DatasetError:
    if (folder / metadata.PRIVATE).is_dir():
        return DatasetError(
            "an incomplete dataset: its ingest did not finish", where=str(folder), fix="delete it and ingest again"
        )
    return DatasetError(
        "not a streamtrain dataset: there is no zarr.json", where=str(folder), fix="give the directory ingest wrote"
    )


def _read_manifest(folder: Path, ours: Json) -> Manifest:
    path = folder / metadata.MANIFEST
    data = read_bounded(path, MOST_MANIFEST_BYTES)
    if hashlib.sha256(data).hexdigest() != ours.get("manifest_sha256"):
        raise DatasetError("the manifest is not the one that was committed", where=str(path), fix=RESTORE)
    return parse_manifest(data, where=str(path))


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Hold every file's presence and length against the manifest, and the arrays' descriptions against the layout."""
    # What the layout implies is compared first, so no key of the manifest can name a file outside the dataset.
    layout = manifest.layout
    n_expected = layout.n_shards * len(layout.fields) + 3 * len(layout.fields) + 4
    if len(manifest.files) != n_expected or manifest.files.keys() != _keys(layout, manifest):
        where = str(folder / metadata.MANIFEST)
        raise DatasetError("the manifest's files are not those of its layout", where=where, fix=RESTORE)
    for key, file in manifest.files.items():
        check_length(f"{folder}/{key}", file)
    for field in layout.fields:
        key = metadata.metadata_key(field.name)
        described = load_json(read_stored(folder, key, manifest.files[key]), where=str(folder / key))
        if not _describes(described, field, layout):
            raise DatasetError("the array is not the one in the manifest", where=str(folder / key), fix=RESTORE)


def _keys(layout: Layout, manifest: Manifest) -> set[str]:
    keys = {metadata.shard_key(field, shard) for field in layout.fields for shard in range(layout.n_shards)}
    keys |= {metadata.metadata_key(name) for name in (metadata.PRIVATE, metadata.CHECKSUMS, metadata.STATISTICS)}
    keys |= {metadata.metadata_key(field.name) for field in layout.fields}
    keys.add(metadata.chunk_key(metadata.CHECKSUMS, 2))
    for field in layout.fields:
        name = f"{metadata.STATISTICS}/{field.name}"
        keys |= {metadata.metadata_key(name), metadata.chunk_key(name, 1 + len(stats_shape(field)))}
    return keys


def _describes(found: Json, field: Field, layout: Layout) -> bool:
    """Whether a ``zarr.json`` is that of the field's array."""
    try:
        sharding = found["codecs"][0]
        return bool(
            found["shape"] == [layout.n_samples, *field.shape]
            and found["data_type"] == field.dtype.name
            and found["chunk_grid"]["configuration"]["chunk_shape"]
            == [layout.block_rows * layout.shard_blocks, *field.shape]
            and sharding["name"] == "sharding_indexed"
            and sharding["configuration"]["chunk_shape"] == [layout.block_rows, *field.shape]
        )
    except (KeyError, TypeError, IndexError):
        return False


def _read_checksums(folder: Path, manifest: Manifest) -> npt.NDArray[np.uint32]:
    key = metadata.chunk_key(metadata.CHECKSUMS, 2)
    data = read_stored(folder, key, manifest.files[key])
    shape = (manifest.layout.n_blocks, len(manifest.layout.fields))
    if len(data) != 4 * shape[0] * shape[1]:
        raise DatasetError("the checksum table is not of the layout's size", where=str(folder / key), fix=RESTORE)
    return np.frombuffer(data, "<u4").astype(np.uint32).reshape(shape)
