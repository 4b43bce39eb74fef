"""A run read back: its configuration checked, its schema, the weights of a checkpoint, and its model built again.

A run is data, and may come from anyone. Code that it names runs only where the user names it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from streamtrain.errors import Argument, CheckpointError, Fix, StreamtrainWarning, UsageError
from streamtrain.loader.decode.delivery import Decode
from streamtrain.loader.decode.image_dataset import decode_of_config, decode_to_measure
from streamtrain.loader.decode.images import Images
from streamtrain.models.alignment import LossKind
from streamtrain.models.factory import code_of, is_code, make_model
from streamtrain.models.losses import LOSS_DEFINITIONS
from streamtrain.models.model_data import ModelData
from streamtrain.models.normalization import Normalize
from streamtrain.models.table_inputs import CATEGORIES
from streamtrain.models.target_normalization import TargetNormalization, in_units_of_data
from streamtrain.models.user_code import file_digest
from streamtrain.store.layout import Field, Layout
from streamtrain.store.schema.columns import INPUT, Schema
from streamtrain.system.arguments import is_int, is_number
from streamtrain.system.files import local_path
from streamtrain.training.best.chosen_checkpoint import BEST, ChosenCheckpoint, Which, checkpoint_of
from streamtrain.training.labels.facts import task_of_loss
from streamtrain.training.labels.targets import CHECKS, TargetSettings, targets_of_config
from streamtrain.training.run.checkpoint import MODEL, Checkpoint, normalize_states
from streamtrain.training.run.run_folder import CONFIG, read_baseline, read_config, read_schema

AGAIN: Final = "train again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """What a run's folder holds of its model and its data."""

    path: Path
    config: dict[str, Any]
    schema: Schema
    chosen: ChosenCheckpoint

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields that the model takes, in order."""
        return tuple(self.config["inputs"])

    @property
    def task(self) -> str | None:
        """What the run learns, where that is known."""
        if self.config.get("task") is not None:
            return str(self.config["task"])
        target = self.schema.field(self.config["target"])
        return task_of_loss(self.config["loss"], self.loss_kind, None if target is None else target.shape)

    @property
    def loss_kind(self) -> LossKind:
        """What its loss compares."""
        name = self.config["loss"]
        return LOSS_DEFINITIONS[name][0] if name in LOSS_DEFINITIONS else "custom"

    @property
    def targets(self) -> TargetSettings:
        """What it learnt of the targets."""
        return targets_of_config(self.config, read_baseline(self.path))

    def check_targets(self) -> None:
        """Refuse units of other targets than the model has outputs."""
        n_targets = 1 if self.normalized_target is None else len(self.normalized_target.mean)
        if n_targets not in (1, self.config.get("n_outputs", n_targets)):
            why = f"normalize_target is of {n_targets} targets, and the model has {self.config['n_outputs']} outputs"
            raise CheckpointError("is damaged", where=str(self.path / CONFIG), why=why, fix=AGAIN)

    def in_units(self) -> Callable[[Tensor], Tensor] | None:
        """Return what brings outputs to the data's own units; None where they are in these."""
        normalization, is_log = self.normalized_target, self.gives_logarithms
        if normalization is None and not is_log:
            return None
        return partial(in_units_of_data, normalization=normalization, is_log=is_log)

    @property
    def gives_logarithms(self) -> bool:
        """Whether the outputs are logarithms; a run of an earlier version says so by its loss alone."""
        return bool(self.config.get("log_output", self.config["loss"] == "poisson"))

    @property
    def normalized_target(self) -> TargetNormalization | None:
        """The units that the targets were trained in; None where they are the data's own."""
        return TargetNormalization.of_config(self.config.get("normalize_target"))


def read_run(run: str | Path, which: Which = BEST) -> SavedRun:
    """Read a run's folder, without trust; refuse what no run has written."""
    path = local_path(run)
    config = read_config(path)
    _check_types(path, config)
    for name in ("model", "loss", "inputs", "target", "normalize"):
        if name not in config:
            raise CheckpointError("is not complete", where=str(path / CONFIG), why=f"{name} is missing", fix=AGAIN)
    schema = read_schema(path) or Schema()
    found = SavedRun(path=path, config=config, schema=schema, chosen=checkpoint_of(path, which))
    found.check_targets()
    return found


