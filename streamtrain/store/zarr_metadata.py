"""The ``zarr.json`` files and the keys that make a dataset plain Zarr.

zarr itself describes the arrays, in memory, so nothing here has to follow its format; a group is three constant keys.
zarr is imported only when a function needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np

from streamtrain.store.codec import LEVELS, NO_SHUFFLE, SHUFFLE
from streamtrain.store.layout import Field, Layout

ROOT: Final = "zarr.json"
PRIVATE: Final = "_streamtrain"
MANIFEST: Final = f"{PRIVATE}/manifest.json"
CHECKSUMS: Final = f"{PRIVATE}/crc32c"
STATISTICS: Final = f"{PRIVATE}/stats"


def shard_key(field: Field, shard: int) -> str:
    """Return the key of a shard file: Zarr's default chunk key encoding."""
    return "/".join([field.name, "c", str(shard), *("0" for _ in field.shape)])


def metadata_key(name: str) -> str:
    """Return the key of the description of an array or group."""
    return f"{name}/zarr.json"


def chunk_key(name: str, n_dims: int) -> str:
    """Return the key of the one chunk of a small array."""
    return "/".join([name, "c", *("0" for _ in range(n_dims))])


def array_shape(field: Field, layout: Layout) -> tuple[int, ...]:
    """Return the shape of a field's array: of samples, or of blocks where these are encoded."""
    if field.encoded:
        return layout.n_blocks, layout.block_rows * field.row_bytes
    return layout.n_samples, *field.shape


def chunk_shape(field: Field, layout: Layout, n_blocks: int = 1) -> tuple[int, ...]:
    """Return the shape that so many blocks have in a field's array."""
    n_rows = 1 if field.encoded else layout.block_rows
    return n_blocks * n_rows, *array_shape(field, layout)[1:]


def field_array(field: Field, layout: Layout, media: Iterable[str] = ()) -> dict[str, bytes]:
    """Describe a field's sharded array: its ``zarr.json``, by key; ``media`` are the types of encoded samples."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    compressors: list[Any] = [Crc32cCodec()]
    codec = layout.codec_of(field)
    if codec != "none":
        level, size = LEVELS[codec], field.dtype.itemsize
        shuffle: Literal["noshuffle", "bitshuffle"] = NO_SHUFFLE if field.encoded else SHUFFLE
        compressors.insert(0, BloscCodec(cname=codec, clevel=level, shuffle=shuffle, typesize=size))
    facts = field.encoded
    ours = None if facts is None else {"encoded": "image", "lengths": facts.lengths, "media": sorted(media)}
    return _array(
        field.name,
        array_shape(field, layout),
        field.dtype,
        chunks=chunk_shape(field, layout),
        shards=chunk_shape(field, layout, layout.shard_blocks),
        compressors=compressors,
        dimensions=("block", None) if facts else None,
        attributes=None if ours is None else {"streamtrain": ours},
    )


def small_array(name: str, values: np.ndarray[Any, np.dtype[Any]], dimensions: Iterable[str]) -> dict[str, bytes]:
    """Encode an array in one uncompressed chunk, description and bytes by key: raw little-endian numbers."""
    named = (*dimensions, *(None for _ in range(values.ndim)))[: values.ndim]
    files = _array(name, values.shape, values.dtype, chunks=values.shape, dimensions=named)
    return files | {chunk_key(name, values.ndim): values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()}


def group(name: str, attributes: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """Describe a group: its ``zarr.json``, by key; the root's name is empty."""
    # Ours and not zarr's, of which some versions add keys.
    described = {"attributes": dict(attributes or {}), "zarr_format": 3, "node_type": "group"}
    return {metadata_key(name) if name else ROOT: json.dumps(described, indent=2).encode()}


def load_zarr() -> None:
    """Import Zarr, which takes a tenth of a second and 15 MB, before anything is measured."""
    import zarr  # noqa: F401


def _array(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
    compressors: list[Any] | None = None,
    dimensions: tuple[str | None, ...] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    import zarr
    from zarr.storage import MemoryStore

    kept: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(kept),
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        filters=None,
        compressors=compressors,
        fill_value=0,
        attributes=None if attributes is None else dict(attributes),
        dimension_names=dimensions or ("sample", *(None for _ in shape[1:])),
    )
    return {metadata_key(name): bytes(kept[ROOT].to_bytes())}
