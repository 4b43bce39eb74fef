"""Interrupted ingests: found, compared with the present one, resumed, or cleaned up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import (
    Argument,
    BudgetError,
    Call,
    DatasetError,
    Fix,
    InputError,
    ResourceError,
    StallError,
    StreamtrainError,
    UsageError,
    differences,
    printable,
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
    set_aside,
    successor,
    tidy,
)
from streamtrain.system.files import Files
from streamtrain.system.refusals import refusal_behind

_N_SHOWN: Final = 8

OVERWRITE: Final = Argument("overwrite", True)
APPEND: Final = Argument("append", True)


def check_destination(path: Path, mode: Mode, *, resume: bool = False) -> None:
    """Refuse a destination that holds what this ingest may not replace."""
    state = destination_state(path)
    if state == "foreign":
        what = "something that is not a dataset exists there; ingest writes only where nothing is, or over a dataset"
        raise UsageError(what, where=str(path), fix="choose another path")
    if state == "absent" and mode == "append":
        raise DatasetError(
            "no such dataset to append to", where=str(path), fix=Fix("ingest without ", Argument("append"), " first")
        )
    if state == "incomplete" and not resume and mode != "overwrite":
        raise incomplete(path)
    if state == "committed" and mode == "create" and not resume:
        fix = Fix(OVERWRITE, " or ", APPEND, ", or choose another path")
        raise UsageError("a dataset exists there already", where=str(path), fix=fix)
    if state != "absent" and mode == "overwrite":
        check_ours(path)


def check_outside(path: Path, source: Source) -> None:
    """Refuse source files inside the destination, or inside what becomes of it, and a destination inside a source."""
    for entry in source.provenance:
        if "path" in entry:
            file = Path(entry["path"]).resolve()
            for folder in (path, successor(path)):
                if file.is_relative_to(folder.resolve()):
                    fix = "give a destination elsewhere"
                    raise InputError("a source lies inside the destination", where=str(file), fix=fix)
                if "folders" in entry and folder.resolve().is_relative_to(file):
                    fix = "give a destination elsewhere"
                    raise UsageError("the destination lies inside a source", where=str(file), fix=fix)


def check_rereadable(source: Source) -> None:
    """Refuse to resume from an iterator, which cannot be read from a place, or a second time."""
    if not is_rereadable(source):
        raise UsageError(
            "an ingest from an iterator cannot be resumed",
            why="It is read once, from the start, and nothing tells whether it gives the same rows again",
            fix=Fix("leave ", Argument("resume"), " out; or write the rows to files first, and ingest those"),
        )


def is_rereadable(source: Source) -> bool:
    """Say whether a source can be read a second time."""
    return all(entry.get("format") != "iterator" for entry in source.provenance)


def is_fingerprinted(source: Source) -> bool:
    """Say whether paths, lengths and times of change identify a source; arrays have none."""
    return all("path" in entry for entry in source.provenance)


def check_same_ingest(there: JournalHeader, here: JournalHeader, path: Path) -> None:
    """Refuse to resume an ingest of other sources, options or version; list the differences."""
    _refuse(_told(there), _told(here), path, "was begun")


def told_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Name what differs in what two ingests say of themselves, nested values by their dotted names."""
    said = {name: dict(_flat("", _plain(value))) for name, value in (("there", there), ("here", here))}
    flat = {name: {key.lstrip("."): item for key, item in items.items()} for name, items in said.items()}
    return differences(flat["there"], dict.fromkeys(flat["there"]) | flat["here"])


def refuse_differences(there: Mapping[str, Any], here: Mapping[str, Any], path: Path, how: str) -> None:
    """Refuse an ingest of splits that is not the one to be resumed; list the differences."""
    _refuse_found(told_differences(there, here), path, how)


def check_finished_ingest(
    manifest: Manifest, source: Source, options: Mapping[str, Any], path: Path, mode: Mode
) -> None:
    """Refuse to take a dataset for the finished work of this ingest when it is not."""
    if not is_fingerprinted(source):
        what = "a dataset exists there already, and nothing tells whether it is of these arrays"
        raise UsageError(
            what,
            where=str(path),
            fix=Fix("leave ", Argument("resume"), " out, with ", OVERWRITE, "; or choose another path"),
        )
    sources = manifest.sources[-len(source.provenance) :] if mode == "append" else manifest.sources
    there = dict(_flat("sources", list(sources)))
    here = dict(_flat("sources", _plain(source.provenance)))
    if mode != "append":
        there |= dict(_flat("options", manifest.options))
        here |= dict(_flat("options", _plain(options)))
    _refuse(there, here, path, "was made")


def _refuse(there: dict[str, Any], here: dict[str, Any], path: Path, how: str) -> None:
    _refuse_found(differences(there, dict.fromkeys(there) | here), path, how)


