"""Damage on the disk, reported before a wrong value reaches a batch: flips, cuts, swaps, losses.

Every case is one harm to a fresh copy, then a whole use of it: open it, read the statistics, take an epoch. It ends in
an error of ours, or all values are right; harm that is read is reported. ``scripts/faults/run reading`` harms every
byte of every file, and prints the counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import streamtrain
from streamtrain.errors import DatasetError
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.store.codec import checksum, checksum_bytes
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import CHECKSUM_BYTES
from streamtrain.store.shard import index_bytes

CODECS = ("none", "lz4", "zstd")
N_SAMPLES, WIDTH = 123, 5
SEED = np.random.default_rng(0)
ROWS = np.arange(N_SAMPLES)[:, None] * 7 + np.arange(WIDTH) % 3

Harm = Callable[[Path], object]
TOLD, RIGHT = "told", "right"


def make(path: Path, codec: str) -> Path:
    source = {"x": ROWS.astype(np.int32), "y": np.arange(N_SAMPLES) % 4}
    streamtrain.ingest(source, path, block=28 * 10, shard=20 * 40, codec=codec)
    return path


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def use(path: Path) -> str:
    """Open, look, take an epoch: an error of ours, or every value right; anything else fails."""
    try:
        dataset = streamtrain.open(path)
        take(dataset)
        for field in dataset.fields:
            dataset.stats(field.name)
    except DatasetError as error:
        return TOLD if error.exit_code == 4 and str(path) in str(error) else f"told badly: {error}"
    return RIGHT


def take(dataset: Dataset) -> None:
    """An epoch, each batch of it compared with what was ingested; and nothing missing at its end."""
    seen = 0
    with StreamLoader(dataset, batch_size=32, memory="16MB", lanes=4) as loader:
        for x, y in loader:
            rows = x[:, 0].numpy() // 7
            np.testing.assert_array_equal(x.numpy(), ROWS[rows])
            np.testing.assert_array_equal(y.numpy(), rows % 4)
            seen += len(rows)
    assert seen == N_SAMPLES


def regions(path: Path, codec: str) -> Iterator[tuple[Path, int, int, str]]:
    """Each stretch of each file: the file, its first and last byte, and what it is."""
    layout = streamtrain.open(path).layout
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        n_bytes = file.stat().st_size
        if file.relative_to(path).parts[1:2] != ("c",):
            yield file, 0, n_bytes, "metadata"
            continue
        data = file.read_bytes()
        index_at = n_bytes - index_bytes(layout.shard_blocks)
        entries = np.frombuffer(data[index_at:-CHECKSUM_BYTES], "<u8").reshape(-1, 2)
        for offset, size in entries[entries[:, 1] < n_bytes].astype(int).tolist():
            yield file, offset, offset + size - CHECKSUM_BYTES, "block"
            yield file, offset + size - CHECKSUM_BYTES, offset + size, "checksum beside a block"
        yield file, index_at, n_bytes, "index of raw blocks" if codec == "none" else "index"


READ = {"metadata", "block", "index"}
"""Parts that an epoch's direct reads touch; beside it lies what stock zarr needs, and `verify --full` holds."""


def harmed(whole: Path, harm: Harm) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(whole, Path(folder, "d.zarr")))
        harm(path)
        return use(path)


