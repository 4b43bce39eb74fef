#!/usr/bin/env python3
"""Proof that training runs on data far larger than memory: an epoch under a hard limit that the kernel enforces.

For each size a dataset is made (compressible, so that it fits a desktop's disk) and, with its files out of the page
cache, one epoch is trained on it in a process of its own, in a cgroup with a memory limit and no swap: whatever exceeds
the limit is killed. The limit counts everything: Python, PyTorch, the model, the loader, and the page cache. Beside it
runs what one would write without this library, which loads all rows as one array first, in such a group too.

The model is a linear one on 64 of the features, in batches of 2,048, on one PyTorch thread: so little to compute that
reading and decoding are what is measured. Prints a table on stderr and one JSON line per result on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch
import zarr
from torch import Tensor, nn

import streamtrain as st
from scripts.data.synthetic import LABEL_BYTES, Recipe, room_for, write_dataset
from scripts.proofs.cgroup import NoGroup, memory_group, own_group, run_within
from scripts.runner import (
    drop_caches,
    measured_on,
    new_parser,
    plain_errors,
    print_result,
    require_disk,
    working_folder,
)
from streamtrain.system.memory import MemoryMeter, anonymous_bytes
from streamtrain.system.units import format_bytes, parse_bytes

N_FEATURES: Final = 64
N_CLASSES: Final = 10
# The first at least, the others at most; with 100 GB the largest.
BARS: Final = {"ratio_largest_to_smallest": 0.95, "open_s": 0.3, "first_batch_s": 1.0}
_REPEAT_SECONDS: Final = 60.0
LESS: Final = "smaller --sizes, or another --folder or --keep"


def main() -> None:
    """Prove it at every size, or be one of the two processes that are limited."""
    arguments = parse_arguments()
    if arguments.child:
        torch.set_num_threads(1)
        print(json.dumps(CHILDREN[arguments.child](arguments)))
        return
    try:
        with plain_errors(fix=LESS), ExitStack() as stack:
            parent = Path(arguments.keep) if arguments.keep else stack.enter_context(working_folder(arguments.folder))
            streams = prove(parent, arguments)
    except NoGroup as error:
        print(f"error: {error}\nWithout a limit, where nothing is proved: --no-limit", file=sys.stderr)
        raise SystemExit(5) from None
    if not all(stream["finished"] for stream in streams):
        raise SystemExit(1)


def prove(parent: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train an epoch at every size, let the naive loader try, and return what the streams did."""
    limit = None if arguments.no_limit else parse_bytes(arguments.limit, name="--limit")
    recipes = [recipe_of(parse_bytes(size, name="--sizes"), arguments) for size in arguments.sizes]
    if limit is None:
        print("no limit is set: this run proves nothing about memory", file=sys.stderr)
    else:
        with memory_group(limit):  # that one can be made is known before any data is
            pass
    paths = [make(parent, recipe, arguments) for recipe in recipes]
    if arguments.make_only:
        return []
    streams = []
    for path, runs in zip(paths, run_streams(paths, limit, arguments), strict=True):
        streams.append(stream := {**runs[0], **medians(runs), "runs": len(runs)})
        print_result(stream, describe(stream))
        if not arguments.no_naive:
            naive = run_child("naive", path, limit, arguments)
            print_result(naive, describe(naive))
    summarize(streams)
    return streams