def _refuse_found(found: list[str], path: Path, how: str) -> None:
    if found:
        more = f"; and {len(found) - _N_SHOWN} more" if len(found) > _N_SHOWN else ""
        raise DatasetError(
            f"the dataset there {how} differently: {'; '.join(found[:_N_SHOWN])}{more}",
            where=str(path),
            fix=Fix("give what it was begun with; or ingest from the start with ", OVERWRITE),
        )


def _told(header: JournalHeader) -> dict[str, Any]:
    """Name what two ingests must agree on, so that a difference can be named."""
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
    """Return a value as JSON gives it back."""
    return load_json(dump_json({"value": value}), where="")["value"]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is nested in a value, by dotted and numbered names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{name}[{number}]", item)
    else:
        yield name, value


Say = Callable[[str], None]
"""Called with a sentence on what an earlier ingest left, or what stays of this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptedIngest:
    """What an interrupted ingest left."""

    folder: Path
    header: JournalHeader
    shards: Shards
    is_finished: bool  # but for taking its place


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestTask:
    """What is written where."""

    path: Path
    folder: Path  # the destination itself, if nothing was there
    header: JournalHeader
    source: Source  # all that is read; for an append, the dataset's last rows too
    own: Source  # what the user gave
    base: Dataset | None
    shards: Shards  # made before an interruption

    @property
    def kept(self) -> Shards:
        """All shards that are there already."""
        return self.shards if self.base is None else {**self.shards, **full_shards(self.base)}

    @property
    def n_linked(self) -> int:
        """The number of first shards, which are those of the dataset that is appended to."""
        return 0 if self.base is None else n_full_shards(self.base)


def find_interrupted(path: Path, mode: Mode) -> InterruptedIngest | None:
    """Find what an interrupted ingest to a destination left, once leftovers have been tidied up."""
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
    """Make the error for an unfinished ingest whose journal is missing."""
    error = incomplete(path)
    error.why = "It has no journal, so it is not known what was done"
    error.fix = Fix(Call("repair", str(path), ("remove",)), ", and ingest again")
    return error


def _is_finished(folder: Path) -> bool:
    if destination_state(folder) != "committed":
        return False
    try:
        open_dataset(folder)
    except DatasetError as error:
        if refusal_behind(error):
            raise
        return False
    return True


def discard_interrupted(path: Path, mode: Mode, files: Files) -> None:
    """Remove what an earlier, interrupted ingest left where this one is to write."""
    remove_dataset(successor(path), files)
    if mode == "overwrite" and destination_state(path) == "incomplete":
        remove_dataset(path, files)


def prepare(work: IngestTask, files: Files, say: Say) -> Journal:
    """Clear the folder of all but kept shards, link those of the dataset appended to, open the journal."""
    fields = work.header.layout.fields
    kept = frozenset(zarr_metadata.shard_key(field, shard) for shard in work.kept for field in fields)
    remove_unfinished_files(work.folder, work.header.layout, kept, files)
    if work.base is not None:
        link_shards(work.base, work.folder, files, say)
    return continue_journal(work.folder, work.header, work.shards, files)


def keep_or_discard(
    work: IngestTask, error: BaseException, n_done: int, files: Files, say: Say, *, is_begun: bool
) -> None:
    """After an error, keep what can be resumed, else remove it; neither opens as a dataset."""
    # A damaged shard is one of the dataset that is appended to: going on would meet it again.
    wrong = isinstance(error, InputError | UsageError | BudgetError | DamagedShard)
    if wrong or not (n_done or is_begun) or not is_rereadable(work.own):
        try:
            remove_dataset(work.folder, files)
        except (OSError, StreamtrainError) as failure:
            error.add_note(printable(f"and {work.folder} could not be removed: {failure}"))
        return
    with suppress(OSError):
        # Written but perhaps not durable, so it is not to count.
        files.unlink(work.folder / zarr_metadata.ROOT)
    say(f"{work.path}: {n_done:,} shards are done; the same ingest, resumed, continues from there")
    if isinstance(error, ResourceError | StallError):
        error.fix = _then_resume(error, f"{n_done:,} shards are done")


def _then_resume(error: ResourceError | StallError, why: str) -> Fix:
    return Fix(error.fix or "check the disk", ", then the same ingest with ", Argument("resume", True), f": {why}")


def publish_and_tidy(folder: Path, path: Path, files: Files, say: Say) -> None:
    """Put what is finished in its place, and tidy up; a failure of the latter is only said."""
    try:
        publish(folder, path, files)
    except ResourceError as error:
        error.fix = _then_resume(error, "it is finished")
        raise
    try:
        tidy(path, files)
        if set_aside(path):
            say(f"{path}: complete, but what it replaced is still in use; streamtrain repair removes it later")
    except (ResourceError, UsageError) as error:
        say(f"{path}: complete, but something was left: {error.what}; streamtrain repair removes it")
