"""Refusals of an ingest on a cluster before its first shard is made; nothing of it is left then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_cases import tree

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.errors import BudgetError, ResourceError, StallError, StreamtrainError, UsageError
from streamtrain.ingestion.cluster import connection, shard_task
from streamtrain.ingestion.request import parse_request
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.store.layout import Field, Layout
from tests.ingestion.cluster.conftest import SIZES, X


def refused(files: Path, kind: type[StreamtrainError], source: Any = None, **given: Any) -> StreamtrainError:
    """Ingest, and return the error; nothing is left."""
    before = set(files.iterdir())
    with pytest.raises(kind) as caught:
        st.ingest(files / "x.npy" if source is None else source, files / "d.zarr", **SIZES, **given)
    assert {path for path in files.iterdir() if not path.name.endswith(".lock")} == before
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("scheduler", ["host", "host:8786", "tcp://host", "process", "", 3, object()])
def test_what_is_no_scheduler(scheduler: object, files: Path) -> None:
    error = refused(files, UsageError, scheduler=scheduler)
    assert "scheduler='processes'" in str(error.fix)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ({"x": X}, "array 'x' lies in the memory"),
        (lambda files: np.load(files / "x.npy", mmap_mode="r")[::2], "lies in the memory"),
        (lambda files: np.load(files / "x.npy", mmap_mode="c"), "lies in the memory"),
        (lambda files: np.load(files / "x.npy", mmap_mode="r").T, "lies in the memory"),
        (lambda files: iter([{"x": X}]), "an iterator gives its rows once"),
        (lambda files: st.ingest(files / "x.npy", files / "there", **SIZES), "is read in order only"),
    ],
)
def test_what_workers_cannot_read(source: Any, what: str, files: Path) -> None:
    error = refused(files, UsageError, source(files) if callable(source) else source, scheduler="processes")
    assert what in error.what


def test_what_one_machine_does(files: Path) -> None:
    (files / "t.csv").write_text("a,b\n1,2\n3,4\n")
    for given in ({"split": {"val": 0.1}}, {"auto": True}, {"categorical": ["a"]}, {}):
        error = refused(files, UsageError, files / "t.csv", scheduler="processes", **given)
        assert str(error.fix).startswith("ingest on one machine"), given


def test_workers_that_see_something_else(client: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = shard_task.sight_of

    def changed(**facts: Any) -> Any:
        from dataclasses import replace

        monkeypatch.setattr(
            "streamtrain.ingestion.cluster.cluster_shards.sight_of", lambda *given: replace(look(*given), **facts)
        )
        return refused(files, UsageError, scheduler=client)

    path = str(files / "x.npy")
    error = changed(versions=(("streamtrain", "0.0.1"),))
    assert error.what.startswith("this worker has streamtrain 0.1.0, and the client 0.0.1")
    assert str(error.where).startswith("worker tcp://127.0.0.1:")
    assert f"does not see {files}/gone" in changed(files=((f"{files}/gone", (), 1, 2, 3),)).what
    size, mtime = (files / "x.npy").stat().st_size, (files / "x.npy").stat().st_mtime_ns
    for facts in ((size + 1, mtime, 0), (size, mtime + 1, 0), (size, mtime, 0)):
        assert f"sees another file at {path}" in changed(files=((path, (), *facts),)).what
    assert "cannot write" in changed(journal=(str(files / "a" / "b" / "gone"), 8, 1)).what
    assert "another folder" in changed(journal=(path, 8, 1)).what


def test_a_resumed_ingest_keeps_its_shards_where_a_worker_is_refused(
    client: Any, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest_cases import interrupt

    interrupt(str(files / "x.npy"), files / "d.zarr", 5)
    there = tree(files / "d.zarr")
    monkeypatch.setattr(shard_task, "version_of", lambda name: "0.0.1")
    with pytest.raises(UsageError, match="and the client"):
        st.ingest(
            files / "x.npy", files / "d.zarr", block=1000, shard=4000, codec="lz4", resume=True, progress=False,
            scheduler=client,
        )  # fmt: skip
    assert tree(files / "d.zarr") == there


def test_memory(client: Any, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"nthreads": 1, "memory_limit": 9_000_000}
    monkeypatch.setattr(connection, "workers_of", lambda client: {"tcp://there:1": facts})
    error = refused(files, BudgetError, scheduler=client, memory="200MB")
    assert (error.where, str(error.fix)) == ("worker tcp://there:1", "memory='9000000B'")
    refused(files, BudgetError, scheduler=client, memory="1MB")


def test_the_memory_of_a_table_s_row_groups_is_counted(files: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({f"c{n}": np.zeros(9) for n in range(9)}), files / "t.parquet")
    source = open_source(files / "t.parquet")
    layout = Layout(fields=(Field(name="x", dtype=np.dtype("f8"), shape=(9,)),), n_samples=9, block_rows=3,
                    shard_blocks=3, codec="none")  # fmt: skip
    with pytest.raises(BudgetError) as caught:
        connection._sizes(layout, source, parse_request(memory="4MB"), 4_000_000, 2)
    named = caught.value.fix.argument("memory").n_bytes  # type: ignore[union-attr]
    assert named
    assert named > source.reading.working_bytes
    assert connection._sizes(layout, source, parse_request(), named, 2).n_workers == 1


def test_no_scheduler_and_no_host(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 0.5)
    assert refused(files, StallError, scheduler="tcp://127.0.0.1:1").exit_code == 7
    error = refused(files, StreamtrainError, scheduler="tcp://no-such-host.invalid:8786")
    assert isinstance(error, ResourceError | StallError)


def test_an_absent_library_is_one_line(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["ingest", str(files / "x.npy"), str(files / "d"), "--scheduler", "processes"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'streamtrain[cluster]'" in said


def test_a_script_that_starts_processes_as_it_is_read(files: Path) -> None:
    script = files / "s.py"
    script.write_text("import streamtrain as st\nst.ingest('x.npy', 'd', scheduler='processes', n_workers=1)")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=dict(os.environ), cwd=files)
    assert run.returncode == 1
    assert 'if __name__ == "__main__":' in run.stderr.splitlines()[-1]
