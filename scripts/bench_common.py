"""What the benchmarks share: room on the disk, a folder that goes again, cold files, ratios, the machine's record."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Final

import psutil

from streamtrain.errors import StreamtrainError

SPARE_BYTES: Final = 10**9
"""What a benchmark leaves free on the disk."""

LESS: Final = "a smaller --size, or another --folder"
"""What helps where the disk is full; scripts whose options have other names say so."""

_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
_CPU_INFO: Final = Path("/proc/cpuinfo")


def require_disk(folder: Path, n_bytes: int, *, fix: str = LESS) -> None:
    """Stop before the disk is full: exit with code 5 and a fix where ``n_bytes`` and a gigabyte more are not free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < n_bytes + SPARE_BYTES:
        needed = (n_bytes + SPARE_BYTES) / 1e9
        print(f"error: {folder} has {free / 1e9:.1f} GB free, {needed:.1f} GB are needed", file=sys.stderr)
        print(f"Fix: {fix}", file=sys.stderr)
        raise SystemExit(5)


@contextmanager
def working_folder(parent: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A new folder that is removed at the end: also after an error, Ctrl-C or a polite kill. Its parent may be new."""
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _exit)
    folder = Path(tempfile.mkdtemp(prefix="streamtrain-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def plain_errors(*, fix: str = LESS) -> Iterator[None]:
    """End with a message and its exit code, not with a traceback, where a disk fills up or an argument is wrong."""
    try:
        yield
    except StreamtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {error}\nFix: {fix}", file=sys.stderr)
        raise SystemExit(5) from None


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def print_result(result: dict[str, Any], line: str) -> None:
    """Print a result: one JSON object on stdout, a line for people on stderr."""
    print(json.dumps(result), flush=True)
    print(line, file=sys.stderr, flush=True)


def drop_caches(paths: Iterable[Path]) -> str:
    """Take files out of the page cache, and say how.

    Parameters
    ----------
    paths : iterable of Path
        Files, and folders for all files in them.

    Returns
    -------
    {"drop_caches", "posix_fadvise", "not dropped"}
        ``drop_caches`` empties the kernel's whole cache, and only root may; ``posix_fadvise`` asks for these files.
    """
    if hasattr(os, "sync"):
        os.sync()
    try:
        _DROP_CACHES.write_text("1")
        return "drop_caches"
    except OSError:
        pass
    if not hasattr(os, "posix_fadvise"):
        return "not dropped"
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                _forget(file)
    return "posix_fadvise"


def _forget(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def timed(act: Callable[..., object], *arguments: Any) -> float:
    """The seconds an act takes."""
    started = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - started


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the pairs' ratios: what the machine does to both of a pair cancels."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpu_name() -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of what every benchmark uses, and of more packages by name."""
    names = ("streamtrain", "numpy", "zarr", "numcodecs", *packages)
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
