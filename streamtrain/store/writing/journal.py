"""The journal of an ingest: what it makes, and which shards are durable.

It is removed when the dataset is committed. Each line is a JSON object behind its own crc32c, and is flushed before the
next; so the torn last line that a crash leaves is told from an entry. The first line describes the ingest: a resumed
one must match it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from streamtrain.errors import Call, DatasetError, Fix, ResourceError
from streamtrain.store import zarr_metadata
from streamtrain.store.byte_ranges import RESTORE
from streamtrain.store.codec import checksum
from streamtrain.store.layout import Layout
from streamtrain.store.manifest import Json, dump_json, layout_json, load_json, parse_file, parse_layout, parse_options
from streamtrain.store.shard import StoredFile, read_bounded
from streamtrain.system.files import Files, is_there
from streamtrain.system.json_values import objects, texts_or_none, whole_number
from streamtrain.system.refusals import translate_os_errors, translate_read_errors
from streamtrain.system.syscalls import with_room

JOURNAL: Final = f"{zarr_metadata.PRIVATE}/journal"
MOST_JOURNAL_BYTES: Final = 2**28

Mode = Literal["create", "overwrite", "append"]
Shards = Mapping[int, tuple[StoredFile, ...]]
"""Shard number -> its file of each field."""

_CHECKSUM_DIGITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalHeader:
    """The first line of a journal: the dataset that an ingest is making."""

    mode: Mode
    base: str | None  # the id of the dataset that is appended to
    version: str
    layout: Layout  # codec included: chosen once, before the first shard
    classes: tuple[str, ...] | None
    sources: tuple[Json, ...]
    options: Json

    def as_json(self) -> Json:
        """Return the header as the journal holds it."""
        return {
            "mode": self.mode,
            "base": self.base,
            "version": self.version,
            "layout": layout_json(self.layout),
            "classes": None if self.classes is None else list(self.classes),
            "sources": list(self.sources),
            "options": self.options,
        }


class Journal:
    """A journal being written, from any thread; made by `begin_journal`, `continue_journal`."""

    def __init__(self, path: Path, files: Files, *, n_shards: int = 0) -> None:
        self.n_shards = n_shards
        self._path = path
        self._system = files.system
        self._adding = threading.Lock()
        with translate_os_errors("open", path):
            self._fd: int | None = with_room(lambda: files.system.append(path))

    def add(self, shard: int, stored: tuple[StoredFile, ...]) -> None:
        """Note a shard whose files are durable; once that failed, nothing more is taken."""
        line = memoryview(_line({"shard": shard, "files": [[file.n_bytes, file.crc32c] for file in stored]}))
        with self._adding:
            if self._fd is None:
                raise ResourceError("an earlier entry could not be written", where=str(self._path))
            try:
                with translate_os_errors("write", self._path):
                    while line:
                        line = line[self._system.writev(self._fd, [line]) :]
                    self._system.fsync(self._fd)
            except BaseException:
                self._close()
                raise
            self.n_shards += 1

    def close(self) -> None:
        """Close the file."""
        with self._adding:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def begin_journal(folder: Path, header: JournalHeader, files: Files) -> None:
    """Write the journal of a directory whose private one exists, with its header alone."""
    files.write_bytes(folder / JOURNAL, _line(header.as_json()))


def continue_journal(folder: Path, header: JournalHeader, shards: Shards, files: Files) -> Journal:
    """Write a journal anew, with the entries that still hold and no torn one, and open it for more."""
    entries = [
        {"shard": shard, "files": [[file.n_bytes, file.crc32c] for file in stored]}
        for shard, stored in sorted(shards.items())
    ]
    files.write_bytes(folder / JOURNAL, _line(header.as_json()), *map(_line, entries))
    return Journal(folder / JOURNAL, files, n_shards=len(entries))


def read_journal(folder: Path) -> tuple[JournalHeader, dict[int, tuple[StoredFile, ...]]] | None:
    """Read what an ingest was making, and the shards it finished; None where there is no journal."""
    path = folder / JOURNAL
    with translate_read_errors(path, DatasetError, RESTORE):
        if not is_there(path):
            return None
    first, *rest = read_bounded(path, MOST_JOURNAL_BYTES).split(b"\n")
    found = _parsed(first, str(path))
    if found is None:
        raise _damaged(path, "its first line does not match its checksum")
    try:
        header = _header(found)
        # A damaged entry is left out: its shard is made again.
        entries = [entry for entry in (_parsed(line, str(path)) for line in rest) if entry is not None]
        shards = {whole_number(entry["shard"]): _files(entry["files"], header.layout) for entry in entries}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    return header, shards


def _header(found: Json) -> JournalHeader:
    if found["mode"] not in ("create", "overwrite", "append"):
        raise ValueError(f"its mode is {found['mode']!r}")
    return JournalHeader(
        mode=found["mode"],
        base=found["base"],
        version=found["version"],
        layout=parse_layout(found["layout"]),
        classes=texts_or_none(found["classes"]),
        sources=objects(found["sources"]),
        options=parse_options(found["options"]),
    )


def _files(found: object, layout: Layout) -> tuple[StoredFile, ...]:
    if not isinstance(found, list) or len(found) != len(layout.fields):
        raise ValueError("a shard has a file of each field")
    return tuple(map(parse_file, found))


def _damaged(path: Path, why: str) -> DatasetError:
    fix = Fix(Call("repair", str(path.parent.parent), ("remove",)), ", and ingest again")
    return DatasetError(f"the journal of an ingest is damaged: {why}", where=str(path), fix=fix)


def _line(value: Json) -> bytes:
    data = dump_json(value)
    return b"%0*x %s\n" % (_CHECKSUM_DIGITS, checksum(data), data)


def _parsed(line: bytes, where: str) -> Json | None:
    """Parse the object on a line; None where the line was cut or is not what was written."""
    digits, _, data = line.partition(b" ")
    if len(digits) != _CHECKSUM_DIGITS or digits != b"%0*x" % (_CHECKSUM_DIGITS, checksum(data)):
        return None
    return load_json(data, where=where)
