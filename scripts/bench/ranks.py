#!/usr/bin/env python3
"""Ranks that share the batches of one dataset: samples/s of 1, 2 and 4 processes, reading alone and training.

Processes of one process group (gloo) on this machine, each with one thread of PyTorch. *waits* is the share of its time
that the slowest rank waits for data, *start* the seconds from its start to its first batch, imports and group included.
On two cores, what two ranks gain is measured against one: of ranks bound to a core each that only read, ÷ one such rank
alone (bar 1.6); of a CNN, ÷ the sum of two processes that train by themselves on batches of half the size, bound alike
(bar 0.9). All take turns; a ratio is the median of the rounds' ratios.

Then what follows for more ranks and more data, computed and not run: the hours of an epoch at the rate at which one
rank reads, and seconds and memory of the tables of an epoch, by setting up one rank's own order of that many blocks.

Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

import streamtrain as st
from scripts.runner import Result, median_ratio, new_parser, require_disk, rounds, run, timed
from streamtrain.system.units import format_bytes, parse_bytes

ROOT: Final = Path(__file__).resolve().parents[2]
WORK: Final = "from scripts.bench.rank_process import work; work()"
ORDER: Final = "from scripts.bench.ranks import set_up; set_up()"
EPOCHS: Final = {"read": 4, "mlp": 2, "cnn": 1}
WAYS: Final = (*EPOCHS, "two read", "two train", "computed")
SHAPE: Final = (1, 28, 28)
BARS: Final = {"two read": 1.6, "two train": 0.9}
BLOCK_BYTES: Final = 1 << 20
BLOCK_ROWS: Final = 1000
SCALES: Final = ((10**11, 1), (10**12, 8), (10**13, 64), (10**14, 64), (10**14, 1000))
"""Bytes of the data, and ranks."""


def main() -> None:
    """Measure, and print each result."""
    run(parse_arguments(), measure, describe)


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Make the data, and measure each way."""
    n_bytes, asked = parse_bytes(arguments.size), arguments.ways
    require_disk(folder, 3 * n_bytes)
    images = write_images(folder / "images", n_bytes)
    fewer = write_images(folder / "fewer", n_bytes // 20) if {"cnn", "two train"} & {*asked} else images
    rate, cores = 0.0, sorted(os.sched_getaffinity(0))
    for way in (way for way in EPOCHS if way in asked):
        for ranks in arguments.ranks:
            result = together(way, fewer if way == "cnn" else images, ranks, arguments)
            rate = rate or result["samples_s"] / ranks * images.layout.row_bytes
            yield result
    if "two read" in asked and len(cores) > 1:
        yield two_read(images, cores, arguments)
    if "two train" in asked and len(cores) > 1:
        yield two_train(fewer, cores, arguments)
    if "computed" in asked and "read" in asked:
        yield from (at_scale(size, ranks, rate) for size, ranks in SCALES)


def write_images(folder: Path, n_bytes: int) -> st.Dataset:
    """Write gray images, bytes of which lz4 saves a quarter, sorted by class."""
    n_samples = max(1000, n_bytes // int(np.prod(SHAPE)))
    rng = np.random.default_rng(0)

    def runs() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        for start in range(0, n_samples, 10_000):
            n = min(10_000, n_samples - start)
            labels = (start + np.arange(n)) * 10 // n_samples
            yield {"x": rng.integers(0, 64, (n, *SHAPE), np.uint8), "y": labels}

    return st.ingest(runs(), folder, codec="lz4", memory="256MB", progress=False)


def together(way: str, dataset: st.Dataset, ranks: int, arguments: argparse.Namespace) -> Result:
    """Measure ranks that share the batches of a dataset."""
    found = [processes(way, dataset, ranks, arguments) for _ in range(arguments.repeats)]
    rates = [sum(each["samples"] for each in one) / max(each["seconds"] for each in one) for one in found]
    waits = [max(each["waited"] / each["seconds"] for each in one) for one in found]
    return {
        "bench": "ranks",
        "way": way,
        "ranks": ranks,
        "batch_size": arguments.batch_size,
        "memory": arguments.memory,
        "samples": len(dataset),
        "samples_s": round(statistics.median(rates)),
        "waits": round(statistics.median(waits), 4),
        "start_s": round(statistics.median(max(each["first_batch_s"] for each in one) for one in found), 2),
        "rounds": arguments.repeats,
    }


def two_read(dataset: st.Dataset, cores: Sequence[int], arguments: argparse.Namespace) -> Result:
    """Measure two ranks that only read, a core each, beside one."""
    rates: dict[str, list[float]] = {"one": [], "two": []}
    for counts, order in rounds(list(rates), arguments.repeats):
        for name in order:
            bound = cores[: 1 if name == "one" else 2]
            ended = processes("read", dataset, len(bound), arguments, cores=bound)
            rate = sum(each["samples"] for each in ended) / max(each["seconds"] for each in ended)
            rates[name] += [rate] if counts else []
    ratio = median_ratio(rates["two"], rates["one"])
    return {"bench": "ranks", "way": "two read", "ratio": ratio, "bar": BARS["two read"], "rounds": arguments.repeats}


def two_train(dataset: st.Dataset, cores: Sequence[int], arguments: argparse.Namespace) -> Result:
    """Measure two ranks that train a CNN beside two processes that do so by themselves, a core each."""
    rates: dict[str, list[float]] = {"shared": [], "alone": []}
    for counts, order in rounds(list(rates), arguments.repeats):
        for name in order:
            ended = processes("cnn", dataset, 2, arguments, cores=cores[:2], shared=name == "shared")
            if name == "shared":
                rate = sum(each["samples"] for each in ended) / max(each["seconds"] for each in ended)
            else:
                rate = sum(each["samples"] / each["seconds"] for each in ended)
            rates[name] += [rate] if counts else []
    ratio = median_ratio(rates["shared"], rates["alone"])
    return {"bench": "ranks", "way": "two train", "ratio": ratio, "bar": BARS["two train"], "rounds": arguments.repeats}


def processes(
    way: str,
    dataset: st.Dataset,
    n: int,
    arguments: argparse.Namespace,
    *,
    cores: Sequence[int] = (),
    shared: bool = True,
) -> list[dict[str, Any]]:
    """Start processes, let them begin together, and return their results."""
    with ExitStack() as stack:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        told = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        job = {
            "way": way,
            "data": str(dataset.path),
            "batch_size": arguments.batch_size if shared else arguments.batch_size // n,
            "memory": arguments.memory,
            "shared": shared and n > 1,
            "epochs": EPOCHS[way],
        }
        running = []
        for rank in range(n):
            mine = job | {"core": cores[rank] if cores else None, "launched": time.time()}
            ranked = told | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if job["shared"] else {}
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **ranked}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            words = [sys.executable, "-c", WORK, json.dumps(mine)]
            running.append(
                stack.enter_context(subprocess.Popen(words, env=environment, cwd=dataset.path.parent, **pipes))
            )
            stack.callback(running[-1].kill)
        for each in running:
            expect(each, "ready")
        for each in running:
            assert each.stdin is not None
            print("go", file=each.stdin, flush=True)
        return [json.loads(expect(each)) for each in running]


def expect(process: subprocess.Popen[str], word: str = "") -> str:
    """Read a line of a process; one that has ended is an error."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith(word or "{"):
        raise SystemExit(f"error: a rank ended with exit code {process.wait()}")
    return line


def at_scale(size: int, ranks: int, rate: float) -> Result:
    """Compute what an epoch of so many bytes takes each of so many ranks; its order is set up in a new process."""
    words = [sys.executable, "-c", ORDER, json.dumps({"n_blocks": -(-size // BLOCK_BYTES), "ranks": ranks})]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {
        "bench": "ranks",
        "way": "computed",
        "size": size,
        "ranks": ranks,
        "hours": round(size / ranks / rate / 3600, 2),
        **json.loads(done.stdout),
    }


def set_up() -> None:
    """Set up the first rank's order and list of reads of an epoch of so many blocks; print seconds and memory."""
    from streamtrain.shuffle.order import ShuffleParameters, shuffled_order
    from streamtrain.shuffle.read_list import read_list

    job = json.loads(sys.argv[1])
    groups = max(8, job["ranks"])
    lanes = groups * max(1, 1024 // groups)
    shape = ShuffleParameters(
        n_samples=job["n_blocks"] * BLOCK_ROWS, block_rows=BLOCK_ROWS, batch_size=lanes, lanes=lanes, groups=groups
    )

    def both() -> int:
        return len(read_list(shuffled_order(shape, seed=0, epoch=0, group_step=job["ranks"])))

    seconds = timed(both)
    tracemalloc.start()
    n_reads = both()
    print(
        json.dumps({"reads": n_reads, "order_s": round(seconds, 2), "order_bytes": tracemalloc.get_traced_memory()[1]})
    )


def describe(result: Result) -> str:
    """One line for people."""
    if result["way"] == "computed":
        where = f"{format_bytes(result['size'])} on {result['ranks']:,} ranks, computed"
        tables = f"{result['order_s']} s and {format_bytes(result['order_bytes'])} for the order"
        return f"{where}: {result['hours']:,} hours an epoch, {tables}"
    if "ratio" in result:
        return f"{result['way']}: {result['ratio']:.2f} (bar {result['bar']})"
    return (
        f"{result['way']:<5} {result['ranks']} ranks  {result['samples_s']:>11,} samples/s  "
        f"waits {result['waits']:.1%}  start {result['start_s']:.2f} s"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, size="500MB", memory="64MB", batch_size=256, repeats=3, folder=None)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], help="numbers of ranks (default 1 2 4)")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help=f"of {', '.join(WAYS)}: by default all"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
