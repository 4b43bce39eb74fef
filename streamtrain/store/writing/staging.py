"""The staging folder of a dataset being made, and the atomic replacement of the old one.

::

    d.zarr         the dataset; or one being made where nothing was, until its root stands
    .d.zarr.new    its successor, made by an overwrite or append; afterwards, for a moment, what it replaced
    .d.zarr.old    what was replaced, until it is removed; `.d.zarr.old.….tmp` where that was not possible yet
    .d.zarr.lock   the lock of the writer

The journal tells these apart: it moves with what is being made, and is removed last. So a folder with root and journal
is finished and has only to take its place, or to be tidied up after.

A user's own files in a dataset's folder are nobody's to remove. What an append replaces hands them on to its successor;
what would have to remove them is refused.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import filterfalse, islice
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from streamtrain.errors import (
    Argument,
    Call,
    DatasetError,
    Fix,
    LockedError,
    ResourceError,
    StreamtrainError,
    UsageError,
)
from streamtrain.store import zarr_metadata
from streamtrain.store.byte_ranges import unreadable
from streamtrain.store.layout import Layout
from streamtrain.store.manifest import MOST_MANIFEST_BYTES, Manifest, parse_manifest
from streamtrain.store.shard import read_bounded
from streamtrain.store.split_root import is_split_root, mark_path, read_rule
from streamtrain.store.writing.journal import JOURNAL
from streamtrain.store.writing.lock import lock_path, writer_lock
from streamtrain.system.files import (
    Files,
    is_folder,
    is_regular,
    is_temporary,
    is_there,
    names_in,
    status_of,
    temporary_beside,
    walk,
)
from streamtrain.system.refusals import refusal_behind, translate_os_errors

DestinationState = Literal["absent", "committed", "incomplete", "foreign"]

SPOOL: Final = f"{zarr_metadata.PRIVATE}/spool"
"""Folder in a split root that is being made: rows read once, and what else its splits are made of."""

_OURS: Final = re.compile(
    rf"{zarr_metadata.ROOT}|{zarr_metadata.PRIVATE}/"
    r"(journal|manifest\.json|zarr\.json|categories/\d+\.json|(crc32c|stats)(/[^/]+)*/(zarr\.json|\d+))"
)
_IN_USE: Final = re.compile(r"\.nfs[0-9a-f]+|\.fuse_hidden\w+")
"""Names that file servers give to files which are removed while somebody reads them."""
_NOBODYS: Final = re.compile(rf"{_IN_USE.pattern}|\.DS_Store|\._.*|@eaDir|Thumbs\.db|desktop\.ini", re.IGNORECASE)
"""Names of nobody's data: file managers, too, leave some in any folder."""
_OF_FIELD: Final = re.compile(r"([^/]+)/(zarr\.json|c/\d+(/0)*)")
_N_SHOWN: Final = 3
_POLLS: Final = 50
_POLL_SECONDS: Final = 0.02


def successor(path: Path) -> Path:
    """Return the path where the replacement of a dataset is made."""
    return path.with_name(f".{path.name}.new")


def predecessor(path: Path) -> Path:
    """Return the path where a replaced dataset waits for its removal."""
    return path.with_name(f".{path.name}.old")


def real_path(path: Path) -> Path:
    """Resolve a destination: a link stands for the folder it leads to, and ``.`` gets a name.

    A path that leaves no name for a successor beside it is refused.
    """
    check_names(path)
    with _looking_at(path):
        is_link = path.is_symlink() and status_of(path) is not None
        resolved = path.resolve() if is_link or path.name in ("", "..") else path
    if not resolved.name:
        raise UsageError("the root folder cannot be a dataset", where=str(path), fix="name a folder in it")
    return resolved


def destination_state(path: Path) -> DestinationState:
    """Find out what is at a destination: nothing, a dataset, an unfinished one, or something else."""
    with _looking_at(path):
        if not is_there(path):
            return "absent"
        if not is_folder(path / zarr_metadata.PRIVATE):
            return "foreign"
        return "committed" if status_of(path / zarr_metadata.ROOT) else "incomplete"


def check_in_no_dataset(path: Path, what: str, fix: str) -> None:
    """Refuse a place for other files, called ``what``, that lies in a dataset, whole or not."""
    real = Path(os.path.realpath(path))
    for above in (real, *real.parents):
        # Where looking is refused, so is writing, which says why.
        if os.path.isdir(above / zarr_metadata.PRIVATE):  # noqa: PTH112 - pathlib raises there
            raise UsageError(f"{what} lies in a dataset", where=str(path), why=f"{above} is one", fix=fix)


