"""Interrupted ingests: found, compared with the present one, resumed, or cleaned up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import (
    BudgetError,
    DatasetError,
    InputError,
    ResourceError,
    StreamtrainError,
    UsageError,
    differences,
)
from streamtrain.ingestion.append import full_shards, link_shards, n_full_shards
from streamtrain.ingestion.sources.base import Source
from streamtrain.store import zarr_metadata
from streamtrain.store.dataset import Dataset, open_dataset
from streamtrain.store.manifest import Manifest, dump_json, load_json
from streamtrain.store.shard import DamagedShard
from streamtrain.store.writing.journal import Journal, JournalHeader, Mode, Shards, continue_journal, read_journal
from streamtrain.store.writing.staging import (
    check_ours,
    destination_state,
    has_journal,
    incomplete,
    publish,
    remove_dataset,
    remove_unfinished_files,
    successor,
    tidy,
)
from streamtrain.system.files import Files

_N_SHOWN: Final = 8


def check_destination(path: Path, mode: Mode, *, resume: bool = False) -> None:
    """Refuse a destination that holds what this ingest may not replace.

    Raises
    ------
    UsageError
        A dataset is there and nothing was said of it; or something else than a dataset.
    DatasetError
        An interrupted ingest is there; or nothing, where rows are to be appended.
    """
    state = destination_state(path)
    if state == "foreign":
        what = "something that is not a dataset exists there; ingest writes only where nothing is, or over a dataset"
        raise UsageError(what, where=str(path), fix="choose another path")
    if state == "absent" and mode == "append":
        raise DatasetError("no such dataset to append to", where=str(path), fix="ingest without append first")
    if state == "incomplete" and not resume and mode != "overwrite":
        raise incomplete(path)
    if state == "committed" and mode == "create" and not resume:
        fix = "overwrite it (--overwrite), append to it (--append), or choose another path"
        raise UsageError("a dataset exists there already", where=str(path), fix=fix)
    if state != "absent" and mode == "overwrite":
        check_ours(path)


def check_outside(path: Path, source: Source) -> None:
    """Refuse source files inside the destination, or inside what becomes of it."""
    for entry in source.provenance:
        if "path" in entry:
            file = Path(entry["path"]).resolve()
            for folder in (path, successor(path)):
                if file.is_relative_to(folder.resolve()):
                    fix = "give a destination elsewhere"
                    raise InputError("a source lies inside the destination", where=str(file), fix=fix)


def check_rereadable(source: Source) -> None:
    """Refuse to resume from a source that cannot be read from a place, or a second time.

    Raises
    ------
    UsageError
        It is an iterator.
    """
    if any(entry.get("format") == "iterator" for entry in source.provenance):
        raise UsageError(
            "an ingest from an iterator cannot be resumed",
            why="It is read once, from the start, and nothing tells whether it gives the same rows again",
            fix="leave resume out; or write the rows to files first, and ingest those",
        )


def is_fingerprinted(source: Source) -> bool:
    """Whether a source's paths, lengths and times of change tell whether it is the same; arrays have none."""
    return all("path" in entry for entry in source.provenance)


def check_same_ingest(there: JournalHeader, here: JournalHeader, path: Path) -> None:
    """Refuse to go on with an ingest of other sources, in another way, or by another version.

    Raises
    ------
    DatasetError
        Some differ; the message lists them.
    """
    _refuse(_told(there), _told(here), path, "was begun")


def check_finished_ingest(
    manifest: Manifest, source: Source, options: Mapping[str, Any], path: Path, mode: Mode
) -> None:
    """Refuse to call a dataset the finished work of this ingest when it is not.

    Raises
    ------
    DatasetError
        It was made of other sources or in another way; the message lists the differences.
    UsageError
        The source has no fingerprint, so nobody can tell.
    """
    if not is_fingerprinted(source):
        what = "a dataset exists there already, and nothing tells whether it is of these arrays"
        raise UsageError(what, where=str(path), fix="leave resume out, and overwrite it; or choose another path")
    sources = manifest.sources[-len(source.provenance) :] if mode == "append" else manifest.sources
    there = dict(_flat("sources", list(sources)))
    here = dict(_flat("sources", _plain(source.provenance)))
    if mode != "append":
        there |= dict(_flat("options", manifest.options))
        here |= dict(_flat("options", _plain(options)))
    _refuse(there, here, path, "was made")


def _refuse(there: dict[str, Any], here: dict[str, Any], path: Path, how: str) -> None:
    found = differences(there, dict.fromkeys(there) | here)
    if found:
        more = f"; and {len(found) - _N_SHOWN} more" if len(found) > _N_SHOWN else ""
        raise DatasetError(
            f"the dataset there {how} otherwise: {'; '.join(found[:_N_SHOWN])}{more}",
            where=str(path),
            fix="give what it was begun with; or ingest with --overwrite, from the start",
        )


def _told(header: JournalHeader) -> dict[str, Any]:
    """What two ingests must agree on, by name, so that a difference can be named."""
    layout = header.layout
    told: dict[str, Any] = {
        "version": header.version,
        "dataset appended to": header.base,
        "samples": layout.n_samples,
        "classes": header.classes,
        **{f"field {field.name}": f"{field.dtype.name} {field.shape}" for field in layout.fields},
    }
    return told | dict(_flat("options", _plain(header.options))) | dict(_flat("sources", _plain(header.sources)))


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return load_json(dump_json({"value": value}), where="")["value"]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        yield from _listed(name, value)
    else:
        yield name, value


