"""Predictions on data of any kind, a part at a time, in bounded memory: iterated, held, or written to a file."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamtrain.errors import Argument, BudgetError, Fix, OutOfRange, StreamtrainWarning, UsageError
from streamtrain.loader.decode.delivery import Decode
from streamtrain.loader.decode.image_files import ImagePaths
from streamtrain.optim.gradients import TrainingBatch
from streamtrain.store.dataset import Dataset
from streamtrain.store.schema.columns import CATEGORIES, ID, Schema
from streamtrain.system.arguments import check_flags, check_int, is_int
from streamtrain.system.units import format_bytes, memory_too_small, parse_bytes
from streamtrain.training.batch_stream import fields_of, fields_on
from streamtrain.training.inference.batches import InputBatches, Wanted, open_batches
from streamtrain.training.inference.predictions import Part, PredictionForm, check_probabilities
from streamtrain.training.inference.summary import PredictionSummary
from streamtrain.training.inference.writers.columns import array_of, no_probabilities
from streamtrain.training.inference.writers.target import check_target, open_target, writer_terms
from streamtrain.training.metrics.running import BadRows
from streamtrain.training.preflight import forward, preserve_mode

Array = npt.NDArray[Any]
_COPIES_OF_BATCH: Final = 4
_FLOAT_BYTES: Final = 4
_OTHER_CATEGORY: Final = 1
_MOST_JOINED_BYTES: Final = 1 << 19
"""Outputs of small batches become predictions together: turning them takes some dozen calls, however few they are."""
_PARTS_OF_JOINED: Final = 256
_COPIES_OF_JOINED: Final = 4
"""The outputs, their probabilities, the numbers of the classes and the labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A model with all that its predictions need."""

    model: nn.Module  # of stored inputs
    inputs: tuple[str, ...]
    schema: Schema
    form: PredictionForm
    device: torch.device
    in_units: Callable[[Tensor], Tensor] | None = None  # to the data's own, where the model's outputs are in others
    labels: Mapping[str, Any] = field(default_factory=dict)
    is_weighted: bool = False
    name: str = "the model"
    autocast: torch.dtype | None = None
    decode: Decode | None = None  # how its images become pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """How data is predicted: which rows, in what batches, within which memory."""

    probabilities: bool = False
    batch_size: int = 1024
    memory: int
    rows: tuple[int, int | None] = (0, None)
    writes: str | None = None  # the suffix of the file
    tells: bool = True  # whether probabilities are taken, be it of the predicted class alone
    say: Callable[[str], None] | None = None

    @classmethod
    def of(
        cls,
        *,
        probabilities: bool = False,
        batch_size: int = 1024,
        memory: int | str = "512MB",
        rows: tuple[int, int | None] | str | None = None,
        writes: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> PredictOptions:
        """Check options as a user gives them."""
        check_flags(probabilities=probabilities)
        check_int(batch_size, "batch_size")
        return cls(
            probabilities=probabilities,
            batch_size=batch_size,
            memory=parse_bytes(memory, name="memory"),
            rows=_checked_rows(rows),
            writes=writes,
            say=say,
        )

    def work_bytes(self, schema: Schema, inputs: tuple[str, ...]) -> int:
        """Project what a batch takes as floats before the model; at most a quarter of the memory."""
        shapes = (each.shape for each in schema.fields if each.name in inputs)
        n_numbers = self.batch_size * sum(map(math.prod, shapes))
        return min(self.memory // 4, _COPIES_OF_BATCH * _FLOAT_BYTES * n_numbers)

    @property
    def joined_bytes(self) -> int:
        """The most bytes of outputs that become predictions together; 0 where each batch is wanted as it comes."""
        return 0 if self.writes is None else min(_MOST_JOINED_BYTES, self.memory // _PARTS_OF_JOINED)


def _checked_rows(rows: object) -> tuple[int, int | None]:
    if rows is None:
        return 0, None
    found = _RANGE.fullmatch(rows) if isinstance(rows, str) else None
    match (int(found[1] or 0), int(found[2]) if found[2] else None) if found else rows:
        case (start, stop) if is_int(start, 0) and (stop is None or is_int(stop, start)):
            return start, stop
    why = "It is the first row, and the row after the last one"
    raise UsageError(f"rows is {rows!r:.80}", why=why, fix=Fix(Argument("rows", "0:1000"), ", say"))


_RANGE: Final = re.compile(r"(\d{0,18}):(\d{0,18})")


@contextmanager
def opened_parts(
    predictor: Predictor, data: object, options: PredictOptions
) -> Iterator[tuple[Iterator[Part], int | None, Mapping[str, int]]]:
    """Open data, and yield its predictions, how many there will be if known, and the terms of the memory."""
    start, stop = options.rows
    of_writer = writer_terms(options.writes, options.memory)
    work, joined = options.work_bytes(predictor.schema, predictor.inputs), _COPIES_OF_JOINED * options.joined_bytes
    wanted = Wanted(
        inputs=predictor.inputs,
        schema=predictor.schema,
        batch_size=options.batch_size,
        memory_bytes=options.memory - sum(of_writer.values()) - work - joined,
        device=predictor.device,
        first_row=start // options.batch_size * options.batch_size,
        of=predictor.name,
        say=options.say,
        decode=predictor.decode,
    )
    with _whole_budget(options, work), open_batches(data, wanted) as found:
        n_rows = _check_range(start, stop, found.n_rows)
        terms = {**found.terms, **of_writer, "batch": work} | ({"outputs": joined} if joined else {})
        predicted = _with_files(_parts(predictor, found, options), found.files)
        with closing(_between(predicted, start, stop)) as parts:
            yield parts, n_rows, terms


@contextmanager
def _whole_budget(options: PredictOptions, work: int) -> Iterator[None]:
    """Restate a loader's refusal in terms of all of the memory."""
    try:
        yield
    except BudgetError as error:
        argument = error.fix.argument("memory") if isinstance(error.fix, Fix) else None
        if argument is None or argument.n_bytes is None:
            raise
        # Writing and encoding take an eighth each, at most, and outputs that are joined a 64th.
        whole = -(-(argument.n_bytes + work) * 64 // 47) + 8
        what = memory_too_small(options.memory, whole)
        fix = Fix(Argument("memory", n_bytes=whole))
        raise BudgetError(what, why=error.told(), fix=fix) from error


def _check_range(start: int, stop: int | None, n_rows: int | None) -> int | None:
    """Refuse rows that are not there; return how many there will be."""
    if n_rows is None:
        return None if stop is None else stop - start
    if start > n_rows or (stop is not None and stop > n_rows):
        raise _outside(start, stop, n_rows)
    return (n_rows if stop is None else stop) - start


def _outside(start: int, stop: int | None, n_rows: int) -> OutOfRange:
    what = f"rows {start:,} to {'the end' if stop is None else f'{stop:,}'} of {n_rows:,}"
    return OutOfRange(what, fix=Fix(Argument("rows", f"{min(start, n_rows)}:{n_rows}")))


def _between(parts: Iterator[Part], start: int, stop: int | None) -> Generator[Part, None, None]:
    """Yield the predictions of some rows; refuse where they end before."""
    n_rows = 0
    for part in parts:
        n_rows = part.first_row + len(part)
        kept = part.between(start, stop)
        # An empty range has its columns, too.
        if len(kept) or not len(part) or (start == stop and start < n_rows):
            yield kept
        if stop is not None and n_rows >= stop:
            return
    if n_rows < max(start, stop or 0):
        raise _outside(start, stop, n_rows)


def _parts(predictor: Predictor, found: InputBatches, options: PredictOptions) -> Iterator[Part]:
    row, joined, batches = found.first_row, _JoinedOutputs(options), iter(found.batches)
    while (part := _part(predictor, batches, row, joined)) is not None:
        yield part
        row += len(part)
        del part
    if row == found.first_row:
        yield from _of_no_rows(predictor, row, options)


def _with_files(parts: Iterator[Part], files: tuple[str, ...] | None) -> Iterator[Part]:
    """Say of each row in which file it is, where that is known."""
    return parts if files is None else (replace(part, files=files) for part in parts)


class _JoinedOutputs:
    """Outputs of consecutive batches in one tensor, used again and again; those of one batch where few would fit."""

    def __init__(self, options: PredictOptions) -> None:
        self._most_bytes = options.joined_bytes
        self._tells = options.tells
        self._widths: set[tuple[int, ...]] = set()  # shapes of a row
        self._room: Tensor | None = None
        self._alone: Tensor | None = None
        self._n_rows = 0
        self._ids: list[Array] = []
        self._unseen: Counter[str] = Counter()

    def add(self, output: Tensor, id_: Array | None, unseen: Mapping[str, int], *, alone: bool) -> bool:
        """Take in the outputs of a batch; say whether those of another one fit."""
        self._widths.add(tuple(output.shape[1:]))
        if len(self._widths) > 1:
            what = f"the model gives rows of shape {' and '.join(map(str, sorted(self._widths)))}"
            raise UsageError(what, fix="a model whose rows are all of one shape")
        self._unseen.update(unseen)
        n, row_bytes = len(output), output.element_size() * math.prod(output.shape[1:])
        fitting = self._most_bytes // max(1, row_bytes)
        if not self._n_rows and (alone or fitting < 2 * n):
            self._alone, self._n_rows, self._ids = output, n, [] if id_ is None else [id_]
            return False
        if self._room is None or (not self._n_rows and self._room.dtype is not output.dtype):
            self._room = output.new_empty((fitting, *output.shape[1:]))
        self._room[self._n_rows : self._n_rows + n] = output
        self._n_rows += n
        # Copies: a loader may read the next batch into the same memory.
        self._ids += [] if id_ is None else [id_.copy()]
        return self._n_rows + n <= len(self._room)

    def taken(self, form: PredictionForm, row: int) -> Part | None:
        """Make predictions of them, and begin anew; None of nothing."""
        output = self._alone
        if output is None and self._room is not None and self._n_rows:
            output = self._room[: self._n_rows]
            # Numbers are the outputs themselves, and whoever writes them may keep them a while.
            output = output.clone() if form.task not in ("classification", "multilabel") else output
        if output is None:
            return None
        id_ = np.concatenate(self._ids) if self._ids else None
        part = form.part(output, row, id_, probabilities=self._tells)
        unseen, self._unseen = dict(self._unseen), Counter()
        self._alone, self._n_rows, self._ids = None, 0, []
        return replace(part, unseen=unseen) if unseen else part


def _part(predictor: Predictor, batches: Iterator[Mapping[str, Any]], row: int, joined: _JoinedOutputs) -> Part | None:
    """Predict a batch, and further ones as far as their outputs fit beside; None where there is no batch left."""
    model, narrowed = predictor.model, predictor.autocast
    with (
        preserve_mode(model),
        torch.inference_mode(),
        torch.autocast(predictor.device.type, dtype=narrowed) if narrowed else nullcontext(),
    ):
        model.eval()
        for batch in batches:
            fields = fields_of(batch)
            inputs = fields_on(predictor.device, fields, predictor.inputs)
            output = _output(predictor, inputs)
            id_ = np.asarray(torch.as_tensor(fields[ID]).cpu()) if ID in fields else None
            others = _others(predictor.schema, inputs.get(CATEGORIES))
            has_room = joined.add(output, id_, others, alone=predictor.form.is_by_batch(output))
            del batch, fields, inputs, output
            if not has_room:
                break
        return joined.taken(predictor.form, row)


def _output(predictor: Predictor, inputs: Mapping[str, Any]) -> Tensor:
    """Return the model's outputs in the data's units; refuse what is no row a sample."""
    tensors = tuple(inputs.values())
    given = TrainingBatch(inputs=tensors, target=tensors[0], names=tuple(inputs))
    output = forward(predictor.model, given)
    if predictor.autocast is not None and output.dtype is predictor.autocast:
        output = output.float()
    if not output.ndim or len(output) != len(given):
        what = f"the model gives {tuple(output.shape)} for {len(given)} samples"
        raise UsageError(what, fix="a model that gives one row a sample")
    return output if predictor.in_units is None else predictor.in_units(output)


def _of_no_rows(predictor: Predictor, row: int, options: PredictOptions) -> Iterator[Part]:
    """Yield an empty part, which has the columns all the same."""
    fields = {name: predictor.schema.field(name) for name in predictor.inputs}
    if any(each is None for each in fields.values()):
        return
    # Not of none: a reshape cannot say how wide no elements are.
    one = {name: np.zeros((1, *each.shape), each.dtype) for name, each in fields.items() if each}
    part = _part(predictor, iter([one]), row, _JoinedOutputs(options))
    assert part is not None
    yield part.between(row, row)


def _others(schema: Schema, codes: Tensor | None) -> dict[str, int]:
    """Count the categories that the training did not have, or had too rarely."""
    if codes is None or not schema.categories or codes.ndim != 2:
        return {}
    counts = (codes == _OTHER_CATEGORY).sum(0).tolist()
    named = zip(schema.categories, counts, strict=False)
    return {each.name: int(n) for each, n in named if n and each.hash_size is None}


class Doubts:
    """What is told of predictions besides: values that the training did not have, rows that are not finite."""

    def __init__(self) -> None:
        self.unseen = Counter[str]()
        self.bad = BadRows()

    def add(self, part: Part) -> None:
        """Count a part."""
        self.unseen.update(part.unseen or {})
        self.bad.add(() if part.bad_rows is None else part.bad_rows, len(part))

    def unseen_lines(self) -> Iterator[str]:
        """Say of each column how many of its values are categories that the training did not have."""
        for name, n in self.unseen.items():
            values = f"{n:,} value is" if n == 1 else f"{n:,} values are"
            yield f"column {name!r}: {values} 'other', which the training did not have, or too rarely"

    def warn(self, *, stacklevel: int) -> None:
        """Warn once of each kind, all columns together."""
        for text in ("; ".join(self.unseen_lines()), self.bad.told()):
            if text:
                warnings.warn(StreamtrainWarning(text), stacklevel=stacklevel)


def iterate(predictor: Predictor, data: object, options: PredictOptions) -> Iterator[dict[str, Array]]:
    """Yield predictions as dicts of arrays; at the end, warn of what is doubtful."""
    doubts = Doubts()
    with opened_parts(predictor, data, options) as (parts, _, _):
        for part in parts:
            doubts.add(part)
            yield as_arrays(part, probabilities=options.probabilities)
    doubts.warn(stacklevel=4)


def as_arrays(part: Part, *, probabilities: bool) -> dict[str, Array]:
    """Return a part by name."""
    found = {"row": part.rows, "prediction": part.prediction}
    if part.files is not None:
        found["file"] = np.array(part.files[part.first_row : part.first_row + len(part)])
    if part.id is not None:
        found["id"] = part.id
    if part.probability is not None:
        found["probability"] = part.probability
    if probabilities:
        if part.probabilities is None:
            raise no_probabilities()
        found["probabilities"] = part.probabilities
    return found


def hold(predictor: Predictor, data: object, options: PredictOptions, doubts: Doubts) -> Array:
    """Return all predictions as one array, and what is told of them; refuse what the memory does not hold."""
    held: list[Array] = []
    n_bytes = 0
    options = replace(options, tells=options.probabilities)
    with opened_parts(predictor, data, options) as (parts, n_rows, _):
        for part in parts:
            doubts.add(part)
            values = array_of(part, probabilities=options.probabilities)
            n_bytes += values.nbytes
            known = n_rows is not None and len(values) and values.nbytes // len(values) * n_rows
            if max(n_bytes, known or 0) > options.memory:
                raise BudgetError(
                    f"the predictions take {format_bytes(max(n_bytes, known or 0))} or more, and memory is "
                    f"{format_bytes(options.memory)}",
                    fix=Fix(Argument("out", "predictions.npy"), " writes them as they come"),
                )
            held.append(values)
    return np.concatenate(held) if held else np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of predictions that were written."""

    summary: PredictionSummary
    terms: Mapping[str, int]
    doubts: Doubts


def write(predictor: Predictor, data: object, options: PredictOptions, out: str | Path, *, overwrite: bool) -> Written:
    """Write predictions to a file or dataset: all of them, or nothing."""
    check_flags(overwrite=overwrite)
    path = check_target(out, overwrite=overwrite, sources=paths_of(data))
    # An array holds one of them.
    options = replace(options, writes=path.suffix, tells=options.probabilities or path.suffix.lower() != ".npy")
    with opened_parts(predictor, data, options) as (parts, n_rows, terms):
        target = open_target(
            path,
            predictor.form,
            probabilities=options.probabilities,
            n_rows=n_rows,
            memory=options.memory,
            source=next(iter(paths_of(data)), "arrays"),
        )
        with target as writer:
            return consume(predictor, parts, options, writer.add, terms)


def consume(
    predictor: Predictor,
    parts: Iterator[Part],
    options: PredictOptions,
    add: Callable[[Part], None],
    terms: Mapping[str, int],
) -> Written:
    """Hand over every part, and count."""
    summary = PredictionSummary(form=predictor.form, labels=predictor.labels, is_weighted=predictor.is_weighted)
    doubts = Doubts()
    for part in parts:
        if options.probabilities:
            if part.probabilities is None:
                raise no_probabilities()
            check_probabilities(predictor.form, part.probabilities.shape[-1])
        add(part)
        summary.add(part)
        doubts.add(part)
        del part
    return Written(summary=summary, terms=terms, doubts=doubts)


def paths_of(data: object) -> tuple[str, ...]:
    """List the files and folders that data is read from."""
    if isinstance(data, str | Path):
        return (str(data),)
    if isinstance(data, ImagePaths):
        return data.given
    dataset = data if isinstance(data, Dataset) else getattr(data, "dataset", None)
    if isinstance(dataset, Dataset):
        return (str(dataset.path),)
    provenance = getattr(getattr(data, "source", None), "provenance", ())
    return tuple(str(entry["path"]) for entry in provenance if "path" in entry)
