"""Data that is not a stored dataset: refused where epochs are made, taken batch by batch where it is measured."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from streamtrain.errors import Argument, Fix, Lines, UsageError
from streamtrain.loader.decode.delivery import Decode
from streamtrain.models.normalization import InputStatistics
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import Field, Layout
from streamtrain.store.schema.columns import Schema
from streamtrain.system.arguments import a_kind
from streamtrain.training.inference.frames import is_frame

_ATTRIBUTES: Final = ("dataset", "batch_size", "seed", "shuffle")
_BATCH: Final = 256


def check_can_train(*streams: object) -> Decode | None:
    """Refuse data that no epochs can be made of, such as arrays or a DataLoader; None and datasets are not.

    Return how the images of the first are decoded, if they are.
    """
    for stream in streams:
        if stream is not None and not isinstance(stream, Dataset) and not is_stream(stream):
            raise _no_epochs(a_kind(stream), _source_of(stream), _batch_size_of(stream), _label_of(stream))
    return getattr(streams[0], "decode", None)


def is_stream(data: object) -> bool:
    """Say whether data has what a stream of batches has."""
    return all(hasattr(data, name) for name in _ATTRIBUTES)


def arrays_given(given: Sequence[Any]) -> UsageError:
    """Build the error for ``fit(x, y)``: arrays in place of a stored dataset, or validation data without its name."""
    if all(isinstance(each, Dataset | str | os.PathLike) or is_stream(each) for each in given[1:3]):
        what = f"fit takes one dataset by position, and is given {len(given) - 1}"
        return UsageError(what, fix=Fix("name the second: ", Argument("val")))
    return _no_epochs("arrays", '{"x": x, "y": y}', _BATCH)


def _no_epochs(given: str, source: str, batch_size: int, options: str = "") -> UsageError:
    lines = (
        f'dataset = st.ingest({source}, "data.zarr"{options})',
        f"loader = st.StreamLoader(dataset, batch_size={batch_size})",
    )
    why = "Training reads a stored dataset, again in every epoch"
    return UsageError(f"fit is given {given}", why=why, fix=Lines.of(lines))


def _source_of(data: object) -> str:
    """Write the source that `ingest` takes in place of data, where ``loader`` is its name."""
    if hasattr(data, "dataset") and hasattr(data, "sampler"):
        return "loader.dataset" if hasattr(data.dataset, "__len__") else "loader"
    # Asked of the type: a nested tensor refuses to tell its shape.
    is_array = (
        hasattr(type(data), "shape") and not isinstance(data, Mapping) and not hasattr(data, "__arrow_c_stream__")
    )
    return '{"x": x, "y": y}' if is_array else "loader"


def _label_of(data: object) -> str:
    """Write the option of the label column that a data frame needs."""
    columns = getattr(data, "columns", None) if hasattr(data, "__arrow_c_stream__") else None
    names = [] if columns is None else [str(name) for name in columns]
    return f", label_column={'y' if 'y' in names else names[-1]!r}" if names else ""


def _batch_size_of(data: object) -> int:
    size = getattr(data, "batch_size", None)
    return size if isinstance(size, int) and size else _BATCH


def fields_by_name(batch: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """Return the fields of a batch of any kind: by their own names, or else by their places."""
    if isinstance(batch, Mapping):
        return batch
    if hasattr(batch, "_asdict"):
        found: Mapping[str, Any] = batch._asdict()
        return found
    values = list(batch) if isinstance(batch, tuple | list) else [batch]
    if not values or not all(hasattr(type(each), "shape") for each in values):
        what = f"a batch is {a_kind(batch)}, and not tensors"
        raise UsageError(
            what, fix=f"give tensors or arrays, numpy.asarray(x) of a list, for {', '.join(names)}; or a dict of them"
        )
    return dict(zip(names, values, strict=False))


def is_batches(data: object) -> bool:
    """Say whether data may be an iterable of batches: a list of numbers is not."""
    if isinstance(data, str | bytes | Mapping) or hasattr(type(data), "shape") or not isinstance(data, Iterable):
        return False
    return not isinstance(data, list | tuple) or all(isinstance(each, Mapping | tuple | list) for each in data)


class _GivenData:
    """What is known of given batches: the fields of the first."""

    n_classes: int | None = None

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.layout = Layout(fields=fields, n_samples=1, block_rows=1, shard_blocks=1, codec="none")
        self.schema = Schema(fields=fields)

    def stats(self, field: str, /) -> InputStatistics:
        """Refuse: nothing is learned of what is measured."""
        raise NotImplementedError(field)

    def __len__(self) -> int:
        return 1


class GivenBatches:
    """An iterable of batches as a stream that is measured once, in its order."""

    drop_last, shuffle, seed, wait_seconds = False, False, 0, 0.0

    def __init__(self, batches: Any, names: Sequence[str]) -> None:
        if isinstance(batches, Mapping):
            batches = [batches]
        if is_frame(batches):
            what = f"{a_kind(batches)} is not data to evaluate"
            raise UsageError(what, why="Its columns and labels are not read yet", fix=_LIKE)
        if _lacks(batches, names):
            raise UsageError("the rows are without labels", why="They are a model's inputs alone", fix=_LIKE)
        if not is_batches(batches):
            named = ", ".join(f"{name!r}: {name}" for name in names)
            what = f"{a_kind(batches)} is not data to evaluate"
            why = "Data to evaluate is a dataset or its path, a loader, or batches with labels"
            raise UsageError(what, why=why, fix=f"{{{named}}}")
        self._names = tuple(names)
        self._rest = iter(batches)
        first = next(self._rest, None)
        if first is None:
            raise UsageError("there are no batches", fix="at least one; an iterator is used up once it was read")
        self._first = first
        arrays = {name: _as_tensor(values) for name, values in fields_by_name(first, self._names).items()}
        self.dataset = _GivenData(tuple(_field(name, values) for name, values in arrays.items()))
        self.batch_size = len(next(iter(arrays.values())))

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in chain([self._first], self._rest):
            yield fields_by_name(batch, self._names)

    def set_epoch(self, epoch: int, /) -> None:
        """Do nothing: there is one pass."""

    def sequential(self) -> GivenBatches:
        """Return itself: its order is the one there is."""
        return self

    def close(self) -> None:
        """Do nothing: what is open is the caller's."""


_LIKE: Final = 'st.ingest(frame, "new.zarr", like=dataset), and evaluate on that'


def _lacks(rows: Any, names: Sequence[str]) -> bool:
    """Whether these are raw rows that were read without their labels."""
    fields = getattr(rows, "fields", ()) if hasattr(rows, "reading") else ()
    return bool(fields) and not {*names} <= {each.name for each in fields}


def _as_tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))


def _field(name: str, values: Tensor) -> Field:
    dtype = np.dtype(np.float32) if values.dtype == torch.bfloat16 else values[:0].detach().cpu().numpy().dtype
    return Field(name=name, dtype=dtype, shape=tuple(values.shape[1:]))
