"""Checkpoints: the whole state of a run after a batch, durable, checked, and never executed.

::

    runs/1/checkpoints/00001175/       named by the batches taken in
        model.safetensors              the model's own state_dict
        normalize.safetensors          the input normalization, if there is one
        optimizer.safetensors          and more tensors: random states, sums of gradients
        state.json                     counts, the loader's position, all that is not a tensor
        manifest.json                  bytes and SHA-256 of each of these; written last

A folder without its manifest is not a checkpoint. Each names the best epoch so far, if there is one, and the checkpoint
at its end. Once a new one is durable, the one before it is kept, and what either names as the best; older ones are
removed. A checkpoint that replaces another, of the same batch, is written beside it, as ``00001175.new``, and the two
exchange names; where the system cannot exchange them and the run is killed meanwhile, it is found under that name.

A run that skips a damaged checkpoint resumes from an older one, and so do its metrics. From then on the skipped one
belongs to another past, even if it can be read again: its manifest is put aside as ``manifest.left``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.optim import Optimizer

from streamtrain.errors import (
    CheckpointError,
    ResourceError,
    StreamtrainError,
    first_line,
)
from streamtrain.loader.batch import tensor_bytes
from streamtrain.models.forward import original_model
from streamtrain.store.writing.lock import is_folder_locked
from streamtrain.system.files import (
    Files,
    is_folder,
    is_regular,
    is_there,
    names_in,
    open_to_read,
    read_whole,
    status_of,
)
from streamtrain.system.json_values import objects, whole_number
from streamtrain.system.refusals import read_failure, refusal_behind, translate_os_errors, translate_read_errors
from streamtrain.system.syscalls import SYSTEM
from streamtrain.training.best.monitor import best_of
from streamtrain.training.run.serialization import check_tensors, write_tensors

CHECKPOINTS: Final = "checkpoints"
MODEL: Final = "model"
NORMALIZE: Final = "normalize"
CHECKPOINT_VERSION: Final = 1

_STATE: Final = "state.json"
_MANIFEST: Final = "manifest.json"
_LEFT: Final = "manifest.left"
_SUFFIX: Final = ".safetensors"
_KEPT: Final = 2
_COUNTS: Final = ("n_epochs", "n_batches", "n_steps", "n_samples")
MOST_CHECKPOINTS: Final = _KEPT + 1
"""On the disk at a time, without the best one: a new one is whole before the oldest is removed."""
_NEW: Final = ".new"
_BATCH_DIGITS: Final = 8
LONGEST_NAME: Final = f"{'0' * _BATCH_DIGITS}{_NEW}/.optimizer{_SUFFIX}.{'0' * _BATCH_DIGITS}.tmp"
_MANIFEST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found whole; ``state`` is everything that is not a tensor."""

    path: Path
    state: dict[str, Any]
    # Read with the rest, where the run may remove the files at any moment.
    held: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors saved under a name; empty where there are none."""
        if name in self.held:
            return self.held[name]
        file = self.path / f"{name}{_SUFFIX}"
        return read_tensors(file, fix="train again") if _is_there(file) else {}


def checkpoint_folder(run: Path, n_batches: int) -> Path:
    """Return the folder of the checkpoint after so many batches."""
    return run / CHECKPOINTS / f"{n_batches:0{_BATCH_DIGITS}d}"


def write_checkpoint(
    files: Files,
    run: Path,
    n_batches: int,
    state: Mapping[str, object],
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> Path:
    """Write a checkpoint of a run, and remove all but it, the one before, and what either names as the best.

    If it cannot be written, the earlier checkpoints stay as they were.
    """
    files_of = {f"{name}{_SUFFIX}": some for name, some in tensors.items() if some}
    for some in files_of.values():
        check_tensors(some)
    folder = checkpoint_folder(run, n_batches)
    with translate_os_errors("look at", folder):
        begun = folder.with_name(f"{folder.name}{_NEW}") if is_there(folder) else folder
    with translate_os_errors("remove", begun):
        if is_there(begun):
            _remove(files, begun)
    try:
        files.ensure_dir(begun)
        _fill(files, begun, state, files_of)
        if begun != folder:
            _replace(files, folder, begun)
    except BaseException:
        # The unfinished folder takes space, of which there may be none left.
        with suppress(OSError):
            _remove(files, begun)
        raise
    # An old checkpoint that cannot be removed takes space, and does no other harm; nor can one be that may be the best.
    with suppress(OSError, CheckpointError):
        for old in _outlived(run, n_batches):
            _remove(files, old)
    return folder


_STATES: Final = dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax"), 2) | {"RMSprop": 1, "Adagrad": 1}
"""Tensors, of the size of a weight, that an optimizer keeps for it at the least."""


def checkpoint_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """Compute what a checkpoint takes at the least: the model, and the state that the optimizer has or will have.

    The model's state is one that passed `check_tensors`.
    """
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    kept = tensor_bytes(state)
    if not state:
        for group in optimizer.param_groups:
            n_kept = _STATES.get(type(optimizer).__name__, 1 if group.get("momentum") else 0)
            kept += n_kept * tensor_bytes(group["params"])
    return kept + tensor_bytes(value for value in model.state_dict().values() if isinstance(value, Tensor))


def _fill(files: Files, folder: Path, state: Mapping[str, object], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    listed: dict[str, dict[str, object]] = {}
    for name, some in tensors.items():
        with files.create(folder / name) as out:
            digest = write_tensors(out, some)
        listed[name] = {"bytes": out.n_bytes, "sha256": digest}
    text = json.dumps({"version": CHECKPOINT_VERSION, **state}).encode()
    files.write_bytes(folder / _STATE, text)
    listed[_STATE] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    files.write_bytes(folder / _MANIFEST, json.dumps({"version": CHECKPOINT_VERSION, "files": listed}).encode())


def _replace(files: Files, folder: Path, begun: Path) -> None:
    """Put a finished checkpoint in the place of another, which then has its name, or is gone."""
    if not files.exchange(begun, folder):
        with translate_os_errors("remove", folder):
            _remove(files, folder)
        files.rename(begun, folder)


def _outlived(run: Path, n_batches: int) -> list[Path]:
    """List what a checkpoint makes obsolete: everything but it, the one before, and what either calls the best."""
    named = [folder for folder in _folders(run) if not folder.suffix and int(folder.name) <= n_batches]
    newest = [folder for folder in named if is_regular(folder / _MANIFEST)][:_KEPT]
    parent = run / CHECKPOINTS
    kept = {
        *newest,
        *(found.checkpoint for folder in newest if (found := best_of(_read_state(folder / _STATE), folder))),
    }
    begun = [parent / name for name in names_in(parent) if name.removesuffix(_NEW).isdecimal()]
    return [path for path in begun if path not in kept]


def _remove(files: Files, folder: Path) -> None:
    # The manifest first: if the rest cannot be removed, what is left is not a checkpoint.
    if is_there(folder / _MANIFEST):
        files.unlink(folder / _MANIFEST)
    files.remove_tree(folder)


def leave_behind(files: Files, run: Path, found: Checkpoint | None) -> Checkpoint | None:
    """Put aside every checkpoint newer than the one that a run resumes from; return that, under its own name.

    A newer one that cannot be put aside is detected later, by the length of the metrics.
    """
    for folder in _folders(run):
        if found is not None and folder == found.path:
            break
        if _is_there(folder / _MANIFEST):
            with suppress(ResourceError):
                files.rename(folder / _MANIFEST, folder / _LEFT)
    if found is None or found.path.suffix != _NEW:
        return found
    named = found.path.with_suffix("")
    with translate_os_errors("remove", named):
        if is_there(named):
            _remove(files, named)
    files.rename(found.path, named)
    return replace(found, path=named)


def find_checkpoint(run: Path, *, older_than: Checkpoint | None = None) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Find the newest whole checkpoint of a run, and say what is wrong with each newer one.

    One that cannot be read for now is an error: it may be whole, and a run that resumes without it would remove it.
    With ``older_than``, a checkpoint of the run, only older ones are considered. One that is kept as the best alone is
    not: a run does not go back so far unasked.
    """
    skipped: list[str] = []
    folders = _folders(run)
    to_resume = [folder for folder in folders if _is_there(folder / _MANIFEST)][:_KEPT]
    folders = folders[: folders.index(to_resume[-1]) + 1] if len(to_resume) == _KEPT else folders
    for folder in folders[folders.index(older_than.path) + 1 if older_than else 0 :]:
        try:
            return read_checkpoint(folder), tuple(skipped)
        except CheckpointError as error:
            # It may be undamaged: a run that started afresh would in time remove it.
            if refusal_behind(error):
                raise
            skipped.append(f"{error.where}: {error.what}")
    return None, tuple(skipped)


