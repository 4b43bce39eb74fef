"""The cost of checking, at small size; and that the two ways differ in nothing but the checking."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from run_script import results_of, run_script

import streamtrain as st
from scripts.bench import checksums as bench
from streamtrain.errors import DamagedBlock
from streamtrain.store import shard as shards

ARGUMENTS = argparse.Namespace(batch_size=64, memory="16MB")


@pytest.fixture(params=["none", "lz4"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> st.Dataset:
    rows = np.random.default_rng(0).integers(0, 64, (3000, 100), np.uint8)
    return st.ingest({"x": rows}, tmp_path / "d.zarr", codec=request.param, block="10KB", progress=False)


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    small = ["--size", "2MB", "--memory", "16MB", "--repeats", "2", "--folder", str(tmp_path)]
    done = run_script("bench/checksums.py", *small)
    results = results_of(done)
    assert [result["codec"] for result in results] == ["none", "lz4"]
    for result in results:
        assert len(result["ratios"]) == 2
        assert min(result["ratios"]) <= result["ratio"] <= max(result["ratios"])
        assert min(result["checked_mb_s"], result["unchecked_mb_s"], result["crc32c_mb_s"]) > 0
    assert [line.split()[3].rstrip(",") for line in done.stderr.splitlines()] == ["none", "lz4"]
    assert not list(tmp_path.iterdir())


def test_one_way_computes_a_checksum_of_every_block_and_the_other_none(
    dataset: st.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    original = shards.crc32c

    def counted(data: memoryview) -> int:
        lengths.append(len(data))
        return original(data)

    monkeypatch.setattr(shards, "crc32c", counted)
    bench.epoch(dataset, ARGUMENTS, is_checked=False)
    assert lengths == []
    bench.epoch(dataset, ARGUMENTS, is_checked=True)
    assert len(lengths) >= dataset.layout.n_blocks > 20


def test_damage_is_passed_over_inside_and_seen_again_after(dataset: st.Dataset) -> None:
    shard = dataset.shard_path("x", 0)
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1  # of the rows, not of what blosc says of them
    shard.write_bytes(data)
    if dataset.layout.codec == "none":
        assert bench.epoch(dataset, ARGUMENTS, is_checked=False) > 0
    with pytest.raises(DamagedBlock, match="block 0 of field x"):
        bench.epoch(dataset, ARGUMENTS, is_checked=True)
    with pytest.raises(ZeroDivisionError), bench.unchecked():
        1 / 0  # noqa: B018 - that whatever happens the check is back
    with pytest.raises(DamagedBlock, match="block 0 of field x"):
        bench.epoch(dataset, ARGUMENTS, is_checked=True)
