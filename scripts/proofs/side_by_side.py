#!/usr/bin/env python3
"""Commands started at one moment on the same names: each does its work or is refused, and no folder is a mix of two.

A round starts fourteen at once. Four trainings take a name for their run themselves; two are given the same new folder;
two resume the same run. Two evaluations measure that run. Two ingests overwrite another dataset, which two of the first
trainings and two more evaluations read. Right is: the work is done; or it is refused because another process is at it
(exit code 9), because the folder holds a finished run by now (2), or because the dataset was replaced while it was read
(4, with these words). Then every folder is looked at: its configuration, its metrics, its weights and the dataset must
be those of one command.

Each command is a fork of this process, which has imported everything and started no thread, so that all of them begin
within a millisecond. Prints a line on stderr for each round that was wrong and one JSON line on stdout; ends with 1 if
any was.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch

import streamtrain as st
import streamtrain.cli.inference.evaluate
import streamtrain.cli.ingest
import streamtrain.cli.train
from scripts.runner import Result, memory_folder, new_parser, require_disk, run
from streamtrain.cli.main import main as streamtrain_main
from streamtrain.store.verify import verify
from streamtrain.training.run.checkpoint import MODEL, newest_checkpoint

N_SAMPLES: Final = 600
EPOCHS: Final = 4
TRAIN: Final = ("--batch-size", "50", "--memory", "16MB", "--threads", "1", "--checkpoint-every", "3", "--json")
REPLACED: Final = "was replaced by another one"
TAKEN: Final = "the run folder is taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of a round, and the name under which others start it too."""

    name: str
    words: tuple[str, ...]
    width: int = 0  # of the model's hidden layer, which tells the runs apart
    excuse: str = ""  # what it may say, beside that another process is at work


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended."""

    command: Command
    code: int
    out: str
    err: str

    @property
    def is_right(self) -> bool:
        """Whether it did its work, or had a reason not to."""
        excused = bool(self.command.excuse) and self.command.excuse in self.err
        return self.code in (0, 9) or (self.code in (2, 4) and excused)

    @property
    def run(self) -> str:
        """The folder that a training wrote to."""
        return str(json.loads(self.out)["run"])


def main() -> None:
    """Start commands side by side, print the result, and end with 1 if anything was wrong."""
    torch.set_num_threads(1)
    (result,) = run(parse_arguments(), measure, describe, fix="another --folder")
    raise SystemExit(bool(result["wrong"] or result["mixed"]))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="how often all are started at once (default 50)")
    parser.add_argument("--folder", type=Path, default=memory_folder(), help="where to write (default: in memory)")
    return parser.parse_args()


def describe(result: Result) -> str:
    """One line for people."""
    return (
        f"{result['rounds']} rounds of {result['seconds_per_round']:.1f} s: {result['done']} done, {result['locked']} "
        f"refused as locked, {result['excused']} as taken or replaced, {result['wrong']} wrong; {result['mixed']} "
        "mixed folders"
    )


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[Result]:
    """Play the rounds."""
    require_disk(folder, 50_000_000, fix="another --folder")
    ids = make(folder)
    counts: Counter[str] = Counter()
    started = time.monotonic()
    for number in range(arguments.rounds):
        here = folder / str(number)
        here.mkdir()
        for name in ("d.zarr", "e.zarr", "again"):
            shutil.copytree(folder / name, here / name)
        outcomes = start_together(here, commands())
        wrong = [f"{each.command.words} ended with {each.code}: {each.err}" for each in outcomes if not each.is_right]
        mixed = list(mixtures(here, outcomes, ids))
        for text in (*wrong, *mixed):
            print(f"round {number}: {text}", file=sys.stderr)
        codes = Counter(each.code for each in outcomes if each.is_right)
        counts.update(done=codes[0], locked=codes[9], excused=codes[2] + codes[4], wrong=len(wrong), mixed=len(mixed))
        shutil.rmtree(here)
    seconds = (time.monotonic() - started) / arguments.rounds
    names = ("done", "locked", "excused", "wrong", "mixed")
    yield {
        "bench": "side_by_side",
        "rounds": arguments.rounds,
        "seconds_per_round": seconds,
        **{name: counts[name] for name in names},
    }


def make(folder: Path) -> tuple[str, str]:
    """Make two datasets, the source that is to replace one, and a run; return the ids of the one and its successor."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N_SAMPLES)
    x = (np.eye(3, 4)[y] + rng.normal(0, 0.3, (N_SAMPLES, 4))).astype(np.float32)
    np.save(folder / "x.npy", x + 1)
    np.save(folder / "y.npy", y)

    def ingest() -> int:
        # Many small shards: a reader opens files all along.
        for name in ("d.zarr", "e.zarr"):
            st.ingest({"x": x, "y": y}, folder / name, block="400B", shard="800B", codec="none", progress=False)
        return streamtrain_main(["ingest", "x.npy", "new.zarr", "--labels", "y.npy", *SMALL])

    words = ["train", "d.zarr", "--out", "again", "--model", "mlp:8", "--epochs", "2", *TRAIN]
    for act in (ingest, lambda: streamtrain_main(words)):
        status = os.waitpid(fork(folder, "first", act), 0)[1]
        if status:
            raise SystemExit(f"cannot begin: {(folder / 'first.err').read_text()}")
    return st.open(folder / "e.zarr").id, st.open(folder / "new.zarr").id