def was_saved(run: Path) -> bool:
    """Say whether a run ever finished a checkpoint that it has not left behind, whole or not by now."""
    return any(_is_there(folder / _MANIFEST) for folder in _folders(run))


def newest_checkpoint(run: Path) -> Checkpoint:
    """Return the newest whole checkpoint of a run, weights and all, or refuse a run without one, with the reasons."""
    return read_steadily(run, lambda newest: newest)


def read_steadily(run: Path, choose: Callable[[Checkpoint], Checkpoint]) -> Checkpoint:
    """Return the checkpoint that is chosen, given the newest whole one of a run, weights and all.

    The run may be trained meanwhile:

    1. This process finds checkpoint 9, and checks or reads its files.
    2. The trainer saves 11, and removes 9, its manifest first; or it replaces 9.
    3. The manifest of 9 is no longer the one that was found, so nothing that was read counts, and 11 is read.
    """
    while True:
        before = _manifests(run)
        try:
            found, skipped = find_checkpoint(run)
            if found is None:
                raise _no_checkpoint(run, skipped)
            found = with_weights(choose(found))
        except CheckpointError:
            if _manifests(run) == before:
                raise
            continue
        after = _manifests(run)
        is_there = before.get(found.path) is not None and before.get(found.path) == after.get(found.path)
        # One that was skipped may have been whole, and replaced as it was read.
        if is_there and (not skipped or before == after):
            return found


