"""Input files: checked before they are read, read in exact runs of bytes, and required not to change.

A file is opened anew for every run of bytes, so a source holds no file open, threads share no position, and nothing is
mapped: a file truncated under us is an error with its name, not a signal.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.system.files import names_in, open_to_read, status_of, walk
from streamtrain.system.refusals import is_of_machine, os_failure, read_failure, translate_read_errors
from streamtrain.system.syscalls import SYSTEM
from streamtrain.system.units import format_bytes

# zlib and zipfile keep several copies of a piece.
_PIECE_BYTES: Final = 1 << 16
_ELSEWHERE: Final = "copy it to another disk"


class ByteStream(Protocol):
    """What an open file, an unpacked gzip file and a zip member have for reading in order."""

    def read(self, n_bytes: int = ..., /) -> bytes:
        """Return up to ``n_bytes``, none at the end."""


def check_file(path: Path) -> os.stat_result:
    """Refuse whatever is not a readable regular file with something in it."""
    status = look_up(path)
    if stat.S_ISDIR(status.st_mode):
        raise InputError("a folder, and a file is expected here", where=str(path), fix="give a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError("a pipe or device, not a regular file", where=str(path), fix="write the data to a file first")
    if status.st_size == 0:
        raise InputError("the file is empty (0 bytes)", where=str(path), fix="write it again, or leave it out")
    # Tried, not asked for: access(2) answers for another user under set-uid, and on a network it guesses.
    try:
        open_to_read(path).close()
    except OSError as error:
        what = "the file is not readable"
        raise read_failure(error, path, InputError, _ELSEWHERE, what=what) from error
    return status


def look_up(path: Path) -> os.stat_result:
    """Return the status of a path; where there is none, name its nearest neighbour."""
    try:
        return SYSTEM.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        fix = f"did you mean {str(path.with_name(near[0]))!r}?" if near else "check the path"
        raise InputError("no such file or folder", where=str(path), fix=fix) from None
    except OSError as error:
        raise read_failure(error, path, InputError, "check the path", what="the path cannot be looked up") from error
    except ValueError as error:
        raise InputError(f"the path cannot be looked up: {error}", where=str(path), fix="check the path") from error


def _siblings(path: Path) -> list[str]:
    try:
        return names_in(path.parent)
    except OSError:
        return []


def check_distinct(files: Iterable[Path]) -> None:
    """Refuse a file that is given twice, under one name or two."""
    seen: dict[tuple[int, int], Path] = {}
    for file in files:
        status = look_up(file)
        first = seen.setdefault((status.st_dev, status.st_ino), file)
        if first is not file:
            what = "the same file is given twice" if first == file else f"is the same file as {first}"
            raise InputError(what, where=str(file), fix="give every file once")


def provenance_of(path: Path, kind: str, **facts: object) -> tuple[dict[str, Any], ...]:
    """Describe a file for the manifest: its format, the path as given, its bytes and mtime_ns."""
    status = check_file(path)
    return ({"format": kind, "path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, **facts},)


def folders_status(root: Path, folders: Iterable[str]) -> tuple[int, int]:
    """Add up the bytes of all files in some folders below a root, and find when the last of them was written."""
    n_bytes, mtime_ns = 0, 0
    paths = (Path(parent) / name for folder in folders for parent, _, names in walk(root / folder) for name in names)
    with reading(root):
        for path in paths:
            status = status_of(path)
            n_bytes += 0 if status is None else status.st_size
            mtime_ns = max(mtime_ns, 0 if status is None else status.st_mtime_ns)
    return n_bytes, mtime_ns


def changed(provenance: Iterable[Mapping[str, Any]]) -> str | None:
    """Say which source file is no longer what it was when it was opened; None where none is."""
    return next(filter(None, (_change(entry) for entry in provenance if "path" in entry)), None)


def _change(entry: Mapping[str, Any]) -> str | None:
    path = Path(entry["path"])
    try:
        status = SYSTEM.stat(path)
        n_bytes, mtime_ns = status.st_size, status.st_mtime_ns
        if "folders" in entry:
            n_bytes, mtime_ns = folders_status(path, entry["folders"])
    except OSError as error:
        if is_of_machine(error):
            raise os_failure(error, "look up", path) from error
        return f"{path}: gone while it was read ({error.strerror})"
    if n_bytes != entry["bytes"]:
        return f"{entry['path']}: changed while it was read, from {entry['bytes']:,} to {n_bytes:,} bytes"
    if mtime_ns != entry["mtime_ns"]:
        return f"{entry['path']}: written to while it was read (its modification time changed)"
    return None


def refuse_options(path: Path, kind: str, options: SourceOptions, *names: str) -> None:
    """Refuse options that say nothing to a format, rather than overlook them."""
    of_table = options.table.given()
    for name in names:
        if name in of_table or getattr(options, name, None) is not None:
            fix = Fix("leave ", Argument(name), " out")
            raise UsageError(f"{name} does not apply to {kind} files", where=str(path), fix=fix)


def read_range(path: Path, offset: int, out: npt.NDArray[Any]) -> None:
    """Fill a C-contiguous array with a file's bytes from ``offset`` on."""
    view = out.reshape(-1).view(np.uint8).data
    n_done = 0
    with open_bytes(path, buffering=0) as file:
        file.seek(offset)
        while n_done < len(view):
            n_read = file.readinto(view[n_done:])  # type: ignore[attr-defined]  # of any binary file
            if not n_read:
                raise _short(str(path), offset + len(view), offset + n_done)
            n_done += n_read


