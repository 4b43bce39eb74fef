"""The labels of a stored dataset, read block by block when they are asked for, and no other field.

They are held as class numbers of one or two bytes, or as float32 deviations where labels are numbers. Memory that no
block was read into is never touched, so a stretch of an epoch takes the memory of the blocks it needs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from streamtrain.blocks import BlockReader
from streamtrain.errors import UsageError
from streamtrain.shuffle.order import I64
from streamtrain.shuffle.quality import Array, Population, class_dtype, standardized
from streamtrain.store.dataset import Dataset

LABELS: Final = "y"


class StoredLabels:
    """The labels of a dataset (field ``y``), in the form that `quality.measure` takes.

    Integers of at most 65,536 values are classes, other integers and floats are numbers.

    Parameters
    ----------
    dataset : Dataset
        The open dataset.

    Attributes
    ----------
    population : Population
        What a full reshuffle of them depends on, from the stored statistics.

    Raises
    ------
    UsageError
        There is no field ``y``, or its samples are no scalars.

    Examples
    --------
    >>> import tempfile, streamtrain as st
    >>> dataset = st.ingest({"y": np.array([5, 5, 9, 5])}, tempfile.mkdtemp() + "/d.zarr")
    >>> with StoredLabels(dataset) as labels:
    ...     labels.population.shares.tolist(), labels.take(np.array([2, 0])).tolist()
    ([0.75, 0.25], [1, 0])
    """

    def __init__(self, dataset: Dataset) -> None:
        names = [field.name for field in dataset.fields]
        if LABELS not in names:
            raise UsageError(f"there is no field {LABELS}", where=str(dataset.path))
        self._layout = dataset.layout
        self._field = dataset.layout.field(LABELS)
        if self._field.shape:
            raise UsageError(f"field {LABELS} has {len(self._field.shape)} axes a sample", where=str(dataset.path))
        statistics = dataset.manifest.statistics[LABELS]
        self._overall = statistics.overall
        self._values = statistics.histogram.values if statistics.histogram else None
        counts = statistics.histogram.counts if statistics.histogram else None
        self.population = Population(
            n_samples=len(dataset), shares=None if counts is None else counts / self._layout.n_samples
        )
        dtype: np.dtype[Any] = np.dtype(np.float32) if self._values is None else class_dtype(len(self._values))
        self._labels: Array = np.empty(len(dataset), dtype)
        self._here = np.zeros(self._layout.n_blocks, np.bool_)
        self._buffer = np.empty(self._layout.block_rows, self._field.dtype)
        self._reader = BlockReader(_with_labels_alone(dataset))

    def take(self, samples: I64) -> Array:
        """The labels of some samples, shape (n,)."""
        blocks = samples // self._layout.block_rows
        for block in np.unique(blocks[~self._here[blocks]]).tolist():
            self._read(block)
        return self._labels.take(samples)

    def _read(self, block: int) -> None:
        start, stop = self._layout.block_range(block)
        self._reader.read(block, [self._buffer.view(np.uint8).data])
        rows = self._buffer[: stop - start]
        if self._values is None:
            self._labels[start:stop] = standardized(rows, self._overall.mean, self._overall.std)
        else:
            self._labels[start:stop] = np.searchsorted(self._values, rows)
        self._here[block] = True

    def close(self) -> None:
        """Close all files."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_labels_alone(dataset: Dataset) -> Dataset:
    """The same dataset as if it had no other field: what reads its blocks then leaves the others where they are."""
    place = [field.name for field in dataset.fields].index(LABELS)
    layout = replace(dataset.layout, fields=(dataset.fields[place],))
    checksums: npt.NDArray[np.uint32] = dataset.block_checksums[:, place : place + 1]
    return Dataset(path=dataset.path, manifest=replace(dataset.manifest, layout=layout), block_checksums=checksums)
