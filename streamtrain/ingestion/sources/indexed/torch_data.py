"""Sources of torch: a ``Dataset`` and an ``IterableDataset`` sample by sample, a ``DataLoader`` by batches.

They are recognized by what they offer, and torch is never imported here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import Argument, Fix, InputError, UsageError, printable
from streamtrain.ingestion.sources.arrays import to_array
from streamtrain.ingestion.sources.base import (
    Rows,
    Source,
    SourceOptions,
    as_field,
    choose_fields,
    field_of,
    rows_within,
)
from streamtrain.store.layout import Field
from streamtrain.store.schema.columns import INPUT, TARGET
from streamtrain.system.units import format_duration

_IN_ORDER: Final = ("SequentialSampler", "_InfiniteConstantSampler")  # the second of an IterableDataset
_TRIAL_SECONDS: Final = 0.1
_TRIAL_SAMPLES: Final = 64
_LONG_SECONDS: Final = 1.0
_RUN_BYTES: Final = 1 << 20
_LONGEST_RUN: Final = 1024


def is_torch_dataset(value: object) -> bool:
    """Recognize a torch ``Dataset`` with a length, whose samples have an index."""
    # An IterableDataset inherits __getitem__, and it may have a length.
    is_indexed = _is_of(value, "Dataset") and not _is_of(value, "IterableDataset")
    return is_indexed and hasattr(value, "__len__") and hasattr(value, "__getitem__")


def is_torch_stream(value: object) -> bool:
    """Recognize a torch ``IterableDataset`` of samples; a `StreamLoader` is one of batches."""
    return _is_of(value, "IterableDataset") and not type(value).__module__.startswith("streamtrain.")


def is_data_loader(value: object) -> bool:
    """Recognize a torch ``DataLoader``."""
    return _is_of(value, "DataLoader")


def _is_of(value: object, name: str) -> bool:
    return any(kind.__name__ == name and kind.__module__.startswith("torch.utils.data") for kind in type(value).__mro__)


class SampleSource(Source):
    """A torch ``Dataset``, one sample after another."""

    seekable = False
    n_samples: int

    def __init__(self, samples: Any, options: SourceOptions) -> None:
        self._samples, self._options = samples, options
        self._kind = type(samples).__name__
        self.n_samples = len(samples)
        if not self.n_samples:
            raise InputError(f"the {self._kind} holds no samples", fix="give at least one")
        started = time.perf_counter()
        first = self._sample(0)
        self.fields = tuple(_field(name, value, self.where(0)) for name, value in first.items())
        self.provenance = ({"format": "torch", "dataset": self._kind},)
        self.told = self._rate(started)

    def where(self, row: int) -> str:
        return f"sample {row} of the {self._kind}"

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        """Yield samples stacked into runs."""
        n_rows = rows_within(max_bytes, self.fields)
        for start in range(0, self.n_samples, n_rows):
            stop = min(start + n_rows, self.n_samples)
            out = {field.name: np.empty((stop - start, *field.shape), field.dtype) for field in self.fields}
            for row in range(start, stop):
                self._put(self._sample(row), out, row, row - start)
            yield out

    def _put(self, sample: Mapping[str, npt.NDArray[Any]], out: Rows, row: int, place: int) -> None:
        for field in self.fields:
            value = sample.get(field.name)
            found = None if value is None else _field(field.name, value, self.where(row))
            if value is None or found != field:
                here = "missing" if found is None else f"{found.dtype} {found.shape}"
                what = f"{field.name} is {here}; in sample 0 it is {field.dtype} {field.shape}"
                raise InputError(what, where=self.where(row), fix="give every sample one dtype and shape")
            out[field.name][place] = as_field(value[None], field, lambda _: self.where(row))[0]

    def _sample(self, row: int) -> dict[str, npt.NDArray[Any]]:
        with _numbered(self.where(row)):
            sample = self._samples[row]
        values = _named(sample, self._options, self.where(row), "a sample")
        chosen = choose_fields(values, self._options, where=self.where(row))
        return {field: _array(values[name], self.where(row)) for field, name in chosen.items()}

    def _rate(self, started: float) -> tuple[str, ...]:
        """Read a few samples more, and say how long all will take, where that is long."""
        n_read = 1
        while (seconds := time.perf_counter() - started) < _TRIAL_SECONDS and n_read < min(
            self.n_samples, _TRIAL_SAMPLES
        ):
            with _numbered(self.where(n_read)):
                self._samples[n_read]
            n_read += 1
        rate = n_read / max(seconds, 1e-9)
        needed = self.n_samples / rate
        takes = f", which takes about {format_duration(needed)}" if needed >= _LONG_SECONDS else ""
        return (f"{self._kind}: {self.n_samples:,} samples are read one by one, about {rate:,.0f} a second{takes}",)


class StackedSamples(Iterable[Mapping[str, Any]]):
    """The samples of an ``IterableDataset``, stacked to runs of rows.

    Items are samples if they are no dicts, or have a value that is one number. Dicts of arrays are runs of rows.
    """

    def __init__(self, samples: Iterable[Any], options: SourceOptions) -> None:
        self._samples, self._options, self._kind = samples, options, type(samples).__name__

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        items = _each_numbered(self._samples, lambda number: f"sample {number} of the {self._kind}")
        for first in items:
            return self._stacks(chain([first], items)) if _is_sample(first) else chain([first], items)
        return iter(())

    def _stacks(self, samples: Iterator[Any]) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
        run: list[dict[str, npt.NDArray[Any]]] = []
        first: dict[str, npt.NDArray[Any]] | None = None
        for number, sample in enumerate(samples):
            where = f"sample {number} of the {self._kind}"
            values = _named(sample, self._options, where, "a sample")
            # Values that no field is made of may be anything.
            wanted = set(choose_fields(values, self._options, where=where).values())
            arrays = {name: _array(value, where) for name, value in values.items() if name in wanted}
            first = arrays if first is None else first
            _check_like(arrays, first, where)
            run.append(arrays)
            if len(run) >= min(_LONGEST_RUN, _RUN_BYTES // max(1, sum(each.nbytes for each in arrays.values()))):
                yield _stacked(run)
                run = []
        if run:
            yield _stacked(run)


@contextmanager
def _numbered(where: str) -> Iterator[None]:
    """Say of an exception of the user's own code which sample it is of; its kind and its place in the code stay."""
    try:
        yield
    except Exception as error:
        error.add_note(printable(f"at {where}"))
        raise


