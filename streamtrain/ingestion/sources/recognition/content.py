"""The kind of a file by its first bytes and its suffix."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG
from types import MappingProxyType
from typing import Final

from streamtrain.ingestion.sources.input_files import first_bytes
from streamtrain.store.media.pillow import image_format
from streamtrain.system.files import open_to_read
from streamtrain.system.syscalls import SYSTEM

N_SNIFFED: Final = 512

_MAGICS: Final = (
    (b"\x93NUMPY", "a .npy array"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b\x08", "gzip data"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow IPC"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"CDF\x01", "NetCDF 3"),
    (b"CDF\x02", "NetCDF 3"),
    (b"GIF8", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"BM", "a BMP image"),
    (b"%PDF", "a PDF document"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"BZh", "bzip2 data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04\x95", "a Python pickle"),
    (b"\x80\x05\x95", "a Python pickle"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\x00", "a SQLite database"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"ORC", "ORC"),
    (b"Obj\x01", "Avro"),
    (b"ID3", "an audio file"),
    (b"fLaC", "an audio file"),
)
_IMAGES: Final = MappingProxyType({"JPEG": "a JPEG image", "PNG": "a PNG image", "WEBP": "a WebP image"})
HDF5_SUFFIXES: Final = (".h5", ".hdf5", ".hdf", ".nc", ".nc4", ".h5ad")
_BY_SUFFIX: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys((".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"), "an image"),
        **dict.fromkeys(HDF5_SUFFIXES, "HDF5"),
        **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet"),
        **dict.fromkeys((".pt", ".pth", ".ckpt"), "a file of torch.save"),
        **dict.fromkeys((".pkl", ".pickle", ".joblib"), "a Python pickle"),
        **dict.fromkeys((".txt", ".data", ".psv"), "text"),
        **dict.fromkeys((".jsonl", ".ndjson"), "lines of JSON"),
        **dict.fromkeys((".feather", ".arrow", ".ipc"), "Arrow IPC"),
        **dict.fromkeys((".wav", ".mp3", ".flac", ".ogg"), "an audio file"),
        **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv"), "a video"),
        **dict.fromkeys((".tar", ".tgz"), "a tar archive"),
        **dict.fromkeys((".sqlite", ".db"), "a SQLite database"),
        ".json": "JSON",
        ".mat": "a MATLAB file",
        ".arff": "ARFF",
        ".tfrecord": "TFRecord",
        ".safetensors": "safetensors",
        ".orc": "ORC",
        ".zarr": "Zarr",
    }
)
_IN_ZIP: Final = (("xl/", "a spreadsheet"), ("word/", "a Word document"), ("data.pkl", "a file of torch.save"))


_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_FIRST_USER_BLOCK: Final = 512


def is_hdf5(path: Path) -> bool:
    """Say whether a file is HDF5: by its first bytes, or those behind a block that a user put before them."""
    try:
        status = SYSTEM.stat(path)
        if not S_ISREG(status.st_mode):
            return False
        with open_to_read(path, buffering=0) as file:
            start = 0
            while start < status.st_size:
                file.seek(start)
                if file.read(len(_HDF5)) == _HDF5:
                    return True
                # Only where the name says so too: anything may stand there in other files.
                if path.suffix.lower() not in HDF5_SUFFIXES:
                    return False
                start = 2 * start or _FIRST_USER_BLOCK
    except (OSError, ValueError):  # whoever opens it next tells
        pass
    return False


def sniff(head: bytes) -> str | None:
    """Recognize a format by the first bytes of a file; None where they show nothing."""
    if (found := image_format(head)) is not None:
        return _IMAGES[found]
    if head[:4] == b"RIFF":
        return {b"WAVE": "an audio file", b"AVI ": "a video"}.get(head[8:12])
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next((kind for magic, kind in _MAGICS if head.startswith(magic)), None)


def kind_of(path: Path) -> str | None:
    """Say what a file is, by its content or else its name; None where neither shows it."""
    found = sniff(first_bytes(path, N_SNIFFED))
    if found == "a zip archive":
        return _in_zip(path)
    by_suffix = _BY_SUFFIX.get(path.suffix.lower())
    if found == "gzip data":
        return "a tar archive" if path.name.lower().endswith((".tar.gz", ".tgz")) else found
    return found or by_suffix


def _in_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return "a zip archive"
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz archive"
    return next((kind for part, kind in _IN_ZIP if any(part in name for name in names)), "a zip archive")
