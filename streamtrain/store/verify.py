"""Verification and repair of a dataset: all damage, and what interrupted ingests left.

The quick check reads the metadata and compares lengths. The full one reads every stored byte once: each block is
compared with the checksum table and the size it has to decode to, and the bytes between the blocks with the shard's
index. A repair never removes a file of a committed dataset.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Call, DamagedBlock, DatasetError, Fix, UsageError
from streamtrain.store.byte_ranges import RESTORE, LocalFile, open_regular, unreadable
from streamtrain.store.codec import checksum
from streamtrain.store.dataset import Dataset, checked_dataset, read_facts, read_in_place, replaced
from streamtrain.store.layout import Field
from streamtrain.store.manifest import Manifest, file_damage
from streamtrain.store.root import read_root
from streamtrain.store.shard import ShardReader, StoredFile
from streamtrain.store.split_root import TRAIN, SplitRoot, read_splits
from streamtrain.store.writing.journal import JOURNAL
from streamtrain.store.writing.lock import check_unlocked, lock_path, writer_lock
from streamtrain.store.writing.staging import (
    DestinationState,
    check_ours,
    destination_state,
    has_journal,
    is_nobodys,
    predecessor,
    real_path,
    remove_dataset,
    set_aside,
    successor,
    temporaries,
    tidy,
)
from streamtrain.store.zarr_metadata import PRIVATE, shard_key
from streamtrain.system.arguments import check_flags, check_functions
from streamtrain.system.calls.public import public
from streamtrain.system.files import Files, is_there, local_path, walk
from streamtrain.system.refusals import translate_os_errors
from streamtrain.system.syscalls import SYSTEM

_PIECE_BYTES: Final = 1 << 20

VerifyProgress = Callable[[int, int], object]
"""Called with the bytes that were read since the last call, and those there are to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The damage of a dataset compared with its manifest, empty where it is whole, and the time to find out."""

    manifest: Manifest
    full: bool
    damage: tuple[DatasetError, ...]
    n_bytes: int
    seconds: float
    splits: tuple[tuple[str, VerifyReport], ...] = ()  # of a root: the report of each

    @property
    def bytes_per_second(self) -> float:
        """The rate at which blocks were read and checked."""
        return self.n_bytes / self.seconds if self.seconds else 0.0


@public
def verify(
    path: str | os.PathLike[str], *, full: bool = False, tell: VerifyProgress = lambda done, total: None
) -> VerifyReport:
    """Look for damage in a dataset.

    Parameters
    ----------
    path : path-like
        Its directory.
    full : bool
        Whether to read every block, too.
    tell : callable, optional
        Called during a full check with the stored bytes just checked and their total.

    Raises
    ------
    DatasetError
        The root or manifest does not say what the dataset must be, or another dataset has replaced it meanwhile.
    ResourceError
        Something cannot be read now, so it is not known whether it is damaged.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> path = tempfile.mkdtemp() + "/d.zarr"
    >>> dataset = st.ingest({"x": np.arange(600)}, path, block="240B", codec="none")
    >>> verify(path, full=True).damage
    ()
    >>> shard = dataset.shard_path("x", 0)
    >>> _ = shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    >>> [(error.field, error.block, error.samples) for error in verify(path, full=True).damage]
    [('x', 0, (0, 30))]
    """
    check_flags(full=full)
    check_functions(tell=tell)
    folder = local_path(path)
    root = read_splits(folder)
    return _verify(folder, full=full, tell=tell) if root is None else _verify_splits(root, full=full, tell=tell)


def _verify_splits(root: SplitRoot, *, full: bool, tell: VerifyProgress) -> VerifyReport:
    reports = {name: _verify(root.folder(name), full=full, tell=tell) for name in root.names}
    other = [
        DatasetError(
            "the split is not the one that was committed with the others", where=str(root.folder(name)), fix=RESTORE
        )
        for name, report in reports.items()
        if report.manifest.id != root.ids[name]
    ]
    if (now := read_splits(root.path)) is None or now.ids != root.ids:
        raise replaced(root.path)
    return VerifyReport(
        manifest=reports[TRAIN].manifest,
        full=full,
        damage=(*other, *(error for report in reports.values() for error in report.damage)),
        n_bytes=sum(report.n_bytes for report in reports.values()),
        seconds=sum(report.seconds for report in reports.values()),
        splits=tuple(reports.items()),
    )


def _verify(folder: Path, *, full: bool, tell: VerifyProgress) -> VerifyReport:
    started = time.perf_counter()
    manifest = read_in_place(folder, read_facts)
    damage = [*file_damage(folder, manifest), *_foreign(folder, manifest)]
    dataset = _collected(lambda: checked_dataset(folder, manifest), damage)
    n_bytes = 0
    if dataset is not None:
        for field in dataset.fields:
            _collected(lambda name=field.name: dataset.stats(name), damage)  # type: ignore[misc]
        _collected(lambda: dataset.categories, damage)
    if full:
        known = {error.where for error in damage}
        total = sum(
            file.n_bytes for key, file in manifest.files.items() if not key.startswith(PRIVATE) and "/c/" in key
        )
        for found, n_read in _shards(folder, manifest, dataset, known):
            damage += found
            n_bytes += n_read
            tell(n_read, total)
    # What was replaced meanwhile is not damaged, and not known to be whole.
    if read_root(folder).get("id") != manifest.id:
        raise replaced(folder)
    seconds = time.perf_counter() - started
    return VerifyReport(manifest=manifest, full=full, damage=tuple(damage), n_bytes=n_bytes, seconds=seconds)


def _collected(look: Callable[[], Any], damage: list[DatasetError]) -> Any:
    """Return the result of ``look``; None where it meets damage, which is noted once per file."""
    try:
        return look()
    except DatasetError as error:
        if error.where not in {other.where for other in damage}:
            damage.append(error)
        return None


def _foreign(folder: Path, manifest: Manifest) -> Iterator[DatasetError]:
    """Report files among those of the fields that the manifest does not know: stock zarr might read them."""
    for field in manifest.layout.fields:
        try:
            for place, folders, files in walk(folder / field.name):
                folders.sort()
                for name in sorted(files):
                    path = Path(place, name)
                    key = path.relative_to(folder).as_posix()
                    if key not in manifest.files and not is_nobodys(key):
                        yield DatasetError("a file that the manifest does not know", where=str(path), fix="remove it")
        except OSError as error:
            raise unreadable(folder / field.name, error) from error


def _shards(
    folder: Path, manifest: Manifest, dataset: Dataset | None, known: set[str | None]
) -> Iterator[tuple[list[DatasetError], int]]:
    """Yield each shard's damage and length, except those with a wrong length, which is reported already."""
    for column, field in enumerate(manifest.layout.fields):
        for shard in range(manifest.layout.n_shards):
            key = shard_key(field, shard)
            if f"{folder}/{key}" in known:
                continue
            file = manifest.files[key]
            # Without the table of checksums a shard is compared with the manifest as a whole.
            found = _shard_damage(dataset, field, column, shard) if dataset else _whole_damage(folder / key, file)
            yield found, file.n_bytes


