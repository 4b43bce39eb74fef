"""The ``zarr.json`` files and the keys that make a dataset plain Zarr.

zarr itself describes the arrays, in memory, so nothing here has to follow its format; a group is three constant keys.
zarr is imported only when a function needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from streamtrain.store.codec import LEVELS, SHUFFLE
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


def field_array(field: Field, layout: Layout) -> dict[str, bytes]:
    """Describe a field's sharded array: its ``zarr.json``, by key."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    compressors: list[Any] = [Crc32cCodec()]
    if layout.codec != "none":
        level, size = LEVELS[layout.codec], field.dtype.itemsize
        compressors.insert(0, BloscCodec(cname=layout.codec, clevel=level, shuffle=SHUFFLE, typesize=size))
    return _array(
        field.name,
        (layout.n_samples, *field.shape),
        field.dtype,
        chunks=(layout.block_rows, *field.shape),
        shards=(layout.block_rows * layout.shard_blocks, *field.shape),
        compressors=compressors,
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


def _array(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
    compressors: list[Any] | None = None,
    dimensions: tuple[str | None, ...] | None = None,
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
        dimension_names=dimensions or ("sample", *(None for _ in shape[1:])),
    )
    return {metadata_key(name): bytes(kept[ROOT].to_bytes())}
