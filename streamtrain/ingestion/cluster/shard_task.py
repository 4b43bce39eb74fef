"""Tasks of whole shards, as a worker does them, and what it must see alike with the client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError, InputError, ResourceError, StreamtrainError, UsageError, first_line
from streamtrain.ingestion.request import IngestSizes, check_disk_space
from streamtrain.ingestion.row_stream import RowStream
from streamtrain.ingestion.sources.base import Source
from streamtrain.ingestion.sources.input_files import first_bytes, folders_status
from streamtrain.ingestion.write_shards import Tallies, fill_shard, read_back, shard_rows
from streamtrain.store.codec import checksum
from streamtrain.store.layout import Layout
from streamtrain.store.shard import DamagedShard, StoredFile
from streamtrain.store.writing.writer import open_shard
from streamtrain.system.files import Files
from streamtrain.system.syscalls import SYSTEM

HEAD_BYTES: Final = 4096
_HALT_SECONDS: Final = 10.0
_WRONG: Final = (InputError, UsageError, DatasetError)
"""Errors of what is read, which another attempt would meet again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """What must be the same for every process: versions, source files, and the folder that is written to."""

    versions: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, tuple[str, ...], int, int, int], ...]  # path, folders in it, bytes, time, crc of its head
    journal: tuple[str, int, int]  # path, bytes, crc of them


def sight_of(files: Mapping[str, tuple[str, ...]], journal: Path, n_bytes: int) -> _Sight:
    """Look at what must be the same for every process; of the journal only its first bytes."""
    return _Sight(
        versions=tuple((name, version_of(name)) for name in ("streamtrain", "numcodecs")),
        files=tuple((path, folders, *_fingerprint(Path(path), folders)) for path, folders in files.items()),
        journal=(str(journal), n_bytes, checksum(first_bytes(journal, n_bytes)[:n_bytes])),
    )


def _fingerprint(path: Path, folders: tuple[str, ...]) -> tuple[int, int, int]:
    if folders:
        return *folders_status(path, folders), 0
    status = SYSTEM.stat(path)
    head = b"" if path.is_dir() else first_bytes(path, HEAD_BYTES)
    return status.st_size, status.st_mtime_ns, checksum(head)


def difference(terms: Terms) -> str | None:
    """Say what of an ingest is not to this process what it is to the client; None where all is."""
    there = terms.sight
    for name, version in there.versions:
        if (here := version_of(name)) != version:
            return f"has {name} {here}, and the client {version}"
    for path, folders, *facts in there.files:
        try:
            here_is = _fingerprint(Path(path), folders)
        except (OSError, StreamtrainError) as error:
            return f"does not see {path}: {first_line(error)}"
        if list(here_is) != facts:
            return f"sees another file at {path}: {here_is[0]:,} bytes, and the client {facts[0]:,}"
    path, n_bytes, crc = there.journal
    try:
        head = first_bytes(Path(path), n_bytes)[:n_bytes]
        if checksum(head) != crc:
            return f"sees another folder at {Path(path).parents[1]}"
        check_disk_space(Path(path).parents[1], terms.layout, Files(), n_kept=terms.n_kept)
    except (OSError, StreamtrainError) as error:
        return f"cannot write {Path(path).parents[1]}: {first_line(error)}"
    return None


@lru_cache(maxsize=8)
def _check_sight(run: str, terms: Terms) -> None:
    """Check once what is the same for all tasks: a worker may have come after the others were asked."""
    if differs := difference(terms):
        raise ResourceError(f"the worker {differs}")


# Tasks: what runs on a worker.


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What all tasks of an ingest share, but the source."""

    sight: _Sight
    layout: Layout
    n_kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """What a task needs besides the number of its shard."""

    run: str
    source: Source
    folder: Path
    terms: Terms
    sizes: IngestSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeShard:
    """One shard of every field, durable under its name."""

    stored: tuple[StoredFile, ...]
    checksums: npt.NDArray[np.uint32]
    tallies: Tallies
    is_kept: bool  # it was there before, and is what was written then


class _Halts:
    """Ingests that this process works for, and those it was asked to leave: memory is that of a few at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at_work: dict[str, int] = {}
        self._halted: set[str] = set()

    @contextmanager
    def working(self, run: str, n_workers: int) -> Iterator[Callable[[], bool]]:
        """Wait for a place among so many; yield whether the ingest was halted meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: run in self._halted or self._at_work.get(run, 0) < n_workers)
            self._at_work[run] = self._at_work.get(run, 0) + 1
        try:
            yield lambda: run in self._halted
        finally:
            with self._changed:
                self._at_work[run] -= 1
                self._changed.notify_all()

    def halt(self, run: str) -> None:
        """Have what is at work for an ingest end, and wait until it has."""
        with self._changed:
            self._halted.add(run)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._at_work.get(run), _HALT_SECONDS)


_HALTS: Final = _Halts()


async def halt(run: str) -> None:
    """Have this worker leave an ingest."""
    # The loop of a worker goes on meanwhile.
    await asyncio.to_thread(_HALTS.halt, run)


Made = MadeShard | StreamtrainError


def make_shard(task: ShardTask, shard: int, stored: tuple[StoredFile, ...] | None, n_linked: int) -> Made:
    """Make one shard on a worker, or read back one that is there; return an error of the source, which stays one."""
    with _HALTS.working(task.run, task.sizes.n_workers) as is_halted:
        try:
            _check_sight(task.run, task.terms)
            if stored is not None:
                kept = _kept(task, shard, stored, n_linked)
                if kept is not None:
                    return kept
            return _written(task, shard, is_halted)
        except CancelledError:
            raise
        except _WRONG as error:
            if (differs := difference(task.terms)) is None:
                return error
            raise _of_worker(ResourceError(f"the worker {differs}")) from error
        except Exception as error:
            raise _of_worker(error) from None


def _kept(task: ShardTask, shard: int, stored: tuple[StoredFile, ...], n_linked: int) -> MadeShard | None:
    try:
        tallies, checksums = read_back(task.folder, task.terms.layout, shard, stored, lambda _: None)
    except DamagedShard:
        if shard < n_linked:
            raise
        return None
    return MadeShard(stored=stored, checksums=checksums, tallies=tallies, is_kept=True)


def _written(task: ShardTask, shard: int, is_halted: Callable[[], bool]) -> MadeShard:
    layout, source = task.terms.layout, task.source
    start, stop = shard_rows(layout, shard)
    with (
        closing(RowStream(source, task.sizes.run_bytes, first_row=start, stop=stop)) as stream,
        open_shard(task.folder, layout, shard, Files()) as out,
    ):
        read = None if source.seekable else lambda first, end: stream.take(end - first)
        tallies = fill_shard(source, layout, shard, out, is_halted, lambda _: None, read=read)
    try:
        for file in out.files:
            file.finish(flush_folder=False)
    finally:
        for file in out.files:
            file.abandon()
    return MadeShard(stored=out.stored, checksums=out.checksums, tallies=tallies, is_kept=False)


def _of_worker(error: Exception) -> ResourceError:
    """Name the worker in what went wrong on it; another may do better."""
    from distributed import get_worker

    told = error.told() if isinstance(error, StreamtrainError) else f"{type(error).__name__}: {first_line(error)}"
    fix = error.fix if isinstance(error, StreamtrainError) else None
    return ResourceError(told, where=f"worker {get_worker().address}", fix=fix)
