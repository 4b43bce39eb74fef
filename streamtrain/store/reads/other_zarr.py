"""Zarr arrays of other programs, version 2 and 3, as their metadata describes them; none of their values is read.

zarr reads the metadata. It is handed small files only, and decodes nothing: a codec that a file from elsewhere names
may run code.
"""

from __future__ import annotations

import base64
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.errors import first_line
from streamtrain.system.files import is_folder, is_regular, names_in, status_of

NODES: Final = ("zarr.json", ".zarray", ".zgroup")
_SMALL: Final = (*NODES, ".zattrs")
_MOST_METADATA_BYTES: Final = 1 << 24
_MOST_DEPTH: Final = 32
_IN_V2: Final = {"zlib": "gzip"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherZarrArray:
    """What the metadata of one array says, in the terms of Zarr v3."""

    name: str  # its path from the root, "/" for the root itself
    folder: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]  # those that are decoded by themselves
    shard: tuple[int, ...] | None  # the shape of the files that hold several
    dtype: np.dtype[Any]
    fill: Any
    attributes: Mapping[str, Any]
    dimensions: tuple[str | None, ...] | None
    codecs: tuple[Mapping[str, Any], ...]
    index_codecs: tuple[Mapping[str, Any], ...]
    index_at_end: bool
    key: Callable[[tuple[int, ...]], str]  # of the file of a chunk, or of a shard


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableZarr:
    """An array whose metadata does not do, and why."""

    name: str
    folder: Path
    why: str


def is_zarr(folder: Path) -> bool:
    """Say whether a folder is a Zarr array or group; whoever opens one that cannot be looked into tells why."""
    try:
        return _is_node(folder)
    except OSError:
        return False


def _is_node(folder: Path) -> bool:
    return is_folder(folder) and any(is_regular(folder / name) for name in NODES)


def arrays_in(root: Path) -> Iterator[OtherZarrArray | UnreadableZarr]:
    """Describe the arrays of a hierarchy, or the one array that a folder is."""
    for folder, name in _nodes(root, "", set(), 0):
        large = next((each for each in _SMALL if _size(folder / each) > _MOST_METADATA_BYTES), None)
        if large is not None:
            yield UnreadableZarr(name=name, folder=folder, why=f"its {large} has {_size(folder / large):,} bytes")
            continue
        try:
            yield _described(folder, name)
        except PermissionError:
            raise
        # zarr raises errors of many kinds for metadata that it does not like.
        except Exception as error:
            yield UnreadableZarr(name=name, folder=folder, why=first_line(error))


def _nodes(folder: Path, name: str, seen: set[tuple[int, int]], depth: int) -> Iterator[tuple[Path, str]]:
    """Walk the folders of arrays, by name; nothing below an array is looked at."""
    status = status_of(folder)
    if status is None or depth > _MOST_DEPTH or (place := (status.st_dev, status.st_ino)) in seen:
        return
    seen.add(place)
    if _is_array(folder):
        yield folder, name or "/"
        return
    for inner in sorted(names_in(folder)):
        if _is_node(folder / inner):
            yield from _nodes(folder / inner, f"{name}/{inner}", seen, depth + 1)


def _is_array(folder: Path) -> bool:
    if is_regular(folder / ".zarray"):
        return True
    path = folder / "zarr.json"
    if not is_regular(path) or _size(path) > _MOST_METADATA_BYTES:
        return is_regular(path)
    # Broken metadata counts as an array's, so that it is told.
    return b'"group"' not in path.read_bytes()


def _size(path: Path) -> int:
    status = status_of(path)
    return 0 if status is None else status.st_size


