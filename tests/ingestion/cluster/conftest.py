"""Clusters for the tests of this folder: two processes that several tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

X = np.random.default_rng(0).integers(0, 50, (4000, 24), np.uint8)
Y = np.repeat(np.arange(10), 400)
SIZES: dict[str, Any] = {"block": "1KB", "shard": "8KB", "progress": False}
SILENT = logging.CRITICAL + 1


def local_cluster(**how: Any) -> LocalCluster:
    """Two processes of this machine, which say nothing."""
    ports = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    given = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": 0, **how}
    return LocalCluster(dashboard_address=None, scheduler_kwargs=ports, host="127.0.0.1", silence_logs=SILENT, **given)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A client of two processes."""
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "10s"}),
        local_cluster() as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same rows in two files."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    return tmp_path
