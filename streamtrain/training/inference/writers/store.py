"""Predictions as a dataset of ours: checked, durable, usable as features.

It is made beside its place, as the successor of what is there, and takes the place when it is finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError, StreamtrainError
from streamtrain.store.dataset import open_dataset
from streamtrain.store.layout import Field, Layout, plan_layout
from streamtrain.store.statistics import FieldTally
from streamtrain.store.writing.journal import JournalHeader, begin_journal, continue_journal
from streamtrain.store.writing.lock import writer_lock
from streamtrain.store.writing.staging import begin_folder, publish, real_path, remove_dataset, successor, tidy
from streamtrain.store.writing.writer import DatasetWriter, OpenShard, encode_part
from streamtrain.system.files import Files, is_there
from streamtrain.training.inference.predictions import Part

_SHARD_BYTES: Final = 64_000_000
_BLOCK_BYTES: Final = 512 * 2**10
_COPIES: Final = 8
"""Of the rows that are held: as they came, joined, encoded, counted."""

Rows = dict[str, npt.NDArray[Any]]


class StoreWriter:
    """Writes parts as the fields ``prediction``, ``probability``, ``row`` and ``id`` of a dataset."""

    def __init__(self, path: Path, *, n_rows: int | None, buffer_bytes: int, source: str, files: Files) -> None:
        self._path = real_path(path)
        self._folder = successor(self._path)
        self._n_rows, self._buffer_bytes, self._source, self._files = n_rows, buffer_bytes, source, files
        self._held: list[Rows] = []
        self._n_held = self._n_written = 0
        self._stack, self._of_writer, self._of_shard = ExitStack(), ExitStack(), ExitStack()
        self._writer: DatasetWriter | None = None
        self._shard: OpenShard | None = None
        self._stack.enter_context(writer_lock(self._path, files))
        try:
            tidy(self._path, files)
            remove_dataset(self._folder, files)
        except BaseException:
            self._stack.close()
            raise

    def add(self, part: Part) -> None:
        """Take in a part; write whole blocks where enough are held."""
        rows = _rows_of(part)
        if self._writer is None:
            self._begin(rows)
        self._held.append(rows)
        self._n_held += len(part)
        whole = self._n_held // self._n_step * self._n_step
        if whole:
            self._write(whole)

    def finish(self) -> None:
        """Write the rest, and put the dataset in its place."""
        if self._writer is None or not self._n_held + self._n_written:
            raise InputError("there are no rows, and a dataset has some", where=str(self._path), fix="a file: .csv")
        if self._n_held:
            self._write(self._n_held)
        self._of_shard.close()
        self._writer.commit(
            n_samples=self._n_written,
            classes=None,
            sources=({"format": "predictions", "path": self._source},),
            options={},
            statistics={tally.field.name: tally.finish() for tally in self._totals},
        )
        self._of_writer.close()
        # What does not open must not replace what does.
        open_dataset(self._folder)
        if is_there(self._path):
            publish(self._folder, self._path, self._files)
        else:
            self._files.rename(self._folder, self._path)
        tidy(self._path, self._files)
        self._stack.close()

    def abandon(self, error: BaseException) -> None:
        """Remove what was begun; what was there before stays."""
        # Nothing may be flushed into a folder that is being removed; the lock goes last.
        with self._stack:
            with suppress(BaseException):
                self._of_shard.__exit__(type(error), error, error.__traceback__)
            self._of_writer.close()
            with suppress(OSError, StreamtrainError):
                remove_dataset(self._folder, self._files)

    def _begin(self, rows: Rows) -> None:
        fields = tuple(Field(name=name, dtype=values.dtype, shape=values.shape[1:]) for name, values in rows.items())
        layout = plan_layout(
            fields,
            self._n_rows or None,
            block_bytes=min(_BLOCK_BYTES, max(1, self._buffer_bytes // (2 * _COPIES))),
            shard_bytes=_SHARD_BYTES,
            codec="lz4",
        )
        self._n_step = layout.block_rows * max(1, self._buffer_bytes // _COPIES // layout.block_bytes)
        header = JournalHeader(
            mode="overwrite",
            base=None,
            version=version_of("streamtrain"),
            layout=layout,
            classes=None,
            sources=(),
            options={},
        )
        begin_folder(self._folder, self._path, lambda fresh: begin_journal(fresh, header, self._files), self._files)
        journal = continue_journal(self._folder, header, {}, self._files)
        self._of_writer.callback(journal.close)
        self._writer = self._of_writer.enter_context(
            DatasetWriter(self._folder, layout, files=self._files, journal=journal, kept={})
        )
        self._totals = tuple(FieldTally(field) for field in fields)

    def _write(self, n_rows: int) -> None:
        """Write the first rows that are held: whole blocks, or all at the end."""
        assert self._writer is not None
        layout = self._writer.layout
        joined = {name: np.concatenate([rows[name] for rows in self._held]) for name in self._held[0]}
        shard_rows = layout.block_rows * layout.shard_blocks
        start = 0
        while start < n_rows:
            if self._n_written % shard_rows == 0:
                self._next_shard(self._n_written // shard_rows)
            stop = min(n_rows, start + shard_rows - self._n_written % shard_rows)
            self._append({name: values[start:stop] for name, values in joined.items()}, layout)
            self._n_written += stop - start
            start = stop
        self._held = [{name: values[n_rows:].copy() for name, values in joined.items()}]
        self._n_held -= n_rows

    def _next_shard(self, number: int) -> None:
        assert self._writer is not None
        self._of_shard.close()
        self._shard = self._of_shard.enter_context(self._writer.shard(number))

    def _append(self, rows: Mapping[str, npt.NDArray[Any]], layout: Layout) -> None:
        assert self._shard is not None
        part = encode_part(rows, layout, self._n_written)
        self._shard.append(part)
        part.count_into(self._totals, layout.block_rows)


def _rows_of(part: Part) -> Rows:
    rows: Rows = {"prediction": part.prediction}
    if part.probabilities is not None:
        rows["probability"] = part.probabilities
    rows["row"] = part.rows
    return rows | ({} if part.id is None else {"id": part.id})
