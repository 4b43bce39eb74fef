"""Samples of a range, each block read once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy.typing as npt

from streamtrain.store.layout import Field, Layout

Array = npt.NDArray[Any]


class BlockReads(Protocol):
    """What samples are read from."""

    @property
    def layout(self) -> Layout: ...
    def read_block(self, field: str, block: int) -> Array: ...


def read_range(dataset: BlockReads, field: Field, rows: range) -> Array:
    """Read the samples of a field in a range of any step."""
    if rows.step < 0:
        return read_range(dataset, field, rows[::-1])[::-1]
    layout, out = dataset.layout, field.empty(len(rows))
    done = 0
    while done < len(rows):
        block = rows[done] // layout.block_rows
        start, stop = layout.block_range(block)
        places = range(rows[done] - start, stop - start, rows.step)[: len(rows) - done]
        out[done : done + len(places)] = dataset.read_block(field.name, block)[places.start : places.stop : rows.step]
        done += len(places)
    return out


def iter_samples(dataset: BlockReads) -> Iterator[dict[str, Any]]:
    """Yield each sample in order, without the lengths of encoded ones."""
    for block in range(dataset.layout.n_blocks):
        rows = {field.name: dataset.read_block(field.name, block) for field in dataset.layout.own_fields}
        for row in range(len(next(iter(rows.values())))):
            yield {name: sample_of(values, row) for name, values in rows.items()}


def as_samples(rows: Mapping[str, Array]) -> dict[str, Any]:
    """Turn arrays of encoded samples into lists of bytes."""
    return {name: values.tolist() if values.dtype == object else values for name, values in rows.items()}


def sample_of(values: Array, row: int, *, copies: bool = False) -> Any:
    """Return one sample of an array of them: bytes of an encoded field, else an array of the field's shape."""
    if values.dtype == object:
        return values[row]
    sample = values[row, ...]
    return sample.copy() if copies else sample
