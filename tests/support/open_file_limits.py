"""Limits of open files, as far as this process has them open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing tells what is open")


def n_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def at_most(n_files: int) -> Iterator[None]:
    """Allow so many files more than are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open() + n_files, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def nothing_left() -> Iterator[None]:
    """Open files until no more may be."""
    held: list[int] = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for fd in held:
            os.close(fd)
