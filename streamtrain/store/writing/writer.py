"""The writer of a dataset: shards in any order and from any thread, then one commit.

The private group's folder comes first and the root ``zarr.json`` last, so a killed run leaves a directory that is
recognized as incomplete and does not open. Every file is durable before the root names it, and each shard before the
journal names it, from which a later run resumes.

Files are flushed by threads of their own, while the next ones are written: a flush waits for the disk and needs no
core. Directories are flushed once, when all files have their names, because each such flush makes the file system
commit its journal.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.store import zarr_metadata
from streamtrain.store.codec import encode
from streamtrain.store.layout import Field, Layout
from streamtrain.store.manifest import FieldSummary, Json, Manifest, dataset_id, dump_manifest
from streamtrain.store.media.encoded import pack
from streamtrain.store.schema.facts import SchemaFacts, stored_facts_of
from streamtrain.store.shard import ShardWriter, StoredFile, file_of
from streamtrain.store.statistics import FieldStats, FieldTally, is_wide, tally_rows
from streamtrain.store.writing.journal import Journal, Shards
from streamtrain.system.files import Files, FileWriter

FLUSHERS: Final = 2
"""Threads that wait for the disk."""

_MOST_WAITING: Final = 4


class Flusher:
    """Finishes written files, a group at a time; an error comes out of the next call that can raise.

    At most a few groups wait: whoever hands over another one then waits for the disk too.
    """

    def __init__(self, files: Files, root: Path) -> None:
        self._files = files
        self._root = root
        self._folders: dict[Path, None] = {}
        self._pool = ThreadPoolExecutor(FLUSHERS, thread_name_prefix="streamtrain-ingest-flush")
        self._room = threading.BoundedSemaphore(FLUSHERS + _MOST_WAITING)
        self._adding = threading.Lock()
        self._flushes: list[Future[None]] = []

    def add(self, files: Sequence[FileWriter], then: Callable[[], None] | None = None) -> None:
        """Take files over, to finish them and call ``then``; `wait` flushes the directories above them."""
        self._room.acquire()
        flush = self._pool.submit(self._finish, files, then)
        with self._adding:
            self._flushes.append(flush)
            self._folders.update((folder, None) for file in files for folder in self._above(file.folder))
            done = [flush for flush in self._flushes if flush.done()]
            self._flushes = [flush for flush in self._flushes if flush not in done]
        for flush in done:
            flush.result()

    def cover(self, folder: Path) -> None:
        """Have a directory flushed with the others, and those above it: it holds files that are durable already."""
        with self._adding:
            self._folders.update((above, None) for above in self._above(folder))

    def wait(self) -> None:
        """Return when every file is durable under its name, and so are the directories above it."""
        for flush in self._flushes:
            flush.result()
        for _ in self._pool.map(self._files.flush_dir, self._folders):
            pass
        self._flushes.clear()
        self._folders.clear()

    def close(self) -> None:
        """End the threads; what was handed over has been finished, or has failed and is gone."""
        self._pool.shutdown()

    def _above(self, folder: Path) -> Iterator[Path]:
        """Yield a file's directory, and those above it up to the root."""
        yield folder
        for above in folder.parents:
            if not above.is_relative_to(self._root):
                break
            yield above

    def _finish(self, files: Sequence[FileWriter], then: Callable[[], None] | None) -> None:
        try:
            with ExitStack() as unfinished:
                for file in files:
                    unfinished.callback(file.abandon)
                for file in files:
                    file.finish(flush_folder=False)
            if then is not None:
                then()
        finally:
            self._room.release()


Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPart:
    """Some whole blocks of every field, encoded and counted, ready to be appended to a shard."""

    blocks: tuple[tuple[bytes | memoryview, ...], ...]  # of each field; views of the rows where uncompressed
    tallies: tuple[FieldTally | Array, ...]  # of wide samples the rows: they are counted when the part is taken
    first_row: int
    n_rows: int
    n_bytes: int

    def count_into(self, totals: Sequence[FieldTally], block_rows: int) -> None:
        """Add the part to each field's tally of earlier rows."""
        for total, tally in zip(totals, self.tallies, strict=True):
            if isinstance(tally, FieldTally):
                total.merge(tally)
            else:
                total.add_part(tally, first_row=self.first_row, block_rows=block_rows)


