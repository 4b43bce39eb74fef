"""Workers that end, and a scheduler that is lost, while an ingest is under way."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ingest_cases import tree

import streamtrain as st
from scripts.faults.dying_workers import DyingWorkers
from streamtrain.cli.main import main
from streamtrain.errors import InputError, ResourceError, StallError
from streamtrain.ingestion.cluster import cluster_shards
from streamtrain.store.writing.staging import temporaries
from tests.ingestion.cluster.conftest import SIZES, X, Y, local_cluster


def ingested(files: Path, name: str, scheduler: object = None, **given: Any) -> st.Dataset:
    return st.ingest(files / "x.npy", files / name, labels=files / "y.npy", scheduler=scheduler, **SIZES, **given)


def test_killed_inside_a_shard_before_and_after_its_files_have_their_names(files: Path) -> None:
    from distributed import Client

    alone = ingested(files, "alone")
    (files / "deaths").mkdir()
    deaths = DyingWorkers(files / "deaths", [(1, "before"), (4, "after")])
    with local_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        client.register_plugin(deaths)
        shared = ingested(files, "shared", client)
        assert sorted(path.name for path in (files / "deaths").iterdir()) == ["1-before", "4-after"]
        assert shared.id == alone.id
        assert tree(files / "shared") == tree(files / "alone")
        assert not list(temporaries(files))
        # A shard that ends as many as may be ends the ingest.
        cluster.scheduler.allowed_failures = 0
        client.register_plugin(DyingWorkers(files / "deaths", [(6, "before")]), name="again")
        with pytest.raises(ResourceError, match=r"^shard \d, worker tcp://127.0.0.1:\d+: 1 worker died") as caught:
            ingested(files, "d.zarr", client)
        assert re.search(r"then the same ingest with resume=True: \d shards are done", str(caught.value.fix))
    assert ingested(files, "d.zarr", resume=True).id == alone.id
    assert tree(files / "d.zarr") == tree(files / "alone")


def test_errors_of_the_source_and_of_the_disk(client: Any, files: Path) -> None:
    x = X.astype("f4")
    x[1234, 5] = np.nan
    np.save(files / "x.npy", x)
    with pytest.raises(InputError, match=r"x\.npy row 1234"):
        ingested(files, "d.zarr", client)
    with pytest.raises(InputError, match="label 9 is not one of the 9 classes"):
        ingested(files, "d.zarr", client, classes=9)
    assert not (files / "d.zarr").exists()
    np.save(files / "x.npy", X)
    client.run(_fill_disk, True)
    with pytest.raises(ResourceError, match=r"^shard \d+, worker tcp:\S+: failed 3 times: .*No space left") as caught:
        ingested(files, "d.zarr", client)
    client.run(_fill_disk, False)
    assert caught.value.exit_code == 5
    assert not (files / "d.zarr").exists()


def _fill_disk(is_full: bool) -> None:
    import errno
    import os

    from streamtrain.system.syscalls import Syscalls

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = getattr(Syscalls, "kept_open", Syscalls.open)
    setattr(Syscalls, "kept_open", kept)  # noqa: B010
    setattr(Syscalls, "open", full if is_full else kept)  # noqa: B010


@contextmanager
def process(*words: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A part of a cluster in a process of its own, which ends with the block, its children too."""
    child = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield child
    finally:
        for each in psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []:
            each.kill()
        child.kill()
        child.wait()


def when_begun(folder: Path, act: Callable[[], None]) -> threading.Thread:
    """Act once a few shards are there."""

    def wait() -> None:
        ended = threading.Event()
        for _ in range(3000):
            if len(list(folder.glob("y/c/*"))) > 2:
                break
            ended.wait(0.01)
        act()

    thread = threading.Thread(target=wait, name="when-begun")
    thread.start()
    return thread


def test_workers_and_a_scheduler_of_their_own(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scheduler's address on the command line; then all workers end, others come; then it ends itself."""
    np.save(files / "x.npy", np.tile(X, (20, 1)))
    np.save(files / "y.npy", np.tile(Y, 20))
    alone = ingested(files, "alone")
    monkeypatch.setattr(cluster_shards, "_ALONE_SECONDS", 0.1)
    monkeypatch.setattr(cluster_shards, "_LOOK_SECONDS", 0.2)
    monkeypatch.chdir(files)
    (files / "elsewhere").mkdir()
    # Python looks where it begins first: nothing of ours runs on the scheduler.
    (files / "without").mkdir()
    (files / "without" / "streamtrain.py").write_text("raise ImportError")
    port = itertools.count(29_000 + os.getpid() % 1000)
    address = f"tcp://127.0.0.1:{next(port)}"
    no_nanny = ("--no-nanny", "--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1")
    worker = ("distributed.cli.dask_worker", address, *no_nanny)
    words = ["ingest", "x.npy", "d.zarr", "--labels", "y.npy", "--block", "1KB", "--shard", "8KB", "--json"]
    words += ["--scheduler", address]
    with process(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2],
        "--no-dashboard", cwd=files / "without",
    ) as scheduler:  # fmt: skip
        with process(*worker, cwd=files / "elsewhere") as first:
            thread = when_begun(files / "d.zarr", first.kill)
            code = main(words)
            thread.join()
        assert code == StallError.exit_code, capsys.readouterr().err
        assert "no worker came" in capsys.readouterr().err
        with process(*worker, cwd=files / "elsewhere"):
            thread = when_begun(files / "d.zarr", lambda: None)
            assert main([*words, "--resume"]) == 0, capsys.readouterr().err
            thread.join()
            assert tree(Path("d.zarr")) != {}
            assert st.open("d.zarr").id == alone.id
            thread = when_begun(files / "e.zarr", scheduler.kill)
            words[2] = "e.zarr"
            assert main(words) == StallError.exit_code
            thread.join()
            said = capsys.readouterr().err
            assert "the scheduler is gone" in said
            assert "distributed" not in said
    assert main(["ingest", "x.npy", "e.zarr", "--labels", "y.npy", "--block", "1KB", "--shard", "8KB", "--resume"]) == 0
    assert st.open("e.zarr").id == alone.id


def new_children(before: set[psutil.Process]) -> list[str]:
    """Processes begun since; Python's own tracker of resources stays."""
    found = set(psutil.Process().children(recursive=True)) - before
    lines = [" ".join(child.cmdline()) for child in found]
    return [line for line in lines if "resource_tracker" not in line]


def test_processes_are_gone_in_every_case(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.save(files / "x.npy", np.tile(X, (20, 1)))
    np.save(files / "y.npy", np.tile(Y, 20))
    before = set(psutil.Process().children(recursive=True))
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    thread = when_begun(files / "d.zarr", lambda: signal.pthread_kill(main_thread, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ingested(files, "d.zarr", "processes", n_workers=2)
    thread.join()
    assert new_children(before) == []
    words = ["ingest", str(files / "x.npy"), str(files / "d.zarr"), "--labels", str(files / "y.npy"), "--quiet"]
    words += ["--block", "1KB", "--shard", "8KB", "--scheduler", "processes", "--resume"]
    assert main(words) == 0
    assert "distributed" not in capfd.readouterr().err
    assert st.open(files / "d.zarr").id == ingested(files, "alone").id
    assert new_children(before) == []
