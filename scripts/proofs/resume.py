#!/usr/bin/env python3
"""Training killed at random points and resumed has the weights and metrics of the run that nobody killed.

For every update rule, with momentum and with Adam, `streamtrain train` is run once to its end. Then it is run again and
again: each time a SIGKILL strikes it at a random moment after its first checkpoint, ``--resume`` goes on, and what the
two leave behind is compared byte for byte: the weights, the optimizer's state, and every figure in ``metrics.jsonl``
but the times. The dropout in the model makes the random state count as well.

Each run is a fork of this process, which has imported everything and started no thread. Prints a table on stderr and
one JSON line per result on stdout; ends with 1 if any run differed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch

import streamtrain as st
import streamtrain.cli.train
from scripts.runner import Result, memory_folder, new_parser, require_disk, run
from streamtrain.cli.main import main as streamtrain_main

RULES: Final = ("sample", "batch", "epoch")
OPTIMIZERS: Final = {"momentum": ("--optimizer", "sgd", "--lr", "0.01", "--momentum", "0.9"), "adam": ()}
TIMES: Final = ("seconds", "samples_per_second", "stall_fraction")
MODEL: Final = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.25), nn.Linear(32, 4))
"""
DEADLINE_SECONDS: Final = 120.0


def main() -> None:
    """Kill and resume, print each result, and end with 1 if any run differed."""
    torch.set_num_threads(1)
    results = run(parse_arguments(), measure, describe, fix="another --folder")
    raise SystemExit(any(result["different"] for result in results))


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Try every rule with every optimizer."""
    require_disk(folder, 50_000_000, fix="another --folder")
    make(folder)
    for rule, optimizer in itertools.product(arguments.rules, arguments.optimizers):
        yield prove(folder, rule, optimizer, arguments.kills)


def describe(result: Result) -> str:
    """One line for people."""
    return (
        f"{result['rule']:<6} {result['optimizer']:<8} killed {result['kills']:>3} times, resumed from batch "
        f"{result['least_resumed_from']}-{result['most_resumed_from']}: {result['different']} differ"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each rule with each optimizer (default 50)")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help="update rules (all)")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS), help="(all)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=memory_folder(),
        help="where to write (default: in memory, which kill -9 does not empty)",
    )
    return parser.parse_args()


def make(folder: Path) -> None:
    """A dataset sorted by class, and a model with dropout."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 500)
    x = (np.eye(4, 16)[y] + rng.normal(0, 0.5, (2000, 16))).astype(np.float32)
    # In a child: what it starts, threads too, ends with it.
    run_child(folder, lambda: int(st.ingest({"x": x, "y": y}, folder / "d.zarr", block="4KB") is None))
    (folder / "model.py").write_text(MODEL)


def prove(folder: Path, rule: str, optimizer: str, n_kills: int) -> dict[str, Any]:
    """Kill and resume one kind of run so many times."""
    words = ["train", str(folder / "d.zarr"), "--model", f"{folder}/model.py:build", "--update", rule]
    words += [*OPTIMIZERS[optimizer], "--epochs", "4", "--batch-size", "50", "--memory", "16MB", "--threads", "1"]
    words += ["--checkpoint-every", "3", "--log-every", "7", "--json", "--resume"]
    whole = folder / "whole"
    child = begin(folder, words, whole)
    started = time.monotonic()
    wait(folder, child)
    lasts = time.monotonic() - started
    expected = traces(whole)
    places: list[int] = []
    different = 0
    rng = random.Random(f"{rule} {optimizer}")
    while len(places) < n_kills:
        out = folder / "killed"
        if killed(folder, words, out, rng.uniform(0, lasts)):
            result = train(folder, words, out)
            places.append(result["resumed_from_batch"])
            different += traces(out) != expected or not places[-1]
        shutil.rmtree(out)
    shutil.rmtree(whole)
    return {
        "bench": "resume",
        "rule": rule,
        "optimizer": optimizer,
        "kills": len(places),
        "least_resumed_from": min(places, default=None),
        "most_resumed_from": max(places, default=None),
        "different": different,
    }


def killed(folder: Path, words: list[str], out: Path, after: float) -> bool:
    """Begin a run and kill it some seconds after its first checkpoint; whether that came before its end."""
    child = begin(folder, words, out)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def begin(folder: Path, words: list[str], out: Path) -> int:
    """Begin a run, and wait for its first checkpoint."""
    child = start(folder, lambda: streamtrain_main([*words, "--out", str(out)]))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not any(out.glob("checkpoints/*/manifest.json")) and time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            raise SystemExit(f"a run ended before its first checkpoint: {(folder / 'stderr').read_text()}")
        time.sleep(0.001)
    return child


def train(folder: Path, words: list[str], out: Path) -> dict[str, Any]:
    """Run to the end; what ``--json`` printed."""
    run_child(folder, lambda: streamtrain_main([*words, "--out", str(out)]))
    result: dict[str, Any] = json.loads((folder / "stdout").read_text())
    return result


def run_child(folder: Path, act: Callable[[], int]) -> None:
    """Do something in a child, and wait for its end."""
    wait(folder, start(folder, act))


def wait(folder: Path, child: int) -> None:
    """Wait for a child that is to succeed."""
    status = os.waitpid(child, 0)[1]
    if status:
        raise SystemExit(f"a run ended with {status}: {(folder / 'stderr').read_text()}")


def start(folder: Path, act: Callable[[], int]) -> int:
    """Begin something in a child whose output goes into files."""
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # a collection in the child would copy all that the parent holds
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, number)
        code = act()
        sys.stdout.flush()
    finally:
        os._exit(code)


def traces(out: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """What a run left behind that must not depend on how it came there."""
    newest = max(path for path in (out / "checkpoints").iterdir() if (path / "manifest.json").exists())
    tensors = {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
    return tensors, list(metrics(out))


def metrics(out: Path) -> Iterator[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what the clock says."""
    for line in (out / "metrics.jsonl").read_text().splitlines():
        yield {name: value for name, value in json.loads(line).items() if not name.endswith(TIMES)}


if __name__ == "__main__":
    main()
