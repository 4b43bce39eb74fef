"""Rows to ingest, and an ingest that is interrupted: for the tests of what becomes of a dataset afterwards."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamtrain.errors import ResourceError
from streamtrain.ingestion.request import IngestRequest
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.ingestion.write_dataset import run_ingest
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls

X = np.random.default_rng(0).integers(0, 50, (2000, 24), np.uint8)
F = np.random.default_rng(1).normal(size=(2000, 5)).astype(np.float32)
Y = np.repeat(np.arange(10), 200)
SIZES: dict[str, Any] = {"block": "1KB", "shard": "4KB", "codec": "lz4", "progress": False}


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def identities(path: Path, field: str) -> dict[str, tuple[int, int]]:
    """Which file each shard of a field is, and since when."""
    files = sorted((path / field / "c").rglob("0")) if field == "x" else sorted((path / field / "c").iterdir())
    return {str(p.relative_to(path)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files if p.is_file()}


class Full(Syscalls):
    """A disk that takes so many files and is full then."""

    def __init__(self, n_files: int) -> None:
        self.n_left = n_files

    def open(self, path: Path) -> int:
        self.n_left -= 1
        if self.n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().open(path)


def interrupt(source: object, path: Path, n_files: int, *, labels: object = None, **given: Any) -> None:
    """Ingest with a disk that becomes full."""
    request = IngestRequest(
        memory=10**8, block_bytes=1000, shard_bytes=4000, codec="lz4", n_workers=2, progress=False,
        options=SourceOptions(),
    )  # fmt: skip
    with pytest.raises(
        ResourceError, match=r"free some space, then the same ingest with resume=True: \d+ shards are done"
    ):
        run_ingest(open_source(source, labels=labels), path, request, files=Files(system=Full(n_files)), **given)


def write_files(folder: Path) -> Path:
    """Write the same rows in every kind of file."""
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    np.savez_compressed(folder / "d.npz", x=X, y=Y)
    names = [f"f{number}" for number in range(24)]
    rows = [",".join([*names, "label"])] + [",".join(map(str, [*row, label])) for row, label in zip(X, Y, strict=True)]
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    return folder
