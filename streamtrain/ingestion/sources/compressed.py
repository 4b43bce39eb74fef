"""Gzip streams and .npz archives: packed rows behind a stream that only runs forward.

An .npz is a zip archive in which every member is a .npy and becomes the field of its name. Members may be stored or
deflated and larger than memory: they advance in step, each holding one run of rows. A stream is read to its very end,
so that its checksum is compared and nothing is left over, before the last run counts as read.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, StreamtrainError
from streamtrain.ingestion.sources.base import Rows, Source, SourceOptions, choose_fields, rows_within
from streamtrain.ingestion.sources.binary import Packing, read_header
from streamtrain.ingestion.sources.input_files import (
    ByteStream,
    check_size,
    open_bytes,
    provenance_of,
    read_next,
    refuse_options,
    skip,
)
from streamtrain.system.refusals import refusal_behind
from streamtrain.system.units import format_bytes

# DEFLATE cannot pack better than 1032 to 1, and comes near it only on one byte repeated. Small claims do no harm.
_MAX_RATIO: Final = 1000
_SMALL_BYTES: Final = 64_000_000
_MAX_REREAD_BYTES: Final = 32_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One field behind a stream."""

    packing: Packing
    where: str
    open: Callable[[], AbstractContextManager[ByteStream]]  # at its first byte


class StreamedSource(Source):
    """Fields of the same length, each behind a stream, read in step from the start."""

    seekable = False

    def __init__(self, path: Path, members: tuple[Member, ...], provenance: tuple[dict[str, Any], ...]) -> None:
        self.path, self.members, self.provenance = path, members, provenance
        self.fields = tuple(member.packing.field for member in members)
        self.n_samples = members[0].packing.n_rows

    def where(self, row: int) -> str:
        return f"{self.path} row {row}"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        n_rows = rows_within(max_bytes, self.fields)
        with ExitStack() as stack:
            runs = [stack.enter_context(closing(_runs(member, n_rows))) for member in self.members]
            for arrays in zip(*runs, strict=True):
                yield {field.name: array for field, array in zip(self.fields, arrays, strict=True)}


def check_ratio(n_unpacked: int, n_packed: int, *, where: str) -> None:
    """Refuse a claim that only a decompression bomb makes."""
    ratio = n_unpacked / max(1, n_packed)
    if ratio > _MAX_RATIO and n_unpacked > _SMALL_BYTES:
        sizes = f"unpacks from {format_bytes(n_packed)} to {format_bytes(n_unpacked)}"
        raise InputError(
            f"{sizes}, {ratio:,.0f} to 1; the limit is {_MAX_RATIO:,} to 1",
            where=where,
            why="Only a decompression bomb, or one value repeated, packs like that",
            fix="store it uncompressed if it is meant",
        )


@contextmanager
def unpacking(where: str) -> Iterator[None]:
    """Name the file and member in whatever the unpacking libraries raise."""
    try:
        yield
    except (EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, OSError, UnicodeDecodeError) as error:
        if refusal_behind(error) or isinstance(error, StreamtrainError):
            raise
        detail = str(error) or type(error).__name__
        raise InputError(
            f"the compressed data is damaged: {detail}", where=where, fix="write or download the file again"
        ) from error


def _runs(member: Member, n_rows: int) -> Generator[npt.NDArray[Any], None, None]:
    return _by_column(member, n_rows) if member.packing.fortran_order else _by_row(member, n_rows)


def _by_row(member: Member, n_rows: int) -> Generator[npt.NDArray[Any], None, None]:
    packing = member.packing
    with unpacking(member.where), member.open() as stream:
        skip(stream, packing.offset, where=member.where)
        for start in range(0, packing.n_rows, n_rows):
            out = packing.empty(min(n_rows, packing.n_rows - start))
            read_next(stream, out, where=member.where)
            yield _unpacked(member, out, start)
        _check_end(stream, member)


