#!/usr/bin/env python3
"""An ingest on a cluster of two processes writes what threads write, whatever happens to its workers.

Same id as threads from npy, raw binary, Parquet and a memmap with each codec; a worker killed inside each of 16 shards,
once before and once after its files have their names; all workers killed, then a resumed ingest; its seconds ÷ those of
threads; the peak of a worker above an idle one ÷ its memory. Prints a table on stderr and one JSON line per result on
stdout; ends with 1 if an id differs, a file is left over, or a worker takes more than its memory.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import psutil

import streamtrain as st
from scripts.faults.dying_workers import MOMENTS, DyingWorkers
from scripts.runner import Result, median_ratio, new_parser, parse_sampled, require_disk, rounds, run
from streamtrain.ingestion.cluster import cluster_shards
from streamtrain.store.writing.staging import temporaries
from streamtrain.system.units import parse_bytes

ROW_BYTES: Final = 3072
N_SHARDS: Final = 16
SOURCES: Final = ("npy", "raw", "parquet", "memmap")
SILENT: Final = logging.CRITICAL + 1


def main() -> None:
    """Prove it, print each result, and end with 1 where something is wrong."""
    parser = new_parser(__doc__, size="1GB", memory="256MB", repeats=3, codecs=["none", "lz4", "zstd"], folder=None)
    results = run(
        parse_sampled(parser, "shard in which workers die"), measure, describe, packages=("dask", "distributed")
    )
    raise SystemExit(any(result["wrong"] for result in results))


def describe(result: Result) -> str:
    """One line for people."""
    return f"{result['case']:<26} {result['codec']:<5} {result['text']}{': WRONG' * bool(result['wrong'])}"


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Make the data, and try all of it."""
    n_bytes = parse_bytes(arguments.size, name="size")
    require_disk(folder, 5 * n_bytes)
    sources = make(folder, n_bytes // ROW_BYTES)
    given: dict[str, Any] = {"memory": arguments.memory, "shard": -(-n_bytes // N_SHARDS), "progress": False}
    with workers() as client:
        for codec in arguments.codecs:
            how = {**given, "codec": codec}
            for name in SOURCES:
                yield same_id(folder, client, name, sources[name], how)
            yield seconds(folder, client, sources["npy"], how, arguments.repeats)
            yield memory(folder, client, sources["npy"], how)
    how = {**given, "codec": "lz4"}
    yield killed(folder, sources["npy"], how, range(arguments.first, N_SHARDS, arguments.every))
    yield all_killed(folder, sources["npy"], how)


def make(folder: Path, n_rows: int) -> dict[str, dict[str, Any]]:
    """The same rows in each kind of source: bytes as of images, which compress a little."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (n_rows, ROW_BYTES))
    for start in range(0, n_rows, 4096):
        part = rows[start : start + 4096]
        part[...] = rng.integers(0, 64, part.shape, np.uint8)
    rows.flush()
    rows.tofile(folder / "x.bin")
    # A table of as many bytes, in fewer columns.
    columns = {f"c{number}": rows[:, 8 * number : 8 * number + 8].copy().view("f8")[:, 0] for number in range(16)}
    schema = pa.schema([(name, pa.float64()) for name in columns])
    with pq.ParquetWriter(folder / "x.parquet", schema) as out:
        for _ in range(ROW_BYTES // 128):
            out.write_table(
                pa.table({name: np.abs(values.view("i8") % 1000).astype("f8") for name, values in columns.items()})
            )
    return {
        "npy": {"source": folder / "x.npy"},
        "raw": {"source": folder / "x.bin", "dtype": "uint8", "shape": (ROW_BYTES,)},
        "parquet": {"source": folder / "x.parquet"},
        "memmap": {"source": np.load(folder / "x.npy", mmap_mode="r")},
    }


@contextmanager
def workers(*, failures: int = 3) -> Iterator[Any]:
    """A client of two processes with a thread each."""
    from distributed import Client, LocalCluster

    ports = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, host="127.0.0.1", silence_logs=SILENT,
            dashboard_address=None, scheduler_kwargs=ports,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        cluster.scheduler.allowed_failures = failures
        yield client


def ingested(folder: Path, name: str, source: dict[str, Any], how: dict[str, Any], **more: Any) -> str:
    """Ingest, and return the id."""
    return st.ingest(dest=folder / name, **source, **how, **more).id


def result_of(case: str, codec: str, text: str, wrong: bool, **figures: Any) -> Result:
    """One result."""
    return {"bench": "cluster", "case": case, "codec": codec, "text": text, "wrong": wrong, **figures}


def same_id(folder: Path, client: Any, name: str, source: dict[str, Any], how: dict[str, Any]) -> Result:
    """Compare the ids of threads and of workers."""
    alone = ingested(folder, "alone", source, how, overwrite=True, n_workers=2)
    shared = ingested(folder, "shared", source, how, overwrite=True, scheduler=client)
    left = leftovers(folder)
    text = f"same id {alone == shared}, {left} files left over"
    return result_of(f"same id: {name}", how["codec"], text, alone != shared or left > 0, left=left)


def leftovers(folder: Path) -> int:
    """Count what killed or replaced writers left."""
    hidden = [path for path in folder.iterdir() if path.name.startswith(".") and not path.name.endswith(".lock")]
    return len(list(temporaries(folder))) + len(hidden)


def seconds(folder: Path, client: Any, source: dict[str, Any], how: dict[str, Any], repeats: int) -> Result:
    """Compare how long threads and workers take, turn by turn."""
    ways: dict[str, dict[str, Any]] = {"threads": {"n_workers": 2}, "workers": {"scheduler": client}}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for counts, turns in rounds(list(ways), repeats):
        for way in turns:
            shutil.rmtree(folder / way, ignore_errors=True)
            os.sync()
            started = time.perf_counter()
            ingested(folder, way, source, how, **ways[way])
            if counts:
                taken[way].append(time.perf_counter() - started)
    for way in ways:
        shutil.rmtree(folder / way)
    ratio = median_ratio(taken["workers"], taken["threads"])
    text = f"{min(taken['workers']):.2f} s ÷ {min(taken['threads']):.2f} s of threads: {ratio}"
    return result_of("seconds ÷ threads", how["codec"], text, False, ratio=ratio, seconds=taken)


def memory(folder: Path, client: Any, source: dict[str, Any], how: dict[str, Any]) -> Result:
    """Measure the anonymous memory of each worker in the middle of an ingest, above what it has before."""
    budget = parse_bytes(how["memory"], name="memory")
    client.restart()
    client.run(st_loaded)
    client.run(watch, True)
    ingested(folder, "shared", source, how, overwrite=True, scheduler=client)
    peaks = client.run(watch, False).values()
    ratio = round(max(peaks) / budget, 3)
    text = f"{max(peaks) / 1e6:.0f} MB above an idle worker: {ratio} of the memory"
    return result_of("peak of a worker ÷ memory", how["codec"], text, ratio > 1, ratio=ratio)


def st_loaded() -> None:
    """Have a worker import what its first task would."""
    import streamtrain.ingestion.cluster.shard_task  # noqa: F401


def watch(begins: bool, dask_worker: Any = None) -> int:
    """Begin to measure a worker's memory, or end, and return the peak above the beginning."""
    from streamtrain.system.memory import MemoryMeter

    if begins:
        dask_worker.meter = MemoryMeter().__enter__()
        return 0
    meter = dask_worker.meter
    meter.__exit__(None, None, None)
    return int(meter.peak_bytes)


def killed(folder: Path, source: dict[str, Any], how: dict[str, Any], shards: Sequence[int]) -> Result:
    """Kill a worker inside each of some shards, before and after its file has its name."""
    alone = ingested(folder, "alone", source, how, overwrite=True)
    deaths = [(shard, moment) for shard in shards for moment in MOMENTS]
    done = folder / "deaths"
    done.mkdir()
    # On a busy machine distributed may start no worker in place of one: then others go on.
    cluster_shards._ALONE_SECONDS = 10.0  # type: ignore[misc]
    shared = None
    for _ in deaths:
        # Shards that are given to the same worker die with it.
        with workers(failures=len(deaths)) as client, suppress(st.StreamtrainError):
            client.register_plugin(DyingWorkers(done, deaths, ("x",)))
            shared = ingested(folder, "often", source, how, resume=True, scheduler=client)
            break
    n_deaths = len(list(done.iterdir()))
    shutil.rmtree(done)
    left = leftovers(folder)
    text = f"{n_deaths} workers killed, same id {alone == shared}, {left} files left over"
    wrong = alone != shared or left > 0 or n_deaths < len(deaths)
    return result_of("killed inside a shard", how["codec"], text, wrong, deaths=n_deaths, left=left)


def all_killed(folder: Path, source: dict[str, Any], how: dict[str, Any]) -> Result:
    """Kill all workers again and again until the ingest ends, then resume it."""
    alone = ingested(folder, "alone", source, how, overwrite=True)
    done = folder / "deaths"
    done.mkdir()
    ended = ""
    with workers(failures=0) as client:
        client.register_plugin(DyingWorkers(done, [(5, "before")], ("x",)))
        try:
            ingested(folder, "killed", source, how, scheduler=client)
        except st.StreamtrainError as error:
            ended = f"{type(error).__name__} {error.exit_code}"
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
    with workers() as client:
        shared = ingested(folder, "killed", source, how, scheduler=client, resume=True)
    shutil.rmtree(done)
    left = leftovers(folder)
    text = f"{ended}, resumed: same id {alone == shared}, {left} files left over"
    return result_of(
        "all killed, then resumed", how["codec"], text, alone != shared or left > 0 or not ended, left=left
    )


if __name__ == "__main__":
    main()
