"""The work of ``streamtrain evaluate RUN SRC...``: measure a run's model on a dataset, or on raw files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from torch import nn
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from streamtrain.cli.compatibility import check_categories, say_matched
from streamtrain.cli.inference.predict import decoded_by, opened_data, refuse_swapped, warn_of_size
from streamtrain.cli.options import note_doubt
from streamtrain.cli.output import as_command_line, emit, is_quiet, note
from streamtrain.cli.preparation.images import decode_of
from streamtrain.cli.results import result_lines
from streamtrain.errors import Lines, UsageError
from streamtrain.ingestion.rows import RawRows
from streamtrain.loader.decode.image_dataset import with_images
from streamtrain.loader.decode.image_files import ImageFiles, ImagePaths, labels_by_folder
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.losses import LOSS_DEFINITIONS, Loss, resolve_loss
from streamtrain.models.table_inputs import CATEGORIES
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import Field
from streamtrain.store.schema.arrangement import arrange
from streamtrain.store.schema.matching import matching_was_told
from streamtrain.store.schema.task import TaskName
from streamtrain.store.split_root import TEST, VAL, is_split_root
from streamtrain.system.units import parse_bytes
from streamtrain.training.batch_stream import BatchStream
from streamtrain.training.inference.batches import images_of_run, most_images, most_in_batch
from streamtrain.training.inference.raw_stream import RawStream, check_known_labels
from streamtrain.training.inference.saved_run import (
    SavedRun,
    build_module,
    decode_of_run,
    normalize_modules,
    read_run,
)
from streamtrain.training.labels.reading import DEFAULT_LOSSES, reading_of_config
from streamtrain.training.metrics.tasks import scored_as
from streamtrain.training.run.checkpoint import load_weights
from streamtrain.training.trainer import Trainer

_NONE = "none"
_AGAIN: Final = "training data, again"
_DATA: Final = "data"


def run_evaluate(
    *,
    run: Path,
    sources: tuple[str, ...],
    which: str,
    model: str | None,
    weight: str | None,
    batch_size: int,
    labels: tuple[str, ...],
    split: str | None,
    memory: str,
    device: str,
    positive: str | None,
    per_class: bool,
    images: str | None,
    as_json: bool,
    **of_text: Any,
) -> None:
    """Evaluate as the command line says, and print loss and scores."""
    refuse_swapped("evaluate", run, sources)
    saved = read_run(run, which)
    note_doubt(saved.chosen)
    used = saved.config.get("weight") if weight is None else (None if weight == _NONE else weight)
    fields = (saved.config["target"], *([used] if used else []))
    given = (saved.schema, saved.inputs, of_text, memory, fields)
    decode = decode_of_run(saved.config)
    data = opened_data(
        sources, *given, labels_from=labels, split=split, preferred=(TEST, VAL), is_of_images=decode is not None
    )
    warn_of_size(decode, images)
    if isinstance(data, Dataset):
        _check_fields(saved, data)
        data = with_images(data, decode if images is None else decode_of(data, images))
    elif isinstance(data, ImagePaths):
        data = _labelled(saved, data, images, memory)
    loss, is_own = _loss(saved, data)
    trainer = _trained(saved, model, loss, used, device, data)
    opened = _of_dataset if isinstance(data, Dataset) else _of_rows
    with opened(saved, trainer, data, batch_size, memory) as stream:
        metrics = trainer.evaluate(stream, positive=positive)
    if not is_own:
        note(f"the run's loss, {saved.config['loss']}, was made in Python, so it is not among the scores")
    of_split, on = _measured_on(saved, data, sources)
    facts = {"split": of_split, "measured_on": on, "accuracy": None, **metrics.facts()}
    where = sources[0] if isinstance(data, Dataset) else list(sources)
    facts |= {} if is_own else {"loss": None}
    result = {"run": run, "dataset": where, "weights": saved.chosen.named(), "samples": metrics.n_samples, **facts}
    head = [f"split {of_split}"] if of_split else []
    scores = result_lines(metrics, f"{on}:" if on == _AGAIN else on, every_row=per_class, with_loss=is_own)
    lines = [scores] if is_quiet() else [as_command_line(saved.chosen.told()), *head, scores]
    emit(as_json, result, Lines.of(lines))


def _check_fields(saved: SavedRun, data: Dataset) -> None:
    """Refuse a dataset that lacks what the run takes; whoever arranges its columns tells what differs inside them."""
    there = {field.name: field for field in data.layout.own_fields}
    if missing := [name for name in (*saved.inputs, saved.config["target"]) if name not in there]:
        takes = {field.name: f" {field.dtype} {tuple(field.shape)}" for field in saved.schema.fields}
        named = ", ".join(f"{name}{takes.get(name, '')}" for name in missing)
        has = ", ".join(f"{name} ({_kind(field)})" for name, field in there.items())
        fix = f"data with {'field' if len(missing) == 1 else 'fields'} {', '.join(missing)}, as the run was trained on"
        raise UsageError(f"the run takes {named}", where=str(data.path), why=f"The dataset has {has}", fix=fix)


def _kind(field: Field) -> str:
    return "images" if field.encoded else f"{field.dtype.name} {field.shape}"


def _labelled(saved: SavedRun, images: ImagePaths, how: str | None, memory: str) -> ImageFiles:
    """Read images with their labels, the names of their folders."""
    decode = decode_of_run(saved.config)
    decode = decode if how is None else decoded_by(decode, how)
    labels = labels_by_folder(images, saved.schema.classes)
    return images_of_run(images, decode, parse_bytes(memory, name="memory"), "the run", labels=labels)


def _measured_on(
    saved: SavedRun, data: Dataset | RawRows | ImageFiles, sources: Sequence[str]
) -> tuple[str | None, str]:
    """Name the split that is measured on, if it is one, and what the figures are of."""
    if not isinstance(data, Dataset):
        return None, Path(sources[0]).name or _DATA if len(sources) == 1 else _DATA
    of_split = data.path.name if is_split_root(data.path.parent) else None
    return of_split, _AGAIN if data.id == saved.config.get("dataset_id") else of_split or TEST


@contextmanager
def _of_dataset(
    saved: SavedRun, trainer: Trainer, data: Dataset, batch_size: int, memory: str
) -> Iterator[BatchStream]:
    """Read a stored dataset, its columns in the order of the run's."""
    fields = (*trainer.inputs, trainer.target)
    arrangement = arrange(saved.schema, data.schema, fields=fields, of=f"run {saved.path}", where=str(data.path))
    say_matched(arrangement)
    if CATEGORIES in trainer.inputs and (sizes := tuple(saved.config.get("category_sizes", ()))):
        check_categories(sizes, data, str(data.path), arrangement)
    trainer.check(arrangement.of(data[: min(_CHECKED, len(data))]), trains=False)
    trainer.learned.schema.take(saved.schema, f"run {saved.path}")
    size = min(batch_size, len(data), most_in_batch(data, parse_bytes(memory, name="memory")))
    with (
        matching_was_told(),
        StreamLoader(data, batch_size=size, memory=memory, shuffle=False, device=trainer.device) as loader,
    ):
        yield loader