def _by_column(member: Member, n_rows: int) -> Generator[npt.NDArray[Any], None, None]:
    """Go through the whole member once for every run of rows: slow, but as bounded as any other."""
    packing = member.packing
    _check_reread(member, -(-packing.n_rows // n_rows))
    for start in range(0, packing.n_rows, n_rows):
        out = packing.empty(min(n_rows, packing.n_rows - start))
        with unpacking(member.where), member.open() as stream:
            skip(stream, packing.offset, where=member.where)
            _gather_columns(stream, member, start, out)
            _check_end(stream, member)
        yield _unpacked(member, out, start)


def _gather_columns(stream: ByteStream, member: Member, start: int, out: npt.NDArray[Any]) -> None:
    item_bytes = member.packing.stored.itemsize
    n_after = member.packing.n_rows - start - len(out)
    column = np.empty(len(out), member.packing.stored)
    for index in member.packing.columns():
        skip(stream, start * item_bytes, where=member.where)
        read_next(stream, column, where=member.where)
        skip(stream, n_after * item_bytes, where=member.where)
        out.T[index] = column


def _unpacked(member: Member, out: npt.NDArray[Any], start: int) -> npt.NDArray[Any]:
    return member.packing.unpacked(out, lambda row: f"{member.where} row {start + row}")


def _check_end(stream: ByteStream, member: Member) -> None:
    if stream.read(1):
        raise InputError(
            "holds more data than its header claims",
            where=member.where,
            why=f"The header claims {member.packing.n_rows:,} rows",
            fix="write or download the file again",
        )


def _check_reread(member: Member, n_passes: int) -> None:
    n_bytes = n_passes * member.packing.n_bytes
    if n_passes > 1 and n_bytes > _MAX_REREAD_BYTES:
        raise InputError(
            f"stored column by column: reading rows would unpack it {n_passes:,} times, {format_bytes(n_bytes)} in all",
            where=member.where,
            why=f"The limit is {format_bytes(_MAX_REREAD_BYTES)}",
            fix="save it row by row, np.ascontiguousarray(x), or as a plain .npy, or allow more memory",
        )


_LOCAL_HEADER_BYTES: Final = 30
_ENCRYPTED: Final = 0x1
_SPARSE: Final = {"format.npy", "shape.npy", "data.npy"}
"""Members of every sparse matrix that scipy saves."""


def probe(path: Path, options: SourceOptions) -> StreamedSource:
    """Open a .npz archive: its directory and the header of every member."""
    refuse_options(path, ".npz", options, "label_column", "columns", "dtype", "shape")
    provenance = provenance_of(path, "npz")
    with open_bytes(path) as file, unpacking(str(path)), zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        _check_directory(path, infos)
        _check_not_sparse(path, infos, options)
        by_name = {info.filename.removesuffix(".npy"): info for info in infos}
        chosen = choose_fields(by_name, options, where=str(path))
        members = tuple(_member(path, archive, by_name[name], field) for field, name in chosen.items())
    _check_lengths(path, members)
    return StreamedSource(path, members, provenance)


def _check_not_sparse(path: Path, infos: Sequence[zipfile.ZipInfo], options: SourceOptions) -> None:
    """Refuse a sparse matrix as scipy saves it, whose members are no fields, with the line that stores its rows."""
    if options.fields is not None or not _SPARSE.issubset(info.filename for info in infos):
        return
    raise InputError(
        "it is a sparse matrix that scipy saved",
        where=str(path),
        fix="in Python, import scipy.sparse, streamtrain as st; "
        f'st.ingest({{"x": scipy.sparse.load_npz({str(path)!r}).tocsr()}}, "data.zarr")',
    )


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, field: str) -> Member:
    where = f"{path} member {info.filename}"
    _check_member(info, where)
    with unpacking(where), archive.open(info) as stream:
        header = read_header(stream, where=where)
    packing = header.packing(field, where=where)
    claim = f"shape {header.shape} of {header.dtype}"
    check_size(info.file_size, header.n_bytes + packing.n_bytes, where=where, claim=claim)
    return Member(packing=packing, where=where, open=partial(_open_member, path, info.filename))


@contextmanager
def _open_member(path: Path, name: str) -> Iterator[ByteStream]:
    # An archive of its own for every member: no position is shared, and none is left open.
    with open_bytes(path) as file, zipfile.ZipFile(file) as archive, archive.open(name) as stream:
        yield stream


def _check_directory(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in infos]
    if not names:
        raise InputError("the archive has no members", where=str(path), fix="save arrays into it: np.savez(path, x=x)")
    foreign = [name for name in names if not name.endswith(".npy")]
    if foreign:
        what = f"member {foreign[0]!r} is not a .npy array"
        raise InputError(what, where=str(path), why=f"It has {', '.join(names)}", fix="write it with np.savez")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"member {twice[0]!r} is there twice", where=str(path), fix="write it again with np.savez")
    _check_overlap(path, infos)


def _check_overlap(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes, by which a small archive unpacks to petabytes."""
    by_offset = sorted(infos, key=lambda info: info.header_offset)
    for info, following in pairwise(by_offset):
        if following.header_offset < info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size:
            what = f"members {info.filename!r} and {following.filename!r} overlap"
            raise InputError(
                what, where=str(path), why="Only a zip bomb is built like that", fix="do not use this file"
            )


def _check_member(info: zipfile.ZipInfo, where: str) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise InputError("the member is encrypted", where=where, fix="write the archive without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        what = f"compression method {info.compress_type} is not supported"
        raise InputError(what, where=where, why="NumPy stores or deflates", fix="write it with np.savez")
    check_ratio(info.file_size, info.compress_size, where=where)


def _check_lengths(path: Path, members: tuple[Member, ...]) -> None:
    if len({member.packing.n_rows for member in members}) > 1:
        lengths = ", ".join(f"{member.packing.field.name} {member.packing.n_rows:,}" for member in members)
        raise InputError(
            f"the members differ in rows: {lengths}",
            where=str(path),
            why="Every member is a field of the same samples",
            fix=Fix("choose those that belong together: ", Argument("fields", _of_one_length(members)), ", say"),
        )


def _of_one_length(members: Sequence[Member]) -> dict[str, str]:
    """Name a member as x, and as y the next of its length, if there is one."""
    names: dict[int, list[str]] = {}
    for member in members:
        names.setdefault(member.packing.n_rows, []).append(member.packing.field.name)
    most = max(names.values(), key=len)
    return dict(zip(("x", "y"), most, strict=False))
