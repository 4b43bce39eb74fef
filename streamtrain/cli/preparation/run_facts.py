"""Facts of a run's folder, as ``streamtrain info RUN`` shows them: task, model, data, best epoch, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamtrain.cli.output import command_line
from streamtrain.comparison.report import COMPARISON_JSON
from streamtrain.diagnostics.run_reader import RunRecord, read_run
from streamtrain.errors import Lines
from streamtrain.store.split_root import TEST, TRAIN, VAL, chosen_split, is_split_root
from streamtrain.store.writing.lock import is_folder_locked
from streamtrain.system.arguments import is_int
from streamtrain.system.files import is_there, local_path, names_in
from streamtrain.system.units import counted, format_figures
from streamtrain.training.best.monitor import BestEpoch, best_of
from streamtrain.training.run.checkpoint import CHECKPOINTS, Checkpoint, find_checkpoint


def run_result(path: Path) -> dict[str, Any]:
    """Collect the facts of a run by name, for ``--json``."""
    run, (newest, skipped) = read_run(path), find_checkpoint(path)
    best = _best(newest)
    return {
        "run": path,
        "state": _state(run, newest),
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
    facts = [
        ("run", f"{path}: {_state(run, newest)}, {_plural(run.n_epochs, 'epoch')}"),
        ("task", _task(config)),
        ("model", f"{config.get('model')}, {_number(config.get('n_parameters'))} weights, {config.get('loss')}"),
        ("data", f"{config.get('dataset') or 'of a loader'}: {_number(config.get('n_samples'))} samples"),
        ("update", f"{config.get('update')}, {_optimizer(config)}, batches of {config.get('batch_size')}"),
        (
            "best",
            f"epoch {best.epoch} of {run.n_epochs}: {best.told()}" if best else "not known: nothing was monitored",
        ),
        ("last", _last(run)),
        ("saved", ", ".join(_checkpoints(path)) or "no checkpoint yet"),
        ("left out", _left_out(run)),
        *(("damaged", each) for each in skipped),
        ("resume", _how_to_resume(path)),
        ("next", _next(path, config.get("dataset")) if newest else ""),
    ]
    return Lines.of(f"{name:<8} {value}" for name, value in facts if value)


def data_to_measure(dest: object) -> list[str]:
    """Write the data that a run's model is measured on: of splits test or else val, not what it was trained on."""
    path = Path(str(dest))
    folder = path.parent if path.name == TRAIN and is_split_root(path.parent) else path
    split = chosen_split(local_path(folder), TEST, VAL)
    return [str(folder), *(["--split", split] if split else [])]


def _state(run: RunRecord, newest: Checkpoint | None) -> str:
    if is_folder_locked(run.path):
        return "being trained now"
    if run.epochs:
        return "not running"
    saved = f"saved after {counted(int(newest.path.name), 'batch', 'batches')}" if newest else "nothing was saved"
    return f"interrupted in epoch 1, {saved}"


def _how_to_resume(path: Path) -> str:
    """Say by which command a run resumes: one of a comparison with the comparison, which alone knows its settings."""
    comparison = path.parent
    if is_there(comparison / COMPARISON_JSON):
        resuming = command_line(["--out", str(comparison), "--resume"])
        return f"the streamtrain compare that trained it, with {resuming}"
    return f"the command that trained it, with {command_line(['--out', str(path), '--resume'])}; --epochs is the total"


def _next(path: Path, dataset: object) -> str:
    """Write the command that measures the run's model, or say that its data is not where it was."""
    if not isinstance(dataset, str):
        return command_line(["streamtrain", "evaluate", str(path), "DEST"])
    if not is_there(Path(dataset)):
        return f"its dataset is not at {dataset} now"
    return command_line(["streamtrain", "evaluate", str(path), *data_to_measure(dataset)])


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
