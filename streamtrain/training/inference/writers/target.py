"""The place of predictions: a file or dataset by its suffix, checked before the first row, and written as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.store.writing.lock import check_unlocked
from streamtrain.store.writing.staging import (
    check_in_no_dataset,
    check_names,
    check_ours,
    destination_state,
    incomplete,
)
from streamtrain.store.zarr_metadata import load_zarr
from streamtrain.system.files import Files, is_folder, is_there, local_path, status_of
from streamtrain.system.refusals import translate_os_errors
from streamtrain.training.inference.predictions import Part, PredictionForm
from streamtrain.training.inference.writers.array import ArrayWriter
from streamtrain.training.inference.writers.parquet import ParquetWriter, check_arrow
from streamtrain.training.inference.writers.store import StoreWriter
from streamtrain.training.inference.writers.text import TextWriter

DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
SUFFIXES: Final = (".csv", ".tsv", ".parquet", ".npy", ".zarr")
_MOST_BUFFER_BYTES: Final = 64_000_000
_PARTS: Final = 8


class Writer(Protocol):
    """What takes in parts one after another."""

    def add(self, part: Part, /) -> None: ...


def buffer_bytes(memory: int) -> int:
    """Compute the writer's part of a memory budget."""
    return min(memory // _PARTS, _MOST_BUFFER_BYTES)


_ENCODING_BYTES: Final = {".parquet": 10_000_000, ".zarr": 10_000_000}
"""Memory of Arrow, or of encoding and flushing blocks, besides the rows, measured."""


def writer_terms(kind: str | None, memory: int) -> dict[str, int]:
    """Project what writing takes of a memory budget, by the suffix of the file; nothing where nothing is written."""
    if kind is None:
        return {}
    encoding = min(_ENCODING_BYTES.get(kind.lower(), 0), memory // _PARTS)
    return {"writer": buffer_bytes(memory)} | ({"encoding": encoding} if encoding else {})


def load_writer(kind: str | None) -> None:
    """Import what writes a kind of file: libraries are no memory of the work."""
    suffix = (kind or "").lower()
    if suffix == ".zarr":
        load_zarr()
    elif suffix == ".parquet":
        check_arrow()


def check_target(out: str | Path, *, overwrite: bool, sources: Iterable[str] = ()) -> Path:
    """Refuse a place that predictions cannot be written to."""
    path = local_path(out)
    if path.suffix.lower() not in SUFFIXES:
        what = f"out is {str(out)!r}, whose suffix names no kind of file"
        raise UsageError(
            what, why=f"Known: {', '.join(SUFFIXES)}", fix=Fix(Argument("out", "predictions.csv"), ", say")
        )
    _check_outside(path, sources)
    check_in_no_dataset(path.parent, "the file of predictions", _ANOTHER)
    if path.suffix.lower() == ".zarr":
        _check_dataset(path, overwrite=overwrite)
        return path
    with translate_os_errors("look at", path):
        if is_folder(path) or (is_there(path) and not overwrite):
            fix = Fix(_ANOTHER) if is_folder(path) else Fix(Argument("overwrite", True), ", or ", _ANOTHER)
            raise UsageError("something exists there already", where=str(path), fix=fix)
        if not path.parent.is_dir():
            raise UsageError("there is no such folder", where=str(path.parent), fix=_ANOTHER)
    if path.suffix.lower() == ".parquet":
        check_arrow()
    return path


_ANOTHER: Final = Fix("another ", Argument("out"))


def _check_dataset(path: Path, *, overwrite: bool) -> None:
    state = destination_state(path)
    if state == "foreign":
        raise UsageError("something that is not a dataset exists there", where=str(path), fix=_ANOTHER)
    if state == "incomplete":
        raise incomplete(path)
    if state == "committed" and not overwrite:
        fix = Fix(Argument("overwrite", True), ", or ", _ANOTHER)
        raise UsageError("a dataset exists there already", where=str(path), fix=fix)
    if state == "committed":
        check_ours(path)
    check_names(path)
    check_unlocked(path)


def _check_outside(path: Path, sources: Iterable[str]) -> None:
    """Refuse to write over, or into, what is read."""
    real = path.resolve()
    for source in sources:
        of_source = Path(source).resolve()
        if real == of_source or of_source in real.parents or real in of_source.parents or _is_same(path, of_source):
            raise UsageError("what is read lies there", where=str(path), fix=_ANOTHER)


def _is_same(one: Path, other: Path) -> bool:
    first, second = status_of(one), status_of(other)
    return first is not None and second is not None and (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


@contextmanager
def open_target(
    path: Path,
    form: PredictionForm,
    *,
    probabilities: bool,
    n_rows: int | None,
    memory: int,
    source: str,
    files: Files | None = None,
) -> Iterator[Writer]:
    """Write predictions while the block runs; they are there, all of them, when it ends without an error."""
    files, room, suffix = files or Files(), buffer_bytes(memory), path.suffix.lower()
    if suffix == ".zarr":
        store = StoreWriter(path, n_rows=n_rows, buffer_bytes=room, source=source, files=files)
        try:
            yield store
            store.finish()
        except BaseException as error:
            store.abandon(error)
            raise
        return
    with files.create(path) as out:
        match suffix:
            case ".npy":
                array = ArrayWriter(out, probabilities=probabilities)
                yield array
                array.finish()
            case ".parquet":
                table = ParquetWriter(out, form, probabilities=probabilities, buffer_bytes=room)
                yield table
                table.finish()
            case _:
                text = TextWriter(
                    out.write, form, delimiter=DELIMITERS[suffix], probabilities=probabilities, buffer_bytes=room
                )
                yield text
                text.flush()
