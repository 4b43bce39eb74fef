"""A budget for the whole process: what is left of it for the loaders, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest

import streamtrain
from streamtrain.cli.shares import Taken, loaders_bytes, steady_lanes
from streamtrain.errors import BudgetError, UsageError

TAKEN = Taken(reserved_bytes=300_000_000, training_bytes=90_000_000, step_bytes=10_000_000)


def test_what_does_not_fit_is_refused_with_every_term_and_what_would_do():
    with pytest.raises(BudgetError) as e:
        loaders_bytes("200MB", "500MB", TAKEN)
    assert "max_memory is 500.0 MB, and the loaders would need 200.0 MB of it" in str(e.value)
    assert "reserved 300.0 MB + model, gradients and optimizer state 90.0 MB + a step 10.0 MB = 400.0 MB" in str(
        e.value
    )
    assert e.value.exit_code == 5
    assert loaders_bytes("200MB", e.value.fix.split()[1], TAKEN) == 200_000_000


def test_the_machines_limit_is_taken_where_asked_for():
    assert loaders_bytes(None, "auto", TAKEN) > 0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 5000)
    x = rng.normal(size=(20_000, 64)).astype("float32")
    return streamtrain.ingest({"x": x, "y": y}, tmp_path_factory.mktemp("shares") / "d.zarr")


def test_lanes_do_not_follow_the_last_megabytes(dataset):
    lanes = {steady_lanes(dataset, 256, n_bytes) for n_bytes in range(8_100_000, 15_900_000, 600_000)}
    assert len(lanes) == 1


def run(dataset, tmp_path, *options):
    command = [sys.executable, "-m", "streamtrain", "train", str(dataset.path), "--model", "linear", "--epochs", "1"]
    command += ["--out", str(tmp_path / "run"), "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_run_stays_within_the_budget_of_its_process(dataset, tmp_path):
    done = run(dataset, tmp_path, "--max-memory", "2GB")
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert memory["process"] <= 2_000_000_000
    assert memory["projected"] <= memory["budget"] < 2_000_000_000


def test_a_process_that_is_larger_than_its_budget_is_refused_before_it_begins(dataset, tmp_path):
    done = run(dataset, tmp_path, "--max-memory", "20MB")
    assert done.returncode == 5
    assert "The process holds without them: reserved" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_size_without_a_unit_is_no_size(dataset, tmp_path):
    done = run(dataset, tmp_path, "--max-memory", "500")
    assert done.returncode == UsageError.exit_code
    assert "max_memory '500' is not a size" in done.stderr
