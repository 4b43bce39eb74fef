"""The benchmark of images beside other libraries, which stand-ins are here: nothing is installed."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.bench import images
from scripts.bench.peers.images import compare
from scripts.bench.peers.process import NotMeasured
from scripts.bench.peers.worker import Case
from scripts.runner import Result

PEER = """
from torch.utils.data import DataLoader
from scripts.bench.images import Files
from scripts.bench.peers.images.worker import ImageWorker, collate, files
from scripts.bench.peers.worker import Peer, serve, worker_counts

def write(case):
    (case.folder / "stored").write_bytes(b"12345678")

def loader(case, variant):
    batches = DataLoader(Files(files(case)), case.batch_size, shuffle=True, collate_fn=collate, drop_last={drop_last})
    return lambda epoch: iter(batches)

serve(Peer(packages=("pillow",), write=write, variants=lambda way: worker_counts()[:2], loader=loader), ImageWorker)
"""
"""A peer that is a DataLoader."""


def record_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Callable[..., Path]) -> Result:
    monkeypatch.setattr(compare, "environment", environment)
    paths = images.write_images(tmp_path / "images", 21, 0)
    place = tmp_path / "peer"
    folder = place / "work" / "stored"
    case = Case(source=tmp_path / "images", folder=folder, n_samples=21, row_bytes=0, batch_size=8, memory="64MB")
    record = compare.compare("webdataset", place, case, lambda: images.bare(paths, images.HOW), 1)
    assert not place.exists()
    return record


def python_that_serves(folder: Path, *, drop_last: bool) -> Path:
    (folder / "peer.py").write_text(PEER.format(drop_last=drop_last))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "peer.py"}"\n')
    python.chmod(0o755)
    return python


def test_a_peer_is_checked_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = python_that_serves(tmp_path, drop_last=False)
    record = record_of(tmp_path, monkeypatch, lambda *_: python)
    check = record["check"]
    assert [check[name] for name in ("yielded", "distinct", "wrong")] == [21, 21, 0]
    assert record["stored_bytes"] == 8
    assert record["ratio"] > 0
    assert len(record["probes"]) == 2
    assert record["memory_bytes"] > 0
    assert "with " in images.describe(record | {"loader peak_bytes": 1})


def test_a_peer_that_leaves_images_out_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = python_that_serves(tmp_path, drop_last=True)
    record = record_of(tmp_path, monkeypatch, lambda *_: python)
    assert "an epoch is not every image once" in str(record["not_measured"])
    assert "ratio" not in record


def test_a_peer_that_cannot_be_installed_or_run_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Path:
        raise NotMeasured("not installed: there is no such package")

    record = record_of(tmp_path, monkeypatch, refused)
    assert images.describe(record) == "webdataset           not measured: not installed: there is no such package"
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: nothing is here' >&2\nexit 1\n")
    broken.chmod(0o755)
    record = record_of(tmp_path, monkeypatch, lambda *_: broken)
    assert str(record["not_measured"]).endswith("the worker ended: ImportError: nothing is here")


def test_peers_may_be_chosen_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*words: str) -> Namespace:
        monkeypatch.setattr(sys, "argv", ["images.py", *words])
        return images.parse_arguments()

    assert chosen().peers == ["webdataset", "litdata"]
    assert chosen("--peers", "litdata").peers == ["litdata"]
    assert chosen("--peers", "none").peers == []
