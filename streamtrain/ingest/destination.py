"""What may become of a destination: refused, begun, gone on with, or complete already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import DatasetError, InputError, UsageError, differences
from streamtrain.ingestion.sources.base import Source
from streamtrain.store.manifest import Manifest, dump_json, load_json
from streamtrain.store.writing.journal import Header, Mode
from streamtrain.store.writing.staging import check_ours, incomplete, state_of, successor

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
    state = state_of(path)
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
    if state != "absent" and (mode == "overwrite" or state == "incomplete"):
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


def check_same(there: Header, here: Header, path: Path) -> None:
    """Refuse to go on with an ingest of other sources, in another way, or by another version.

    Raises
    ------
    DatasetError
        Some differ; the message lists them.
    """
    _refuse(_told(there), _told(here), path, "was begun")


def check_complete(manifest: Manifest, source: Source, options: Mapping[str, Any], path: Path, mode: Mode) -> None:
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


def _told(header: Header) -> dict[str, Any]:
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
