"""What the files of a dataset must be, from its manifest: held against what lies there, without reading a sample.

Nothing the manifest says is believed before it fits the rest: keys are compared with those that the layout implies, so
none can lead outside the dataset; lengths with what the layout's shapes need, so that no small file claims a large
array; and the way to each file must be of folders, not of links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError
from streamtrain.layout import CHECKSUM_BYTES, Field, Layout
from streamtrain.stats import stats_shape
from streamtrain.store import metadata
from streamtrain.store.codec import HEADER_BYTES, MOST_ENCODABLE_BYTES, misfit
from streamtrain.store.manifest import Json, Manifest, load_json
from streamtrain.store.shard import index_bytes, index_of
from streamtrain.store.stored import RESTORE, StoredFile, check_length, open_regular, read_stored, unreadable

_FIGURES: Final = 6
"""Statistics of each feature, as float64."""
_BELIEVED_RATIO: Final = 100
"""Compression up to which a shard's length alone is enough for its claim; zeros pack better, and so do lies."""


def check_manifest(folder: Path, manifest: Manifest) -> None:
    """Hold the manifest's keys and lengths against its layout; the files themselves are not looked at.

    Raises
    ------
    DatasetError
        It names other files than its layout has, or shapes that do not fit the files' lengths.
    """
    layout, where = manifest.layout, str(folder / metadata.MANIFEST)
    # The number is compared first: a layout may claim more shards than there is memory for their names.
    n_expected = layout.n_shards * len(layout.fields) + 3 * len(layout.fields) + 4
    if len(manifest.files) != n_expected or manifest.files.keys() != _keys(layout):
        raise DatasetError("the manifest's files are not those of its layout", where=where, fix=RESTORE)
    for key, least, most in _lengths(layout):
        n_bytes = manifest.files[key].n_bytes
        if not least <= n_bytes <= most:
            what = f"the layout claims more or less than {key} holds: {n_bytes:,} bytes"
            why = f"Its shape needs {least:,}" + ("" if least == most else f" to {most:,}")
            raise DatasetError(what, where=where, why=why, fix=RESTORE)


def file_damage(folder: Path, manifest: Manifest) -> Iterator[DatasetError]:
    """Each way in which the files are not those of the manifest: folders, presence, lengths, descriptions, claims."""
    yield from _links(folder, manifest)
    whole: set[str] = set()
    for key, file in manifest.files.items():
        try:
            check_length(f"{folder}/{key}", file)
            whole.add(key)
        except DatasetError as error:
            yield error
    for key in sorted(key for key in whole if key.endswith(metadata.ROOT)):
        try:
            _check_description(folder, key, manifest)
        except DatasetError as error:
            yield error
    for field in manifest.layout.fields:
        if (key := metadata.shard_key(field, 0)) in whole:
            try:
                _check_claim(folder / key, field, manifest.layout, manifest.files[key])
            except DatasetError as error:
                yield error


def read_checksums(folder: Path, manifest: Manifest) -> npt.NDArray[np.uint32]:
    """Read the checksum table, shape (n_blocks, n_fields).

    Raises
    ------
    DatasetError
        It is not the one that was written.
    """
    key = metadata.chunk_key(metadata.CHECKSUMS, 2)
    data = read_stored(folder, key, manifest.files[key])
    return np.frombuffer(data, "<u4").astype(np.uint32).reshape(manifest.layout.n_blocks, len(manifest.layout.fields))


def _keys(layout: Layout) -> set[str]:
    keys = {metadata.shard_key(field, shard) for field in layout.fields for shard in range(layout.n_shards)}
    keys |= {metadata.metadata_key(name) for name in (metadata.PRIVATE, metadata.CHECKSUMS, metadata.STATISTICS)}
    keys |= {metadata.metadata_key(field.name) for field in layout.fields}
    keys.add(metadata.chunk_key(metadata.CHECKSUMS, 2))
    keys |= {metadata.metadata_key(f"{metadata.STATISTICS}/{field.name}") for field in layout.fields}
    return keys | {_stats_key(field) for field in layout.fields}


def _stats_key(field: Field) -> str:
    return metadata.chunk_key(f"{metadata.STATISTICS}/{field.name}", 1 + len(stats_shape(field)))


def _lengths(layout: Layout) -> Iterator[tuple[str, int, int]]:
    """The least and the most bytes that the layout's shapes leave a file, by key."""
    table = 4 * layout.n_blocks * len(layout.fields)
    yield metadata.chunk_key(metadata.CHECKSUMS, 2), table, table
    for field in layout.fields:
        n_features = int(np.prod(stats_shape(field), dtype=object))
        yield _stats_key(field), 8 * _FIGURES * n_features, 8 * _FIGURES * n_features
        decoded = layout.block_rows * field.row_bytes
        least, most = (decoded, decoded) if layout.codec == "none" else (HEADER_BYTES, decoded + HEADER_BYTES)
        if layout.codec != "none" and decoded > MOST_ENCODABLE_BYTES:
            least = decoded  # which no blosc header can name
        index = index_bytes(layout.shard_blocks)
        for shard in range(layout.n_shards):
            first, end = layout.shard_blocks_range(shard)
            n = end - first
            yield (
                metadata.shard_key(field, shard),
                n * (least + CHECKSUM_BYTES) + index,
                n * (most + CHECKSUM_BYTES) + index,
            )


def _links(folder: Path, manifest: Manifest) -> Iterator[DatasetError]:
    """Folders on the way to a file that are links: their files would be those of somebody else."""
    for way in sorted({parent for key in manifest.files for parent in _parents(key)}):
        try:
            is_folder = stat.S_ISDIR(os.lstat(f"{folder}/{way}").st_mode)
        except OSError:
            continue  # its files are missing, which their lengths tell
        if not is_folder:
            yield DatasetError("a link or something else where a folder must be", where=f"{folder}/{way}", fix=RESTORE)


def _parents(key: str) -> Iterator[str]:
    while key := key.rpartition("/")[0]:
        yield key


def _check_description(folder: Path, key: str, manifest: Manifest) -> None:
    """Hold a ``zarr.json`` against its checksum, and that of a field against the layout."""
    found = load_json(read_stored(folder, key, manifest.files[key]), where=str(folder / key))
    for field in manifest.layout.fields:
        if key == metadata.metadata_key(field.name) and not _describes(found, field, manifest.layout):
            raise DatasetError("the array is not the one in the manifest", where=str(folder / key), fix=RESTORE)


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


def _check_claim(path: Path, field: Field, layout: Layout, file: StoredFile) -> None:
    """Where a shard would have to pack its samples very well, ask its first block how many bytes it decodes to."""
    first, end = layout.shard_blocks_range(0)
    decoded = layout.block_rows * field.row_bytes
    if layout.codec == "none" or decoded * (end - first) <= _BELIEVED_RATIO * file.n_bytes:
        return
    try:
        with os.fdopen(open_regular(path), "rb") as opened:
            index = index_of(opened, path, shard_blocks=layout.shard_blocks, n_present=end - first)
            offset, n_bytes = (int(number) for number in index[0])
            opened.seek(offset)
            header = opened.read(min(HEADER_BYTES, n_bytes))
    except DatasetError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    why = misfit(header, encoded_bytes=n_bytes - CHECKSUM_BYTES, n_bytes=decoded)
    if why:
        what = f"block 0 of field {field.name} is not of the shape that the layout claims"
        raise DatasetError(what, where=str(path), why=why, fix=RESTORE)
