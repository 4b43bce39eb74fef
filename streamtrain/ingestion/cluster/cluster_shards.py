"""Shards made by the workers of a cluster: handed out, awaited, taken over in row order."""

from __future__ import annotations

import asyncio
import secrets
import time
from concurrent.futures import CancelledError
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import ResourceError, StallError, StreamtrainError, UsageError, first_line
from streamtrain.ingestion.append import AppendedSource
from streamtrain.ingestion.cluster.connection import (
    AT_ONCE,
    START_SECONDS,
    Cluster,
    no_worker,
    submit,
    wait_for,
    workers_of,
)
from streamtrain.ingestion.cluster.portable import mapped_files
from streamtrain.ingestion.cluster.shard_task import (
    HEAD_BYTES,
    MadeShard,
    ShardTask,
    Terms,
    difference,
    halt,
    make_shard,
    sight_of,
)
from streamtrain.ingestion.row_stream import RowStream
from streamtrain.ingestion.sources.base import Source
from streamtrain.ingestion.sources.input_files import first_bytes
from streamtrain.ingestion.write_shards import Tallies, check_all_kept, merge, shard_rows
from streamtrain.store.statistics import FieldTally
from streamtrain.store.writing.journal import JOURNAL
from streamtrain.store.writing.staging import temporaries
from streamtrain.store.writing.writer import DatasetWriter
from streamtrain.system.display.progress_bar import ByteProgress
from streamtrain.system.files import Files
from streamtrain.system.units import counted

_AHEAD: Final = 2
"""How many times as many as are given out may wait for an earlier one: their tallies are held."""
_LOOK_SECONDS: Final = 5.0
_ALONE_SECONDS: Final = 60.0
"""How long an ingest waits for a worker where the last one has left."""
_RETRIES: Final = 2


def check_workers(cluster: Cluster | None, folder: Path, n_kept: int) -> None:
    """Ask each worker whether it sees what the client does, before the first shard is made."""
    if cluster is None:
        return
    terms = _terms(cluster, folder, n_kept)
    ask = partial(difference, terms)
    asked = {
        submit(cluster.client, ask, workers=[address], allow_other_workers=False, retries=0): address
        for address in cluster.workers
    }
    with suppress(TimeoutError):
        wait_for(cluster.client, asked, START_SECONDS)
    for future, address in asked.items():
        where = f"worker {address}"
        if not future.done():
            what = f"a worker did not answer within {START_SECONDS:.0f} s"
            raise StallError(what, where=where, fix="wait until it is free, or restart it")
        failure = future.exception()
        differs = f"cannot begin: {first_line(failure)}" if failure else future.result()
        if differs:
            raise UsageError(f"this worker {differs}", where=where, fix=_ALIKE)
        future.release()


_ALIKE: Final = "give every worker the same versions and the same file systems, at the same paths"


def _terms(cluster: Cluster, folder: Path, n_kept: int) -> Terms:
    own = cluster.source.more if isinstance(cluster.source, AppendedSource) else cluster.source
    folders = {
        str(Path(entry["path"]).absolute()): tuple(entry.get("folders", ()))
        for entry in own.provenance
        if "path" in entry
    }
    folders |= {str(path): () for path in mapped_files(own)}
    journal = folder.absolute() / JOURNAL
    # Entries follow the header, which is there from the start.
    n_bytes = min(HEAD_BYTES, len(first_bytes(journal, HEAD_BYTES).partition(b"\n")[0]))
    return Terms(sight=sight_of(folders, journal, n_bytes), layout=cluster.layout, n_kept=n_kept)


def write_on(cluster: Cluster, writer: DatasetWriter, progress: ByteProgress, *, compare: bool) -> Tallies:
    """Have the workers make the shards that are not kept; return each field's tally, merged in row order."""
    if compare:
        check_all_kept(writer, partial(_read_any, cluster.source, cluster.sizes.run_bytes))
    task = ShardTask(
        run=secrets.token_hex(8),
        source=cluster.source,
        folder=writer.path.absolute(),
        terms=_terms(cluster, writer.path, len(writer.kept)),
        sizes=cluster.sizes,
    )
    shards = _Shards(cluster, task, writer, progress)
    try:
        totals = shards.run()
    except BaseException as error:
        shards.cancel(is_reachable=not isinstance(error, StallError))
        raise
    # A worker that was killed leaves what it had begun.
    for path in temporaries(writer.path):
        Files().unlink(path)
    return totals


def _read_any(source: Source, max_bytes: int, start: int, stop: int) -> Any:
    if source.seekable:
        return source.read(start, stop)
    with closing(RowStream(source, max_bytes, first_row=start, stop=stop)) as stream:
        return stream.take(stop - start)


