"""Refusals of ``streamtrain compare``: each has a remedy that works, and what is trained is not lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.cli.main import main
from streamtrain.comparison import compare

pytestmark = pytest.mark.usefixtures("in_own_folder", "one_thread")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "d.zarr"
    st.ingest({"x": rng.normal(size=(60, 4)).astype(np.float32), "y": rng.integers(0, 3, 60)}, path, progress=False)
    return path


ONE = ["--model", "linear", "--rules", "batch", "--optimizers", "sgd", "--batch-size", "30", "--epochs", "1"]


@pytest.mark.parametrize("with_val", [False, True])
@pytest.mark.parametrize("memory", ["1KB", "4MB", "5MB"])
def test_the_memory_that_a_refusal_names_is_enough(
    stored: Path, memory: str, with_val: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["compare", str(stored), *ONE, "--rules", "batch,epoch", *(["--val", str(stored)] if with_val else [])]
    assert main([*args, "--memory", memory, "--out", "c"]) == 5
    err = capsys.readouterr().err
    found = re.search(r"Fix: --memory (\d+)MB\.", err)
    assert found is not None, err
    assert "Validation data gets 1/4 of it" in err
    assert not Path("c").exists()
    assert main([*args, "--memory", f"{int(found[1]) - 1}MB"]) == 5, "and it is the least"
    assert main([*args, "--memory", f"{found[1]}MB"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "0"], "batch_size is 0; it must be a positive integer. Fix: --batch-size 256"),
        (["--surface", "--grid", "0"], "the grid is 0; it must be from 2 to 201\n"),
        (["--surface", "--grid", "1"], "the grid is 1; it must be from 2 to 201\n"),
        (["--grid", "5"], "--grid without --surface. Fix: --surface --grid 5"),
        (["--lr", "sgd=0.1,sgd=0.1"], "the learning rates of sgd are 0.1, 0.1. Fix: each one once"),
        (["--lr", "0.1, 0.2,0.1"], "the learning rates of all are 0.1, 0.2, 0.1"),
        (["--optimizers", "SGD,sgd"], "optimizers are SGD, sgd. Fix: each one once"),
    ],
)
def test_what_means_nothing_is_refused(
    stored: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(stored), *ONE, *args, "--out", "c"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("c").exists()


def test_a_folder_that_is_taken_has_a_remedy_of_compare(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(stored), *ONE, "--out", "c"]) == 0
    capsys.readouterr()
    for taken, resuming in (("c", " --resume to resume it,"), ("c/batch-sgd", "")):
        assert main(["compare", str(stored), *ONE, "--out", taken]) == 2
        fix = f"another --out,{resuming} or remove it."
        assert f"{taken}: the run folder is taken. Fix: {fix}" in capsys.readouterr().err
    Path("file").write_text("")
    assert main(["compare", str(stored), *ONE, "--out", "file/c"]) == 5
    out, err = capsys.readouterr()
    assert "cannot create directory: something else is in its place" in err
    assert len(out.splitlines()) == 5, "nothing was trained"


def test_what_interrupts_a_surface_costs_no_comparison(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "measure_surface", interrupt)
    assert main(["compare", str(stored), *ONE, "--surface", "--grid", "2", "--out", "c"]) == 130
    assert len(json.loads(Path("c/comparison.json").read_text())["runs"]) == 1
    assert Path("c/comparison.html").is_file()


def test_a_run_that_diverges_beside_a_surface(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--rules", "epoch,batch", "--lr", "epoch:sgd=1e38,batch:sgd=0.01", "--epochs", "6", "--surface"]
    assert main(["compare", str(stored), *ONE, *args, "--grid", "2", "--json", "--out", "c"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["diverged"] is not None for run in result["runs"]] == [True, False]
    assert max(map(abs, result["surface"]["x"])) < 10
    assert [len(path["places"]) for path in result["surface"]["paths"]] == [1, 13]


def test_columns_stay_apart_however_large_the_loss(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--rules", "epoch", "--lr", "1e30", "--normalize", "none", "--val", str(stored), "--epochs", "2"]
    assert main(["compare", str(stored), *ONE, *args]) == 0
    lines = capsys.readouterr().out.splitlines()[5:8]
    assert [len(line.split()) for line in lines] == [10, 10, 11], "a time is two words"
    assert float(lines[2].split()[6]) > 1e20
