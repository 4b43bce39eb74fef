"""Writing a dataset: shards in any order and from any thread, then one commit.

The private group's folder comes first and the root ``zarr.json`` last, so that a killed run leaves a directory that
is recognised as incomplete, and nothing that opens. Every file is durable before the root names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from streamtrain.errors import UsageError
from streamtrain.files import Files
from streamtrain.layout import Layout
from streamtrain.stats import FieldStats, FieldTally, tally_rows
from streamtrain.store import metadata
from streamtrain.store.codec import encode
from streamtrain.store.flusher import Flusher
from streamtrain.store.manifest import FORMAT, FieldSummary, Json, Manifest, dataset_id, dump_manifest
from streamtrain.store.shard import ShardWriter
from streamtrain.store.stored import StoredFile, file_of

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some whole blocks of every field, encoded and counted, ready to be appended to a shard.

    Parameters
    ----------
    blocks : tuple of tuple of buffer
        For each field, its encoded blocks in order; views of the rows where the codec is ``"none"``.
    tallies : tuple of FieldTally
        For each field, the statistics of its rows.
    n_rows, n_bytes : int
        How many rows, and their decoded bytes.
    """

    blocks: tuple[tuple[bytes | memoryview, ...], ...]
    tallies: tuple[FieldTally, ...]
    n_rows: int
    n_bytes: int


def encode_part(rows: Mapping[str, Array], layout: Layout, first_row: int) -> Part:
    """Encode and count rows that start at a block's edge; only the last block may be short.

    Parameters
    ----------
    rows : mapping of str to ndarray
        The rows of each field, of the layout's dtypes and shapes.
    layout : Layout
        The dataset's.
    first_row : int
        Which row of the dataset they start at.
    """
    arrays = [np.ascontiguousarray(rows[field.name]) for field in layout.fields]
    return Part(
        blocks=tuple(tuple(_encoded_blocks(array, layout)) for array in arrays),
        tallies=tuple(
            tally_rows(array, field, first_row=first_row, block_rows=layout.block_rows)
            for array, field in zip(arrays, layout.fields, strict=True)
        ),
        n_rows=len(arrays[0]),
        n_bytes=sum(array.nbytes for array in arrays),
    )


def _encoded_blocks(rows: Array, layout: Layout) -> Iterator[bytes | memoryview]:
    for start in range(0, len(rows), layout.block_rows):
        block = rows[start : start + layout.block_rows]
        if len(block) < layout.block_rows:
            padded = np.zeros((layout.block_rows, *rows.shape[1:]), rows.dtype)
            padded[: len(block)] = block
            block = padded
        yield encode(block, layout.codec)


class OpenShard:
    """The files of one shard, one per field, being written together; made by `DatasetWriter.shard`."""

    def __init__(self, writers: Sequence[ShardWriter]) -> None:
        self._writers = writers

    def append(self, part: Part) -> None:
        """Write the next blocks of every field."""
        for writer, blocks in zip(self._writers, part.blocks, strict=True):
            writer.append(*blocks)


class DatasetWriter:
    """A dataset being written; leaving its ``with`` block without a commit removes all of it.

    Parameters
    ----------
    path : Path
        A directory that does not exist yet.
    layout : Layout
        The plan; ``n_samples`` counts only at the commit.
    files : Files
        Who writes.
    """

    def __init__(self, path: Path, layout: Layout, *, files: Files) -> None:
        self.path = path
        self.layout = layout
        self._files = files
        self._stored: dict[str, StoredFile] = {}
        self._checksums: dict[int, npt.NDArray[np.uint32]] = {}
        self._is_committed = False
        self._flusher = Flusher(files)

    def __enter__(self) -> DatasetWriter:
        try:
            self._files.make_dir(self.path)
        except FileExistsError:
            raise UsageError("already exists", where=str(self.path), fix="choose another destination") from None
        try:
            self._files.make_dir(self.path / metadata.PRIVATE)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nothing may be flushed into a directory that is being removed.
        self._flusher.close()
        if not self._is_committed:
            try:
                self._remove()
            except OSError as failure:
                if error is None:
                    raise
                error.add_note(f"and {self.path} could not be removed: {failure}")

    def _remove(self) -> None:
        # The root goes first: whatever stops us after that leaves nothing that opens.
        root = self.path / metadata.ROOT
        if root.exists():
            self._files.system.unlink(root)
        self._files.remove_tree(self.path)

    @contextmanager
    def shard(self, shard: int) -> Iterator[OpenShard]:
        """Write one shard of every field; after the ``with`` block its files become durable in the background.

        Raises
        ------
        ResourceError
            It cannot be written, or an earlier shard could not be.
        """
        keys = [metadata.shard_key(field, shard) for field in self.layout.fields]
        with ExitStack() as unfinished:
            files = []
            for key in keys:
                path = self.path / key
                self._files.ensure_dir(path.parent)
                files.append(self._files.begin(path))
                unfinished.callback(files[-1].abandon)
            writers = [ShardWriter(file, self.layout.shard_blocks) for file in files]
            yield OpenShard(writers)
            for writer in writers:
                writer.finish()
            unfinished.pop_all()
        self._flusher.add(files)
        self._stored.update((key, writer.stored) for key, writer in zip(keys, writers, strict=True))
        self._checksums[shard] = np.array([writer.checksums for writer in writers], np.uint32).T

    def commit(
        self,
        *,
        n_samples: int,
        classes: tuple[str, ...] | None,
        sources: tuple[Json, ...],
        options: Json,
        statistics: Mapping[str, FieldStats],
    ) -> None:
        """Describe what was written and make it a dataset; nothing opens before the last file of this."""
        self._flusher.wait()
        layout = self.layout = replace(self.layout, n_samples=n_samples)
        checksums = np.concatenate([self._checksums[shard] for shard in range(layout.n_shards)])
        for field in layout.fields:
            self._write(metadata.field_array(field, layout))
        self._write(metadata.group(metadata.PRIVATE))
        self._write(metadata.small_array(metadata.CHECKSUMS, checksums, ("block", "field")))
        self._write(metadata.group(metadata.STATISTICS))
        for name, stats in statistics.items():
            self._write(metadata.small_array(f"{metadata.STATISTICS}/{name}", stats.features, ("statistic",)))
        manifest = Manifest(
            id=dataset_id(layout, classes, checksums),
            layout=layout,
            classes=classes,
            sources=sources,
            options=options,
            statistics={
                name: FieldSummary(overall=stats.overall, histogram=stats.histogram, rho=stats.rho)
                for name, stats in statistics.items()
            },
            files=self._stored,
        )
        self._write_root(manifest.id, dump_manifest(manifest))

    def _write_root(self, identity: str, manifest: bytes) -> None:
        self._files.write_bytes(self.path / metadata.MANIFEST, manifest)
        ours = {"format": FORMAT, "id": identity, "manifest_sha256": hashlib.sha256(manifest).hexdigest()}
        (root,) = metadata.group("", {"streamtrain": ours}).values()
        self._files.write_bytes(self.path / metadata.ROOT, root)
        self._is_committed = True

    def _write(self, contents: Mapping[str, bytes]) -> None:
        for key, data in contents.items():
            path = self.path / key
            self._files.ensure_dir(path.parent)
            self._files.write_bytes(path, data)
            self._stored[key] = file_of(data)
