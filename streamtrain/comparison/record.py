"""The record of a comparison in its folder: written after each run, read back when the comparison resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from streamtrain.comparison.report import COMPARISON_JSON
from streamtrain.comparison.results import ComparedRun
from streamtrain.comparison.run import told_diverged
from streamtrain.comparison.settings import RunChoice
from streamtrain.comparison.setup import ComparisonSetup
from streamtrain.comparison.surface import Snapshot
from streamtrain.errors import Argument, CheckpointError, Fix, Lines, UsageError, differences, first_line
from streamtrain.optim.determinism import digest
from streamtrain.store.dataset import Dataset
from streamtrain.store.writing.lock import check_folder_unlocked, folder_lock
from streamtrain.system.files import Files, is_regular, read_whole
from streamtrain.system.json_values import objects, to_json_value, whole_number
from streamtrain.system.refusals import read_failure
from streamtrain.training.run.checkpoint import read_tensors
from streamtrain.training.run.run_folder import check_run, check_writable, sole_writer
from streamtrain.training.run.serialization import write_tensors

_PATH: Final = "path.safetensors"
_LANES: Final = "lanes"
_EPOCHS: Final = "max_epochs"
_ANOTHER: Final = Fix("another ", Argument("out"))
_FIXED: Final = "A comparison that resumes keeps its number of epochs"
_FREE: Final = "Free to change are memory, max_memory, threads, device and target_loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRecord:
    """What a folder holds of a comparison."""

    settings: Mapping[str, Any]
    # By the names of their folders.
    finished: Mapping[str, Mapping[str, Any]]
    # It was begun with this command, where it was typed.
    command: str = ""

    @property
    def lanes(self) -> int | None:
        """The lanes of its shuffle."""
        lanes: int | None = self.settings.get(_LANES)
        return lanes


def is_comparison(out: Path) -> bool:
    """Whether a folder is that of a comparison."""
    try:
        return is_regular(out / COMPARISON_JSON)
    except OSError as error:
        raise read_failure(error, out / COMPARISON_JSON, CheckpointError, _ANOTHER) from error


def read_record(out: Path) -> ComparisonRecord | None:
    """Read the record of a comparison; None where a folder has none."""
    if not is_comparison(out):
        return None
    file = out / COMPARISON_JSON
    try:
        found = objects([json.loads(read_whole(file))])[0]
        (settings,) = objects([found.get("settings")])
        if not settings:
            raise ValueError("an earlier version made it, or one without a folder")
        if settings.get(_LANES) is not None:
            whole_number(settings[_LANES], 1)
        finished = {Path(str(run["run"])).name: run for run in objects(found["runs"]) if run["finished"] is True}
        (about,) = objects([found.get("about", {})])
    except OSError as error:
        raise read_failure(error, file, CheckpointError, _ANOTHER) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = "is not the record of a comparison that can resume"
        raise CheckpointError(what, where=str(file), why=first_line(error), fix=_ANOTHER) from error
    return ComparisonRecord(settings=settings, finished=finished, command=str(about.get("command", "")))


def settings_of(setup: ComparisonSetup, val: Dataset | None) -> dict[str, Any]:
    """Describe a comparison by all that its values depend on."""
    setting = setup.setting
    found = {
        "rules": setting.rules,
        "optimizers": setting.optimizers,
        "lr": setting.lr,
        "max_epochs": setting.max_epochs,
        "seconds": setting.seconds,
        "batch_size": setting.batch_size,
        "seed": setting.seed,
        "grid": setting.grid,
        "loss": setup.loss.name,
        "ignore_label": setup.loss.ignored,
        "task": setup.task,
        "inputs": setup.inputs,
        "target": setup.target,
        "normalize": setup.is_normalized,
        "normalize_target": setup.normalize_target,
        "class_weight": setup.class_weight,
        "model": setup.about.get("model", type(setup.model).__name__),
        "initial weights": digest(setup.model.state_dict().values()),
        "dataset": setup.dataset.id,
        "val": None if val is None else val.id,
    }
    settings: dict[str, Any] = json.loads(json.dumps(to_json_value(found)))
    return settings


def check_same(record: ComparisonRecord, settings: Mapping[str, Any], out: Path) -> None:
    """Refuse to resume a comparison with other settings."""
    if wrong := differences(record.settings, settings):
        n_epochs = record.settings.get(_EPOCHS)
        is_of_epochs = n_epochs is not None and settings.get(_EPOCHS) is not None
        is_alone = is_of_epochs and not differences(record.settings, {**settings, _EPOCHS: n_epochs})
        raise CheckpointError(
            "the comparison has other settings",
            where=str(out),
            why=Lines.of(["It differs in", *(f"  {line}" for line in wrong), *([_FIXED] * is_alone), _FREE]),
            fix=Fix(Argument("max_epochs", n_epochs), ", or ", _ANOTHER)
            if is_alone
            else Fix("compare as it was begun, or ", _ANOTHER),
        )


def with_lanes(settings: Mapping[str, Any], setup: ComparisonSetup) -> dict[str, Any]:
    """Add the lanes of the shuffle, which follow from the memory, to the settings."""
    return {**settings, _LANES: setup.solved_lanes}


def finished_run(
    record: ComparisonRecord | None, choice: RunChoice, setup: ComparisonSetup, val: Dataset | None
) -> tuple[ComparedRun, list[Snapshot]] | None:
    """Read a run that is finished, with the snapshots of its weights; None where it is not."""
    named = record.finished.get(choice.folder_name) if record else None
    if named is None or setup.out is None:
        return None
    try:
        n_val = None if val is None else len(val)
        run = ComparedRun.of(named, choice, n_samples=len(setup.dataset), n_val=n_val)
        run.last  # noqa: B018 - a run has a first point, at the least
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        where, why = str(setup.out / COMPARISON_JSON), first_line(error)
        raise CheckpointError("is damaged", where=where, why=why, fix=_ANOTHER) from error
    folder = setup.out / choice.folder_name
    path = _read_path(folder) if setup.setting.grid else []
    return told_diverged(replace(run, folder=folder), setup), path


def write_path(folder: Path, path: list[Snapshot]) -> None:
    """Keep the snapshots of a run's weights, for a surface that is measured after a resume."""
    if not path:
        return
    steps = torch.tensor([snapshot.n_steps for snapshot in path])
    weights = {f"weights.{i}": snapshot.weights for i, snapshot in enumerate(path)}
    with Files().create(folder / _PATH) as out:
        write_tensors(out, {"steps": steps, **weights})


