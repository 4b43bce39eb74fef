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

from streamtrain.errors import Lines, ResourceError, UsageError
from streamtrain.store.codec import checksum, decode, encode
from streamtrain.store.layout import CODECS, Codec
from streamtrain.system.buffers import aligned_bytes
from streamtrain.system.files import local_path
from streamtrain.system.memory import MemoryLimit, memory_limit, n_cores
from streamtrain.system.units import format_bytes

PACKAGES: Final = ("numpy", "zarr", "torch", "numcodecs", "crc32c", "dask", "pyarrow", "h5py", "pillow", "matplotlib")
_BLOCK_BYTES: Final = 512 << 10
_PIECE_BYTES: Final = 4 << 20
_FILE_BYTES: Final = 256 << 20
_SPARE_BYTES: Final = 1 << 30
_MOST_THREADS: Final = 4
"""A loader starts no more, however many cores there are."""
_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_DATASET_FILE: Final = "zarr.json"
Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found: its label, its value, and in words what it means, in lines; ``name`` is its name in JSON."""

    label: str
    value: object
    verdict: str = ""
    name: str = ""


def check_up(folder: Path, *, seconds: float = 3.0) -> list[Finding]:
    """Examine the machine and the disk of a folder; all rates together take about so many seconds.

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
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    cores, n_threads = os.cpu_count() or 1, min(_MOST_THREADS, max(2, n_cores()))
    versions = _versions()
    absent = [name for name, version in versions.items() if version is None]
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return [
        Finding(label="system", value=system, verdict=f"{system}, {cores} core{'s' * (cores != 1)}"),
        Finding(label="cores", value=cores),
        Finding(label="threads", value=n_threads),
        Finding(label="versions", value=versions, verdict=installed),
        Finding(label="absent", value=absent, verdict=", ".join(absent)),
        _memory(memory_limit()),
        _disk(place, seconds / 2),
        _decoding(n_threads, seconds / 2),
        _fast_path(n_threads),
        *_devices(),
    ]


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"streamtrain": metadata.version("streamtrain"), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _memory(limit: MemoryLimit) -> Finding:
    total = psutil.virtual_memory().total
    ram, free = f"{format_bytes(total)} RAM", f"{format_bytes(limit.free_bytes)} free"
    return Finding(
        label="memory",
        value={"ram": total, "limit": limit.limit_bytes, "free": limit.free_bytes, "source": limit.source},
        verdict=f"{ram}, {free}, no tighter limit of a cgroup"
        if limit.source == "RAM"
        else f"{format_bytes(limit.limit_bytes)}, the limit in {limit.source} ({ram}), {free}",
    )


def _fast_path(n_threads: int) -> Finding:
    """What of the fast path this system has: direct reads, control of the page cache, huge pages."""
    text = _HUGE_PAGES.read_text() if _HUGE_PAGES.exists() else ""
    direct, cache = hasattr(os, "preadv"), hasattr(os, "posix_fadvise")
    huge = hasattr(mmap, "MADV_HUGEPAGE") and bool(text) and "[never]" not in text
    lines = [
        f"straight from the shards' files (preadv), up to {_threads(n_threads)} at a time"
        if direct
        else "by seek and read, one thread of a file at a time: this system has no preadv",
        "drops what it has read from the page cache where the data exceeds the free memory"
        if cache
        else "leaves the page cache alone: this system has no posix_fadvise",
        "the pool is in huge pages" if huge else "the pool is in small pages: no huge ones here",
    ]
    value = {"direct_reads": direct, "cache_control": cache, "huge_pages": huge}
    return Finding(label="reading", name="fast_path", value=value, verdict="\n".join(lines))


def _devices() -> list[Finding]:
    devices: list[tuple[str, int]] = []
    problem = None
    try:
        import torch

        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            found = torch.cuda.get_device_properties(i)
            devices.append((found.name, found.total_memory))
    except (ImportError, OSError, RuntimeError) as error:
        # A broken driver or installation is what a check-up is there to tell.
        devices, problem = [], f"{type(error).__name__}: {error}".splitlines()[0]
    named = [f"cuda:{i} {name}, {format_bytes(n_bytes)}" for i, (name, n_bytes) in enumerate(devices)]
    verdict = "; ".join(named) or "no CUDA device, training is on the CPU"
    return [
        Finding(
            label="devices",
            value=[{"name": name, "bytes": n_bytes} for name, n_bytes in devices],
            verdict=f"torch does not work: {problem}" if problem else verdict,
        ),
        Finding(label="devices_problem", value=problem),
    ]