def read_next(stream: ByteStream, out: npt.NDArray[Any], *, where: str) -> None:
    """Fill a C-contiguous array with a stream's next bytes, in pieces, so nothing else of size is held."""
    view = out.reshape(-1).view(np.uint8).data
    n_done = 0
    while n_done < len(view):
        piece = stream.read(min(_PIECE_BYTES, len(view) - n_done))
        if not piece:
            raise _short(where, len(view), n_done)
        view[n_done : n_done + len(piece)] = piece
        n_done += len(piece)


def skip(stream: ByteStream, n_bytes: int, *, where: str) -> None:
    """Read over the next bytes of a stream, in pieces."""
    scratch = np.empty(min(_PIECE_BYTES, n_bytes), np.uint8)
    for start in range(0, n_bytes, _PIECE_BYTES):
        read_next(stream, scratch[: min(_PIECE_BYTES, n_bytes - start)], where=where)


def _short(where: str, expected: int, found: int) -> InputError:
    return InputError(
        f"the data ends at byte {found:,}; its header promised {expected:,}",
        where=where,
        why="It is truncated, or was changed while it was read",
        fix="write or download it again",
    )


def check_size(n_found: int, n_expected: int, *, where: str, claim: str) -> None:
    """Compare the size that a header claims with the bytes there are, before anything is allocated."""
    if n_found != n_expected:
        state = "truncated" if n_found < n_expected else "longer than its header says"
        raise InputError(
            f"the file is {state}: {n_found:,} bytes found, {n_expected:,} expected",
            where=where,
            why=f"The header claims {claim} ({format_bytes(n_expected)})",
            fix="write or download the file again",
        )


def first_bytes(path: Path, n_bytes: int) -> bytes:
    """Return the first bytes of a file, fewer where it is shorter."""
    with open_bytes(path) as file:
        return file.read(n_bytes)


def reading(path: Path) -> AbstractContextManager[None]:
    """Turn what the system says to the reading of a path, or of what is in it, into an error that names it."""
    return translate_read_errors(path, InputError, _ELSEWHERE)


@contextmanager
def open_bytes(path: Path, *, buffering: int = -1) -> Iterator[BinaryIO]:
    """Open a file for reading in order; what the system says to its reading becomes an error that names it."""
    with (
        reading(path),
        open_to_read(path, buffering=buffering) as file,
    ):
        yield file