def encode_part(rows: Mapping[str, Array], layout: Layout, first_row: int) -> EncodedPart:
    """Encode and count rows that start at a block's edge; only the last block may be short."""
    arrays = [np.ascontiguousarray(rows[field.name]) for field in layout.fields]
    return EncodedPart(
        blocks=tuple(
            tuple(_encoded_blocks(array, field, layout)) for array, field in zip(arrays, layout.fields, strict=True)
        ),
        tallies=tuple(
            array if is_wide(field) else tally_rows(array, field, first_row=first_row, block_rows=layout.block_rows)
            for array, field in zip(arrays, layout.fields, strict=True)
        ),
        first_row=first_row,
        n_rows=len(arrays[0]),
        n_bytes=len(arrays[0]) * layout.row_bytes,
    )


def _encoded_blocks(rows: Array, field: Field, layout: Layout) -> Iterator[bytes | memoryview]:
    codec = layout.codec_of(field)
    if field.encoded:
        for start in range(0, len(rows), layout.block_rows):
            packed = pack(rows[start : start + layout.block_rows], layout.block_rows * field.row_bytes)
            yield encode(packed, codec, shuffles=False)
        return
    for start in range(0, len(rows), layout.block_rows):
        block = rows[start : start + layout.block_rows]
        if len(block) < layout.block_rows:
            padded = np.zeros((layout.block_rows, *rows.shape[1:]), rows.dtype)
            padded[: len(block)] = block
            block = padded
        yield encode(block, codec)


class OpenShard:
    """The files of one shard, one per field, being written together; made by `open_shard`."""

    def __init__(self, files: Sequence[FileWriter], shard_blocks: int) -> None:
        self.files = files
        self._writers = [ShardWriter(file, shard_blocks) for file in files]

    @property
    def stored(self) -> tuple[StoredFile, ...]:
        """The files so far."""
        return tuple(writer.stored for writer in self._writers)

    @property
    def checksums(self) -> npt.NDArray[np.uint32]:
        """The checksums of the blocks so far, of shape (n_blocks, n_fields)."""
        return np.array([writer.checksums for writer in self._writers], np.uint32).T

    def append(self, part: EncodedPart) -> None:
        """Write the next blocks of every field."""
        for writer, blocks in zip(self._writers, part.blocks, strict=True):
            writer.append(*blocks)

    def write_indexes(self) -> None:
        """Write what ends the files."""
        for writer in self._writers:
            writer.finish()


@contextmanager
def open_shard(folder: Path, layout: Layout, shard: int, files: Files) -> Iterator[OpenShard]:
    """Write one shard of every field, into directories that are there; its files are the caller's to finish then."""
    with ExitStack() as unfinished:
        begun: list[FileWriter] = []
        for field in layout.fields:
            begun.append(files.begin(folder / zarr_metadata.shard_key(field, shard)))
            unfinished.callback(begun[-1].abandon)
        out = OpenShard(begun, layout.shard_blocks)
        yield out
        out.write_indexes()
        unfinished.pop_all()


