"""The common part of the scripts: options, a folder for data, turns and ratios, results as a table and JSON lines."""

from __future__ import annotations

import argparse
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

Result = dict[str, Any]
"""One figure and what it was measured with: a JSON line."""

CODECS: Final = ("auto", "none", "lz4", "zstd")
OPTIONS: Final = {
    "batch_size": "samples of a batch",
    "codec": "codec of the data",
    "codecs": "codecs of the data",
    "folder": "where the data is made and removed again",
    "memory": "the memory budget",
    "repeats": "rounds that count",
    "row_bytes": "bytes of a row",
    "samples": "samples of the data",
    "seed": "of what is drawn",
    "size": "decoded bytes of the data",
    "threads": "threads of PyTorch's computing",
}
"""Options that many scripts have, and what they mean in all of them."""

SPARE_BYTES: Final = 10**9
"""Space that a script leaves free on the disk."""

LESS: Final = "a smaller --size, or another --folder"
"""Remedy where the disk is full; scripts whose options have other names say so."""

_UNSET: Final = {"folder": "the system's temp folder", "threads": "one per core"}
SHARED_MEMORY: Final = Path("/dev/shm")
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
_CPU_INFO: Final = Path("/proc/cpuinfo")


def tallied(wrongs: Sequence[str]) -> Result:
    """Count cases, of which each says what is wrong with it, or nothing."""
    first_wrong = next(filter(None, wrongs), None)
    return {"cases": len(wrongs), "wrong": sum(map(bool, wrongs)), "first_wrong": first_wrong}


def new_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Make a parser that knows these of the common options; a list as the default stands for one value or more.

    Examples
    --------
    >>> new_parser("...", batch_size=256, codecs=["none"]).parse_args(["--codecs", "lz4", "zstd"])
    Namespace(batch_size=256, codecs=['lz4', 'zstd'])
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        values = default if isinstance(default, list) else [default]
        shown = _UNSET[name] if default is None else " ".join(map(str, values))
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=default,
            nargs="+" if values is default else None,
            type=int if isinstance(values[0], int) or name == "threads" else str,
            choices=CODECS if name.startswith("codec") else None,
            help=f"{OPTIONS[name]} (default: {shown})",
        )
    return parser


def parse_sampled(parser: argparse.ArgumentParser, of: str) -> argparse.Namespace:
    """Parse the arguments of a script that may try one of so many cases, from a first one on: ``every``, ``first``."""
    parser.add_argument("--every", type=int, default=1, help=f"try one {of} of so many")
    parser.add_argument("--first", type=int, default=0, help=f"of each run of so many {of}s, which: 0, 1, ...")
    arguments = parser.parse_args()
    if arguments.every < 1 or not 0 <= arguments.first < arguments.every:
        parser.error("--every is at least 1, and --first less than that")
    return arguments


def run(
    arguments: argparse.Namespace,
    measure: Callable[[Path, argparse.Namespace], Iterable[Result]],
    describe: Callable[[Result], str],
    *,
    packages: Sequence[str] = ("torch",),
    fix: str = LESS,
) -> list[Result]:
    """Measure in a folder that goes again, and print each result as it comes.

    Parameters
    ----------
    arguments : argparse.Namespace
        ``folder`` is where the new one is made, if it is there.
    measure : callable
        Folder and arguments -> results.
    describe : callable
        A result -> its line for people.
    packages : sequence of str
        Packages whose versions belong to the results.
    fix : str
        What helps where the disk is full.
    """
    results = []
    with plain_errors(fix=fix), working_folder(getattr(arguments, "folder", None)) as folder:
        for figures in measure(folder, arguments):
            results.append(figures | measured_on(*packages))
            print_result(results[-1], describe(results[-1]))
    return results


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
    folder = Path(tempfile.mkdtemp(prefix="streamtrain-script-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        signal.signal(signal.SIGTERM, before)


def memory_folder() -> Path | None:
    """A folder in memory, which kill -9 does not empty and whose flushes cost nothing; None where it has no room."""
    has_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * SPARE_BYTES
    return SHARED_MEMORY if has_room else None


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


def print_result(result: Result, line: str) -> None:
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


def rounds(ways: Sequence[str], repeats: int) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """Rounds in which each way has its turn, and another the first; whether a round counts: the first fills caches.

    Examples
    --------
    >>> list(rounds(["one", "other"], 2))
    [(False, ('one', 'other')), (True, ('other', 'one')), (True, ('one', 'other'))]
    """
    for number in range(repeats + 1):
        first = number % len(ways)
        yield number > 0, (*ways[first:], *ways[:first])


def timed(act: Callable[..., object], *arguments: Any) -> float:
    """The seconds an act takes."""
    started = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - started


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the pairs' ratios: what the machine does to both of a pair cancels."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


def measured_on(*packages: str) -> Result:
    """The machine, and the versions of Python, of what every script uses, and of more packages by name."""
    return {"machine": machine(), "versions": versions(*packages)}


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
