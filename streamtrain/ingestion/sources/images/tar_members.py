"""Members of a tar file (ustar, GNU or pax names): one walk over the headers, which believes none of them.

Sources: POSIX.1-2017, *pax*, "ustar Interchange Format" and "pax Header Block"; GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.input_files import open_bytes

BLOCK: Final = 512
_MOST_NAME_BYTES: Final = 1 << 16
_MOST_AFTER_END: Final = 1 << 20
_FILES: Final = b"0\0" + b"7"
_FOLDER, _PAX, _PAX_OF_ALL, _LONG_NAME, _LONG_LINK, _SPARSE = b"5", b"x", b"g", b"L", b"K", b"S"
_OTHERS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    _SPARSE: "a sparse file",
}
_AGAIN: Final = "write or download it again"
_PLAIN: Final = "pack plain files, under names inside their folder, sorted by name"
_PICKLES: Final = (".pkl", ".pickle", ".pyd", ".pth", ".pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class TarMember:
    """A file in a tar file: its number, its name, and where its bytes are."""

    number: int  # of all members, counted from 0
    name: str
    offset: int
    n_bytes: int


def name_before(path: Path, offset: int) -> str:
    """Return the name in the header of the member whose data begins here, as far as a header has room for it."""
    try:
        with open_bytes(path, buffering=0) as file:
            file.seek(offset - BLOCK)
            return _own_name(file.read(BLOCK))
    except (InputError, OSError):
        return ""


def tar_members(path: Path) -> Generator[TarMember]:
    """Yield the files of a tar file in order; folders are passed over, and anything else is refused."""
    with open_bytes(path, buffering=1 << 16) as file:
        walk = _Walk(path, file)
        yield from walk.members()


class _Walk:
    """The walk over the headers of one file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._n_bytes = file.seek(0, 2)
        self._at = file.seek(0)
        self._number = 0

    def members(self) -> Iterator[TarMember]:
        name: str | None = None  # of the next member, where a header of its own gives it
        size: int | None = None
        while (header := self._header()) is not None:
            kind, n_bytes = header[156:157], _number(header[124:136])
            n_bytes = n_bytes if size is None or kind in (_PAX, _PAX_OF_ALL, _LONG_NAME, _LONG_LINK) else size
            if n_bytes is None or n_bytes < 0:
                raise self._error("a header has no size", "It is damaged")
            start = self._at
            if start + n_bytes > self._n_bytes:
                why = f"A member promises {n_bytes:,} bytes, and {self._n_bytes - start:,} follow"
                raise self._error("the file is truncated", why)
            if kind in (_PAX, _PAX_OF_ALL):
                records = self._pax(self._text(n_bytes))
                if kind == _PAX:
                    name, size = records.get("path", name), _size(records, size)
                if any(key.startswith("GNU.sparse") for key in records):
                    raise self._refused(name or "?", "a sparse file")
            elif kind == _LONG_NAME:
                name = _text(self._text(n_bytes).rstrip(b"\0"))
            elif kind != _LONG_LINK:
                found, name, size = name or _own_name(header), None, None
                if (of := _OTHERS.get(kind)) is not None:
                    raise self._refused(found, of)
                if kind in (b"0", b"\0", b"7") and not found.endswith("/"):
                    self._check_name(found)
                    yield TarMember(number=self._number, name=found, offset=start, n_bytes=n_bytes)
                elif kind != _FOLDER and kind not in (b"0", b"\0", b"7"):
                    raise self._refused(found, f"of a kind that is not known, {kind!r}")
                self._number += 1
            self._at = self._file.seek(start + -(-n_bytes // BLOCK) * BLOCK)

    def _header(self) -> bytes | None:
        """Read the next header; None at the end."""
        header = self._file.read(BLOCK)
        if len(header) < BLOCK:
            why = "Two blocks of zeros end a tar file, and there are none"
            raise self._error("the file is truncated", why)
        if header == bytes(BLOCK):
            self._check_rest()
            return None
        self._at += BLOCK
        told = _number(header[148:156])
        if told != sum(header[:148]) + 8 * 0x20 + sum(header[156:]):
            raise self._error(f"the header of member {self._number} does not match its checksum", "It is damaged")
        return header

    def _check_rest(self) -> None:
        """Refuse data after the end, which nobody would read."""
        n_left = self._n_bytes - self._file.tell()
        if n_left > _MOST_AFTER_END or any(self._file.read(n_left)):
            raise self._error(
                "data follows the end of the tar file", "Tar files were joined, say, of which one is read"
            )

    def _text(self, n_bytes: int) -> bytes:
        if n_bytes > _MOST_NAME_BYTES:
            raise self._error(f"a name of {n_bytes:,} bytes", "It is damaged")
        return self._file.read(n_bytes)

    def _pax(self, data: bytes) -> dict[str, str]:
        records: dict[str, str] = {}
        while data:
            length, blank, _ = data.partition(b" ")
            n_bytes = int(length) if blank and length.isdigit() and len(length) < 9 else 0
            record = data[len(length) + 1 : n_bytes]
            key, equals, value = record.partition(b"=")
            if not 0 < n_bytes <= len(data) or not equals or not value.endswith(b"\n"):
                raise self._error("a pax header makes no sense", "It is damaged")
            records[_text(key)] = _text(value[:-1])
            data = data[n_bytes:]
        return records

    def _check_name(self, name: str) -> None:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise self._refused(name, "a name that leads out of its folder")
        if name.lower().endswith(_PICKLES):
            raise self._refused(name, "a Python pickle, which can run any code")

    def _error(self, what: str, why: str) -> InputError:
        return InputError(f"{what} (byte {self._at:,})", where=str(self._path), why=why, fix=_AGAIN)

    def _refused(self, name: str, what: str) -> InputError:
        told = f"member {self._number}, {name!r:.200}, is {what}"
        return InputError(told, where=str(self._path), why="Only plain files are read, for safety", fix=_PLAIN)


def _number(field: bytes) -> int | None:
    """Read an octal number, or one of base 256; None where it is neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b"\0 ")
    return int(text, 8) if text and all(digit in b"01234567" for digit in text) else None


def _size(records: dict[str, str], before: int | None) -> int | None:
    told = records.get("size")
    return before if told is None else int(told) if told.isdecimal() and len(told) < 20 else -1


def _own_name(header: bytes) -> str:
    name, prefix = (header[start:end].partition(b"\0")[0] for start, end in ((0, 100), (345, 500)))
    is_posix = header[257:263] == b"ustar\0"
    return _text(prefix + b"/" + name if prefix and is_posix else name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
