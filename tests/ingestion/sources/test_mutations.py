"""Mutated files through every parser: an error of ours or success; no crash, no hang, no allocation without measure.

A mutation is a few random edits of a valid file: bits, bytes of the extremes, stretches cut, doubled or moved, numbers
made large. ``scripts/faults/run parsing 10000 [FORMAT ...]`` tries so many of each format and prints what came of them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from images import encoded, pixels_of
from PIL import Image

import streamtrain
from streamtrain.errors import DatasetError, InputError, StreamtrainError
from streamtrain.ingestion.dry_run import find
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source
from streamtrain.loader.decode.images import decode_into
from streamtrain.store.codec import checksum

BUDGET_BYTES = 32_000_000
"""Limit of a parser for a file of a few KB: a hundredth of what a lie in one could ask for."""
SECONDS = 10
N_FAST = 150

Rng = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Files to start from, and what is done with a mutated one."""

    files: tuple[tuple[str, bytes], ...]
    parse: Callable[[Path, bytes], None]
    refusal: type[StreamtrainError] = InputError


def parse_source(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    source = open_source(path, options=SourceOptions(label_column="y" if path.suffix in (".csv", ".parquet") else None))
    n_bytes = 0
    for rows in source.iter_blocks(1 << 16):
        n_bytes += sum(values.nbytes for values in rows.values())
        if n_bytes > BUDGET_BYTES:
            break  # it may unpack to so much; that it comes in pieces is what counts


def saved(save: Callable[..., object], *args: Any, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    save(file, *args, **kwargs)
    return file.getvalue()


def idx(values: np.ndarray[Any, Any], code: int) -> bytes:
    head = bytes([0, 0, code, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def parquet_files() -> tuple[tuple[str, bytes], ...]:
    import pyarrow as pa
    from pyarrow import parquet

    rng = np.random.default_rng(3)
    names = pa.array(["a", "b", "c"] * 30)
    table = pa.table({"a": rng.normal(size=90), "b": rng.integers(0, 9, 90), "y": names})
    plain, packed = io.BytesIO(), io.BytesIO()
    parquet.write_table(table, plain, compression="none", row_group_size=40)
    parquet.write_table(table, packed, compression="zstd", use_dictionary=True, data_page_version="2.0")
    return (("plain.parquet", plain.getvalue()), ("packed.parquet", packed.getvalue()))


def csv_text() -> bytes:
    lines = [f'{i},{i / 7:.4f},"{"abc"[i % 3]}"' for i in range(60)]
    return "\n".join(["a,b,y", *lines, ""]).encode()


def source_formats() -> dict[str, Format]:
    rng = np.random.default_rng(2)
    images, numbers = rng.integers(0, 256, (20, 6, 6), np.uint8), rng.normal(size=(30, 4))
    raw = idx(images, 0x08)
    npy = (
        ("a.npy", saved(np.save, numbers)),
        ("b.npy", saved(np.save, np.asfortranarray(numbers))),
        ("c.npy", saved(np.save, images.astype(">i2"))),
    )
    npz = (
        ("a.npz", saved(np.savez, x=images, y=rng.integers(0, 3, 20))),
        ("b.npz", saved(np.savez_compressed, x=numbers)),
    )
    return {
        "idx": Format(
            files=(("images-idx3-ubyte", raw), ("images-idx3-ubyte.gz", gzip.compress(raw, mtime=0))),
            parse=parse_source,
        ),
        "npy": Format(files=npy, parse=parse_source),
        "npz": Format(files=npz, parse=parse_source),
        "csv": Format(files=(("t.csv", csv_text()),), parse=parse_source),
        "parquet": Format(files=parquet_files(), parse=parse_source),
    }


def read_hierarchy(path: Path) -> None:
    """Read arrays as an ingest does: its memory is solved before rows are asked for."""
    memory = BUDGET_BYTES
    found = find(path, path.with_name("none.zarr"), memory=memory, block="1KB", progress=False, n_workers=1)
    assert found.n_samples
    n_bytes = 0
    options = SourceOptions(memory=memory, n_workers=1)
    for rows in open_source(path, options=options).iter_blocks(1 << 16):
        n_bytes += sum(values.nbytes for values in rows.values())
        if n_bytes > BUDGET_BYTES:
            break


def parse_hdf5(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    read_hierarchy(path)


def hdf5_files() -> tuple[tuple[str, bytes], ...]:
    import h5py

    rng = np.random.default_rng(2)
    x = rng.integers(0, 99, (30, 4, 3)).astype("i2")
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in (
            ("plain.h5", {}),
            ("chunks.h5", {"chunks": (7, 2, 3), "compression": "gzip", "shuffle": True, "fletcher32": True}),
            ("lzf.h5", {"chunks": (7, 4, 3), "compression": "lzf"}),
        ):
            latest = name == "plain.h5"
            with h5py.File(Path(folder, name), "w", libver="latest" if latest else None) as file:
                made = file.create_dataset("x", data=x, **options)
                made.attrs.update({"scale_factor": 0.5, "_FillValue": np.int16(-1)})
                file["group/y"] = np.arange(30)
            files.append((name, Path(folder, name).read_bytes()))
    return tuple(files)


def zarr_format(number: Literal[2, 3]) -> Format:
    """The metadata and the first chunk of a small store, one of them mutated."""
    import zarr

    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=number)
        shards = {"shards": (20, 4)} if number == 3 else {}
        group.create_array("x", data=np.arange(160.0).reshape(40, 4), chunks=(10, 2), **shards)
        group.create_array("y", data=np.arange(40), chunks=(40,))
        group["x"].attrs["scale_factor"] = 0.5
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            files[str(file.relative_to(folder))] = file.read_bytes()

    def parse(path: Path, data: bytes) -> None:
        store = path.with_name("x.zarr")
        try:
            for name, content in files.items():
                (store / name).parent.mkdir(parents=True, exist_ok=True)
                (store / name).write_bytes(data if name == path.name.replace("!", "/") else content)
            read_hierarchy(store)
        finally:
            shutil.rmtree(store)

    names = [name for name in files if name.startswith("x/")][:3]
    changed = tuple((name.replace("/", "!"), files[name]) for name in names)
    return Format(files=changed, parse=parse, refusal=StreamtrainError)


def hierarchy_formats() -> dict[str, Format]:
    return {
        "h5": Format(files=hdf5_files(), parse=parse_hdf5, refusal=StreamtrainError),
        "zarr v2": zarr_format(2),
        "zarr v3": zarr_format(3),
    }


def parse_images(path: Path, data: bytes) -> None:
    """Store a file beside a right one of its kind; what is stored is its bytes, and they decode when they are read."""
    folder, dest = path.with_name("images"), path.with_name("d.zarr")
    folder.mkdir()
    try:
        (folder / f"a{path.suffix}").write_bytes(encoded(pixels_of(1)))
        (folder / f"b{path.suffix}").write_bytes(data)
        dataset = streamtrain.ingest(folder, dest, memory=BUDGET_BYTES, progress=False, n_workers=1)
        assert dataset[:]["image"][1] == data
        decode_into(np.empty((8, 8, 3), np.uint8), data, streamtrain.Images(8), 1)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(dest, ignore_errors=True)


def parse_tar(path: Path, data: bytes) -> None:
    """Store samples; what is stored is what Python's own module finds."""
    dest = path.with_name("d.zarr")
    path.write_bytes(data)
    try:
        dataset = streamtrain.ingest(path, dest, memory=BUDGET_BYTES, progress=False, n_workers=1, check="header")
        with tarfile.open(path) as file:
            members = {member.name: file.extractfile(member) for member in file if member.isreg()}
            found = [out.read() for name, out in members.items() if out is not None and name.endswith(".jpg")]
        assert dataset[:]["image"] == found
    finally:
        shutil.rmtree(dest, ignore_errors=True)


def tar_files() -> tuple[tuple[str, bytes], ...]:
    files = []
    for name, kind in (("a.tar", tarfile.USTAR_FORMAT), ("b.tar", tarfile.GNU_FORMAT), ("c.tar", tarfile.PAX_FORMAT)):
        out, folder = io.BytesIO(), "f" * (1 if kind == tarfile.USTAR_FORMAT else 120)
        with tarfile.open(fileobj=out, mode="w", format=kind) as file:
            for i in range(3):
                for suffix, content in (("jpg", encoded(pixels_of(i, size=(8, 9)))), ("cls", str(i).encode())):
                    info = tarfile.TarInfo(f"{folder}/{i:04}.{suffix}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
        files.append((name, out.getvalue()))
    return tuple(files)


def image_formats() -> dict[str, Format]:
    def of(kind: str, *ways: dict[str, Any]) -> Format:
        files = tuple((f"{i}.{kind.lower()}", encoded(pixels_of(0), kind, **how)) for i, how in enumerate(ways))
        return Format(files=files, parse=parse_images, refusal=StreamtrainError)

    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "tar": Format(files=tar_files(), parse=parse_tar, refusal=StreamtrainError),
        "jpeg": of("JPEG", {}, {"progressive": True}, {"exif": exif}),
        "png": of("PNG", {}, {"exif": exif}),
        "webp": of("WEBP", {}, {"lossless": True}),
    }


def store_formats(whole: Path) -> dict[str, Format]:
    """The JSON of a dataset, each mutated under digests that agree with it again, so that the parser is reached."""

    def parse(path: Path, data: bytes) -> None:
        key = path.name.replace("!", "/")
        copy = Path(shutil.copytree(whole, path.with_name("d.zarr")))
        try:
            (copy / key).write_bytes(data)
            _reseal(copy, key, data)
            dataset = streamtrain.open(copy)
            np.testing.assert_array_equal(dataset[3:9]["x"], np.arange(3, 9)[:, None] * np.ones(3))
            dataset.stats("y")
        finally:
            shutil.rmtree(copy)

    def of(*keys: str) -> Format:
        files = tuple((key.replace("/", "!"), (whole / key).read_bytes()) for key in keys)
        return Format(files=files, parse=parse, refusal=DatasetError)

    return {"manifest": of("_streamtrain/manifest.json"), "zarr.json": of("zarr.json", "x/zarr.json", "y/zarr.json")}


def _reseal(path: Path, key: str, data: bytes) -> None:
    manifest = path / "_streamtrain/manifest.json"
    if key.endswith("/zarr.json"):
        found = json.loads(manifest.read_bytes())
        found["files"][key] = [len(data), checksum(data)]
        manifest.write_text(json.dumps(found))
    if key != "zarr.json":
        root = json.loads((path / "zarr.json").read_bytes())
        root["attributes"]["streamtrain"]["manifest_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        (path / "zarr.json").write_text(json.dumps(root))


EXTREMES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
)
WORDS = (
    b"-1",
    b"0",
    b"1e400",
    b"99999999999999999999",
    b"NaN",
    b"null",
    b"[]",
    b'"',
    b"\n",
    b",",
    b"{",
    b"\xc3\x28",
    b"object",
)


def mutated(data: bytes, rng: Rng) -> bytes:
    for _ in range(int(rng.integers(1, 4))):
        data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
    return data


def _at(data: bytes, rng: Rng) -> int:
    """A place; half of the time near an end, where headers and footers are."""
    n = len(data) + 1
    near = int(rng.integers(min(n, 80)))
    return (near if rng.integers(2) else max(0, n - 1 - near)) if rng.integers(2) else int(rng.integers(n))


def _flip(data: bytes, rng: Rng) -> bytes:
    at = min(_at(data, rng), len(data) - 1)
    return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :] if data else data


def _extreme(data: bytes, rng: Rng) -> bytes:
    at, value = _at(data, rng), EXTREMES[int(rng.integers(len(EXTREMES)))]
    return data[:at] + value + data[at + len(value) :]


def _word(data: bytes, rng: Rng) -> bytes:
    at, word = _at(data, rng), WORDS[int(rng.integers(len(WORDS)))]
    return data[:at] + word + data[at + int(rng.integers(2)) * len(word) :]


def _cut(data: bytes, rng: Rng) -> bytes:
    start, n = _at(data, rng), int(rng.integers(1, 64))
    return data[:start] if not rng.integers(3) else data[:start] + data[start + n :]


def _double(data: bytes, rng: Rng) -> bytes:
    start, n, at = _at(data, rng), int(rng.integers(1, 64)), _at(data, rng)
    return data[:at] + data[start : start + n] + data[at:]


def _number(data: bytes, rng: Rng) -> bytes:
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    start, stop = found[int(rng.integers(len(found)))].span()
    return data[:start] + str(int(rng.choice([0, 2, 255, 2**31, 2**40, 2**62]))).encode() + data[stop:]


MUTATIONS: tuple[Callable[[bytes, Rng], bytes], ...] = (_flip, _extreme, _word, _cut, _double, _number)


@contextmanager
def watched() -> Iterator[None]:
    """No more than so many seconds, where the system has alarms, and so many bytes of Python's and NumPy's."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1] - held
        assert taken <= BUDGET_BYTES, f"took {taken:,} bytes"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(form: Format, folder: Path, seed: int) -> str:
    """Parse one mutated file; say what came of it. Anything but success or an error of ours fails, with its seed."""
    rng = np.random.default_rng(seed)
    name, data = form.files[seed % len(form.files)]
    changed = mutated(data, rng)
    try:
        with watched():
            try:
                form.parse(folder / name, changed)
            except form.refusal as error:
                if str(folder) in str(error):
                    return "refused"
                raise
    except Exception as error:
        raise AssertionError(f"seed {seed} of {name}: {type(error).__name__}: {error}") from error
    return "unchanged" if changed == data else "taken"


def attempts(form: Format, folder: Path, seeds: range) -> tuple[Counter[str], list[str]]:
    """Parse many; what came of them, and what failed."""
    found, failed = Counter[str](), list[str]()
    tracemalloc.start()
    try:
        for seed in seeds:
            try:
                found[attempt(form, folder, seed)] += 1
            except AssertionError as error:
                failed.append(str(error))
    finally:
        tracemalloc.stop()
    return found, failed


def make_whole(path: Path) -> Path:
    x = np.arange(30, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    streamtrain.ingest({"x": x, "y": np.arange(30) % 3}, path, block=20 * 4, shard=12 * 8, codec="lz4")
    return path


@pytest.mark.parametrize("name", ["idx", "npy", "npz", "csv", "parquet"])
def test_a_mutated_source_is_refused_or_read(name: str, tmp_path: Path) -> None:
    found, failed = attempts(source_formats()[name], tmp_path, range(N_FAST))
    assert found["refused"] > N_FAST / 3
    assert (found.total(), failed) == (N_FAST, [])


@pytest.mark.parametrize("name", ["h5", "zarr v2", "zarr v3"])
def test_a_mutated_hierarchy_is_refused_or_read(name: str, tmp_path: Path) -> None:
    found, failed = attempts(hierarchy_formats()[name], tmp_path, range(N_FAST // 3))
    assert found["refused"] > N_FAST / 15
    assert (found.total(), failed) == (N_FAST // 3, [])


@pytest.mark.parametrize("name", ["tar", "jpeg", "png", "webp"])
def test_mutated_images_are_refused_or_read(name: str, tmp_path: Path) -> None:
    found, failed = attempts(image_formats()[name], tmp_path, range(N_FAST // 5))
    assert found["refused"] > N_FAST / 25
    assert (found.total(), failed) == (N_FAST // 5, [])


@pytest.mark.parametrize("name", ["manifest", "zarr.json"])
def test_mutated_json_of_a_dataset_is_refused_or_right(name: str, tmp_path: Path) -> None:
    form = store_formats(make_whole(tmp_path / "whole.zarr"))[name]
    found, failed = attempts(form, tmp_path, range(N_FAST))
    assert found["refused"] > N_FAST / 3
    assert (found.total(), failed) == (N_FAST, [])


def main() -> None:
    """Try so many mutations of each format, or of the named ones; print what came of them, in JSON and for people."""
    first, _, n = sys.argv[1].rpartition(":")
    seeds, n_wrong = range(int(first or 0), int(first or 0) + int(n)), 0
    with tempfile.TemporaryDirectory() as folder:
        forms = (
            source_formats()
            | hierarchy_formats()
            | image_formats()
            | store_formats(make_whole(Path(folder, "whole.zarr")))
        )
        for name in sys.argv[2:] or forms:
            started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found, failed = attempts(forms[name], Path(folder), seeds)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            seconds, n_wrong = time.perf_counter() - started, n_wrong + len(failed)
            result = {"stage": f"parsing {name}", "fault": "mutated file", "cases": len(seeds), "wrong": len(failed)}
            print(json.dumps({**result, "first_wrong": next(iter(failed), None), **found}), flush=True)
            line = f"{name}: {len(seeds):,} mutations: {dict(found)}, {len(failed)} wrong; RSS grew {grown:.0f} MiB"
            print(f"{line}, {seconds:.0f} s", *failed[:1], sep="\n  ", file=sys.stderr, flush=True)
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
