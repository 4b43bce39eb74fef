"""Facts of a run's folder, as ``streamtrain info RUN`` shows them: task, model, data, best epoch, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamtrain.cli.output import command_line, own_command
from streamtrain.diagnostics.run_reader import RunRecord, read_run
from streamtrain.errors import Lines
from streamtrain.models.factory import is_code
from streamtrain.store.split_root import TEST, TRAIN, VAL, chosen_split, is_split_root
from streamtrain.store.writing.lock import is_folder_locked
from streamtrain.system.arguments import is_int
from streamtrain.system.files import local_path, names_in
from streamtrain.system.units import counted, format_figures
from streamtrain.training.best.chosen_checkpoint import is_inside, place_of
from streamtrain.training.best.monitor import BestEpoch, best_of
from streamtrain.training.run.checkpoint import CHECKPOINTS, Checkpoint, find_checkpoint


def run_result(path: Path) -> dict[str, Any]:
    """Collect the facts of a run by name, for ``--json``."""
    run, (newest, skipped) = read_run(path), find_checkpoint(path)
    best = _best(newest)
    return {
        "run": path,
        "state": _state(path),
        **{name: run.config.get(name) for name in ("model", "n_parameters", "loss", "task", "update", "optimizer")},
        **{name: run.config.get(name) for name in ("dataset", "dataset_id", "n_samples", "seed", "threads")},
        "epochs": run.n_epochs,
        "left_out": n_left_out(run),
        "best": best.named() if best else None,
        "checkpoints": _checkpoints(path),
        "newest": newest.path if newest else None,
        "damaged": skipped,
    }


def run_text(path: Path) -> Lines:
    """Write the facts of a run, a line each."""
    run, (newest, skipped) = read_run(path), find_checkpoint(path)
    config, best = run.config, _best(newest)
    dataset, model = config.get("dataset"), str(config.get("model"))
    is_gone = bool(dataset) and not local_path(str(dataset)).exists()
    words = [*(["DATASET"] if is_gone or not dataset else data_to_measure(dataset)), *model_to_name(model)]
    facts = [
        ("run", f"{path}: {_state(path)}, {_plural(run.n_epochs, 'epoch')}{_place(newest)}"),
        ("task", _task(config)),
        ("model", f"{model}, {_number(config.get('n_parameters'))} weights, {config.get('loss')}"),
        (
            "data",
            f"{dataset or 'of a loader'}: {_number(config.get('n_samples'))} samples"
            f"{', which are not there now' if is_gone else ''}",
        ),
        ("update", f"{config.get('update')}, {_optimizer(config)}, batches of {config.get('batch_size')}"),
        (
            "best",
            f"epoch {best.epoch} of {run.n_epochs}: {best.told()}" if best else "not known: nothing was monitored",
        ),
        ("last", _last(run)),
        ("saved", ", ".join(_checkpoints(path)) or "no checkpoint yet"),
        ("left out", _left_out(run)),
        *(("damaged", each) for each in skipped),
        ("resume", _resume(path, config)),
        ("next", command_line(["streamtrain", "evaluate", str(path), *words])),
    ]
    return Lines.of(f"{name:<8} {value}" for name, value in facts if value)


def data_to_measure(dest: object) -> list[str]:
    """Write the data that a run's model is measured on: of splits test or else val, not what it was trained on."""
    path = Path(str(dest))
    folder = path.parent if path.name == TRAIN and is_split_root(path.parent) else path
    split = chosen_split(local_path(folder), TEST, VAL)
    return [str(folder), *(["--split", split] if split else [])]


def model_to_name(model: str) -> list[str]:
    """Write the option that names a model again, which code of the user's own needs."""
    return ["--model", model] if is_code(model) else []


def _place(newest: Checkpoint | None) -> str:
    return f"; saved at {place_of(newest)}" if newest and is_inside(newest.state) else ""


def _resume(path: Path, config: Mapping[str, Any]) -> str:
    """Write the command that goes on with a run, or with the comparison that it is part of."""
    words = own_command(str(config.get("command", "")))
    if words[1:2] == ["compare"]:
        return command_line([*words, "--out", str(path.parent), "--resume"])
    if words[1:2] == ["train"]:
        return f"{command_line([*words, '--out', str(path), '--resume'])}; --epochs is the total"
    return 'the script that trained it, with fit(resume="auto"); max_epochs is the total'


def _state(path: Path) -> str:
    return "being trained now" if is_folder_locked(path) else "not running"


def _task(config: dict[str, Any]) -> str:
    return f"{config['task']} of {config.get('target', 'y')}" if config.get("task") else ""


def _optimizer(config: dict[str, Any]) -> str:
    optimizer = config.get("optimizer")
    if not isinstance(optimizer, dict):
        return str(optimizer)
    return f"{optimizer.get('name')}, lr {optimizer.get('lr')}"


def _best(newest: Checkpoint | None) -> BestEpoch | None:
    return best_of(newest.state, newest.path) if newest else None


def _last(run: RunRecord) -> str:
    if not run.epochs:
        return ""
    line = run.epochs[-1]
    named = ("loss", "accuracy", "f1", "rmse")
    figures = {name: line[name] for base in named for name in (base, f"val_{base}") if name in line}
    return f"{_plural(run.n_epochs, 'epoch')}: {format_figures(figures)}"


def n_left_out(run: RunRecord) -> int:
    """Count the samples that the last whole epoch went without, those of damaged blocks; not those of a short batch."""
    whole, n = [line for line in run.epochs if not line.get("partial")], run.config.get("n_samples")
    if not whole or not isinstance(n, int) or "samples" not in whole[-1]:
        return 0
    size = run.config.get("batch_size")
    expected = n // size * size if run.config.get("drop_last") and is_int(size, 1) else n
    return max(0, expected - int(whole[-1]["samples"]))


def _left_out(run: RunRecord) -> str:
    if not (n := n_left_out(run)):
        return ""
    return f"{counted(n, 'sample')} of {_number(run.config['n_samples'])} in the last epoch, of damaged blocks"


def _checkpoints(path: Path) -> list[str]:
    folder = path / CHECKPOINTS
    return sorted(name for name in names_in(folder) if name.isdecimal()) if folder.is_dir() else []


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"
