"""A budget for the whole process: the loaders' part of it, and refusals."""

import json

import numpy as np
import pytest
from forked_python import run_forked

import streamtrain
from streamtrain.errors import Argument, BudgetError, Fix, UsageError
from streamtrain.loader import shared_budget
from streamtrain.loader.budget_shares import smallest_budget_bytes
from streamtrain.loader.shared_budget import (
    NonLoaderMemory,
    check_memory_options,
    loader_budget_bytes,
    steady_lanes,
)
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.system.memory import MemoryLimit
from streamtrain.system.units import parse_bytes

TAKEN = NonLoaderMemory(
    reserved_bytes=300_000_000, training_bytes=90_000_000, step_bytes=10_000_000, model_bytes=30_000_000
)


def test_what_does_not_fit_is_refused_with_every_term_and_what_would_do():
    with pytest.raises(BudgetError) as e:
        loader_budget_bytes("200MB", "500MB", TAKEN)
    assert "max_memory is 500.0 MB, and the loaders would need 200.0 MB of it" in str(e.value)
    assert (
        "libraries 360.0 MB + model 30.0 MB (weights, gradients and the optimizer's state) + one step 10.0 MB + what "
        "allocators keep 8.3 MB = 408.3 MB"
    ) in str(e.value)
    assert e.value.exit_code == 5
    assert loader_budget_bytes("200MB", e.value.fix.argument("max_memory").value, TAKEN) == 200_000_000


@pytest.mark.parametrize(
    ("memory", "max_memory", "expected"),
    [(None, None, 512_000_000), (None, "1GB", 591_666_667), ("64MB", "1GB", 64_000_000)],
)
def test_the_loaders_have_the_stated_budget_or_what_the_process_leaves(memory, max_memory, expected):
    assert loader_budget_bytes(memory, max_memory, TAKEN) == expected


def machine(monkeypatch, limit_bytes, free_bytes):
    limit = MemoryLimit(limit_bytes=limit_bytes, free_bytes=free_bytes, source="memory.max")
    monkeypatch.setattr(shared_budget, "memory_limit", lambda: limit)


def test_the_machines_limit_is_taken_where_asked_for_and_no_more_than_is_free(monkeypatch):
    machine(monkeypatch, 2 * 10**9, 10**10)
    assert loader_budget_bytes(None, "auto", TAKEN) == 2 * 10**9 - TAKEN.total_bytes
    machine(monkeypatch, 20 * 10**9, 10**9)
    left = loader_budget_bytes(None, "auto", TAKEN)
    assert 0 < left < 10**9 - TAKEN.training_bytes - TAKEN.step_bytes
    machine(monkeypatch, 20 * 10**9, 10**8)
    with pytest.raises(BudgetError, match=r"100\.0 MB are free on the machine\. Fix: free memory"):
        loader_budget_bytes(None, "auto", TAKEN)


@pytest.mark.parametrize(("option", "sizes"), [("memory", ("900GB", None)), ("max_memory", (None, "900GB"))])
def test_more_than_the_machine_has_is_refused_however_little_is_needed(monkeypatch, option, sizes):
    machine(monkeypatch, 25 * 10**9, 10**10)
    monkeypatch.setattr(shared_budget, "held_bytes", lambda: 10**9)
    with pytest.raises(
        BudgetError, match=f"^{option} is 900.00 GB; memory.max allows 25.00 GB, of which 10.00 GB"
    ) as e:
        check_memory_options(*sizes)
    # What the process holds already is part of what it may have, and of no loader's.
    assert e.value.fix == f"{option}='{'9000MB' if option == 'memory' else '10999MB'}' or less"
    check_memory_options(None, "auto")
    check_memory_options(None, None)


