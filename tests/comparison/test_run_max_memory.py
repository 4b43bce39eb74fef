"""A comparison within the memory of its process: sized by the largest run, or refused with what would do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from compare_cases import ingested, line
from forked_python import run_forked

import streamtrain as st
from streamtrain.comparison import setup
from streamtrain.comparison.compare import compare
from streamtrain.errors import BudgetError
from streamtrain.loader import shared_budget
from streamtrain.system.memory import MemoryLimit
from streamtrain.system.units import parse_bytes

MEASURED = """
import sys
from streamtrain.cli.main import main
from streamtrain.system.memory import MemoryMeter
with MemoryMeter(interval_seconds=0.002) as meter:
    code = main(sys.argv[1:])
print("peak", meter.before_bytes + meter.peak_bytes, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    return ingested(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("wide") / "d.zarr"
    st.ingest({"x": rng.normal(size=(4000, 500)).astype("f4"), "y": np.arange(4000) % 4}, path, progress=False)
    return path


def fresh(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_forked(["-c", MEASURED, "compare", *words], timeout=240, cwd=cwd)


LARGE = ["--model", "mlp:1000", "--rules", "batch,epoch", "--optimizers", "adam", "--epochs", "1", "--json"]


@pytest.mark.parametrize("more", [[], ["--surface", "--grid", "2"]])
def test_a_process_stays_within_the_least_budget_that_a_refusal_names(
    wide: Path, tmp_path: Path, more: list[str]
) -> None:
    given = [str(wide), "--val", str(wide), *LARGE, *more, "--threads", "1", "--out", "c"]
    refused = fresh(*given, "--max-memory", "10MB", cwd=tmp_path)
    assert refused.returncode == 5, refused.stderr
    error = json.loads(refused.stderr.splitlines()[-2])["error"]
    assert error["class"] == "BudgetError"
    assert error["what"].startswith("max_memory is 10.0 MB, and the loaders would need ")
    assert "The process holds without them: libraries" in error["why"]
    assert not (tmp_path / "c").exists()
    advised = error["fix"].removeprefix("--max-memory ").removesuffix(" or more")
    done = fresh(*given, "--max-memory", advised, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split("peak ")[1]) <= parse_bytes(advised)
    for run in json.loads(done.stdout)["runs"]:
        assert run["memory"]["projected"] <= run["memory"]["budget"]
        assert run["memory"]["process"] <= parse_bytes(advised)
        config = json.loads((tmp_path / run["run"] / "config.json").read_text())
        assert (config["memory"], config["max_memory"]) == (run["memory"]["budget"], advised)


def test_the_loaders_share_what_the_process_leaves(data: st.Dataset) -> None:
    given = {"rules": ("sample", "epoch"), "optimizers": ("sgd",), "max_epochs": 1, "batch_size": 20, "loss": "mse"}
    found = compare(line(), data, max_memory="20GB", **given)
    assert {run.memory["budget"] for run in found} != {512_000_000}
    assert all(run.memory["projected"] <= run.memory["budget"] < 20_000_000_000 for run in found)
    assert found.about["memory of the process"] == "20GB"
    both = compare(line(), data, max_memory="20GB", memory="16MB", **given)
    assert {run.memory["budget"] for run in both} == {16_000_000}
    alone = compare(line(), data, **given)
    assert {run.memory["budget"] for run in alone} == {512_000_000}
    auto = compare(line(), data, max_memory="auto", **given)
    assert [run.last.train for run in auto] == [run.last.train for run in found], "the order is not a matter of bytes"


def test_what_does_not_fit_the_process_is_refused_before_anything_is_trained(data: st.Dataset, tmp_path: Path) -> None:
    told: list[object] = []
    given = {"max_epochs": 1, "batch_size": 20, "loss": "mse", "on_point": lambda *_: told.append(1)}
    with pytest.raises(BudgetError, match=r"max_memory is 1\.0 MB.*Fix: max_memory='\d+MB' or more"):
        compare(line(), data, max_memory="1MB", out=tmp_path / "c", **given)
    with pytest.raises(BudgetError, match=r"max_memory is 1\.0 MB, and the loaders would need 64\.0 MB of it"):
        compare(line(), data, max_memory="1MB", memory="64MB", out=tmp_path / "c", **given)
    with pytest.raises(BudgetError, match=r"memory is 1\.0 KB, and the smallest that works is"):
        compare(line(), data, max_memory="20GB", memory="1KB", out=tmp_path / "c", **given)
    assert told == []
    assert not (tmp_path / "c").exists()


def test_what_the_machine_refuses_is_said_in_terms_of_the_process(
    data: st.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BudgetError("2 MB are needed", fix=shared_budget.at_most("memory", 10**8))

    monkeypatch.setattr(setup, "StreamLoader", refuse)
    with pytest.raises(BudgetError, match=r"Fix: max_memory='\d+MB' or less"):
        compare(line(), data, max_memory="20GB", max_epochs=1, batch_size=20, loss="mse")
    limit = MemoryLimit(limit_bytes=10**9, free_bytes=10**8, source="memory.max")
    monkeypatch.setattr(shared_budget, "memory_limit", lambda: limit)
    with pytest.raises(BudgetError, match=r"max_memory is 2\.00 GB; memory\.max allows 1\.00 GB"):
        compare(line(), data, max_memory="2GB", max_epochs=1, batch_size=20, loss="mse")