def _each_numbered(samples: Iterable[Any], where: Callable[[int], str]) -> Iterator[Any]:
    with _numbered(where(0)):
        items = iter(samples)
    for number in count():
        with _numbered(where(number)):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def _is_sample(item: Any) -> bool:
    values = item._asdict() if hasattr(item, "_asdict") else item
    return not isinstance(values, Mapping) or not all(np.ndim(value) for value in values.values())


def _stacked(run: list[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.stack([arrays[name] for arrays in run]) for name in run[0]}


def _check_like(arrays: Mapping[str, npt.NDArray[Any]], first: Mapping[str, npt.NDArray[Any]], where: str) -> None:
    for name in {**first, **arrays}:
        here, there = (
            f"{found[name].dtype} {found[name].shape}" if name in found else "missing" for found in (arrays, first)
        )
        if here != there:
            what = f"{name} is {here}; in sample 0 it is {there}"
            raise InputError(what, where=where, fix="give every sample one dtype and shape")


def _named(values: Any, options: SourceOptions, where: str | None, what: str) -> dict[str, Any]:
    """Name values: by their keys, or x and y, or their places where these are chosen from."""
    if hasattr(values, "_asdict"):
        values = values._asdict()
    if isinstance(values, Mapping):
        return {str(name): value for name, value in values.items()}
    values = list(values) if isinstance(values, tuple | list) else [values]
    if options.fields is not None:
        return {str(place): value for place, value in enumerate(values)}
    if not 1 <= len(values) <= 2:
        fix = Fix(Argument("fields", {"x": 0, "y": 1}), " takes the first two")
        raise UsageError(f"{what} is {len(values)} values", where=where, fix=fix)
    return dict(zip((INPUT, TARGET), values, strict=False))


def _array(value: Any, where: str) -> npt.NDArray[Any]:
    if type(value).__module__.partition(".")[0] == "PIL":
        raise InputError(
            f"a value is a PIL {type(value).__name__}, which a dataset cannot hold",
            where=where,
            why="Arrays of one shape are stored: images decoded and of one size",
            fix="give the dataset transform=numpy.asarray, after resizing where sizes differ",
        )
    return to_array(value, where)


def _field(name: str, value: npt.NDArray[Any], where: str) -> Field:
    return field_of(name, value.dtype, value.shape, where=where)


class NamedBatches(Iterable[Mapping[str, Any]]):
    """The batches of a ``DataLoader`` that goes in order, as dicts of arrays."""

    def __init__(self, loader: Any, options: SourceOptions) -> None:
        _check_in_order(loader)
        self._loader, self._options = loader, options

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in _each_numbered(self._loader, lambda number: f"batch {number} of the DataLoader"):
            yield _named(batch, self._options, None, "a batch of the DataLoader")


def _check_in_order(loader: Any) -> None:
    """Refuse a loader that draws samples, or leaves some out."""
    sampler, batches = type(loader.sampler).__name__, type(loader.batch_sampler).__name__
    if sampler not in _IN_ORDER or batches not in ("BatchSampler", "NoneType"):
        drawn = sampler if sampler != "SequentialSampler" else batches
        raise UsageError(
            f"the DataLoader draws its samples ({drawn})",
            why="A dataset is stored in order, and shuffled when it is read",
            fix="make it with shuffle=False and no sampler; or give loader.dataset",
        )
    if getattr(loader, "drop_last", False):
        raise UsageError("the DataLoader drops its last batch", fix=Fix("make it with ", Argument("drop_last", False)))