_CHECKED: Final = 2


@contextmanager
def _of_rows(
    saved: SavedRun, trainer: Trainer, data: RawRows | ImageFiles, batch_size: int, memory: str
) -> Iterator[BatchStream]:
    """Read raw rows with their labels."""
    n_rows = data.n_rows or sum(len(run[trainer.target]) for run in data)
    n_classes = saved.config.get("n_outputs") if saved.task == "classification" else None
    if isinstance(data, ImageFiles):
        batch_size = min(batch_size, most_images(data, parse_bytes(memory, name="memory")))
    elif n_classes is not None and trainer.loss.kind == "classes":
        check_known_labels(data, trainer.target, reading_of_config(saved.config), n_classes, trainer.loss.ignored)
    stream = RawStream(data, data.fields, n_rows, known=saved.schema, n_classes=n_classes, batch_size=batch_size)
    first = next(iter(stream))
    trainer.check({name: np.asarray(values[:_CHECKED]) for name, values in first.items()}, trains=False)
    yield stream


def _loss(saved: SavedRun, data: Dataset | RawRows | ImageFiles) -> tuple[Loss, bool]:
    """Return the loss that outputs are scored by, and whether it is the run's own: that of its task where it is not."""
    name, ignored = saved.config["loss"], saved.config.get("ignore_index")
    if "log_output" in saved.config:
        return resolve_loss(nn.PoissonNLLLoss(log_input=saved.gives_logarithms)), True
    if name in LOSS_DEFINITIONS:
        return resolve_loss(name, ignore_index=ignored), not saved.config.get("loss_has_settings")
    # Its arguments are not known, so torch's loss of that name says how outputs are read, and not what it comes to.
    of_torch = getattr(nn, name, None) or getattr(functional, name, None)
    if isinstance(of_torch, type):
        of_torch = of_torch() if issubclass(of_torch, _Loss) else None
    if callable(of_torch) and scored_as(found := resolve_loss(of_torch)) is not None:
        return found, False
    task = saved.task or (data.task if isinstance(data, Dataset) else None)
    if task is None:
        what = f"the run's loss is code, {name!r}, and what its outputs are is not known"
        fix = "a stored dataset of a known task; or streamtrain.load(RUN).predict(...), and scores of your own"
        raise UsageError(what, where=str(saved.path), fix=fix)
    is_of_two = task == "classification" and saved.config.get("n_outputs") == 1
    name = "bce_with_logits" if is_of_two else DEFAULT_LOSSES[cast("TaskName", task)]
    return resolve_loss(name, ignore_index=ignored), False


def _trained(saved: SavedRun, model: str | None, loss: Loss, weight: str | None, device: str, data: object) -> Trainer:
    """Rebuild the run's trainer as it was when the run ended."""
    config = saved.config
    trainer = Trainer(
        build_module(saved, model, data if isinstance(data, Dataset) else None),
        loss=loss,
        inputs=saved.inputs,
        target=config["target"],
        weight=weight,
        normalize=normalize_modules(saved),
        device=device,
    )
    trainer.read_labels(reading_of_config(config))
    trainer.learned.use(saved.targets)
    load_weights(trainer.model, saved.chosen.checkpoint)
    return trainer
