"""Processes that are the ranks of one training, on gloo over loopback, each ended by its own number."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOR_ALL = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}


def free_port() -> int:
    """Find a port of loopback that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def started(words: Sequence[str], world_size: int, folder: Path, **more: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a command as every rank, each told which it is as a launcher tells it; none is left after the block."""
    running: list[subprocess.Popen[str]] = []
    told = {**FOR_ALL, "WORLD_SIZE": str(world_size), "MASTER_PORT": str(free_port()), **more}
    try:
        for rank in range(world_size):
            environment = {**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            running.append(subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, text=True, **kept))
        yield running
    finally:
        for each in running:
            if each.poll() is None:
                each.kill()
            each.communicate()


def ended(running: Sequence[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str, str]]:
    """Wait for all; return the exit code, stdout and stderr of each rank."""
    written = [each.communicate(timeout=seconds) for each in running]
    return [(each.returncode, *texts) for each, texts in zip(running, written, strict=True)]
