"""The protocol of a stream of batches, which `StreamLoader` implements, and the weights of samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.errors import Argument, Fix, InputError, StreamtrainWarning, UnknownName, UsageError, unknown_name
from streamtrain.models.losses import Loss
from streamtrain.models.normalization import (
    AUTO,
    IMAGENET,
    InputStatistics,
    Normalize,
    normalize_as_imagenet,
    normalize_field,
)
from streamtrain.models.table_inputs import is_scaled
from streamtrain.optim.gradients import BadWeightError, TrainingBatch, waits_for_reads
from streamtrain.shuffle.order import I64
from streamtrain.store.layout import Layout
from streamtrain.store.schema.arrangement import AS_IT_IS, Arrangement, arrange
from streamtrain.store.schema.columns import INPUT, TARGET, Schema
from streamtrain.store.schema.matching import check_same_meaning
from streamtrain.store.statistics import MOST_VALUES, Histogram

Rows = Mapping[str, npt.NDArray[Any]]
"""Field name -> array (n_rows, ...), as ``dataset[0:n_rows]`` gives them."""


class StreamDataset(Protocol):
    """What the trainer needs of the dataset behind a stream."""

    @property
    def layout(self) -> Layout: ...
    @property
    def n_classes(self) -> int | None: ...
    def stats(self, field: str, /) -> InputStatistics: ...
    def __len__(self) -> int: ...


class BatchStream(Protocol):
    """Batches, epoch after epoch: named tuples or mappings of tensors (B, ...), best on the trainer's device."""

    @property
    def dataset(self) -> StreamDataset: ...
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
    def sequential(self) -> BatchStream: ...
    def close(self) -> None: ...


def fields_of(batch: Any) -> Mapping[str, Any]:
    """Return the fields of a batch by name: of a named tuple or a mapping of tensors or arrays."""
    return batch if isinstance(batch, Mapping) else batch._asdict()