def flips(whole: Path, codec: str, *, most_per_region: int | None) -> dict[str, Counter[str]]:
    """Flip one bit of some bytes of each region, or of all of them; count what came of it, by region."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for file, start, stop, region in regions(whole, codec):
        n = stop - start if most_per_region is None else min(stop - start, most_per_region)
        for at in sorted({start, stop - 1, *SEED.choice(np.arange(start, stop), n, replace=False).tolist()}):
            bit = int(SEED.integers(8))
            outcome = harmed(whole, lambda path: flip(path / file.relative_to(whole), at, bit))  # noqa: B023 - used at once
            found[region][outcome] += 1
    return found


@pytest.fixture(scope="module", params=CODECS)
def codec(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(codec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("whole") / "d.zarr", codec)


def test_nothing_harmed_is_right(whole: Path) -> None:
    assert harmed(whole, lambda path: None) == RIGHT


def test_one_flipped_bit_in_every_region_of_every_file(whole: Path, codec: str) -> None:
    found = flips(whole, codec, most_per_region=1)
    assert found.keys() == READ - ({"index"} if codec == "none" else set()) | {"checksum beside a block"} | (
        {"index of raw blocks"} if codec == "none" else set()
    )
    assert all(found[region].keys() == {TOLD} for region in READ & found.keys()), found
    assert all(found[region].keys() <= {TOLD, RIGHT} for region in found), found
    assert sum(found[region][TOLD] for region in READ & found.keys()) > 80


def cuts(whole: Path, n: int) -> Counter[str]:
    """Cut or lengthen every file, before it is opened; count what came of it."""
    found: Counter[str] = Counter()
    for file in sorted(file for file in whole.rglob("*") if file.is_file()):
        size = file.stat().st_size
        lengths = {0, 1, size // 2, size - CHECKSUM_BYTES, size - 1, size + 1, *SEED.integers(0, size, n).tolist()}
        for length in sorted(lengths - {size}):
            found[harmed(whole, lambda path: _resize(path / file.relative_to(whole), length))] += 1  # noqa: B023
    return found


def _resize(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)


def test_every_file_cut_at_many_lengths(whole: Path) -> None:
    found = cuts(whole, 0)
    assert found.keys() == {TOLD}, "nothing opens"
    assert found[TOLD] > 100


def test_every_file_lost(whole: Path) -> None:
    for file in sorted(file for file in whole.rglob("*") if file.is_file()):
        assert harmed(whole, lambda path: (path / file.relative_to(whole)).unlink()) == TOLD  # noqa: B023


def _exchange(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def test_shards_swapped_and_duplicated(whole: Path) -> None:
    shards = sorted((whole / "x/c").rglob("0"))[1:]
    names = [shard.relative_to(whole) for shard in shards if shard.is_file()]
    assert len(names) > 3
    for a, b in pairwise(names):
        assert harmed(whole, lambda path: _exchange(path / a, path / b)) == TOLD  # noqa: B023
        assert harmed(whole, lambda path: shutil.copyfile(path / a, path / b)) == TOLD  # noqa: B023


def swap_blocks(path: Path, layout_blocks: int, *, duplicate: bool) -> None:
    """Let two index entries of a shard change places, or be the same one, under a right checksum of the index."""
    data = path.read_bytes()
    at = len(data) - index_bytes(layout_blocks)
    index = np.frombuffer(data[at:-CHECKSUM_BYTES], "<u8").reshape(-1, 2).copy()
    index[[0, 1]] = index[[0, 0]] if duplicate else index[[1, 0]]
    path.write_bytes(data[:at] + index.tobytes() + checksum_bytes(checksum(index.tobytes())))


@pytest.mark.parametrize("duplicate", [False, True])
def test_blocks_swapped_under_a_right_index(whole: Path, codec: str, duplicate: bool) -> None:
    if codec == "none":
        n_bytes = streamtrain.open(whole).layout.block_rows * 4 * WIDTH + CHECKSUM_BYTES

        def swap(path: Path) -> None:
            data = (path / "x/c/1/0").read_bytes()
            first, second = data[:n_bytes], data[n_bytes : 2 * n_bytes]
            (path / "x/c/1/0").write_bytes(second + (second if duplicate else first) + data[2 * n_bytes :])

        assert harmed(whole, swap) == TOLD
    else:
        n_blocks = streamtrain.open(whole).layout.shard_blocks
        assert harmed(whole, lambda path: swap_blocks(path / "x/c/1/0", n_blocks, duplicate=duplicate)) == TOLD


def test_a_shard_of_another_dataset(whole: Path, codec: str, tmp_path: Path) -> None:
    other = {"x": ROWS[::-1].astype(np.int32), "y": np.arange(N_SAMPLES) % 4}
    streamtrain.ingest(other, tmp_path / "o", block=28 * 10, shard=20 * 40, codec=codec)
    assert harmed(whole, lambda path: shutil.copyfile(tmp_path / "o/x/c/1/0", path / "x/c/1/0")) == TOLD


def test_a_manifest_of_another_dataset_that_the_root_agrees_with(whole: Path, codec: str, tmp_path: Path) -> None:
    other = {"x": ROWS[::-1].astype(np.int32), "y": np.arange(N_SAMPLES) % 4}
    streamtrain.ingest(other, tmp_path / "o", block=28 * 10, shard=20 * 40, codec=codec)

    def swap(path: Path) -> None:
        manifest = (tmp_path / "o/_streamtrain/manifest.json").read_bytes()
        (path / "_streamtrain/manifest.json").write_bytes(manifest)
        root = json.loads((path / "zarr.json").read_bytes())
        root["attributes"]["streamtrain"]["manifest_sha256"] = hashlib.sha256(manifest).hexdigest()
        (path / "zarr.json").write_text(json.dumps(root))

    assert harmed(whole, swap) == TOLD


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("harm", ["gone", "empty", "cut", "pipe", "link", "flipped"])
def test_harm_after_opening_names_the_block(whole: Path, tmp_path: Path, harm: str, direct: bool) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "d.zarr"))
    dataset = streamtrain.open(path)
    shard = path / "x/c/2/0"
    if harm == "cut":
        _resize(shard, shard.stat().st_size // 2)
    elif harm == "empty":
        _resize(shard, 0)
    elif harm == "flipped":
        flip(shard, 3, 1)
    else:
        shard.rename(tmp_path / "aside")
        if harm == "pipe":
            os.mkfifo(shard)
        elif harm == "link":
            shard.symlink_to(tmp_path / "aside")
    with pytest.raises(DatasetError) as caught:
        take(dataset) if direct else [dataset[i] for i in range(N_SAMPLES)]
    message = str(caught.value)
    for part in (str(shard), "of field x (samples ", "block ", "Fix: restore it from a copy"):
        assert part in message


def main() -> None:
    """Harm every byte of every file of a dataset of each codec: a JSON line for each kind of harm, one for people."""
    n_wrong = 0
    for name in sys.argv[1:] or CODECS:
        with tempfile.TemporaryDirectory() as folder:
            whole = make(Path(folder, "d.zarr"), name)
            found = {f"a bit of {region} flipped": n for region, n in flips(whole, name, most_per_region=None).items()}
            found["a file cut or lengthened"] = cuts(whole, 20)
        for fault, outcomes in found.items():
            # What no read of an epoch touches may stay untold, as long as every value is right.
            allowed = {TOLD} if fault.removeprefix("a bit of ").removesuffix(" flipped") in READ else {TOLD, RIGHT}
            allowed = {TOLD} if fault.startswith("a file") else allowed
            wrong = sum(n for outcome, n in outcomes.items() if outcome not in allowed)
            n_wrong += wrong
            result = {"stage": f"reading, {name}", "fault": fault, "cases": outcomes.total(), "wrong": wrong}
            print(json.dumps({**result, **outcomes}), flush=True)
            print(f"{name}: {fault}: {dict(outcomes)}, {wrong} wrong", file=sys.stderr, flush=True)
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
