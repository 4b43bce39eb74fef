"""The ingest benchmark at small size, and that what it copies is whole and durable."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_script import is_ratio_of_rounded, results_of, run_script

import streamtrain as st
from scripts.bench import ingest as bench


def test_it_runs_at_small_size_and_leaves_nothing(tmp_path: Path) -> None:
    small = ["--size", "1MB", "--memory", "64MB", "--repeats", "1", "--folder", str(tmp_path)]
    done = run_script("bench/ingest.py", *small)
    results = results_of(done)
    asked = [(kind, codec) for kind in ("uint8", "float32") for codec in ("none", "lz4", "auto")]
    assert [(result["dtype"], result["codec"]) for result in results] == asked
    assert all(result["stored_codec"] == result["codec"] for result in results if result["codec"] != "auto")
    assert {result["bar"] for result in results} == {0.7}
    for result in results:
        # One pair: the ratio is that of the two rates beside it.
        assert is_ratio_of_rounded(result["ratio_to_cp"], result["ingest_mb_s"], result["cp_mb_s"])
        assert 0.9e6 < result["source_bytes"] < 1.1e6
    assert "ingest/cp" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_the_source_is_not_constant_and_sorted_by_class(tmp_path: Path, kind: str) -> None:
    bench.write_source(tmp_path / "source", kind, 1_000_000)
    x, y = (np.load(tmp_path / "source" / f"{name}.npy") for name in ("x", "y"))
    assert x.dtype == kind
    assert x.shape == (len(y), bench.KINDS[kind])
    assert len(np.unique(x, axis=0)) == len(x)
    assert (x.std(axis=0) > 0).all()
    assert (np.diff(y) >= 0).all()
    assert set(y.tolist()) == set(range(bench.N_CLASSES))


def test_a_disk_that_fills_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["ingest.py", "--size", "100kB", "--kinds", "uint8", "--codecs", "none", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)

    def fill(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.npy")

    monkeypatch.setattr(bench, "write_source", fill)
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 5
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_copy_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(st.ResourceError, match=r"cp failed.*missing"):
        bench.copy(tmp_path / "missing", tmp_path / "target")


@pytest.mark.skipif(sys.platform != "linux", reason="what a descriptor is open on is read from /proc")
def test_what_is_copied_is_flushed_with_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write_source(tmp_path / "source", "uint8", 100_000)
    flushed: list[Path] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    target = tmp_path / "target"
    bench.copy(tmp_path / "source", target)
    assert set(flushed) == {target / "x.npy", target / "y.npy", target, tmp_path}
    for name in ("x.npy", "y.npy"):
        assert (target / name).read_bytes() == (tmp_path / "source" / name).read_bytes()


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(bench, "parse_arguments", lambda: argparse.Namespace(size="900TB", folder=tmp_path))
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 5
    assert "are needed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
