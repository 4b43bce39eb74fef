#!/usr/bin/env python3
"""streamtrain beside what people use today: same machine, same rows, same batches, shuffled and warm.

Rows of bytes sorted by an int64 label, which is their number, in each library's own form on disk. Every library runs
in a virtual environment of its own, made for the run and removed after it, each variant in a fresh process. Variants
(worker processes, formats, sizes) are what the library's documentation advises to tune; some go beyond it and are
marked ``by_hand``. The fastest is then measured at length in turn with streamtrain, whose loader stays open throughout;
the ratio is the median of the pairs'. Each loads one epoch of a few rows that is compared with the source, row by row.

``mixing`` tells how far apart in the file the rows of a batch lie: 1 is as far as drawn at random, less is a shuffle of
what lies close together. Memory is what the worker and its helpers hold at most while loading, anonymous and shared;
the page cache is not counted. ``memmap`` stands apart from the libraries: it is as fast as the page cache is large,
which ``--limit`` (root only) takes away.

Prints a table and what the peers are ahead in on stderr, one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

from scripts.bench.peers.catalog import ENTRIES, Entry
from scripts.bench.peers.measure import Runner, Timing, measure
from scripts.bench.peers.process import ENVIRONMENT_BYTES, NotMeasured, Process, environment
from scripts.bench.peers.summary import ahead, describe, summarize
from scripts.bench.peers.worker import Case
from scripts.proofs.cgroup import NoGroup, memory_group
from scripts.runner import (
    drop_caches,
    machine,
    new_parser,
    print_result,
    require_disk,
    versions,
    working_folder,
)
from streamtrain.system.units import format_bytes, parse_bytes

MEMMAP: Final = next(entry for entry in ENTRIES if entry.way == "memmap, batched")


def main() -> None:
    """Measure; a failure of streamtrain's own ends it, one of a peer's is a line of the table."""
    arguments = parse_arguments()
    try:
        run(arguments)
    except NotMeasured as reason:
        sys.exit(f"error: streamtrain: {reason}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(arguments: argparse.Namespace) -> None:
    """Measure every row size, and a little data."""
    timing = Timing(
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        warm_seconds=arguments.warm_seconds,
        probe_seconds=arguments.probe_seconds,
        deadline=arguments.deadline,
        peer_deadline=arguments.peer_deadline,
    )
    size = parse_bytes(arguments.size)
    tiny = 0 if arguments.tiny_size == "0" else parse_bytes(arguments.tiny_size)
    entries = [entry for entry in ENTRIES if not arguments.peers or {entry.name, entry.module} & set(arguments.peers)]
    with working_folder(arguments.folder) as folder:
        # Source, streamtrain's store, and the largest of the peers', which pads every row to whole blocks of a tar.
        require_disk(folder, 5 * size + (ENVIRONMENT_BYTES if any(entry.packages for entry in entries) else 0))
        for row_bytes in arguments.row_bytes:
            with made_case(folder / str(row_bytes), row_bytes, size, arguments) as case:
                run_entries(entries, case, folder, timing, arguments)
                run_limited(case, folder, timing, arguments)
        in_memory = [entry for entry in entries if entry.kind == "in memory"]
        if in_memory and tiny:
            with made_case(folder / "tiny", arguments.row_bytes[0], tiny, arguments) as case:
                run_entries(in_memory, case, folder, timing, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, row_bytes=[3072], size="2GB", memory="512MB", batch_size=256, folder=None)
    add = parser.add_argument
    names = sorted({name for entry in ENTRIES for name in (entry.name, entry.module)})
    add("--peers", nargs="+", choices=names, metavar="PEER", help=f"these alone, of: {'; '.join(names)}")
    add(
        "--library-samples",
        type=int,
        default=650_000,
        help="how many a library gets of them (default 650000)",
    )
    add("--tiny-size", default="8MB", help="data for a second look at the in-RAM loops, 0 for none (default 8MB)")
    add("--workers", type=int, nargs="+", default=[0, 1, 2], help="worker processes a peer may have (default 0 1 2)")
    add("--seconds", type=float, default=5.0, help="of one measured stretch (default 5)")
    add("--rounds", type=int, default=4, help="stretches of peer and streamtrain in turn (default 4)")
    add("--warm-seconds", type=float, default=1.0, help="before each stretch (default 1)")
    add("--probe-seconds", type=float, default=2.0, help="of the stretch that chooses a variant (default 2)")
    add("--deadline", type=float, default=600.0, help="for installing, writing, opening (default 600 s)")
    add("--peer-deadline", type=float, default=1800.0, help="for all that one library does (default 1800 s)")
    add("--limit", help="also measure memmap and streamtrain in a memory control group of this size (root only)")
    add("--torch", default=f"torch=={metadata.version('torch').split('+')[0]}", help="what the peers' pip asks for")
    add("--keep-environments", type=Path, help="folder where environments are kept and found again")
    return parser.parse_args()


@contextmanager
def made_case(source: Path, row_bytes: int, size: int, arguments: argparse.Namespace) -> Iterator[Case]:
    """The rows on disk: random bytes with six of eight bits in use; removed at the end."""
    n_samples = max(1, size // (row_bytes + 8))
    source.mkdir()
    generator = np.random.default_rng(0)
    x = np.lib.format.open_memmap(source / "x.npy", mode="w+", dtype=np.uint8, shape=(n_samples, row_bytes))
    step = max(1, 8_000_000 // row_bytes)
    for start in range(0, n_samples, step):
        stop = min(start + step, n_samples)
        x[start:stop] = generator.integers(0, 64, (stop - start, row_bytes), dtype=np.uint8)
    # What is mapped cannot be dropped from the page cache.
    del x
    np.save(source / "y.npy", np.arange(n_samples))
    try:
        yield Case(
            source=source,
            folder=source,
            n_samples=n_samples,
            row_bytes=row_bytes,
            batch_size=arguments.batch_size,
            memory=arguments.memory,
        )
    finally:
        shutil.rmtree(source)


def run_entries(entries: list[Entry], case: Case, folder: Path, timing: Timing, arguments: argparse.Namespace) -> None:
    """Measure entries over a case, and print each with what they come to."""
    unhurried = replace(timing, peer_deadline=math.inf)
    own = Runner(Path(sys.executable), "streamtrain_loader", folder / "streamtrain", case, unhurried)
    records: list[dict[str, Any]] = []
    try:
        written, _ = own.write()
        with own.worker() as own_worker:
            own_record = {"peer": "streamtrain", **written, "idle_bytes": own.idle(own_worker)}
            own_record["check"] = own.check(own_worker, {})
            own_record["first_batch_seconds"] = own.open(own_worker, {})
            for module, group in groupby(entries, key=lambda entry: entry.module):
                for record in run_module(module, list(group), case, folder, timing, own, own_worker, arguments):
                    records.append({"bench": "peers", **record, **common(case, arguments)})
                    print_result(records[-1], describe(records[-1]))
            own_record["mixing"] = own.mixing(own_worker)
            own_record["memory_bytes"] = own.peak(own_worker)
    finally:
        own.remove()
    own_record |= common(case, arguments)
    print_result({"bench": "peers", **own_record}, describe(own_record))
    for summary in summarize(records, case.row_bytes):
        print_result({"bench": "peers", **summary, **common(case, arguments)}, summary["text"])
    print(ahead(records, own_record), file=sys.stderr)


def run_module(
    module: str,
    entries: list[Entry],
    case: Case,
    folder: Path,
    timing: Timing,
    own: Runner,
    own_worker: Process,
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """The records of the entries that share an environment and stored rows."""
    packages = entries[0].packages
    if packages:
        case = replace(case, n_samples=min(case.n_samples, arguments.library_samples))
    kept = arguments.keep_environments
    # A worker runs in a folder of its own, where a relative path would lead elsewhere.
    place = (kept.absolute() if kept else folder / "environments") / module
    runner: Runner | None = None
    known = [{"peer": entry.name, "kind": entry.kind, "peer_samples": case.n_samples} for entry in entries]
    try:
        python = Path(sys.executable)
        if packages:
            python = environment(place, (arguments.torch, *packages), arguments.deadline)
        runner = Runner(python, module, folder / module, case, timing)
        written, described = runner.write(*(entry.way for entry in entries))
        for record, answer in zip(known, described, strict=True):
            variants = [v for v in answer["variants"] if v.get("num_workers", 0) in arguments.workers]
            record |= {**written, "versions": answer["versions"]}
            try:
                yield {**record, **measure(variants, runner, own, own_worker)}
            except NotMeasured as reason:
                yield {**record, "not_measured": str(reason)}
    except NotMeasured as reason:
        yield from ({**record, "not_measured": str(reason)} for record in known)
    finally:
        if runner is not None:
            runner.remove()
        if packages and kept is None:
            shutil.rmtree(place, ignore_errors=True)


def run_limited(case: Case, folder: Path, timing: Timing, arguments: argparse.Namespace) -> None:
    """Measure the mapped file and streamtrain where memory is smaller than the data."""
    if arguments.limit is None:
        print("  in a memory control group: not measured (--limit 768MB, as root)", file=sys.stderr)
        return
    limit = parse_bytes(arguments.limit)
    # A third for the loader leaves room for what a process with torch takes anyway.
    case = replace(case, memory=format_bytes(limit // 3).replace(" ", ""))
    record: dict[str, Any] = {"bench": "peers", "peer": MEMMAP.name, "kind": MEMMAP.kind, "limit_bytes": limit}
    runners = {
        name: (Runner(Path(sys.executable), module, folder / f"limited-{module}", case, timing), variant)
        for name, module, variant in (
            ("samples_s", MEMMAP.module, {"way": MEMMAP.way}),
            ("streamtrain_samples_s", "streamtrain_loader", {}),
        )
    }
    rates: dict[str, float] = {}
    try:
        for runner, _ in runners.values():
            runner.write()
        with memory_group(limit) as group:
            for name, (runner, variant) in runners.items():
                record["cache"] = drop_caches([case.source, runner.case.folder])
                runner.cgroup = group.path
                with runner.worker() as worker:
                    runner.open(worker, variant)
                    rates[name] = runner.run(worker, timing.seconds * timing.rounds)
        record |= {name: round(rate) for name, rate in rates.items()}
        record["ratio"] = round(rates["streamtrain_samples_s"] / rates["samples_s"], 1)
    except (NotMeasured, NoGroup) as reason:
        record["not_measured"] = str(reason).splitlines()[0]
    finally:
        for runner, _ in runners.values():
            runner.remove()
    print_result({**record, **common(case, arguments)}, describe(record))


def common(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """What belongs to every record of a case."""
    return {
        "row_bytes": case.row_bytes,
        "n_samples": case.n_samples,
        "batch_size": case.batch_size,
        "memory": case.memory,
        "machine": machine(),
        "own_versions": versions("torch"),
    }


if __name__ == "__main__":
    main()
