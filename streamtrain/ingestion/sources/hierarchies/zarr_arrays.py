"""The arrays of a Zarr directory: files of chunks or of shards, their bytes read and decoded here.

Format: https://zarr-specs.readthedocs.io, versions 2.0 and 3.0 with the codec ``sharding_indexed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.hierarchies.cf import ATTRIBUTES
from streamtrain.ingestion.sources.hierarchies.chunk_decoding import CODECS, ChunkCodec, Step, named_step
from streamtrain.ingestion.sources.hierarchies.stored_array import (
    ABSENT,
    ChunkGrid,
    Index,
    StoredArray,
    unfit_shape,
)
from streamtrain.ingestion.sources.input_files import read_range, reading
from streamtrain.store.reads.other_zarr import OtherZarrArray, UnreadableZarr, arrays_in
from streamtrain.system.files import status_of

_PLACE: Final = np.dtype([("offset", "<i8"), ("n_bytes", "<i8")])
_NOTHING: Final = 2**64 - 1
_ALIASES: Final = {"gzip": "deflate", "numcodecs.shuffle": "shuffle", "numcodecs.zlib": "deflate"}


class ZarrArray(StoredArray):
    """An array of a Zarr directory."""

    def __init__(self, described: OtherZarrArray) -> None:
        grid = ChunkGrid(shape=described.shape, chunks=described.chunks)
        super().__init__(described.name, described.folder, grid, described.dtype, described.fill)
        self._described = described
        self._files = ChunkGrid(shape=described.shape, chunks=described.shard or described.chunks)
        self.attributes = {name: value for name, value in described.attributes.items() if name in ATTRIBUTES}
        own = described.name.rpartition("/")[2]
        self.is_coordinate = len(described.shape) == 1 and described.dimensions == (own,)
        self._codec, unknown = _codec_of(described.codecs, described.dtype, described.chunks)
        index_codecs = [{"name": "bytes"}] if described.shard is None else described.index_codecs
        per_shard = tuple(big // small for big, small in zip(self._files.chunks, grid.chunks, strict=True))
        self._index_codec, unknown_too = _codec_of(index_codecs, np.dtype("<u8"), (*per_shard, 2))
        self.unfit = _unfit(described, unknown or unknown_too)
        self._per_shard = per_shard
        self._table: npt.NDArray[Any] = np.empty(0, _PLACE)

    @property
    def where(self) -> str:
        """The array, for errors."""
        return str(self.path)

    def dimension(self) -> str | None:
        return self._described.dimensions[0] if self._described.dimensions else None

    def locate(self) -> None:
        """Look up the files of the chunks, or read the index of every shard."""
        with reading(self.path):
            self._locate()

    def _locate(self) -> None:
        table = np.full(self.grid.counts, ABSENT, _PLACE)
        for number in range(self._files.n_chunks):
            index = self._files.index(number)
            status = status_of(self._file(index))
            if status is None:
                continue
            if self._described.shard is None:
                table[index] = (0, status.st_size)
            else:
                self._locate_in_shard(index, status.st_size, table)
        self.n_missing = int((table["offset"] == ABSENT).sum())
        self._table = table

    def _locate_in_shard(self, shard: Index, n_bytes: int, table: npt.NDArray[Any]) -> None:
        path, codec = self._file(shard), self._index_codec
        where = f"{path} (index)"
        n_index = codec.most_bytes
        if n_bytes < n_index:
            raise InputError(
                f"the shard has {n_bytes:,} bytes, and its index alone {n_index:,}", where=where, fix=_AGAIN
            )
        data = np.empty(n_index, np.uint8)
        read_range(path, n_bytes - n_index if self._described.index_at_end else 0, data)
        places = codec.decode(data, where)
        first = tuple(at * count for at, count in zip(shard, self._per_shard, strict=True))
        cut = tuple(
            slice(start, min(start + count, length))
            for start, count, length in zip(first, self._per_shard, self.grid.counts, strict=True)
        )
        part = table[cut]
        places = places[tuple(slice(0, length) for length in part.shape)]
        is_absent = (places == _NOTHING).all(axis=-1)
        is_beyond = ~is_absent & ((places > n_bytes).any(axis=-1) | (places.sum(axis=-1) > n_bytes))
        if is_beyond.any():
            raise InputError("a chunk would lie beyond the end of its shard", where=where, fix=_AGAIN)
        part["offset"] = np.where(is_absent, ABSENT, places[..., 0].astype(np.int64))
        part["n_bytes"] = np.where(is_absent, ABSENT, places[..., 1].astype(np.int64))

    def chunk(self, index: Index) -> npt.NDArray[Any] | None:
        """Read and decode a chunk."""
        place = self._table[index]
        if place["offset"] == ABSENT:
            return None
        path = self._file(tuple(at // count for at, count in zip(index, self._per_shard, strict=True)))
        n_bytes = int(place["n_bytes"])
        where = str(path) if self._described.shard is None else f"{path} chunk {index}"
        if n_bytes > self._codec.most_bytes:
            what = f"a chunk has {n_bytes:,} bytes, more than its codec makes of {self._codec.n_bytes:,}"
            raise InputError(what, where=where, fix=_AGAIN)
        data = np.empty(n_bytes, np.uint8)
        read_range(path, int(place["offset"]), data)
        return self._codec.decode(data, where)

    def _file(self, index: Index) -> Path:
        return self.path / self._described.key(index)


_AGAIN: Final = "write or copy the array again"


class UnreadableArray(StoredArray):
    """An array whose metadata does not do; it can be named, and is refused."""

    def __init__(self, found: UnreadableZarr) -> None:
        super().__init__(found.name, found.folder, ChunkGrid(shape=(0,), chunks=(1,)), np.dtype(np.void), None)
        what = f"its metadata is not readable: {found.why}"
        self.unfit = InputError(what, where=str(found.folder), fix=_AGAIN)

    def locate(self) -> None:
        raise NotImplementedError

    def chunk(self, index: Index) -> npt.NDArray[Any] | None:
        raise NotImplementedError


def arrays_of(root: Path) -> list[StoredArray]:
    """List the arrays of a Zarr directory."""
    with reading(root):
        return list(_made(root))


def _made(root: Path) -> Iterator[StoredArray]:
    for found in arrays_in(root):
        yield UnreadableArray(found) if isinstance(found, UnreadableZarr) else ZarrArray(found)


def _unfit(described: OtherZarrArray, unknown: str | None) -> InputError | None:
    dtype, where = described.dtype, str(described.folder)
    if dtype.kind not in "biuf":
        kind = {"O": "of Python objects", "V": "structured", "U": "text", "S": "text"}.get(dtype.kind, str(dtype))
        what = f"its elements are {kind}, not numbers"
        return InputError(what, where=where, fix="store numbers of a plain dtype")
    if unknown is not None:
        what, why = f"its codec {unknown} is not one that is decoded here", f"Those are {', '.join(CODECS)}"
        fix = "write it again with one of them: zarr's create_array, of the data that it reads"
        return InputError(what, where=where, why=why, fix=fix)
    return unfit_shape(described.shape, where)


def _codec_of(
    codecs: Sequence[Mapping[str, Any]], dtype: np.dtype[Any], chunks: tuple[int, ...]
) -> tuple[ChunkCodec, str | None]:
    """Return how chunks are decoded, and the name of a codec that is not known."""
    steps: list[Step] = []
    axes: npt.NDArray[np.intp] = np.arange(len(chunks))
    for codec in codecs:
        config = dict(codec.get("configuration") or {})
        name = _ALIASES.get(codec["name"], codec["name"])
        if name == "transpose":
            axes = axes[list(config["order"])]
            continue
        if name == "bytes":
            continue
        step = named_step(name, item_bytes=int(config.get("elementsize", dtype.itemsize)))
        if step is None:
            return ChunkCodec(dtype=dtype, chunks=chunks), str(codec["name"])
        steps.append(step)
    order = None if list(axes) == list(range(len(chunks))) else tuple(int(axis) for axis in axes)
    return ChunkCodec(dtype=dtype, chunks=chunks, steps=tuple(steps), axes=order), None
