"""NumPy's .npz: a zip archive in which every member is a .npy and becomes the field of its name.

Members may be stored or deflated and larger than memory: each is streamed, all of them in step.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

from streamtrain.errors import InputError
from streamtrain.sources.inputs import ByteStream, check_size, provenance_of, refuse_options
from streamtrain.sources.npy import read_header
from streamtrain.sources.protocol import SourceOptions
from streamtrain.sources.streamed import Member, StreamedSource, check_ratio, unpacking

_LOCAL_HEADER_BYTES: Final = 30
_ENCRYPTED: Final = 0x1


def probe(path: Path, options: SourceOptions) -> StreamedSource:
    """Open a .npz archive: its directory and the header of every member.

    Raises
    ------
    InputError
        The archive is damaged, encrypted, has duplicate or foreign members, is a decompression bomb, or its
        members differ in rows.
    """
    refuse_options(path, ".npz", options, "label_column", "columns", "dtype", "shape")
    provenance = provenance_of(path, "npz")
    with unpacking(str(path)), zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _check_directory(path, infos)
        members = tuple(_member(path, archive, info) for info in infos)
    _check_lengths(path, members)
    return StreamedSource(path=path, members=members, provenance=provenance)


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    where = f"{path} member {info.filename}"
    _check_member(info, where)
    with unpacking(where), archive.open(info) as stream:
        header = read_header(stream, where=where)
    packing = header.packing(info.filename.removesuffix(".npy"), where=where)
    claim = f"shape {header.shape} of {header.dtype}"
    check_size(info.file_size, header.n_bytes + packing.n_bytes, where=where, claim=claim)
    return Member(packing=packing, where=where, open=partial(_open_member, path, info.filename))


@contextmanager
def _open_member(path: Path, name: str) -> Iterator[ByteStream]:
    # An archive of its own for every member: no position is shared, and none is left open.
    with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
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
    """Members that share bytes are how a small archive unpacks to petabytes."""
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
            fix="save arrays of one length together, and each split in a file of its own",
        )