def has_journal(path: Path) -> bool:
    """Say whether a folder is still being made, or was not tidied up after."""
    with _looking_at(path):
        return is_regular(path / JOURNAL)


def _is_there(path: Path) -> bool:
    with _looking_at(path):
        return is_there(path)


@contextmanager
def _looking_at(path: Path) -> Iterator[None]:
    # A folder without permission is not absent: pathlib raises for it.
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error


def foreign_files(folder: Path) -> Iterator[str]:
    """List the files in a folder that no ingest can have written there, by their path inside it."""
    if is_split_root(folder):
        yield from _foreign_in_root(folder)
        return
    manifest = _manifest_of(folder)
    for parent, folders, names in _walked(folder):
        inside = Path(parent).relative_to(folder)
        for name in names + [name for name in folders if (Path(parent) / name).is_symlink()]:
            key = (inside / name).as_posix()
            path = Path(parent) / name
            if path.is_symlink() or not path.is_file() or not (_is_ours(key, manifest) or is_temporary(name)):
                yield key


def _foreign_in_root(root: Path) -> Iterator[str]:
    """List such files in a split root; what stands in the datasets of its splits is theirs to tell."""
    rule = read_rule(root)
    splits = [root / name for name in (rule.names if rule else ())]
    datasets = {path.name for split in splits for path in (split, successor(split), predecessor(split))}
    own = {zarr_metadata.ROOT, *(lock_path(split).name for split in splits)}
    with _looking_at(root):
        names = names_in(root)
    for name in names:
        path = root / name
        if name in datasets and not path.is_symlink() and is_folder(path):
            yield from (f"{name}/{key}" for key in foreign_files(path))
        elif name == zarr_metadata.PRIVATE and not path.is_symlink():
            yield from _foreign_in_private(root)
        elif name not in own or not is_regular(path):
            yield from _files_in(root, path)


def _foreign_in_private(root: Path) -> Iterator[str]:
    known = {JOURNAL, mark_path(root).relative_to(root).as_posix(), f"{zarr_metadata.PRIVATE}/zarr.json"}
    spool = (root / SPOOL).relative_to(root).as_posix()
    for key in _files_in(root, root / zarr_metadata.PRIVATE):
        if key not in known and not key.startswith(f"{spool}/") and not is_temporary(Path(key).name):
            yield key


def _files_in(root: Path, path: Path) -> Iterator[str]:
    """Yield what is at a path, a folder's files one by one, by the path inside the root."""
    if path.is_symlink() or not path.is_dir():
        yield path.relative_to(root).as_posix()
        return
    for parent, folders, names in _walked(path):
        for name in names + [name for name in folders if (Path(parent) / name).is_symlink()]:
            yield (Path(parent) / name).relative_to(root).as_posix()


