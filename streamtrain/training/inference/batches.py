"""Any data as batches of a model's inputs, in order: a dataset, a loader, arrays, a data frame, raw rows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.errors import StreamtrainWarning, UsageError
from streamtrain.loader.decode.delivery import Decode
from streamtrain.loader.decode.image_dataset import with_images
from streamtrain.loader.decode.image_files import ImageFiles, ImagePaths, image_paths
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.store.schema.arrangement import arrange
from streamtrain.store.schema.columns import ID, TARGET, Schema
from streamtrain.store.zarr_metadata import PRIVATE, ROOT
from streamtrain.system.arguments import a_kind
from streamtrain.system.files import local_path
from streamtrain.training.batch_stream import arranged, every_sample, fields_of, schema_of_stream
from streamtrain.training.inference.frames import frame_arrays, is_frame
from streamtrain.training.inference.given_batches import fields_by_name, is_batches

Array = npt.NDArray[Any]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a model takes of data, and how: its fields and their schema, the batch size, the memory."""

    inputs: tuple[str, ...]
    schema: Schema
    batch_size: int
    memory_bytes: int
    device: torch.device
    first_row: int = 0
    of: str = "the model"
    say: Say | None = None
    decode: Decode | None = None

    def tell(self, text: str) -> None:
        """Say a sentence, or warn of it where nobody listens."""
        if self.say is None:
            warnings.warn(StreamtrainWarning(text), stacklevel=2)
        else:
            self.say(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBatches:
    """Batches of inputs from a row on, each with the fields of its rows."""

    batches: Iterator[Mapping[str, Any]]
    first_row: int = 0
    n_rows: int | None = None  # of all data; None where only the end tells
    terms: Mapping[str, int] = field(default_factory=dict)  # of the memory that reading takes
    files: tuple[str, ...] | None = None  # the file of each row


@contextmanager
def open_batches(data: object, wanted: Wanted) -> Iterator[InputBatches]:
    """Open data of any kind; refuse what the model does not take."""
    data = image_paths(data) or data
    if isinstance(data, str | os.PathLike):
        data = _opened(data)
    if isinstance(data, ImagePaths):
        yield _of_images(data, wanted)
    elif isinstance(data, Dataset):
        with _of_dataset(with_images(data, wanted.decode), wanted) as batches:
            yield batches
    elif hasattr(data, "dataset") and hasattr(data, "sequential"):
        with _of_stream(data, wanted) as batches:
            yield batches
    else:
        yield _of_runs(data, wanted)


def is_raw(path: str | os.PathLike[str]) -> bool:
    """Whether raw data is at a path: a file, or a folder that is no dataset."""
    place = local_path(path)
    return place.is_file() or (place.is_dir() and not any((place / name).exists() for name in (ROOT, PRIVATE)))


def _opened(path: str | os.PathLike[str]) -> Dataset:
    place = local_path(path)
    if is_raw(place):
        what = "raw data, not a dataset"
        fix = f"streamtrain.rows({str(path)!r}, like=model) reads it, or ingest it"
        raise UsageError(what, where=str(path), fix=fix)
    return open_dataset(place)


def compared_fields(schema: Schema, theirs: Schema, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """List the fields in which data must mean the same: inputs, and the labels where both have names of classes."""
    return (*inputs, TARGET) if schema.classes is not None and theirs.classes is not None else inputs


@contextmanager
def _of_dataset(data: Dataset, wanted: Wanted) -> Iterator[InputBatches]:
    _check_has(wanted, {each.name for each in data.fields}, str(data.path))
    theirs, inputs = data.schema, wanted.inputs
    arrangement = arrange(
        wanted.schema, theirs, fields=compared_fields(wanted.schema, theirs, inputs), of=wanted.of, where=str(data.path)
    )
    for text in arrangement.told:
        wanted.tell(text)
    size = min(wanted.batch_size, len(data), most_in_batch(data, wanted.memory_bytes))
    first = wanted.first_row // size
    with _loader(data, size, wanted) as loader:
        if first:
            loader.load_state_dict(loader.state_dict() | {"batch": first})
        yield InputBatches(
            batches=(arrangement.of(fields_of(batch)) for batch in loader),
            n_rows=len(data),
            first_row=first * size,
            terms=loader.projection.terms,
        )


_PARTS: Final = 16


def most_in_batch(data: Dataset, memory_bytes: int) -> int:
    """Limit a batch of decoded images, a few of which wait in memory."""
    layout = data.layout
    return max(1, memory_bytes // _PARTS // layout.batch_row_bytes) if layout.decoder_bytes else len(data)


def _loader(data: Dataset, batch_size: int, wanted: Wanted) -> StreamLoader:
    """Make a loader for one pass, which has no use for memory that keeps blocks for the next."""
    # Every row is predicted here, also where processes train together.
    alone: dict[str, Any] = {"rank": 0, "world_size": 1}
    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": False, "device": wanted.device, **alone}
    with StreamLoader(data, memory=wanted.memory_bytes, **options) as loader:
        kept_bytes = loader.projection.terms.get("cache", 0)
    return StreamLoader(data, memory=wanted.memory_bytes - kept_bytes, **options)


def images_of_run(images: ImagePaths, decode: Decode | None, memory_bytes: int, of: str, **further: Any) -> ImageFiles:
    """Read images as a run decodes its only field of images; refuse them for a run that decodes none."""
    if decode is None or len(decode) != 1:
        raise UsageError(
            f"images, and {of} was not trained on images that are decoded as they are read",
            where=images.given[0],
            fix="ingest them as its training data was, and give the dataset",
        )
    ((name, how),) = decode.items()
    return ImageFiles(images, name, how.centered(), memory_bytes, **further)


def _of_images(images: ImagePaths, wanted: Wanted) -> InputBatches:
    files = images_of_run(images, wanted.decode, wanted.memory_bytes, wanted.of)
    _check_has(wanted, {each.name for each in files.fields}, images.given[0])
    size = min(wanted.batch_size, len(images), most_images(files, wanted.memory_bytes))
    first = wanted.first_row // size * size
    rows = images_of_run(images, wanted.decode, wanted.memory_bytes, wanted.of, first_row=first)
    return InputBatches(
        batches=in_batches(rows, size, wanted.inputs),
        n_rows=len(images),
        first_row=first,
        terms={"source": images.n_bytes + files.room_bytes},
        files=images.names,
    )


def most_images(files: ImageFiles, memory_bytes: int) -> int:
    """Limit a batch of images that are read from files."""
    return max(1, memory_bytes // _PARTS // files.row_bytes)


@contextmanager
def _of_stream(data: Any, wanted: Wanted) -> Iterator[InputBatches]:
    compared = compared_fields(wanted.schema, schema_of_stream(data), wanted.inputs)
    arrangement = arranged(wanted.schema, data, fields=compared, of=wanted.of)
    for text in arrangement.told:
        wanted.tell(text)
    with every_sample(data) as stream:
        n_rows = len(stream.dataset)
        yield InputBatches(batches=(arrangement.of(fields_of(batch)) for batch in stream), n_rows=n_rows)


def _check_has(wanted: Wanted, found: set[str], where: str) -> None:
    for name in wanted.inputs:
        if name not in found:
            what = f"it has no field {name}, which {wanted.of} takes"
            raise UsageError(what, where=where, why=f"It has {', '.join(sorted(found))}", fix=f"data with field {name}")


def _of_runs(data: Any, wanted: Wanted) -> InputBatches:
    """Return batches of arrays, or of runs of rows."""
    if is_frame(data):
        data = frame_arrays(data, wanted.schema, wanted.inputs, wanted.of)
    elif not isinstance(data, Mapping) and (isinstance(data, Tensor) or hasattr(data, "__array__")):
        if len(wanted.inputs) > 1:
            named = ", ".join(f"{name!r}: ..." for name in wanted.inputs)
            what = f"{wanted.of} takes {len(wanted.inputs)} inputs, and is given one"
            raise UsageError(what, fix=f"a dict of arrays, {{{named}}}")
        data = {wanted.inputs[0]: data}
    if isinstance(data, Mapping):
        return _of_arrays(data, wanted)
    if is_batches(data):
        runs = (fields_by_name(batch, wanted.inputs) for batch in data)
        batches = in_batches(runs, wanted.batch_size, (*wanted.inputs, ID))
        reading = getattr(data, "reading", None)
        terms = {} if reading is None else {"source": reading.lasting_bytes + reading.working_bytes}
        return InputBatches(batches=batches, n_rows=getattr(data, "n_rows", None), terms=terms)
    raise UsageError(
        f"{a_kind(data)} is not data to predict",
        why="Data to predict is a dataset or its path, an array, a dict of arrays, a data frame, or batches",
        fix="an array, numpy.asarray(x) say; streamtrain.rows(..., like=model) reads raw files",
    )


def _of_arrays(data: Mapping[str, Any], wanted: Wanted) -> InputBatches:
    _check_has(wanted, set(data), "the arrays")
    names = (*wanted.inputs, *({ID} & set(data)))
    arrays = {name: as_known(name, _as_array(data[name]), wanted) for name in names}
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(f"the arrays differ in rows: {listed}", fix="arrays of one length")
    n_rows, size = lengths[wanted.inputs[0]], wanted.batch_size
    cuts = (
        {name: values[start : start + size] for name, values in arrays.items()}
        for start in range(wanted.first_row, n_rows, size)
    )
    batches = in_batches(cuts, size, names)
    return InputBatches(batches=batches, first_row=wanted.first_row, n_rows=n_rows)


def _as_array(values: Any) -> Any:
    if isinstance(values, Tensor):
        if values.is_nested or values.layout != torch.strided:
            fix = "x.to_dense(), or x.to_padded_tensor(0.0) of a nested one"
            raise UsageError("a sparse or nested tensor, and a model takes rows of one length", fix=fix)
        dense = values.detach().cpu()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        raise UsageError("a value is masked, and a masked value is not data", fix="fill it in: x.filled(value)")
    found = values if isinstance(values, np.ndarray) else np.asarray(values)
    if not found.ndim:
        raise UsageError("a single number is not a batch", fix="an array with rows first: x[None]")
    return found


def as_known(name: str, values: Array, wanted: Wanted) -> Array:
    """Refuse an array of another dtype or shape than the field's; floats of another width are rounded."""
    known = wanted.schema.field(name)
    if known is None:
        return values
    shape = values.shape[1:]
    if shape != known.shape:
        what = f"{name} has samples of shape {shape}; {wanted.of} takes {known.shape}"
        raise UsageError(what, fix="arrays with rows first, each of that shape")
    is_wider = values.dtype.kind == known.dtype.kind and np.can_cast(values.dtype, known.dtype, "safe")
    if not is_wider and not (values.dtype.kind == known.dtype.kind == "f"):
        what = f"{name} is {values.dtype}; {wanted.of} takes {known.dtype}"
        why = "Bytes and floats, or integers, often differ in scale"
        raise UsageError(what, why=why, fix=f"x.astype({known.dtype.name!r}), if it is of that scale")
    return values.astype(known.dtype, copy=False)


def in_batches(
    runs: Iterable[Mapping[str, Any]], batch_size: int, names: tuple[str, ...]
) -> Iterator[Mapping[str, Array]]:
    """Cut runs of rows of any length into batches of one size; the last may be smaller."""
    stage: dict[str, Array] = {}
    n_filled = 0
    for run in runs:
        rows = {name: _as_array(run[name]) for name in names if name in run}
        start, n_run = 0, len(next(iter(rows.values())))
        while start < n_run:
            stage = stage or {
                name: np.empty((batch_size, *values.shape[1:]), values.dtype) for name, values in rows.items()
            }
            n_taken = min(batch_size - n_filled, n_run - start)
            for name, values in rows.items():
                stage[name][n_filled : n_filled + n_taken] = values[start : start + n_taken]
            start, n_filled = start + n_taken, n_filled + n_taken
            if n_filled == batch_size:
                yield stage
                stage, n_filled = {}, 0
    if n_filled:
        yield {name: values[:n_filled] for name, values in stage.items()}
