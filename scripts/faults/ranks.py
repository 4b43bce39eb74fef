#!/usr/bin/env python3
"""Two ranks of a training, of which one is stopped, runs out of disk or memory, or has another version.

A case is right if both end with the exit code of its row, in time, and the one that is left says why. Full disks and
memory groups need root; without it they are left out, and said to be. Patience is a few seconds here, not minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

import streamtrain as st
from scripts.proofs.cgroup import NoGroup, memory_group
from scripts.runner import Result, new_parser, run

COMMAND = """
import os, sys, threading, time
from streamtrain.cli import main, ranks
from streamtrain.optim.ranks.heartbeat import Heartbeat
from streamtrain.training import ranks as checks
ranks._SECONDS = 15
Heartbeat.GONE_SECONDS = Heartbeat.HANGS_SECONDS = 15.0
fault = os.environ.get("FAULT")
if fault == "version":
    checks.version = lambda _: "another"
if fault == "memory":
    threading.Thread(target=lambda: (time.sleep(8), bytearray(os.urandom(1 << 20)) * 3000), daemon=True).start()
sys.exit(main.main(sys.argv[1:]))
"""
LIMIT_BYTES = 1 << 30
SECONDS = 60
TRAIN = "train d.zarr --model mlp:64 --optimizer sgd --batch-size 16 --memory 16MB --epochs 100000 --log-every 1000"


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few checkpoints, which somebody else fills."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def ranks_ended(folder: Path, out: Path, row: str) -> tuple[list[int], list[str], float]:
    """Run the two ranks, with a fault at one; return codes, texts, and the seconds from the fault on."""
    with socket.socket() as found, ExitStack() as stack:
        found.bind(("127.0.0.1", 0))
        told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}
        found.close()
        running: list[subprocess.Popen[str]] = []
        for rank in range(2):
            words = [sys.executable, "-c", COMMAND, *TRAIN.split(), "--out", str(out)]
            if row == "memory" and rank:
                group = stack.enter_context(memory_group(LIMIT_BYTES))
                words = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.path / "cgroup.procs"), *words]
            more = {"RANK": str(rank), "LOCAL_RANK": str(rank), "FAULT": row if rank else "", "OMP_NUM_THREADS": "1"}
            environment = {**os.environ, **told, **more, "PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "lo"}
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            running.append(subprocess.Popen(words, cwd=folder, env=environment, **pipes))
            stack.callback(running[-1].kill)
        began = time.monotonic()
        if row in ("stop", "disk"):
            assert running[0].stdout is not None
            # The line of the first epoch: all ranks have met.
            while (line := running[0].stdout.readline()) and line.split()[:1] != ["1"]:
                continue
            began = time.monotonic()
            if row == "stop":
                running[1].send_signal(signal.SIGSTOP)
            else:
                fill(out)
        texts = [running[0].communicate(timeout=SECONDS)[0]]
        seconds = time.monotonic() - began
        if row == "stop":
            running[1].kill()
        texts.append(running[1].communicate(timeout=SECONDS)[0])
        return [each.returncode for each in running], texts, seconds


def fill(folder: Path) -> None:
    """Leave no room on the disk of a folder."""
    with (folder.parent / "of somebody else").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


ROWS: dict[str, tuple[list[int], str]] = {
    "stop": ([7, -9], "rank 1 is gone or silent"),
    "disk": ([5, 5], "No space left"),
    "memory": ([7, -9], "rank 1 is gone or silent"),
    "version": ([2, 2], "streamtrain is"),
}
"""Row -> the exit codes of both ranks, and what the first says."""


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Try every row."""
    x = np.random.default_rng(0).normal(size=(331, 4)).astype(np.float32)
    st.ingest({"x": x, "y": (x[:, 0] > 0).astype(np.int64)}, folder / "d.zarr", block="320B")
    for row, (expected, said) in ROWS.items():
        if row in ("disk", "memory") and os.geteuid():
            yield {"row": row, "cases": 0, "skipped": "needs root"}
            continue
        for number in range(arguments.repeats):
            try:
                with full_disk(folder / f"full{number}") if row == "disk" else ExitStack() as disk:
                    place = disk if isinstance(disk, Path) else folder
                    codes, texts, seconds = ranks_ended(folder, place / f"{row}{number}", row)
            except (NoGroup, subprocess.CalledProcessError) as error:
                yield {"row": row, "cases": 0, "skipped": str(error).partition("\n")[0]}
                break
            last = next((line for line in texts[0].splitlines()[::-1] if "error: " in line), "")
            wrong = int(codes != expected or said not in texts[0])
            yield {"row": row, "cases": 1, "wrong": wrong, "codes": codes, "said": last, "seconds": round(seconds, 1)}


def describe(result: Result) -> str:
    """Write a case in one line."""
    if "skipped" in result:
        return f"{result['row']:<8} left out: {result['skipped']}"
    how = "WRONG" if result["wrong"] else "right"
    return f"{result['row']:<8} {how}  {result['codes']!s:<9} {result['seconds']:>5} s  {result['said'][:150]}"


if __name__ == "__main__":
    found = run(new_parser(__doc__, repeats=3, folder=None).parse_args(), measure, describe)
    sys.exit(any(result.get("wrong") for result in found))