def fields_on(device: torch.device, batch: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return fields of a batch on a device."""
    fields = fields_of(batch)
    for name in names:
        if name not in fields:
            raise missing_field(name, {each: tuple(values.shape[1:]) for each, values in fields.items()})
    # Not asynchronous: a copy from plain memory gains nothing by it, and its owner may overwrite it at once.
    return {name: torch.as_tensor(fields[name]).to(device) for name in names}


def missing_field(name: str, shapes: Mapping[str, tuple[int, ...]]) -> UnknownName:
    """Build the error for a field that data lacks; where it is x or y, with the fields that it has in their place."""
    error = unknown_name("field", name, shapes)
    labels = [each for each, shape in shapes.items() if not shape and each != INPUT]
    inputs = [each for each in shapes if each not in labels]
    if name == TARGET and not labels:
        error.what, error.fix = (
            f"the data has no labels: there is no field {TARGET}",
            "ingest it with its labels: streamtrain.ingest(..., labels=...)",
        )
    elif name in (INPUT, TARGET) and inputs and labels:
        error.fix = Fix("Trainer(", Argument("inputs", inputs[0]), ", ", Argument("target", labels[0]), ", ...)")
    return error


def normalize_fields(data: StreamDataset, names: tuple[str, ...], how: str = AUTO) -> dict[str, Normalize]:
    """Return a module for each field that rescales it by the dataset's statistics; codes and marks stay as they are.

    Where ``how`` is "imagenet", images are rescaled by the figures of that.
    """
    known = {field.name: field for field in getattr(data, "fields", data.layout.fields)}
    for name in names:
        if name not in known:
            raise missing_field(name, {each: field.shape for each, field in known.items()})
    scaled = [name for name in names if is_scaled(known[name])]
    if how == IMAGENET:
        return {name: normalize_as_imagenet(known[name]) for name in scaled}
    return {name: normalize_field(known[name], data.stats(name)) for name in scaled}


def schema_of_stream(stream: BatchStream) -> Schema:
    """Return the schema of a stream; without dtypes and shapes where a transform may change them."""
    found = getattr(stream.dataset, "schema", None)
    schema = found if isinstance(found, Schema) else Schema(fields=stream.dataset.layout.fields)
    return schema if getattr(stream, "transform", None) is None else replace(schema, fields=())


_TRAINED_ON: Final = "the training data"


class LearnedSchema:
    """The schema of the stream that a trainer took its first step on, which later ones are compared with."""

    def __init__(self) -> None:
        self._schema: Schema | None = None
        self._of = _TRAINED_ON
        self._said: set[str] = set()

    @property
    def schema(self) -> Schema:
        """What was learned; nothing is known before."""
        return self._schema or Schema()

    def take(self, schema: Schema, of: str) -> None:
        """Take a schema that is known, and what it is of."""
        self._schema, self._of = schema, of

    def learn(self, stream: BatchStream, val: BatchStream | None, fields: tuple[str, ...], *, anew: bool) -> None:
        """Take the schema of a stream where there is none yet, and compare the streams with it."""
        if self._schema is None or anew:
            self.take(schema_of_stream(stream), _TRAINED_ON)
        same = as_they_are(self.schema, stream, fields=fields, of=self._of)
        same.warn_once(self._said, stacklevel=6)
        if val is not None:
            self.arrangement(val, fields, stacklevel=7)

    def arrangement(self, stream: BatchStream, fields: tuple[str, ...], *, stacklevel: int = 3) -> Arrangement:
        """Match the columns of other data by name, and refuse another meaning; what is worth a look is said once."""
        if self._schema is None:
            return AS_IT_IS
        found = arranged(self._schema, stream, fields=fields, of=self._of)
        found.warn_once(self._said, stacklevel=stacklevel)
        return found


def arranged(ours: Schema, stream: BatchStream, *, fields: tuple[str, ...], of: str) -> Arrangement:
    """Match the columns of a stream with a schema by name."""
    if getattr(stream, "transform", None) is not None:
        # Nobody here knows what a transform makes of columns in another order.
        return as_they_are(ours, stream, fields=fields, of=of)
    return arrange(ours, schema_of_stream(stream), fields=fields, of=of, where=_place(stream))


def as_they_are(ours: Schema, stream: BatchStream, *, fields: tuple[str, ...], of: str) -> Arrangement:
    """Refuse a stream whose columns are not those of a schema, in its order."""
    theirs = schema_of_stream(stream)
    return Arrangement(unnamed=check_same_meaning(ours, theirs, fields=fields, of=of, where=_place(stream)))


def _place(stream: BatchStream) -> str:
    return str(getattr(stream.dataset, "path", "the data"))


def class_counts(data: StreamDataset, target: str, loss: Loss) -> range | None:
    """Return the possible numbers of classes of a target; None where they are unknown.

    There is more than one only where the loss ignores the highest label: the model decides whether it is a class.
    """
    ask = getattr(data, "class_values", None)
    numbered = ask(loss.ignored) if ask is not None and target == TARGET else None
    if numbered is not None:
        return range(len(numbered), len(numbered) + 1)
    histogram = _histogram(data, target)
    values = None if histogram is None else histogram.values[histogram.values != loss.ignored]
    n_classes = data.n_classes if target == TARGET else None
    # Labels that are ignored may lie outside the classes, and a task that is told may be another one.
    n_classes = _past(values) if n_classes is None else n_classes
    if n_classes is None:
        return None
    if loss.ignored != n_classes - 1:
        return range(n_classes, n_classes + 1)
    return range(_past(values) or 1, n_classes + 1)


def _past(values: npt.NDArray[Any] | None) -> int | None:
    """Return the highest label plus 1; None where there are no labels or they are not class numbers."""
    if values is None or not len(values) or values[0] < 0 or values[-1] >= MOST_VALUES:
        return None
    return int(values[-1]) + 1


def _histogram(data: StreamDataset, field: str) -> Histogram | None:
    # A dataset written by the user need not know its labels.
    ask = getattr(data, "histogram", None)
    return None if ask is None else ask(field)


def last_batch_samples(stream: BatchStream) -> I64 | None:
    """Return the samples (B,) of the batch that a stream yielded last; None where it cannot say."""
    ask = getattr(stream, "last_samples", None)
    return None if ask is None else ask()


def device_share(stream: BatchStream) -> int:
    """Return the device bytes in a stream's projection; 0 where it has none."""
    terms: Mapping[str, int] = getattr(getattr(stream, "projection", None), "terms", {})
    return terms.get("device", 0)


def samples_per_epoch(stream: BatchStream) -> int:
    """Return the number of samples of a pass, without those of a dropped last batch."""
    return min(len(stream) * stream.batch_size, len(stream.dataset))


@contextmanager
def in_stored_order(stream: BatchStream) -> Iterator[BatchStream]:
    """Yield the same data in stored order; a shuffled stream stays as it is, and a second one is opened.

    So is one that ranks share, each of which then reads blocks of its own.
    """
    if not stream.shuffle and getattr(stream, "world_size", 1) == 1:
        yield stream
        return
    with closing(stream.sequential()) as ordered:
        yield ordered


@contextmanager
def every_sample(stream: BatchStream) -> Iterator[BatchStream]:
    """Yield the same data in stored order, from its first sample to its last.

    A stream that is shuffled, drops the last batch, or stands inside an epoch is not touched: a second one is opened.
    """
    is_shared = getattr(stream, "world_size", 1) > 1
    if not (stream.shuffle or stream.drop_last or is_shared or _is_inside_epoch(stream)):
        yield stream
        return
    with closing(stream.sequential()) as ordered:
        yield ordered


def _is_inside_epoch(stream: BatchStream) -> bool:
    # A stream written by the user need not report its position; it then starts over, as any iterable does.
    ask = getattr(stream, "state_dict", None)
    return ask is not None and bool(ask().get("batch"))


def check_stream(stream: BatchStream, update: str) -> None:
    """Refuse a stream that an update rule cannot train on."""
    if len(stream) == 0:
        raise UsageError(
            f"0 batches: {len(stream.dataset)} samples, batch_size {stream.batch_size}, drop_last {stream.drop_last}",
            fix=Fix(Argument("batch_size", max(len(stream.dataset), 1)), " or less"),
        )
    if update == "epoch" and stream.drop_last:
        raise UsageError(
            "update='epoch' with drop_last",
            why="The rule steps on the mean over the whole dataset, and drop_last leaves samples out",
            fix=Fix(Argument("drop_last", False)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallBatch:
    """A batch that is smaller than others: where it comes from, and what avoids it."""

    n_samples: int
    why: str
    fix: str
    # Whether it is trained on, and not only measured.
    trains: bool = True
    # Whether the run comes to it, or ends before.
    is_reached: bool = True


def last_batch(
    n_samples: int, batch_size: int, *, drop_last: bool = False, trains: bool = True, can_drop: bool = False
) -> SmallBatch | None:
    """Describe the last batch of a pass; None where it is as large as the others."""
    n_last = n_samples % batch_size
    if drop_last or not n_last or n_samples < batch_size:
        return None
    # The nearest size that leaves nothing over, or more than this one does; the whole pass in one batch does.
    near = (size for away in range(n_samples) for size in (batch_size - away, batch_size + away))
    fits = (size for size in near if 2 <= size <= n_samples and not 0 < n_samples % size <= n_last)
    size = Argument("batch_size", next(fits, n_samples))
    return SmallBatch(
        n_samples=n_last,
        why=f"It is the last of a pass: {n_samples:,} samples in batches of {batch_size:,}",
        fix=Fix(Argument("drop_last", True), ", or ", size) if can_drop else Fix(size),
        trains=trains,
    )


def warn_of_waiting_device(stream: BatchStream, device: torch.device, update: str, *, stacklevel: int = 2) -> None:
    """Warn of options that leave a device idle most of the time."""
    if device.type == "cpu":
        return
    if update == "sample":
        warnings.warn(
            StreamtrainWarning(
                f"the sample rule on {device}: every step waits for the device, which has nothing to do but one "
                "sample. The CPU takes many times as many steps a second, for most models by a path of its own",
                fix=Fix(Argument("device", "cpu")),
            ),
            stacklevel=stacklevel,
        )
    elif hasattr(stream, "device") and str(stream.device or "cpu") == "cpu":
        warnings.warn(
            StreamtrainWarning(
                f"the loader's batches stay in host memory, and every step waits until its own is copied to {device}",
                fix=Fix("a StreamLoader with ", Argument("device", str(device)), ", which brings them ahead"),
            ),
            stacklevel=stacklevel,
        )


_NAMED: Final = 8


def check_weight_field(name: str, weight: Tensor) -> None:
    """Refuse a weight field that is complex or has more than one number per sample."""
    if weight.ndim != 1:
        raise UsageError(
            f"field {name} has shape {tuple(weight.shape[1:])} a sample; a weight is one number",
            fix="a field of scalars",
        )
    if weight.is_complex():
        raise UsageError(f"field {name} is complex, and a weight is a number of at least 0", fix="floats or integers")


def check_weights(name: str, weight: Tensor, samples: Callable[[], I64 | None]) -> None:
    """Refuse negative or non-finite weights of a batch, naming their samples or else their rows."""
    if bool(_are_good(weight).all()):
        return
    rows = torch.nonzero(~_are_good(weight))[:, 0].tolist()
    ids = samples()
    kind = "sample" if ids is not None else "row of the batch"
    named = [f"{row if ids is None else int(ids[row])} is {weight[row].item()}" for row in rows[:_NAMED]]
    more = f", and {len(rows) - _NAMED} more of the batch" if len(rows) > _NAMED else ""
    raise InputError(
        f"the weight of {kind} {', of '.join(named)}{more}",
        where=f"field {name}",
        why="A weighted mean has no meaning then",
        fix="weights of at least 0",
    )


@contextmanager
def weights_named(batch: TrainingBatch, samples: Callable[[], I64 | None]) -> Iterator[None]:
    """Refuse bad weights, naming their samples: now, or with the loss where reading them waits for a device."""
    if batch.weight is not None and not waits_for_reads(batch.weight.device):
        check_weights(batch.names[-1], batch.weight, samples)
    try:
        yield
    except BadWeightError:
        if batch.weight is not None:
            check_weights(batch.names[-1], batch.weight, samples)
        raise


def _are_good(weight: Tensor) -> Tensor:
    return (weight >= 0) & torch.isfinite(weight)


def zero_weight_error(name: str | None) -> InputError:
    """Make the error for an epoch whose samples all have weight 0."""
    if name is None:
        return InputError("every target of the epoch is of the class that the loss ignores", fix="another ignore_index")
    return InputError(
        "the weights of all samples of the epoch sum to 0, so there is no mean",
        where=f"field {name}",
        fix="some weights above 0",
    )