def _walked(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    with _looking_at(folder):
        yield from walk(folder)


def _manifest_of(folder: Path) -> Manifest | None:
    """Read a finished dataset's manifest; None where there is no whole one."""
    try:
        data = read_bounded(folder / zarr_metadata.MANIFEST, MOST_MANIFEST_BYTES)
        return parse_manifest(data, where=str(folder))
    except (OSError, StreamtrainError) as error:
        # Without it more files count as ours, and may be removed.
        if refusal_behind(error):
            raise
        return None


def _is_ours(key: str, manifest: Manifest | None = None) -> bool:
    if _OURS.fullmatch(key) is not None:
        return True
    field = _OF_FIELD.fullmatch(key)
    # An array beside the fields is like one, and the user's own.
    return field is not None and (
        field[1].isidentifier() if manifest is None else field[1] in {field.name for field in manifest.layout.fields}
    )


def is_nobodys(key: str) -> bool:
    """Say whether a file, by its path inside a dataset, was left by a file server or a file manager."""
    return any(map(_NOBODYS.fullmatch, key.split("/")))


def check_foreign_files(folder: Path, layout: Layout) -> None:
    """Refuse a folder in which files that no ingest wrote stand where a dataset's own have to be."""
    names = {zarr_metadata.PRIVATE, *(field.name for field in layout.fields)}
    in_the_way = (key for key in foreign_files(folder) if _is_in_the_way(folder, key, names))
    _refuse(folder, in_the_way, "which stand in the way")


def _is_in_the_way(folder: Path, key: str, names: set[str]) -> bool:
    top, path = key.partition("/")[0], folder / key
    if top not in (*names, zarr_metadata.ROOT):
        return False
    is_special = path.is_symlink() or not path.is_file()
    return is_special or key in (top, f"{top}/c") or any(_is_ours(str(way)) for way in PurePosixPath(key).parents)


def keep_foreign_files(old: Path, path: Path, files: Files) -> None:
    """Move a user's own files from what was replaced to the same places in what replaced it.

    What cannot be moved, as something of that name is there already, stays where it is; so does all that is in a folder
    which was no finished dataset.
    """
    manifest = None if old.is_symlink() else _manifest_of(old)
    if manifest is None:
        return
    own = {zarr_metadata.PRIVATE, zarr_metadata.ROOT, *(field.name for field in manifest.layout.fields)}
    found = [(key.partition("/")[0], key) for key in foreign_files(old)]
    # A folder with nothing of ours in it is moved as one.
    for key in dict.fromkeys(key if top in own else top for top, key in found):
        if not _is_there(path / key):
            files.ensure_dir((path / key).parent)
            # What somebody still reads keeps its place on a file server.
            with suppress(ResourceError) if _IN_USE.fullmatch(Path(key).name) else nullcontext():
                files.rename(old / key, path / key)


def incomplete(path: Path) -> DatasetError:
    """Make the error for a dataset whose ingest was interrupted."""
    return DatasetError(
        "an incomplete dataset: its ingest did not finish",
        where=str(path),
        fix=Fix("the same ingest with ", Argument("resume", True), ", or ", Call("repair", str(path), ("remove",))),
    )


def check_ours(folder: Path) -> None:
    """Refuse to remove a folder that holds anything but a dataset's files."""
    _refuse(folder, foreign_files(folder), "and is not removed")


def _refuse(folder: Path, foreign: Iterator[str], why: str) -> None:
    found = list(islice(filterfalse(is_nobodys, foreign), _N_SHOWN + 1))
    if found:
        listed = ", ".join(sorted(found)[:_N_SHOWN]) + (", ..." if len(found) > _N_SHOWN else "")
        what = f"the folder holds files that no ingest wrote, {why}: {listed}"
        raise UsageError(what, where=str(folder), fix="move them away, or choose another path")


def begin_folder(folder: Path, path: Path, begin: Callable[[Path], None], files: Files) -> None:
    """Make the folder that an ingest writes to; it appears with what ``begin`` puts there, its journal."""
    fresh = successor(path)
    files.make_dir(fresh)
    try:
        files.make_dir(fresh / zarr_metadata.PRIVATE)
        begin(fresh)
        if folder != fresh:
            files.rename(fresh, folder)
        else:
            _check_renames(path, fresh, files)
    except BaseException:
        # Whoever comes next would tidy it up, but nobody may come.
        for made in {fresh, folder}:
            with suppress(OSError, StreamtrainError):
                remove_dataset(made, files)
        raise


def _check_renames(path: Path, full: Path, files: Files) -> None:
    """Refuse a folder that cannot get another name, such as one of an image's layers under an overlay."""
    try:
        # No folder takes the place of one that is not empty, so nothing changes where this would be possible.
        files.system.rename(path, full)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise ResourceError(
                "the file system cannot rename the dataset, which is needed to replace it",
                where=str(path),
                why="It lies in a lower layer, such as a container's image",
                fix="copy it to a volume first, and give that path",
            ) from error


def publish(folder: Path, path: Path, files: Files) -> None:
    """Put a finished successor in its place; what it replaced, and the journal, are left to `tidy`.

    Where the system can exchange two names in one step there is always a dataset under the name; where not, there is
    none between two renames, which `recover_interrupted_swap` repairs should it come to that.
    """
    if folder != path:
        if files.exchange(folder, path):
            files.rename(folder, predecessor(path))
        else:
            files.rename(path, predecessor(path))
            files.rename(folder, path)


def tidy(path: Path, files: Files) -> None:
    """Finish what a writer that ended left half done, short of its work; whoever calls this holds the lock.

    What is still being made is left: only a resumed ingest can finish it. What was replaced and cannot be removed, as
    somebody still reads it on a file server, is set aside.
    """
    _close_gap(path, files)
    if destination_state(path) == "committed":
        for old in (successor(path), predecessor(path)):
            # A successor with a journal, while there is none at the path, is still being made.
            if _is_there(old) and (has_journal(path) or not has_journal(old)):
                keep_foreign_files(old, path, files)
    if not _is_there(path) or (destination_state(path) == "committed" and has_journal(path)):
        # Neither of the two can be the work of an ingest that is to be resumed.
        remove_dataset(successor(path), files)
    elif _is_there(successor(path)) and not has_journal(successor(path)):
        remove_dataset(successor(path), files)
    if destination_state(path) == "committed":
        for left in set_aside(path):
            with suppress(ResourceError, UsageError):
                remove_dataset(left, files)
        try:
            remove_dataset(predecessor(path), files)
        except ResourceError:
            files.rename(predecessor(path), temporary_beside(predecessor(path)))
        if has_journal(path):
            files.remove(path / JOURNAL)


def remove_dataset(folder: Path, files: Files) -> None:
    """Remove a dataset's folder, whole or not; do nothing where there is none."""
    if not _is_there(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UsageError("not a folder that an ingest made", where=str(folder), fix="move it away")
    check_ours(folder)
    with translate_os_errors("remove", folder):
        # Whatever stops us leaves what is known for what it is. The root goes first: nothing opens that is half gone.
        # Then the journal: nobody resumes from shards that are going.
        for name in (zarr_metadata.ROOT, JOURNAL):
            if status_of(folder / name):
                files.unlink(folder / name)
        folder = _set_aside(folder, files)
        # The private folder marks the rest as ours and not the user's, and goes last.
        for entry in [folder / name for name in names_in(folder)]:
            if entry.name != zarr_metadata.PRIVATE:
                files.remove_tree(entry) if entry.is_dir() else files.unlink(entry)
        files.remove_tree(folder)


def _set_aside(folder: Path, files: Files) -> Path:
    """Give what is being removed the hidden name that `tidy` looks at, so that its own is free from now on."""
    hidden = successor(folder)
    if folder.name.startswith(".") or _is_there(hidden):
        return folder
    # Where the rename fails, the private folder, which goes last, still marks it.
    with suppress(ResourceError):
        files.rename(folder, hidden)
    return folder if _is_there(folder) else hidden


def recover_interrupted_swap(path: Path, files: Files) -> bool:
    """Bring back a dataset whose writer ended between two renames; return whether there is one under the name now."""
    for _ in range(_POLLS):
        if _is_there(path) or destination_state(predecessor(path)) != "committed":
            return _is_there(path)
        try:
            with writer_lock(path, files):
                _close_gap(path, files)
        except LockedError:
            # It is between its two renames, and needs no longer than they do.
            time.sleep(_POLL_SECONDS)
        except ResourceError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            what = f"the dataset was being replaced when its writer ended, and cannot be put back: {error.what}"
            fix = Fix(Call("repair", str(path), ("remove",)), ", as a user who may write there")
            raise DatasetError(what, where=str(path), fix=fix) from error
    with writer_lock(path, files):
        _close_gap(path, files)
    return _is_there(path)


def _close_gap(path: Path, files: Files) -> None:
    new, old = successor(path), predecessor(path)
    if _is_there(path) or destination_state(old) != "committed":
        return
    # The first of the two renames is only made when the successor is finished.
    finished = destination_state(new) == "committed" and has_journal(new)
    files.rename(new if finished else old, path)


def remove_unfinished_files(folder: Path, layout: Layout, kept: frozenset[str], files: Files) -> None:
    """Remove what a killed ingest left of files it did not finish, and all that is not to be kept, root first.

    Files that no ingest wrote stay.
    """
    check_foreign_files(folder, layout)
    foreign = frozenset(foreign_files(folder))
    for parent, _, names in _walked(folder):
        for name in sorted(names, key=lambda name: name != zarr_metadata.ROOT):
            key = (Path(parent).relative_to(folder) / name).as_posix()
            if key not in kept and key not in foreign and key != JOURNAL:
                with translate_os_errors("remove", folder / key):
                    files.unlink(folder / key)


def set_aside(path: Path) -> list[Path]:
    """List what datasets under this name were replaced by others and could not be removed."""
    own = f".{predecessor(path).name}."
    with _looking_at(path.parent):
        names = names_in(path.parent) if is_folder(path.parent) else []
    return [path.with_name(name) for name in names if name.startswith(own) and is_temporary(name)]


def check_names(path: Path, field_names: Iterable[str] = ()) -> None:
    """Refuse a dataset's name that, with what is put around it, is longer than the file system takes, or a field's."""
    with _looking_at(path):
        folder = next((each for each in path.absolute().parents if each.is_dir()), Path("/"))
        most_bytes = os.pathconf(folder, "PC_NAME_MAX")
    around = len(temporary_beside(predecessor(Path("d"))).name) - len("d")
    for name, most in ((path.name, most_bytes - around), *((name, most_bytes) for name in field_names)):
        if (n_bytes := len(os.fsencode(name))) > most:
            what = f"the name {name[:30]}... has {n_bytes} bytes; here it may have {most}"
            raise UsageError(what, where=str(folder), fix="a shorter name")


def temporaries(folder: Path) -> Iterator[Path]:
    """List the temporary files inside a folder, left by killed writers."""
    for parent, _, names in _walked(folder):
        yield from (Path(parent) / name for name in sorted(names) if is_temporary(name))
