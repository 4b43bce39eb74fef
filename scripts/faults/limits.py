#!/usr/bin/env python3
"""Limits and passing errors at every place that a command reads or writes: said as what they are, and nothing lost.

A case is right if the command ends with the exit code of its place, names the file, the system's reason and a remedy,
calls nothing damaged, and leaves datasets and checkpoints as they were.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import shutil
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # streamtrain and scripts, run from anywhere

import numpy as np

import streamtrain as st
from scripts.faults.stages import tree_of
from scripts.faults.syscall_faults import failing
from scripts.runner import memory_folder, new_parser, parse_sampled, print_result, tallied, working_folder
from streamtrain.cli.main import main as run_command
from streamtrain.system.files import is_temporary

ERRORS: Final = (*("EMFILE", "ENFILE", "EIO", "ENOSPC", "EDQUOT", "EACCES", "EPERM", "ESTALE", "ETIMEDOUT", "ENOMEM"),)
RESOURCE_CODE: Final = 5
NOT_ALLOWED_CODES: Final = {"source": 3, "dataset": 4, "run": 6, "output": 5}
"""The exit code where this user has no permission, by the role of the file."""
_LIES: Final = ("damaged", "a bug in", "restore it", "train again", "left out", "afresh", "Traceback")
_KEPT: Final = ("d.zarr", "z.zarr", "v.zarr", "run")
_READS: Final = ("open_file", "stream", "stat")
_WRITES: Final = ("mkdir", "open", "writev", "fsync", "fsync_dir", "rename", "append")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A call of a command on some of its files: words with ``{}`` for the folder, and a pattern of the files' paths."""

    command: str
    call: str
    pattern: str
    role: str
    # A write that fails late leaves what was written before it, lines of metrics.jsonl.
    adds: bool = False

    def __str__(self) -> str:
        return f"{self.command.replace('{}/', '')}: {self.call} {self.pattern}"


_QUICK: Final = "--model linear --epochs 1 --memory 16MB --device cpu"
_SOURCES: Final = {
    "x.npy": "",
    "f.npy": "",
    "a.npz": "",
    "c.npz": "",
    "x.idx": "",
    "x.idx.gz": "",
    "x.bin": "--dtype float32 --shape 3",
    "t.csv": "--label-column y",
    "t.tsv": "--label-column y",
    "t.parquet": "--label-column y",
}
_ON_DATASET: Final = {
    "info": "info {}/d.zarr",
    "verify": "verify {}/d.zarr",
    "verify --full": "verify {}/d.zarr --full",
    "plan": "plan {}/d.zarr",
    "train": f"train {{}}/d.zarr {_QUICK} --out {{}}/new",
    "evaluate": "evaluate {}/run {}/d.zarr --memory 16MB",
    "compare": f"compare {{}}/d.zarr {_QUICK} --out {{}}/new --rules batch --optimizers sgd",
}
_RESUME: Final = f"train {{}}/d.zarr {_QUICK.replace('epochs 1', 'epochs 3')} --out {{}}/run --resume"


def places() -> Iterator[Place]:
    """List every place."""
    yield from _of_sources()
    yield from _of_datasets()
    yield from _of_blocks()
    yield from _of_runs()
    yield from _of_outputs()


def _of_sources() -> Iterator[Place]:
    for call in _READS:
        for name, options in _SOURCES.items():
            yield Place(command=f"ingest {{}}/{name} {{}}/new {options}", call=call, pattern=f"/{name}$", role="source")
        words = "ingest {}/x.npy {}/new --labels {}/y.npy"
        yield Place(command=words, call=call, pattern=r"/y\.npy$", role="source")
    yield Place(command="ingest {}/folder {}/new", call="names", pattern="/folder$", role="source")


def _of_datasets() -> Iterator[Place]:
    for command in (*_ON_DATASET.values(), "ingest {}/x.npy {}/d.zarr --labels {}/y.npy --append"):
        for call in ("open_file", "stream"):
            for key in ("zarr.json", "manifest.json", "crc32c/c/0/0"):
                yield Place(command=command, call=call, pattern=rf"d\.zarr/.*{key}$", role="dataset")
        yield Place(command=command, call="stat", pattern=r"d\.zarr$", role="dataset")
        yield Place(command=command, call="stat", pattern=r"d\.zarr/x/c/1/", role="dataset")
    yield Place(command="repair {}/d.zarr", call="stat", pattern=r"d\.zarr$", role="dataset")


