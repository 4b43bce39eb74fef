"""What the trainer asks of a stream of batches; `streamtrain.loader.stream_loader.StreamLoader` is one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from streamtrain.errors import UsageError, unknown_name
from streamtrain.models.normalization import Normalize, Statistics, normalize_field
from streamtrain.shuffle.order import I64
from streamtrain.store.layout import Layout


class Data(Protocol):
    """What the trainer asks of the dataset behind a stream."""

    @property
    def layout(self) -> Layout: ...
    @property
    def n_classes(self) -> int | None: ...
    def stats(self, field: str, /) -> Statistics: ...
    def __len__(self) -> int: ...


class Stream(Protocol):
    """Batches, epoch after epoch: named tuples of tensors (B, ...), best on the trainer's device, in field order."""

    @property
    def dataset(self) -> Data: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def drop_last(self) -> bool: ...
    @property
    def shuffle(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def wait_seconds(self) -> float: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def set_epoch(self, epoch: int, /) -> None: ...
    def sequential(self) -> Stream: ...
    def close(self) -> None: ...


def fields_on(device: torch.device, batch: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Some fields of a batch, a named tuple or a mapping of tensors or arrays, on a device.

    Raises
    ------
    UnknownName
        The batch has no such field.

    Examples
    --------
    >>> fields_on(torch.device("cpu"), {"x": torch.zeros(2), "y": torch.ones(2)}, ("y",))
    {'y': tensor([1., 1.])}
    """
    fields = batch if isinstance(batch, Mapping) else batch._asdict()
    for name in names:
        if name not in fields:
            raise unknown_name("field", name, fields)
    return {name: torch.as_tensor(fields[name]).to(device, non_blocking=True) for name in names}


def normalize_fields(data: Data, names: tuple[str, ...]) -> dict[str, Normalize]:
    """What rescales each of some fields by the dataset's own statistics.

    Raises
    ------
    UnknownName
        The dataset has no such field.
    """
    known = {field.name: field for field in data.layout.fields}
    for name in names:
        if name not in known:
            raise unknown_name("field", name, known)
    return {name: normalize_field(known[name], data.stats(name)) for name in names}


def last_samples(stream: Stream) -> I64 | None:
    """The samples of the batch that a stream yielded last, (B,); None where it cannot say."""
    ask = getattr(stream, "last_samples", None)
    return None if ask is None else ask()


def samples_per_epoch(stream: Stream) -> int:
    """How many samples a pass yields: those of a dropped last batch are left out."""
    return min(len(stream) * stream.batch_size, len(stream.dataset))


@contextmanager
def in_stored_order(stream: Stream) -> Iterator[Stream]:
    """The same data in stored order for the block; a stream that is shuffled is left as it is, beside another one."""
    if not stream.shuffle:
        yield stream
        return
    ordered = stream.sequential()
    try:
        yield ordered
    finally:
        ordered.close()


def check_stream(stream: Stream, model: nn.Module, update: str) -> None:
    """Refuse a stream that an update rule cannot train on, and warn of one that a model cannot end.

    Raises
    ------
    UsageError
        There is no batch, or the rule ``epoch`` would miss the samples of a dropped last batch.
    """
    if len(stream) == 0:
        raise UsageError(
            f"0 batches: {len(stream.dataset)} samples, batch_size {stream.batch_size}, drop_last {stream.drop_last}",
            fix=f"batch_size={max(len(stream.dataset), 1)} or less",
        )
    if update == "epoch" and stream.drop_last:
        raise UsageError(
            "update='epoch' with drop_last",
            why="The rule steps on the mean over the whole dataset, and drop_last leaves samples out",
            fix="drop_last=False",
        )
    n_last = len(stream.dataset) % stream.batch_size
    if n_last == 1 and not stream.drop_last and update != "sample" and _has_batch_norm(model):
        warnings.warn(
            f"the last batch has one sample (of {stream.batch_size}), over which BatchNorm has no variance; "
            "drop_last=True, or another batch_size, avoids it",
            stacklevel=3,
        )


def _has_batch_norm(model: nn.Module) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.SyncBatchNorm)
    return any(isinstance(module, kinds) for module in model.modules())
