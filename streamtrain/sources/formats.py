"""Which family reads a file: by the suffix of its name, held against the first bytes of its content.

Suffixes that are not ours are looked up among the installed entry points of group ``streamtrain.sources``, whose
name is the suffix without its dot and whose value is a `Probe`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from streamtrain.errors import InputError
from streamtrain.sources import delimited, idx, npy, npz, parquet, raw
from streamtrain.sources.inputs import first_bytes
from streamtrain.sources.protocol import Probe, SourceOptions

ENTRY_POINT_GROUP: Final = "streamtrain.sources"

_MAGICS: Final = (
    (b"\x93NUMPY", "a .npy array"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b\x08", "gzip data"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow IPC"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x80\x04\x95", "a Python pickle"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\x00", "a SQLite database"),
)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_IDX_NAME: Final = re.compile(r"(idx\d-[a-z]+|\.idx)(\.gz)?$")
_N_SNIFFED: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A raw format: its name, its probe, its suffixes, and what its content may look like."""

    name: str
    probe: Probe
    suffixes: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    is_table: bool = False
    is_text: bool = False


RAW: Final = Family(name="raw binary", probe=raw.probe, suffixes=(".bin", ".raw", ".dat"))
_FAMILIES: Final = (
    Family(name="npy", probe=npy.probe, suffixes=(".npy",), content=("a .npy array",)),
    Family(name="npz", probe=npz.probe, suffixes=(".npz",), content=("a zip archive", "an empty zip archive")),
    RAW,
    Family(name="idx", probe=idx.probe, suffixes=("-ubyte", ".idx", ".idx.gz"), content=("gzip data",)),
    Family(name="CSV", probe=delimited.probe, suffixes=(".csv", ".tsv", ".tab"), is_table=True, is_text=True),
    Family(name="Parquet", probe=parquet.probe, suffixes=(".parquet", ".pq"), content=("Parquet",), is_table=True),
)


def family_of(path: Path, options: SourceOptions) -> Family:
    """Find who reads a file.

    Raises
    ------
    InputError
        Nobody does; the message lists the known suffixes.

    Examples
    --------
    >>> family_of(Path("train-images-idx3-ubyte.gz"), SourceOptions()).name
    'idx'
    """
    name, suffix = path.name.lower(), path.suffix.lower()
    if _IDX_NAME.search(name):
        return next(family for family in _FAMILIES if family.name == "idx")
    known = next((family for family in _FAMILIES if suffix in family.suffixes), None)
    family = known or _plugin(suffix) or (RAW if options.dtype is not None else None)
    if family is None:
        raise _unknown(path, suffix)
    return family


def _plugin(suffix: str) -> Family | None:
    for point in entry_points(group=ENTRY_POINT_GROUP, name=suffix.removeprefix(".")) if suffix else ():
        return Family(name=point.name, probe=point.load(), suffixes=(suffix,))
    return None


def _unknown(path: Path, suffix: str) -> InputError:
    own = [suffix for family in _FAMILIES for suffix in family.suffixes]
    others = [f".{point.name}" for point in entry_points(group=ENTRY_POINT_GROUP)]
    found = sniff(first_bytes(path, _N_SNIFFED)) if path.is_file() else None
    return InputError(
        f"no reader for files named *{suffix}" if suffix else "the name has no suffix to tell the format",
        where=str(path),
        why=f"{f'It looks like {found}. ' if found else ''}Known: {' '.join([*own, *others])}",
        fix="convert or rename it, or give dtype and shape to read it as raw binary",
    )


def sniff(head: bytes) -> str | None:
    r"""What the first bytes of a file show it to be; None where they show nothing.

    Examples
    --------
    >>> sniff(b"\x89PNG\r\n\x1a\n..."), sniff(b"1,2,3")
    ('a PNG image', None)
    """
    return next((kind for magic, kind in _MAGICS if head.startswith(magic)), None)


def check_content(path: Path, family: Family) -> None:
    """Refuse a file whose content is plainly of another format than its name."""
    head = first_bytes(path, _N_SNIFFED)
    found = sniff(head)
    # Raw bytes and unknown formats may start like anything; so may a text's first column name.
    if found is None or family not in _FAMILIES or family is RAW or (family.is_text and not _CONTROL.search(head)):
        return
    if found not in family.content:
        raise InputError(
            f"the name says {family.name}, the content is {found}",
            where=str(path),
            fix="rename or convert it",
        )
