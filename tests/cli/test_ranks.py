"""Commands that a launcher starts as several ranks."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from forked_python import Forked
from processes_of_ranks import ended, started
from safetensors.numpy import load_file

import streamtrain as st
from streamtrain.cli import ranks
from streamtrain.cli.main import main
from streamtrain.errors import StallError

TRAIN = "-m streamtrain train d.zarr --val v.zarr --model linear --optimizer sgd --batch-size 16 --memory 16MB"
LONG = f"{TRAIN} --out run --epochs 100000".split()
LOOKED_AT = """
import pathlib, sys
from streamtrain.cli.main import main
from streamtrain.errors import StallError
code = main(sys.argv[1:])
tasks = [each.read_text().strip() for each in pathlib.Path("/proc/self/task").glob("*/comm")]
print("left:", [name for name in tasks if "gloo" in name], file=sys.stderr)
sys.exit(code)
"""
"""A command, and the threads of its process group that it leaves: one may abort the process as Python ends."""


KILLED = """
import os, signal, sys
from streamtrain.optim.ranks import exchange
add, n = exchange.RankExchange.add, [0]
def killed(self, values):
    n[0] += len(values) > 4
    if n[0] == 27 and self.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return add(self, values)
exchange.RankExchange.add = killed
from streamtrain.cli.main import main
from streamtrain.errors import StallError
sys.exit(main(sys.argv[1:]))
"""
"""A command of which one rank is killed in the 27th step."""
SIGNALLED = """
import os, signal, sys
from streamtrain.cli import main, ranks
join = ranks._join
def signalled(*given, **more):
    if os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    join(*given, **more)
ranks._join = signalled
sys.exit(main.main(sys.argv[1:]))
"""
"""A command of which one rank gets a signal before it has joined the others."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("ranks"), np.random.default_rng(0)
    for name, n in (("d", 331), ("v", 50)):
        x = chance.normal(size=(n, 4)).astype(np.float32)
        st.ingest({"x": x, "y": (x[:, 0] > 0).astype(np.int64)}, folder / f"{name}.zarr", block="320B")
    return folder


def wait_for_an_epoch(first: Forked) -> None:
    # An epoch later than the first that is printed is under way when all ranks have met.
    n_epochs = 0
    while n_epochs < 2:
        line = first.stdout.readline()
        assert line, first.communicate()
        n_epochs += line.split()[:1] != [] and line.split()[0].isdecimal()


def test_ranks_end_together_and_the_run_goes_on(folder: Path) -> None:
    with started(["-c", LOOKED_AT, *LONG[2:]], 2, folder, PYTHONUNBUFFERED="1") as running:
        wait_for_an_epoch(running[0])
        running[1].send_signal(signal.SIGTERM)
        (code, _, err), (other_code, other_out, other_err) = ended(running)
    assert (code, other_code) == (143, 143)
    assert "interrupted by SIGTERM; saved run/checkpoints/" in err
    assert other_out == ""
    assert "left: []" in err
    assert other_err.splitlines() == ["rank 1: error: interrupted by SIGTERM", "left: []"]
    # Killed, a rank leaves no reason. The error file is torchrun's, which has no other way to know the code.
    told = {"PYTHONUNBUFFERED": "1", "TORCHELASTIC_ERROR_FILE": "error.json"}
    with started([*LONG, "--resume"], 2, folder, **told) as running:
        wait_for_an_epoch(running[0])
        running[1].kill()
        (code, _, err), (killed, _, _) = ended(running)
    assert (code, killed) == (7, -9)
    assert "error: rank 1 is gone or silent" in err
    assert json.loads((folder / "error.json").read_text())["message"]["errorCode"] == 7
    assert main(["evaluate", str(folder / "run"), str(folder / "v.zarr")]) == 0


def test_the_last_whole_step_outlives_a_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"{TRAIN} --epochs 2".split()[2:]
    with started(["-c", KILLED, *words, "--out", "cut"], 2, folder) as running:
        (code, _, err), (killed, _, _) = ended(running)
    assert (code, killed) == (7, -9)
    assert "the last whole step is in cut/checkpoints/00000026" in err
    monkeypatch.chdir(folder)
    assert main([*words, "--out", "cut", "--resume"]) == 0
    assert main([*words, "--out", "whole"]) == 0
    cut, whole = (load_file(f"{run}/checkpoints/00000042/model.safetensors") for run in ("cut", "whole"))
    for name, weight in whole.items():
        np.testing.assert_allclose(cut[name], weight, rtol=1e-5, atol=1e-6)


def test_a_signal_to_a_rank_that_starts_ends_all(folder: Path) -> None:
    with started(["-c", SIGNALLED, *f"{TRAIN} --out early".split()[2:]], 2, folder) as running:
        (code, _, err), (other_code, _, other_err) = ended(running)
    assert (code, other_code) == (143, 143)
    assert err.endswith("error: rank 1: interrupted by SIGTERM\n")
    assert other_err == "rank 1: error: interrupted by SIGTERM\n"
    assert not (folder / "early").exists()


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("as_rank")
def test_what_ranks_do_not_share(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(folder / "d.zarr")
    for words in (["info", data], ["plan", data]):
        assert main(words) == 0
        assert capsys.readouterr() == ("", "")
    assert main(["predict", "run", data, "--out", "p.csv"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rank 1: error: predict was started as 2 ranks")
    assert "--rows" in err
    assert main(["ingest", data, "e.zarr"]) == 2
    assert "Fix: start it without torchrun." in capsys.readouterr().err


@pytest.mark.usefixtures("as_rank")
def test_a_launch_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.launch() == ranks.Launch(rank=1, world_size=2, local_rank=0)
    for name, value in (("RANK", "one"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert ranks.launch() is None


def test_a_plan_for_ranks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(folder / "d.zarr"), "--batch-size", "16", "--memory", "16MB"]
    assert main([*words, "--ranks", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"]["world_size"] == 2
    assert found["ranks"]["batch_size"] == 8
    assert sum(found["ranks"]["last_batch"]) == 331 % 16
    assert found["ranks"]["lanes"] * 2 == found["lanes"]
    assert {1, 2} <= set(found["ranks"]["possible_world_sizes"])
    assert main([*words, "--ranks", "2"]) == 0
    assert "ranks    each of 2 has 8 samples of a batch, of the last one 6 or 5" in capsys.readouterr().out
    assert main([*words, "--ranks", "3"]) == 2
    assert "cannot be shared by 3 ranks" in capsys.readouterr().err


@pytest.mark.usefixtures("as_rank")
def test_what_would_keep_the_group_alive_is_imported_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    holder = "torch.distributed.nn.functional"
    monkeypatch.delitem(sys.modules, holder, raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    found: list[bool] = []

    def store(*_: object, **__: object) -> None:
        found.append(holder in sys.modules)
        raise RuntimeError("no store")

    monkeypatch.setattr("torch.distributed.TCPStore", store)
    with pytest.raises(StallError, match="have not come together"), ranks.process_group():
        pass
    assert found == [True]
