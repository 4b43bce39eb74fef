"""The check-up of a machine: what is installed, memory and disk, and how fast it reads and decodes.

The rates are measured within a few seconds, on a temporary file without a name, so that nothing is left behind however
it ends, and on made-up blocks that compress to about three quarters. They are limits: a loader reaches less.
"""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from streamtrain.errors import UsageError
from streamtrain.store.codec import checksum, decode, encode
from streamtrain.store.layout import CODECS, Codec
from streamtrain.system.buffers import aligned_bytes
from streamtrain.system.files import local_path
from streamtrain.system.memory import MemoryLimit, memory_limit, n_cores
from streamtrain.system.units import format_bytes

PACKAGES: Final = ("numpy", "zarr", "torch", "numcodecs", "crc32c", "dask", "pyarrow", "matplotlib")
_BLOCK_BYTES: Final = 512 << 10
_PIECE_BYTES: Final = 4 << 20
_FILE_BYTES: Final = 256 << 20
_SPARE_BYTES: Final = 1 << 30
_MOST_THREADS: Final = 4
"""A loader starts no more, however many cores there are."""
_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_DATASET_FILE: Final = "zarr.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A folder's disk; rates in bytes per second, None where they could not be measured.

    Parameters
    ----------
    folder : Path
        Where it was measured.
    free_bytes, total_bytes : int
        Its room.
    write_rate : float or None
        Writing in one piece, until it is safe on the disk.
    cold_rate, warm_rate : float or None
        Reading it with one thread, from the disk and from the page cache.
    problem : str or None
        Why it could not be measured.
    """

    folder: Path
    free_bytes: int
    total_bytes: int
    write_rate: float | None = None
    cold_rate: float | None = None
    warm_rate: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How fast blocks of a codec are checked and decoded, in decoded bytes per second.

    Parameters
    ----------
    codec : str
        ``none`` is checked only.
    one_thread, all_threads : float
        With one thread, and with as many as a loader has.
    """

    codec: str
    one_thread: float
    all_threads: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """A CUDA device."""

    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectReadSupport:
    """What of the fast path this system has.

    Parameters
    ----------
    direct_reads : bool
        Blocks are read by ``preadv``, any number at a time; else by seek and read, one of a file at a time.
    cache_control : bool
        What was read can be dropped from the page cache when the data exceeds the free memory.
    huge_pages : bool
        Large memory is in huge pages.
    """

    direct_reads: bool
    cache_control: bool
    huge_pages: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """All of it; ``n_threads`` is how many reader threads a loader has, at most."""

    versions: dict[str, str | None]
    system: str
    cores: int
    n_threads: int
    ram_bytes: int
    limit: MemoryLimit
    disk: Disk
    decoding: tuple[Decoding, ...]
    fast_path: DirectReadSupport
    devices: tuple[CudaDevice, ...]
    devices_problem: str | None