def _listed(name: str, values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, item in enumerate(values):
        yield from _flat(f"{name}[{number}]", item)


Say = Callable[[str], None]
"""Is told in a sentence what was found of an earlier ingest, and what stays of this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptedIngest:
    """What an interrupted ingest left.

    Parameters
    ----------
    folder : Path
        Where it was writing.
    header : JournalHeader
        What.
    shards : mapping
        Those its journal names.
    is_finished : bool
        Whether it had only to take its place.
    """

    folder: Path
    header: JournalHeader
    shards: Shards
    is_finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestTask:
    """What is written where.

    Parameters
    ----------
    path, folder : Path
        The destination, and where it is made: the same place if nothing was there.
    header : JournalHeader
        What is made.
    source : Source
        All that is read; for an append, the dataset's last rows too.
    own : Source
        What the user gave.
    base : Dataset, optional
        What is appended to.
    shards : mapping
        Those that the ingest made before it was interrupted.
    """

    path: Path
    folder: Path
    header: JournalHeader
    source: Source
    own: Source
    base: Dataset | None
    shards: Shards

    @property
    def kept(self) -> Shards:
        """All shards that are there already."""
        return self.shards if self.base is None else {**self.shards, **full_shards(self.base)}

    @property
    def n_linked(self) -> int:
        """The first shards, which are those of the dataset that is appended to."""
        return 0 if self.base is None else n_full_shards(self.base)


def find_interrupted(path: Path, mode: Mode) -> InterruptedIngest | None:
    """Find what an interrupted ingest to a destination left; whatever else was left has been tidied up.

    Raises
    ------
    DatasetError
        There is something, but it cannot be gone on with, or not in this way.
    """
    folder = path if destination_state(path) == "incomplete" else successor(path)
    if not has_journal(folder):
        if folder == path:
            raise missing_journal_error(path)
        return None
    found = read_journal(folder)
    assert found is not None, "which was looked for"
    header, shards = found
    if (mode == "append") != (header.mode == "append") and mode != "create":
        raise DatasetError(
            f"the interrupted ingest is another one: {header.mode} there, {mode} here",
            where=str(path),
            fix="give what it was begun with; or leave resume out, to begin again",
        )
    return InterruptedIngest(folder=folder, header=header, shards=shards, is_finished=_is_finished(folder))


def missing_journal_error(path: Path) -> DatasetError:
    """The error for what is left of an ingest whose journal is missing."""
    error = incomplete(path)
    error.why = "It has no journal, so nobody can tell what was done"
    error.fix = f"streamtrain repair {path} --remove, and ingest again"
    return error


def _is_finished(folder: Path) -> bool:
    if destination_state(folder) != "committed":
        return False
    try:
        open_dataset(folder)
    except DatasetError:
        return False
    return True


def discard_interrupted(path: Path, mode: Mode, files: Files) -> None:
    """Remove what an earlier, interrupted ingest left where this one is to write."""
    remove_dataset(successor(path), files)
    if mode == "overwrite" and destination_state(path) == "incomplete":
        remove_dataset(path, files)


def prepare(work: IngestTask, files: Files) -> Journal:
    """Leave nothing in the folder but the shards that stay, link those of the dataset appended to, open the journal."""
    fields = work.header.layout.fields
    kept = frozenset(zarr_metadata.shard_key(field, shard) for shard in work.kept for field in fields)
    remove_unfinished_files(work.folder, work.header.layout, kept, files)
    if work.base is not None:
        link_shards(work.base, work.folder, files)
    return continue_journal(work.folder, work.header, work.shards, files)


def keep_or_discard(
    work: IngestTask, error: BaseException, n_done: int, files: Files, say: Say, *, is_begun: bool
) -> None:
    """After an error, keep what can be gone on with, else remove it; either way nothing opens that did not before.

    Parameters
    ----------
    n_done : int
        Shards in the journal.
    is_begun : bool
        Whether an earlier ingest made some of them, which an error of this one is no reason to remove.
    """
    # A damaged shard is one of the dataset that is appended to: going on would meet it again.
    wrong = isinstance(error, InputError | UsageError | BudgetError | DamagedShard)
    if wrong or not (n_done or is_begun) or not _is_rereadable(work.own):
        try:
            remove_dataset(work.folder, files)
        except (OSError, StreamtrainError) as failure:
            error.add_note(f"and {work.folder} could not be removed: {failure}")
        return
    with suppress(OSError):
        # Written but perhaps not durable, so it is not to count.
        files.system.unlink(work.folder / zarr_metadata.ROOT)
    say(f"{work.path}: {n_done:,} shards are done; the same ingest with --resume goes on from there")
    if isinstance(error, ResourceError):
        error.fix = f"{error.fix or 'see to the disk'}, then the same ingest with --resume: {n_done:,} shards are done"


def publish_and_tidy(folder: Path, path: Path, files: Files, say: Say) -> None:
    """Put what is finished in its place, and tidy up; that the latter fails takes nothing from the dataset.

    Raises
    ------
    ResourceError
        It could not be put in its place, where the old dataset stays.
    """
    try:
        publish(folder, path, files)
    except ResourceError as error:
        error.fix = f"{error.fix or 'see to the disk'}, then the same ingest with --resume: it is finished"
        raise
    try:
        tidy(path, files)
    except (ResourceError, UsageError) as error:
        say(f"{path}: complete, but something was left: {error.what}; streamtrain repair {path} --remove removes it")


def _is_rereadable(source: Source) -> bool:
    try:
        check_rereadable(source)
    except UsageError:
        return False
    return True
