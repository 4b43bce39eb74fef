"""idx, the format of MNIST and its kin, plain or gzipped: a magic number, dimensions, big-endian elements.

Format: http://yann.lecun.com/exdb/mnist (zero, zero, element type, number of dimensions, then a big-endian uint32 per
dimension). A plain file reads any range; a gzipped one is read in order.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.base import Source, SourceOptions
from streamtrain.ingestion.sources.binary import PackedSource, Packing, packing_of
from streamtrain.ingestion.sources.compressed import Member, StreamedSource, check_ratio, unpacking
from streamtrain.ingestion.sources.input_files import (
    ByteStream,
    check_size,
    open_bytes,
    provenance_of,
    read_next,
    refuse_options,
)

_DTYPES: Final = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC: Final = b"\x1f\x8b"
_PIECE_BYTES: Final = 1 << 18


def probe(path: Path, options: SourceOptions) -> Source:
    """Open an idx file as field ``x``, gzipped if it starts like gzip."""
    refuse_options(path, "idx", options, "label_column", "columns", "dtype", "shape")
    provenance = provenance_of(path, "idx")
    with open_bytes(path) as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
    return _probe_gzip(path, provenance) if is_gzip else _probe_plain(path, provenance)


def _probe_plain(path: Path, provenance: tuple[dict[str, Any], ...]) -> PackedSource:
    with open_bytes(path) as file:
        packing = _read_header(file, str(path))
    check_size(provenance[0]["bytes"], packing.offset + packing.n_bytes, where=str(path), claim=_claim(packing))
    return PackedSource(path, packing, provenance)


def _probe_gzip(path: Path, provenance: tuple[dict[str, Any], ...]) -> StreamedSource:
    where = str(path)
    with unpacking(where), _open_gzip(path) as stream:
        packing = _read_header(stream, where)
    n_unpacked = packing.offset + packing.n_bytes
    check_ratio(n_unpacked, provenance[0]["bytes"], where=where)
    _check_gzip_size(path, n_unpacked, _claim(packing))
    member = Member(packing=packing, where=where, open=partial(_open_gzip, path))
    return StreamedSource(path, (member,), provenance)


@contextmanager
def _open_gzip(path: Path) -> Iterator[ByteStream]:
    with open_bytes(path) as file, gzip.open(file) as stream:
        yield stream


def _read_header(stream: ByteStream, where: str) -> Packing:
    magic = np.empty(4, np.uint8)
    read_next(stream, magic, where=where)
    zero, also_zero, code, n_dims = magic.tolist()
    if zero or also_zero or code not in _DTYPES or not n_dims:
        raise InputError(
            f"magic number 0x{magic.tobytes().hex()} is not an idx one",
            where=where,
            why="An idx file starts with 0000, a type of 08, 09, 0b, 0c, 0d or 0e, and its number of dimensions",
            fix="check that the file is what its name says",
        )
    dims = np.empty(n_dims, ">u4")
    read_next(stream, dims, where=where)
    return packing_of("x", np.dtype(_DTYPES[code]), tuple(dims.tolist()), 4 + 4 * n_dims, where=where)


def _claim(packing: Packing) -> str:
    return f"shape {(packing.n_rows, *packing.field.shape)} of {packing.field.dtype}"


def _check_gzip_size(path: Path, n_expected: int, claim: str) -> None:
    """Compare with the length in gzip's trailer; where it differs, unpack once to know."""
    # The trailer is modulo 2**32 and that of the last part alone, so it can agree early but not refuse.
    with open_bytes(path) as file:
        file.seek(-4, 2)
        trailer = int.from_bytes(file.read(4), "little")
    if trailer != n_expected % 2**32:
        with unpacking(str(path)), _open_gzip(path) as stream:
            n_found = sum(map(len, iter(lambda: stream.read(_PIECE_BYTES), b"")))
        check_size(n_found, n_expected, where=str(path), claim=claim)
