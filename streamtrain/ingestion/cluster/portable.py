"""Schedulers and sources as they are given, checked, and sources as another process reads them."""

from __future__ import annotations

import copy
import logging
import os
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Argument, Fix, UsageError, first_line
from streamtrain.ingestion.append import AppendedSource
from streamtrain.ingestion.sources.arrays import NamedArrays, is_dask
from streamtrain.ingestion.sources.base import Source
from streamtrain.ingestion.sources.combine import (
    ClassCheckedSource,
    Concatenation,
    LabelledSource,
    StrippedClasses,
    name_of,
)
from streamtrain.ingestion.sources.indexed.mapped import MappedRows, mapped_rows
from streamtrain.ingestion.sources.tables.table_columns import TableSource
from streamtrain.store.dataset import open_dataset
from streamtrain.system.arguments import a_kind
from streamtrain.system.units import format_bytes

PROCESSES: Final = "processes"
_ON_ONE: Final = Fix("ingest on one machine: leave ", Argument("scheduler"), " out")
_GIVE_FILES: Final = "give a file, or a dask array that reads files"
_ADDRESS: Final = re.compile(r"(tcp|tls|ws|wss|ucx)://[^\s/]+:\d+")
_MOST_TASK_BYTES: Final = 2**24


def check_scheduler(scheduler: object) -> None:
    """Refuse what is no scheduler, and any where the library is not installed."""
    if scheduler is None:
        return
    fix = Fix(Argument("scheduler", PROCESSES), ", or ", Argument("scheduler", "tcp://host:8786"), ", say")
    if isinstance(scheduler, str):
        if scheduler != PROCESSES and _ADDRESS.fullmatch(scheduler) is None:
            raise UsageError(f"scheduler is {scheduler!r:.80}, which is no address of one", fix=fix)
        library()
        return
    if not isinstance(scheduler, library().Client):
        raise UsageError(f"scheduler is {a_kind(scheduler)}; it is an address, or a Client of distributed", fix=fix)
    if getattr(scheduler, "asynchronous", False):
        raise UsageError("scheduler is an asynchronous Client", fix="Client(address), without asynchronous=True")


def library() -> Any:
    """Import dask.distributed, which is an extra."""
    try:
        import distributed
    except ImportError as error:
        what = "an ingest on a cluster is run by dask.distributed, which is not installed"
        raise UsageError(what, fix="pip install 'streamtrain[cluster]'") from error
    return distributed


def quiet() -> AbstractContextManager[None]:
    """Keep the log of distributed from stderr: what matters of it becomes an error."""
    from distributed.utils import silence_logging_cmgr

    silenced: AbstractContextManager[None] = silence_logging_cmgr(SILENT)
    return silenced


SILENT: Final = logging.CRITICAL + 1


def one_machine(what: str, why: str) -> UsageError:
    """Make the error for what one machine alone can do."""
    return UsageError(f"{what} is given together with scheduler", why=why, fix=_ON_ONE)


def absolute(source: Any) -> Any:
    """Return a source in which paths are those of any process on any machine."""
    if isinstance(source, list | tuple):
        return [absolute(each) for each in source]
    is_path = isinstance(source, str | os.PathLike) and source != "-" and "://" not in os.fspath(source)
    return Path(source).absolute() if is_path else source


def as_given(source: Source, *given: object) -> None:
    """Have a source say of its files what the user did: the manifest does not depend on where it was made."""
    flat = [each for one in given for each in (one if isinstance(one, list | tuple) else [one])]
    paths = {Path(each).absolute(): Path(each) for each in flat if isinstance(each, str | os.PathLike)}
    entries = []
    for entry in source.provenance:
        own = Path(entry.get("path", ""))
        above = next((each for each in (own, *own.parents) if each in paths), None) if "path" in entry else None
        named = {} if above is None else {"path": str(paths[above] / own.relative_to(above))}
        entries.append({**entry, **named})
    source.provenance = tuple(entries)


def portable(source: Source) -> Source:
    """Return a source that another process reads: of files their paths alone; refuse any other."""
    sent = _portable(source)
    from distributed.protocol.pickle import dumps

    try:
        with quiet():
            n_bytes = len(dumps(sent))
    except Exception as error:
        what = f"{name_of(source)} cannot be handed to another process: {first_line(error)}"
        raise UsageError(what, fix=_ON_ONE) from error
    if n_bytes > _MOST_TASK_BYTES:
        what = f"{name_of(source)} takes {format_bytes(n_bytes)}, which each task would carry"
        raise UsageError(what, why="Only what lies in files is read by workers", fix=_GIVE_FILES)
    return sent


def _portable(source: Source) -> Source:
    sent = copy.copy(source)
    match sent:
        case AppendedSource():
            sent.more = _portable(sent.more)
            sent.base = open_dataset(sent.base.path.absolute())
        case Concatenation():
            sent.parts = tuple(map(_portable, sent.parts))
        case LabelledSource():
            sent.features, sent.labels = _portable(sent.features), _portable(sent.labels)
        case StrippedClasses() | ClassCheckedSource():
            sent.source = _portable(sent.source)
        case NamedArrays():
            sent.arrays = {name: _place(name, array) for name, array in sent.arrays.items()}
        case _ if any(entry.get("format") == "iterator" for entry in source.provenance):
            raise UsageError("an iterator gives its rows once, to this process alone", fix=_GIVE_FILES)
        case _ if not source.has_ranges:
            what = f"{name_of(source)} is read in order only, from its first row to its last"
            raise UsageError(what, why="A task of a cluster reads the rows of one shard", fix=_ON_ONE)
        case TableSource():
            sent.columns = ()
    return sent


def _place(name: str, array: Any) -> Any:
    if is_dask(array):
        return array
    mapped = mapped_rows(array)
    if mapped is None:
        what = f"array {name!r} lies in the memory of this process, which workers do not see"
        raise UsageError(what, fix=_GIVE_FILES)
    return mapped


def mapped_files(source: Source) -> set[Path]:
    """List the files of memmaps, which a manifest does not know."""
    match source:
        case AppendedSource():
            return mapped_files(source.more)
        case LabelledSource():
            return mapped_files(source.features) | mapped_files(source.labels)
        case StrippedClasses() | ClassCheckedSource():
            return mapped_files(source.source)
        case NamedArrays():
            return {array.path for array in source.arrays.values() if isinstance(array, MappedRows)}
    return set()
