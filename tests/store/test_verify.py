"""All damage is found, each piece of it named once, and a whole dataset is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import streamtrain
from streamtrain.errors import DamagedBlock, DatasetError, LockedError
from streamtrain.store import verify as verify_module
from streamtrain.store.verify import VerifyReport, verify
from streamtrain.store.writing.lock import writer_lock
from streamtrain.system.files import Files


@pytest.fixture(scope="module", params=["none", "lz4", "zstd"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "d.zarr"
    x = np.random.default_rng(0).integers(0, 5, (400, 16), np.uint8)
    streamtrain.ingest({"x": x, "y": np.arange(400) % 4}, path, block=24 * 20, shard=16 * 100, codec=request.param)
    return path


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "d.zarr"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def found(verified: VerifyReport) -> set[tuple[str, object]]:
    """The file of each piece of damage, and the block where it is one."""
    return {(str(error.where), getattr(error, "block", None)) for error in verified.damage}


def test_a_whole_dataset_is_whole(original: Path) -> None:
    told: list[tuple[int, int]] = []
    quick, full = verify(original), verify(original, full=True, tell=lambda done, total: told.append((done, total)))
    assert quick.damage == full.damage == ()
    assert (quick.n_bytes, quick.full, full.full) == (0, False, True)
    shards = sum(path.stat().st_size for name in "xy" for path in (original / name / "c").rglob("*") if path.is_file())
    assert full.n_bytes == sum(done for done, _ in told) == shards
    assert {total for _, total in told} == {shards}
    assert full.bytes_per_second > 0


def test_all_damage_is_found_at_once(copy: Path) -> None:
    dataset = streamtrain.open(copy)
    flip(copy / "x/c/0/0", 2)
    flip(copy / "y/c/1", 3)
    (copy / "x/c/2/0").write_bytes(b"12")
    (copy / "y/c/2").unlink()
    flip(copy / "y/zarr.json", 40)
    flip(copy / "_streamtrain/stats/x/c/0/0", 5)
    (copy / "x/c/99").write_bytes(b"")
    lost = {
        (f"{copy}/x/c/2/0", None),
        (f"{copy}/y/c/2", None),
        (f"{copy}/y/zarr.json", None),
        (f"{copy}/_streamtrain/stats/x/c/0/0", None),
        (f"{copy}/x/c/99", None),
    }
    assert found(verify(copy)) == lost
    blocks = {(f"{copy}/x/c/0/0", 0), (f"{copy}/y/c/1", dataset.layout.shard_blocks)}
    verified = verify(copy, full=True)
    assert found(verified) == lost | blocks
    (one,) = (error for error in verified.damage if isinstance(error, DamagedBlock) and error.field == "x")
    assert one.samples == (0, dataset.layout.block_rows)
    assert "block 0 of field x (samples 0 to" in str(one)
    assert all(error.fix and error.exit_code == 4 for error in verified.damage)


@pytest.mark.parametrize("at", [0, 3, -1, -5, -20], ids=str)
def test_every_part_of_a_shard_is_held_against_something(copy: Path, at: int) -> None:
    flip(copy / "x/c/0/0", at)
    assert verify(copy).damage == () or at >= 0
    (error,) = verify(copy, full=True).damage
    assert str(copy / "x/c/0/0") in str(error)


def test_the_checksum_that_follows_a_block_is_compared_too(copy: Path) -> None:
    dataset = streamtrain.open(copy)
    end = 20 * 16 if dataset.layout.codec == "none" else None
    if end is None:
        data = (copy / "x/c/0/0").read_bytes()
        end = int.from_bytes(data[12:16], "little")  # blosc's header names its length
    flip(copy / "x/c/0/0", end + 1)
    (error,) = verify(copy, full=True).damage
    assert "block 0 of field x" in str(error)
    assert "The checksum that follows it" in str(error)


def test_shards_that_changed_places(copy: Path) -> None:
    a, b = copy / "y/c/0", copy / "y/c/1"
    before, data = a.read_bytes(), b.read_bytes()
    a.write_bytes(data)
    assert (len(data) == len(before)) == (verify(copy).damage == ())
    assert verify(copy, full=True).damage or data == before


def test_blocks_are_checked_without_the_table(copy: Path) -> None:
    flip(copy / "_streamtrain/crc32c/c/0/0", 2)
    flip(copy / "x/c/1/0", 7)
    verified = verify(copy, full=True)
    assert found(verified) == {(f"{copy}/_streamtrain/crc32c/c/0/0", None), (f"{copy}/x/c/1/0", None)}
    assert "the manifest says" in str(verified.damage[1])


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda path: flip(path / "_streamtrain/manifest.json", 30), "not the one that was committed"),
        (lambda path: (path / "zarr.json").write_bytes(b"{}"), "no manifest"),
        (lambda path: shutil.rmtree(path), "no such dataset"),
    ],
)
def test_without_a_manifest_nothing_can_be_said(copy: Path, harm: Callable[[Path], object], match: str) -> None:
    harm(copy)
    with pytest.raises(DatasetError, match=match):
        verify(copy, full=True)


def test_an_ingest_that_begins_as_leftovers_are_listed_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "d.zarr", verify_module._found
    streamtrain.ingest({"x": range(9)}, path)

    def late(folder: Path) -> list[tuple[Path, str]]:
        made.enter_context(writer_lock(path, Files()))
        (path.with_name(".d.zarr.new")).mkdir()
        return list(real(folder))

    monkeypatch.setattr(verify_module, "_found", late)
    with ExitStack() as made, pytest.raises(LockedError):
        streamtrain.repair(path)


def test_what_goes_as_it_is_listed_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "d.zarr", verify_module._size
    streamtrain.ingest({"x": range(9)}, path)
    (path / ".x.01234567.tmp").touch()

    def late(found: Path) -> int:
        found.unlink()
        return real(found)

    monkeypatch.setattr(verify_module, "_size", late)
    assert streamtrain.repair(path) == ()
