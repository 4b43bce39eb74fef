"""Connections to a cluster, or to processes started for an ingest, and what each worker does at once."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from operator import methodcaller
from typing import Any, Final

from streamtrain.errors import (
    Argument,
    BudgetError,
    Fix,
    ResourceError,
    StallError,
    StreamtrainError,
    UsageError,
    first_line,
)
from streamtrain.ingestion.cluster.portable import PROCESSES, SILENT, library, portable, quiet
from streamtrain.ingestion.request import IngestRequest, IngestSizes, run_bytes, sizes_for_request
from streamtrain.ingestion.sources.base import Source
from streamtrain.store.layout import Layout
from streamtrain.system.units import format_bytes, parse_bytes

START_SECONDS: Final = 60.0
"""How long workers may be away, or busy with what others asked for, before an ingest begins or goes on."""
AT_ONCE: Final = 2
"""Shards that a worker is given at a time."""
_CONNECT_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Workers that were counted, and what each of them does at once."""

    client: Any
    source: Source
    layout: Layout
    sizes: IngestSizes

    @property
    def workers(self) -> Sequence[str]:
        """The addresses of those that are there now."""
        return list(workers_of(self.client))


@contextmanager
def connect(scheduler: object, source: Source, layout: Layout, request: IngestRequest) -> Iterator[Cluster | None]:
    """Reach a scheduler's workers, or start some, with what each may take of memory; None where none is asked for."""
    if scheduler is None:
        yield None
        return
    sent = portable(source)
    if scheduler == PROCESSES:
        n_workers, sizes = _shared_out(layout, sent, request)
        with _processes(n_workers) as client:
            _wait_for_workers(client)
            yield Cluster(client=client, source=sent, layout=layout, sizes=sizes)
        return
    with _client_of(scheduler) as client:
        found = _wait_for_workers(client)
        _check_limits(found, request.memory)
        n_threads = min(AT_ONCE, max(facts["nthreads"] for facts in found.values()))
        sizes = _sizes(layout, sent, request, request.memory, n_threads)
        yield Cluster(client=client, source=sent, layout=layout, sizes=sizes)


def _shared_out(layout: Layout, source: Source, request: IngestRequest) -> tuple[int, IngestSizes]:
    """Find the most processes whose equal shares of the memory are enough."""
    for n_workers in range(min(request.n_workers, layout.n_shards), 1, -1):
        with suppress(BudgetError):
            return n_workers, _sizes(layout, source, request, request.memory // n_workers, 1)
    return 1, _sizes(layout, source, request, request.memory, 1)


def _sizes(layout: Layout, source: Source, request: IngestRequest, memory: int, n_threads: int) -> IngestSizes:
    """Solve what a worker does at once within its memory."""
    # The least is asked for at once where more does not fit.
    for n_workers, run in product(range(n_threads, 0, -1), (run_bytes(memory), run_bytes(0))):
        # A source that is no plain run of rows holds what it reads them from besides.
        reading = 0 if source.seekable else source.reading.working_bytes + 3 * max(run, source.chunk_bytes)
        own = replace(request, memory=max(1, memory - n_workers * reading), n_workers=n_workers)
        try:
            return replace(sizes_for_request(layout, source, None, own), run_bytes=run)
        except BudgetError as error:
            refusal = error
    least = refusal.fix.argument("memory") if isinstance(refusal.fix, Fix) else None
    assert least is not None, "a refused budget names the smallest"
    needed = parse_bytes(str(least.value), name="memory") + reading
    what = f"memory is {format_bytes(memory)} for a worker, and the smallest that works is {format_bytes(needed)}"
    raise BudgetError(what, why=refusal.why, fix=Fix(Argument("memory", n_bytes=needed)))


def _check_limits(found: Mapping[str, Any], memory: int) -> None:
    for address, facts in found.items():
        if 0 < facts["memory_limit"] < memory:
            limit = facts["memory_limit"]
            what = f"memory is {format_bytes(memory)} for a worker, and this one is limited to {format_bytes(limit)}"
            raise BudgetError(what, where=f"worker {address}", fix=Fix(Argument("memory", n_bytes=limit)))


@contextmanager
def _client_of(scheduler: object) -> Iterator[Any]:
    client_type = library().Client
    if isinstance(scheduler, client_type):
        yield scheduler
        return
    with quiet(), _loop() as loop:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of versions that differ; those that matter are compared here
                client = client_type(scheduler, loop=loop, set_as_default=False, timeout=_CONNECT_SECONDS)
        except OSError as error:
            loop.add_callback(loop.stop)  # which a client that was not made would hold on to
            raise _unreachable(scheduler, error) from error
        with client:
            yield client


@contextmanager
def _loop() -> Iterator[Any]:
    """Run the loop of a client, whose own would go on in its thread where no connection is made."""
    from distributed.utils import LoopRunner

    runner = LoopRunner()
    runner.start()
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextmanager
def _processes(n_workers: int) -> Iterator[Any]:
    """Start workers on this machine, which are gone with the block; nothing listens beyond it."""
    distributed = library()
    how: dict[str, Any] = {"threads_per_worker": 1, "processes": True, "memory_limit": 0, "host": "127.0.0.1"}
    # Without an address of its own the scheduler warns where another has the usual port.
    ports = {"dashboard_address": None, "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    with quiet():
        try:
            cluster = distributed.LocalCluster(n_workers=n_workers, silence_logs=SILENT, **ports, **how)
        except RuntimeError as error:
            what = "the processes of the workers did not start"
            why = "Each of them first runs the script that starts them, as far as it does not say otherwise"
            raise UsageError(what, why=why, fix='put what is to run once under if __name__ == "__main__":') from error
        with cluster, distributed.Client(cluster, set_as_default=False) as client:
            yield client


def _unreachable(scheduler: object, error: BaseException) -> StreamtrainError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return ResourceError(f"no such host: {first_line(cause)}", where=str(scheduler), fix="check the address")
        cause = cause.__cause__ or cause.__context__
    what = f"no scheduler answered within {_CONNECT_SECONDS:.0f} s"
    return StallError(what, where=str(scheduler), fix="start one there (dask scheduler), or check the address")


def workers_of(client: Any) -> dict[str, Any]:
    """Return what a scheduler says of the workers that are there, by their addresses."""
    return dict(client.scheduler_info()["workers"])


def submit(client: Any, task: Callable[[], Any], **how: Any) -> Any:
    """Hand a task out as bytes, in terms of libraries that a scheduler has: it need not know of ours."""
    from distributed.protocol.pickle import dumps, loads
    from toolz import pipe

    return client.submit(pipe, dumps(task), loads, methodcaller("__call__"), pure=False, **how)


def wait_for(client: Any, futures: Iterable[Any], seconds: float, *, first: bool = False) -> list[Any]:
    """Wait for all tasks, or for the first; raise `TimeoutError` where that takes too long."""
    from distributed import wait

    with client.as_current():
        how = "FIRST_COMPLETED" if first else "ALL_COMPLETED"
        return list(wait(list(futures), timeout=seconds, return_when=how).done)


def _wait_for_workers(client: Any) -> dict[str, Any]:
    with suppress(TimeoutError):
        client.wait_for_workers(1, timeout=START_SECONDS)
    found = workers_of(client)
    if not found:
        raise no_worker(client, START_SECONDS)
    return found


def no_worker(client: Any, seconds: float) -> StallError:
    """Make the error for a scheduler without workers."""
    where = client.scheduler.address if client.scheduler else None
    return StallError(f"no worker came within {seconds:.0f} s", where=where, fix="start some: dask worker ADDRESS")
