"""``streamtrain verify``: what it prints, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import streamtrain
from streamtrain.cli.main import main


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "d.zarr"
    streamtrain.ingest({"x": np.arange(600), "y": np.arange(600) % 3}, path, block=16 * 50, codec="none")
    return path


def test_whole(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(dataset)]) == 0
    assert "whole (lengths and metadata; blocks are read with --full; " in capsys.readouterr().out
    assert main(["verify", str(dataset), "--full"]) == 0
    out = capsys.readouterr().out
    assert "of blocks read and checked at" in out
    assert "/s" in out


def test_damaged(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = dataset / "x/c/0"
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    data[-1] ^= 1
    shard.write_bytes(data)
    y = dataset / "y/c/0"
    y.write_bytes(bytes([y.read_bytes()[0] ^ 8]) + y.read_bytes()[1:])
    (dataset / "_streamtrain/zarr.json").unlink()
    assert main(["verify", str(dataset)]) == 4
    assert "1 place is damaged" in capsys.readouterr().out
    assert main(["verify", str(dataset), "--full"]) == 4
    out = capsys.readouterr().out
    assert "3 places are damaged" in out
    for part in ("_streamtrain/zarr.json", "index does not match", "block 0 of field y (samples 0 to 49)", "Fix: "):
        assert part in out


def test_json_is_one_object_with_every_place(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(dataset), "--full", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["full"], result["blocks"], result["damage"]) == (True, 24, [])
    shard = dataset / "y/c/0"
    shard.write_bytes(shard.read_bytes()[:8] + b"\xff" + shard.read_bytes()[9:])
    assert main(["verify", str(dataset), "--full", "--json"]) == 4
    (damage,) = json.loads(capsys.readouterr().out)["damage"]
    assert (damage["file"], damage["field"], damage["block"]) == (str(shard), "y", 0)
    assert (damage["first_sample"], damage["last_sample"]) == (0, 49)


def test_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 4
    assert "not a streamtrain dataset" in capsys.readouterr().err