def _check_types(run: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration that no run has written, before anything is built from it."""
    for name, (is_right, what) in _TYPES.items():
        if name in config and not is_right(config[name]):
            why = f"{name} is {config[name]!r}, and not {what}"
            raise CheckpointError("is damaged", where=str(run / CONFIG), why=why, fix=AGAIN)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_size(value: object) -> bool:
    return is_int(value, 1)


def _is_list(value: object, is_right: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


def _is_spread(value: object) -> bool:
    return isinstance(value, dict) and all(_is_list(numbers, is_number) for numbers in value.values())


_TYPES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "model": (_is_text, "a text"),
    "loss": (_is_text, "a text"),
    "target": (_is_text, "a text"),
    "task": (lambda value: value in (None, "classification", "multilabel", "regression"), "a task"),
    "labels": (_is_spread, "lists of numbers"),
    "ignore_index": (is_int, "an integer"),
    "weight": (lambda value: value is None or _is_text(value), "a text or null"),
    "inputs": (lambda value: _is_list(value, _is_text) and value != [], "a list of at least one text"),
    "normalize": (lambda value: _is_list(value, _is_text), "a list of texts"),
    "input_shape": (lambda value: _is_list(value, _is_size), "a list of positive integers"),
    "input_shapes": (lambda value: _is_list(value, lambda each: _is_list(each, _is_size)), "a list of shapes"),
    "n_outputs": (_is_size, "a positive integer"),
    "class_values": (lambda value: _is_list(value, is_number), "a list of numbers"),
    "ignored_label": (lambda value: value is None or is_int(value), "an integer or null"),
    "log_output": (lambda value: isinstance(value, bool), "true or false"),
    "loss_has_settings": (lambda value: isinstance(value, bool), "true or false"),
    "labels_as_float": (lambda value: isinstance(value, bool), "true or false"),
    "decode": (lambda value: isinstance(value, dict) and _decoded(value) is not None, "images and their size"),
    "category_sizes": (lambda value: _is_list(value, _is_size), "a list of positive integers"),
    "model_args": (lambda value: isinstance(value, dict), "an object"),
    "model_sha256": (_is_text, "a text"),
    **CHECKS,
}
"""The values of a run's configuration that are read here: their check, and its name."""


def _decoded(found: Mapping[str, Any]) -> dict[str, Images] | None:
    """Read how images are decoded; None where it makes no sense."""
    try:
        return decode_of_config(found)
    except (TypeError, UsageError, AttributeError):
        return None


def decode_of_run(config: Mapping[str, Any]) -> Decode | None:
    """Return how a run's images are decoded where its model is measured or predicts: cropped in the middle."""
    found = config.get("decode")
    return None if found is None else decode_to_measure(_decoded(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOfRun:
    """What a run knows of its data, for a factory that takes the dataset: no samples."""

    layout: Layout
    schema: Schema
    n_classes: int | None
    task: str | None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields, in order."""
        return self.layout.fields

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of classes 0, 1, ..."""
        return self.schema.classes

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the columns of field ``x``."""
        return self.schema.columns.get(INPUT)

    @property
    def categories(self) -> dict[str, Any]:
        """The columns of field ``cat``, in order."""
        return {category.name: category for category in self.schema.categories}

    def __len__(self) -> int:
        return self.layout.n_samples


def build_module(run: SavedRun, model: str | nn.Module | None, dataset: object = None) -> nn.Module:
    """Build a run's model, without its weights; code runs only where ``model`` names it."""
    config = run.config
    if isinstance(model, nn.Module):
        return model
    if model is not None and not isinstance(model, str):
        raise UsageError(f"model is {model!r:.80}", fix="a torch.nn.Module, or the name of code: 'FILE.py:NAME'")
    name = model or config["model"]
    if "n_outputs" not in config and model is None:
        what = f"the run does not say how its model ({name}) is built"
        raise UsageError(what, where=str(run.path / CONFIG), fix=Fix(_BY_NAME))
    if is_code(name):
        if model is None:
            raise _not_named(run.path, name, config.get("model_sha256"))
        _warn_of_change(run, name)
    else:
        _check_sizes(run.path, config, name, run.chosen.checkpoint)
    inputs = config["inputs"]
    shapes = config.get("input_shapes") or [config.get("input_shape", ())]
    n_outputs = config.get("n_outputs", 1)
    data = ModelData(
        shapes=dict(zip(inputs, map(tuple, [*shapes, *([()] * (len(inputs) - len(shapes)))]), strict=False)),
        n_outputs=n_outputs,
        category_sizes=tuple(config.get("category_sizes", ())),
        classes=class_names(run),
        task=run.task,
        dataset=_data_of(run, n_outputs) if dataset is None else dataset,
    )
    return make_model(name, data, model_args=config.get("model_args")).module


def _data_of(run: SavedRun, n_outputs: int) -> DataOfRun:
    n_samples = run.config.get("n_samples")
    return DataOfRun(
        layout=Layout(
            fields=run.schema.fields,
            n_samples=n_samples if is_int(n_samples, 0) else 0,
            block_rows=1,
            shard_blocks=1,
            codec="none",
        ),
        schema=run.schema,
        n_classes=n_outputs if run.task == "classification" else None,
        task=run.task,
    )


def class_names(run: SavedRun) -> tuple[str, ...] | None:
    """Return the names of a run's classes: texts, or the numbers in a table's column."""
    values = run.config.get("class_values")
    if values is not None:
        return tuple(f"{value:.0f}" for value in values)
    return run.schema.classes if run.task == "classification" else None


_BY_NAME: Final = Argument("model", "FILE.py:NAME")


def _warn_of_change(run: SavedRun, model: str) -> None:
    code, digest = code_of(model), run.config.get("model_sha256")
    file = Path(code.place) if code is not None and code.is_file else None
    if file is not None and digest is not None and file.is_file() and file_digest(file) != digest:
        text = f"{file} is not the file that {run.path} was trained with"
        warnings.warn(StreamtrainWarning(text), stacklevel=4)


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
            raise CheckpointError("is damaged", where=str(run / CONFIG), why=why, fix=AGAIN)


def normalize_modules(run: SavedRun) -> Mapping[str, nn.Module]:
    """Make the modules that rescale the inputs as in training, from the statistics saved with the run."""
    checkpoint = run.chosen.checkpoint
    states = normalize_states(checkpoint)
    modules: dict[str, nn.Module] = {}
    for name in run.config["normalize"]:
        state = states.get(name, {})
        if not state.keys() >= {"mean", "std"}:
            raise CheckpointError(f"the normalization of {name} is missing", where=str(checkpoint.path), fix=AGAIN)
        modules[name] = Normalize(state["mean"], state["std"])
    return modules