def _of_blocks() -> Iterator[Place]:
    for dataset in ("d.zarr", "z.zarr"):
        commands = [_ON_DATASET[name] for name in ("verify --full", "train", "evaluate", "compare")]
        commands += [f"{_ON_DATASET['train']} --on-bad-block quarantine"]
        commands = [words.replace("d.zarr", dataset) for words in commands]
        commands += [_ON_DATASET["train"].replace("d.zarr", "v.zarr") + f" --val {{}}/{dataset}"]
        for command in commands:
            for call in ("open_file", "preadv"):
                yield Place(command=command, call=call, pattern=rf"{dataset}/x/c/[12]/", role="dataset")


def _of_runs() -> Iterator[Place]:
    resumed = {
        "config.json": ("stat",),
        "schema.json": ("open_file", "stream"),
        "metrics.jsonl": _READS,
        "checkpoints": ("names", "stat"),
        **dict.fromkeys((rf"\d/{name}" for name in ("manifest.json", "state.json", "model.safetensors")), _READS),
    }
    for name, calls in resumed.items():
        for call in calls:
            yield Place(command=_RESUME, call=call, pattern=f"/run/.*{name}$", role="run")
            if name not in ("config.json", "metrics.jsonl"):
                yield Place(command=_ON_DATASET["evaluate"], call=call, pattern=f"/run/.*{name}$", role="run")
    for call in ("open_file", "stream"):
        for name in ("config.json", "metrics.jsonl", "memory.json"):
            yield Place(command="report {}/run --out {}/new", call=call, pattern=f"/run/.*{name}$", role="run")


def _of_outputs() -> Iterator[Place]:
    for call in _WRITES:
        for how, name in (("", "new"), (" --overwrite", "d.zarr"), (" --append", "d.zarr")):
            words = f"ingest {{}}/x.npy {{}}/{name} --labels {{}}/y.npy{how}"
            yield Place(command=words, call=call, pattern=rf"/\.?{name}", role="output")
        for name in ("compare", "train"):
            yield Place(command=_ON_DATASET[name], call=call, pattern="/new", role="output")
        yield Place(command=_RESUME, call=call, pattern="/run/", role="output", adds=True)
    for call in ("open", "writev", "fsync", "rename"):
        yield Place(command="report {}/run --out {}/new", call=call, pattern=r"/\.?new", role="output")
        yield Place(command="profile --no-png --out {}/new -- true", call=call, pattern="/new", role="output")
    for name in ("config.json", "metrics.jsonl", "schema.json", "state.json", "model.safetensors", "memory.json"):
        yield Place(command=_ON_DATASET["train"], call="writev", pattern=rf"/new/.*{name}", role="output")


