#!/usr/bin/env python3
"""Passing errors in a training, at every call that reads or writes data, metrics and checkpoints; then it is resumed.

Right is: the run ends as if nothing had been, or with the system's reason and a remedy; every checkpoint that was saved
and not outlived is whole; and resumed, without an error, it ends with the weights and the metrics of a run that met
none. So does a run whose errors come as it resumes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np
import torch

import streamtrain as st
from scripts.faults.syscall_faults import unreadable
from scripts.runner import memory_folder, new_parser, parse_sampled, print_result, tallied, working_folder
from streamtrain.cli.main import main as run_command
from streamtrain.system.syscalls import Syscalls
from streamtrain.training.run import run_folder
from streamtrain.training.run.checkpoint import MODEL, newest_checkpoint, read_checkpoint, write_checkpoint

ERRORS: Final = ("ESTALE", "EIO", "EMFILE", "ETIMEDOUT")
STARTS: Final = ("a training", "a resumed training")
_TRAIN: Final = "--model linear --batch-size 20 --memory 16MB --device cpu --threads 1 --checkpoint-every 2"
_EPOCHS: Final = 3
_KEPT: Final = 2  # checkpoints
_LIES: Final = ("damaged", "a bug in", "train again", "left out", "afresh", "Traceback")
_CALLS: Final = tuple(name for name in vars(Syscalls) if not name.startswith("_"))


class Passing:
    """Fails one call of the process, the n-th; lists the checkpoints that are saved, with those that were."""

    def __init__(self, at: int, number: int, saved: list[Path]) -> None:
        self.n_calls = 0
        self.saved = saved
        self._at, self._number = at, number
        self._lock = threading.Lock()

    def _call(self, name: str) -> Any:
        original = getattr(Syscalls, name)

        def call(system: Syscalls, *arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.n_calls += 1
                fails = self.n_calls == self._at
            if not fails:
                return original(system, *arguments, **options)
            error = OSError(self._number, os.strerror(self._number))
            if name != "stream":
                raise error
            return unreadable(original(system, arguments[0], 0), error, *arguments[1:])

        return call

    def _save(self, *arguments: Any) -> Path:
        path = write_checkpoint(*arguments)
        self.saved.append(path)
        return path

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Watch the whole process while the block runs."""
        with contextlib.ExitStack() as stack:
            for name in _CALLS:
                stack.enter_context(mock.patch.object(Syscalls, name, self._call(name)))
            stack.enter_context(mock.patch.object(run_folder, "write_checkpoint", self._save))
            yield


def make_files(folder: Path) -> None:
    """Write a dataset, a run that is to be resumed, and one that met no error."""
    chance = np.random.default_rng(0)
    rows = {"x": chance.normal(size=(120, 3)).astype(np.float32), "y": chance.integers(0, 3, 120)}
    st.ingest(rows, folder / "d.zarr", block=160, shard=480, codec="lz4")
    for name, epochs in (("half", 1), ("whole", _EPOCHS)):
        code, text = train(folder, folder / name, epochs=epochs)
        if code:
            raise SystemExit(text)


def train(folder: Path, run: Path, *, epochs: int = _EPOCHS) -> tuple[int, str]:
    """Train, or resume what is there; return the exit code and what was said."""
    words = ["train", str(folder / "d.zarr"), *_TRAIN.split(), "--epochs", str(epochs), "--out", str(run)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_command([*words, *(["--resume"] if run.exists() else [])])
    return code, out.getvalue()


def outcome(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a run came to: its weights, and its metrics without the times."""
    weights = {name: tensor.tolist() for name, tensor in newest_checkpoint(run).tensors(MODEL).items()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "stall", "memory", "bytes")
    return weights, [{key: line[key] for key in line if not any(word in key for word in timed)} for line in lines]


def _begin(folder: Path, start: str) -> list[Path]:
    """Make the run that is to be resumed, if one is; return its checkpoints."""
    if start == STARTS[0]:
        return []
    shutil.copytree(folder / "half", folder / "run")
    return sorted((folder / "run/checkpoints").iterdir())


def try_call(folder: Path, start: str, at: int, number: int) -> str:
    """Fail a call; return what is wrong, nothing where all is right."""
    run = folder / "run"
    passing = Passing(at, number, _begin(folder, start))
    try:
        with passing.everywhere():
            code, text = train(folder, run)
        wrong = _wrong(folder, run, passing, number, code, text)
        return wrong and f"{start}, call {at}, {errno.errorcode[number]}: {wrong}; it said: {text.strip()[-400:]}"
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _wrong(folder: Path, run: Path, passing: Passing, number: int, code: int, text: str) -> str:
    if lies := [lie for lie in _LIES if lie in text]:
        return f"it says {lies[0]!r}"
    if code and (os.strerror(number) not in text or "Fix: " not in text):
        return f"exit code {code}, without the reason or a remedy"
    for path in passing.saved[-_KEPT:]:
        try:
            read_checkpoint(path)
        except st.CheckpointError as error:
            return f"a saved checkpoint is not whole: {error}"
    if code:
        code, said = train(folder, run)
        if code:
            return f"resumed, it ends with {code}: {said[-300:]}"
    if outcome(run) != outcome(folder / "whole"):
        return "it ends otherwise than the run that met no error"
    return ""


def count_calls(folder: Path, start: str) -> int:
    """The calls of an undisturbed run."""
    run = folder / "run"
    passing = Passing(0, 0, _begin(folder, start))
    with passing.everywhere():
        train(folder, run)
    shutil.rmtree(run)
    return passing.n_calls


def results(errors: Sequence[str], every: int, first: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Try errors at every call, or at one of so many; a result for each start and error."""
    make_files(folder)
    for start in STARTS:
        n_calls = count_calls(folder, start)
        for error in errors:
            started = time.perf_counter()
            numbers = range(1 + first, n_calls + 1, every)
            wrongs = [try_call(folder, start, at, getattr(errno, error)) for at in numbers]
            yield {
                "stage": f"{start} with a passing error",
                "fault": error,
                "calls": n_calls,
                **tallied(wrongs),
                "seconds": round(time.perf_counter() - started, 1),
            }


def main() -> None:
    """Try everything that was asked for; exit with 1 where anything is wrong."""
    parser = new_parser(__doc__)
    parser.add_argument("--error", action="append", choices=ERRORS, help="only these; all by default")
    arguments = parse_sampled(parser, "call")
    torch.set_num_threads(1)
    n_wrong = 0
    with working_folder(memory_folder()) as folder:
        for result in results(arguments.error or ERRORS, arguments.every, arguments.first, folder):
            n_wrong += result["wrong"]
            line = "{stage:<44}{fault:<11}{calls:>6}{cases:>7}{wrong:>7}{seconds:>9}".format(**result)
            print_result(result, line if not result["first_wrong"] else f"{line}\n  {result['first_wrong']}")
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
