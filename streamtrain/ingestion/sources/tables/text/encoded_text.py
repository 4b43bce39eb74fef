"""Text of any encoding, read as UTF-8 in pieces; where it cannot be read, the byte and the line."""

from __future__ import annotations

import codecs
import io
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.input_files import first_bytes, open_bytes

UTF_8: Final = "utf-8"
_PIECE_BYTES: Final = 1 << 16
# The longer ones first: the mark of UTF-32 begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF8, UTF_8, ("utf-8", "utf-8-sig")),
    (codecs.BOM_UTF32_LE, "utf-32", ("utf-32", "utf-32-le")),
    (codecs.BOM_UTF32_BE, "utf-32", ("utf-32", "utf-32-be")),
    (codecs.BOM_UTF16_LE, "utf-16", ("utf-16", "utf-16-le")),
    (codecs.BOM_UTF16_BE, "utf-16", ("utf-16", "utf-16-be")),
)


class _AsUtf8(io.RawIOBase):
    """A file of another encoding, as UTF-8."""

    def __init__(self, file: BinaryIO, path: Path, encoding: str, errors: str) -> None:
        self._file = file
        self._path = path
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._ready = b""
        self._is_done = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # any writable buffer
        while not self._ready and not self._is_done:
            piece = self._file.read(_PIECE_BYTES)
            self._is_done = not piece
            try:
                self._ready = self._decoder.decode(piece, self._is_done).encode()
            except UnicodeError:
                raise unreadable_text(self._path, self._encoding) from None
        given, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)


@contextmanager
def open_text(path: Path, encoding: str, errors: str = "strict") -> Iterator[BinaryIO]:
    """Open a text file as bytes of UTF-8; what is no text of its encoding is refused, if it is not UTF-8 itself."""
    with open_bytes(path) as file:
        if _name_of(encoding) in ("utf-8", "utf-8-sig"):
            yield file
        else:
            yield cast(BinaryIO, io.BufferedReader(_AsUtf8(file, path, encoding, errors), _PIECE_BYTES))


def check_mark(path: Path, encoding: str) -> None:
    """Refuse a file whose first bytes are the mark of another encoding."""
    head = first_bytes(path, 4)
    for mark, fitting, names in _MARKS:
        if head.startswith(mark):
            if _name_of(encoding) not in names:
                raise InputError(
                    f"it begins with the mark of {fitting.upper()}, and is read as {encoding}",
                    where=f"{path}:1",
                    fix=Fix(Argument("encoding", fitting)),
                )
            return


def unreadable_text(path: Path, encoding: str) -> InputError:
    """Make the error for the first byte of a file that is no text of its encoding."""
    byte, line = _first_bad_byte(path, encoding)
    what, where = f"not {encoding.upper()} text: byte {byte:,} is not part of a character", f"{path}:{line}"
    if _name_of(encoding) not in ("utf-8", "utf-8-sig"):
        return InputError(what, where=where, fix="name the encoding it is written in, or correct the byte")
    converted = shlex.quote(f"utf8-{path.name}")
    converting = f"iconv -f latin1 -t utf-8 {shlex.quote(str(path))} > {converted}"
    named = Argument("encoding", "latin1")
    fix = Fix("name the encoding it is written in: ", named, f", say; or convert it: {converting}")
    return InputError(what, where=where, fix=fix)


def _name_of(encoding: str) -> str:
    return codecs.lookup(encoding).name


def _first_bad_byte(path: Path, encoding: str) -> tuple[int, int]:
    """Find where the first character begins that cannot be read, and its line."""
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = io.IncrementalNewlineDecoder(None, translate=True)
    n_before, line = 0, 1
    with open_bytes(path) as file:
        for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
            state = decoder.getstate()
            try:
                line += _n_line_ends(lines, decoder.decode(piece))
            except UnicodeError:
                decoder.setstate(state)
                return _byte_by_byte(decoder, lines, piece, n_before, line)
            n_before += len(piece)
    return n_before - len(decoder.getstate()[0]), line + _n_line_ends(lines, "", is_last=True)


def _byte_by_byte(
    decoder: codecs.IncrementalDecoder, lines: io.IncrementalNewlineDecoder, piece: bytes, n_before: int, line: int
) -> tuple[int, int]:
    for number, byte in enumerate(piece):
        begun = len(decoder.getstate()[0])
        try:
            line += _n_line_ends(lines, decoder.decode(bytes([byte])))
        except UnicodeError:
            return n_before + number - begun, line + _n_line_ends(lines, "", is_last=True)
    return n_before + len(piece), line


def _n_line_ends(lines: io.IncrementalNewlineDecoder, text: str, *, is_last: bool = False) -> int:
    """Count line ends; a carriage return waits for what comes behind it."""
    return lines.decode(text, is_last).count("\n")