def with_weights(found: Checkpoint) -> Checkpoint:
    """Read the weights and the normalization, so that nothing is read later."""
    return replace(found, held={name: found.tensors(name) for name in (MODEL, NORMALIZE)})


def _no_checkpoint(run: Path, skipped: tuple[str, ...]) -> CheckpointError:
    what, why, fix = "the run has no whole checkpoint", "; ".join(skipped), "train again"
    if is_folder_locked(run):
        why, fix = why or "It is being trained, and has not saved its first", "wait for its next"
    return CheckpointError(what, where=str(run), why=why or "It was stopped before its first", fix=fix)


def _manifests(run: Path) -> dict[Path, tuple[int, ...] | None]:
    """Return what identifies the manifest of each checkpoint; None for one that has none."""
    return {folder: _identity(folder / _MANIFEST) for folder in _folders(run)}


def _identity(file: Path) -> tuple[int, ...] | None:
    with translate_read_errors(file, CheckpointError, "train again"):
        status = status_of(file)
    return status and (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Check every byte of a checkpoint against its manifest, and read its state."""
    try:
        return _checked(folder)
    except StreamtrainError:
        raise
    except OSError as error:
        raise _unreadable(Path(error.filename or folder), error) from error


def _checked(folder: Path) -> Checkpoint:
    listed = _read_manifest(folder)
    for name, entry in listed.items():
        file = folder / name
        if file.is_symlink() or not is_regular(file):
            raise CheckpointError("is missing", where=str(file), fix="train again")
        have = SYSTEM.stat(file).st_size
        if have != entry["bytes"]:
            raise CheckpointError(f"has {have} of {entry['bytes']} bytes", where=str(file), fix="train again")
        with translate_read_errors(file, CheckpointError, "train again"), open_to_read(file) as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:  # type: ignore[arg-type]
                raise CheckpointError("is not as it was written (SHA-256)", where=str(file), fix="train again")
    state = _read_state(folder / _STATE)
    if state.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"is of version {state.get('version')}, this is {CHECKPOINT_VERSION}",
            where=str(folder),
            fix="the matching release",
        )
    return Checkpoint(path=folder, state=state)


def _read_state(file: Path) -> dict[str, Any]:
    try:
        return objects([json.loads(read_whole(file))])[0]
    except (ValueError, RecursionError) as error:
        raise CheckpointError("is damaged", where=str(file), why=first_line(error), fix="train again") from error


def check_state(found: Checkpoint) -> None:
    """Refuse a state whose outermost values no run has written."""
    state = found.state
    try:
        for name in ("metrics_bytes", *(f"counts.{name}" for name in _COUNTS), "n_batch_samples"):
            of, _, key = name.rpartition(".")
            group = state[of] if of else state
            if key in group or key != "n_batch_samples":
                whole_number(group[key])
        if set(state["counts"]) != set(_COUNTS):
            raise ValueError("its counts are not those of a run")
        objects([state["identity"], state.get("stream") or {}])
    except (ValueError, KeyError, TypeError) as error:
        where, why = str(found.path / _STATE), first_line(error)
        raise CheckpointError("is damaged", where=where, why=why, fix="train again") from error
    best_of(state, found.path)


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / _MANIFEST
    try:
        if SYSTEM.stat(file).st_size > _MANIFEST_BYTES:
            raise ValueError("it is too long")
        listed = json.loads(read_whole(file))["files"]
        if _STATE not in listed or not all(_is_entry(name, entry) for name, entry in listed.items()):
            raise ValueError("it does not list the files")
    except FileNotFoundError:
        what = f"is not complete: {_MANIFEST} is missing"
        if is_there(folder / _LEFT):
            what = "is outdated: the run continued from an older one"
        raise CheckpointError(what, where=str(folder), fix="train again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"is damaged: {error}", where=str(file), fix="train again") from error
    return dict(listed)


def _unreadable(path: Path, error: OSError) -> StreamtrainError:
    return read_failure(error, path, CheckpointError, "train again")


def _is_there(path: Path) -> bool:
    with translate_read_errors(path, CheckpointError, "train again"):
        return is_there(path)


def _is_entry(name: str, entry: object) -> bool:
    match entry:
        case {"bytes": int(), "sha256": str()}:
            return name == _STATE or (name.endswith(_SUFFIX) and Path(name).name == name)
    return False


def _folders(run: Path) -> list[Path]:
    """List the folders of checkpoints, whole or not, newest first, each followed by its whole replacement.

    A folder that may not be read is an error, not a run without checkpoints.
    """
    parent = run / CHECKPOINTS
    try:
        entries = [parent / name for name in names_in(parent)] if is_folder(parent) else []
        found = [path for path in entries if path.name.isdecimal()]
        replacing = [path for path in entries if path.suffix == _NEW and path.stem.isdecimal()]
        found += [path for path in replacing if is_regular(path / _MANIFEST)]
    except OSError as error:
        raise _unreadable(parent, error) from error
    return sorted(found, key=lambda path: (-int(path.stem), path.suffix))


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a model's weights, or refuse those of another model."""
    try:
        original_model(model).load_state_dict(checkpoint.tensors(MODEL))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(
            f"the weights are of another model: {' '.join(lines[1:4] or lines)}",
            where=str(checkpoint.path / f"{MODEL}{_SUFFIX}"),
            fix="the model that the run was trained with",
        ) from error


def normalize_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return the state of the normalization modules, by input, as a checkpoint holds it."""
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def normalize_states(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Read the state of the normalization modules, by input."""
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors(NORMALIZE).items():
        field, _, key = name.partition(".")
        states.setdefault(field, {})[key] = tensor
    return states


def read_tensors(file: Path, *, what: str = "the checkpoint", fix: str) -> dict[str, Tensor]:
    """Read a safetensors file; ``what`` and ``fix`` are for the error where it cannot be read."""
    try:
        # Safetensors calls a file missing whatever hinders its opening, so that is tried first.
        open_to_read(file).close()
        return safetensors.torch.load_file(file)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise CheckpointError(f"{what} is missing", where=str(file), fix=fix) from None
        raise read_failure(error, file, CheckpointError, fix) from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{what} is damaged: {error}", where=str(file), fix=fix) from error