def recipe_of(size: int, arguments: argparse.Namespace) -> Recipe:
    """The rows of a size."""
    return Recipe(
        n_samples=max(N_CLASSES, size // (arguments.row_bytes + LABEL_BYTES)),
        shape=(arguments.row_bytes,),
        compressibility=arguments.compressibility,
        n_classes=N_CLASSES,
    )


def make(parent: Path, recipe: Recipe, arguments: argparse.Namespace) -> Path:
    """Make a dataset where it is not there already; its name says what is in it."""
    path = parent / f"{recipe.n_samples}x{recipe.row_bytes}-{recipe.compressibility:g}to1-{arguments.codec}.zarr"
    if path.exists():
        st.open(path)  # refuses one whose making was interrupted
        return path
    require_disk(parent, room_for(recipe, arguments.codec, "store"), fix=LESS)
    started = time.perf_counter()
    stored = write_dataset(recipe, path, codec=arguments.codec)
    seconds = time.perf_counter() - started
    made = f"made {format_bytes(recipe.n_bytes)}, stored as {format_bytes(stored)}, in {seconds:.1f} s"
    print(f"{made}: {recipe.n_bytes / seconds / 1e6:,.0f} MB/s", file=sys.stderr, flush=True)
    return path


def run_streams(paths: list[Path], limit: int | None, arguments: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """The runs at each size: in turn, so that a change of the machine meets all sizes, and long ones fewer times."""
    runs: list[list[dict[str, Any]]] = [[] for _ in paths]
    seconds = [0.0] * len(paths)
    for _ in range(arguments.repeats):
        for number, path in enumerate(paths):
            if seconds[number] < _REPEAT_SECONDS:
                started = time.perf_counter()
                runs[number].append(run_child("stream", path, limit, arguments))
                seconds[number] += time.perf_counter() - started
    return runs


def run_child(kind: str, path: Path, limit: int | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one of the two in a group of its own, with the files out of the page cache."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", kind, "--dataset", str(path)]
    command += ["--memory", arguments.memory, "--batch-size", str(arguments.batch_size)]
    how = drop_caches([path])
    ended = run_within(command, limit, timeout=arguments.timeout)
    dataset = st.open(path)
    measured = json.loads(ended.output) if ended.code == 0 else {}
    return {
        "bench": "out_of_core",
        "loader": kind,
        "decoded_bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "n_samples": len(dataset),
        "codec": dataset.layout.codec,
        "limit_bytes": limit,
        "cgroup_version": None if limit is None else own_group()[0],
        "memory": arguments.memory if kind == "stream" else None,
        "batch_size": arguments.batch_size,
        "cache": f"cold ({how})",
        "finished": ended.code == 0,
        "killed_for_memory": ended.was_killed,
        "exit_status": ended.code,
        "error": "".join(ended.errors.strip().splitlines()[-1:]) if ended.code else None,
        "cgroup_peak_bytes": ended.peak_bytes,
        **measured,
        **measured_on("torch"),
    }


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the runs that finished; the largest of the peaks."""
    finished = [run for run in runs if run["finished"]]
    if not finished:
        return {}
    figures = ("seconds", "mb_s", "open_s", "first_batch_s", "stall_fraction")
    peaks = [name for name in finished[0] if name.endswith("peak_bytes") and finished[0][name] is not None]
    return {
        **{name: statistics.median(run[name] for run in finished) for name in figures},
        **{name: max(run[name] for run in finished) for name in peaks},
        "finished": len(finished) == len(runs),
        "mb_s_of_each": [run["mb_s"] for run in finished],
    }


def describe(result: dict[str, Any]) -> str:
    """One line for people."""
    peak = result["cgroup_peak_bytes"]
    line = f"{format_bytes(result['decoded_bytes']):>9} {result['loader']:<6} "
    if not result["finished"]:
        reason = "killed for its memory" if result["killed_for_memory"] else f"failed: {result['error']}"
        return f"{line} {reason} (limit {format_bytes(result['limit_bytes'] or 0)})"
    line += f" {result['mb_s']:>6} MB/s"
    if result["loader"] == "stream":
        line += f"  open {result['open_s']:.3f} s  first batch {result['first_batch_s']:.3f} s"
        line += f"  stalled {result['stall_fraction']:.0%}"
    line += f"  anonymous peak {format_bytes(result['anonymous_peak_bytes'])}"
    return line + (f", with page cache {format_bytes(peak)}" if peak is not None else "") + f"  {result['cache']}"


def summarize(streams: list[dict[str, Any]]) -> None:
    """Print the last line: the largest size against the smallest."""
    done = sorted((stream for stream in streams if stream["finished"]), key=lambda stream: stream["decoded_bytes"])
    if len(done) < 2:
        return
    first, last = done[0], done[-1]
    ratio = round(last["mb_s"] / first["mb_s"], 3)
    result = {
        "bench": "out_of_core",
        "smallest_bytes": first["decoded_bytes"],
        "largest_bytes": last["decoded_bytes"],
        "limit_bytes": last["limit_bytes"],
        "ratio_largest_to_smallest": ratio,
        "open_s": last["open_s"],
        "first_batch_s": last["first_batch_s"],
        "bars": BARS,
    }
    sizes = f"{format_bytes(last['decoded_bytes'])} ÷ {format_bytes(first['decoded_bytes'])}"
    line = f"MB/s at {sizes}: {ratio:.2f} (bar {BARS['ratio_largest_to_smallest']})"
    line += f"  open {last['open_s']:.3f} s (bar {BARS['open_s']})"
    print_result(result, f"{line}  first batch {last['first_batch_s']:.3f} s (bar {BARS['first_batch_s']:g})")


class FewFeatures(nn.Module):
    """A linear model on the first features alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(N_FEATURES, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, classes) for bytes (B, features)."""
        few = x[:, :N_FEATURES].to(torch.float32) / 255
        return torch.as_tensor(self.linear(few))


class WatchedLoader(st.StreamLoader):
    """A loader that notes when it gave its first batch."""

    first_batch_at: float | None = None

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        batch = next(batches)
        self.first_batch_at = self.first_batch_at or time.perf_counter()
        yield batch
        # Whoever keeps a batch keeps its memory from the next ones.
        del batch
        yield from batches


def stream(arguments: argparse.Namespace) -> dict[str, Any]:
    """Open, train one epoch, and say what it took."""
    torch.manual_seed(0)
    model = FewFeatures()
    trainer = st.Trainer(model, loss="cross_entropy", optimizer="adam", lr=0.01, device="cpu")
    with MemoryMeter() as meter:
        before = anonymous_bytes()
        started = time.perf_counter()
        dataset = st.open(arguments.dataset)
        opened = time.perf_counter()
        with WatchedLoader(dataset, batch_size=arguments.batch_size, memory=arguments.memory) as loader:
            epoch = trainer.fit(loader, max_epochs=1, progress=False).last
            projected = loader.projection.total_bytes
    assert epoch is not None and loader.first_batch_at is not None  # noqa: PT018
    return {
        "open_s": round(opened - started, 4),
        "first_batch_s": round(loader.first_batch_at - opened, 4),
        "seconds": round(epoch.speed.seconds, 3),
        "mb_s": round(dataset.nbytes / epoch.speed.seconds / 1e6),
        "stall_fraction": round(epoch.speed.stall_fraction, 4),
        "loss": round(epoch.train.loss, 4),
        "accuracy": round(epoch.train.score or 0.0, 4),
        "loader_projected_bytes": projected,
        "anonymous_peak_bytes": before + meter.peak_bytes,
    }


def naive(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load all rows as one array, then train on a permutation of them."""
    torch.manual_seed(0)
    model = FewFeatures()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with MemoryMeter() as meter:
        before = anonymous_bytes()
        started = time.perf_counter()
        group = zarr.open_group(arguments.dataset, mode="r")
        x, y = (np.asarray(group[name][:]) for name in ("x", "y"))  # type: ignore[index]
        order = np.random.default_rng(0).permutation(len(x))
        for start in range(0, len(x), arguments.batch_size):
            rows = order[start : start + arguments.batch_size]
            loss = nn.functional.cross_entropy(model(torch.from_numpy(x[rows])), torch.from_numpy(y[rows]))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "mb_s": round((x.nbytes + y.nbytes) / seconds / 1e6),
        "anonymous_peak_bytes": before + meter.peak_bytes,
    }


CHILDREN: Final = {"stream": stream, "naive": naive}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__, row_bytes=3072, codec="lz4", memory="512MB", batch_size=2048, repeats=3, folder=None)
    parser.add_argument("--sizes", nargs="+", default=["1GB", "10GB", "100GB"], help="decoded bytes (1GB 10GB 100GB)")
    parser.add_argument("--limit", default="2GiB", help="of the cgroup, everything counted (default 2GiB)")
    parser.add_argument("--no-limit", action="store_true", help="run without a cgroup; proves nothing about memory")
    parser.add_argument("--compressibility", type=float, default=25.0, metavar="RATIO", help="to aim at (default 25)")
    parser.add_argument("--no-naive", action="store_true", help="leave out the loader that loads everything")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that a run may take (default 3600)")
    parser.add_argument("--keep", metavar="FOLDER", help="make the data here, or use what is there, and leave it")
    parser.add_argument("--make-only", action="store_true", help="with --keep: make what is not there, and stop")
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--dataset", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make_only and not arguments.keep:
        parser.error("--make-only without --keep would remove what it made")
    return arguments


if __name__ == "__main__":
    main()