def _read_path(folder: Path) -> list[Snapshot]:
    file = folder / _PATH
    if not is_regular(file):
        return []
    found = read_tensors(file, fix=_ANOTHER)
    try:
        steps = found["steps"].tolist()
        return [Snapshot(n_steps=n_steps, weights=found[f"weights.{i}"]) for i, n_steps in enumerate(steps)]
    except KeyError as error:
        raise CheckpointError("is damaged", where=str(file), why=f"it lacks {error}", fix=_ANOTHER) from error


@contextmanager
def sole_comparer(out: Path, *, resumes: bool) -> Iterator[None]:
    """Hold the lock of a comparison's folder while the block runs; refuse one that is taken, unless it resumes."""
    with ExitStack() as held:
        if resumes and is_comparison(out):
            check_folder_unlocked(out)
            check_writable(out)
            held.enter_context(folder_lock(out))
        else:
            _take(held, out)
        yield


def _take(held: ExitStack, out: Path) -> None:
    try:
        # Looked at first, so that nothing is made in a place that is taken.
        check_run(out)
        held.enter_context(sole_writer(out))
    except UsageError as error:
        resuming = (", ", Argument("resume", "auto"), " to resume it") if is_comparison(out) else ()
        error.fix = Fix(_ANOTHER, *resuming, ", or remove it")
        raise
