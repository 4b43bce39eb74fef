"""The arrays of an HDF5 file, NetCDF4 included: structure through h5py, bytes straight from the file where they can be.

h5py lets one thread at a time into its library. So it only tells where chunks lie; they are read and decoded outside of
it. What a filter of the library alone decodes is read through it.

Format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, StreamtrainError, first_line
from streamtrain.ingestion.sources.hierarchies.cf import ATTRIBUTES
from streamtrain.ingestion.sources.hierarchies.chunk_decoding import ChunkCodec, Step, named_step
from streamtrain.ingestion.sources.hierarchies.stored_array import (
    ABSENT,
    ChunkGrid,
    Index,
    StoredArray,
    unfit_shape,
)
from streamtrain.ingestion.sources.input_files import look_up, read_range
from streamtrain.system.refusals import refusal_behind

_DEFLATE, _SHUFFLE, _FLETCHER32, _BLOSC, _ZSTD = 1, 2, 3, 32001, 32015
_OURS: Final = {_DEFLATE: "deflate", _SHUFFLE: "shuffle", _FLETCHER32: "fletcher32", _BLOSC: "blosc", _ZSTD: "zstd"}
_FILTERS: Final = {
    **{4: "szip", 5: "n-bit", 6: "scale-offset", 32000: "lzf", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp"},
    **{32017: "sz", 32018: "fcidecomp", 32019: "jpeg", 32024: "sz3", 32026: "blosc2", 307: "bzip2"},
}
_MOST_ATTRIBUTE: Final = 256
_MOST_OBJECTS: Final = 100_000
_MOST_DEPTH: Final = 64
_MOST_LINKS: Final = 16
_N_SHOWN: Final = 5
_AT_ONCE: Final = 1 << 20  # bytes that are read at once through the library
_PLACE: Final = np.dtype([("offset", "<i8"), ("n_bytes", "<i8"), ("skipped", "<u8")])


def h5py() -> Any:
    """Import h5py."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        fix = "pip install 'streamtrain[hdf5]'"
        raise InputError("HDF5 and NetCDF4 are read by h5py, which is not installed", fix=fix) from error
    return h5py


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file for reading; what the library says of it becomes an error with its name."""
    with _refusing(path), h5py().File(path, "r") as file:
        yield file


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except StreamtrainError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        if refusal_behind(error) and not isinstance(error, BlockingIOError):
            raise
        raise _refused(path, error) from error


def _refused(path: Path, error: BaseException) -> InputError:
    said = first_line(error)
    if isinstance(error, BlockingIOError) or "already open for" in said or "lock file" in said:
        what = "a program is writing the file, or ended without closing it"
        fix = f"close it there first; where no program has it open, h5clear -s {path}"
        return InputError(what, where=str(path), why="What is read could change meanwhile", fix=fix)
    what = "the file is truncated" if "truncated" in said else "the file is not readable as HDF5"
    return InputError(what, where=str(path), why=said, fix="write or download it again")


class Hdf5Array(StoredArray):
    """A dataset of an HDF5 file."""

    has_typed_attributes = True

    def __init__(self, path: Path, dataset: Any) -> None:
        shape, where = dataset.shape or (), f"{path} {dataset.name}"
        dtype, unfit = _dtype_of(dataset, where)
        row_bytes = max(1, math.prod(shape[1:]) * dtype.itemsize)
        at_once = tuple(max(1, min(length, _AT_ONCE // row_bytes)) for length in shape[:1])
        grid = ChunkGrid(shape=shape, chunks=dataset.chunks or (*at_once, *shape[1:]))
        super().__init__(dataset.name, path, grid, dtype, None)
        self.is_chunked = dataset.chunks is not None
        self.unfit = unfit or _unfit(dataset, where)
        self.is_elsewhere = _is_elsewhere(dataset)
        try:
            self.attributes, self.is_coordinate = _attributes(dataset)
        except InputError as error:  # of an array that nobody may want
            self.unfit = self.unfit or error
        self._codec: ChunkCodec | None = None
        if self.unfit is None:
            self.fill = dataset.fillvalue
            # Behind a user's block not every release of the library counts from the same byte.
            if _is_plain(dataset, dtype) and not dataset.file.userblock_size:
                self._codec = _codec_of(dataset, dtype, grid.chunks)
                self.offset = None if self.is_chunked else dataset.id.get_offset()
        self._table: npt.NDArray[Any] = np.empty(0, _PLACE)
        self._dataset: Any = None  # while it is held open

    def dimension(self) -> str | None:
        with opened(self.path) as file:
            scales = list(file[self.name].dims[0].values())
            return str(scales[0].name).rpartition("/")[2] if scales else None

    def locate(self) -> None:
        """Read where the chunks lie; those that were never written are absent."""
        n_bytes = look_up(self.path).st_size
        if self.offset is not None:
            if self.offset + self.grid.shape[0] * self.row_bytes > n_bytes:
                raise self._beyond("its values")
            return
        with opened(self.path) as file:
            dataset = file[self.name]
            if not self.is_chunked:
                self.n_missing = 0 if dataset.id.get_storage_size() else self.grid.n_chunks
                return
            table = np.full(self.grid.n_chunks, ABSENT, _PLACE)
            self._read_table(dataset, table)
        if bool((table["offset"] + table["n_bytes"] > n_bytes).any()):
            raise self._beyond("a chunk")
        self.n_missing = int((table["offset"] == ABSENT).sum())
        self._table = table

    def _read_table(self, dataset: Any, table: npt.NDArray[Any]) -> None:
        counts, chunks = self.grid.counts, self.grid.chunks
        steps = [math.prod(counts[axis + 1 :]) for axis in range(len(counts))]

        def note(info: Any) -> None:
            place = [at // chunk for at, chunk in zip(info.chunk_offset, chunks, strict=True)]
            if all(0 <= at < count for at, count in zip(place, counts, strict=True)):
                number = sum(at * step for at, step in zip(place, steps, strict=True))
                table[number] = (info.byte_offset, info.size, info.filter_mask)

        dataset.id.chunk_iter(note)

    def _beyond(self, what: str) -> InputError:
        why = "The file is truncated, or was changed"
        return InputError(
            f"{what} would lie beyond the end", where=self.where, why=why, fix="write or download it again"
        )

    def chunk(self, index: Index) -> npt.NDArray[Any] | None:
        """Decode a chunk from the file's bytes; through the library where a filter is only there."""
        if not self.is_chunked:
            return None if self.n_missing else self._through_library(index)
        place = self._table[np.ravel_multi_index(index, self.grid.counts)]
        if place["offset"] == ABSENT:
            return None
        # Of chunks at an edge a writer may have left out all filters, which only the library knows.
        is_unfiltered = self._codec is not None and place["n_bytes"] == self._codec.n_bytes and self._is_cut(index)
        if self._codec is None or (self._codec.steps and is_unfiltered):
            return self._through_library(index)
        where = f"{self.where} chunk {index}"
        if place["n_bytes"] > self._codec.most_bytes:
            what = f"a chunk has {int(place['n_bytes']):,} bytes, more than its codec makes of {self._codec.n_bytes:,}"
            raise InputError(what, where=where, fix="write or copy the data again")
        data = np.empty(int(place["n_bytes"]), np.uint8)
        read_range(self.path, int(place["offset"]), data)
        return self._codec.decode(data, where, skipped=int(place["skipped"]))

    def _is_cut(self, index: Index) -> bool:
        sides = (part.stop - part.start for part in self.grid.box(index))
        return any(side < chunk for side, chunk in zip(sides, self.grid.chunks, strict=True))

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """Hold the file open where its chunks are read through the library."""
        if self._codec is not None:
            yield
            return
        with opened(self.path) as file:
            self._dataset = file[self.name]
            try:
                yield
            finally:
                self._dataset = None

    def _through_library(self, index: Index) -> npt.NDArray[Any]:
        box = self.grid.box(index)
        found = np.empty([part.stop - part.start for part in box], self.dtype)
        with nullcontext() if self._dataset is not None else opened(self.path) as file:
            dataset = self._dataset if file is None else file[self.name]
            with _refusing(self.path):
                dataset.read_direct(found, box)
        return found


