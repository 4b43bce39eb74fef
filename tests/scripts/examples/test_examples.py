"""Every example in a fresh process: what it prints, and that it fits on a page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_script import ROOT, SCRIPTS, run_script

import streamtrain as st

EXAMPLES = sorted(path.name for path in (SCRIPTS / "examples").glob("[!_]*.py"))
# An example is a user's program: it finds streamtrain where that is installed. One thread: on a busy machine torch's
# threads wait for one another at each of these tiny steps.
INSTALLED = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SVM = "0 1:0.5 3:2\n1 2:1\n0 1:-1\n"


def output(name: str, folder: Path) -> str:
    work = folder / "work"
    work.mkdir()
    places = {"TMPDIR": str(work), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    done = run_script(f"examples/{name}", env={**INSTALLED, **places}, cwd=work)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not list(work.iterdir()), "nothing is left"
    return done.stdout


def figures(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def train_from_store(text: str) -> None:
    assert text.startswith("20,000 samples of 16 numbers in clouds.zarr\n")
    assert len(figures(r"epoch [123]: loss (.*)", text)) == 3
    assert figures(r"accuracy (.*)", text)[0] > 0.95


def two_inputs(text: str) -> None:
    first, *_, last = figures(r"epoch \d: accuracy (.*)", text)
    assert 0.25 < first < last
    assert last > 0.95, "half of it can be told from one of the inputs alone"


def plain_loop(text: str) -> None:
    assert figures(r"epoch [123]: loss (.*)", text)[-1] == pytest.approx(0.01, rel=0.1), "the variance of the noise"
    assert figures(r"y = (.*) x \+ .*", text) == pytest.approx([3], abs=0.02)
    assert figures(r"y = .* x \+ (.*)", text) == pytest.approx([1], abs=0.02)


def lbfgs(text: str) -> None:
    assert text.startswith("stopped by grad_tolerance after ")
    assert figures(r"largest error of a weight (.*)", text)[0] < 1e-6


def source_plugin(text: str) -> None:
    assert "".join(text.split()) == "[[0.50.2.][0.1.0.][-1.0.0.]][010]"


def predict_table(text: str) -> None:
    assert text.startswith("1,000 predictions, off by ")
    assert figures(r"off by ([\d.]+)", text)[0] < 0.5 * figures(r"vary by ([\d.]+)", text)[0]


def images(text: str) -> None:
    first, second = figures(r"accuracy ([\d.]+)", text)
    assert first > 0.8, "a third of them are right by chance"
    assert second > 0.8, "half of them"


def netcdf_grid(text: str) -> None:
    assert text.startswith("1,209 days of float32 (12, 24), 291 to compare\n")
    forecast, guess = figures(r"([\d.]+) K", text)
    assert forecast < 0.5 * guess


CHECKS = (train_from_store, two_inputs, plain_loop, lbfgs, source_plugin, predict_table, netcdf_grid, images)
EXPECTED = {f"{check.__name__}.py": check for check in CHECKS}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_shows(name: str, tmp_path: Path) -> None:
    EXPECTED[name](output(name, tmp_path))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_fits_on_a_page(name: str) -> None:
    assert len((SCRIPTS / "examples" / name).read_text().splitlines()) < 60


def test_an_installed_plugin_gives_ingest_its_format(tmp_path: Path) -> None:
    package = tmp_path / "site" / "source_plugin-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: source-plugin\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[streamtrain.sources]\nsvm = source_plugin:probe\n")
    (tmp_path / "data.svm").write_text(SVM)
    paths = os.pathsep.join(map(str, (ROOT, package.parent, SCRIPTS / "examples")))
    command: list[Any] = [sys.executable, "-m", "streamtrain", "ingest", tmp_path / "data.svm", tmp_path / "d.zarr"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    rows = st.open(tmp_path / "d.zarr")[:]
    np.testing.assert_array_equal(rows["x"], [[0.5, 0, 2], [0, 1, 0], [-1, 0, 0]])
    assert rows["y"].tolist() == [0, 1, 0]
