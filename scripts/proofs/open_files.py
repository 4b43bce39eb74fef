#!/usr/bin/env python3
"""Datasets of thousands of shards under a limit of open files (`ulimit -n`): what is done, and what is refused.

Two loaders in one process take turns, a training saves checkpoints while it measures on other data, and is resumed;
then come `evaluate` and `verify --full` of both datasets. Right is, with 64 open files and more: everything is done
and the losses are those of a run without a limit. With fewer a command may end with exit code 5. No block is ever
called damaged or left out, and no thread ends with a traceback. Prints a table on stderr and one JSON line a limit;
ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch

import streamtrain as st
import streamtrain.cli.dataset
import streamtrain.cli.inference.evaluate
import streamtrain.cli.train
from scripts.proofs.side_by_side import fork
from scripts.runner import Result, memory_folder, new_parser, require_disk, run
from streamtrain.cli.main import main as streamtrain_main

WORKS_FROM: Final = 64
"""The least limit under which everything must be done."""
_ROWS: Final = 2  # of a shard, which is one block
_FILE_BYTES: Final = 4096
_COMMON: Final = ("--memory", "48MB", "--device", "cpu", "--json")
_TRAIN: Final = (
    *("train", "a.zarr", "--val", "b.zarr", "--out", "run", "--model", "linear", "--batch-size", "100"),
    *("--checkpoint-every", "20", "--threads", "1", "--on-bad-block", "quarantine", *_COMMON, "--epochs"),
)


def take_turns() -> int:
    """Read two datasets with two loaders in one process, batch by batch; print a sum of all that they gave."""
    options: dict[str, Any] = {"batch_size": 100, "memory": "16MB", "on_bad_block": "quarantine"}
    with st.StreamLoader("a.zarr", **options) as one, st.StreamLoader("b.zarr", seed=1, **options) as other:
        total = sum(float(batch.x.sum() + same.y.sum()) for batch, same in zip(one, other, strict=True))
        print(json.dumps({"loss": total, "quarantined": [*one.quarantined, *other.quarantined]}))
    return 0


def command(*words: str) -> Callable[[], int]:
    """A command of streamtrain; `main` turns every error into an exit code."""
    return partial(streamtrain_main, words)


STEPS: Final[Mapping[str, Callable[[], int]]] = {
    "loaders": take_turns,
    "train": command(*_TRAIN, "1"),
    "resume": command(*_TRAIN, "2", "--resume"),
    "evaluate": command("evaluate", "run", "b.zarr", *_COMMON),
    "verify a": command("verify", "a.zarr", "--full"),
    "verify b": command("verify", "b.zarr", "--full"),
}


def main() -> None:
    """Try the limits, and end with 1 if anything was wrong under one."""
    torch.set_num_threads(1)
    results = run(parse_arguments(), measure, describe, fix="fewer --shards, or another --folder")
    raise SystemExit(any(result["wrong"] for result in results))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--shards", type=int, default=5_000, help="shards of each dataset (default 5000)")
    parser.add_argument(
        "--limits", type=int, nargs="+", default=[1024, 256, 64, 48, 32, 24, 16], help="open files of a process"
    )
    parser.add_argument("--folder", type=Path, default=memory_folder(), help="where to write (default: in memory)")
    return parser.parse_args()


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Run everything without a limit of ours, and then under each."""
    require_disk(folder, 4 * arguments.shards * _FILE_BYTES, fix="fewer --shards, or another --folder")
    made = fork(folder, "make", partial(make, folder, arguments.shards))  # it starts threads
    if os.waitpid(made, 0)[1]:
        raise SystemExit(f"cannot begin: {(folder / 'make.err').read_text()}")
    _, _, free = try_steps(folder, None)
    for limit in arguments.limits:
        codes, said, losses = try_steps(folder, limit)
        wrong = [f"{step} ended with {code}" for step, code in codes.items() if code not in allowed(limit)]
        wrong += [
            f"{step} says {text[-80:]!r}" for step, text in said.items() if "damage" in text or "Traceback" in text
        ]
        wrong += [f"{step} has the loss {loss}" for step, loss in losses.items() if loss != free[step]]
        yield {
            "bench": "open_files",
            "limit": limit,
            "shards": arguments.shards,
            "steps": codes,
            "said": {step: text for step, text in said.items() if codes[step]},
            "wrong": len(wrong),
            "first_wrong": next(iter(wrong), None),
        }


def make(folder: Path, n_shards: int) -> int:
    """Ingest two datasets of so many shards."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        y = rng.integers(0, 3, n_shards * _ROWS)
        x = (np.eye(3, 4)[y] + rng.normal(0, 0.3, (len(y), 4))).astype(np.float32)
        size = _ROWS * x[0].nbytes
        made = st.ingest(
            {"x": x, "y": y}, folder / f"{name}.zarr", block=size, shard=size, codec="none", progress=False
        )
        assert made.layout.n_shards >= n_shards, f"{made.layout.n_shards} shards"
    return 0


def allowed(limit: int) -> set[int]:
    """The exit codes that are right under a limit."""
    return {0} if limit >= WORKS_FROM else {0, 5}


def try_steps(folder: Path, limit: int | None) -> tuple[dict[str, int], dict[str, str], dict[str, Any]]:
    """Run every step, each in a fork; return the exit codes, what was said on stderr, and the losses."""
    codes: dict[str, int] = {}
    said, losses = {}, {}
    for step, act in STEPS.items():
        if step in ("resume", "evaluate") and codes["train"]:
            continue  # there is no run
        child = fork(folder, "step", partial(limited, limit, act))
        codes[step] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said[step] = (folder / "step.err").read_text().strip()[-600:]
        if codes[step] == 0 and not step.startswith("verify"):
            losses[step] = loss_of(json.loads((folder / "step.out").read_text()))
    shutil.rmtree(folder / "run", ignore_errors=True)
    return codes, said, losses


def limited(limit: int | None, act: Callable[[], int]) -> int:
    """Do something under a limit of open files; loaders that are refused end with a command's exit code."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        return act()
    except st.ResourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def loss_of(told: dict[str, Any]) -> Any:
    """The figures of a step, and what it left out, which is nothing."""
    left_out = [*told.get("quarantined", ()), *told.get("val_quarantined", ())]
    return [told["loss"], told.get("val") and told["val"]["loss"], left_out]


def describe(result: Result) -> str:
    """One line for people."""
    shown = " ".join(f"{name} {code or 'ok'}".ljust(len(name) + 4) for name, code in result["steps"].items())
    return f"{result['limit']:>5} files: {shown}{'  WRONG: ' if result['wrong'] else ''}{result['first_wrong'] or ''}"


if __name__ == "__main__":
    main()