def make_files(folder: Path) -> None:
    """Write the sources, the datasets and a run that the places speak of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(0)
    x, y = chance.normal(size=(60, 3)).astype(np.float32), chance.integers(0, 3, 60)
    (folder / "folder").mkdir()
    for name in ("x.npy", "folder/x.npy"):
        np.save(folder / name, x)
    np.save(folder / "y.npy", y)
    np.save(folder / "f.npy", np.asfortranarray(x))
    np.savez(folder / "a.npz", x=x, y=y)
    np.savez_compressed(folder / "c.npz", x=x, y=y)
    (folder / "x.bin").write_bytes(x.tobytes())
    packed = struct.pack(">HBBII", 0, 0x0D, 2, *x.shape) + x.astype(">f4").tobytes()
    (folder / "x.idx").write_bytes(packed)
    (folder / "x.idx.gz").write_bytes(gzip.compress(packed))
    lines = ["a,b,c,y", *(f"{a},{b},{c},{label}" for (a, b, c), label in zip(x.tolist(), y.tolist(), strict=True))]
    (folder / "t.csv").write_text("\n".join(lines))
    (folder / "t.tsv").write_text("\n".join(lines).replace(",", "\t"))
    pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1], "y": y}), folder / "t.parquet")
    rows = {"x": x, "y": y}
    st.ingest(rows, folder / "d.zarr", block=160, shard=480)
    st.ingest(rows, folder / "z.zarr", block=160, shard=480, codec="lz4")
    st.ingest(rows, folder / "v.zarr")
    code, text = _run(_RESUME.replace("epochs 3", "epochs 2"), folder)
    assert code == 0, text


def _run(command: str, folder: Path) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_command(command.format(*[folder] * command.count("{}")).split())
    return code, out.getvalue()


_ADDED: Final = frozenset({"config.json", "metrics.jsonl", "scores.json"})
"""Files of a run in which the epochs stand that no checkpoint holds yet, and how many there are to be."""


def try_place(place: Place, error: str, folder: Path) -> str:
    """Run a place's command with its call failing; return what is wrong, nothing where all is right."""
    before = {name: tree_of(folder / name) for name in _KEPT}
    number = getattr(errno, error)
    with failing(place.call, place.pattern, number) as met:
        code, text = _run(place.command, folder)
    wrong = _wrong(place, number, met, code, text) if met else "the call was never made"
    for name, tree in before.items():
        if (after := tree_of(folder / name)) != tree:
            changed = sorted(key for key in {*tree, *after} if tree.get(key) != after.get(key))
            if code and not (place.adds and set(changed) <= _ADDED):
                wrong += f"; {name} is not as it was: {', '.join(changed[:4])}"
            _put_back(folder / name, tree)
    for left in [folder / "new", *folder.glob(".*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return wrong and f"{place}, {error}: {wrong}; it said: {text.strip()[-300:]}"


def _wrong(place: Place, number: int, met: Sequence[str], code: int, text: str) -> str:
    is_allowed = number not in (errno.EACCES, errno.EPERM)
    expected = RESOURCE_CODE if is_allowed else NOT_ALLOWED_CODES[place.role]
    # Nothing but what an ingest that is finished has replaced is left: said, and no failure.
    is_done = place.role == "output" and code == 0 and "complete, but something was left" in text
    if code != expected and not is_done:
        return f"exit code {code}, not {expected}"
    if os.strerror(number) not in text or not (is_done or "Fix: " in text):
        return "it does not say why, or what to do"
    # A folder that is only made to see whether one can be stands for the one that it is made in.
    named = {Path(path).name.strip(".").split(".")[0] for path in met}
    named |= {Path(path).parent.name for path in met if is_temporary(Path(path).name)}
    if not any(name in text for name in named):
        return "it does not name the file"
    lies = [lie for lie in _LIES if lie in text]
    return f"it says {lies[0]!r}" if lies and is_allowed else ""


def _put_back(path: Path, tree: dict[str, bytes]) -> None:
    shutil.rmtree(path)
    for key, data in tree.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_bytes(data)


def results(errors: Sequence[str], every: int, first: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Try errors at every place, or at one of so many; a result for each command and error."""
    make_files(folder)
    for error in errors:
        found: dict[str, list[str]] = defaultdict(list)
        started = time.perf_counter()
        for place in list(places())[first::every]:
            found[place.command.split()[0]].append(try_place(place, error, folder))
        for command, wrongs in found.items():
            yield {
                "stage": f"{command} under a limit",
                "fault": error,
                **tallied(wrongs),
                "seconds": round(time.perf_counter() - started, 1),
            }


def main() -> None:
    """Try everything that was asked for; exit with 1 where anything is wrong."""
    parser = new_parser(__doc__)
    parser.add_argument("--error", action="append", choices=ERRORS, help="only these; all by default")
    arguments = parse_sampled(parser, "place")
    n_wrong = 0
    print(f"{'stage':<26}{'error':<12}{'cases':>7}{'wrong':>7}{'seconds':>9}", file=sys.stderr)
    with working_folder(memory_folder()) as folder:
        for result in results(arguments.error or ERRORS, arguments.every, arguments.first, folder):
            n_wrong += result["wrong"]
            line = "{stage:<26}{fault:<12}{cases:>7}{wrong:>7}{seconds:>9}".format(**result)
            print_result(result, line if not result["first_wrong"] else f"{line}\n  {result['first_wrong']}")
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
