"""The comparison with other libraries at tiny size: what needs nothing installed, failures, deadlines, the summary."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from run_script import SCRIPTS, is_ratio_of_rounded

from scripts.bench.peers import arrays, catalog, measure, process, summary, worker

TINY = ["--size", "1MB", "--tiny-size", "0", "--memory", "16MB", "--batch-size", "16", "--workers", "0"]
BRIEF = ["--seconds", "0.05", "--rounds", "1", "--warm-seconds", "0.05", "--probe-seconds", "0.06", "--deadline", "60"]
RIGHT = {"samples": 10, "yielded": 10, "distinct": 10, "wrong": 0, "shuffled": True}


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / "bench" / "other_loaders.py"), "--folder", str(folder), *TINY, *BRIEF, *words]


STAND_IN = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") [ "$6" != torch==0 ] || { echo "ERROR: there is no torch==0" >&2; exit 1; } ;;
    *) echo "ImportError: nothing is installed here" >&2; exit 1 ;;
esac
"""
"""Instead of a Python: makes environments with itself in them, installs all but one torch, and cannot run a worker."""


def test_what_needs_nothing_installed_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "work"
    (kept / "webdataset" / "bin").mkdir(parents=True)
    (kept / "webdataset" / "packages").write_text("torch==1\nwebdataset")
    folder.mkdir()
    stand_in = kept / "webdataset" / "bin" / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    words = ["--torch", "torch==1", "--keep-environments", str(kept), "--peers", "WebDataset"]
    run = subprocess.run(command(folder, *words, "zarr, DataLoader"), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    by_peer = {result["peer"]: result for result in results if "peer" in result}
    assert set(by_peer) == {"WebDataset", "zarr, DataLoader", "streamtrain"}
    failed = by_peer.pop("WebDataset")
    assert failed["not_measured"] == "webdataset: describe: the worker ended: ImportError: nothing is installed here"
    assert f"WebDataset            not measured: {failed['not_measured']}" in run.stderr
    for result in by_peer.values():
        counts = [result["check"][name] for name in ("samples", "yielded", "distinct")]
        assert counts == [result["n_samples"]] * 3
        assert result["check"]["wrong"] == 0
        assert result["check"]["shuffled"]
        assert 0.5 < result["mixing"] < 1.5
        assert 10**7 < result["idle_bytes"] <= result["memory_bytes"] < 10**10
        assert result["first_batch_seconds"] > 0
    result = by_peer["zarr, DataLoader"]
    ((own, its),) = result["rounds"]
    assert is_ratio_of_rounded(result["ratio"], own, its)
    assert [probe["read"] for probe in result["probes"]] == ["a row", "a batch"]
    (best,) = (result for result in results if "summary" in result)
    assert (best["summary"], best["at_least"], best["ratio"]) == ("out of core", 25, result["ratio"])
    assert "ahead of streamtrain at 3072 B rows" in run.stderr
    assert not list(folder.iterdir())
    assert stand_in.exists()


def test_environments_are_made_once_and_again_for_other_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    folder = tmp_path / "environment"
    python = process.environment(folder, ("torch==1", "grain"), 60)
    assert python == folder / "bin" / "python"
    (folder / "mark").touch()
    process.environment(folder, ("torch==1", "grain"), 60)
    assert (folder / "mark").exists()
    process.environment(folder, ("torch==2", "grain"), 60)
    assert not (folder / "mark").exists()
    with pytest.raises(process.NotMeasured, match=r"^not installed: ERROR: there is no torch==0$"):
        process.environment(folder, ("torch==0", "grain"), 60)
    assert not (folder / "packages").exists(), "a broken environment is not taken for a whole one"
    stand_in.write_text("#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(process.NotMeasured, match=r"^not installed within 0 s$"):
        process.environment(folder, ("torch==1", "grain"), 0.1)


def test_ctrl_c_leaves_no_file_and_no_process(tmp_path: Path) -> None:
    words = command(tmp_path, "--peers", "memmap, batched", "--seconds", "60")
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ends = time.monotonic() + 60
        while not list(tmp_path.glob("*/streamtrain/*.log")) and time.monotonic() < ends:
            time.sleep(0.02)
        workers = psutil.Process(run.pid).children(recursive=True)
        assert workers
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert not list(tmp_path.iterdir())


def stand_in_worker(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker that answers by a program of our own."""
    package = folder / "scripts" / "bench" / "peers"
    package.mkdir(parents=True)
    for each in (package, *package.parents[:2]):
        (each / "__init__.py").touch()
    (package / "made_up.py").write_text(text)
    monkeypatch.setattr(process, "ROOT", folder)
    return process.Process(Path(sys.executable), "made_up", folder)


SILENT = """
import os, time
input()
child = os.fork()
if child:
    print('{"child": %d}' % child, flush=True)
time.sleep(600)
"""
"""Answers once, with the number of a helper; and never again."""


def test_a_worker_without_an_answer_is_ended_with_its_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in_worker(tmp_path, SILENT, monkeypatch) as silent:
        started = [silent.process.pid, silent.ask("describe", within=60)["child"]]
        assert all(psutil.pid_exists(pid) for pid in started)
        assert silent.held_bytes() > 10**6
        looks: list[int] = []
        for watch in (None, lambda: looks.append(1)):
            with pytest.raises(process.NotMeasured, match="made_up: run: no answer within 0 s"):
                silent.ask("run", within=0.2, watch=watch)
        assert looks
        silent.close(patient=False)
        assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in started)


def test_a_worker_that_fails_tells_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "input()\nraise ImportError('no such library')"
    with (
        pytest.raises(process.NotMeasured, match="the worker ended: ImportError: no such library"),
        stand_in_worker(tmp_path, program, monkeypatch) as failing,
    ):
        failing.ask("run", within=60)


def test_a_peer_has_so_much_time_in_all(tmp_path: Path) -> None:
    timing = measure.Timing(seconds=1, rounds=1, warm_seconds=1, probe_seconds=1, deadline=600, peer_deadline=100)
    case = measure.Case(source=tmp_path, folder=tmp_path, n_samples=9, row_bytes=8, batch_size=3, memory="16MB")
    runner = measure.Runner(Path(sys.executable), "arrays", tmp_path, case, timing)
    assert 90 < runner.within() <= 100
    runner.ends = time.monotonic() - 1
    with pytest.raises(process.NotMeasured, match="arrays: not done within 100 s in all"):
        runner.within()


@pytest.mark.parametrize("way", ["loop in memory", "TensorDataset", "memmap, batched", "memmap, DataLoader"])
def test_every_way_without_a_library_gives_every_row_once(tmp_path: Path, way: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (101, 24), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(101))
    case = {"source": tmp_path, "folder": tmp_path, "n_samples": 101, "row_bytes": 24, "batch_size": 10, "memory": ""}
    peer = worker.Peer(packages=("numpy",), write=arrays.write, variants=arrays.variants, loader=arrays.loader)
    its_worker = worker.Worker(peer)
    described = its_worker.describe(way)
    assert described["versions"] == {"numpy": np.__version__}
    for variant in described["variants"]:
        if variant.get("num_workers", 0) == 0:
            check = its_worker.check(case, variant)
            assert check == {"samples": 101, "yielded": 101, "distinct": 101, "wrong": 0, "shuffled": True}
            its_worker.open(case, variant)
            assert its_worker.run(0.01, 0.01)["samples"] > 0
            assert 0.5 < its_worker.mixing(case)["mixing"] < 1.5


def test_an_epoch_that_is_wrong_is_found(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(80, dtype=np.uint8).reshape(20, 4))
    np.save(tmp_path / "y.npy", np.arange(20))
    case = {"source": tmp_path, "folder": tmp_path, "n_samples": 20, "row_bytes": 4, "batch_size": 20, "memory": ""}

    def loader(case: Any, variant: dict[str, Any]) -> Any:
        order = np.array(variant["order"])
        x = np.array(case.x)
        x[3] += variant["damage"]
        return lambda epoch: iter([(x[order], order)])

    its_worker = worker.Worker(worker.Peer(packages=(), write=print, variants=lambda way: [], loader=loader))
    order = list(range(0, 20, 2)) + list(range(1, 20, 2))
    for numbers, damage, is_right in (
        (order, 0, True),
        (order, 1, False),
        (order[1:], 0, False),
        ([*order, 3], 0, False),
        ([*order[1:], 3], 0, False),
        (list(range(20)), 0, False),
    ):
        check = its_worker.check(case, {"order": numbers, "damage": damage})
        assert measure.is_right(check) is is_right, check


def test_the_catalog() -> None:
    entries = catalog.ENTRIES
    assert len({entry.name for entry in entries}) == len(entries)
    assert len({(entry.module, entry.way) for entry in entries}) == len(entries)
    for entry in entries:
        assert (SCRIPTS / "bench" / "peers" / f"{entry.module}.py").exists()
        shared = {other.packages for other in entries if other.module == entry.module}
        assert shared == {entry.packages}, "entries of a module share an environment"
    wanted = ["litdata", "mosaicml", "webdataset", "grain", "datasets", "scdataset", "lance", "zarr_array", "arrays"]
    assert {entry.module for entry in entries} == set(wanted)
    assert catalog.bar("out of core", 4096) == 25
    assert catalog.bar("in memory", 64) == 4
    assert catalog.bar("in memory", 4096) is None
    assert catalog.bar("memmap", 64) is None


def measured(peer: str, ratio: float, **more: Any) -> dict[str, Any]:
    return {
        "peer": peer,
        "kind": "out of core",
        "peer_samples": 100,
        "samples_s": round(1000 / ratio),
        "streamtrain_samples_s": 1000,
        "ratio": ratio,
        "variant": {},
        "as_documented": None,
        "mixing": 1.0,
        "memory_bytes": 9 * 10**8,
        "idle_bytes": 3 * 10**8,
        "write_seconds": 2.0,
        "stored_bytes": 10**6,
        "first_batch_seconds": 0.5,
        "check": RIGHT,
        **more,
    }


def test_the_summary_names_the_best_of_each_sort() -> None:
    by_hand = measured(
        "tuned",
        5.0,
        variant={"by_hand": True},
        as_documented={"samples_s": 50},
        probes=[{"samples_s": 200}, {"samples_s": 50}, {"not_measured": "failed"}],
    )
    records = [by_hand, measured("near", 15.0, mixing=0.01), measured("plain", 30.0)]
    records.append({"peer": "broken", "kind": "out of core", "not_measured": "not installed: no such thing"})
    (best,) = summary.summarize(records, 3072)
    assert (best["best"], best["ratio"], best["at_least"]) == ("tuned", 5.0, 25.0)
    assert (best["best_as_documented"], best["ratio_as_documented"]) == ("near", 15.0)
    assert (best["best_mixed"], best["ratio_mixed"]) == ("tuned", 20.0)
    assert "at least 25.0 wanted: missed; as documented (near): 15.00" in best["text"]
    (met,) = summary.summarize(records[2:], 3072)
    assert "at least 25.0 wanted: met" in met["text"]
    assert list(summary.summarize(records[3:], 3072)) == []


def test_a_line_says_what_failed_and_what_was_wrong() -> None:
    broken = {"peer": "broken", "kind": "out of core", "not_measured": "not installed: no such thing"}
    assert "not measured: not installed: no such thing" in summary.describe(broken)
    assert "WRONG" not in summary.describe(measured("good", 2.0))
    for bad in ({"distinct": 9}, {"wrong": 1}, {"shuffled": False}, {"yielded": 11}):
        assert "WRONG" in summary.describe(measured("bad", 2.0, check={**RIGHT, **bad}))


def test_where_a_peer_is_ahead() -> None:
    own = measured("streamtrain", 1.0, n_samples=100, row_bytes=8)
    text = summary.ahead(
        [
            measured("behind", 3.0, write_seconds=3.0, first_batch_seconds=1.0),
            measured("quick", 0.5, write_seconds=1.0, first_batch_seconds=0.1, memory_bytes=10**8, stored_bytes=10**5),
            {"peer": "broken", "not_measured": "failed"},
        ],
        own,
    )
    head, line = text.splitlines()
    assert "8 B rows, 100 of them" in head
    assert line.strip() == (
        "quick: 2.00 x the samples/s; written in 1.0 s, not 2.0; first batch in 0.10 s, not 0.50; "
        "100 MB of memory, not 900; 0.1 MB on disk, not 1.0"
    )