class DatasetWriter:
    """A dataset being written; leaving its ``with`` block without a commit leaves what the journal names."""

    def __init__(
        self, path: Path, layout: Layout, *, files: Files, journal: Journal, kept: Shards, n_linked: int = 0
    ) -> None:
        self.path = path
        self.layout = layout  # its number of samples counts only at the commit
        self.kept = dict(kept)  # shards that are there already: each is to be adopted, or dropped and written
        self.n_linked = n_linked  # the first of them, which are another dataset's
        self._files = files
        self._journal = journal
        self._stored: dict[str, StoredFile] = {}
        self._checksums: dict[int, npt.NDArray[np.uint32]] = {}
        self._flusher = Flusher(files, path)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nothing may be flushed into a directory that is being removed.
        self._flusher.close()

    def adopt(self, shard: int, checksums: npt.NDArray[np.uint32]) -> None:
        """Take over a shard that was read back and found to be what was written."""
        for field, file in zip(self.layout.fields, self.kept[shard], strict=True):
            key = zarr_metadata.shard_key(field, shard)
            self._stored[key] = file
            self._flusher.cover((self.path / key).parent)
        self._checksums[shard] = checksums

    def drop(self, shard: int) -> None:
        """Make a shard anew that is not what was written; its files are replaced when it is finished."""
        del self.kept[shard]

    @contextmanager
    def shard(self, shard: int) -> Iterator[OpenShard]:
        """Write one shard of every field; after the ``with`` block its files become durable in the background."""
        self.make_room(shard)
        with open_shard(self.path, self.layout, shard, self._files) as out:
            yield out
        stored = out.stored
        self._flusher.add(out.files, then=partial(self._journal.add, shard, stored))
        self._stored.update(zip(self._keys(shard), stored, strict=True))
        self._checksums[shard] = out.checksums

    def make_room(self, shard: int) -> None:
        """Make the directories of a shard's files."""
        for key in self._keys(shard):
            self._files.ensure_dir((self.path / key).parent, flush_folder=False)

    def take(self, shard: int, stored: tuple[StoredFile, ...], checksums: npt.NDArray[np.uint32]) -> None:
        """Take over a shard that another process wrote: its files are durable, their names are not yet."""
        for key in self._keys(shard):
            self._flusher.cover((self.path / key).parent)
        self._flusher.add([], then=partial(self._journal.add, shard, stored))
        self._stored.update(zip(self._keys(shard), stored, strict=True))
        self._checksums[shard] = checksums

    def _keys(self, shard: int) -> list[str]:
        return [zarr_metadata.shard_key(field, shard) for field in self.layout.fields]

    def commit(
        self,
        *,
        n_samples: int,
        classes: tuple[str, ...] | None,
        sources: tuple[Json, ...],
        options: Json,
        statistics: Mapping[str, FieldStats],
        schema: SchemaFacts | None = None,
    ) -> None:
        """Describe what was written and make it a dataset; nothing opens before the last file of this."""
        layout = self.layout = replace(self.layout, n_samples=n_samples)
        checksums = np.concatenate([self._checksums[shard] for shard in range(layout.n_shards)])
        for field in layout.fields:
            images = statistics[field.name].images
            self._write(zarr_metadata.field_array(field, layout, () if images is None else images.media))
        self._write(zarr_metadata.group(zarr_metadata.PRIVATE))
        self._write(zarr_metadata.small_array(zarr_metadata.CHECKSUMS, checksums, ("block", "field")))
        self._write(zarr_metadata.group(zarr_metadata.STATISTICS))
        for name, stats in statistics.items():
            self._write(zarr_metadata.small_array(f"{zarr_metadata.STATISTICS}/{name}", stats.features, ("statistic",)))
        facts, vocabularies = (None, {}) if schema is None else stored_facts_of(schema)
        self._write({f"{zarr_metadata.PRIVATE}/{name}": data for name, data in vocabularies.items()})
        manifest = Manifest(
            id=dataset_id(layout, classes, checksums, facts),
            layout=layout,
            classes=classes,
            sources=sources,
            options=options,
            statistics={
                name: FieldSummary(
                    overall=stats.overall,
                    histogram=stats.histogram,
                    rho=stats.rho,
                    facts=stats.facts,
                    images=stats.images,
                )
                for name, stats in statistics.items()
            },
            files=self._in_order(),
            schema=facts,
        )
        self._write_root(manifest)

    def _in_order(self) -> dict[str, StoredFile]:
        """Return all files, shards first and in order, whichever was finished first."""
        keys = [key for shard in range(self.layout.n_shards) for key in self._keys(shard)]
        return {key: self._stored[key] for key in keys} | self._stored

    def _write_root(self, manifest: Manifest) -> None:
        # All that the manifest describes is durable before it is, and that before the root.
        self._flusher.wait()
        data = dump_manifest(manifest)
        self._files.write_bytes(self.path / zarr_metadata.MANIFEST, data)
        digest = hashlib.sha256(data).hexdigest()
        ours = {"format": manifest.format, "id": manifest.id, "manifest_sha256": digest}
        (root,) = zarr_metadata.group("", {"streamtrain": ours}).values()
        self._files.write_bytes(self.path / zarr_metadata.ROOT, root)

    def _begin(self, key: str) -> FileWriter:
        """Begin a file that the flusher will finish, together with the directories above it."""
        path = self.path / key
        self._files.ensure_dir(path.parent, flush_folder=False)
        return self._files.begin(path)

    def _write(self, contents: Mapping[str, bytes]) -> None:
        for key, data in contents.items():
            file = self._begin(key)
            try:
                file.write(data)
            except BaseException:
                file.abandon()
                raise
            self._flusher.add([file])
            self._stored[key] = file_of(data)