def _dtype_of(dataset: Any, where: str) -> tuple[np.dtype[Any], InputError | None]:
    """Return the dtype of the elements, and why they cannot be numbers."""
    library = h5py()
    try:
        dtype = dataset.dtype
    except TypeError as error:
        what = f"NumPy has no numbers like its elements: {first_line(error)}"
        return np.dtype(np.void), InputError(what, where=where, fix="store it as float64, or as integers")
    what, fix = "", ""
    if library.check_string_dtype(dtype) is not None:
        what, fix = "it holds text", "store a number for each text"
    elif library.check_vlen_dtype(dtype) is not None:
        what = "its elements are of different lengths (vlen)"
        fix = "pad the rows to one length, or iterate over the file and yield arrays"
    elif library.check_ref_dtype(dtype) is not None:
        what, fix = "it holds references, not numbers", "name what they refer to"
    elif dtype.kind == "c":
        what, fix = "its numbers are complex", "store their real and imaginary parts as two datasets"
    elif dtype.names is not None:
        what = f"it is compound: {', '.join(dtype.names)}"
        fix = "store each member as a dataset of its own"
    elif dtype.subdtype is not None:
        what, fix = "its elements are arrays", "store them as further axes"
    elif dtype.kind not in "biuf":
        what, fix = f"it is opaque ({dtype})", "store numbers of a plain dtype"
    if what:
        return dtype, InputError(what, where=where, fix=fix)
    return np.dtype(dtype.str), None


