"""Parts: the runs of whole blocks that ingest reads, encodes and counts at once.

A part is about two mebibytes, so that the work per call outweighs the call, and never crosses a shard's edge. Parts
follow from the layout alone: the statistics depend on how rows were cut, so no budget may change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from streamtrain.errors import InputError
from streamtrain.ingestion.sources.base import Rows, Source
from streamtrain.store.layout import Layout

_PART_BYTES: Final = 2**21


def part_rows(layout: Layout) -> int:
    """Rows of a whole part.

    Examples
    --------
    >>> import numpy as np
    >>> from streamtrain.store.layout import Field
    >>> x = Field(name="x", dtype=np.dtype("uint8"), shape=(3072,))
    >>> layout = Layout(fields=(x,), n_samples=1000, block_rows=100, shard_blocks=8, codec="none")
    >>> part_rows(layout), list(part_ranges(layout, 0, 1000))
    (600, [(0, 600), (600, 800), (800, 1000)])
    """
    return layout.block_rows * max(1, min(_PART_BYTES // layout.block_bytes, layout.shard_blocks))


def part_ranges(layout: Layout, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut rows [start, stop) into parts; ``start`` is a part's edge, and only the last part may be cut by ``stop``."""
    shard_rows = layout.block_rows * layout.shard_blocks
    while start < stop:
        shard_end = (start // shard_rows + 1) * shard_rows
        end = min(start + part_rows(layout), shard_end, stop)
        yield start, end
        start = end


def check_rows(rows: Rows, source: Source, first_row: int, n_rows: int | None = None) -> int:
    """Hold a run of rows against what its source promised; return how many rows it has.

    Raises
    ------
    InputError
        A field is missing, or of another dtype, shape or length.
    """
    found = {name: (values.dtype, values.shape[1:]) for name, values in rows.items()}
    promised = {field.name: (field.dtype, field.shape) for field in source.fields}
    lengths = {len(values) for values in rows.values()}
    if found != promised or len(lengths) != 1 or (n_rows is not None and lengths != {n_rows}):
        counts = "/".join(map(str, sorted(lengths)))
        raise InputError(
            f"the source gave {counts} rows of {_listed(found)}; it promised "
            f"{'some' if n_rows is None else n_rows} of {_listed(promised)}",
            where=source.where(first_row),
            fix="correct the source's reader",
        )
    return lengths.pop()


def _listed(kinds: Mapping[str, tuple[object, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in sorted(kinds.items()))