def _whole_damage(path: Path, file: StoredFile) -> list[DatasetError]:
    crc = 0
    try:
        with SYSTEM.stream(open_regular(path), 0) as opened:
            while piece := opened.read(_PIECE_BYTES):
                crc = checksum(piece, crc)
    except OSError as error:
        if not isinstance(found := unreadable(path, error), DatasetError):
            raise found from error
        return [found]
    what = f"crc32c is {crc:08x}, the manifest says {file.crc32c:08x}"
    return [] if crc == file.crc32c else [DatasetError(what, where=str(path), fix=RESTORE)]


def _shard_damage(dataset: Dataset, field: Field, column: int, shard: int) -> list[DatasetError]:
    found: list[DatasetError] = []
    try:
        with ShardReader(LocalFile(dataset.shard_path(field.name, shard)), dataset.layout, field, shard) as blocks:
            for block in range(blocks.first, blocks.end):
                try:
                    blocks.check_stored(block, blocks.fetch_stored(block), int(dataset.block_checksums[block, column]))
                except DamagedBlock as error:
                    found.append(error)
            if not blocks.is_gapless():
                what = "the shard's blocks are not where they were written"
                found.append(DatasetError(what, where=blocks.stored.where, fix=RESTORE))
    except DatasetError as error:
        found.append(error)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file or folder that is part of no committed dataset."""

    path: Path
    what: str
    n_bytes: int  # files that a dataset shares with it included


@public
def repair(path: str | os.PathLike[str], *, remove: bool = False) -> tuple[Leftover, ...]:
    """List what interrupted ingests to a destination left, and remove it if asked to.

    A dataset that was being replaced when its writer ended is put back under its name.

    Parameters
    ----------
    path : path-like
        The destination of the ingests.
    remove : bool
        Whether to remove what is found.

    Raises
    ------
    LockedError
        An ingest is running there, and its files are no leftovers.
    UsageError
        Something to remove holds files that no ingest wrote, or is the dataset itself, whose place is taken.
    ResourceError
        Something cannot be removed.

    Examples
    --------
    >>> import tempfile, streamtrain as st
    >>> path = tempfile.mkdtemp() + "/d.zarr"
    >>> _ = st.ingest({"x": range(9)}, path)
    >>> len(repair(path))
    0
    """
    check_flags(remove=remove)
    folder = real_path(local_path(path))
    return remove_leftovers(folder, Files()) if remove else find_leftovers(folder)


def find_leftovers(path: Path) -> tuple[Leftover, ...]:
    """List what interrupted ingests to a destination left; refuse while an ingest is at work there."""
    while True:
        check_unlocked(path)
        # An ingest may begin just now, and tidy up what is listed.
        with translate_os_errors("look at", path), suppress(FileNotFoundError):
            found = tuple(Leftover(path=each, what=what, n_bytes=_size(each)) for each, what in _found(path))
            check_unlocked(path)
            return found


def remove_leftovers(path: Path, files: Files) -> tuple[Leftover, ...]:
    """Remove what interrupted ingests to a destination left, and return it; refuse while an ingest is at work there.

    A dataset that was being replaced when its writer ended gets its name back.
    """
    found = find_leftovers(path)
    if not found:
        return ()
    with writer_lock(path, files):
        tidy(path, files)
        if _is_displaced(path):
            what = "something that is not a dataset is in the place of one that was being replaced"
            fix = Fix("move it away, then ", Call("repair", str(path), ("remove",)))
            raise UsageError(what, where=str(path), fix=fix)
        for folder in (successor(path), predecessor(path), *set_aside(path)):
            remove_dataset(folder, files)
        if destination_state(path) == "incomplete":
            check_ours(path)
            remove_dataset(path, files)
        elif destination_state(path) == "committed":
            for temporary in temporaries(path):
                with translate_os_errors("remove", temporary):
                    files.unlink(temporary)
    return found


def _found(path: Path) -> Iterator[tuple[Path, str]]:
    state = destination_state(path)
    if is_there(lock_path(path)):
        yield lock_path(path), "the lock of a writer that is dead"
    if state == "incomplete":
        what = "an ingest that did not finish"
        yield path, f"{what}; the same ingest resumes it" if has_journal(path) else what
    if state == "committed":
        if has_journal(path):
            yield path / JOURNAL, "the journal of an ingest that was committed"
        yield from ((temporary, "a file that was not finished") for temporary in temporaries(path))
    if is_there(successor(path)):
        yield successor(path), _of_successor(path, state)
    if is_there(predecessor(path)):
        gap = state == "absent" or _is_displaced(path)
        yield predecessor(path), "the dataset itself, to be put back under its name" if gap else "what was replaced"
    yield from ((folder, "what was replaced") for folder in set_aside(path))


def _of_successor(path: Path, state: DestinationState) -> str:
    if not has_journal(successor(path)) or has_journal(path):
        return "what was replaced"
    what = "an overwrite or append that did not finish"
    return f"{what}; the same ingest resumes it" if state == "committed" else what


def _is_displaced(path: Path) -> bool:
    """Say whether a replaced dataset waits for its name, which something else has taken meanwhile."""
    return destination_state(path) == "foreign" and destination_state(predecessor(path)) == "committed"


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum((Path(parent) / name).lstat().st_size for parent, _, names in walk(path) for name in names)
