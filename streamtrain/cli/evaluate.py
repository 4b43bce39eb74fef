"""``streamtrain evaluate RUN DEST``: measure a run's model on a dataset."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from torch import nn

from streamtrain.cli.compatibility import check_categories, say_unnamed
from streamtrain.cli.output import emit, json_option
from streamtrain.cli.results import result_lines
from streamtrain.errors import Argument, CheckpointError, Fix, UsageError
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.factory import code_of, is_code, make_model
from streamtrain.models.losses import Loss, resolve_loss
from streamtrain.models.model_data import ModelData, describe_data
from streamtrain.models.normalization import Normalize
from streamtrain.models.table_inputs import CATEGORIES
from streamtrain.models.user_code import file_digest
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.store.schema.columns import Schema
from streamtrain.store.schema.matching import check_same_meaning
from streamtrain.system.arguments import is_int, is_number
from streamtrain.training.checkpoint import MODEL, Checkpoint, load_weights, newest_checkpoint, normalize_states
from streamtrain.training.labels.reading import reading_of_config
from streamtrain.training.labels.targets import CHECKS, targets_of_config
from streamtrain.training.run_folder import CONFIG, read_baseline, read_config, read_schema
from streamtrain.training.trainer import Trainer

_path = click.Path(path_type=Path)
_NONE = "none"


@click.command("evaluate", context_settings={"show_default": True})
@click.argument("run", type=_path)
@click.argument("dest", type=_path)
@click.option("--model", help="The FILE.py:NAME or PACKAGE.MODULE:NAME of the run, where it is asked for.")
@click.option(
    "--weight", metavar="FIELD", help="The field of the samples' weights, or none; by default as in training."
)
@click.option("--batch-size", type=int, default=256, help="Samples of a batch; the result does not depend on it.")
@click.option("--memory", default="512MB", help="Budget for all that the loader owns.")
@click.option("--device", default="auto", help="auto (cuda where there is any, else cpu), cpu, cuda, cuda:1, ...")
@click.option(
    "--positive", metavar="CLASS", help="Of two classes, the one of precision and recall; by default class 1."
)
@click.option("--per-class", is_flag=True, help="Show every class, label or target, and not only the worst of many.")
@json_option
def evaluate_command(
    run: Path,
    dest: Path,
    model: str | None,
    weight: str | None,
    batch_size: int,
    memory: str,
    device: str,
    positive: str | None,
    per_class: bool,
    as_json: bool,
) -> None:
    """Measure the model of the folder RUN on the dataset DEST: loss, the scores of the task, and a table of classes.

    Inputs are rescaled as in training, by the statistics saved with the run. DEST must have the columns and
    classes that the run was trained on, in their order.
    """
    config = read_config(run)
    dataset = open_dataset(dest)
    trainer = _trained(run, config, model, weight, device, dataset)
    _check_meaning(run, trainer, dataset)
    if CATEGORIES in trainer.inputs and (sizes := tuple(config.get("category_sizes", ()))):
        check_categories(sizes, dataset, str(dataset.path))
    trainer.check(dataset[: min(2, len(dataset))], trains=False)
    size = min(batch_size, len(dataset))
    with StreamLoader(dataset, batch_size=size, memory=memory, shuffle=False, device=device) as loader:
        metrics = trainer.evaluate(loader, positive=positive)
    on = "train (again)" if dataset.id == config.get("dataset_id") else "test"
    facts = {"measured_on": on, "accuracy": None, **metrics.facts()}
    result = {"run": run, "dataset": dest, "samples": metrics.n_samples, **facts}
    emit(as_json, result, result_lines(metrics, on, every_row=per_class))


def _check_meaning(run: Path, trainer: Trainer, dataset: Dataset) -> None:
    """Refuse a dataset of other columns or classes than the run was trained on."""
    ours, fields = read_schema(run) or Schema(), (*trainer.inputs, trainer.target)
    of, where = f"run {run}", str(dataset.path)
    say_unnamed(check_same_meaning(ours, dataset.schema, fields=fields, of=of, where=where))


def _trained(
    run: Path, config: dict[str, Any], model: str | None, weight: str | None, device: str, dataset: Dataset
) -> Trainer:
    """Rebuild the run's trainer as it was when the run ended."""
    _check_types(run, config)
    checkpoint = newest_checkpoint(run)
    try:
        loss = resolve_loss(config["loss"], ignore_index=config.get("ignore_index"))
        trainer = Trainer(
            _build(run, config, model, checkpoint, dataset, loss),
            loss=loss,
            inputs=tuple(config["inputs"]),
            target=config["target"],
            weight=config.get("weight") if weight is None else (None if weight == _NONE else weight),
            normalize=_normalize(checkpoint, config["normalize"]),
            device=device,
        )
    except (KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("is not complete", where=str(run / CONFIG), why=why, fix="train again") from error
    trainer.read_labels(reading_of_config(config))
    targets = targets_of_config(config, read_baseline(run))
    n_targets = 1 if targets.normalization is None else len(targets.normalization.mean)
    if n_targets not in (1, config.get("n_outputs", n_targets)):
        why = f"normalize_target is of {n_targets} targets, and the model has {config['n_outputs']} outputs"
        raise CheckpointError("is damaged", where=str(run / CONFIG), why=why, fix="train again")
    trainer.learned.use(targets)
    load_weights(trainer.model, checkpoint)
    return trainer


def _check_types(run: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration that no run has written, before anything is built from it."""
    for name, (is_right, what) in _TYPES.items():
        if name in config and not is_right(config[name]):
            why = f"{name} is {config[name]!r}, and not {what}"
            raise CheckpointError("is damaged", where=str(run / CONFIG), why=why, fix="train again")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_size(value: object) -> bool:
    return is_int(value, 1)


def _is_list(value: object, is_right: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


_TYPES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "model": (_is_text, "a text"),
    "loss": (_is_text, "a text"),
    "target": (_is_text, "a text"),
    "ignore_index": (is_int, "an integer"),
    "weight": (lambda value: value is None or _is_text(value), "a text or null"),
    "inputs": (lambda value: _is_list(value, _is_text), "a list of texts"),
    "normalize": (lambda value: _is_list(value, _is_text), "a list of texts"),
    "input_shape": (lambda value: _is_list(value, _is_size), "a list of positive integers"),
    "input_shapes": (lambda value: _is_list(value, lambda each: _is_list(each, _is_size)), "a list of shapes"),
    "n_outputs": (_is_size, "a positive integer"),
    "class_values": (lambda value: _is_list(value, is_number), "a list of numbers"),
    "ignored_label": (lambda value: value is None or is_int(value), "an integer or null"),
    "labels_as_float": (lambda value: isinstance(value, bool), "true or false"),
    "category_sizes": (lambda value: _is_list(value, _is_size), "a list of positive integers"),
    "model_args": (lambda value: isinstance(value, dict), "an object"),
    "model_sha256": (_is_text, "a text"),
    **CHECKS,
}
"""The values of a run's configuration that are read here: their check, and its name."""


def _build(
    run: Path, config: dict[str, Any], model: str | None, checkpoint: Checkpoint, dataset: Dataset, loss: Loss
) -> nn.Module:
    name = model or config["model"]
    if "n_outputs" not in config and model is None:
        what = f"the run does not say how its model ({name}) is built"
        raise UsageError(what, where=str(run / CONFIG), fix=Fix(_BY_NAME))
    if is_code(name):
        if model is None:
            raise _not_named(run, name, config.get("model_sha256"))
    else:
        _check_sizes(run, config, name, checkpoint)
    inputs = config["inputs"]
    shapes = config.get("input_shapes") or [config.get("input_shape", ())]
    data = ModelData(
        shapes=dict(zip(inputs, map(tuple, [*shapes, *([()] * (len(inputs) - len(shapes)))]), strict=False)),
        n_outputs=config.get("n_outputs", 1),
        category_sizes=tuple(config.get("category_sizes", ())),
        classes=dataset.classes,
        task=describe_data(dataset, (), 1, loss).task,
        dataset=dataset,
    )
    return make_model(name, data, model_args=config.get("model_args")).module


_BY_NAME: Final = Argument("model", "FILE.py:NAME")


def _not_named(run: Path, model: str, digest: str | None) -> CheckpointError:
    """Make the error for a run that names code, which runs only where the user names it: a run may come from anyone."""
    code = code_of(model)
    file = Path(code.place) if code is not None and code.is_file else None
    why = "A run is data, and may come from anyone"
    if file is not None and not file.is_file():
        why += "; no such file is here"
    elif file is not None and digest is not None:
        is_same = file_digest(file) == digest
        why += f"; {file} is {'the' if is_same else 'not the'} file of the training{'' if is_same else ' any more'}"
    is_there = file is None or file.is_file()
    return CheckpointError(
        f"the run's model is code, {model!r}, which runs only where you name it",
        where=str(run / CONFIG),
        why=why,
        fix=Fix(Argument("model", model) if is_there else _BY_NAME, ", if you know what is in it"),
    )


def _check_sizes(run: Path, config: dict[str, Any], name: str, checkpoint: Checkpoint) -> None:
    """Refuse sizes above those of the saved weights, before a model of them takes the memory."""
    weights = [tensor.shape for tensor in checkpoint.tensors(MODEL).values()]
    n_saved = sum(map(math.prod, weights))
    widest = max((shape[1] for shape in weights if len(shape) == 2), default=0)
    channels = [shape[1] for shape in weights if len(shape) == 4]
    # A cnn's Linear takes 32 numbers of each 4 by 4 pixels, and up to 7 by 7 at the edges are one of these.
    most = min(channels) * 49 * widest // 32 if name == "cnn" and channels else widest
    shape = config.get("input_shape", ())
    sizes = config.get("category_sizes", ())
    others = [math.prod(each) for each in config.get("input_shapes", ())]
    first = 0 if config["inputs"][:1] == [CATEGORIES] and sizes else math.prod(shape)
    for told, size, limit in (
        ("n_outputs", config.get("n_outputs", 1), n_saved),
        ("input_shape", first, most),
        ("input_shapes", max(others, default=0), n_saved),
        ("category_sizes", sum(sizes), n_saved),
        ("model", max(map(int, re.findall(r"[0-9]+", name)), default=0), n_saved),
    ):
        if size > limit:
            why = f"{told} is {config[told]!r}, and the saved weights are of a model that takes at most {limit:,}"
            raise CheckpointError("is damaged", where=str(run / CONFIG), why=why, fix="train again")


def _normalize(checkpoint: Checkpoint, names: list[str]) -> dict[str, nn.Module]:
    states = normalize_states(checkpoint)
    modules: dict[str, nn.Module] = {}
    for name in names:
        state = states.get(name, {})
        if not state.keys() >= {"mean", "std"}:
            raise CheckpointError(f"what rescales {name} is missing", where=str(checkpoint.path), fix="train again")
        modules[name] = Normalize(state["mean"], state["std"])
    return modules
