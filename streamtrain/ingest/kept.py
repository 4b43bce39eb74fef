"""Shards that are there already: of an ingest that was interrupted, or of the dataset that is appended to.

They are read back once, which gives their statistics and checksums, and shows whether they are what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError
from streamtrain.ingest.parts import part_ranges
from streamtrain.ingestion.sources.base import Rows
from streamtrain.store.layout import Layout
from streamtrain.store.shard import DamagedShard, reread
from streamtrain.store.statistics import FieldTally, tally_rows
from streamtrain.store.writing.writer import DatasetWriter
from streamtrain.system.progress_bar import ByteProgress

ReadRows = Callable[[int, int], Rows]


def shard_rows(layout: Layout, shard: int) -> tuple[int, int]:
    """The rows of a shard, as a half-open range."""
    first, end = layout.shard_blocks_range(shard)
    return layout.block_range(first)[0], layout.block_range(end - 1)[1]


def tally_kept(writer: DatasetWriter, shard: int, progress: ByteProgress) -> tuple[FieldTally, ...] | None:
    """Read a shard back and take it over; None where its file is not what was written, and it is to be made again.

    Raises
    ------
    DatasetError
        The shard is of the dataset that is appended to, and damaged.
    """
    try:
        return _tally(writer, shard, progress)
    except DamagedShard:
        if shard < writer.n_linked:
            raise
        writer.drop(shard)
        return None


def _tally(writer: DatasetWriter, shard: int, progress: ByteProgress) -> tuple[FieldTally, ...]:
    layout = writer.layout
    ranges = list(part_ranges(layout, *shard_rows(layout, shard)))
    totals = tuple(FieldTally(field) for field in layout.fields)
    checksums: list[npt.NDArray[np.uint32]] = []
    for (start, stop), (rows, found) in zip(
        ranges, reread(writer.path, layout, shard, writer.kept[shard], ranges), strict=True
    ):
        for total in totals:
            values = rows[total.field.name]
            total.merge(tally_rows(values, total.field, first_row=start, block_rows=layout.block_rows))
        checksums.append(found)
        progress.advance((stop - start) * layout.row_bytes)
    writer.adopt(shard, np.concatenate(checksums))
    return totals


def check_kept(writer: DatasetWriter, shard: int, source: ReadRows) -> None:
    """Hold a shard that is kept against the source's rows, where nothing else says that it is the same source.

    Raises
    ------
    DatasetError
        The source has other rows.
    """
    layout = writer.layout
    ranges = list(part_ranges(layout, *shard_rows(layout, shard)))
    with closing(reread(writer.path, layout, shard, writer.kept[shard], ranges)) as parts:
        for (start, stop), (rows, _) in zip(ranges, parts, strict=True):
            given = source(start, stop)
            for field in layout.fields:
                if not np.array_equal(_bytes(rows[field.name]), _bytes(given[field.name])):
                    raise DatasetError(
                        f"the source is not the one that was being ingested: field {field.name} differs in its samples "
                        f"{start:,} to {stop - 1:,}",
                        where=str(writer.path),
                        fix="give the same source; or ingest with overwrite, from the start",
                    )


def _bytes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