def test_a_limit_that_the_kernel_has_rounded_down_is_the_whole_of_it(monkeypatch):
    machine(monkeypatch, 300_000_000 // 4096 * 4096, 10**8)
    check_memory_options(None, "300MB")


def test_what_the_process_holds_is_free_for_it_and_counts_once(monkeypatch):
    machine(monkeypatch, 10**9, 100_000_000)
    left = loader_budget_bytes(None, "auto", TAKEN, held_now=TAKEN.total_bytes)
    assert left == 95_000_000
    assert loader_budget_bytes(None, "490MB", TAKEN, held_now=TAKEN.total_bytes) == min(
        left, 490_000_000 - TAKEN.total_bytes
    )
    with pytest.raises(BudgetError, match=r"100\.0 MB are free") as e:
        loader_budget_bytes("99MB", "4GB", TAKEN, held_now=TAKEN.total_bytes)
    assert str(e.value.fix).startswith("free memory")


def test_a_step_that_the_kernel_would_end_is_refused_before_it_is_taken(monkeypatch):
    machine(monkeypatch, 367_000_000, 113_000_000)
    shared_budget.require_rehearsal(14_000_000, 2)
    with pytest.raises(BudgetError, match=r"first step of this model takes about 157\.0 MB") as e:
        shared_budget.require_rehearsal(21_000_000, 2)
    assert e.value.exit_code == 5
    shared_budget.require_rehearsal(21_000_000, 0)


def test_the_least_that_a_loader_needs_is_found_to_the_byte(dataset):
    for lanes, shuffle in ((None, True), (64, True), (None, False)):
        least = smallest_budget_bytes(dataset.layout, 256, lanes=lanes, shuffle=shuffle)
        StreamLoader(dataset, batch_size=256, memory=least, lanes=lanes, shuffle=shuffle).close()
        with pytest.raises(BudgetError):
            StreamLoader(dataset, batch_size=256, memory=least - 1, lanes=lanes, shuffle=shuffle)
    assert steady_lanes(dataset, 256, smallest_budget_bytes(dataset.layout, 256)) >= 1


def test_a_loaders_refusal_names_the_option_that_was_given():
    refused = BudgetError("x", fix=Fix(Argument("memory", n_bytes=1_000_000)))
    assert shared_budget.process_budget_error(refused, TAKEN).fix == "max_memory='410MB'"
    refused = BudgetError("x", fix=Fix(Argument("memory", "5MB"), " or less"))
    assert shared_budget.process_budget_error(refused, TAKEN).fix == "max_memory='414MB' or less"


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
    command = ["-m", "streamtrain", "train", str(dataset.path), "--model", "linear", "--epochs", "1"]
    command += ["--out", str(tmp_path / "run"), "--json", *options]
    return run_forked(command, timeout=120)


def test_a_run_stays_within_the_budget_of_its_process(dataset, tmp_path):
    done = run(dataset, tmp_path, "--max-memory", "2GB")
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert memory["process"] <= 2_000_000_000
    assert memory["projected"] <= memory["budget"] < 2_000_000_000
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["memory"] == memory["budget"]
    assert config["max_memory"] == "2GB"
    assert config["lanes"] >= 2
    assert config["lanes"] % config["groups"] == 0


def test_a_process_that_is_larger_than_its_budget_is_refused_before_it_begins(dataset, tmp_path):
    done = run(dataset, tmp_path, "--max-memory", "1KB")
    assert done.returncode == 5
    assert "The process holds without them: libraries" in done.stderr
    assert not (tmp_path / "run").exists()
    # The remedy can be typed as it stands, and the run then stays within it.
    advised = done.stderr.split("Fix: --max-memory ")[1].split()[0]
    done = run(dataset, tmp_path, "--max-memory", advised)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["memory"]["process"] <= parse_bytes(advised)


def test_a_size_without_a_unit_is_no_size(dataset, tmp_path):
    done = run(dataset, tmp_path, "--max-memory", "500")
    assert done.returncode == UsageError.exit_code
    assert "max_memory '500' is not a size" in done.stderr
