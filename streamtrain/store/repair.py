"""What interrupted ingests leave, and its removal: never a file of a dataset that was committed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streamtrain.errors import UsageError
from streamtrain.store.journal import JOURNAL
from streamtrain.store.lock import check_free, dead_temporaries, held, lock_path
from streamtrain.store.target import (
    State,
    check_ours,
    has_journal,
    predecessor,
    remove,
    state_of,
    successor,
    temporaries,
    tidy,
)
from streamtrain.system.files import Files, explained


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something that is part of no committed dataset.

    Parameters
    ----------
    path : Path
        A file or a folder.
    what : str
        What it is.
    n_bytes : int
        How much it takes; files that a dataset shares with it are counted too.
    """

    path: Path
    what: str
    n_bytes: int


def find_leftovers(path: Path) -> tuple[Leftover, ...]:
    """List what interrupted ingests to a destination left, without changing anything.

    Raises
    ------
    LockedError
        An ingest is at work there, and what it makes is no leftover.
    """
    check_free(path)
    return tuple(Leftover(path=found, what=what, n_bytes=_size(found)) for found, what in _found(path))


def remove_leftovers(path: Path, files: Files) -> tuple[Leftover, ...]:
    """Remove what interrupted ingests to a destination left, and say what it was.

    A dataset that was being replaced when its writer ended is put back under its name.

    Raises
    ------
    LockedError
        An ingest is at work there.
    UsageError
        What would be removed holds files that no ingest wrote, or is the dataset itself, whose name is taken.
    ResourceError
        Something cannot be removed.
    """
    found = find_leftovers(path)
    if not found:
        return ()
    with held(path, files):
        tidy(path, files)
        if _is_displaced(path):
            what = "something that is not a dataset stands where one was being replaced when its writer ended"
            raise UsageError(what, where=str(path), fix=f"move it away, then streamtrain repair {path} --remove")
        for folder in (successor(path), predecessor(path)):
            remove(folder, files)
        if state_of(path) == "incomplete":
            check_ours(path)
            remove(path, files)
        elif state_of(path) == "committed":
            for temporary in temporaries(path):
                with explained("remove", temporary):
                    files.system.unlink(temporary)
    return found


def _found(path: Path) -> Iterator[tuple[Path, str]]:
    state = state_of(path)
    if lock_path(path).exists():
        yield lock_path(path), "the lock of a writer that is dead"
    yield from ((temporary, "a file that was not finished") for temporary in dead_temporaries(path))
    if state == "incomplete":
        what = "an ingest that did not finish"
        yield path, f"{what}; --resume goes on with it" if has_journal(path) else what
    if state == "committed":
        if has_journal(path):
            yield path / JOURNAL, "the journal of an ingest that was committed"
        yield from ((temporary, "a file that was not finished") for temporary in temporaries(path))
    if os.path.lexists(successor(path)):
        yield successor(path), _of_successor(path, state)
    if os.path.lexists(predecessor(path)):
        gap = state == "absent" or _is_displaced(path)
        yield predecessor(path), "the dataset itself, to be put back under its name" if gap else "what was replaced"


def _of_successor(path: Path, state: State) -> str:
    if not has_journal(successor(path)) or has_journal(path):
        return "what was replaced"
    what = "an overwrite or append that did not finish"
    return f"{what}; --resume goes on with it" if state == "committed" else what


def _is_displaced(path: Path) -> bool:
    """Whether a dataset waits to be put back under a name that something else has meanwhile."""
    return state_of(path) == "foreign" and state_of(predecessor(path)) == "committed"


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum((Path(parent) / name).lstat().st_size for parent, _, names in os.walk(path) for name in names)
