"""Rows of a source that is read in order, kept in plain files while its splits are made.

The source is read once; the splits are then read from here, any range of rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import InputError
from streamtrain.ingestion.append import check_free_bytes
from streamtrain.ingestion.request import IngestRequest, plan_ingest, run_bytes
from streamtrain.ingestion.row_stream import RowStream
from streamtrain.ingestion.sources.base import Rows, Source, check_range, rows_within
from streamtrain.ingestion.sources.input_files import read_range
from streamtrain.store.layout import Field
from streamtrain.system.files import Files, FileWriter, status_of

_PIECE_BYTES: Final = 1 << 20


class SpooledSource(Source):
    """The rows of a source as plain files have them; where they came from only the source knows."""

    seekable = True
    n_samples: int

    def __init__(self, source: Source, folder: Path, n_samples: int) -> None:
        self.source, self.folder, self.n_samples = source, folder, n_samples
        self.fields, self.classes, self.provenance = source.fields, source.classes, source.provenance
        self.schema_facts = source.schema_facts

    def where(self, row: int) -> str:
        return self.source.where(row)

    def read(self, start: int, stop: int) -> Rows:
        check_range(start, stop, self.n_samples)
        return {field.name: self.read_field(field, start, stop) for field in self.fields}

    def read_field(self, field: Field, start: int, stop: int) -> npt.NDArray[Any]:
        """Read rows of one field."""
        out = np.empty((stop - start, *field.shape), field.dtype)
        read_range(self.folder / field.name, start * field.row_bytes, out)
        return out


def spooled(source: Source, folder: Path, request: IngestRequest, files: Files, *, may_exist: bool) -> SpooledSource:
    """Read a source once into a folder; what an earlier ingest finished there is taken as it is."""
    if may_exist and (n_rows := _n_kept(source, folder)) is not None:
        return SpooledSource(source, folder, n_rows)
    n_rows = _write(source, folder, request, files)
    if not n_rows:
        raise InputError("there are no samples", fix="give at least one row")
    if source.n_samples is not None and n_rows != source.n_samples:
        raise InputError(f"the source promised {source.n_samples} rows and gave {n_rows}", fix="check the source")
    return SpooledSource(source, folder, n_rows)


def _n_kept(source: Source, folder: Path) -> int | None:
    """Count the rows that are there already; None unless every field has as many."""
    counts: Mapping[str, int | None] = {field.name: _n_rows(folder / field.name, field) for field in source.fields}
    (first, *_) = counts.values()
    return first if len(set(counts.values())) == 1 else None


def _n_rows(path: Path, field: Field) -> int | None:
    status = status_of(path)
    return None if status is None or status.st_size % field.row_bytes else status.st_size // field.row_bytes


def _write(source: Source, folder: Path, request: IngestRequest, files: Files) -> int:
    if source.n_samples is not None:
        n_bytes = source.n_samples * sum(field.row_bytes for field in source.fields)
        # Beside the datasets: all rows once, until they are divided.
        check_free_bytes(folder, n_bytes, files)
    n_rows = 0
    with closing(RowStream(source, run_bytes(request.memory))) as stream, ExitStack() as unfinished:
        # Refused here, if at all, as without splits; the codec is tried on each split.
        plan_ingest(source, stream, replace(request, codec="none"))
        outs: dict[str, FileWriter] = {}
        for field in source.fields:
            out = outs[field.name] = files.begin(folder / field.name)
            unfinished.callback(out.abandon)
        n_piece = rows_within(_PIECE_BYTES, source.fields)
        stage = {field.name: np.empty((n_piece, *field.shape), field.dtype) for field in source.fields}
        while n_new := stream.fill(stage, n_piece):
            for name, out in outs.items():
                out.write(stage[name][:n_new].reshape(-1).view(np.uint8).data)
            n_rows += n_new
        for out in outs.values():
            out.finish()
        unfinished.pop_all()
    return n_rows