SMALL: Final = ("--block", "400B", "--shard", "800B", "--codec", "none", "--json")


def commands() -> list[Command]:
    """List what is started at once."""

    def train(name: str, data: str, width: int, *more: str, excuse: str = "") -> Command:
        words = ("train", data, "--model", f"mlp:{width}", "--epochs", str(EPOCHS), *TRAIN, *more)
        return Command(name=name, words=words, width=width, excuse=excuse)

    ingest = ("ingest", "../x.npy", "e.zarr", "--labels", "../y.npy", "--overwrite", *SMALL)
    return [
        *(train("numbered", "d.zarr", width) for width in (8, 16)),
        *(train("numbered", "e.zarr", width, excuse=REPLACED) for width in (24, 32)),
        *(train("shared", "d.zarr", width, "--out", "shared", excuse=TAKEN) for width in (8, 16)),
        *(train("again", "d.zarr", 8, "--out", "again", "--resume") for _ in range(2)),
        *(Command(name="evaluate", words=("evaluate", "again", "d.zarr", "--json")) for _ in range(2)),
        *(Command(name="evaluate", words=("evaluate", "again", "e.zarr", "--json"), excuse=REPLACED) for _ in range(2)),
        *(Command(name="ingest", words=ingest) for _ in range(2)),
    ]


def start_together(here: Path, started: list[Command]) -> list[Outcome]:
    """Start commands at the same moment in a folder, and wait for their ends."""
    ready, go = os.pipe()
    children = []
    for number, command in enumerate(started):

        def act(words: tuple[str, ...] = command.words) -> int:
            os.close(go)
            os.read(ready, 1)  # nothing, as soon as no process can write any more
            return streamtrain_main(list(words))

        children.append(fork(here, str(number), act))
    os.close(ready)
    os.close(go)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [
        Outcome(command=command, code=code, **{name: (here / f"{n}.{name}").read_text() for name in ("out", "err")})
        for n, (command, code) in enumerate(zip(started, codes, strict=True))
    ]


def mixtures(here: Path, outcomes: list[Outcome], ids: tuple[str, str]) -> Iterator[str]:
    """Say of which folders something is not that of one command."""
    done = [each for each in outcomes if each.code == 0]
    by_name = Counter(each.command.name for each in done)
    # Of those that want the same name at least one gets it; a new folder exactly one.
    for name, least, most in (("ingest", 1, 2), ("again", 1, 2), ("shared", 1, 1), ("numbered", 2, 4)):
        if not least <= by_name[name] <= most:
            yield f"{by_name[name]} of {name} did their work"
    runs = [each.run for each in done if each.command.name == "numbered"]
    if len(set(runs)) < len(runs):
        yield f"two runs have one folder: {runs}"
    for each in done:
        if each.command.width:
            data = ids if each.command.excuse == REPLACED else ids[:1]
            yield from (f"{each.run}: {why}" for why in differences(here / each.run, each.command.width, data))
        elif each.command.name == "evaluate" and json.loads(each.out)["samples"] != N_SAMPLES:
            yield f"an evaluation measured {each.out}"
    if (found := verify(here / "e.zarr", full=True)).damage or found.manifest.id != ids[1]:
        yield f"e.zarr is not what was ingested: {found.damage}"
    left = [path.name for path in here.rglob(".*") if path.name not in (".", "..")]
    if left:
        yield f"left: {left}"


def differences(folder: Path, width: int, ids: tuple[str, ...]) -> Iterator[str]:
    """Say what in a run's folder is not of the one run of a model of this width, trained whole on one of the data."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if config["model"] != f"mlp:{width}" or config["dataset_id"] not in ids:
        yield f"config.json is of {config['model']} on {config['dataset_id']}"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines if line["kind"] == "epoch"]
    if epochs != list(range(1, EPOCHS + 1)):
        yield f"metrics.jsonl has epochs {epochs}"
    checkpoint = newest_checkpoint(folder)
    shapes = [len(tensor) for name, tensor in checkpoint.tensors(MODEL).items() if name.endswith("weight")]
    if shapes[0] != width or checkpoint.state["counts"]["n_epochs"] != EPOCHS:
        yield f"{checkpoint.path} has layers of {shapes} after {checkpoint.state['counts']}"


def fork(folder: Path, name: str, act: Callable[[], int]) -> int:
    """Begin something in a child of this process, inside a folder, its output in files of a name."""
    sys.stdout.flush()
    sys.stderr.flush()
    # A collection in the child would copy all that the parent holds.
    gc.freeze()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        for number, suffix in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        code = act()
        sys.stdout.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