def _described(folder: Path, name: str) -> OtherZarrArray:
    import zarr
    from zarr.storage import LocalStore

    with warnings.catch_warnings():
        # Of dtypes and codecs that are no part of the standard.
        warnings.simplefilter("ignore")
        array = zarr.open_array(LocalStore(folder, read_only=True), mode="r")
    metadata: Any = array.metadata
    told: dict[str, Any] = metadata.to_dict()
    dtype = np.dtype(array.dtype)
    is_v2 = told["zarr_format"] == 2
    codecs = _codecs_of_v2(told) if is_v2 else tuple(told["codecs"])
    shard, index_codecs, at_end = None, (), True
    of_v2 = {"name": "regular", "configuration": {"chunk_shape": told.get("chunks")}}
    grid: dict[str, Any] = of_v2 if is_v2 else told["chunk_grid"]
    if grid["name"] != "regular":
        raise ValueError(f"its grid of chunks is {grid['name']!r}")
    chunks = tuple(int(length) for length in grid["configuration"]["chunk_shape"])
    if codecs and codecs[0].get("name") == "sharding_indexed":
        inner = codecs[0]["configuration"]
        shard, chunks = chunks, tuple(inner["chunk_shape"])
        if len(codecs) > 1:
            raise ValueError("shards are compressed as a whole")
        codecs, index_codecs = tuple(inner["codecs"]), tuple(inner["index_codecs"])
        at_end = str(getattr(inner.get("index_location", "end"), "value", inner.get("index_location", "end"))) == "end"
    if any(length < 1 for length in (*chunks, *(shard or ()))) or any(length < 0 for length in array.shape):
        raise ValueError(f"its chunks are {chunks}")
    if shard is not None and any(big % small for big, small in zip(shard, chunks, strict=True)):
        raise ValueError(f"its shards {shard} are no whole number of its chunks {chunks}")
    attributes = dict(told.get("attributes") or {})
    dimensions = told.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS")
    if is_v2 and "_ARRAY_DIMENSIONS" in attributes and metadata.fill_value is not None:
        # There xarray keeps what marks missing values.
        attributes["_FillValue"] = metadata.fill_value
    return OtherZarrArray(
        name=name,
        folder=folder,
        shape=tuple(array.shape),
        chunks=chunks,
        shard=shard,
        dtype=_with_endian(dtype, codecs),
        fill=dtype.type(0) if metadata.fill_value is None else metadata.fill_value,
        attributes={key: _plain(value, dtype) for key, value in attributes.items()},
        dimensions=None if dimensions is None else tuple(dimensions),
        codecs=codecs,
        index_codecs=index_codecs,
        index_at_end=at_end,
        key=metadata.encode_chunk_key,
    )


def _codecs_of_v2(told: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Write filters, compressor and order of version 2 as the codecs of version 3."""
    found: list[Mapping[str, Any]] = []
    if told["order"] == "F" and len(told["shape"]) > 1:
        order = list(range(len(told["shape"])))[::-1]
        found.append({"name": "transpose", "configuration": {"order": order}})
    found.append({"name": "bytes", "configuration": {"endian": None}})
    for codec in (*(told.get("filters") or ()), told.get("compressor")):
        if codec is not None:
            config = codec if isinstance(codec, Mapping) else codec.get_config()
            found.append({"name": _IN_V2.get(config["id"], config["id"]), "configuration": dict(config)})
    return tuple(found)


def _with_endian(dtype: np.dtype[Any], codecs: tuple[Mapping[str, Any], ...]) -> np.dtype[Any]:
    for codec in codecs:
        endian = dict(codec.get("configuration") or {}).get("endian")
        if codec["name"] == "bytes" and endian is not None:
            name = str(getattr(endian, "value", endian))
            return dtype.newbyteorder("<" if name == "little" else ">")
    return dtype


def _plain(value: Any, dtype: np.dtype[Any]) -> Any:
    """Return an attribute as its program meant it: floats of xarray in version 3 are 8 bytes in base64."""
    if isinstance(value, str) and dtype.kind == "f":
        with suppress(ValueError, struct.error):
            return float(value)
        with suppress(ValueError, struct.error):
            return struct.unpack("<d", base64.b64decode(value, validate=True))[0]
    return value
