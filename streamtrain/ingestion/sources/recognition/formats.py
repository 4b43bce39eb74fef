"""The formats of files, found by suffix and content; files of others are refused with what makes them readable.

Suffixes that are not ours are looked up among the installed entry points of group ``streamtrain.sources``, whose name
is the suffix without its dot and whose value is a `Probe`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources import binary, compressed, idx
from streamtrain.ingestion.sources.base import Probe, SourceOptions
from streamtrain.ingestion.sources.hierarchies import hierarchy_source
from streamtrain.ingestion.sources.images import parquet_images, webdataset
from streamtrain.ingestion.sources.input_files import first_bytes
from streamtrain.ingestion.sources.recognition.content import N_SNIFFED, is_hdf5, kind_of, sniff
from streamtrain.ingestion.sources.recognition.recipes import recipe
from streamtrain.ingestion.sources.tables import delimited, parquet
from streamtrain.ingestion.sources.tables.roles.reader import TableReader
from streamtrain.store.reads.other_zarr import is_zarr

ENTRY_POINT_GROUP: Final = "streamtrain.sources"

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_IDX_NAME: Final = re.compile(r"(idx\d-[a-z]+|\.idx)(\.gz)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    """A raw format: its name, its probe, its suffixes, and what its content may look like."""

    name: str
    probe: Probe
    suffixes: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    reader: Callable[[Path, SourceOptions], TableReader] | None = None  # of a table
    is_table: bool = False
    is_text: bool = False
    has_names: bool = False
    is_hierarchy: bool = False


RAW: Final = FileFormat(name="raw binary", probe=binary.probe_raw, suffixes=(".bin", ".raw", ".dat"))
_FORMATS: Final = (
    FileFormat(name="npy", probe=binary.probe_npy, suffixes=(".npy",), content=("a .npy array",)),
    FileFormat(
        name="npz",
        probe=compressed.probe,
        suffixes=(".npz",),
        content=("a zip archive", "an empty zip archive"),
        has_names=True,
    ),
    RAW,
    FileFormat(name="idx", probe=idx.probe, suffixes=("-ubyte", ".idx", ".idx.gz"), content=("gzip data",)),
    FileFormat(
        name="CSV",
        probe=delimited.probe,
        reader=delimited.reader,
        suffixes=(".csv", ".tsv", ".tab"),
        is_table=True,
        is_text=True,
    ),
    FileFormat(
        name="Parquet",
        probe=parquet_images.probe,
        reader=parquet.reader,
        suffixes=(".parquet", ".pq"),
        content=("Parquet",),
        is_table=True,
    ),
    FileFormat(name="tar", probe=webdataset.probe, suffixes=(".tar",), content=("a tar archive",), has_names=True),
)
# Known by their content, whatever they are called.
_HDF5: Final = FileFormat(
    name="HDF5", probe=hierarchy_source.probe_hdf5, content=("HDF5",), has_names=True, is_hierarchy=True
)
_ZARR: Final = FileFormat(name="Zarr", probe=hierarchy_source.probe_zarr, has_names=True, is_hierarchy=True)


def format_of(path: Path, options: SourceOptions) -> FileFormat:
    """Find the format that reads a file, or a folder of Zarr."""
    if is_zarr(path) or is_hdf5(path):
        return _ZARR if is_zarr(path) else _HDF5
    name, suffix = path.name.lower(), path.suffix.lower()
    if _IDX_NAME.search(name):
        return next(family for family in _FORMATS if family.name == "idx")
    known = next((family for family in _FORMATS if suffix in family.suffixes), None)
    family = known or _plugin(suffix) or (RAW if options.dtype is not None else None)
    if family is None:
        raise _unknown(path, suffix)
    return family


def _plugin(suffix: str) -> FileFormat | None:
    for point in entry_points(group=ENTRY_POINT_GROUP, name=suffix.removeprefix(".")) if suffix else ():
        try:
            return FileFormat(name=point.name, probe=point.load(), suffixes=(suffix,))
        except ImportError as error:
            fix = "install a newer version of the plug-in, or what it needs"
            raise UsageError(f"the plug-in {point.value} cannot be imported: {error}", fix=fix) from error
    return None


def _unknown(path: Path, suffix: str) -> InputError:
    own = [suffix for family in _FORMATS for suffix in family.suffixes]
    others = [f".{point.name}" for point in entry_points(group=ENTRY_POINT_GROUP)]
    found = kind_of(path) if path.is_file() else None
    if found == "HDF5":  # by its name; its content has a reader
        what = "it is named like HDF5 or NetCDF4, and does not begin like one"
        return InputError(what, where=str(path), fix="write or download it again")
    return InputError(
        f"no reader for files named *{suffix}" if suffix else "the name has no suffix to tell the format",
        where=str(path),
        why=f"{f'It looks like {found}. ' if found else ''}Known: {' '.join([*own, *others])}; HDF5 and Zarr",
        fix=(recipe(path, found) or "convert it to one of those")
        if found
        else "convert or rename it, or give dtype and shape to read it as raw binary",
    )


def check_content(path: Path, family: FileFormat) -> None:
    """Refuse a file whose content is plainly of another format than its name."""
    if family.is_hierarchy:
        return
    head = first_bytes(path, N_SNIFFED)
    found = sniff(head)
    # Raw bytes and unknown formats may start like anything; so may a text's first column name.
    if found is None or family not in _FORMATS or family is RAW or (family.is_text and not _CONTROL.search(head)):
        return
    if found not in family.content:
        raise InputError(
            f"the name says {family.name}, the content is {found}",
            where=str(path),
            fix="rename or convert it",
        )
