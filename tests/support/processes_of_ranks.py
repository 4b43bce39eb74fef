"""Processes that are the ranks of one training, on gloo over loopback, each ended by its own number."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from forked_python import Forked

FOR_ALL = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}


def free_port() -> int:
    """Find a port of loopback that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def started(words: Sequence[str], world_size: int, folder: Path, **more: str) -> Iterator[list[Forked]]:
    """Start a command as every rank, each told which it is as a launcher tells it; none is left after the block."""
    running: list[Forked] = []
    told = {**FOR_ALL, "WORLD_SIZE": str(world_size), "MASTER_PORT": str(free_port()), **more}
    with ExitStack() as stack:
        for rank in range(world_size):
            environment = {**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(stack.enter_context(Forked(words, cwd=folder, env=environment)))
            stack.callback(running[-1].kill)
        yield running


def ended(running: Sequence[Forked], seconds: float = 120) -> list[tuple[int, str, str]]:
    """Wait for all; return the exit code, stdout and stderr of each rank."""
    written = [each.communicate(timeout=seconds) for each in running]
    return [(each.wait(), *texts) for each, texts in zip(running, written, strict=True)]
