"""The folder of a run: its configuration, its metrics, and its checkpoints.

::

    runs/1/
        config.json
        schema.json                the columns and classes of its data, see `streamtrain.store.schema.columns`
        metrics.jsonl              a line every few batches, and one every epoch; that of an epoch that was cut short
                                   has "partial": true, and is removed when the run resumes
        scores.json                the scores of the last epoch with their tables, and the baseline; under "best" those
                                   of the best epoch, see `streamtrain.training.records.kept_scores`
        memory.json                the memory it took, once it has ended
        checkpoints/00001175/      see `streamtrain.training.run.checkpoint`
        report.html
        .lock                      while it is being trained: who does, see `streamtrain.store.writing.lock`

Nothing in it is ever executed.
"""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from torch import Tensor

from streamtrain.errors import Argument, CheckpointError, Fix, ResourceError, StreamtrainWarning, UsageError
from streamtrain.store.root import kind_of_runs
from streamtrain.store.schema.columns import Schema, parse_schema, schema_json
from streamtrain.store.writing.lock import FOLDER_LOCK, check_folder_unlocked, folder_lock, is_folder_locked
from streamtrain.store.writing.staging import check_in_no_dataset, is_nobodys
from streamtrain.store.zarr_metadata import ROOT
from streamtrain.system.files import (
    Files,
    existing_parent,
    is_folder,
    is_regular,
    is_temporary,
    is_there,
    local_path,
    names_in,
    open_to_read,
    read_whole,
    status_of,
    temporary_beside,
)
from streamtrain.system.json_values import to_json_value
from streamtrain.system.refusals import (
    is_of_machine,
    os_failure,
    read_failure,
    translate_os_errors,
    translate_read_errors,
)
from streamtrain.system.syscalls import with_room
from streamtrain.system.units import format_bytes
from streamtrain.system.versions import library_versions
from streamtrain.training.metrics.baseline import Baseline, parse_baseline
from streamtrain.training.records.kept_scores import KeptScores
from streamtrain.training.run.checkpoint import (
    CHECKPOINTS,
    LONGEST_NAME,
    MOST_CHECKPOINTS,
    Checkpoint,
    leave_behind,
    write_checkpoint,
)

ANOTHER: Final = Fix("another ", Argument("checkpoint"))
CONFIG: Final = "config.json"
SCHEMA: Final = "schema.json"
METRICS: Final = "metrics.jsonl"
SCORES: Final = "scores.json"
MEMORY: Final = "memory.json"
_RENEWED: Final = ("command", "fit", "model_sha256")
_LONGEST: Final = f"{CHECKPOINTS}/{LONGEST_NAME}"
_T = TypeVar("_T")


