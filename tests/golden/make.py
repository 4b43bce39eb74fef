"""Make the golden files: datasets, orders and runs that a later version must read, repeat and resume.

They were made by version 0.1.0, with the versions of ``scripts/constraints.txt``. No test runs this. Make files anew
only where a change of the format, of the order or of the arithmetic is the purpose of a commit, and only those that it
changes:

- ``datasets``: a new format. Old datasets must stay readable, so keep the old ones beside the new.
- ``orders``: another order of the epoch, other lanes from a budget, another plan: ``orders.json`` alone. The runs that
  are shuffled (all but epoch, lbfgs and cg) follow the order, so then make them anew, too.
- ``runs``: another format of checkpoints, or other arithmetic.

::

    PYTHONPATH=.:tests/support .venv/bin/python tests/golden/make.py orders runs
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import golden
import golden_runs
import torch


def make_datasets() -> None:
    """The datasets, and what the package says of them."""
    shutil.rmtree("datasets", ignore_errors=True)
    Path("datasets").mkdir()
    Path("sources").mkdir(exist_ok=True)
    Path(golden.CSV).write_bytes(golden.csv_text(golden.N_SAMPLES["classes"]).encode())
    for name in golden.DATASETS:
        golden.ingest(name)
    facts = {
        name: json.loads(golden.run_command("info", f"datasets/{name}.zarr", "--json")) for name in golden.DATASETS
    }
    keys = [golden.keys_of(golden.open_golden("zstd"), epoch) for epoch in golden.KEYED_EPOCHS]
    write("facts.json", {"writers": golden.writers(), "info": facts, "keys": keys})


def make_orders() -> None:
    """The orders, the state of a loader inside an epoch, and the plan that follows from the same rules."""
    cases = {}
    for name, (data, how) in golden.ORDERS.items():
        dataset = golden.open_golden(data)
        state = golden.state_inside(dataset, how) if "batch_size" in how else None
        cases[name] = {"state": state, "epochs": golden.read_orders(dataset, how)}
    plan = json.loads(
        golden.run_command("plan", "datasets/none.zarr", "--batch-size", "16", "--memory", "4MB", "--json")
    )
    write("orders.json", {"orders": cases, "plan": plan})


def make_runs() -> None:
    """The runs, finished and interrupted, and what their weights come to."""
    shutil.rmtree("runs", ignore_errors=True)
    figures = {}
    for name, run in golden_runs.RUNS.items():
        golden_runs.train(name, f"runs/{name}/whole")
        if run.stop_after:
            golden_runs.train_until_ctrl_c(name, f"runs/{name}/stopped")
        if name != golden_runs.PYTHON:
            figures[name] = golden_runs.evaluate(name, f"runs/{name}/whole")
    write("figures.json", {"arithmetic": golden_runs.arithmetic(), "evaluated": figures})


def write(name: str, value: object) -> None:
    """JSON that shows a difference where it is: a line for each innermost list."""
    Path(name).write_bytes((_lines(value, "") + "\n").encode())


def _lines(value: object, indent: str) -> str:
    inner = indent + " "
    if isinstance(value, dict) and value:
        parts = [f"{inner}{json.dumps(key)}: {_lines(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "[\n" + ",\n".join(inner + _lines(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, separators=(",", ":"))


MAKERS = {"datasets": make_datasets, "orders": make_orders, "runs": make_runs}


if __name__ == "__main__":
    asked = sys.argv[1:]
    if not asked or not set(asked) <= set(MAKERS):
        sys.exit(f"error: what is to be made anew? Fix: name some of {', '.join(MAKERS)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Dropout under")
    # Relative paths alone: what is kept names no machine.
    os.chdir(golden.GOLDEN)
    for name, make in MAKERS.items():
        if name in asked:
            make()