class _Shards:
    """The shards of one ingest on their way: handed out, awaited, merged in row order."""

    def __init__(self, cluster: Cluster, task: ShardTask, writer: DatasetWriter, progress: ByteProgress) -> None:
        self._client, self._task, self._writer, self._progress = cluster.client, task, writer, progress
        self._running: dict[Any, int] = {}
        self._made: dict[int, MadeShard] = {}
        self._n_given = self._n_merged = 0
        self._n_workers = len(cluster.workers)
        self._looked = time.monotonic()
        self._alone_since: float | None = None

    def run(self) -> Tallies:
        """Return the tallies of all shards."""
        layout = self._writer.layout
        totals = tuple(FieldTally(field) for field in layout.fields)
        while self._n_merged < layout.n_shards:
            self._give_out(layout.n_shards)
            for future in self._finished():
                if (made := self._result(future, self._running[future])) is not None:
                    self._take(self._running.pop(future), made)
                    future.release()
            while (next_made := self._made.pop(self._n_merged, None)) is not None:
                merge(totals, next_made.tallies)
                self._n_merged += 1
        return totals

    def cancel(self, *, is_reachable: bool) -> None:
        """Take back what is not done, and wait for what is being done: it may not write where all is removed."""
        if not is_reachable:
            return
        with suppress(Exception):
            self._client.cancel(list(self._running), force=True)
            self._client.run(halt, self._task.run, on_error="ignore")

    def _give_out(self, n_shards: int) -> None:
        most = AT_ONCE * max(1, self._n_workers)
        while len(self._running) < most and self._n_given < min(n_shards, self._n_merged + _AHEAD * most):
            shard = self._n_given
            self._writer.make_room(shard)
            stored = self._writer.kept.get(shard)
            task = partial(make_shard, self._task, shard, stored, self._writer.n_linked)
            key = f"streamtrain-shard-{self._task.run}-{shard}"
            future = submit(self._client, task, key=key, retries=_RETRIES)
            self._running[future] = shard
            self._n_given += 1

    def _finished(self) -> list[Any]:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._look()
        try:
            return wait_for(self._client, self._running, _LOOK_SECONDS, first=True)
        except TimeoutError:
            self._look()
            return []
        except (CancelledError, asyncio.CancelledError) as error:
            raise _lost(self._client) from error

    def _look(self) -> None:
        """Count the workers anew: some may have come; without any nothing more is done."""
        try:
            self._n_workers = len(workers_of(self._client))
        except (OSError, CancelledError) as error:
            raise _lost(self._client) from error
        self._looked = time.monotonic()
        if self._n_workers:
            self._alone_since = None
            return
        self._alone_since = self._alone_since or self._looked
        if self._looked - self._alone_since > _ALONE_SECONDS:
            raise no_worker(self._client, _ALONE_SECONDS)

    def _result(self, future: Any, shard: int) -> MadeShard | None:
        """Fetch the result of a shard; None where the worker that held it has died: then it is made again."""
        from distributed import KilledWorker
        from distributed.comm import CommClosedError

        try:
            made = future.result(timeout=_LOOK_SECONDS)
        except (CancelledError, asyncio.CancelledError) as error:
            raise _lost(self._client) from error
        except CommClosedError as error:
            # The shard may be made, and its result out of reach.
            raise _lost(self._client) from error
        except KilledWorker as error:
            where = f"shard {shard}, worker {error.last_worker.address}"
            what = f"{counted(error.allowed_failures + 1, 'worker')} died while making the shard"
            raise ResourceError(what, where=where, fix=_MORE_MEMORY) from error
        except Exception as error:
            if isinstance(error, TimeoutError) and future.status != "error":
                self._look()
                return None
            own = error if isinstance(error, ResourceError) else ResourceError(first_line(error))
            raise ResourceError(
                f"failed {_RETRIES + 1} times: {own.what}",
                where=", ".join(filter(None, [f"shard {shard}", own.where])),
                fix=own.fix or "see the worker's log",
            ) from error
        if isinstance(made, StreamtrainError):
            raise made
        assert isinstance(made, MadeShard)
        return made

    def _take(self, shard: int, made: MadeShard) -> None:
        if made.is_kept:
            self._writer.adopt(shard, made.checksums)
        else:
            if shard in self._writer.kept:
                self._writer.drop(shard)
            self._writer.take(shard, made.stored, made.checksums)
        self._made[shard] = made
        first, end = shard_rows(self._writer.layout, shard)
        self._progress.advance((end - first) * self._writer.layout.row_bytes)


_MORE_MEMORY: Final = "workers with more memory, or see why in their logs"


def _lost(client: Any) -> StallError:
    where = getattr(getattr(client, "scheduler", None), "address", None)
    return StallError("the scheduler is gone: the connection to it was lost", where=where, fix="start it again")