class RunFolder:
    """A run being written, by nobody else until it is closed; a folder in which nothing was written goes again."""

    def __init__(
        self, path: Path, config: Mapping[str, object], *, resumes: bool = False, files: Files | None = None
    ) -> None:
        # Looked at first, so that nothing is made in a place that is taken.
        check_run(path, resumes=resumes)
        self.resumes = resumes and is_run(path)
        self._lock = ExitStack()
        self._lock.enter_context(sole_writer(path, resumes=resumes))
        self.path = path
        self._config = config
        self._files = files or Files()
        # Written with the first checkpoint; None for a resumed run, which keeps the file that it has.
        self.schema: Schema | None = None
        self._kept: Schema | None = None
        self._scores = KeptScores()
        self._metrics: int | None = None
        self._unwritten = bytearray()
        self._partial_at: int | None = None
        self._resumed_from: tuple[Checkpoint | None] | None = None

    def log(self, **values: float | str) -> None:
        """Append a line to ``metrics.jsonl``, with null for numbers that are not finite.

        A line that cannot be written now is written with a later one; no checkpoint is saved without it. The line of a
        ``partial`` epoch stands until the next one replaces it, and belongs to no checkpoint.
        """
        line = json.dumps(to_json_value(values)) + "\n"
        self._forget_other_past()
        self._drop_partial()
        if values.get("partial"):
            self._partial_at = self._n_bytes() + len(self._unwritten)
        self._unwritten += line.encode()
        with suppress(ResourceError):
            self._write_metrics()

    def rewind(self, n_bytes: int) -> None:
        """Remove the lines after the first ``n_bytes`` bytes, or refuse a file that is shorter."""
        if why := self.why_not_after(n_bytes):
            raise CheckpointError(why, where=str(self.path / METRICS), fix=ANOTHER)
        if self._n_bytes() > n_bytes:
            self._files.system.truncate(self.path / METRICS, n_bytes)

    def why_not_after(self, n_bytes: int) -> str | None:
        """Say why a checkpoint made after ``n_bytes`` of ``metrics.jsonl`` is not of these metrics; None if it is."""
        file = self.path / METRICS
        with translate_read_errors(file, CheckpointError, ANOTHER):
            have = self._n_bytes()
            if have < n_bytes:
                return f"{have} bytes; the checkpoint was made after {n_bytes}"
            if n_bytes:
                with open_to_read(file) as lines:
                    lines.seek(n_bytes - 1)
                    if lines.read(1) != b"\n":
                        return f"no line that ends at byte {n_bytes}, after which the checkpoint was made"
        return None

    @property
    def n_checkpoints(self) -> int:
        """The number of checkpoints that are there, whole or not."""
        return len(list((self.path / CHECKPOINTS).glob("*")))

    def resume_from(self, found: Checkpoint | None) -> None:
        """Resume from a checkpoint, or start afresh; later lines and checkpoints go at the first write."""
        self._resumed_from = (found,)
        if found is not None:
            self._scores.resume(_read_scores(self.path), found.state["counts"]["n_batches"])

    def _forget_other_past(self) -> None:
        if self._resumed_from is None:
            return
        # A kill between the two leaves checkpoints put aside, and lines that the next resume removes.
        found = leave_behind(self._files, self.path, self._resumed_from[0])
        self._resumed_from = (found,)
        with translate_os_errors("cut", self.path / METRICS):
            self.rewind(found.state["metrics_bytes"] if found else 0)
        self._resumed_from = None

    def _n_bytes(self) -> int:
        status = status_of(self.path / METRICS)
        return status.st_size if status else 0

    def _drop_partial(self) -> None:
        if self._partial_at is None:
            return
        with translate_os_errors("cut", self.path / METRICS):
            written = self._n_bytes()
            del self._unwritten[max(0, self._partial_at - written) :]
            if written > self._partial_at:
                self._files.system.truncate(self.path / METRICS, self._partial_at)
        self._partial_at = None

    def save(self, n_batches: int, state: Mapping[str, object], tensors: Mapping[str, Mapping[str, Tensor]]) -> Path:
        """Save a checkpoint with its position in ``metrics.jsonl``; the one before it is kept."""
        self._forget_other_past()
        metrics = self._write_metrics()
        self._check_still_there(metrics)
        self._write_schema()
        best = state.get("best")
        best_epoch = best.get("epoch") if isinstance(best, Mapping) else None
        self._write_scores(best_epoch)
        with translate_os_errors("flush", self.path / METRICS):
            self._files.system.fsync(metrics)
        n_bytes = os.fstat(metrics).st_size if self._partial_at is None else self._partial_at
        saved = write_checkpoint(self._files, self.path, n_batches, {**state, "metrics_bytes": n_bytes}, tensors)
        self._scores.saved(best_epoch)
        return saved

    def _check_still_there(self, metrics: int) -> None:
        """Refuse to save beside metrics that lost their name, in a folder that may be another run's by now."""
        with translate_os_errors("look at", self.path / METRICS):
            named = status_of(self.path / METRICS)
        if named is None or not os.path.samestat(named, os.fstat(metrics)):
            what = "was removed or replaced while the run was trained"
            raise ResourceError(what, where=str(self.path / METRICS), fix=ANOTHER)

    def _write_metrics(self) -> int:
        """Write the pending lines, so that a reader of the file sees them as they come."""
        metrics = self._opened()
        with translate_os_errors("write", self.path / METRICS):
            while self._unwritten:
                # Copied: a bytearray with a view on it cannot shrink.
                n_written = self._files.system.writev(metrics, [bytes(self._unwritten)])
                del self._unwritten[:n_written]
        return metrics

    def _write_schema(self) -> None:
        # Before the checkpoint: every checkpoint then has the schema that its weights were trained on.
        if self.schema not in (None, self._kept):
            assert self.schema is not None
            self._files.write_bytes(self.path / SCHEMA, (json.dumps(schema_json(self.schema)) + "\n").encode())
            self._kept = self.schema

    def keep_scores(self, scores: Mapping[str, object]) -> None:
        """Write the scores of an epoch to ``scores.json`` with the next checkpoint."""
        self._scores.keep(scores)

    def keep_baseline(self, baseline: Mapping[str, object]) -> None:
        """Write the baseline to ``scores.json`` with the first checkpoint."""
        self._scores.keep_baseline(baseline)

    def _write_scores(self, best_epoch: int | None) -> None:
        text = self._scores.changed(best_epoch)
        if text is not None:
            self._files.write_bytes(self.path / SCORES, f"{text}\n".encode())
            self._scores.written(text)

    def _opened(self) -> int:
        if self._metrics is None:
            self._files.ensure_dir(self.path)
            with translate_os_errors("look at", self.path / CONFIG):
                is_begun = is_there(self.path / CONFIG)
            begun = read_config(self.path) if is_begun else {}
            config = _resumed(begun, self._config) if begun else {**self._config, "versions": library_versions()}
            if begun.get("model_sha256", digest := config.get("model_sha256")) != digest:
                text = f"{config['model']} has changed since {self.path} was last trained"
                warnings.warn(StreamtrainWarning(text), stacklevel=4)
            if config != begun:
                self._files.write_bytes(self.path / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
            with translate_os_errors("open", self.path / METRICS):
                self._metrics = with_room(self._open_metrics)
        return self._metrics

    def _open_metrics(self) -> int:
        file, system = self.path / METRICS, self._files.system
        with suppress(FileExistsError):
            os.close(system.open(file))
        return system.append(file)

    def close(self) -> None:
        """Close ``metrics.jsonl``, and let other writers in."""
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _resumed(begun: Mapping[str, object], now: Mapping[str, object]) -> dict[str, Any]:
    """Describe a run as it was begun, but for the call that repeats the whole of it, and the code of its model."""
    new: dict[str, Any] = json.loads(json.dumps({name: now[name] for name in _RENEWED if name in now}))
    return {name: value for name, value in begun.items() if name not in _RENEWED} | new


class NullRunFolder:
    """A run that keeps nothing, in place of a `RunFolder`."""

    path = None

    def log(self, **values: float | str) -> None:
        """Do nothing."""

    def keep_scores(self, scores: Mapping[str, object]) -> None:
        """Do nothing."""

    def keep_baseline(self, baseline: Mapping[str, object]) -> None:
        """Do nothing."""

    def save(self, n_batches: int, state: Mapping[str, object], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class FollowedRun(NullRunFolder):
    """The run that the first rank keeps, as another rank has it."""


Run = RunFolder | NullRunFolder


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    path = local_path(path)
    try:
        return is_regular(path / CONFIG)
    except OSError as error:
        raise read_failure(error, path / CONFIG, CheckpointError, ANOTHER, what="cannot be looked at") from error


def check_run(path: Path, *, resumes: bool = False) -> None:
    """Refuse a place where another process trains, that is taken unless its run resumes, or that cannot be written."""
    path = local_path(path)
    if (resumes and is_run(path)) or _is_taken(path):
        check_folder_unlocked(path)
    _refuse_taken(path, resumes=resumes)
    check_writable(path)


@contextmanager
def sole_writer(path: Path, *, resumes: bool = False) -> Iterator[None]:
    """Hold the lock of a run's folder, or of one for several runs, while the block runs; refuse one that is taken."""
    with folder_lock(path):
        # Another process may have been there between the look and the lock.
        _refuse_taken(path, resumes=resumes)
        yield


def _refuse_taken(path: Path, *, resumes: bool) -> None:
    if not (resumes and is_run(path)) and _is_taken(path):
        resuming = (", ", Argument("resume", "auto"), " to resume it, or remove it") if is_run(path) else ()
        raise UsageError("the run folder is taken", where=str(path), fix=Fix(ANOTHER, *resuming))


def _is_taken(path: Path) -> bool:
    """Whether something is there; leftovers of a run killed as it began, and what is nobody's, do not count."""
    with translate_os_errors("look at", path):
        if not is_folder(path):
            return status_of(path) is not None
        return not all(is_temporary(name) or is_nobodys(name) or name == FOLDER_LOCK for name in names_in(path))


def check_writable(path: Path) -> None:
    """Refuse a run folder that cannot be made or written, before there is anything to write; leave nothing there."""
    # One that was there may have been another writer's, who ended without a file in it.
    while not _try_folder(existing_parent(path), path):
        pass


def _try_folder(folder: Path, path: Path) -> bool:
    """Make a folder for nothing in the one that a run's will be in; False where that has gone meanwhile."""
    check_in_no_dataset(path, "the run folder", ANOTHER)
    if not folder.is_dir():
        what = "cannot create directory: something else is in its place"
        raise ResourceError(what, where=str(folder), fix="choose another path")
    # The longest of the names that a run writes, as deep as the folders that are still missing.
    inside = path.absolute().relative_to(folder) / _LONGEST
    for part in (*inside.parts, str(folder / inside)):
        with translate_os_errors("create directory", path), suppress(FileNotFoundError, PermissionError):
            (folder / part).lstat()
    probe, files = temporary_beside(folder / CHECKPOINTS), Files()
    with translate_os_errors("create directory", path):
        try:
            files.mkdir(probe)
        except FileNotFoundError:
            if folder.exists():
                raise
            return False
        files.rmdir(probe)
    return True


def check_room(
    path: Path,
    n_bytes: int,
    *,
    n_there: int = 0,
    n_kept: int = MOST_CHECKPOINTS - 1,
    refuses: bool = True,
    of: str = "a checkpoint takes",
    another: Fix = ANOTHER,
) -> None:
    """Refuse a run whose checkpoints, of this size, have no room on the disk; warn if only the first ones have."""
    folder = existing_parent(path)
    with translate_os_errors("look at", folder):
        free_bytes, _ = Files().system.free(folder)
    if free_bytes is None:
        return
    n_fitting = free_bytes // max(n_bytes, 1)
    if n_fitting + n_there > n_kept and n_fitting:
        return
    what = f"{of} {format_bytes(n_bytes)}, and {format_bytes(free_bytes)} are free"
    if refuses and not n_fitting:
        raise ResourceError(what, where=str(folder), fix=Fix("free some space, or ", another))
    keeps = f"A run keeps {n_kept}, and writes the next before the oldest goes"
    text = f"{folder}: {what}, enough for {n_fitting}. {keeps}"
    warnings.warn(StreamtrainWarning(text, fix=Fix("free some space, or ", another)), stacklevel=7)


def newest_run(parent: Path) -> Path | None:
    """Return the run that was written to last; None where there is none."""
    runs = [config.parent for config in parent.glob(f"*/{CONFIG}")]
    return max(runs, key=lambda run: run.stat().st_mtime) if runs else None


def _no_such_run(path: Path) -> CheckpointError:
    beside = [run.parent.name for run in path.parent.glob(f"*/{CONFIG}")]
    near = difflib.get_close_matches(path.name, sorted(beside), n=1)
    fix = f"did you mean {str(path.with_name(near[0]))!r}?" if near else _nearby_runs(path)
    return CheckpointError("no such folder", where=str(path), fix=fix)


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's ``config.json``."""
    file = local_path(path) / CONFIG
    try:
        config = json.loads(read_whole(file))
    except (FileNotFoundError, NotADirectoryError):
        if not local_path(path).exists():
            raise _no_such_run(local_path(path)) from None
        kind = "a dataset" if (local_path(path) / ROOT).exists() else kind_of_runs(local_path(path))
        begins = is_folder_locked(local_path(path))
        fix = "wait for its first checkpoint: it is being trained" if begins else _nearby_runs(path)
        what = f"{kind}, not a run" if kind else f"no run: {CONFIG} is missing"
        page = path / "comparison.html"
        why = f"Its page is {page}" if page.is_file() else None
        raise CheckpointError(what, where=str(path), why=why, fix=fix) from None
    except OSError as error:
        raise read_failure(error, file, CheckpointError, "train again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=str(file), fix="train again") from error
    if not isinstance(config, dict):
        raise CheckpointError("is not a JSON object", where=str(file), fix="train again")
    return config


def read_schema(path: Path) -> Schema | None:
    """Read a run's ``schema.json``; None where a run of an earlier version has none."""
    return _parsed(path / SCHEMA, parse_schema)


def read_baseline(path: Path) -> Baseline | None:
    """Read the baseline of a run; None where a run of an earlier version, or without one, has none."""
    return _parsed(local_path(path) / SCORES, lambda o: parse_baseline(o.get("baseline") if isinstance(o, dict) else o))


def _parsed(file: Path, parse: Callable[[Any], _T]) -> _T | None:
    try:
        return parse(json.loads(read_whole(file)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise read_failure(error, file, CheckpointError, "train again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError("is damaged", where=str(file), why=str(error), fix="train again") from error


def _read_scores(path: Path) -> object:
    """Read what is in ``scores.json``; None where it is not there, or damaged: the next epoch is written anew."""
    try:
        return json.loads(read_whole(path / SCORES))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise read_failure(error, path / SCORES, CheckpointError, ANOTHER) from error


def write_memory(path: Path, memory: Mapping[str, object]) -> None:
    """Write the memory that a run took, in bytes by name, beside its metrics."""
    Files().write_bytes(path / MEMORY, (json.dumps(memory, indent=2) + "\n").encode())


def epochs_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of ``metrics.jsonl`` that sum up an epoch, the last one first, up to one that cannot be read."""
    try:
        lines = read_whole(path / METRICS).decode().splitlines()
        for line in map(json.loads, reversed(lines)):
            if line.get("kind") == "epoch":
                yield line
    except OSError as error:
        if is_of_machine(error):
            raise os_failure(error, "read", path / METRICS) from error
    except (ValueError, AttributeError, RecursionError):
        return


def _nearby_runs(path: Path) -> str:
    found = (sorted(parent.glob(f"*/{CONFIG}")) for parent in (path, path.parent, path.parent / "runs"))
    runs = [str(config.parent) for config in next(filter(None, found), [])]
    if not runs:
        return "name the folder that a run wrote"
    return f"give {runs[0]}" if len(runs) == 1 else f"give one of {', '.join(runs[:8])}"
