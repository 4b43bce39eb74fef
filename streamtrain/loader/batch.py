"""`Batch`: a named tuple of tensors with types, and its class for the fields of a dataset; spans cut into batches."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, SupportsIndex, overload

import torch
from torch import Tensor

from streamtrain.errors import unknown_name
from streamtrain.loader.decode.delivery import Decode
from streamtrain.store.layout import Layout
from streamtrain.system.calls.public import public


class Batch(tuple[Tensor, ...]):
    """Samples as a named tuple of tensors, (B, ...) each, in the order of the dataset's fields.

    Each field is an attribute, and also an item: ``batch["class"]`` where its name is a Python keyword. Batches are
    made by a `StreamLoader`; ``_asdict`` and ``_replace`` are those of every named tuple.

    Raises
    ------
    UnknownName
        The dataset has no such field.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> dataset = st.ingest({"x": np.ones((6, 3)), "class": np.arange(6)}, tempfile.mkdtemp() + "/d.zarr")
    >>> with st.StreamLoader(dataset, batch_size=4, shuffle=False) as loader:
    ...     batch = next(iter(loader))
    >>> batch.x.shape, batch["class"].tolist(), isinstance(batch, st.Batch)
    (torch.Size([4, 3]), [0, 1, 2, 3], True)
    >>> x, labels = batch._replace(x=batch.x + 1)
    >>> x[0].tolist()
    [2.0, 2.0, 2.0]
    """

    __slots__ = ()
    _names: ClassVar[tuple[str, ...]]

    if TYPE_CHECKING:
        # What `namedtuple` adds; which fields there are, only the dataset knows.
        def __new__(cls, *tensors: Tensor) -> Self: ...
        def __getattr__(self, name: str, /) -> Tensor: ...
        @classmethod
        def _make(cls, tensors: Iterable[Tensor], /) -> Self: ...

    @overload
    def __getitem__(self, key: SupportsIndex | str, /) -> Tensor: ...
    @overload
    def __getitem__(self, key: slice, /) -> tuple[Tensor, ...]: ...
    @public
    def __getitem__(self, key: SupportsIndex | slice | str, /) -> Tensor | tuple[Tensor, ...]:
        return super().__getitem__(self._place(key) if isinstance(key, str) else key)

    def _place(self, name: str) -> int:
        if name not in self._names:
            raise unknown_name("field", name, self._names)
        return self._names.index(name)

    def _asdict(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self, strict=True))

    @public
    def _replace(self, /, **fields: Tensor) -> Self:
        tensors = list(self)
        for name, tensor in fields.items():
            tensors[self._place(name)] = tensor
        return self._make(tensors)

    __replace__ = _replace

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle finds a class by its name, and that of a dataset's fields has none in the module.
        return _batch_of, (self._names, tuple(self))

    def __repr__(self) -> str:
        return f"Batch({', '.join(f'{name}={tensor!r}' for name, tensor in self._asdict().items())})"


def batch_type(names: Sequence[str]) -> type[Batch]:
    """Make the class of a dataset's batches; a field whose name is a word of Python has a place for an attribute."""
    named_tuple: Any = namedtuple
    by_place = named_tuple("Batch", names, rename=True)
    kind: type[Batch] = type("Batch", (Batch, by_place), {"__slots__": (), "_names": tuple(names)})
    return kind


def _batch_of(names: Sequence[str], tensors: Iterable[Tensor]) -> Batch:
    return batch_type(names)._make(tensors)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Add up what tensors hold: a sparse one has its values and their places."""
    return sum(part.nbytes for tensor in tensors for part in _parts(tensor))


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    # Torch gives the size of the dense tensor for some of these layouts, and none for others.
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)


BatchGroup = tuple[Tensor, ...]  # the fields of some batches in a row

_BATCHES_AT_ONCE: Final = 512


def channels_first(fields: Iterable[Tensor], layout: Layout, decode: Decode | None) -> Iterator[Tensor]:
    """Turn decoded images, (n, height, width, channels), to (n, channels, height, width), without a copy."""
    for field, tensor in zip(layout.batch_fields, fields, strict=True):
        yield tensor.permute(0, 3, 1, 2) if decode and field.name in decode else tensor


def groups_of(fields: Iterable[Tensor], batch_size: int) -> list[BatchGroup]:
    """Cut the fields of a span, (n, ...) each, into groups of batches, the first one last."""
    parts = [torch.split(field, batch_size * _BATCHES_AT_ONCE) for field in fields]
    return list(zip(*parts, strict=True))[::-1]


def batches_of(group: BatchGroup, batch_size: int, make: Callable[[Iterable[Tensor]], Batch]) -> list[Batch]:
    """Cut a group into its batches, the first one last."""
    parts = [torch.split(field, batch_size) for field in group]
    return list(map(make, zip(*parts, strict=True)))[::-1]