def _is_plain(dataset: Any, dtype: np.dtype[Any]) -> bool:
    """Say whether elements are stored as NumPy has them: all of their bits, in its formats of floats."""
    library = h5py()
    stored = dataset.id.get_type()
    if isinstance(stored, library.h5t.TypeEnumID):
        stored = stored.get_super()
    own = dtype if dtype.kind != "b" else np.dtype(np.int8)
    return bool(stored.get_size() == dtype.itemsize and stored.equal(library.h5t.py_create(own)))


def _is_elsewhere(dataset: Any) -> bool:
    plist = dataset.id.get_create_plist()
    return bool(dataset.is_virtual or (dataset.chunks is None and plist.get_external_count()))


def _unfit(dataset: Any, where: str) -> InputError | None:
    file, plist = dataset.file.filename, dataset.id.get_create_plist()
    if dataset.is_virtual:
        what = "it is virtual: its values lie in other files, which a file from elsewhere could choose"
        fix = f"copy the values into one file: h5repack {file} NEW.h5, then ingest that"
        return InputError(what, where=where, fix=fix)
    if _is_elsewhere(dataset):
        what = "its values lie in another file (external storage), which a file from elsewhere could choose"
        fix = f"copy the values into one file: h5repack -l CONTI {file} NEW.h5, then ingest that"
        return InputError(what, where=where, fix=fix)
    unknown = _unknown_filter(plist)
    if unknown is not None:
        what = f"it is compressed with {unknown}, which HDF5 here cannot undo"
        fix = f"install its filter (pip install hdf5plugin), or h5repack -f GZIP=4 {file} NEW.h5"
        return InputError(what, where=where, fix=fix)
    return unfit_shape(dataset.shape or (), where)


def _unknown_filter(plist: Any) -> str | None:
    library = h5py()
    for number in range(plist.get_nfilters()):
        code = plist.get_filter(number)[0]
        if code not in _OURS and not library.h5z.filter_avail(code):
            return f"filter {code} ({_FILTERS[code]})" if code in _FILTERS else f"filter {code}"
    return None


def _codec_of(dataset: Any, dtype: np.dtype[Any], chunks: tuple[int, ...]) -> ChunkCodec | None:
    """Return how chunks are decoded without the library; None where that takes a filter of its own."""
    plist = dataset.id.get_create_plist()
    steps: list[Step] = []
    for number in range(plist.get_nfilters()):
        code, _, values, _ = plist.get_filter(number)
        size = values[0] if code == _SHUFFLE and values else dtype.itemsize
        step = named_step(_OURS.get(code, ""), item_bytes=size)
        if step is None:
            return None
        steps.append(step)
    return ChunkCodec(dtype=dtype, chunks=chunks, steps=tuple(steps))


