"""Streamtrain's own files with hostile fields, under digests that agree with them, and the commands that read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hostile_values import Rng, mutated_json, pick

import streamtrain
from streamtrain.cli.main import main as command
from streamtrain.store.codec import checksum

Words = list[str]
Harm = Callable[[Rng, Path], Iterator[Words]]
"""Changes a file in a copy of what `make_whole` made, and gives the commands that must refuse it, or be right."""

MEMORY = ("--memory", "16MB")


def make_whole(folder: Path) -> Path:
    """A dataset with names, a run of it, and the dataset again, its ingest interrupted."""
    folder.mkdir(exist_ok=True)
    table = folder / "t.csv"
    lines = [f"{i},{i / 7:.4f},{'abc'[i % 3]}" for i in range(60)]
    table.write_text("\n".join(["a,b,y", *lines, ""]))
    streamtrain.ingest(table, folder / "d.zarr", label_column="y", block=64, shard="1KB", progress=False)
    words = [
        "train",
        str(folder / "d.zarr"),
        "--model",
        "linear",
        "--epochs",
        "1",
        *MEMORY,
        "--device",
        "cpu",
        "--json",
    ]
    assert command([*words, "--out", str(folder / "run")]) == 0
    return folder


def _reseal(path: Path, key: str, data: bytes) -> None:
    manifest = path / "_streamtrain/manifest.json"
    (path / key).write_bytes(data)
    if key.endswith("/zarr.json"):
        found = json.loads(manifest.read_bytes())
        found["files"][key] = [len(data), checksum(data)]
        manifest.write_text(json.dumps(found))
    if key != "zarr.json":
        root = json.loads((path / "zarr.json").read_bytes())
        root["attributes"]["streamtrain"]["manifest_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        (path / "zarr.json").write_text(json.dumps(root))


def _of_dataset(*keys: str) -> Harm:
    def harm(rng: Rng, whole: Path) -> Iterator[Words]:
        path, key = whole / "d.zarr", pick(rng, keys)
        _reseal(path, key, mutated_json(json.loads((path / key).read_bytes()), rng))
        _check_rows(path)
        for words in (["info"], ["verify"], ["plan"]):
            yield [*words, str(path)]
        yield ["evaluate", str(whole / "run"), str(path), *MEMORY, "--device", "cpu"]

    return harm


def _check_rows(path: Path) -> None:
    try:
        dataset = streamtrain.open(path)
    except streamtrain.StreamtrainError:
        return
    rows = dataset[3:9]
    np.testing.assert_array_equal(rows["x"][:, 0], np.arange(3, 9))
    np.testing.assert_array_equal(rows["y"], np.arange(3, 9) % 3)


def _of_run(name: str, *, lines: bool = False) -> Harm:
    def harm(rng: Rng, whole: Path) -> Iterator[Words]:
        file = whole / "run" / name
        if lines:
            told = file.read_bytes().splitlines()
            place = int(rng.integers(len(told)))
            told[place] = mutated_json(json.loads(told[place]), rng)
            file.write_bytes(b"\n".join(told) + b"\n" * int(rng.integers(2)))
        else:
            file.write_bytes(mutated_json(json.loads(file.read_bytes()), rng))
        yield from _reading(rng, whole)

    return harm


def _reading(rng: Rng, whole: Path) -> Iterator[Words]:
    run, data = str(whole / "run"), str(whole / "d.zarr")
    train = ["train", data, "--model", "linear", "--out", run, *MEMORY, "--device", "cpu"]
    yield ["evaluate", run, data, *MEMORY, "--device", "cpu"]
    yield [*train, "--epochs", str(pick(rng, (1, 2))), "--resume"]
    if not rng.integers(4):
        yield ["report", run, "--out", str(whole / "report.html")]


def _checkpoint(whole: Path) -> Path:
    return next((whole / "run/checkpoints").iterdir())


def _seal_checkpoint(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    told = json.loads((folder / "manifest.json").read_bytes())
    told["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(told))


def _of_checkpoint_manifest(rng: Rng, whole: Path) -> Iterator[Words]:
    file = _checkpoint(whole) / "manifest.json"
    file.write_bytes(mutated_json(json.loads(file.read_bytes()), rng))
    yield from _reading(rng, whole)


def _of_state(rng: Rng, whole: Path) -> Iterator[Words]:
    folder = _checkpoint(whole)
    _seal_checkpoint(folder, "state.json", mutated_json(json.loads((folder / "state.json").read_bytes()), rng))
    yield from _reading(rng, whole)


def _of_tensors(rng: Rng, whole: Path) -> Iterator[Words]:
    folder = _checkpoint(whole)
    file = pick(rng, sorted(folder.glob("*.safetensors")))
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = mutated_json(json.loads(data[8 : 8 + size]), rng)
    told = len(header) if rng.integers(8) else int(pick(rng, (0, 1, 2**31, 2**63, 2**64 - 1)))
    body = data[8 + size :]
    if not rng.integers(4):
        values = np.frombuffer(body[: len(body) // 4 * 4], np.float32).copy()
        values[: max(1, len(values) // 2)] = pick(rng, (np.nan, np.inf, 1e38, 0))
        body = values.tobytes() + body[len(body) // 4 * 4 :]
    _seal_checkpoint(folder, file.name, told.to_bytes(8, "little") + header + body)
    yield from _reading(rng, whole)


def _of_journal(rng: Rng, whole: Path) -> Iterator[Words]:
    """The dataset as if its ingest had been killed, and a journal of which a line is another."""
    path, table = whole / "d.zarr", whole / "t.csv"
    manifest = json.loads((path / "_streamtrain/manifest.json").read_bytes())
    head: dict[str, Any] = {"mode": "create", "base": None, "version": streamtrain.__version__}
    head |= {name: manifest[name] for name in ("layout", "classes", "sources", "options")}
    n_shards = len(list((path / "x/c").iterdir()))
    files = [
        [manifest["files"][f"{key}/c/{shard}{end}"] for key, end in (("x", "/0"), ("y", ""))]
        for shard in range(n_shards)
    ]
    lines = [json.dumps(head).encode(), *(json.dumps({"shard": i, "files": f}).encode() for i, f in enumerate(files))]
    place = int(rng.integers(2)) and int(rng.integers(len(lines)))
    lines[place] = mutated_json(json.loads(lines[place]), rng)
    sealed = b"".join(b"%08x %s\n" % (checksum(line), line) for line in lines)
    (path / "_streamtrain/journal").write_bytes(sealed)
    (path / "zarr.json").unlink()
    (path / "_streamtrain/manifest.json").unlink()
    words = ["ingest", str(table), str(path), "--label-column", "y", "--block", "64", "--shard", "1KB"]
    yield ["info", str(path)]
    yield ["repair", str(path)]
    yield [*words, "--resume"]
    yield ["repair", str(path), "--remove"]


def _of_lock(rng: Rng, whole: Path) -> Iterator[Words]:
    import fcntl

    path, lock = whole / "e.zarr", whole / ".e.zarr.lock"
    lock.write_bytes(mutated_json({"pid": 1, "host": "here"}, rng))
    with lock.open("rb") as file:
        if rng.integers(2):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield ["ingest", str(whole / "t.csv"), str(path), "--label-column", "y"]
        yield ["repair", str(path)]


OWN: dict[str, Harm] = {
    "manifest": _of_dataset("_streamtrain/manifest.json"),
    "zarr.json": _of_dataset("zarr.json", "x/zarr.json", "y/zarr.json", "_streamtrain/crc32c/zarr.json"),
    "journal": _of_journal,
    "lock": _of_lock,
    "schema.json": _of_run("schema.json"),
    "config.json": _of_run("config.json"),
    "metrics.jsonl": _of_run("metrics.jsonl", lines=True),
    "memory.json": _of_run("memory.json"),
    "checkpoint manifest": _of_checkpoint_manifest,
    "checkpoint state": _of_state,
    "checkpoint tensors": _of_tensors,
}
