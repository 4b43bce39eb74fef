"""The checkpoint of a run that is read: the best, the last, or the one after so many batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Argument, CheckpointError, Fix, UsageError
from streamtrain.system.arguments import is_int
from streamtrain.system.files import is_folder, local_path, names_in
from streamtrain.system.refusals import refusal_behind
from streamtrain.system.units import format_figure
from streamtrain.training.best.monitor import BestEpoch, best_of
from streamtrain.training.run.checkpoint import (
    CHECKPOINTS,
    Checkpoint,
    check_state,
    checkpoint_folder,
    find_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    read_steadily,
    with_weights,
)

BEST: Final = "best"
LAST: Final = "last"
Which = str | int
"""``"best"``, ``"last"``, or the batches that a checkpoint is named by."""
_MOST_NAMED: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenCheckpoint:
    """A checkpoint of a run with its weights, and what tells it from the others.

    ``epoch`` is the last that was finished, ``best`` the run's best, None where it names none; ``doubt`` is why the
    best, which was asked for, was not read.
    """

    checkpoint: Checkpoint
    is_last: bool
    is_best: bool
    best: BestEpoch | None
    last: Checkpoint
    doubt: str | None = None

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.checkpoint.path

    @property
    def epoch(self) -> int:
        """The last epoch that was finished."""
        return int(self.checkpoint.state["counts"]["n_epochs"])

    def told(self) -> Fix:
        """Say which weights these are, and how to have the others."""
        here = f"weights of {place_of(self.checkpoint)}"
        if self.is_best:
            assert self.best is not None
            others = Fix(" and the last") if self.is_last else Fix("; ", _LAST, f" for {place_of(self.last)}")
            return Fix(f"{here}, the best by {_by(self.best)}", others)
        here += ", the last" if self.is_last else ""
        if self.best is None:
            return Fix(f"{here}: the run names no best" if self.is_last else here)
        if self.doubt:
            return Fix(f"{here}: the best, epoch {self.best.epoch}, cannot be read")
        return Fix(here, "; ", _BEST, f" for epoch {self.best.epoch}, the best by {_by(self.best)}")

    def named(self) -> dict[str, object]:
        """Return what it is by name, as JSON has it."""
        best = self.best if self.is_best else None
        return {
            "checkpoint": self.path,
            "epoch": self.epoch,
            "is_best": self.is_best,
            "is_last": self.is_last,
            "monitor": best and best.monitor,
            "value": best and best.value,
        }


_BEST, _LAST = Argument("which", BEST), Argument("which", LAST)


def checkpoint_of(run: str | Path, which: Which = BEST) -> ChosenCheckpoint:
    """Read a checkpoint of a run: the best by its monitor, the last, or the one named by so many batches.

    A run without a monitor, and one of an earlier version, names no best: it is the last then, and the value says so.
    So it is, with the reason as its ``doubt``, where the best one is damaged or gone.

    Raises
    ------
    UsageError
        ``which`` is none of these.
    CheckpointError
        The run has no whole checkpoint, or the one named is damaged.
    """
    path, which = local_path(run), _parse(which)
    if isinstance(which, int):
        return _numbered(path, which)
    if which == LAST:
        newest = _newest(path)
        return _chosen(newest, newest)
    seen: list[Checkpoint] = []
    try:
        found = read_steadily(path, _best_after(seen))
        check_state(found)
        return _chosen(found, seen[-1])
    except CheckpointError as error:
        if not seen and not refusal_behind(error) and (kept := kept_best(path)) is not None:
            error.fix = Fix(Argument("which", int(kept.path.stem)), f", the best, which is whole; or {error.fix}")
        if refusal_behind(error) or not seen or _best_is(seen[-1]):
            raise
        newest = _newest(path)
        return _chosen(newest, newest, doubt=error.told())


def kept_best(run: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint of any age, which is kept as the best where the newest two are damaged."""
    for n_batches in reversed(_numbers(run)):
        try:
            found = read_checkpoint(checkpoint_folder(run, n_batches))
            check_state(found)
        except CheckpointError:
            continue
        return found
    return None


def _numbers(run: Path) -> list[int]:
    """List the batches that the checkpoints of a run are named by, whole or not."""
    parent = run / CHECKPOINTS
    return sorted(int(name) for name in names_in(parent) if name.isdecimal()) if is_folder(parent) else []


def _best_after(seen: list[Checkpoint]) -> Callable[[Checkpoint], Checkpoint]:
    """Make the choice of the best, which notes the newest one on its way."""

    def choose(newest: Checkpoint) -> Checkpoint:
        seen.append(newest)
        check_state(newest)
        best = best_of(newest.state, newest.path)
        if best is None or best.checkpoint is None or _best_is(newest):
            return newest
        return read_checkpoint(best.checkpoint)

    return choose


def _best_is(found: Checkpoint) -> bool:
    """Whether a checkpoint names itself as the best; one that waits for its name is called as it will be."""
    best = best_of(found.state, found.path)
    return best is not None and best.checkpoint is not None and best.checkpoint.name == found.path.stem


def _chosen(found: Checkpoint, newest: Checkpoint, *, doubt: str | None = None) -> ChosenCheckpoint:
    best = best_of(newest.state, newest.path)
    is_best = best is not None and best.checkpoint is not None and best.checkpoint.name == found.path.stem
    is_last = found.path == newest.path
    return ChosenCheckpoint(checkpoint=found, is_last=is_last, is_best=is_best, best=best, last=newest, doubt=doubt)


def _newest(run: Path) -> Checkpoint:
    found = newest_checkpoint(run)
    check_state(found)
    return found


def _numbered(run: Path, n_batches: int) -> ChosenCheckpoint:
    """Read the checkpoint of so many batches, whatever state the newest one is in."""
    folder = checkpoint_folder(run, n_batches)
    numbers = _numbers(run)
    if n_batches not in numbers:
        there = ", ".join(map(str, numbers[-_MOST_NAMED:]))
        what = f"the run has no checkpoint after {n_batches:,} batches"
        raise UsageError(what, where=str(run), why=f"It has those after {there}" if there else None, fix=Fix(_LAST))
    found = with_weights(read_checkpoint(folder))
    check_state(found)
    newest, _ = find_checkpoint(run)
    if newest is None:
        return ChosenCheckpoint(checkpoint=found, is_last=False, is_best=False, best=None, last=found)
    check_state(newest)
    return _chosen(found, newest)


def _parse(which: object) -> Which:
    if is_int(which, 0):
        return which
    if isinstance(which, str):
        if which in (BEST, LAST):
            return which
        if which.isdecimal() and which.isascii():
            return int(which)
    what = f"which is {which!r:.60}; it must be best, last, or the batches that a checkpoint is named by"
    raise UsageError(what, fix=Fix(_BEST))


def place_of(found: Checkpoint) -> str:
    """Say where in a run a checkpoint was made."""
    counts = found.state["counts"]
    if is_inside(found.state):
        return f"batch {counts['n_batches']:,}, inside epoch {counts['n_epochs'] + 1}"
    return f"epoch {counts['n_epochs']}" if counts["n_batches"] else "the start"


def is_inside(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was made inside an epoch, whose metrics so far it then has."""
    match state:
        case {"training": {"dict": list(pairs)}}:
            return any(pair[0] == "metrics" and pair[1] is not None for pair in pairs if _is_pair(pair))
    return False


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2


def _by(best: BestEpoch) -> str:
    return f"{best.monitor} ({format_figure(best.value)})"