def _attributes(dataset: Any) -> tuple[dict[str, Any], bool]:
    """Read the attributes that say what values mean, and whether the dataset is a dimension scale."""
    found = {name: _attribute(dataset, name) for name in ATTRIBUTES}
    is_scale = _attribute(dataset, "CLASS") == "DIMENSION_SCALE"
    return {name: value for name, value in found.items() if value is not None}, is_scale


def _attribute(dataset: Any, name: str) -> Any:
    if name not in dataset.attrs:
        return None
    held = dataset.attrs.get_id(name)
    if math.prod(held.shape or ()) > _MOST_ATTRIBUTE:
        what = f"its attribute {name} has {math.prod(held.shape):,} values"
        raise InputError(what, where=f"{dataset.file.filename} {dataset.name}", fix="correct the attribute")
    where = f"{dataset.file.filename} {dataset.name}"
    try:
        value = dataset.attrs[name]
    except (OSError, TypeError, ValueError) as error:
        what = f"its attribute {name} is not readable: {first_line(error)}"
        raise InputError(what, where=where, fix="correct the attribute") from error
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def arrays_of(path: Path) -> list[StoredArray]:
    """List the datasets of a file; links that leave it are not followed."""
    with opened(path) as file:
        found: list[StoredArray] = []
        _walk(path, file, found, set(), 0)
    return found


def _walk(path: Path, group: Any, found: list[StoredArray], seen: set[int], depth: int) -> None:
    library = h5py()
    for name in group:
        if group.id.links.get_info(name.encode()).type != library.h5l.TYPE_HARD:
            continue
        item = group[name]
        address = library.h5o.get_info(item.id).addr
        if address in seen or not isinstance(item, library.Dataset | library.Group):
            continue
        seen.add(address)
        if len(seen) > _MOST_OBJECTS or depth > _MOST_DEPTH:
            what = f"the file has more than {_MOST_OBJECTS:,} objects, or groups more than {_MOST_DEPTH} deep"
            raise InputError(what, where=str(path), fix="copy what you need into a file of its own: h5copy")
        if isinstance(item, library.Dataset):
            found.append(Hdf5Array(path, item))
        else:
            _walk(path, item, found, seen, depth + 1)


def array_at(path: Path, name: str) -> StoredArray | None:
    """Open a dataset by a name that `arrays_of` does not list: behind a link inside the file; None where there is none.

    Raises
    ------
    InputError
        The name is that of a group, or leads out of the file.
    """
    with opened(path) as file:
        place = _followed(file, file, name, path)
        if place is None:
            return None
        if isinstance(place, h5py().Dataset):
            return Hdf5Array(path, place)
        raise InputError("it is a group, not an array", where=f"{path} {name}", fix=_members_of(place))


def _followed(file: Any, start: Any, name: str, path: Path, n_links: int = 0) -> Any | None:
    """Follow a name link by link: the library would follow one that leaves the file, too."""
    library = h5py()
    place = file if name.startswith("/") else start
    for part in filter(None, name.split("/")):
        if not isinstance(place, library.Group) or not place.id.links.exists(part.encode()):
            return None
        kind = place.id.links.get_info(part.encode()).type
        if kind == library.h5l.TYPE_EXTERNAL:
            (target, *_) = place.id.links.get_val(part.encode())
            what = f"{part!r} is an external link, to {target.decode(errors='replace')!r}"
            why = "A file from elsewhere could choose any file of yours"
            raise InputError(what, where=f"{path} {name}", why=why, fix="give that file itself, if it is meant")
        if kind == library.h5l.TYPE_SOFT:
            target = place.id.links.get_val(part.encode()).decode(errors="replace")
            place = _followed(file, place, target, path, n_links + 1) if n_links < _MOST_LINKS else None
        else:
            place = place[part] if kind == library.h5l.TYPE_HARD else None
        if place is None:
            return None
    return place


def _members_of(group: Any) -> str:
    names = [f"{group.name.rstrip('/')}/{name}" for name in list(group)[:_N_SHOWN]]
    return f"name one of its arrays: {', '.join(names)}" if names else "name an array; this group is empty"
