"""Folders that are no list of files of one kind: of classes, of features and their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from stat import S_ISDIR
from typing import Final

from streamtrain.errors import Argument, Fix, InputError
from streamtrain.ingestion.sources.base import Source
from streamtrain.ingestion.sources.combine import name_of
from streamtrain.ingestion.sources.input_files import look_up
from streamtrain.ingestion.sources.recognition.content import kind_of
from streamtrain.ingestion.sources.recognition.recipes import class_folders_recipe
from streamtrain.store.writing.staging import destination_state
from streamtrain.system.files import shown_names_in
from streamtrain.system.refusals import read_failure
from streamtrain.system.units import counted


def files_in(folder: Path) -> list[Path]:
    """List the files of a folder that are shown, by name."""
    try:
        entries = [folder / name for name in shown_names_in(folder)]
    except OSError as error:
        what = "the folder is not readable"
        raise read_failure(error, folder, InputError, "copy it to another disk", what=what) from error
    if not entries:
        raise InputError("no files in the folder", where=str(folder), fix="give the folder that holds the data files")
    inner = [entry.name for entry in entries if S_ISDIR(look_up(entry).st_mode)]
    if inner:
        files = [entry for entry in entries if entry.name not in inner and entry.suffix not in _NO_DATA]
        raise _files_and_folders(folder, files, inner) if files else folder_of_folders(folder, inner)
    return entries


def _files_and_folders(folder: Path, files: Sequence[Path], inner: Sequence[str]) -> InputError:
    """Build the error for a folder of files and folders: which files are meant is not known."""
    kinds = Counter(file.suffix for file in files)
    listed = ", ".join(f"{n:,} {suffix or 'without a suffix'}" for suffix, n in kinds.most_common(_N_KINDS))
    globs = " or ".join(
        f"{folder / '*'}{suffix}" if folder != Path() else f"./*{suffix}" for suffix, _ in kinds.most_common(_N_KINDS)
    )
    what = f"the folder holds files ({listed}) and folders ({', '.join(inner[:5])})"
    return InputError(
        what, where=str(folder), why="Which of them are meant is not known", fix=f"name the files: {globs}"
    )


_N_KINDS: Final = 5
_NO_DATA: Final = frozenset({".py", ".ipynb", ".sh", ".md", ".toml", ".html"})


def folder_of_folders(folder: Path, inner: Sequence[str]) -> InputError:
    """Build the error for a folder that holds folders: of classes, or of anything else."""
    what = f"the folder holds folders: {', '.join(inner[:5])}"
    kinds = [found for name in inner if (found := _kind_in(folder / name))]
    if kinds and all("image" in kind for kind in kinds):
        why = f"It looks like a folder of classes, {len(inner)} in all, each of images ({kinds[0]} in {inner[0]})"
        return InputError(what, where=str(folder), why=why, fix=class_folders_recipe(folder))
    others = [name for name in inner if destination_state(folder / name) == "foreign"]
    if not others:
        return InputError(what, where=str(folder), why="They are datasets", fix="give the files that they were made of")
    listed = " ".join(repr(str(folder / name)) for name in others[:5])
    if all(_has_classes(folder / name) for name in others):
        fix = f"give one folder at a time, into a dataset of its own: {listed}"
        return InputError(what, where=str(folder), why="Each of them holds folders of images", fix=fix)
    return InputError(what, where=str(folder), fix=f"give the folders of files as a list: {listed}")


def _has_classes(folder: Path) -> bool:
    """Whether the first folder in a folder begins with an image."""
    inner = next((folder / name for name in shown_names_in(folder) if S_ISDIR(look_up(folder / name).st_mode)), None)
    return inner is not None and "image" in (_kind_in(inner) or "")


def _kind_in(folder: Path) -> str | None:
    """Say what the first file of a folder is."""
    files = (folder / name for name in shown_names_in(folder))
    first = next((file for file in files if file.is_file()), None)
    return None if first is None else kind_of(first)


def check_no_labels_among(sources: Sequence[Source]) -> None:
    """Refuse files of features among which their labels lie, as the four of MNIST do."""
    single = [source for source in sources if _is_labels(source)]
    features = [source for source in sources if source not in single]
    if not single or not features or any(len(source.fields) != 1 for source in sources):
        return
    pairs = [
        (of, max(alike, key=lambda label: _n_alike(name_of(of), name_of(label))))
        for of in features
        if (alike := [label for label in single if label.n_samples == of.n_samples])
    ]
    if not pairs:
        return
    of, labels = max(pairs, key=lambda pair: pair[0].n_samples or 0)
    listed = "; ".join(f"{name_of(one)} and {name_of(other)}, {one.n_samples:,} rows each" for one, other in pairs)
    raise InputError(
        f"{counted(len(features), 'file')} of samples and {counted(len(single), 'file')} of labels are no one table",
        why=f"Those with as many rows are {listed}",
        fix=Fix(f"give {name_of(of)} with ", Argument("labels", name_of(labels))),
    )


def _n_alike(one: str, other: str) -> int:
    """Count the characters that two names begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _is_labels(source: Source) -> bool:
    return len(source.fields) == 1 and not source.fields[0].shape and source.fields[0].dtype.kind in "iub"