def check_up(folder: Path, *, seconds: float = 3.0) -> Checkup:
    """Examine the machine.

    Parameters
    ----------
    folder : Path
        Whose disk is measured; for a dataset, the folder it lies in.
    seconds : float
        For all rates together, about; a slow disk may take a little longer.

    Raises
    ------
    UsageError
        There is no such folder.
    """
    place = local_path(folder).resolve()
    if not place.is_dir():
        what = "this is not a folder" if place.exists() else "there is no such folder"
        raise UsageError(what, where=str(folder), fix="give the folder where the data lies or will lie")
    if (place / _DATASET_FILE).exists():
        place = place.parent
    devices, problem = _devices()
    n_threads = min(_MOST_THREADS, n_cores())
    return Checkup(
        versions=_versions(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cores=os.cpu_count() or 1,
        n_threads=n_threads,
        ram_bytes=psutil.virtual_memory().total,
        limit=memory_limit(),
        disk=_disk(place, seconds / 2),
        decoding=tuple(_decoding(codec, n_threads, seconds / 2 / len(CODECS)) for codec in CODECS),
        fast_path=_fast_path(),
        devices=devices,
        devices_problem=problem,
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"streamtrain": metadata.version("streamtrain"), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _fast_path() -> DirectReadSupport:
    text = _HUGE_PAGES.read_text() if _HUGE_PAGES.exists() else ""
    return DirectReadSupport(
        direct_reads=hasattr(os, "preadv"),
        cache_control=hasattr(os, "posix_fadvise"),
        huge_pages=hasattr(mmap, "MADV_HUGEPAGE") and bool(text) and "[never]" not in text,
    )


def _devices() -> tuple[tuple[CudaDevice, ...], str | None]:
    try:
        import torch

        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.cuda.get_device_properties(i) for i in range(n_devices)]
        return tuple(CudaDevice(name=each.name, total_bytes=each.total_memory) for each in found), None
    except (ImportError, OSError, RuntimeError) as error:
        # A broken driver or installation is what a check-up is there to tell.
        return (), f"{type(error).__name__}: {error}".splitlines()[0]


def _noise(n_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 64, n_bytes, np.uint8)


# The disk.


def _disk(folder: Path, seconds: float) -> Disk:
    usage = shutil.disk_usage(folder)
    room = Disk(folder=folder, free_bytes=usage.free, total_bytes=usage.total)
    if usage.free < _FILE_BYTES + _SPARE_BYTES:
        needed = format_bytes(_FILE_BYTES + _SPARE_BYTES)
        return _without_rates(room, f"{format_bytes(usage.free)} are free, and it takes {needed}")
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return _rates(room, file.fileno(), seconds)
    except OSError as error:
        return _without_rates(room, error.strerror or str(error))


def _without_rates(room: Disk, problem: str) -> Disk:
    return Disk(folder=room.folder, free_bytes=room.free_bytes, total_bytes=room.total_bytes, problem=problem)


def _rates(room: Disk, file: int, seconds: float) -> Disk:
    buffer = aligned_bytes(_PIECE_BYTES)
    buffer[:] = _noise(_PIECE_BYTES)
    n_written, wrote = _write(file, buffer.data, seconds / 2)
    cold: float | None = None
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        cold = _read(file, buffer.data, n_written, seconds / 2)
    # The whole file is in the page cache once it has been read; a second time tells what reading from there costs.
    _read(file, buffer.data, n_written, seconds / 2)
    return Disk(
        folder=room.folder,
        free_bytes=room.free_bytes,
        total_bytes=room.total_bytes,
        write_rate=wrote,
        cold_rate=cold,
        warm_rate=_read(file, buffer.data, n_written, seconds / 8),
    )


def _write(file: int, piece: memoryview, seconds: float) -> tuple[int, float]:
    """Write pieces for a time; the bytes, and the rate until they were safe."""
    started, n_bytes = time.perf_counter(), 0
    while n_bytes < _FILE_BYTES and (n_bytes == 0 or time.perf_counter() - started < seconds):
        n_bytes += os.write(file, piece)
    os.fsync(file)
    return n_bytes, n_bytes / (time.perf_counter() - started)


def _read(file: int, piece: memoryview, n_bytes: int, seconds: float) -> float:
    """Read from the start for a time; the rate."""
    os.lseek(file, 0, os.SEEK_SET)
    started, n_read = time.perf_counter(), 0
    while n_read < n_bytes and (n_read == 0 or time.perf_counter() - started < seconds):
        n_read += os.preadv(file, [piece], n_read) if hasattr(os, "preadv") else len(os.read(file, len(piece)))
    return n_read / max(time.perf_counter() - started, 1e-9)


# Decoding.


def _decoding(codec: Codec, n_threads: int, seconds: float) -> Decoding:
    block = _noise(_BLOCK_BYTES)
    encoded = encode(block, codec)
    expected = checksum(encoded)

    def once(out: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        assert checksum(encoded) == expected
        if codec != "none":
            decode(encoded, out, codec)

    return Decoding(
        codec=codec,
        one_thread=_repeated(once, 1, seconds / 2),
        all_threads=_repeated(once, n_threads, seconds / 2),
    )


def _repeated(
    act: Callable[[np.ndarray[tuple[int], np.dtype[np.uint8]]], None], n_threads: int, seconds: float
) -> float:
    """Repeat an act in threads, each with a block of its own; bytes per second of all."""
    counts = [0] * n_threads
    started = time.perf_counter()

    def work(i: int) -> None:
        out = aligned_bytes(_BLOCK_BYTES)
        while counts[i] == 0 or time.perf_counter() - started < seconds:
            act(out)
            counts[i] += 1

    threads = [threading.Thread(target=work, args=(i,), name=f"streamtrain-doctor-{i}") for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) * _BLOCK_BYTES / (time.perf_counter() - started)