def _threads(n_threads: int) -> str:
    return f"{n_threads} thread{'s' * (n_threads != 1)}"


def _rate(bytes_per_second: float) -> str:
    return f"{format_bytes(bytes_per_second)}/s"


def _noise(n_bytes: int) -> Bytes:
    return np.random.default_rng(0).integers(0, 64, n_bytes, np.uint8)


# The disk.


def _disk(folder: Path, seconds: float) -> Finding:
    """The room on a folder's disk, and its rates in bytes per second, None where they could not be measured."""
    usage = shutil.disk_usage(folder)
    rates: dict[str, float | None] = dict.fromkeys(("write", "cold_read", "warm_read"))
    problem = None
    if usage.free < _FILE_BYTES + _SPARE_BYTES:
        problem = f"{format_bytes(usage.free)} are free, and it takes {format_bytes(_FILE_BYTES + _SPARE_BYTES)}"
    else:
        try:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                rates = _rates(file.fileno(), seconds)
        except OSError as error:
            problem = error.strerror or str(error)
    reads = ", ".join(f"{name} {_rate(rate)}" for name in ("cold", "warm") if (rate := rates[f"{name}_read"]))
    speed = f"reads {reads} with one thread; writes {_rate(rates['write'] or 0)}"
    return Finding(
        label="disk",
        value={
            "folder": folder,
            "free": usage.free,
            "total": usage.total,
            **{f"{name}_bytes_per_second": rate for name, rate in rates.items()},
            "problem": problem,
        },
        verdict=Lines.of(
            [
                f"{folder}: {format_bytes(usage.free)} free of {format_bytes(usage.total)}",
                f"not measured: {problem}" if problem else speed,
            ]
        ),
    )


def _rates(file: int, seconds: float) -> dict[str, float | None]:
    """Writing in one piece until it is safe, and reading with one thread: from the disk, and from the page cache."""
    buffer = aligned_bytes(_PIECE_BYTES)
    buffer[:] = _noise(_PIECE_BYTES)
    n_written, wrote = _write(file, buffer.data, seconds / 2)
    cold: float | None = None
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        cold = _read(file, buffer.data, n_written, seconds / 2)
    # The whole file is in the page cache once it has been read; a second time tells what reading from there costs.
    _read(file, buffer.data, n_written, seconds / 2)
    return {"write": wrote, "cold_read": cold, "warm_read": _read(file, buffer.data, n_written, seconds / 8)}


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


def _decoding(n_threads: int, seconds: float) -> Finding:
    """How fast blocks are checked and decoded, in decoded bytes per second: with one thread, and with a loader's."""
    block, rates, lines = _noise(_BLOCK_BYTES), {}, []
    for codec in CODECS:
        once = _decoder(block, codec)
        one, all_threads = (_repeated(once, n, seconds / 2 / len(CODECS)) for n in (1, n_threads))
        rates[codec] = {"one_thread": one, "all_threads": all_threads}
        checked = ", which is checking alone" if codec == "none" else ""
        many = f"{_rate(all_threads):>10} with {_threads(n_threads)}{checked}"
        lines.append(f"{codec:<5} {_rate(one):>10} with one thread, {many}")
    return Finding(label="decoding", name="decode_bytes_per_second", value=rates, verdict="\n".join(lines))


def _decoder(block: Bytes, codec: Codec) -> Callable[[Bytes], None]:
    encoded = encode(block, codec)
    expected = checksum(encoded)

    def once(out: Bytes) -> None:
        if checksum(encoded) != expected:
            raise ResourceError("memory does not keep what is written to it", fix="test the machine's memory")
        if codec != "none":
            decode(encoded, out, codec)

    return once


def _repeated(act: Callable[[Bytes], None], n_threads: int, seconds: float) -> float:
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
